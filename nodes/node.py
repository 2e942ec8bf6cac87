"""A node as LangGraph runs it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config


def tagged(config: RunnableConfig, *tags: str) -> RunnableConfig:
    """Return a node's config for a call inside it, with tags of its own."""
    # `merge_configs` also copies callbacks and metadata, which took as long as all else that a node does.
    return {**config, "tags": [*(config.get("tags") or ()), *tags]}


class Node(Runnable[Any, Any]):
    """A pair of functions of state and config.

    LangGraph itself traces a node and sets its context. `RunnableLambda` would do both once more, and look at
    its function's signature at every call: that took a third of a step's time.

    Args:
        run: For synchronous calls.
        arun: For asynchronous ones.
        name: Of the node.
    """

    def __init__(
        self,
        run: Callable[[Any, RunnableConfig], Any],
        arun: Callable[[Any, RunnableConfig], Awaitable[Any]],
        *,
        name: str,
    ) -> None:
        self.name = name
        self._run, self._arun = run, arun

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Run it."""
        return self._run(input, ensure_config() if config is None else config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Run it without blocking the event loop."""
        return await self._arun(input, ensure_config() if config is None else config)


class Way(Runnable[Any, Any]):
    """A pure function of the state that says where to go; LangGraph would call a plain one in a thread.

    Args:
        choose: The function.
        name: Of the choice.
    """

    def __init__(self, choose: Callable[[Any], Any], *, name: str) -> None:
        self.name = name
        self._choose = choose

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Choose."""
        return self._choose(input)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Choose."""
        return self._choose(input)
