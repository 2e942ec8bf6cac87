"""Grades a solution by executing its query: does it give what a gold query gives?

The comparison follows defog's sql-eval (``compare_query_results`` in ``eval/eval.py``, Apache-2.0), whose
column "correct" counts a result that equals that of any gold query or has all of its columns among others.
Two things are stricter here: where the question asks for an order, the rows are in that order; a gold query
that gives no rows does not count where another one gives some.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trim_graph.errors import InputError

from .sandbox import Result, Value, execute

RELATIVE, ABSOLUTE = 1e-5, 1e-8
"""Tolerances of two numbers that count as one: those of ``pandas.testing``, which sql-eval compares with."""

_FENCE = re.compile(r"```[ \t]*(\w*)[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_BEGIN = re.compile(r"^[ \t]*(?:SELECT|WITH|select|with)\b", re.MULTILINE)
_PROSE = re.compile(r"\n[ \t]*\n(?=[A-Z][a-z])")
_TOKEN = re.compile(
    r"'(?:[^']|'')*+(?:'|\Z)|\"(?:[^\"]|\"\")*+(?:\"|\Z)|--[^\n]*|/\*.*?(?:\*/|\Z)|\w+|\s+|.", re.DOTALL
)
"""Of SQL: a text, a name in quotes, a comment, a word, space, a sign. Open ones extend to the end."""
_DIRECTION = re.compile(r"\s+(?:(?:ASC|DESC)\b\s*)?(?:NULLS\s+(?:FIRST|LAST)\s*)?$", re.IGNORECASE)
_Row = tuple[Value, ...]
_ORDER = re.compile(r"\b(?:order|sort|arrange)\b", re.IGNORECASE)


def grade(solution: str, row: Mapping[str, Any]) -> bool:
    """Says whether a solution's query gives what a gold query gives; for ``grader: module:function``.

    Args:
        solution: Text of a solution; see `final_query`.
        row: Of the data: ``database`` (path), ``answer`` (gold queries), ``ordered``.

    Raises:
        InputError: The row is not one of `trim_graph.examples.text_to_sql.data`, or no gold query runs.
        FileNotFoundError: There is no such database.
    """
    try:
        database, answer, ordered = row["database"], row["answer"], row["ordered"]
    except KeyError as error:
        raise InputError(
            f"a row of text-to-SQL data has no {error}: make the data with this example"
        ) from error
    results = [(gold, execute(database, gold)) for gold in alternatives(answer)]
    golds = [(gold, result) for gold, result in results if result.error is None]
    if not golds:
        errors = "; ".join(str(result.error) for _, result in results) or "there is none"
        raise InputError(f"no gold query of {row.get('id', answer)!r} runs on {database}: {errors}")
    golds = [(gold, result) for gold, result in golds if result.rows] or golds
    query = final_query(solution)
    found = Result(error="there is no query") if query is None else execute(database, query)
    if found.error is not None:
        return False
    return any(is_same(result, found, order_by(gold) if ordered else None) for gold, result in golds)


def final_query(solution: str) -> str | None:
    """Returns the query that a solution ends in; None without one.

    It is the content of the last code block marked ``sql`` or ``sqlite``, else of the last unmarked block
    that begins with a query. A block that is not closed extends to the end. Without a block, it is the last
    statement that begins with SELECT or WITH (all capitals or none); it ends at a semicolon or before a
    paragraph that begins as prose does.
    """
    blocks: list[tuple[str, str]] = [(mark.lower(), text.strip()) for mark, text in _FENCE.findall(solution)]
    marked = [text for mark, text in blocks if mark in ("sql", "sqlite") and text]
    unmarked = [text for mark, text in blocks if not mark and _BEGIN.match(text)]
    bare = []
    if begin := _BEGIN.search(solution):
        bare = [text for text in statements(solution[begin.start() :]) if _BEGIN.match(text)]
    for texts in (marked, unmarked, [_PROSE.split(text)[0] for text in bare]):
        if texts:
            return texts[-1]
    return None


def statements(text: str) -> Iterator[str]:
    """Yields the statements of a text of SQL, split at semicolons outside texts and comments."""
    current = ""
    for token in _TOKEN.findall(text):
        if token != ";":
            current += token
            continue
        if current.strip():
            yield current.strip()
        current = ""
    if current.strip():
        yield current.strip()


def alternatives(gold: str) -> list[str]:
    """Returns all queries that a gold entry stands for.

    A semicolon separates them. ``SELECT {a, b} FROM t`` stands for each choice of at least one of the
    columns, and ``GROUP BY {}`` behind it for the same choice.
    """
    found = []
    for query in statements(gold):
        begin = query.find("{")
        end = query.find("}", begin)
        if begin < 0 or end < 0:
            found.append(query)
            continue
        options = [option.strip() for option in query[begin + 1 : end].split(",")]
        for count in range(1, len(options) + 1):
            for chosen in map(", ".join, itertools.combinations(options, count)):
                rest = query[end + 1 :].replace("GROUP BY {}", f"GROUP BY {chosen}")
                found.append(query[:begin] + chosen + rest)
    return found


def asks_for_order(question: str, category: str) -> bool:
    """Says whether the order of rows counts: the question is of that category, or asks to order or sort.

    A gold query may sort where the question does not ask for it, so that ORDER BY alone does not decide.
    """
    return category == "order_by" or bool(_ORDER.search(question))


def order_by(query: str) -> list[str] | None:
    """Returns the terms of the outermost ORDER BY of a query, without directions; None without one."""
    depth, terms = 0, None
    for token in _TOKEN.findall(query):
        if token.startswith(("--", "/*")):
            continue
        depth += (token == "(") - (token == ")")
        word = "" if depth else token.upper()
        if word == "ORDER":
            terms = [""]
        elif terms is not None and word in ("LIMIT", "OFFSET"):
            break
        elif terms is not None and word == ",":
            terms.append("")
        elif terms is not None and not (word == "BY" and terms == [""]):
            terms[-1] += token.strip() or (" " if terms[-1] else "")
    return None if terms is None else [_DIRECTION.sub("", term).strip() for term in terms]


def is_same(gold: Result, found: Result, order: Sequence[str] | None = None) -> bool:
    """Says whether a result holds what that of a gold query does.

    Repeated rows count once. Columns may be in another order and have other names. Further columns are
    accepted where there are as many rows. The order of rows counts by ``order`` only, and neither among rows
    that are equal in it nor for those that have a NULL there.

    Args:
        gold: Result of the gold query.
        found: Result of the query to grade.
        order: Terms of the gold query's ORDER BY; None or none: rows may be in any order.
    """
    extra = len(found.columns) > len(gold.columns)
    if extra and (not gold.rows or len(found.rows) != len(gold.rows)):
        return False
    columns = [_values(found.rows, place, unique=not extra) for place in range(len(found.columns))]
    wanted = [_values(gold.rows, place, unique=not extra) for place in range(len(gold.columns))]
    fitting = [[place for place, have in enumerate(columns) if _all_equal(want, have)] for want in wanted]
    tries = iter(range(MOST_TRIES))
    return all(fitting) and any(
        _same_order(gold, _project(found.rows, places), order)
        for places in _assignments(gold.rows, found.rows, fitting, (), tries)
    )


MOST_TRIES = 1000
"""Of columns for gold columns, where many columns hold the same values."""


def _assignments(
    gold: Sequence[_Row],
    found: Sequence[_Row],
    fitting: Sequence[Sequence[int]],
    chosen: tuple[int, ...],
    tries: Iterator[int],
) -> Iterator[tuple[int, ...]]:
    """Yields which columns of a result may be those of the gold one: the rows are the same in them."""
    if len(chosen) == len(fitting):
        yield chosen
        return
    for place in fitting[len(chosen)]:
        if place in chosen:
            continue
        if next(tries, None) is None:
            return
        places = (*chosen, place)
        if _same_rows(_project(gold, range(len(places))), _project(found, places)):
            yield from _assignments(gold, found, fitting, places, tries)


def _project(rows: Sequence[_Row], places: Sequence[int]) -> list[_Row]:
    """Returns the different rows of some columns, in their order."""
    return list(dict.fromkeys(tuple(row[place] for place in places) for row in rows))


def _same_rows(gold: Sequence[_Row], found: Sequence[_Row]) -> bool:
    return len(gold) == len(found) and all(map(_all_equal, sorted(gold, key=_key), sorted(found, key=_key)))


def _same_order(gold: Result, found: Sequence[_Row], order: Sequence[str] | None) -> bool:
    """Says whether rows that are the same are in the same order."""
    rows = _project(gold.rows, range(len(gold.columns)))
    if not order:
        return True
    places = _places(order, gold.columns)
    if not places:  # it sorts by what it does not show
        return all(map(_all_equal, rows, found))
    wanted, have = ([[row[place] for place in places] for row in given] for given in (rows, found))
    wanted, have = ([keys for keys in given if None not in keys] for given in (wanted, have))
    return len(wanted) == len(have) and all(map(_all_equal, wanted, have))


def _places(order: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Returns the columns that a query sorts by, up to the first term that is none."""
    names = [_name(column) for column in columns]
    places = []
    for term in order:
        if term.isdecimal() and 0 < int(term) <= len(names):
            places.append(int(term) - 1)
        elif _name(term) in names:
            places.append(names.index(_name(term)))
        else:
            break
    return places


def _name(term: str) -> str:
    """Returns the name of a column without its table, or an expression without spaces."""
    name = re.fullmatch(r'(?:["`\[]?\w+["`\]]?\s*\.\s*)*["`\[]?(\w+)["`\]]?', term.strip())
    return (name[1] if name else "".join(term.split())).lower()


def _values(rows: Sequence[_Row], place: int, *, unique: bool) -> list[Value]:
    values = [row[place] for row in rows]
    return [row[0] for row in sorted(((value,) for value in (set(values) if unique else values)), key=_key)]


def _key(row: _Row) -> tuple[Any, ...]:
    """Sorts rows by types and texts first, so that numbers that differ in the last digit change no order."""
    return (
        [0 if value is None else 1 if isinstance(value, int | float) else 2 for value in row],
        [value if isinstance(value, str) else "" for value in row],
        [value if isinstance(value, int | float) else 0 for value in row],
    )


def _all_equal(one: Sequence[Value], other: Sequence[Value]) -> bool:
    return len(one) == len(other) and all(map(_is_equal, one, other))


def _is_equal(one: Value, other: Value) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other or math.isclose(one, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return one == other
