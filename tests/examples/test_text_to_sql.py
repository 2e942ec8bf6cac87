import csv
import json
import os
import re
import shlex
import shutil
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trim_graph.adapters.prm.scorer_file import ScorerFile
from trim_graph.config import load_config
from trim_graph.errors import InputError, SettingsError
from trim_graph.evaluation.datasets import make_dataset
from trim_graph.evaluation.records import read_run
from trim_graph.examples.arithmetic import PRM, SMALL
from trim_graph.examples.text_to_sql import evaluate, sandbox
from trim_graph.examples.text_to_sql.data import (
    NOW,
    compact_schema,
    database_of,
    edited,
    folds,
    prepare,
    questions,
)
from trim_graph.examples.text_to_sql.folds import split_labels
from trim_graph.examples.text_to_sql.grading import (
    alternatives,
    asks_for_order,
    final_query,
    grade,
    is_same,
    order_by,
    statements,
)
from trim_graph.examples.text_to_sql.sandbox import Limits, Result, execute

DUMP = """
CREATE TABLE public.shop (
    id SERIAL PRIMARY KEY, -- grows; by one
    name text DEFAULT ''::text NOT NULL,
    city character varying(20),
    rating numeric(3,1),
    opened date, -- first day
    seen timestamp DEFAULT NOW()
);

CREATE TABLE public.visit (
    shop_id bigint NOT NULL,
    made timestamp NOT NULL,
    year_made int,
    epoch bigint
);

INSERT INTO public.shop (name, city, rating, opened) VALUES
('Ann''s; public.store', 'Rome', 4.5, CURRENT_DATE - INTERVAL '3 days'),
('Bo', 'Oslo', 3.5, DATE_TRUNC('month', CURRENT_DATE) - INTERVAL '1 month' + INTERVAL '2 days'),
('Cy::text', 'Rome', 4.5, DATE_TRUNC('week', NOW()) - INTERVAL '2 weeks'),
('Di', NULL, NULL, '2020-01-02');

INSERT INTO public.visit VALUES
(1, NOW() - INTERVAL '1 day', EXTRACT(YEAR FROM CURRENT_DATE) - 1, EXTRACT(EPOCH FROM NOW()) * 1000),
(1, '2024-08-01 10:00:00', 2024, 0),
(2, CURRENT_DATE, 2024, 1);
"""
ROWS = [
    ("shop", "group_by", "SELECT city, COUNT(*) FROM shop GROUP BY city", "How many shops are in each city?"),
    (
        "shop",
        "order_by",
        "SELECT name, rating FROM shop ORDER BY rating DESC NULLS FIRST",
        "Which rate best?",
    ),
    ("shop", "ratio", "SELECT AVG(rating) / 3 FROM shop", "A third of the average rating?"),
    ("shop", "instruct", "SELECT {id, name} FROM shop WHERE city LIKE '%rome%'", "Which shops are in Rome?"),
    (
        "shop",
        "date_functions",
        "SELECT id FROM shop WHERE opened >= date('now', '-7 days')",
        "New this week?",
    ),
    ("shop", "table_join", "SELECT absent FROM shop", "Which does not run?"),
    ("shop", "table_join", "SELECT id FROM shop WHERE id > 99", "Which gives no rows?"),
    ("wallet", "ratio", "SELECT 1", "Whose dump is missing?"),
]
REAL = os.environ.get("TRIM_SQL_DATA")


@pytest.fixture(scope="module", autouse=True)
def ended_sandbox():
    yield
    sandbox.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("defog")
    write_data(folder)
    return folder


def write_data(folder: Path, rows=ROWS, dumps=("shop",)) -> None:
    for name in dumps:
        (folder / f"{name}.sql").write_text(DUMP, "utf-8")
    with (folder / "questions_gen_sqlite.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["db_name", "db_type", "query_category", "query", "question", "instructions"])
        for name, category, query, question in rows:
            writer.writerow([name, "sqlite", category, query, question, "Match names\nwith LIKE."])


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    return prepare(source, tmp_path_factory.mktemp("databases"))


@pytest.fixture(scope="module")
def database(prepared) -> str:
    return prepared.rows[0]["database"]


def solution(query: str) -> str:
    return f"-- The table is shop.\n\n-- All shops count.\n\n```sql\n{query}\n```"


# The data.


def test_a_dump_of_postgresql_loads_with_dates_of_the_fixed_day(database):
    rows = execute(database, "SELECT id, name, opened, seen FROM shop ORDER BY id").rows
    assert rows == (
        (1, "Ann's; public.store", "2024-08-11", NOW),
        (2, "Bo", "2024-07-03", NOW),
        (3, "Cy::text", "2024-07-29", NOW),
        (4, "Di", "2020-01-02", NOW),
    )
    assert execute(database, "SELECT made, year_made, epoch FROM visit").rows == (
        ("2024-08-13 12:00:00", 2023, 1723636800000),
        ("2024-08-01 10:00:00", 2024, 0),
        ("2024-08-14 00:00:00", 2024, 1),
    )


def test_what_cannot_be_graded_is_left_out_by_name_with_the_reason(prepared):
    assert [row["id"] for row in prepared.rows] == [f"shop-{number}" for number in range(5)]
    assert prepared.left_out.keys() == {"shop-5", "shop-6", "wallet-7"}
    assert "no such column: absent" in prepared.left_out["shop-5"]
    assert prepared.left_out["shop-6"] == "the gold query gives no rows"
    assert "there is no wallet.sql" in prepared.left_out["wallet-7"]


def test_a_question_holds_schema_question_and_hints(prepared):
    assert prepared.rows[0]["question"] == (
        "SQLite database:\n"
        "CREATE TABLE shop (id int /* grows; by one */, name text, city character, rating numeric, "
        "opened date /* first day */, seen timestamp);\n"
        "CREATE TABLE visit (shop_id int, made timestamp, year_made int, epoch int);\n\n"
        "Question: How many shops are in each city?\nHints: Match names with LIKE.\n"
        "Plan in one or two short comments, then write the query."
    )


def test_a_database_is_made_again_only_where_its_dump_has_changed(source, tmp_path):
    folder = tmp_path / "source"
    shutil.copytree(source, folder)
    first = prepare(folder, tmp_path / "databases").rows[0]["database"]
    made = os.stat(first).st_mtime_ns
    prepare(folder, tmp_path / "databases")
    assert os.stat(first).st_mtime_ns == made
    assert grade(
        solution("SELECT 'Rome', 2 UNION SELECT 'Oslo', 1 UNION SELECT NULL, 1"),
        prepare(folder, tmp_path / "databases").rows[0],
    )
    (folder / "shop.sql").write_text(DUMP.replace("'Oslo'", "'Rome'"), "utf-8")
    changed = prepare(folder, tmp_path / "databases").rows[0]
    assert grade(solution("SELECT 'Rome', 3 UNION SELECT NULL, 1"), changed)
    assert list(Path(first).parent.iterdir()) == [Path(first)]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("shop.sql", "CREATE TABLE x (", "shop.sql: SQLite does not execute it"),
        ("questions_gen_sqlite.csv", "a,b\n1,2\n", "there is no column db_name"),
        ("questions_gen_sqlite.csv", None, "cannot be read"),
        ("shop.sql", None, "no question that can be graded"),
    ],
)
def test_faulty_files_are_refused_by_name(source, tmp_path, name, text, said):
    folder = tmp_path / "source"
    shutil.copytree(source, folder)
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(said)):
        prepare(folder, tmp_path / "databases")


def test_edits_leave_texts_and_comments_alone():
    text = "'NOW() - INTERVAL ''1 day'' public.x::text SERIAL' -- SERIAL public.\n"
    assert edited(text) == text
    assert edited("TO_CHAR(NOW() + INTERVAL '5 mins', 'Month')") == (
        "TO_CHAR(shifted(NOW(), '+5 minute'), 'Month')"
    )


def test_questions_are_graded_by_what_their_query_gives(source):
    first, *_ = questions(source)
    assert first.id == "shop-0"
    assert first.expected == ROWS[0][2]
    assert first.grade is not None
    assert first.grade(solution("SELECT COUNT(id) AS n, city AS town FROM shop GROUP BY 2"))
    assert not first.grade(solution("SELECT city, COUNT(city) FROM shop GROUP BY city"))


@given(st.lists(st.sampled_from("abcdefghij"), max_size=60), st.integers(1, 7))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_folds_share_no_database_and_are_the_same_each_time(groups, count):
    found = folds(groups, count)
    assert len(found) == len(groups)
    assert all(0 <= fold < count for fold in found)
    assert len(set(zip(groups, found, strict=True))) == len(set(groups))
    assert found == folds(groups, count)
    if len(set(groups)) >= count:
        assert set(found) == set(range(count))


# The sandbox.

ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
DOUBLING = "WITH a0 AS (SELECT 1 AS x)" + "".join(
    f", a{n + 1} AS (SELECT 1 AS x FROM a{n} AS p, a{n} AS q)" for n in range(30)
)
HOSTILE = {
    "endless": ENDLESS + "SELECT COUNT(*) FROM n",
    "endless rows": ENDLESS + "SELECT x FROM n",
    "endless sort": ENDLESS + "SELECT x FROM n ORDER BY -x",
    "endless text": ENDLESS + "SELECT group_concat(x) FROM n",
    "cross join": "SELECT COUNT(*) FROM " + ", ".join(f"visit AS v{n}" for n in range(40)),
    "doubling": DOUBLING + " SELECT COUNT(*) FROM a30",
    "long text": "SELECT printf('%.*c', 900000000, 'x')",
    "long blob": "SELECT zeroblob(900000000)",
    "many long rows": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 5000) "
    "SELECT printf('%.*c', 10000, 'x') FROM n",
    "insert": "INSERT INTO shop (name) VALUES ('x')",
    "update": "UPDATE shop SET name = 'x'",
    "delete": "DELETE FROM shop",
    "drop": "DROP TABLE shop",
    "create": "CREATE TABLE x (y)",
    "temporary": "CREATE TEMP TABLE x AS SELECT * FROM shop",
    "with delete": "WITH x AS (SELECT 1) DELETE FROM shop",
    "returning": "DELETE FROM shop RETURNING id",
    "attach": "ATTACH DATABASE '{file}' AS other",
    "vacuum": "VACUUM INTO '{file}'",
    "pragma": "PRAGMA writable_schema = ON",
    "pragma as a table": "SELECT * FROM pragma_database_list",
    "extension": "SELECT load_extension('x')",
    "begin": "BEGIN EXCLUSIVE",
    "two statements": "SELECT 1; SELECT 2",
    "a second that writes": "SELECT 1; DELETE FROM shop",
    "hidden in a comment": "SELECT 1 /* ; */; DROP TABLE shop --",
    "comment alone": "-- nothing",
    "open comment": "/* SELECT 1",
    "nothing": "",
    "semicolons": ";;;",
    "nul": "SELECT 1 \x00; DROP TABLE shop",
    "surrogate": "SELECT '\ud800'",
    "nested": "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "too long": "SELECT '" + "x" * 30_000 + "'",
    "edit": "SELECT edit('x'), readfile('/etc/passwd'), writefile('{file}', 'x')",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_query_is_refused_or_ended_and_changes_nothing(database, tmp_path, name):
    before, content = time.monotonic(), Path(database).read_bytes()
    query = HOSTILE[name].replace("{file}", str(tmp_path / "written"))
    found = execute(database, query, Limits(seconds=0.3, wall_seconds=5))
    # Some versions of SQLite make NULL of a text that is too long.
    assert found.rows == ((None,),) if found.error is None else not found.rows
    assert time.monotonic() - before < 30
    assert Path(database).read_bytes() == content
    assert list(tmp_path.iterdir()) == []
    assert execute(database, "SELECT COUNT(*) FROM shop -- still works").rows == ((4,),)


FRAGMENTS = """
SELECT FROM WHERE shop visit * , ( ) ; -- /* */ ' " ` [ ] id name 1 0x7f 1e999 NULL UNION ALL WITH
RECURSIVE n(x) AS DROP TABLE DELETE UPDATE SET INSERT INTO ATTACH PRAGMA VACUUM BEGIN COMMIT EXPLAIN ANALYZE
REINDEX json_each('[1]') x'00ff' randomblob(9) ?1 :a @b $c LIKE GLOB CAST( date('now')
\U0001f388 \u202e \x00 \xe9
"""


@given(
    st.lists(st.sampled_from([*FRAGMENTS.split(), "\n", "\t"]) | st.text(max_size=5), max_size=12).map(
        " ".join
    )
)
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_text_changes_the_database_or_ends_the_grader(prepared, text):
    row = prepared.rows[0]
    content = Path(row["database"]).read_bytes()
    found = execute(row["database"], text, Limits(seconds=0.3))
    assert found.error is None or not found.rows
    assert isinstance(grade(text, row), bool)
    assert isinstance(grade(solution(text), row), bool)
    assert Path(row["database"]).read_bytes() == content


@given(
    st.text(max_size=20), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_values_arrive_as_they_are(database, text, whole, real):
    text = text.replace("\x00", "").encode("utf-8", "ignore").decode()
    quoted = text.replace("'", "''")
    # The smallest integer has no literal of its own.
    number = f"({whole + 1} - 1)" if whole < 0 else str(whole)
    found = execute(database, f"SELECT '{quoted}', {number}, {real!r}, NULL, x'00ff'")
    # SQLite reads a literal to 15 digits; a grader compares numbers to five.
    assert found.rows == ((text, whole, pytest.approx(real, rel=1e-14, abs=1e-300), None, "x'00ff'"),)


def test_infinity_and_broken_utf8_are_values(database):
    assert execute(database, "SELECT 9e999, -9e999, CAST(x'ff41' AS TEXT)").rows == (
        ("inf", "-inf", "\ufffdA"),
    )


def test_the_clock_of_queries_stands_still(database):
    query = (
        "SELECT date('now'), datetime(), time('NOW'), date('now', '-7 days'), CURRENT_DATE, CURRENT_TIME, "
        "CURRENT_TIMESTAMP, strftime('%Y', 'now'), strftime('%s'), "
        "julianday('now') - julianday(date('now')), date('2020-02-28', '+2 days'), date(NULL)"
    )
    assert execute(database, query).rows == (
        (
            *(
                "2024-08-14",
                NOW,
                "12:00:00",
                "2024-08-07",
                "2024-08-14",
                "12:00:00",
                NOW,
                "2024",
                "1723636800",
                0.5,
            ),
            *("2020-03-01", None),
        ),
    )


def test_a_query_that_the_clock_of_sqlite_does_not_see_is_killed(database):
    """One instruction of a second each, and a limit on waiting that is shorter."""
    slow = "SELECT length(replace(printf('%.*c', 900000, 'a'), printf('%.*c', 400000, 'a') || 'b', 'c'))"
    query = ENDLESS + f"SELECT SUM(({slow})) + SUM(x) FROM n"
    found = execute(database, query, Limits(seconds=1000, wall_seconds=1.5))
    assert found.error == "the query ended the process that executed it, or ran for too long"
    assert execute(database, "SELECT 'the next one'").rows == (("the next one",),)


def test_threads_get_each_their_own_result(database):
    found = {}

    def ask(number):
        found[number] = execute(database, f"SELECT {number}").rows

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: ((number,),) for number in range(20)}


def test_a_missing_database_is_no_wrong_answer(tmp_path, prepared):
    row = {**prepared.rows[0], "database": str(tmp_path / "none.sqlite")}
    with pytest.raises(FileNotFoundError, match=r"none\.sqlite does not exist: prepare the data again"):
        grade(solution("SELECT 1"), row)


def test_a_gold_query_that_does_not_run_is_no_wrong_answer(prepared):
    with pytest.raises(InputError, match=r"no gold query of 'shop-0' runs .*no such table: missing"):
        grade(solution("SELECT 1"), {**prepared.rows[0], "answer": "SELECT * FROM missing"})


def test_a_row_of_other_data_is_refused():
    with pytest.raises(InputError, match="has no 'database'"):
        grade("SELECT 1", {"question": "What is 1?", "answer": "1"})


# The grader.


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Think.\n\n```sql\nSELECT 1;\n```", "SELECT 1;"),
        ("```sql\nSELECT 1\n```\n\nBetter:\n\n```SQL\nSELECT 2\n```\nDone.", "SELECT 2"),
        ("```sql\nSELECT a\n\nFROM b", "SELECT a\n\nFROM b"),
        ("```sql SELECT 1```", "SELECT 1"),
        ("```sqlite\nSELECT 1\n```\n\n```\nid | name\n```", "SELECT 1"),
        ("```\nSELECT 1\n```", "SELECT 1"),
        ("```python\nprint()\n```\n\nSELECT 1; It is one.", "SELECT 1"),
        ("Select the name.\n\nselect a\nfrom b", "select a\nfrom b"),
        ("WITH x AS (\n  SELECT 1)\nSELECT * FROM x;", "WITH x AS (\n  SELECT 1)\nSELECT * FROM x"),
        ("SELECT ';' AS a; -- done", "SELECT ';' AS a"),
        ("SELECT 1;\n\nSELECT 2", "SELECT 2"),
        ("-- All of shop.\n\nSELECT a\n\nFROM b\n\nThis is all.", "SELECT a\n\nFROM b"),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_the_final_query_of_a_solution(text, query):
    assert final_query(text) == query


@pytest.mark.parametrize(
    "query",
    [
        "SELECT name\n\nFROM shop\n\nWHERE id = 1;",
        "WITH a AS (\n\n  SELECT 1 AS x\n\n)\n\nSELECT x\n\nFROM a",
        "SELECT 1\n\nUNION ALL\n\nSELECT 2",
        "```sql\nSELECT name\n\nFROM shop\n```",
    ],
)
def test_a_query_is_one_step_whatever_blank_lines_it_has(query):
    segmentation = load_config(evaluate.CONFIG).settings.segmentation
    assert segmentation is not None
    text = f"-- The table shop has all.\n\n-- Select its names.\n\n{query}"
    steps = segmentation.split(text)
    assert [step for step, _ in steps] == ["-- The table shop has all.", "-- Select its names.", query]
    assert final_query(text) == query.strip("`;").removeprefix("sql").strip()


def test_alternatives_and_optional_columns():
    assert alternatives("SELECT ';';SELECT {a, b} FROM t GROUP BY {};") == [
        "SELECT ';'",
        "SELECT a FROM t GROUP BY a",
        "SELECT b FROM t GROUP BY b",
        "SELECT a, b FROM t GROUP BY a, b",
    ]


@given(st.text(max_size=50))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_statements_lose_no_text(text):
    assert "".join("".join(statements(text)).split()).replace(";", "") == "".join(text.split()).replace(
        ";", ""
    )


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("SELECT a FROM t", None),
        ("SELECT a FROM t ORDER BY a", ["a"]),
        ("SELECT a FROM t ORDER BY t.a DESC NULLS LAST, COUNT(x, y) asc LIMIT 3", ["t.a", "COUNT(x, y)"]),
        ("SELECT a FROM (SELECT b FROM t ORDER BY b) -- ORDER BY c", None),
        ("SELECT ROW_NUMBER() OVER (ORDER BY b) FROM t ORDER  BY 1", ["1"]),
        (
            "SELECT 'ORDER BY x' FROM t ORDER BY CASE a WHEN 'x, y' THEN 1 END",
            ["CASE a WHEN 'x, y' THEN 1 END"],
        ),
    ],
)
def test_the_outermost_order_of_a_query(query, terms):
    assert order_by(query) == terms


def test_order_counts_where_the_question_asks_for_it():
    assert asks_for_order("Which rate best?", "order_by")
    assert asks_for_order("Sort by name.", "group_by")
    assert not asks_for_order("In which border states?", "group_by")


def result(*rows, columns=None) -> Result:
    width = len(rows[0]) if rows else 1
    return Result(tuple(columns or "abcdefgh"[:width]), tuple(rows))


GOLD = result(("Ann", 1), ("Bo", 2), ("Cy", 2))


@pytest.mark.parametrize(
    ("found", "same"),
    [
        (GOLD, True),
        (result(("Cy", 2), ("Ann", 1), ("Bo", 2)), True),
        (result((1, "Ann"), (2, "Bo"), (2, "Cy")), True),
        (result(("Ann", 1.000001), ("Bo", 2.0), ("Cy", 2)), True),
        (result(("Ann", 1), ("Bo", 2), ("Cy", 2), ("Cy", 2)), True),
        (result(("x", "Ann", 1), ("y", "Bo", 2), ("z", "Cy", 2)), True),
        (result(("Ann", 1.01), ("Bo", 2), ("Cy", 2)), False),
        (result(("Ann", "1"), ("Bo", "2"), ("Cy", "2")), False),
        (result(("Ann", 2), ("Bo", 1), ("Cy", 2)), False),
        (result(("Ann", 1), ("Bo", 2)), False),
        (result(("Ann", 1), ("Bo", 2), ("Cy", 2), ("Di", 2)), False),
        (result(("Ann",), ("Bo",), ("Cy",)), False),
        (result(("x", "Ann", 1), ("x", "Bo", 2), ("y", "Cy", 2), ("z", "Cy", 2)), False),
        (result(("Ann", None), ("Bo", 2), ("Cy", 2)), False),
        (result(), False),
    ],
)
def test_results_are_the_same_in_any_order_of_rows_and_columns(found, same):
    assert is_same(GOLD, found) is same


def test_an_empty_result_is_only_that_of_as_many_columns():
    empty = Result(("a", "b"))
    assert is_same(empty, Result(("x", "y")))
    assert not is_same(empty, Result(("x", "y", "z")))
    assert not is_same(empty, GOLD)


def test_null_is_null_and_no_zero():
    assert is_same(result((None, "x")), result((None, "x")))
    assert not is_same(result((None,)), result((0,)))


@pytest.mark.parametrize(
    ("order", "found", "same"),
    [
        (["b", "a"], [("Ann", 1), ("Bo", 2), ("Cy", 2)], True),
        (["b"], [("Ann", 1), ("Cy", 2), ("Bo", 2)], True),
        (["b", "a"], [("Ann", 1), ("Cy", 2), ("Bo", 2)], False),
        (["2"], [("Bo", 2), ("Cy", 2), ("Ann", 1)], False),
        (["t.b", "hidden"], [("Ann", 1), ("Cy", 2), ("Bo", 2)], True),
        (["hidden"], [("Ann", 1), ("Bo", 2), ("Cy", 2)], True),
        (["hidden"], [("Ann", 1), ("Cy", 2), ("Bo", 2)], False),
        ([], [("Cy", 2), ("Bo", 2), ("Ann", 1)], True),
    ],
)
def test_an_order_counts_but_not_among_equal_rows(order, found, same):
    assert is_same(GOLD, result(*found), order) is same
    turned = result(*[tuple(reversed(row)) for row in found])
    assert is_same(GOLD, turned, order) is same


def test_where_nulls_stand_does_not_count():
    gold = result(("Di", None), ("Bo", 2), ("Ann", 1))
    assert is_same(gold, result(("Bo", 2), ("Ann", 1), ("Di", None)), ["b"])
    assert not is_same(gold, result(("Ann", 1), ("Bo", 2), ("Di", None)), ["b"])


VALUES = (
    st.none() | st.integers(-3, 3) | st.sampled_from(["", "a", "b", "1"]) | st.sampled_from([0.5, 1.25, 1e9])
)


@given(st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_shuffled_rows_and_columns_are_the_same_and_a_changed_value_is_not(data):
    width = data.draw(st.integers(1, 4))
    rows = data.draw(st.lists(st.tuples(*[VALUES] * width), min_size=1, max_size=6, unique=True))
    places = data.draw(st.permutations(range(width)))
    shuffled = [tuple(row[place] for place in places) for row in data.draw(st.permutations(rows))]
    assert is_same(result(*rows), result(*shuffled))
    row, place = data.draw(st.sampled_from(range(len(rows)))), data.draw(st.sampled_from(range(width)))
    changed = list(map(list, shuffled))
    changed[row][place] = "another"
    assert not is_same(result(*rows), result(*map(tuple, changed)))
    more = [(*row, "more") for row in shuffled]
    assert is_same(result(*rows), result(*more))


def test_many_columns_of_the_same_values_take_no_long_search():
    wide = Result(tuple(map(str, range(300))), tuple((0,) * 300 + () for _ in range(2)))
    before = time.monotonic()
    assert is_same(result((0,) * 8, (0,) * 8), wide)
    assert not is_same(result((*(0,) * 7, 1), (0,) * 8), wide)
    assert time.monotonic() - before < 20


@pytest.mark.parametrize("number", range(5))
def test_each_gold_query_is_graded_right_and_a_wrong_one_wrong(prepared, number):
    row = prepared.rows[number]
    for query in alternatives(row["answer"]):
        assert grade(solution(query), row)
        assert grade(f"Steps.\n\n{query};", row)
        for wrong in (f"SELECT * FROM ({query}) LIMIT 0", "SELECT 'wrong'", query.replace("shop", "shops")):
            assert not grade(solution(wrong), row)
    assert not grade("I cannot say.", row)


def test_the_order_of_rows_counts_for_the_question_that_asks(prepared):
    row = prepared.rows[1]
    assert row["ordered"]
    assert grade(solution("SELECT name, rating FROM shop ORDER BY rating DESC"), row)
    assert not grade(solution("SELECT name, rating FROM shop ORDER BY rating"), row)


# The command and its files.


def test_the_rows_are_a_dataset_with_the_users_own_grader(prepared, tmp_path):
    evaluate.write_parts(prepared.rows, tmp_path)
    data = make_dataset(json.loads(evaluate.dataset(tmp_path / "questions.jsonl")))
    first, *_, last = data.questions()
    assert (first.id, last.id) == ("shop-0", "shop-4")
    assert first.grade is not None
    assert first.grade(solution(ROWS[0][2]))
    assert not first.grade(solution("SELECT 1"))


def test_parts_to_train_and_to_test_on_share_no_database(tmp_path, source):
    names = [f"shop{number}" for number in range(7)]
    folder = tmp_path / "source"
    folder.mkdir()
    rows = [
        (name, "ratio", "SELECT COUNT(*) FROM shop", f"How many in {name}?") for name in names for _ in "ab"
    ]
    write_data(folder, rows, names)
    evaluate.write_parts(prepare(folder, tmp_path / "databases").rows, tmp_path)
    tested = []
    for fold in range(5):
        test, train = (
            [json.loads(line)["id"] for line in (tmp_path / f"{part}-{fold}.jsonl").read_text().splitlines()]
            for part in ("test", "train")
        )
        assert len(test) + len(train) == 14
        assert not {*map(database_of, test)} & {*map(database_of, train)}
        tested += test
    assert len(set(tested)) == len(tested) == 14


def _arithmetic(folder: Path) -> Path:
    """With the arithmetic models, which write no SQL, it is tested that all runs, and is not run twice."""
    config = folder / "arithmetic.yaml"
    model = f"{{type: transformers, model: {SMALL}, logprobs: true}}"
    config.write_text(
        f"small: {model}\nlarge: {model}\n"
        "scorer: {type: token_probability}\npolicy: {type: threshold, t: 0.5}\n"
        "settings: {max_steps: 2, max_step_tokens: 8}\n"
    )
    return config


def test_the_command_evaluates_token_probability_and_resumes(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stages = ["--stage", "token_probability", "--stage", "report"]
    given = [
        *("--data", str(source), "--out", "runs", "--config", str(_arithmetic(tmp_path))),
        *("--thresholds", "0.5", "--random-rates", "0.5", *stages),
    ]
    assert evaluate.main([*given, "--estimate"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("5 of 8 questions have a gold query that gives rows.\n  left out: shop-5: ")
    assert "Hours to expect: " in said
    assert not Path("runs/token_probability").exists()
    assert evaluate.main(given) == 0
    rows = list(read_run("runs/token_probability").rows())
    assert {"small", "large", "threshold-0.5", "random-0.5"} <= {row["arm"] for row in rows}
    assert not any(row["error"] for row in rows)
    assert not any(row["correct"] for row in rows)
    assert "| threshold-0.5 | 0.000" in Path("runs/RESULTS.md").read_text("utf-8")
    before = {(row["arm"], row["index"]): row["seconds"] for row in rows}
    assert evaluate.main(given) == 0
    again = read_run("runs/token_probability").rows()
    assert {(row["arm"], row["index"]): row["seconds"] for row in again} == before


@pytest.mark.parametrize("run", ["servers", "engine", "transformers"])
def test_a_pair_of_the_users_own_is_a_valid_configuration(tmp_path, run):
    given = [
        "--data",
        "d",
        "--out",
        str(tmp_path),
        "--small",
        str(SMALL),
        "--large",
        "owner/name",
        "--run",
        run,
    ]
    asked = evaluate.parsed(given)
    (tmp_path / "folds").mkdir()
    (tmp_path / "folds/scorer-2").symlink_to(PRM)  # as if it had been trained
    config = load_config(evaluate.configuration(asked, fold=2))
    assert config.scorer is not None
    assert (config.scorer.type, config.scorer.model) == (
        "transformers_prm",
        str(tmp_path / "folds/scorer-2"),
    )
    config = load_config(evaluate.configuration(asked))
    assert config.small.type == {"servers": "vllm", "engine": "vllm_engine"}.get(run, run)
    assert str(config.large.model) == "owner/name"  # type: ignore[union-attr]
    assert config.settings.instruction == load_config(evaluate.CONFIG).settings.instruction


def test_each_fold_is_tested_by_a_scorer_of_the_others(tmp_path):
    given = evaluate.parsed(["--data", "d", "--out", str(tmp_path)])
    folder = tmp_path / "folds"
    folder.mkdir()
    (tmp_path / "label.yaml").write_bytes(evaluate.CONFIG.read_bytes())
    (tmp_path / "labels.jsonl").write_text("".join(f'{{"question": "Q{n}"}}\n' for n in (0, 1, 1, 3, 4)))
    split_labels(tmp_path / "labels.jsonl", {fold: {f"Q{fold}"} for fold in range(5)}, folder)
    counts = [1, 2, 0, 1, 1]
    for fold in range(5):
        held_out, others = (
            [
                json.loads(line)["question"]
                for line in (folder / f"{name}-{fold}.jsonl").read_text().splitlines()
            ]
            for name in ("held-out", "labels")
        )
        assert held_out == [f"Q{fold}"] * counts[fold]
        assert len(others) == 5 - counts[fold]
        assert f"Q{fold}" not in others

        (train,) = evaluate.train_scorer(given, fold)
        _trained(folder / f"scorer-{fold}")
        rate, test = evaluate.rate_fold(given, fold), evaluate.evaluate_fold(given, fold)
        scorer = str(folder / f"scorer-{fold}")
        assert (_option(train, "--labels"), _option(train, "--out")) == (
            str(folder / f"labels-{fold}.jsonl"),
            scorer,
        )
        assert rate[1] == str(folder / f"held-out-{fold}.jsonl")
        assert json.loads(_option(rate, "--scorer"))["model"] == scorer
        assert load_config(_option(test, "--config")).scorer.model == scorer  # type: ignore[union-attr]
        assert json.loads(_option(test, "--dataset"))["path"] == str(tmp_path / f"test-{fold}.jsonl")
        assert json.loads(_option(test, "--validation"))["path"] == str(tmp_path / f"train-{fold}.jsonl")
        assert _option(test, "--out") == str(evaluate.run_of(given, fold))


def _trained(folder):
    """Makes what a finished training leaves."""
    shutil.copytree(PRM, folder)
    ScorerFile(step_token="<|step|>", base="b", tuning="head", method="monte_carlo").write(folder)


def _option(command, name):
    return command[command.index(name) + 1]


def test_a_scorer_of_other_labels_is_not_taken_for_the_new_one(tmp_path):
    given = evaluate.parsed(["--data", "d", "--out", str(tmp_path)])
    (tmp_path / "folds").mkdir()
    labels = tmp_path / "folds/labels-0.jsonl"
    labels.write_text("{}\n")
    assert len([*evaluate.train_scorer(given, 0)]) == 1
    with pytest.raises(SettingsError, match="scorer-0 is not trained: --stage train_scorers trains it"):
        evaluate.evaluate_fold(given, 0)
    _trained(tmp_path / "folds/scorer-0")
    assert not [*evaluate.train_scorer(given, 0)]
    labels.write_text("{}\n{}\n")
    with pytest.raises(SettingsError, match="scorer-0 was trained on other labels, or with another --base"):
        next(evaluate.train_scorer(given, 0))


def test_a_server_is_of_one_folds_scorer(capsys):
    with pytest.raises(SystemExit):
        evaluate.parsed(
            ["--data", "d", "--out", "o", "--scorer-url", "http://localhost:1", "--fold", "0", "--fold", "1"]
        )
    assert "--scorer-url is of the scorer of one fold: name it by --fold" in capsys.readouterr().err


def test_one_model_alone_is_refused(capsys):
    with pytest.raises(SystemExit):
        evaluate.parsed(["--data", "d", "--out", "o", "--small", "owner/name"])
    assert "give --small and --large, or neither" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--data", "nowhere"], "questions_gen_sqlite.csv cannot be read"),
        (["--config", "nowhere.yaml"], "configuration file nowhere.yaml does not exist"),
        (["--stage", "report"], "holds no run with a summary.json: run the evaluation first"),
        (["--stage", "own_scorer"], "has questions on fewer than 5 databases, one for each fold"),
    ],
)
def test_what_cannot_be_used_is_an_error_in_words(source, tmp_path, capsys, more, said):
    assert evaluate.main(["--data", str(source), "--out", str(tmp_path / "runs"), *more]) == 2
    assert said in capsys.readouterr().err


def test_the_hours_are_those_of_the_stages_that_are_asked_for():
    def hours(*more):
        given = evaluate.parsed(["--data", "d", "--out", "o", *more])
        return evaluate.expected_hours(given, [{"fold": number % 5} for number in range(50)])

    assert hours("--stage", "report") == 0
    alone = hours("--stage", "own_scorer", "--fold", "0")
    assert alone < hours("--stage", "own_scorer") < 5 * alone
    own = ("--stage", "token_probability", "--thresholds")
    one, two = (hours(*own, values, "--random-rates", "none") for values in ("0.5", "0.5,0.7"))
    assert hours(*own, "0.5", "--random-rates", "0.3") == two > one
    assert hours("--stage", "train_scorers", "--rollouts", "8") * 2 == hours("--stage", "train_scorers")


def test_the_readme_names_commands_that_are_read():
    text = (evaluate.CONFIG.parent / "README.md").read_text("utf-8")
    lines = "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines()
    commands = [line for line in lines if line.startswith("python -m trim_graph.examples.text_to_sql")]
    assert commands
    for command in commands:
        evaluate.parsed(shlex.split(command)[3:])
    assert evaluate.GRADER in text
    stages = text.partition("| stage |")[2].partition("\n\n")[0].splitlines()[2:]
    assert [line.split("`")[1] for line in stages] == [*evaluate.STAGES]


# Defog's own data, where a folder is given.


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    if not REAL:
        pytest.skip("TRIM_SQL_DATA names no folder with the data of defog's sql-eval")
    return prepare(REAL, tmp_path_factory.mktemp("real"))


def test_real_gold_queries_are_graded_right(real):
    assert len(real.rows) == 205
    assert {database_of(id) for id in real.left_out} == {"ewallet"}
    wrong = [
        row["id"]
        for row in real.rows
        for query in alternatives(row["answer"])
        if execute(row["database"], query).rows and not grade(solution(query), row)
    ]
    assert wrong == []


def test_real_queries_of_other_questions_are_graded_wrong(real):
    """Small tables give the same number for some questions, and some questions ask for the same."""
    pairs = [(one, other) for one in real.rows for other in real.rows if one["database"] == other["database"]]
    right = [
        (one["id"], other["id"])
        for one, other in pairs
        if one is not other and grade(solution(alternatives(other["answer"])[0]), one)
    ]
    assert len(right) < 0.02 * len(pairs)


def test_real_schemas_name_all_tables_and_columns(real):
    for row in {row["database"]: row for row in real.rows}.values():
        with closing(sqlite3.connect(row["database"])) as connection:
            for (table,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            ).fetchall():
                (line,) = re.findall(
                    rf"^CREATE TABLE {table} \((.*)\);$", row["question"], re.MULTILINE | re.I
                )
                columns = [column for _, column, *_ in connection.execute(f"PRAGMA table_info({table})")]
                plain = re.sub(r" /\*.*?\*/", "", line)
                assert [part.split()[0] for part in plain.split(", ")] == columns


def test_a_schema_line_leaves_keys_and_constraints_out():
    columns = "id int PRIMARY KEY,\n  b int REFERENCES c(id), -- of c\n  PRIMARY KEY (id, b)"
    dump = f"CREATE TABLE a (\n  {columns}\n);\n"
    assert compact_schema(dump) == "CREATE TABLE a (id int, b int /* of c */);"
