"""Checkpointers by configuration: none, memory, a SQLite file, or a PostgreSQL database."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver

from .errors import SettingsError

Saver = BaseCheckpointSaver[Any] | None

CHOICES = "none, memory, sqlite:PATH, postgresql://USER@HOST/DATABASE, or env:NAME"


@dataclass(frozen=True, slots=True)
class CheckpointPlace:
    """A specification taken apart.

    Attributes:
        kind: ``none``, ``memory``, ``sqlite``, ``postgresql`` or ``env``.
        place: The file, the URL, or the variable's name; empty for the first two.
    """

    kind: str
    place: str = ""

    @property
    def lasts(self) -> bool:
        """Whether the runs outlive the process."""
        return self.kind not in ("none", "memory")

    def __str__(self) -> str:
        return (
            self.place if self.kind == "postgresql" else self.kind + (f":{self.place}" if self.place else "")
        )


def checkpoint_place(spec: str | None) -> CheckpointPlace:
    """Take a specification apart, without looking whether the place exists.

    Args:
        spec: As for `open_checkpointer`.

    Raises:
        ValueError: It is none, or holds a password.
    """
    kind, _, place = (spec or "none").partition(":")
    if kind in ("postgres", "postgresql") and place.startswith("//"):
        url = f"postgresql:{place}"
        if urlsplit(url).password or any("password" in name for name in parse_qs(urlsplit(url).query)):
            # Begun with the setting's name, the message is told without the value.
            raise ValueError(
                "checkpoint holds a password; set PGPASSWORD, keep it in ~/.pgpass, or put the whole URL "
                "into an environment variable and write env:NAME"
            )
        return CheckpointPlace("postgresql", url)
    if kind not in ("none", "memory", "sqlite", "env") or bool(place) != (kind in ("sqlite", "env")):
        raise ValueError(f"choose {CHOICES}")
    return CheckpointPlace(kind, place)


class open_checkpointer:
    """Open the checkpointer that a specification names, and close it in the end.

    Works with ``with`` (for ``invoke``) and ``async with`` (for ``ainvoke``)::

        with open_checkpointer("sqlite:runs.db") as checkpointer:
            graph = create_trim_graph(small, large, scorer, policy=policy, checkpointer=checkpointer)
            graph.invoke(question, {"configurable": {"thread_id": "1"}}, durability="sync")

    In PostgreSQL the tables are made, or brought up to date, on opening, and a pool of connections serves any
    number of runs. The extra of the name is needed for ``sqlite`` and ``postgres``.

    Args:
        spec: ``none`` (the value is None), ``memory`` (lost with the process), ``sqlite:PATH``,
            ``postgresql://USER@HOST/DATABASE`` (a libpq URL without a password), or ``env:NAME``, an
            environment variable with any of these, a password included; None is ``none``.

    Attributes:
        place: The specification taken apart, ``env:`` already followed.

    Raises:
        SettingsError: The specification is none of these, the folder of the file does not exist, the
            variable is not set, the extra is not installed, or the database cannot be opened.
    """

    def __init__(self, spec: str | None) -> None:
        try:
            place = checkpoint_place(spec)
        except ValueError as error:
            told = str(error)
            raise SettingsError(
                told if told.startswith("checkpoint ") else f"checkpoint is {spec!r}: {told}"
            ) from error
        if place.kind == "env":
            place = _from_environment(place.place)
        if place.kind == "sqlite":
            place = CheckpointPlace("sqlite", str(Path(place.place).expanduser()))
            folder = Path(place.place).resolve().parent
            if not folder.is_dir():
                raise SettingsError(f"checkpoint is {spec!r}: the folder {folder} does not exist")
        self.place = place
        self._stack: ExitStack | None = None
        self._async_stack: AsyncExitStack | None = None

    def __enter__(self) -> Saver:
        """Open for synchronous use."""
        self._stack = ExitStack()
        return self._stack.enter_context(_SYNC[self.place.kind](self.place.place))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        if self._stack is not None:
            self._stack.__exit__(kind, error, trace)
            self._stack = None

    async def __aenter__(self) -> Saver:
        """Open for asynchronous use."""
        self._async_stack = AsyncExitStack()
        return await self._async_stack.enter_async_context(_ASYNC[self.place.kind](self.place.place))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        if self._async_stack is not None:
            await self._async_stack.__aexit__(kind, error, trace)
            self._async_stack = None


def _from_environment(name: str) -> CheckpointPlace:
    spec = os.environ.get(name, "").strip()
    if not spec:
        raise SettingsError(f"checkpoint is 'env:{name}', but the environment variable {name} is not set")
    kind, _, place = spec.partition(":")
    if kind in ("postgres", "postgresql") and place.startswith("//"):
        return CheckpointPlace("postgresql", f"postgresql:{place}")
    try:
        found = checkpoint_place(spec)
    except ValueError as error:
        raise SettingsError(
            f"checkpoint is what the variable {name} holds, and that is none: {error}"
        ) from error
    if found.kind == "env":
        raise SettingsError(f"checkpoint is what the variable {name} holds, and that is another env:...")
    return found


@contextmanager
def _nothing(place: str) -> Iterator[Saver]:
    yield None


@asynccontextmanager
async def _anothing(place: str) -> AsyncIterator[Saver]:
    yield None


@contextmanager
def _memory(place: str) -> Iterator[Saver]:
    yield InMemorySaver()


@asynccontextmanager
async def _amemory(place: str) -> AsyncIterator[Saver]:
    yield InMemorySaver()


@contextmanager
def _sqlite(place: str) -> Iterator[Saver]:
    try:
        from langgraph.checkpoint.sqlite import SqliteSaver
    except ImportError as error:
        raise _missing_extra("SQLite", "sqlite") from error
    with SqliteSaver.from_conn_string(place) as saver:
        yield saver


@asynccontextmanager
async def _asqlite(place: str) -> AsyncIterator[Saver]:
    try:
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
    except ImportError as error:
        raise _missing_extra("SQLite", "sqlite") from error
    async with AsyncSqliteSaver.from_conn_string(place) as saver:
        yield saver


@contextmanager
def _postgres(place: str) -> Iterator[Saver]:
    try:
        from .checkpoint_postgres import open_postgres
    except ImportError as error:
        raise _missing_extra("PostgreSQL", "postgres") from error
    with open_postgres(place) as saver:
        yield saver


@asynccontextmanager
async def _apostgres(place: str) -> AsyncIterator[Saver]:
    try:
        from .checkpoint_postgres import aopen_postgres
    except ImportError as error:
        raise _missing_extra("PostgreSQL", "postgres") from error
    async with aopen_postgres(place) as saver:
        yield saver


_SYNC: dict[str, Callable[[str], AbstractContextManager[Saver]]] = {
    "none": _nothing,
    "memory": _memory,
    "sqlite": _sqlite,
    "postgresql": _postgres,
}
_ASYNC: dict[str, Callable[[str], AbstractAsyncContextManager[Saver]]] = {
    "none": _anothing,
    "memory": _amemory,
    "sqlite": _asqlite,
    "postgresql": _apostgres,
}


def _missing_extra(name: str, extra: str) -> SettingsError:
    return SettingsError(f'{name} checkpoints need an extra: pip install "trim-graph[{extra}]"')
