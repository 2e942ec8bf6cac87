"""How nodes run: as LangGraph calls them, in an invocation with stopwatch and streams, within time limits."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.messages import AIMessageChunk
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config
from langgraph.config import get_config, get_stream_writer
from langgraph.graph.message import push_message

from .budget.usage import Usage
from .events import EventName
from .state import SCHEMA_VERSION, TrimState, check_schema, diff_update

T = TypeVar("T")

INVOCATION = "__pregel_trim_invocation"
"""Key of the `Invocation` in a node's config. LangGraph treats this prefix as its own: such keys enter no
checkpoint, stream or trace."""
OWN_INPUT = "__pregel_trim_own_input"
"""Key that `trim_node` sets in its graph's config: the input is the graph's own, not a parent's state."""
CHECKPOINTER = "__pregel_checkpointer"
"""Key of the effective checkpointer in a node's config, also of a parent graph's."""
READ = "__pregel_read"
"""Key of the function in a node's config that reads a channel of the graph around it by its name."""
RUNTIME = "__pregel_runtime"
"""Key of LangGraph's runtime in a node's config: the call's context and the writer of its events."""
GRACE = 0.5
"""Seconds that a call may exceed its timeout before nodes stop waiting for it."""


class Node(Runnable[Any, Any]):
    """A node: a pair of functions of state and config.

    LangGraph itself traces a node and sets its context. `RunnableLambda` would do both again, and inspect the
    function's signature at every call, which took a third of a step's time.

    Args:
        run: Function for synchronous calls.
        arun: Function for asynchronous calls.
        name: Name of the node.
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
        """Runs the node."""
        return self._run(input, ensure_config() if config is None else config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Runs the node without blocking the event loop."""
        return await self._arun(input, ensure_config() if config is None else config)


class Branch(Runnable[Any, Any]):
    """A conditional edge: a pure function of the state that names the next node.

    LangGraph would call a plain function in a thread.

    Args:
        choose: The function.
        name: Name of the branch.
    """

    def __init__(self, choose: Callable[[Any], Any], *, name: str) -> None:
        self.name = name
        self._choose = choose

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Chooses."""
        return self._choose(input)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Chooses."""
        return self._choose(input)


def tagged(config: RunnableConfig, *tags: str) -> RunnableConfig:
    """Returns a node's config for a call inside the node, with further tags."""
    # `merge_configs` also copies callbacks and metadata, which doubled the time of a node.
    return {**config, "tags": [*(config.get("tags") or ()), *tags]}


def emit(event: EventName, **content: Any) -> None:
    """Emits one step event to ``stream_mode="custom"``.

    Args:
        event: Name of the event.
        content: JSON-native values, the fields of its class in `trim_graph.events`.
    """
    get_stream_writer()({"type": "trim", "event": event, **content})


def push_text(text: str, message_id: str) -> None:
    """Emits accepted text to ``stream_mode="messages"`` as a chunk of the final message."""
    callbacks = get_config().get("callbacks")
    # Without a handler nobody streams messages, and a message that is made for nobody costs its validation.
    if isinstance(callbacks, BaseCallbackManager) and not callbacks.handlers:
        return
    push_message(AIMessageChunk(content=text, id=message_id), state_key=None)


class Stopwatch:
    """Measures the time of an invocation between its calls: the event loop, checkpoints, the policy.

    A run's active seconds include this time, which is long on a busy event loop. They exclude the time
    between two invocations, such as a human's thinking.
    """

    def __init__(self) -> None:
        self._since = time.monotonic()

    def lap(self) -> float:
        """Returns the seconds since the last call ended or the last lap, and begins a new lap."""
        now = time.monotonic()
        passed, self._since = max(0.0, now - self._since), now
        return passed

    def restart(self) -> None:
        """Begins a new lap at the end of a call."""
        self._since = time.monotonic()

    def leave_out(self, begun: float) -> None:
        """Leaves out the time that whoever reads the stream has taken since it got a part.

        Args:
            begun: When it got it, by `time.monotonic`.
        """
        now = time.monotonic()
        self._since += now - min(now, max(begun, self._since))


class Invocation:
    """One invocation of a graph.

    Args:
        when_stored: Called with the invocation once it has ended without an error: LangGraph has stored all
            of it.
        speculative: Its `trim_graph.calls.speculation.SpeculationSlot`; None in a synchronous invocation.
        warming: Its `trim_graph.calls.warming.WarmingSlot`; None in a synchronous invocation.

    Attributes:
        stopwatch: Measures the time between its calls.
        running: Whether the invocation has not ended.
        runs: Ids of the runs in which it made large calls.
    """

    def __init__(
        self, when_stored: Callable[[Invocation], None], speculative: Any = None, warming: Any = None
    ) -> None:
        self.stopwatch = Stopwatch()
        self.running = True
        self.runs: set[str] = set()
        self.speculative, self.warming = speculative, warming
        self._when_stored = when_stored

    def stream(self, parts: Iterator[T]) -> Iterator[T]:
        """Yields the parts of the invocation's stream, and ends the invocation.

        Args:
            parts: What LangGraph streams.
        """
        self.stopwatch.restart()
        try:
            for part in parts:
                handed_over = time.monotonic()
                yield part
                self.stopwatch.leave_out(handed_over)
        except BaseException:
            self.running = False
            raise
        self.running = False
        self._when_stored(self)

    async def astream(self, parts: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """Does the same as `stream`, and ends the calls that run in the background."""
        self.stopwatch.restart()
        try:
            async with contextlib.aclosing(parts):
                async for part in parts:
                    handed_over = time.monotonic()
                    yield part
                    self.stopwatch.leave_out(handed_over)
        except BaseException:
            self.running = False
            raise
        else:
            self.running = False
            self._when_stored(self)
        finally:
            await self.close()

    async def close(self) -> None:
        """Ends the calls that run in the background; a synchronous invocation has none."""
        for slot in (self.warming, self.speculative):
            if slot is not None:
                await slot.close()


def invocation_of(config: RunnableConfig) -> Invocation | None:
    """Returns the invocation that a node runs in; None if no `TrimGraph` runs it, as in an agent."""
    found = (config.get("configurable") or {}).get(INVOCATION)
    return found if isinstance(found, Invocation) else None


class CallNode(Runnable[Any, Any]):
    """A node that makes a call: the time that passed before the call is in the usage of its state.

    Args:
        run: For synchronous calls; gets state, config and invocation, and returns an update.
        arun: For asynchronous ones.
        name: Of the node.
    """

    def __init__(
        self,
        run: Callable[[TrimState, RunnableConfig, Invocation | None], dict[str, Any]],
        arun: Callable[[TrimState, RunnableConfig, Invocation | None], Awaitable[dict[str, Any]]],
        *,
        name: str,
    ) -> None:
        self.name = name
        self._run, self._arun = run, arun

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Runs it.

        Raises:
            SettingsError: Another release began the run.
        """
        config = ensure_config() if config is None else config
        invocation = invocation_of(config)
        try:
            return diff_update(input, self._run(_waited(input, invocation), config, invocation))
        finally:
            if invocation is not None:
                invocation.stopwatch.restart()

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Runs it without blocking the event loop; see `invoke`."""
        config = ensure_config() if config is None else config
        invocation = invocation_of(config)
        try:
            return diff_update(input, await self._arun(_waited(input, invocation), config, invocation))
        except BaseException:
            # Not only at the end of the invocation: in traces a call ends before its run does.
            if invocation is not None:
                await invocation.close()
            raise
        finally:
            if invocation is not None:
                invocation.stopwatch.restart()


def _waited(state: TrimState, invocation: Invocation | None) -> TrimState:
    """Returns a state with the time before the call in its usage."""
    if state["run"]["schema"] != SCHEMA_VERSION:
        check_schema(state["run"])
    if invocation is None:
        return state
    usage = state["usage"]
    return {**state, "usage": Usage(**{**usage, "seconds": usage["seconds"] + invocation.stopwatch.lap()})}


def call_with_timeout(seconds: float | None, call: Callable[[], T]) -> T:
    """Calls a function, and stops waiting for it `GRACE` seconds after its time limit.

    A thread cannot be ended from outside: a function that hangs keeps its daemon thread, and its result is
    dropped.

    Args:
        seconds: Time limit; None calls the function in this thread, without one.
        call: The function; takes no arguments.

    Raises:
        TimeoutError: The function took longer.
    """
    if seconds is None:
        return call()
    answers: list[T] = []
    errors: list[BaseException] = []
    context = contextvars.copy_context()

    def work() -> None:
        try:
            answers.append(context.run(call))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="trim-graph call with a deadline", daemon=True)
    thread.start()
    thread.join(seconds + GRACE)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {seconds} seconds")
    return answers[0]
