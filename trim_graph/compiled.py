"""The compiled graph: LangGraph's own, but for four things.

An invocation has a clock, which leaves out what the reader of its stream takes. What its nodes have in flight
ends with it, however it ends. Whether it ended with all of it stored is noted. And there is the recursion
limit:
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

from .nodes.clock import KEY as CLOCK
from .nodes.clock import Clock
from .nodes.unsaved import KEY as INVOCATION
from .nodes.unsaved import Invocation
from .nodes.work_ahead import KEY, WorkAhead
from .settings import TrimContext
from .state import TrimInput, TrimOutput, TrimState

DEFAULT_LIMIT = 10_000
"""Supersteps of a call that names no limit; ``max_steps`` ends a run long before."""


class TrimGraph(CompiledStateGraph[TrimState, TrimContext, TrimInput, TrimOutput]):
    """What `create_trim_graph` returns; a `CompiledStateGraph` in every respect."""

    def stream(self, input: Any, config: Any = None, **kwargs: Any) -> Iterator[Any]:
        """Stream a run; see LangGraph's own documentation. `invoke` and its like come this way too."""
        # Nothing is in flight, also where this graph is called inside another that has something.
        clock, invocation, stored = Clock(), Invocation(), False
        try:
            for part in super().stream(input, _of_invocation(config, clock, invocation, None), **kwargs):
                with clock.held():
                    yield part
            stored = True
        finally:
            invocation.end(stored=stored)

    async def astream(self, input: Any, config: Any = None, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Stream a run; see LangGraph's own documentation. `ainvoke` and its like come this way too."""
        clock, invocation, under_way, stored = Clock(), Invocation(), WorkAhead(), False
        parts: Any = super().astream(input, _of_invocation(config, clock, invocation, under_way), **kwargs)
        try:
            async with contextlib.aclosing(parts):
                async for part in parts:
                    with clock.held():
                        yield part
            stored = True
        finally:
            invocation.end(stored=stored)
            await under_way.close()

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


def _of_invocation(
    config: RunnableConfig | None, clock: Clock, invocation: Invocation, under_way: WorkAhead | None
) -> RunnableConfig:
    """Give the nodes of an invocation its clock, and tell them what it has in flight."""
    given = config or {}
    own = {CLOCK: clock, INVOCATION: invocation, KEY: under_way}
    return {**given, "configurable": {**(given.get("configurable") or {}), **own}}


def with_limit(config: RunnableConfig | None, limit: int = DEFAULT_LIMIT) -> RunnableConfig:
    """Name a recursion limit where the config names none, before LangChain does."""
    given: RunnableConfig = {"recursion_limit": limit}
    return {**given, **(config or {})}
