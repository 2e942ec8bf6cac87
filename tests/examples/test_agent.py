"""The example agent: its README runs as printed, its tools are safe, and it runs on configured models."""

import json
import re
import sqlite3
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import ToolMessage

from trim_graph.config import TrimConfig
from trim_graph.examples.agent import QUESTION, calculator, create_shop, evaluate, query_tool
from trim_graph.examples.agent.__main__ import main

README = (Path(__file__).parent.parent.parent / "examples/agent/README.md").read_text("utf-8")


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return [block for named, block in found if named == language]


def call(tool, **args):
    """Calls a tool as an agent does."""
    reported = tool.invoke({"type": "tool_call", "name": tool.name, "args": args, "id": "1"})
    assert isinstance(reported, ToolMessage)
    return reported.status, reported.content


@pytest.fixture
def query(tmp_path):
    return query_tool(create_shop(tmp_path / "shop.db"))


# As printed


def test_it_prints_what_the_readme_shows(capsys):
    main([])
    assert capsys.readouterr().out == blocks("")[0]


def test_the_readmes_python_runs(capsys):
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == [
        "With tax they came to 71.76. {'small': 2, 'large': 1}",
        "['error', 'success'] {'small': 2, 'large': 1}",
        "4 runs",
        *["False [0.0, 0.0, 0.0]"] * 2,
        *["True [1.0, 1.0, 1.0]"] * 2,
    ]


def test_the_readmes_configuration_is_valid():
    for block in blocks("yaml"):
        TrimConfig.model_validate(yaml.safe_load(block))


def test_it_asks_about_another_database(tmp_path, capsys):
    database = create_shop(tmp_path / "other.db")
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE orders SET quantity = 10 * quantity")
    connection.close()
    main(["--database", str(database), QUESTION])
    assert "With tax they came to 717.57." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--database", "none.db"], "there is no database none.db"), (["--config", "none.yaml"], "none.yaml")],
)
def test_what_is_missing_is_reported_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_models_that_take_no_tools_are_refused(tmp_path):
    config = {part: {"type": "example"} for part in ("small", "large", "scorer")}
    (tmp_path / "agent.yaml").write_text(json.dumps({**config, "policy": "small_only"}))
    with pytest.raises(ValueError, match="the small model, ChatTransformers, takes no tools"):
        main(["--config", str(tmp_path / "agent.yaml")])


# The calculator

numbers = st.one_of(st.integers(0, 999), st.floats(0, 99, allow_nan=False).map(lambda x: round(x, 3)))
expressions = st.recursive(
    numbers.map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/%"), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
        inner.map(lambda t: f"-{t}"),
    ),
    max_leaves=6,
).filter(lambda text: len(text) <= 200)


@settings(deadline=None)
@given(expressions)
def test_it_calculates_as_python_does(expression):
    try:
        expected = eval(expression)
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="cannot be worked out"):
            evaluate(expression)
    else:
        assert evaluate(expression) == expected


@settings(deadline=None)
@given(st.text(max_size=250))
def test_whatever_else_it_is_given_is_an_error_and_nothing_worse(text):
    try:
        value = evaluate(text)
    except ValueError:
        return
    assert isinstance(value, int | float)
    assert not isinstance(value, bool)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').getcwd()",
        "x",
        "1 if 2 else 3",
        "True + 1",
        "'a' * 3",
        "9**9**9",
        "*".join(["9**999"] * 20),
        "(-8)**0.5",
        "1 / 0",
        "9.9**999",
        "(" * 99,
        "1 +",
        "",
        "1" * 201,
    ],
)
def test_what_is_no_arithmetic_or_too_much_is_an_error_for_the_model(expression):
    status, reported = call(calculator, expression=expression)
    assert status == "error"
    assert reported


def test_the_calculator_writes_results_in_their_shortest_form():
    assert call(calculator, expression="0.1 + 0.2") == ("success", "0.3")
    assert call(calculator, expression="2**64") == ("success", "18446744073709551616")


# The database


def test_a_query_gives_a_table(query):
    sql = "SELECT product, NULL AS note FROM orders WHERE customer = 'Ada Lovelace' ORDER BY rowid"
    expected = "product | note\nnotebook | NULL\npencil | NULL\nlamp | NULL"
    assert call(query, sql=sql) == ("success", expected)
    assert "CREATE TABLE orders" in query.description


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM orders",
        "UPDATE orders SET quantity = 0",
        "DROP TABLE orders",
        "CREATE TABLE more (id INTEGER)",
        "CREATE TEMP TABLE more (id INTEGER)",
        "ATTACH 'other.db' AS other",
        "VACUUM INTO 'copy.db'",
        "PRAGMA writable_schema = 1",
        "SELECT load_extension('x')",
        "SELECT 1; DELETE FROM orders",
        "SELECT * FROM towns",
        "SELECT zeroblob(1000000000)",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        "hello",
    ],
)
def test_what_could_change_or_exhaust_anything_is_refused(query, sql, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = (tmp_path / "shop.db").read_bytes()
    status, reported = call(query, sql=sql)
    assert status == "error"
    assert reported
    assert [path.name for path in tmp_path.iterdir()] == ["shop.db"]
    assert (tmp_path / "shop.db").read_bytes() == before


def test_long_tables_are_cut(query):
    status, reported = call(query, sql="SELECT a.product FROM orders a, orders b, orders c")
    assert status == "success"
    assert reported.splitlines()[-1] == "(only the first 50 rows)"
    assert len(reported.splitlines()) == 52


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "x.db").write_text("no database at all " * 100)
    with pytest.raises(ValueError, match="is no SQLite database"):
        query_tool(tmp_path / "x.db")
