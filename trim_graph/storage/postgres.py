"""PostgreSQL: checkpointers, and connections that ledgers and locks use too. Needs the extra ``postgres``."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import psycopg
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection, Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from trim_graph.errors import SettingsError, StorageError

from .checkpoint import NamingSaver

_CONNECT_S = 10
_OTHER_SETUP_S = 60
_SHOWN = {"host": r"[\w.,:/-]+", "port": r"[\d,]+", "dbname": r"[\w.-]+", "user": r"[\w.-]+"}
_SETUP_LOCK = 7_286_117
"""Key of the advisory lock for creating tables; any number, the same in all processes."""
# As PostgresSaver.from_conn_string sets them.
_OPTIONS: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
_POOL: dict[str, Any] = {"min_size": 1, "max_size": 10, "kwargs": _OPTIONS, "open": False}


_KEY = ("thread_id", "checkpoint_ns", "checkpoint_id")
_COLUMNS = {
    "checkpoints": (*_KEY, "parent_checkpoint_id", "type", "checkpoint", "metadata"),
    "checkpoint_blobs": (*_KEY[:2], "channel", "version", "type", "blob"),
    "checkpoint_writes": (*_KEY, "task_id", "idx", "channel", "type", "blob"),
    "checkpoint_migrations": ("v",),
}


class _Saver(NamingSaver, PostgresSaver):
    pass


class _AsyncSaver(NamingSaver, AsyncPostgresSaver):
    pass


@contextmanager
def open_postgres(url: str) -> Iterator[PostgresSaver]:
    """Opens for synchronous use.

    Args:
        url: A libpq connection URL.

    Raises:
        SettingsError: The database cannot be opened.
        StorageError: It holds other tables of these names.
    """
    _set_up(url)
    with open_pool(url) as pool:
        yield _Saver(pool).name_place(shown_database(url), partial(errors_named, url))


@asynccontextmanager
async def aopen_postgres(url: str) -> AsyncIterator[AsyncPostgresSaver]:
    """Opens for asynchronous use; see `open_postgres`."""
    await asyncio.to_thread(_set_up, url)
    async with AsyncConnectionPool(url, connection_class=AsyncConnection[DictRow], **_POOL) as pool:
        yield _AsyncSaver(pool).name_place(shown_database(url), partial(errors_named, url))


def open_pool(url: str) -> ConnectionPool[Connection[DictRow]]:
    """Returns a pool for synchronous use, to be opened by ``with``."""
    return ConnectionPool(url, connection_class=Connection[DictRow], **_POOL)


@contextmanager
def setup_connection(url: str) -> Iterator[Connection[DictRow]]:
    """Yields a connection for creating tables, to one process at a time.

    Raises:
        SettingsError: The database cannot be opened.
    """
    with connected(url) as connection:
        # A blocking lock in the database would hold a snapshot, for which CREATE INDEX CONCURRENTLY waits.
        Retrying(
            retry=retry_if_result(lambda got: not got),
            wait=wait_fixed(0.1),
            stop=stop_after_delay(_OTHER_SETUP_S),
        )(_try_lock, connection)
        yield connection


@contextmanager
def connected(url: str) -> Iterator[Connection[DictRow]]:
    """Yields a connection outside the pool.

    Raises:
        SettingsError: The database cannot be opened.
    """
    connection, failed = None, ""
    try:
        connection = psycopg.connect(url, connect_timeout=_CONNECT_S, **_OPTIONS)
    except (psycopg.Error, ValueError) as error:  # ValueError: the host is not a valid name
        failed = _said(url, error)
    if connection is None:  # outside the except clause, since libpq's error may repeat the URL
        raise SettingsError(f"{shown_database(url)} cannot be opened{failed}")
    with connection:
        yield connection


def _set_up(url: str) -> None:
    with errors_named(url), setup_connection(url) as connection:
        refuse_foreign(url, connection, _COLUMNS)
        PostgresSaver(connection).setup()


def refuse_foreign(url: str, connection: Connection[DictRow], columns: Mapping[str, tuple[str, ...]]) -> None:
    """Checks that existing tables of a database have the expected columns.

    Args:
        url: URL of the database, for messages.
        connection: Connection to the database.
        columns: Columns that each table must have. A missing table is no error.

    Raises:
        StorageError: A table belongs to another program.
    """
    for table, wanted in columns.items():
        rows = connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 "
            "AND NOT attisdropped",
            [table],
        )
        seen = [row["attname"] for row in rows]
        if seen and not set(wanted) <= set(seen):
            raise StorageError(
                f"{shown_database(url)} cannot be opened: its table {table} has the columns "
                f"{', '.join(seen)}, where {', '.join(wanted)} are wanted: it belongs to another program; "
                "name another database"
            )


@contextmanager
def errors_named(url: str) -> Iterator[None]:
    """Converts PostgreSQL's errors to a `StorageError` that names the database."""
    try:
        yield
    except psycopg.Error as error:
        said = _said(url, error)
    else:
        return
    raise StorageError(f"{shown_database(url)} cannot be used{said}")


def _try_lock(connection: Connection[Any]) -> bool:
    row = connection.execute("SELECT pg_try_advisory_lock(%s) AS got", [_SETUP_LOCK]).fetchone()
    return bool(row and row["got"])


def shown_database(url: str) -> str:
    """Returns a database by host, port, name and user for messages, if none may be part of a password."""
    parts = _parts(url)
    shown = {name: str(parts[name]) for name in _SHOWN if parts and parts.get(name)}
    if not all(re.fullmatch(_SHOWN[name], value) for name, value in shown.items()):
        shown = {}
    return " ".join(["the PostgreSQL database", *(f"{name}={value}" for name, value in shown.items())])


def _said(url: str, error: Exception) -> str:
    """Returns PostgreSQL's error without other values of the URL; a fixed text if the URL is malformed."""
    parts = _parts(url)
    if not parts:
        return ": its URL cannot be read"
    if "=" not in shown_database(url):
        return ": host, port, user or name of the database hold characters that no such name has"
    said = str(error).strip()
    for value in sorted((str(v) for n, v in parts.items() if n not in _SHOWN and v), key=len, reverse=True):
        said = said.replace(value, "***")
    return f": {said or type(error).__name__}"


def _parts(url: str) -> dict[str, Any]:
    try:
        return dict(conninfo_to_dict(url))
    except psycopg.ProgrammingError:
        return {}
