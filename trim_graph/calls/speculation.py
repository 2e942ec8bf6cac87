"""Lookahead: the small model writes the next step while the scorer rates this one. Never in the state.

One seam: `score_step` begins the call (`Speculation.before_score`), `generate_step` takes it (`on_generate`),
`route` gives it up where the decision has made it useless (`after_route`), `finalize` settles (`settle`).
"""

from __future__ import annotations

import asyncio
import warnings
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
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
    attempts_of,
    lookahead_usage,
    read_attempts,
)
from trim_graph.policies import Policy
from trim_graph.prompt_size import UnboundedPrompt, prompt_bound
from trim_graph.routing import Action, Generate, Router, RunView
from trim_graph.runtime import Invocation, tagged
from trim_graph.segmentation import Segmentation
from trim_graph.state import StepRequest, TrimState

from .model_call import StepCall, WriterModel, prepare_step

UNTAKEN_S = 120.0
"""Seconds after which a call that nobody has taken is given up."""
STOP_S = 0.5
"""Seconds that a call may take to end by itself once it is given up; then it is cancelled."""
TASK = "trim-graph lookahead"
"""Name of the tasks."""
_KEPT = 10_000


class StopSignal:
    """The ``stop_when`` of a call that may be given up: it ends at its next token, and reports its tokens.

    Args:
        inner: The step's own ``stop_when``, if it has one.

    Attributes:
        begun: Whether text has arrived.
        now: Set to True, the call is to end.
    """

    def __init__(self, inner: Callable[[str], bool] | None = None) -> None:
        self.inner, self.begun, self.now = inner, False, False

    def __call__(self, text: str) -> bool:
        """Tell whether the answer is to end."""
        self.begun = True
        return self.now or (self.inner is not None and self.inner(text))


@dataclass(kw_only=True)
class DiscardedUsage:
    """What calls for steps that nobody took have used."""

    calls: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    failed_attempts: int = 0
    failed_calls: int = 0
    unaccounted_tokens: int = 0
    """``max_tokens`` a call, where nobody reported what it had written."""

    def __add__(self, other: DiscardedUsage) -> DiscardedUsage:
        """Add up."""
        one, two = asdict(self), asdict(other)
        return DiscardedUsage(**{name: one[name] + two[name] for name in one})


@dataclass(eq=False, kw_only=True)
class SpeculativeCall:
    """One call for a step that may never be."""

    run: str
    """Id of the run."""
    key: str
    """Name of the call within its run."""
    max_tokens: int
    prompt_tokens: int
    """Most that its prompt has."""
    stop_signal: StopSignal | None
    """None where the model takes no ``stop_when``: its call can only be cancelled, and nobody
    reports what it has used."""
    begun: bool = False

    async def call(self, ask: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Make the call, behind the scorer's: that is the one somebody waits for."""
        await asyncio.sleep(0)
        self.begun = True
        return await ask()

    def used(self, task: asyncio.Task[Any]) -> DiscardedUsage:
        """Count what the call has used, once it has ended."""
        if not self.begun:
            return DiscardedUsage()
        if task.cancelled():
            # Before its first text a model that reports its tokens has none to report.
            known = self.stop_signal is not None and not self.stop_signal.begun
            return self._unreported(0 if known else self.max_tokens)
        error = task.exception()
        return self._answered(task.result()) if error is None else self._failed(error)

    def _unreported(self, tokens: int) -> DiscardedUsage:
        return DiscardedUsage(calls=1, input_tokens=self.prompt_tokens, unaccounted_tokens=tokens)

    def _failed(self, error: BaseException) -> DiscardedUsage:
        lost = attempts_of(error)
        return DiscardedUsage(
            calls=1,
            input_tokens=lost["input_tokens"],
            output_tokens=lost["output_tokens"],
            failed_attempts=lost["count"],
            failed_calls=1,
            unaccounted_tokens=lost["unknown"] * self.max_tokens,
        )

    def _answered(self, message: Any) -> DiscardedUsage:
        usage = message.usage_metadata if isinstance(message, AIMessage) else None
        if usage is None:
            return self._unreported(self.max_tokens)
        lost = read_attempts(message.response_metadata)
        return DiscardedUsage(
            calls=1,
            input_tokens=usage["input_tokens"],
            cached_tokens=usage.get("input_token_details", {}).get("cache_read", 0) or 0,
            output_tokens=usage["output_tokens"],
            failed_attempts=lost["count"] if lost else 0,
            unaccounted_tokens=lost["unknown"] * self.max_tokens if lost else 0,
        )


class UnsettledUsage:
    """What runs have used for steps that nobody took, until a node writes it into their state.

    The graph's own, because a run that was cancelled may be gone on with.
    """

    def __init__(self) -> None:
        self._runs: OrderedDict[str, DiscardedUsage] = OrderedDict()

    def add(self, run: str, discarded: DiscardedUsage) -> None:
        """Add what a run has used."""
        known = self._runs.pop(run, None)
        self._runs[run] = discarded if known is None else known + discarded
        while len(self._runs) > _KEPT:
            self._runs.popitem(last=False)

    def take(self, run: str) -> DiscardedUsage | None:
        """Return what a run has used since it was last asked for, once."""
        return self._runs.pop(run, None)


class SpeculationSlot:
    """What one invocation of a graph has under way: at most one call, taken once or given up.

    The graph makes one for each, and closes it however that ends. It belongs to the invocation's event loop.
    """

    def __init__(self) -> None:
        self._current: tuple[SpeculativeCall, asyncio.Task[Any], UnsettledUsage] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.prompt_tokens = 0
        """Most that the prompt behind the last draft has, as its own call has told."""

    @property
    def empty(self) -> bool:
        """Whether nothing is under way, nor ending."""
        return self._current is None and not self._tasks

    def start(
        self, ahead: SpeculativeCall, ask: Callable[[], Coroutine[Any, Any, Any]], unsettled: UnsettledUsage
    ) -> None:
        """Begin a call, in place of the one before.

        Args:
            ahead: What is known of it.
            ask: Makes it.
            unsettled: Learns what it has used, if nobody takes it.
        """
        self.drop()
        task = asyncio.create_task(ahead.call(ask), name=TASK)
        self._current = ahead, task, unsettled
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._timer = asyncio.get_running_loop().call_later(UNTAKEN_S, self.drop)

    def take(self, run: str, key: str) -> asyncio.Task[Any] | None:
        """Return the call that was made ahead, if it is this one; give up any other.

        One that has failed is made anew: it may have failed because it came on top of others.
        """
        if self._current is None:
            return None
        ahead, task, _ = self._current
        broken = task.done() and (task.cancelled() or task.exception() is not None)
        if broken or (ahead.run, ahead.key) != (run, key):
            self.drop()
            return None
        self._forget()
        return task

    def drop(self) -> None:
        """Give up what is under way: nobody will take it."""
        if self._current is None:
            return
        ahead, task, unsettled = self._current
        self._forget()

        def book(ended: asyncio.Task[Any]) -> None:
            unsettled.add(ahead.run, ahead.used(ended))

        if task.done():
            book(task)
            return
        task.add_done_callback(book)
        if ahead.stop_signal is not None and ahead.stop_signal.begun:
            ahead.stop_signal.now = True
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
        """Give up what is under way, and wait until it has ended; not for ever."""
        self.drop()
        if self._tasks:
            # Twice: one that does not end by itself is cancelled first.
            await asyncio.wait(self._tasks, timeout=2 * STOP_S)


class Speculation:
    """A graph's way to have the small model write the next step while the scorer rates this one.

    Args:
        small: The small model.
        scorer: The graph's; None has nothing to be waited for.
        policy: The graph's own.
        segmentation: The graph's own.
    """

    def __init__(
        self, small: Runnable[Any, Any], scorer: Any, policy: Policy, segmentation: Segmentation | None
    ) -> None:
        self._model = WriterModel.of(small)
        self._small, self._policy, self._segmentation = small, policy, segmentation
        self._hindered = _hindrance(small, scorer)
        self._warned = False
        self._unsettled = UnsettledUsage()

    def check(self, *, wanted: bool, synchronous: bool = False) -> bool:
        """Tell whether steps may be written ahead; warn, once, where they are wanted and cannot be.

        Args:
            wanted: Whether the settings say so.
            synchronous: Whether the graph is called by ``invoke`` or ``stream``.
        """
        hindered = self._hindered
        if hindered is None and synchronous:
            hindered = "the graph is called synchronously; call ainvoke or astream"
        if wanted and hindered is not None and not self._warned:
            self._warned = True
            warnings.warn(f"lookahead=True has no effect: {hindered}", RuntimeWarning, stacklevel=2)
        return wanted and hindered is None

    def before_score(self, state: TrimState, config: RunnableConfig, invocation: Invocation | None) -> None:
        """Begin the step behind the draft that the scorer is about to rate, where that may be of use."""
        slot = slot_of(invocation)
        if not self.check(wanted=True, synchronous=slot is None) or slot is None:
            return
        call = self._next_call(RunView(state, self._policy, self._segmentation), config, invocation)
        if call is None:
            return
        arguments, stop_signal = call.arguments, None
        if _can_end(self._small):
            stop_signal = StopSignal(arguments.get("stop_when"))
            arguments = {**arguments, "stop_when": stop_signal}
        ahead = SpeculativeCall(
            run=call.view.run["id"],
            key=call.key,
            max_tokens=call.request["max_tokens"],
            prompt_tokens=slot.prompt_tokens or _bound(call),
            stop_signal=stop_signal,
        )
        config = tagged(call.config, "trim:lookahead")
        slot.start(ahead, partial(call.model.ainvoke, call.messages, config, **arguments), self._unsettled)

    def _next_call(
        self, view: RunView, config: RunnableConfig, invocation: Invocation | None
    ) -> StepCall | None:
        """Return the call that `generate_step` will make if the draft stays; None where it will make none."""
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
        """Have the small model write a step, or wait for what it is writing already.

        Args:
            call: Of the small model.
            ask: Makes the call; gets the one under way, if it is this one.
        """
        slot = slot_of(call.invocation)
        ahead = None if slot is None else slot.take(call.view.run["id"], call.key)
        update = await ask(ahead)
        if slot is not None:
            before, after = call.usage["small"], update["usage"]["small"]
            read, written = (after[kind] - before[kind] for kind in ("input_tokens", "output_tokens"))
            slot.prompt_tokens = read + written
        human_response = ahead is not None and not ahead.cancelled() and ahead.exception() is None
        return update | {"usage": _with_taken(update["usage"])} if human_response else update

    def after_route(self, view: RunView, action: Action, invocation: Invocation | None) -> dict[str, Any]:
        """Give up what the decision has made useless, and settle what has ended so far.

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
        """Return the usage with what has ended since `route`; None where nothing has."""
        discarded = self._unsettled.take(state["run"]["id"])
        return None if discarded is None else _with_discarded(state["usage"], discarded)


def slot_of(invocation: Invocation | None) -> SpeculationSlot | None:
    """Return where an invocation keeps its step written ahead; None in a synchronous one."""
    found = None if invocation is None else invocation.speculative
    return found if isinstance(found, SpeculationSlot) else None


def _with_discarded(usage: Usage, discarded: DiscardedUsage) -> Usage:
    """Add calls for steps that nobody took to the usage."""
    before, ahead = usage["small"], lookahead_usage(usage)
    small = WriterUsage(
        calls=before["calls"] + discarded.calls,
        input_tokens=before["input_tokens"] + discarded.input_tokens,
        output_tokens=before["output_tokens"] + discarded.output_tokens,
        cached_tokens=before["cached_tokens"] + discarded.cached_tokens,
        failed_attempts=before["failed_attempts"] + discarded.failed_attempts,
        failed_calls=before["failed_calls"] + discarded.failed_calls,
    )
    lookahead = LookaheadUsage(
        taken=ahead["taken"],
        discarded=ahead["discarded"] + discarded.calls,
        input_tokens=ahead["input_tokens"] + discarded.input_tokens,
        output_tokens=ahead["output_tokens"] + discarded.output_tokens,
        unaccounted_tokens=ahead["unaccounted_tokens"] + discarded.unaccounted_tokens,
    )
    return Usage(**{**usage, "small": small, "lookahead": lookahead})


def _with_taken(usage: Usage) -> Usage:
    """Count a step that was written ahead and has become a draft."""
    ahead = lookahead_usage(usage)
    return Usage(**{**usage, "lookahead": LookaheadUsage(**{**ahead, "taken": ahead["taken"] + 1})})


def _bound(call: StepCall) -> int:
    try:
        return prompt_bound(None, call.messages)
    except UnboundedPrompt as unbounded:
        return unbounded.least


def _hindrance(small: Any, scorer: Any) -> str | None:
    if scorer is None or isinstance(scorer, TokenProbability):
        return "there is no scorer that takes time, so nothing is to be waited for"
    if not native_async(small):
        return (
            f"the small model, {type(small).__name__}, has no asynchronous calls of its own, so that a call "
            "could not be given up; use a chat model that implements _agenerate"
        )
    return None


def _can_end(small: Any) -> bool:
    """Tell whether a call can be told to end by itself; not where a cache would keep what it has by then."""
    return (
        capable(small, "takes_stop_when") and bound_setting(small, "stop_when") is None and not caches(small)
    )
