"""The two tools: a calculator, and a query to an SQLite database that cannot change anything."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool, ToolException, tool

from .calculating import evaluate

MOST_ROWS = 50
MOST_INSTRUCTIONS = 5_000_000
"""Of SQLite's virtual machine, about a second's work."""
LONGEST_VALUE = 100_000
"""Bytes of a text or blob."""

_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


@tool
def calculator(expression: str) -> str:
    """Work out an arithmetic expression of numbers, brackets and + - * / // % **."""
    try:
        value = evaluate(expression)
    except ValueError as error:
        raise ToolException(str(error)) from error
    return f"{value:.12g}" if isinstance(value, float) else str(value)


calculator.handle_tool_error = True


def query_tool(database: str | Path) -> BaseTool:
    """Makes the tool that queries one database file.

    Args:
        database: An SQLite file. It is opened for reading only, at each call.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no SQLite database.
    """
    path = Path(database)
    if not path.is_file():
        raise FileNotFoundError(f"there is no database {path}")
    try:
        tables = [row[0] for row in _rows(path, "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
    except sqlite3.Error as error:
        raise ValueError(f"{path} is no SQLite database: {error}") from error

    def query(sql: str) -> str:
        try:
            return _table(_rows(path, sql, titles=True))
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise ToolException(f"{error}") from error

    described = "\n".join(tables)
    description = f"Answer one SELECT of SQLite over these tables:\n{described}"
    return StructuredTool.from_function(query, name="query", description=description, handle_tool_error=True)


def _rows(path: Path, sql: str, *, titles: bool = False) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE)
        # A file opened for reading only could still attach another one and write to that.
        connection.set_authorizer(_authorize)
        connection.set_progress_handler(lambda: 1, MOST_INSTRUCTIONS)
        cursor = connection.execute(sql)
        rows = cursor.fetchmany(MOST_ROWS + 1)
        head = [tuple(column[0] for column in cursor.description)] if titles and cursor.description else []
        return head + rows


def _authorize(action: int, first: str | None, second: str | None, *where: Any) -> int:
    harmless = action in _ALLOWED and second != "load_extension"
    return sqlite3.SQLITE_OK if harmless else sqlite3.SQLITE_DENY


def _table(rows: list[tuple[Any, ...]]) -> str:
    lines = [" | ".join("NULL" if value is None else str(value) for value in row) for row in rows]
    if len(lines) > MOST_ROWS + 1:
        lines[-1] = f"(only the first {MOST_ROWS} rows)"
    return "\n".join(lines)
