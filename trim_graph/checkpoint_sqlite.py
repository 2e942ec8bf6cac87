"""Checkpoints in a SQLite file. Needs the extra ``sqlite``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from .checkpoint_reading import NamingSaver
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
    """Open for synchronous use.

    Args:
        path: Of the file, made where it is missing.

    Raises:
        StorageError: The file is damaged, or holds other tables of these names.
        SettingsError: It cannot be opened.
    """
    open_file("checkpoint", path, _COLUMNS)
    with _Saver.from_conn_string(path) as saver:
        yield saver.name_place(f"the checkpoint {path}", partial(errors_named, "checkpoint", path))


@asynccontextmanager
async def aopen_sqlite(path: str) -> AsyncIterator[AsyncSqliteSaver]:
    """Open for asynchronous use; see `open_sqlite`."""
    await asyncio.to_thread(open_file, "checkpoint", path, _COLUMNS)
    async with _AsyncSaver.from_conn_string(path) as saver:
        yield saver.name_place(f"the checkpoint {path}", partial(errors_named, "checkpoint", path))
