"""Lookahead: the small model writes the next step speculatively while the scorer rates this one.

`score_step` starts the call (`Speculation.before_score`), `generate_step` takes it (`on_generate`), `route`
drops it if the decision makes it useless (`after_route`), and `finalize` settles its usage (`settle`).
Nothing of a running call is in the state.
"""

from __future__ import annotations

import asyncio
import warnings
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig

from trim_graph.adapters.capabilities import bound_setting, caches, capable, native_async
from trim_graph.adapters.token_confidence import TokenProbability
from trim_graph.budget.usage import (
    LookaheadUsage,
    Usage,
    WriterUsage,
    add_usage,
    attempts_of,
    read_attempts,
    zero_usage,
)
from trim_graph.policies import Policy
from trim_graph.routing import Action, Generate, Router, RunView
from trim_graph.runtime import Invocation, tagged
from trim_graph.segmentation import Segmentation
from trim_graph.state import StepRequest, TrimState

from .model_call import StepCall, WriterModel, prepare_step

UNTAKEN_S = 120.0
"""Seconds after which a call that was not taken is dropped."""
STOP_S = 0.5
"""Seconds that a dropped call may take to end by itself before it is cancelled."""
TASK = "trim-graph lookahead"
"""Name of the asyncio tasks."""
_KEPT = 10_000
"""Most runs whose discarded usage is kept until it is settled."""


class StopSignal:
    """The ``stop_when`` of a speculative call: once set, the call ends at its next token and reports usage.

    Args:
        inner: The step's own ``stop_when``, if it has one.

    Attributes:
        begun: Whether text has arrived.
        now: Set to True to end the call.
    """

    def __init__(self, inner: Callable[[str], bool] | None = None) -> None:
        self.inner, self.begun, self.now = inner, False, False

    def __call__(self, text: str) -> bool:
        """Returns whether the answer is to end."""
        self.begun = True
        return self.now or (self.inner is not None and self.inner(text))


def _discarded(
    *,
    calls: int = 1,
    input_tokens: int = 0,
    cached_tokens: int = 0,
    output_tokens: int = 0,
    failed_attempts: int = 0,
    failed_calls: int = 0,
    unaccounted_tokens: int = 0,
) -> dict[str, Any]:
    """Returns what a speculative call that was not taken adds to the usage of its run.

    Nobody waited for it, so no duration is known.
    """
    small = WriterUsage(
        calls=calls,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_tokens=cached_tokens,
        failed_attempts=failed_attempts,
        failed_calls=failed_calls,
    )
    lookahead = LookaheadUsage(
        taken=0,
        discarded=calls,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        unaccounted_tokens=unaccounted_tokens,
    )
    return {"small": small, "lookahead": lookahead}


@dataclass(eq=False, kw_only=True)
class SpeculativeCall:
    """One call for the step that follows if the draft is accepted."""

    run: str
    """Id of the run."""
    key: str
    """Name of the call within its run."""
    max_tokens: int
    prompt_tokens: int
    """Upper bound of its prompt in tokens."""
    stop_signal: StopSignal | None
    """None if the model takes no ``stop_when``: its call can only be cancelled, and reports no usage."""
    begun: bool = False

    async def call(self, ask: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Makes the call after the scorer's has started, since the run waits for that one."""
        await asyncio.sleep(0)
        self.begun = True
        return await ask()

    def used(self, task: asyncio.Task[Any]) -> dict[str, Any]:
        """Returns the usage of the call once it has ended.

        Args:
            task: The ended task.
        """
        if not self.begun:
            return _discarded(calls=0)
        if task.cancelled():
            # Before its first text, a model that takes ``stop_when`` has generated nothing.
            known = self.stop_signal is not None and not self.stop_signal.begun
            return self._unreported(0 if known else self.max_tokens)
        error = task.exception()
        return self._answered(task.result()) if error is None else self._failed(error)

    def _unreported(self, tokens: int) -> dict[str, Any]:
        return _discarded(input_tokens=self.prompt_tokens, unaccounted_tokens=tokens)

    def _failed(self, error: BaseException) -> dict[str, Any]:
        lost = attempts_of(error)
        return _discarded(
            input_tokens=lost["input_tokens"],
            output_tokens=lost["output_tokens"],
            failed_attempts=lost["count"],
            failed_calls=1,
            unaccounted_tokens=lost["unknown"] * self.max_tokens,
        )

    def _answered(self, message: Any) -> dict[str, Any]:
        usage = message.usage_metadata if isinstance(message, AIMessage) else None
        if usage is None:
            return self._unreported(self.max_tokens)
        lost = read_attempts(message.response_metadata)
        return _discarded(
            input_tokens=usage["input_tokens"],
            cached_tokens=usage.get("input_token_details", {}).get("cache_read", 0) or 0,
            output_tokens=usage["output_tokens"],
            failed_attempts=lost["count"] if lost else 0,
            unaccounted_tokens=lost["unknown"] * self.max_tokens if lost else 0,
        )


class UnsettledUsage:
    """Discarded usage by run, until a node settles it in the run's state.

    It belongs to the graph, not to one invocation, because a cancelled run may be resumed.
    """

    def __init__(self) -> None:
        self._runs: OrderedDict[str, Usage] = OrderedDict()

    def add(self, run: str, discarded: dict[str, Any]) -> None:
        """Adds discarded usage to a run."""
        self._runs[run] = add_usage(self._runs.pop(run, zero_usage()), discarded)
        while len(self._runs) > _KEPT:
            self._runs.popitem(last=False)

    def take(self, run: str) -> Usage | None:
        """Removes and returns the unsettled usage of a run; None if there is none."""
        return self._runs.pop(run, None)


class SpeculationSlot:
    """The speculative call of one invocation: at most one at a time, taken once or dropped.

    Each asynchronous invocation has a slot (`trim_graph.run.new_async_invocation`), and closes it however it
    ends. The slot belongs to the invocation's event loop.
    """

    def __init__(self) -> None:
        self._current: tuple[SpeculativeCall, asyncio.Task[Any], UnsettledUsage] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.prompt_tokens = 0
        """Upper bound of the prompt that follows the last draft, from the usage of the draft's own call."""

    def start(
        self, call: SpeculativeCall, ask: Callable[[], Coroutine[Any, Any, Any]], unsettled: UnsettledUsage
    ) -> None:
        """Starts a call, and drops the previous one.

        Args:
            call: The call.
            ask: Sends it.
            unsettled: Gets its usage if it is not taken.
        """
        self.drop()
        task = asyncio.create_task(call.call(ask), name=TASK)
        self._current = call, task, unsettled
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._timer = asyncio.get_running_loop().call_later(UNTAKEN_S, self.drop)

    def take(self, run: str, key: str) -> asyncio.Task[Any] | None:
        """Returns the running call if its run and key match; drop any other.

        A failed call is dropped too, so that it is made anew: the added load may have caused its failure.
        """
        if self._current is None:
            return None
        call, task, _ = self._current
        broken = task.done() and (task.cancelled() or task.exception() is not None)
        if broken or (call.run, call.key) != (run, key):
            self.drop()
            return None
        self._forget()
        return task

    def drop(self) -> None:
        """Drops the running call: stop it, and adds its usage to the unsettled one."""
        if self._current is None:
            return
        call, task, unsettled = self._current
        self._forget()

        def book(ended: asyncio.Task[Any]) -> None:
            unsettled.add(call.run, call.used(ended))

        if task.done():
            book(task)
            return
        task.add_done_callback(book)
        if call.stop_signal is not None and call.stop_signal.begun:
            call.stop_signal.now = True
            later = asyncio.get_running_loop().call_later(STOP_S, task.cancel)
            task.add_done_callback(lambda _: later.cancel())
        else:
            task.cancel()

    def _forget(self) -> None:
        self._current = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def close(self) -> None:
        """Drops the running call, and waits for its end, at most twice `STOP_S` seconds."""
        self.drop()
        if self._tasks:
            # Twice: a call that does not end by itself is first cancelled.
            await asyncio.wait(self._tasks, timeout=2 * STOP_S)


class Speculation:
    """Has the small model write the next step while the scorer rates this one; one for each graph.

    Args:
        small: The small model.
        scorer: The graph's scorer; without one there is no time to use.
        policy: The graph's policy.
        segmentation: The graph's segmentation.
    """

    def __init__(
        self, small: Runnable[Any, Any], scorer: Any, policy: Policy, segmentation: Segmentation | None
    ) -> None:
        self._model = WriterModel.of(small)
        self._small, self.policy, self.segmentation = small, policy, segmentation
        self._obstacle = _obstacle(small, scorer)
        self._warned = False
        self._unsettled = UnsettledUsage()

    def check(self, *, synchronous: bool = False) -> bool:
        """Returns whether lookahead, which the settings turn on, is possible; warns once if it is not.

        Args:
            synchronous: Whether the graph is called by ``invoke`` or ``stream``.
        """
        obstacle = self._obstacle
        if obstacle is None and synchronous:
            obstacle = "the graph is called synchronously; call ainvoke or astream"
        if obstacle is not None and not self._warned:
            self._warned = True
            warnings.warn(f"lookahead=True has no effect: {obstacle}", RuntimeWarning, stacklevel=2)
        return obstacle is None

    def before_score(self, view: RunView, config: RunnableConfig, invocation: Invocation | None) -> None:
        """Starts the call for the step after the draft that the scorer is about to rate, if it may help.

        Args:
            view: View of the run, with the graph's policy and segmentation.
            config: The node's config.
            invocation: The invocation of the node.
        """
        slot = slot_of(invocation)
        if not self.check(synchronous=slot is None) or slot is None:
            return
        call = self._next_call(view, config, invocation)
        if call is None:
            return
        arguments, stop_signal = call.arguments, None
        if _can_end(self._small):
            stop_signal = StopSignal(arguments.get("stop_when"))
            arguments = {**arguments, "stop_when": stop_signal}
        speculative = SpeculativeCall(
            run=call.view.run["id"],
            key=call.key,
            max_tokens=call.request["max_tokens"],
            prompt_tokens=slot.prompt_tokens or call.prompt_tokens,
            stop_signal=stop_signal,
        )
        config = tagged(call.config, "trim:lookahead")
        ask = partial(call.model.ainvoke, call.messages, config, **arguments)
        slot.start(speculative, ask, self._unsettled)

    def _next_call(
        self, view: RunView, config: RunnableConfig, invocation: Invocation | None
    ) -> StepCall | None:
        """Returns the call that `generate_step` makes if the draft is accepted; None if it makes none."""
        following = Router().if_kept(view)
        if not isinstance(following, Generate):
            return None
        request: StepRequest | None = following.update.get("request", view.request)
        assert request is not None
        steps = [*view.steps, *following.update["steps"]]
        return prepare_step(view, request, steps, config, {"small": self._model}, invocation=invocation)

    async def on_generate(
        self, call: StepCall, ask: Callable[[asyncio.Task[Any] | None], Coroutine[Any, Any, dict[str, Any]]]
    ) -> dict[str, Any]:
        """Makes a call of the small model, or waits for the speculative one if it is the same.

        Args:
            call: A call of the small model.
            ask: Makes the call; gets the task of the speculative one, or None.

        Returns:
            The update of the state.
        """
        slot = slot_of(call.invocation)
        started = None if slot is None else slot.take(call.view.run["id"], call.key)
        update = await ask(started)
        if slot is not None:
            before, after = call.usage["small"], update["usage"]["small"]
            read, written = (after[kind] - before[kind] for kind in ("input_tokens", "output_tokens"))
            slot.prompt_tokens = read + written
        taken = started is not None and not started.cancelled() and started.exception() is None
        return update | {"usage": _with_taken(update["usage"])} if taken else update

    def after_route(self, view: RunView, action: Action, invocation: Invocation | None) -> dict[str, Any]:
        """Drops the call if the action makes it useless, and settles what has ended so far.

        Args:
            view: View of the run before the action.
            action: Action of the router.
            invocation: The invocation of the node.

        Returns:
            The update of the state.
        """
        update = action.update
        request: StepRequest | None = update.get("request", view.request)
        writes = request is not None and request["writer"] == "small" and "probe" not in request
        if (slot := slot_of(invocation)) is not None and not (writes and isinstance(action, Generate)):
            slot.drop()
        usage = self.settle({**view.state, "usage": update.get("usage") or view.usage})
        return update if usage is None else {**update, "usage": usage}

    def settle(self, state: TrimState) -> Usage | None:
        """Returns the run's usage with discarded calls that have ended; None if none has."""
        discarded = self._unsettled.take(state["run"]["id"])
        return None if discarded is None else add_usage(state["usage"], discarded)


def slot_of(invocation: Invocation | None) -> SpeculationSlot | None:
    """Returns the slot of an invocation; None in a synchronous one."""
    found = None if invocation is None else invocation.speculative
    return found if isinstance(found, SpeculationSlot) else None


def _with_taken(usage: Usage) -> Usage:
    """Returns the usage with one more speculative call that became a draft."""
    taken = LookaheadUsage(taken=1, discarded=0, input_tokens=0, output_tokens=0, unaccounted_tokens=0)
    return add_usage(usage, {"lookahead": taken})


def _obstacle(small: Any, scorer: Any) -> str | None:
    if scorer is None or isinstance(scorer, TokenProbability):
        return "there is no scorer that takes time, so nothing is to be waited for"
    if not native_async(small):
        return (
            f"the small model, {type(small).__name__}, has no asynchronous calls of its own, so that a call "
            "could not be given up; use a chat model that implements _agenerate"
        )
    return None


def _can_end(small: Any) -> bool:
    """Returns whether a `StopSignal` may end a call; a cache would keep the text that it has by then."""
    return (
        capable(small, "takes_stop_when") and bound_setting(small, "stop_when") is None and not caches(small)
    )
