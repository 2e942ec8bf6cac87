"""SQLite files of checkpoints and ledgers: creation in one step, and errors that name a damaged file."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from trim_graph.errors import SettingsError, StorageError

IN_MEMORY = ":memory:"
BUSY_S = 30.0
CHECKED_UP_TO = 64 * 2**20
"""Size in bytes up to which opening checks every page of a file, in about a quarter of a second. Of a larger
file it checks the first page and the schema; reads find other damage."""

Columns = Mapping[str, tuple[str, ...]]
"""Columns that each table must have, the primary key first."""
_DAMAGED = "it is damaged: restore it from a copy, or name another file"
_ADVICE = {
    "SQLITE_BUSY": "another process has kept it locked",
    "SQLITE_LOCKED": "another process has kept it locked",
    "SQLITE_FULL": "the disk is full",
    "SQLITE_READONLY": "it may not be written to",
    "SQLITE_CANTOPEN": "see that it is a file that may be read and written",
    "SQLITE_PERM": "see that it is a file that may be read and written",
    "SQLITE_IOERR": "the disk does not do what is asked of it",
}


def _storage_error(begun: str, error: sqlite3.DatabaseError) -> StorageError:
    name = getattr(error, "sqlite_errorname", "") or ""
    advice = next((said for code, said in _ADVICE.items() if name.startswith(code)), _DAMAGED)
    said = str(error) or type(error).__name__
    return StorageError(f"{begun}: {said}; {advice}")


@contextmanager
def errors_named(what: str, path: str, wanted: str = "used") -> Iterator[None]:
    """Converts SQLite's errors to a `StorageError` that names the file, except those of misused connections.

    Args:
        what: ``checkpoint`` or ``ledger``.
        path: Path of the file.
        wanted: What the file cannot be, in messages: ``used`` or ``opened``.
    """
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except UnicodeDecodeError as error:  # its own message quotes the damaged bytes
        raise StorageError(f"the {what} {path} cannot be {wanted}: {_DAMAGED}") from error
    except sqlite3.DatabaseError as error:
        raise _storage_error(f"the {what} {path} cannot be {wanted}", error) from error


def open_file(
    what: str, path: str, columns: Columns, *, check: Callable[[sqlite3.Connection], str] | None = None
) -> None:
    """Creates a file if it is missing, and checks an existing one.

    Args:
        what: ``checkpoint`` or ``ledger``.
        path: Path of the file.
        columns: Columns of the tables. A missing table is no error.
        check: Returns what is wrong with the values; empty if nothing is.

    Raises:
        StorageError: The file is empty, damaged, no database, or has a table of the name with other columns.
        SettingsError: The file cannot be created or opened.
    """
    if path == IN_MEMORY:
        return
    file = Path(path)
    try:
        if not file.exists():
            make_file(file)
        size = file.stat().st_size if file.exists() else None
    except (OSError, sqlite3.OperationalError) as error:
        raise SettingsError(f"the {what} {path} cannot be opened: {error}") from error
    if size is None:  # a file system without hard links: SQLite creates the file itself
        return
    if not size:
        raise StorageError(
            f"the {what} {path} is an empty file: what was in it is lost, or it was made by hand; remove it "
            "to begin anew"
        )
    with errors_named(what, path, "opened"), closing(sqlite3.connect(path, timeout=BUSY_S)) as connection:
        wrong = _damage(connection, size) or _foreign(connection, columns) or (check and check(connection))
    if wrong:
        raise StorageError(f"the {what} {path} cannot be opened: {wrong}")


def make_file(file: Path) -> None:
    """Creates an empty database in one step, so that other processes see no file or a complete one."""
    beside = file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident()}.new")
    try:
        with closing(sqlite3.connect(beside)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        with suppress(OSError):
            os.link(beside, file)
    finally:
        beside.unlink(missing_ok=True)


def _damage(connection: sqlite3.Connection, size: int) -> str:
    if size > CHECKED_UP_TO:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return ""
    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    return "" if found == "ok" else f"{found}; {_DAMAGED}"


def _foreign(connection: sqlite3.Connection, columns: Columns) -> str:
    for table, wanted in columns.items():
        seen = {row[1]: row[5] for row in connection.execute(f"PRAGMA table_info({table})")}
        if seen and not (seen.keys() >= set(wanted) and seen[wanted[0]]):
            return (
                f"its table {table} has the columns {', '.join(seen)}, where {', '.join(wanted)} are wanted "
                f"and {wanted[0]} in the key: it belongs to another program; name another file"
            )
    return ""
