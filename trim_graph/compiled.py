"""The compiled graph: LangGraph's own, but for the invocation that its nodes know, and the recursion limit.

An invocation has a stopwatch, which leaves out what the reader of its stream takes. A step that is written
ahead in it ends with it, however it ends. Whether it ended with all of it stored is noted.

`batch`, `astream_events` and their like fill a config up with LangChain's defaults before the graph sees it,
a ``recursion_limit`` of 25 among them, where LangGraph's own is about 10 000. A solution of more than eight
steps would end early, and only in these calls.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import CompiledStateGraph

from .calls.interrupted import clear_aborted
from .calls.speculation import SpeculationSlot
from .runtime import INVOCATION, Invocation
from .settings import TrimContext
from .state import TrimInput, TrimOutput, TrimState

DEFAULT_LIMIT = 10_000
"""Supersteps of a call that names no limit; ``max_steps`` ends a run long before."""


class TrimGraph(CompiledStateGraph[TrimState, TrimContext, TrimInput, TrimOutput]):
    """What `create_trim_graph` returns; a `CompiledStateGraph` in every respect."""

    def stream(self, input: Any, config: Any = None, **kwargs: Any) -> Iterator[Any]:
        """Stream a run; see LangGraph's own documentation. `invoke` and its like come this way too."""
        # No slot for a step written ahead, also where this graph is called inside another that has one.
        invocation, stored = Invocation(), False
        try:
            for part in super().stream(input, _of_invocation(config, invocation), **kwargs):
                with invocation.stopwatch.pause():
                    yield part
            stored = True
        finally:
            _end(invocation, stored=stored)

    async def astream(self, input: Any, config: Any = None, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Stream a run; see LangGraph's own documentation. `ainvoke` and its like come this way too."""
        slot, stored = SpeculationSlot(), False
        invocation = Invocation(slot)
        parts: Any = super().astream(input, _of_invocation(config, invocation), **kwargs)
        try:
            async with contextlib.aclosing(parts):
                async for part in parts:
                    with invocation.stopwatch.pause():
                        yield part
            stored = True
        finally:
            _end(invocation, stored=stored)
            await slot.close()

    def batch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[Any]:
        """Run several inputs in threads, at most ``max_concurrency`` of the config at once."""
        return super().batch(inputs, self._limited(config), **kwargs)

    async def abatch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[Any]:
        """Run several inputs at once, at most ``max_concurrency`` of the config."""
        return await super().abatch(inputs, self._limited(config), **kwargs)

    def batch_as_completed(self, inputs: Sequence[Any], config: Any = None, **kwargs: Any) -> Any:
        """As `batch`, each result with its index as soon as it is there."""
        return super().batch_as_completed(inputs, self._limited(config), **kwargs)

    def abatch_as_completed(self, inputs: Sequence[Any], config: Any = None, **kwargs: Any) -> Any:
        """As `abatch`, each result with its index as soon as it is there."""
        return super().abatch_as_completed(inputs, self._limited(config), **kwargs)

    def astream_events(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        """Stream every event inside a run; see `langchain_core`'s own documentation."""
        return super().astream_events(input, self._limited(config), **kwargs)

    def _limited(self, config: Any) -> Any:
        if isinstance(config, Sequence):
            return [self._limited(one) for one in config]
        return with_limit(config, (self.config or {}).get("recursion_limit", DEFAULT_LIMIT))


def _of_invocation(config: RunnableConfig | None, invocation: Invocation) -> RunnableConfig:
    """Return a config in which nodes find their invocation."""
    given = config or {}
    return {**given, "configurable": {**(given.get("configurable") or {}), INVOCATION: invocation}}


def _end(invocation: Invocation, *, stored: bool) -> None:
    """Note the end of an invocation; one without an error has all of it stored by LangGraph."""
    invocation.at_work = False
    if stored:
        clear_aborted(invocation)


def with_limit(config: RunnableConfig | None, limit: int = DEFAULT_LIMIT) -> RunnableConfig:
    """Name a recursion limit where the config names none, before LangChain does."""
    given: RunnableConfig = {"recursion_limit": limit}
    return {**given, **(config or {})}
