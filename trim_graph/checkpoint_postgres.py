"""Checkpoints in PostgreSQL: tables made on opening, a pool of connections. Needs the extra ``postgres``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection, Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from .errors import SettingsError

_CONNECT_S = 10
_OTHER_SETUP_S = 60
_SETUP_LOCK = 7_286_117
"""Any number, the same in all processes."""
# What PostgresSaver.from_conn_string asks of a connection.
_OPTIONS: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
_POOL: dict[str, Any] = {"min_size": 1, "max_size": 10, "kwargs": _OPTIONS, "open": False}


@contextmanager
def open_postgres(url: str) -> Iterator[PostgresSaver]:
    """Open for synchronous use.

    Args:
        url: A libpq connection URL.

    Raises:
        SettingsError: The database cannot be opened.
    """
    _set_up(url)
    with open_pool(url) as pool:
        yield PostgresSaver(pool)


@asynccontextmanager
async def aopen_postgres(url: str) -> AsyncIterator[AsyncPostgresSaver]:
    """Open for asynchronous use; see `open_postgres`."""
    await asyncio.to_thread(_set_up, url)
    async with AsyncConnectionPool(url, connection_class=AsyncConnection[DictRow], **_POOL) as pool:
        yield AsyncPostgresSaver(pool)


def open_pool(url: str) -> ConnectionPool[Connection[DictRow]]:
    """A pool for synchronous use, to be opened by ``with``."""
    return ConnectionPool(url, connection_class=Connection[DictRow], **_POOL)


@contextmanager
def taking_turns(url: str) -> Iterator[Connection[DictRow]]:
    """A connection for making tables: processes that start together use theirs one after the other.

    Raises:
        SettingsError: The database cannot be opened.
    """
    with connected(url) as connection:
        # Waiting inside the database would hold a snapshot, for which CREATE INDEX CONCURRENTLY waits.
        Retrying(
            retry=retry_if_result(lambda got: not got),
            wait=wait_fixed(0.1),
            stop=stop_after_delay(_OTHER_SETUP_S),
        )(_try_lock, connection)
        yield connection


@contextmanager
def connected(url: str) -> Iterator[Connection[DictRow]]:
    """A connection of its own.

    Raises:
        SettingsError: The database cannot be opened.
    """
    try:
        with psycopg.connect(url, connect_timeout=_CONNECT_S, **_OPTIONS) as connection:
            yield connection
    except psycopg.Error as error:
        raise SettingsError(f"{_shown(url)} cannot be opened: {str(error).strip()}") from error


def _set_up(url: str) -> None:
    with taking_turns(url) as connection:
        PostgresSaver(connection).setup()


def _try_lock(connection: Connection[Any]) -> bool:
    row = connection.execute("SELECT pg_try_advisory_lock(%s) AS got", [_SETUP_LOCK]).fetchone()
    return bool(row and row["got"])


def _shown(url: str) -> str:
    """The database, without the password."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return "the PostgreSQL database"
    names = ("host", "port", "dbname", "user")
    return "the PostgreSQL database " + " ".join(f"{n}={parts[n]}" for n in names if parts.get(n))
