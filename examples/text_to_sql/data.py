"""Databases and questions of defog's sql-eval, from files that the user has downloaded.

`prepare` makes a SQLite database of each dump, executes the gold queries, and returns the questions whose
gold query gives rows.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from trim_graph.errors import InputError
from trim_graph.evaluation.records import Question

from .grading import alternatives, asks_for_order, grade
from .sandbox import NOW, execute, freeze_clock

QUESTIONS = "questions_gen_sqlite.csv"
"""Of the folder ``data`` of defog-ai/sql-eval."""
FOLDS = 5
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is in a folder of defog's files.

    Attributes:
        rows: Of the questions that can be graded: ``id``, ``database`` (path), ``fold``, ``question`` (with
            the schema), ``answer`` (gold queries), ``ordered``.
        left_out: Why others cannot, by id.
    """

    rows: list[Row]
    left_out: dict[str, str]


def questions(folder: str | Path, databases: str | Path | None = None) -> list[Question]:
    """Returns the questions that can be graded.

    Args:
        folder: `QUESTIONS` and one dump a database, ``NAME.sql``.
        databases: Folder for the SQLite databases; they are made where they are missing or outdated.
            Default: ``databases`` in ``folder``.

    Raises:
        InputError: A file cannot be read, or a dump cannot be loaded.
    """
    return [question_of(row) for row in prepare(folder, databases).rows]


def question_of(row: Row) -> Question:
    """Returns the question of a row of `Prepared`."""
    return Question(row["question"], lambda solution: grade(solution, row), row["answer"], id=row["id"])


def prepare(folder: str | Path, databases: str | Path | None = None) -> Prepared:
    """Makes the databases and reads the questions; arguments and errors as of `questions`."""
    source = Path(folder)
    target = source / "databases" if databases is None else Path(databases)
    schemas: dict[str, str] = {}
    for dump in sorted(source.glob("*.sql")):
        schemas[dump.stem] = make_database(dump, _path(target, dump.stem))
    rows, left_out = list[Row](), dict[str, str]()
    for number, given in enumerate(_read(source / QUESTIONS)):
        name = given["db_name"]
        id = f"{name}-{number}"
        if name not in schemas:
            left_out[id] = f"there is no {name}.sql in {source}"
            continue
        row = {
            "id": id,
            "database": str(_path(target, name).resolve()),
            "question": _prompt(schemas[name], given["question"], given.get("instructions") or ""),
            "answer": given["query"],
            "ordered": asks_for_order(given["question"], given["query_category"]),
        }
        if reason := _fault(row):
            left_out[id] = reason
        else:
            rows.append(row)
    if not rows:
        raise InputError(
            f"{source} has no question that can be graded: {QUESTIONS} and NAME.sql belong there"
        )
    for row, fold in zip(rows, folds([database_of(row["id"]) for row in rows]), strict=True):
        row["fold"] = fold
    return Prepared(rows, left_out)


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.sqlite"


def _fault(row: Row) -> str | None:
    """Returns why a question cannot be graded: none of its gold queries gives rows."""
    results = [execute(row["database"], query) for query in alternatives(row["answer"])]
    if any(result.rows for result in results):
        return None
    errors = [result.error for result in results if result.error]
    return "; ".join(errors) or "the gold query gives no rows"


def database_of(id: str) -> str:
    """Returns the name of a question's database."""
    return id.rpartition("-")[0]


def folds(groups: Sequence[str], count: int = FOLDS) -> list[int]:
    """Returns a fold for each question; all questions on one database are in one fold.

    A scorer is then tested on databases that it was not trained on, and no question or schema is in both
    parts. Databases are dealt to the smallest fold, the largest database first.

    Args:
        groups: Name of the database of each question.
        count: How many folds.
    """
    sizes, fold = [0] * count, dict[str, int]()
    for group in sorted(set(groups), key=lambda name: (-groups.count(name), name)):
        fold[group] = sizes.index(min(sizes))
        sizes[fold[group]] += groups.count(group)
    return [fold[group] for group in groups]


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Writes rows as JSONL, which `trim-graph` reads."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _read(path: Path) -> list[dict[str, str]]:
    wanted = {"db_name", "query", "question", "query_category"}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError(f"questions {path} cannot be read: {error}") from error
    if missing := wanted - {*(rows[0] if rows else ())}:
        raise InputError(f"questions {path}: there is no column {', '.join(sorted(missing))}")
    return rows


def _prompt(schema: str, question: str, instructions: str) -> str:
    """Returns the text of a question. The schema comes first, so that servers cache it."""
    hints = f"\nHints: {' '.join(instructions.split())}" if instructions.strip() else ""
    return (
        f"SQLite database:\n{schema}\n\nQuestion: {' '.join(question.split())}{hints}\n"
        "Plan in one or two short comments, then write the query."
    )


# From a dump of PostgreSQL to SQLite.

_MOMENT = r"(?:CURRENT_DATE|CURRENT_TIMESTAMP|NOW\(\))"
_EDITS = re.compile(
    rf"""
    (?P<keep>'(?:[^']|'')*'|--[^\n]*)
    | (?P<moment>DATE_TRUNC\('\w+',\s*{_MOMENT}\)|{_MOMENT}) (?P<shifts>(?:\s*[+-]\s*INTERVAL\s*'[^']*')+)
    | (?P<default>\bDEFAULT\s+NOW\(\))
    | \bEXTRACT\(\s*(?P<part>\w+)\s+FROM\s
    | (?P<serial>\bSERIAL\b)
    | (?P<dropped>\bpublic\.|::\s*\w+)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SHIFT = re.compile(r"([+-])\s*INTERVAL\s*'(\d+)\s+(\w+?)s?'", re.IGNORECASE)
_UNITS = {"min": "minute", "hour": "hour", "day": "day", "month": "month", "year": "year"}


def edited(dump: str) -> str:
    """Returns a dump of PostgreSQL as SQLite executes it, with the functions that `make_database` adds.

    The edits, none of them within texts and comments:

    1. ``public.`` and casts (``::bigint``) are dropped.
    2. ``SERIAL`` is ``INTEGER``, so that a primary key counts up.
    3. ``DEFAULT NOW()`` is ``DEFAULT CURRENT_TIMESTAMP``.
    4. ``MOMENT - INTERVAL '2 weeks'`` is ``shifted(MOMENT, '-14 day')``.
    5. ``EXTRACT(YEAR FROM MOMENT)`` is ``extracted('YEAR', MOMENT)``.
    """

    def edit(found: re.Match[str]) -> str:
        if found["moment"]:
            shifts = "".join(f", '{_modifier(*shift)}'" for shift in _SHIFT.findall(found["shifts"]))
            return f"shifted({found['moment']}{shifts})"
        if found["part"]:
            return f"extracted('{found['part']}', "
        if found["default"]:
            return "DEFAULT CURRENT_TIMESTAMP"
        return "INTEGER" if found["serial"] else found["keep"] or ""

    return _EDITS.sub(edit, dump)


def _modifier(sign: str, count: str, unit: str) -> str:
    """Returns an interval as a modifier of SQLite's date functions, which know no weeks."""
    if unit.lower() == "week":
        return f"{sign}{7 * int(count)} day"
    return f"{sign}{count} {_UNITS.get(unit.lower(), unit)}"


_PARTS = {"EPOCH": "%s", "YEAR": "%Y", "MONTH": "%m", "DAY": "%d"}
_STARTS = {
    "day": "'start of day'",
    "week": "'start of day', 'weekday 0', '-6 days'",
    "month": "'start of month'",
}
_STARTS["year"] = "'start of year'"
_FORMATS = {"Month": "%B", "%Y%m%d %H:%i:%s": "%Y%m%d %H:%M:%S"}
"""Of ``TO_CHAR`` in the dumps. The second is not PostgreSQL's: the comment of its column says its form."""


def make_database(dump: Path, path: Path) -> str:
    """Makes a SQLite database of a dump, unless there is one of the same content; returns its schema.

    Functions of the dump are evaluated at the time `NOW`. Values of columns that are declared ``date`` and
    ``timestamp`` are brought to the form of those types, as PostgreSQL does on insert.

    Args:
        dump: Written for PostgreSQL.
        path: Of the database.

    Raises:
        InputError: The dump cannot be read, or SQLite does not execute it.
    """
    try:
        text = dump.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise InputError(f"dump {dump} cannot be read: {error}") from error
    script = edited(text)
    version = int(hashlib.sha256(f"{NOW}{script}".encode()).hexdigest()[:7], 16)
    if not path.is_file() or _version(path) != version:
        fresh = path.with_suffix(f".{os.getpid()}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)
            with closing(sqlite3.connect(fresh)) as connection:
                _load(connection, script, version)
            fresh.replace(path)
        except OSError as error:
            raise InputError(f"database {path} cannot be written: {error.strerror}") from error
        except (sqlite3.Error, sqlite3.Warning) as error:
            fresh.unlink(missing_ok=True)
            raise InputError(f"dump {dump}: SQLite does not execute it: {error}") from error
        execute.cache_clear()
    return compact_schema(text)


def _version(path: Path) -> int | None:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return int(connection.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.Error:
        return None


def _load(connection: sqlite3.Connection, script: str, version: int) -> None:
    freeze_clock(connection)
    ask = connection.execute
    connection.create_function("now", 0, lambda: NOW)
    connection.create_function(
        "date_trunc", 2, lambda unit, at: _asked(f"SELECT datetime(?, {_STARTS[unit.lower()]})", at)
    )
    connection.create_function(
        "shifted", -1, lambda at, *by: _asked(f"SELECT datetime(?{', ?' * len(by)})", at, *by)
    )
    connection.create_function(
        "extracted", 2, lambda part, at: int(_asked(f"SELECT strftime('{_PARTS[part.upper()]}', ?)", at))
    )
    connection.create_function(
        "to_char", 2, lambda at, form: datetime.fromisoformat(at).strftime(_FORMATS[form])
    )
    connection.executescript(script)
    for (table,) in ask("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        for _, column, kind, *_ in ask(f'PRAGMA table_info("{table}")').fetchall():
            form = {"date": "date", "timestamp": "datetime"}.get(kind.lower())
            if form:
                ask(f'UPDATE "{table}" SET "{column}" = {form}("{column}") WHERE "{column}" IS NOT NULL')
    connection.commit()
    ask(f"PRAGMA user_version = {version}")


def _asked(query: str, *values: Any) -> Any:
    """Returns one value from SQLite's own functions."""
    with closing(sqlite3.connect(":memory:")) as connection:
        return connection.execute(query, values).fetchone()[0]


_TABLE = re.compile(r"CREATE TABLE\s+(?:public\.)?(\w+)\s*\((.*?)\n\);", re.IGNORECASE | re.DOTALL)
_COLUMN = re.compile(
    r"^\s*(?!PRIMARY|FOREIGN|UNIQUE|CHECK|CONSTRAINT)(\w+)\s+([a-z]+)[^\n]*?(?:--\s*(?P<comment>[^\n]*))?$",
    re.IGNORECASE | re.MULTILINE,
)
_TYPES = {
    "bigint": "int",
    "integer": "int",
    "serial": "int",
    "varchar": "text",
    "char": "text",
    "decimal": "numeric",
}


def compact_schema(dump: str) -> str:
    """Returns one ``CREATE TABLE`` line a table: columns with short types, and the dump's comments.

    Keys and constraints are left out: few dumps have any.
    """
    lines = []
    for name, body in _TABLE.findall(dump):
        columns = []
        for column in _COLUMN.finditer(body):
            kind = column[2].lower()
            comment = f" /* {column['comment'].strip()} */" if column["comment"] else ""
            columns.append(f"{column[1]} {_TYPES.get(kind, kind)}{comment}")
        lines.append(f"CREATE TABLE {name} ({', '.join(columns)});")
    return "\n".join(lines)
