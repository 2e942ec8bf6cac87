"""Runs of a graph without LangGraph's loop, where nobody asks for what the loop adds.

`adrive` and `drive` call the nodes of a `TrimGraph` one after another, in the order of its edges, and reduce
their updates as its channels do. A run that has a checkpointer, a parent graph or a callback handler goes
through LangGraph instead; both yield the same. Evaluation, collection, labels, the shadow, `TrimChatModel`
and ``trim-graph serve`` run questions so. Measured by ``python -m tests.benchmarks.overhead``.

A handler of a chat model itself, not of the call, sees the model's calls without LangGraph's metadata
(``langgraph_node`` and the like) and without a parent run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple, cast

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import (
    ensure_config,
    get_callback_manager_for_config,
    merge_configs,
    set_config_context,
    var_child_runnable_config,
)
from langgraph.errors import GraphRecursionError
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from langgraph.types import Command

from .graph import AFTER_GENERATE_STEP
from .nodes import after_generate_step, begin_route
from .run import TrimGraph, new_async_invocation, new_invocation, with_recursion_limit
from .runtime import INVOCATION, RUNTIME, Invocation
from .settings import TrimContext
from .state import TrimState, reduce_state

OnEvent = Callable[[dict[str, Any]], None]
"""Receives each event of a run, as ``stream_mode="custom"`` has it, when its node has run."""
LANGGRAPH = "__pregel_"
"""Prefix of the keys that LangGraph sets in the config of a node."""


class Progress(NamedTuple):
    """One node has run.

    Attributes:
        update: The channels that it wrote, as ``stream_mode="updates"`` has them.
        state: All channels after it.
    """

    update: dict[str, Any]
    state: TrimState


def _ignore(event: dict[str, Any]) -> None:
    """Drops an event."""


def drive(
    graph: Any,
    messages: Sequence[Any],
    config: RunnableConfig | None = None,
    *,
    context: Any = None,
    on_event: OnEvent = _ignore,
) -> Generator[Progress, None, None]:
    """Runs a question, and yields after each node.

    Args:
        graph: Built by `create_trim_graph`, without a checkpointer.
        messages: The conversation; the last message holds the problem.
        config: Of the call.
        context: Of the call: a `TrimContext`, or a mapping that LangGraph makes one of.
        on_event: Receives each event.

    Raises:
        Exception: What ``graph.stream`` raises.
    """
    own = config_without_loop(graph, config)
    if own is None:
        parts = graph.stream({"messages": messages}, config, context=context, stream_mode=_MODES)
        with contextlib.closing(parts):
            yield from filter(None, map(_Followed(messages, on_event).take, parts))
        return
    invocation = new_invocation()
    yield from invocation.stream(_Run(graph, messages, own, context, on_event, invocation).nodes())


async def adrive(
    graph: Any,
    messages: Sequence[Any],
    config: RunnableConfig | None = None,
    *,
    context: Any = None,
    on_event: OnEvent = _ignore,
) -> AsyncGenerator[Progress, None]:
    """Runs a question as `drive` does, without blocking the event loop."""
    own = config_without_loop(graph, config)
    if own is None:
        parts = graph.astream({"messages": messages}, config, context=context, stream_mode=_MODES)
        followed = _Followed(messages, on_event)
        async with contextlib.aclosing(parts):
            async for part in parts:
                if (progress := followed.take(part)) is not None:
                    yield progress
        return
    invocation = new_async_invocation()
    run = _Run(graph, messages, own, context, on_event, invocation)
    async with contextlib.aclosing(invocation.astream(run.anodes())) as steps:
        async for progress in steps:
            yield progress


async def final_state(
    graph: Any,
    messages: Sequence[Any],
    config: RunnableConfig | None = None,
    *,
    context: Any = None,
    on_event: OnEvent = _ignore,
) -> TrimState:
    """Runs a question by `adrive`; returns all channels at its end."""
    state = _first_state(messages)
    async for progress in adrive(graph, messages, config, context=context, on_event=on_event):
        state = progress.state
    return state


def config_without_loop(graph: Any, config: RunnableConfig | None) -> RunnableConfig | None:
    """Returns the whole config of a run without LangGraph's loop.

    Args:
        graph: The graph.
        config: Of the call; the surrounding one, its callback handlers and those of the environment count.

    Returns:
        The config; None where a call asks for what only the loop has: checkpoints, a parent graph, traces.
    """
    if not isinstance(graph, TrimGraph) or graph.checkpointer:
        return None
    if any(key.startswith(LANGGRAPH) for key in ensure_config(config)["configurable"]):
        return None
    # LangChain takes a limit of 25, its default, for one that nobody named.
    named = with_recursion_limit({**(graph.config or {}), **(config or {})})["recursion_limit"]
    whole = ensure_config({**merge_configs(graph.config, config), "recursion_limit": named})
    callbacks = get_callback_manager_for_config(whole)
    return None if callbacks.handlers else {**whole, "callbacks": callbacks}


def _first_state(messages: Sequence[Any]) -> TrimState:
    return cast(TrimState, {"messages": add_messages([], list(messages))})


_MODES = ["custom", "updates"]


class _Followed:
    """A run that LangGraph streams.

    Args:
        messages: The conversation.
        on_event: Receives each event.
    """

    def __init__(self, messages: Sequence[Any], on_event: OnEvent) -> None:
        self._state, self._on_event = _first_state(messages), on_event

    def take(self, part: tuple[str, Any]) -> Progress | None:
        """Takes a part of the stream; returns what a node did, and passes an event on."""
        mode, content = part
        if mode == "custom":
            self._on_event(content)
            return None
        (update,) = content.values()
        self._state = reduce_state(self._state, update or {})
        return _progress(update, self._state)


def _progress(update: Any, state: TrimState) -> Progress:
    """Returns what a node did, in a state that its reader may change."""
    return Progress(update or {}, cast(TrimState, {**state}))


class _Run:
    """A run between two of its nodes.

    Args:
        graph: The graph, whose nodes and config count.
        messages: The conversation.
        config: The whole config, of `config_without_loop`.
        context: Of the call.
        on_event: Receives each event.
        invocation: Of the run.
    """

    def __init__(
        self,
        graph: TrimGraph,
        messages: Sequence[Any],
        config: RunnableConfig,
        context: Any,
        on_event: OnEvent,
        invocation: Invocation,
    ) -> None:
        if isinstance(context, dict):
            context = TrimContext(**context)
        self._events: list[dict[str, Any]] = []
        runtime = Runtime(context=context, stream_writer=self._events.append)
        self._on_event, self._invocation = on_event, invocation
        configurable = {**config["configurable"], INVOCATION: invocation, RUNTIME: runtime}
        self._config: RunnableConfig = {**config, "configurable": configurable}
        # The run's, not its calls'.
        self._config.pop("run_id", None)
        self._config.pop("run_name", None)
        self._graph, self._left = graph, config["recursion_limit"]
        self._state = _first_state(messages)
        self._node = "route"
        self._input: Any = begin_route(self._state)[0].arg

    def nodes(self) -> Iterator[Progress]:
        """Runs the nodes."""
        while self._node:
            node = self._next()
            try:
                with set_config_context(self._config) as own:
                    output = own.run(node.invoke, self._input, self._config)
            finally:
                self._deliver()
            yield self._take(output)

    async def anodes(self) -> AsyncGenerator[Progress, None]:
        """Runs the nodes without blocking the event loop."""
        while self._node:
            node, token = self._next(), var_child_runnable_config.set(self._config)
            try:
                output = await node.ainvoke(self._input, self._config)
            finally:
                var_child_runnable_config.reset(token)
                self._deliver()
            yield self._take(output)

    def _deliver(self) -> None:
        """Passes the node's events on: in the caller's thread, in time that is not the run's."""
        events, begun = self._events.copy(), time.monotonic()
        self._events.clear()
        for event in events:
            self._on_event(event)
        self._invocation.stopwatch.leave_out(begun)

    def _next(self) -> Runnable[Any, Any]:
        if self._left <= 0 and self._state.get("run"):  # before the first node the limit itself is checked
            raise GraphRecursionError(
                f"recursion_limit={self._config['recursion_limit']} is reached before the run has ended"
            )
        self._left -= 1
        return self._graph.nodes[self._node].bound

    def _take(self, output: Command[Any] | dict[str, Any]) -> Progress:
        update = output.update if isinstance(output, Command) else output
        self._state = reduce_state(self._state, update or {})
        self._node = self._following(output)
        self._input = {**self._state, "remaining_steps": self._left - 1}
        return _progress(update, self._state)

    def _following(self, output: Command[Any] | dict[str, Any]) -> str:
        """Returns the next node by the edges of `create_trim_graph`; an empty text ends the run."""
        if isinstance(output, Command):
            return str(output.goto)
        if self._node == "generate_step" and "score_step" in self._graph.nodes:
            return AFTER_GENERATE_STEP[after_generate_step(self._state)]
        return "" if self._node == "finalize" else "route"
