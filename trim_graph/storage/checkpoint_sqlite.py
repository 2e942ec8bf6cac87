"""Checkpointers in a SQLite file; a module of its own, since it needs the extra ``sqlite``."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial

import aiosqlite
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from .checkpoint import NamingSaver
from .sqlite_file import errors_named, open_file

_KEY = ("thread_id", "checkpoint_ns", "checkpoint_id")
_COLUMNS = {
    "checkpoints": (*_KEY, "parent_checkpoint_id", "type", "checkpoint", "metadata"),
    "writes": (*_KEY, "task_id", "idx", "channel", "type", "value"),
}


class _Saver(NamingSaver, SqliteSaver):
    pass


class _AsyncSaver(NamingSaver, AsyncSqliteSaver):
    pass


@contextmanager
def open_sqlite(path: str) -> Iterator[SqliteSaver]:
    """Opens for synchronous use.

    Args:
        path: Path of the file, created if it is missing.

    Raises:
        StorageError: The file is damaged, or holds other tables of these names.
        SettingsError: The file cannot be opened.
    """
    open_file("checkpoint", path, _COLUMNS)
    with closing(sqlite3.connect(path, check_same_thread=False)) as connection:
        yield _Saver(connection).name_place(
            f"the checkpoint {path}", partial(errors_named, "checkpoint", path)
        )


@asynccontextmanager
async def aopen_sqlite(path: str) -> AsyncIterator[AsyncSqliteSaver]:
    """Opens for asynchronous use; see `open_sqlite`."""
    await asyncio.to_thread(open_file, "checkpoint", path, _COLUMNS)
    async with aiosqlite.connect(path) as connection:
        yield _AsyncSaver(connection).name_place(
            f"the checkpoint {path}", partial(errors_named, "checkpoint", path)
        )
