"""Checkpointers by configuration: none, memory, or a SQLite file."""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver

from .errors import SettingsError


class open_checkpointer:
    """Open the checkpointer that a specification names, and close it in the end.

    Works with ``with`` (for ``invoke``) and ``async with`` (for ``ainvoke``)::

        with open_checkpointer("sqlite:runs.db") as checkpointer:
            graph = create_trim_graph(small, large, scorer, policy=policy, checkpointer=checkpointer)
            graph.invoke(question, {"configurable": {"thread_id": "1"}}, durability="sync")

    Args:
        spec: ``none`` (the value is None), ``memory`` (lost with the process), or ``sqlite:PATH``; None is
            ``none``. Needs the extra ``sqlite`` for the last.

    Raises:
        SettingsError: The specification is none of these, the folder of the file does not exist, or the
            extra is not installed.
    """

    def __init__(self, spec: str | None) -> None:
        kind, _, place = (spec or "none").partition(":")
        if kind not in ("none", "memory", "sqlite") or bool(place) != (kind == "sqlite"):
            raise SettingsError(f"checkpoint is {spec!r}: choose none, memory, or sqlite:PATH")
        self._kind, self._path = kind, Path(place).expanduser() if place else None
        if self._path is not None and not self._path.resolve().parent.is_dir():
            raise SettingsError(
                f"checkpoint is {spec!r}: the folder {self._path.resolve().parent} does not exist"
            )
        self._stack: ExitStack | None = None
        self._async_stack: AsyncExitStack | None = None

    def __enter__(self) -> BaseCheckpointSaver[Any] | None:
        """Open for synchronous use."""
        self._stack = ExitStack()
        if self._path is None:
            return InMemorySaver() if self._kind == "memory" else None
        try:
            from langgraph.checkpoint.sqlite import SqliteSaver
        except ImportError as error:
            raise _missing_extra() from error
        return self._stack.enter_context(SqliteSaver.from_conn_string(str(self._path)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        if self._stack is not None:
            self._stack.__exit__(kind, error, trace)
            self._stack = None

    async def __aenter__(self) -> BaseCheckpointSaver[Any] | None:
        """Open for asynchronous use."""
        self._async_stack = AsyncExitStack()
        if self._path is None:
            return InMemorySaver() if self._kind == "memory" else None
        try:
            from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
        except ImportError as error:
            raise _missing_extra() from error
        return await self._async_stack.enter_async_context(AsyncSqliteSaver.from_conn_string(str(self._path)))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        if self._async_stack is not None:
            await self._async_stack.__aexit__(kind, error, trace)
            self._async_stack = None


def _missing_extra() -> SettingsError:
    return SettingsError('SQLite checkpoints need an extra: pip install "trim-graph[sqlite]"')
