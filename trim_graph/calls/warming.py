"""Cache warming: the large model reads the accepted steps while the small one drafts, ahead of a rewrite.

`route` charges a call in full (`Warming.after_route`) and leaves a `WarmMark` in its request. `generate_step`
starts it (`Warming.start`): with ``durability="sync"`` a checkpoint holds the charge by then, so that no call
is free, whatever is lost. `route` replaces the charge by what the call reports when it runs again
(`Warming.settle`). `finalize` cancels a call that still runs.

`generate_step` runs again with the same mark after an error or a cancellation, and `route` charges again
where a charge was lost (``durability="async"``). So a call is started once for a run and its number of steps,
until the invocation that started it has ended without an error. It is started by the process that charged it
alone: of another one nobody knows whether it has.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from inspect import getattr_static
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig

from trim_graph import process
from trim_graph.adapters.capabilities import models_inside, native_async
from trim_graph.adapters.responses import TokenCounter
from trim_graph.budget.ledger import Ledger
from trim_graph.budget.usage import (
    Prices,
    Usage,
    WarmingUsage,
    Writer,
    add_usage,
    charge_in_full,
    count_prompt_once,
    usage_delta,
)
from trim_graph.errors import SettingsError
from trim_graph.routing import Action, AskHuman, Generate, RunView
from trim_graph.routing.router import WARM_TOKENS
from trim_graph.runtime import Invocation, emit, tagged
from trim_graph.state import InFlight, StepRequest, WarmMark

from .model_call import StepCall, WriterModel, awith_reservation, charge_reply, prepare_step, usage_of_failed

STOP_S = 0.5
"""Seconds that the end of an invocation waits for a cancelled call."""
TASK = "trim-graph warming"
"""Name of the asyncio tasks."""
KEPT = 10_000
"""Most started calls recorded; beyond that the oldest is forgotten."""


@dataclass(frozen=True, slots=True)
class WarmCall:
    """One call that warms the cache.

    Attributes:
        call: The prepared call, whose ``usage`` is that of the run without it.
        charged: Usage of the run with the call charged in full.
    """

    call: StepCall
    charged: Usage

    async def make(self, ledger: Ledger | None) -> tuple[Usage, bool]:
        """Returns the usage of the run with what the call has used, and whether it was answered.

        It raises no error.

        Args:
            ledger: Holds the accounts of the run, which may refuse the call.
        """

        async def ask(call: StepCall) -> dict[str, Any]:
            message = await call.model.ainvoke(call.messages, call.config, **call.arguments)
            return {"usage": charge_reply(call, await call.aread(message), message.response_metadata, 0.0)}

        await asyncio.sleep(0)  # the draft's call goes first, since the run waits for that one
        try:
            update = await awith_reservation(self.call, ledger, ask)
        except Exception as error:
            return _with_warming(self.call.usage, usage_of_failed(self.call, error), failed=1), False
        if "failed" in update:  # other runs have exhausted an account meanwhile
            return _with_warming(self.call.usage, self.call.usage), False
        return _with_warming(self.call.usage, update["usage"]), True


class WarmingSlot:
    """The calls of one invocation that warm the cache: at most one runs at a time.

    Each asynchronous invocation has a slot (`trim_graph.run.new_async_invocation`), and closes it however it
    ends.

    Attributes:
        closed: Whether the invocation makes no further call.
        stored: Whether the invocation has ended without an error, so that LangGraph has stored all of it.
    """

    def __init__(self) -> None:
        self.closed = self.stored = False
        self._current: tuple[WarmCall, asyncio.Task[Any]] | None = None
        self._charged = -1
        """Number of steps in the last prompt."""

    @property
    def busy(self) -> bool:
        """Whether a call is running, or has ended and is not settled."""
        return self._current is not None

    def takes(self, steps: int) -> bool:
        """Returns whether a call for so many steps may be charged: none is running or has read as many."""
        return not self.busy and steps > self._charged

    def charge(self, steps: int) -> None:
        """Notes that a call for so many steps is charged."""
        self._charged = steps

    def start(self, call: WarmCall, ledger: Ledger | None) -> None:
        """Starts a call."""
        self._charged = call.call.index
        self._current = call, asyncio.create_task(call.make(ledger), name=TASK)

    def ended(self) -> tuple[WarmCall, asyncio.Task[Any]] | None:
        """Returns the call with its task once it has ended, and forgets it; else None."""
        if self._current is None or not self._current[1].done():
            return None
        current, self._current = self._current, None
        return current

    def stop(self) -> None:
        """Cancels a running call."""
        if self._current is not None:
            self._current[1].cancel()

    async def close(self) -> None:
        """Cancels a running call, and waits for its end, at most `STOP_S` seconds."""
        self.closed = True
        self.stop()
        if self._current is not None:
            await asyncio.wait([self._current[1]], timeout=STOP_S)


class Warming:
    """Warms the large model's prefix cache; one for each graph.

    Args:
        large: The large model.
        ledger: The graph's ledger.
        counters: Token counters for writers that do not report their tokens.
    """

    def __init__(
        self,
        large: Runnable[Any, Any],
        ledger: Ledger | None = None,
        counters: Mapping[Writer, TokenCounter] | None = None,
    ) -> None:
        self._large, self._ledger, self._counters = large, ledger, counters
        self._models: Mapping[Writer, WriterModel] = {"large": WriterModel.of(large)}
        self._warned = False
        self._lock = threading.Lock()
        self._started: OrderedDict[tuple[str, str, int], WarmingSlot] = OrderedDict()
        """Slots of the calls started, by process, run and number of steps."""

    def check(self, *, synchronous: bool = False) -> bool:
        """Returns whether warming, which the settings turn on, is possible; warns once if it is not.

        Args:
            synchronous: Whether the graph is called by ``invoke`` or ``stream``.

        Raises:
            SettingsError: The large model has no cache of prompts.
        """
        for inside in models_inside(self._large):
            if getattr_static(type(inside), "caches_prefixes", None) is False:
                raise SettingsError(
                    f"warm_large is True, but the large model, {type(inside).__name__}, reads each prompt "
                    "anew and has no cache of prefixes to warm: leave it out, or serve the model (ChatVLLM)"
                )
        obstacle = None
        if not native_async(self._large):
            obstacle = (
                f"the large model, {type(self._large).__name__}, has no asynchronous calls of its own, so "
                "that a call could not be given up; use a chat model that implements _agenerate"
            )
        elif synchronous:
            obstacle = "the graph is called synchronously; call ainvoke or astream"
        if obstacle is not None and not self._warned:
            self._warned = True
            warnings.warn(f"warm_large=True has no effect: {obstacle}", RuntimeWarning, stacklevel=2)
        return obstacle is None

    def after_route(
        self, view: RunView, action: Action, update: dict[str, Any], invocation: Invocation | None
    ) -> dict[str, Any]:
        """Charges the call that an action asks for, and marks its request; cancels one before a question.

        Args:
            view: View of the run before the action.
            action: Action of the router.
            update: Its update of the state.
            invocation: The invocation of `route`.

        Returns:
            The update of the state.
        """
        slot = slot_of(invocation)
        if isinstance(action, AskHuman) and slot is not None:
            slot.stop()  # the invocation ends, and nobody knows when the run resumes
        if not isinstance(action, Generate) or action.warm is None:
            return update
        steps = len(action.warm.steps)
        if not self.check(synchronous=slot is None) or slot is None or not slot.takes(steps):
            return update
        with self._lock:
            other = self._started.get(_key(view, steps))
        if other is not None and not other.closed:
            return update  # a branch of this run, which is charged for it, has the prompt read
        slot.charge(steps)
        usage: Usage = update.get("usage") or view.usage
        mark = WarmMark(
            prompt_tokens=action.warm.prompt_tokens,
            unaccounted_cost=usage["unaccounted_cost"],
            process=process.NAME,
        )
        request: StepRequest | None = update.get("request", view.request)
        assert request is not None
        marked = StepRequest(**{**request, "warm": mark})
        return {**update, "usage": _in_full(usage, mark, view.prices), "request": marked}

    def start(self, view: RunView, config: RunnableConfig, invocation: Invocation | None) -> None:
        """Starts the call in the background for which `route` has left a mark.

        Args:
            view: View of the run, charged in full for the call.
            config: The node's config.
            invocation: The invocation of `generate_step`.
        """
        assert view.request is not None
        mark, slot = view.request.get("warm"), slot_of(invocation)
        if mark is None or slot is None or slot.busy:
            return
        if mark["process"] != process.NAME:
            return
        with self._lock:
            key = _key(view, len(view.steps))
            before = self._started.get(key)
            if before is not None and not before.stored:
                return  # what it has read may be charged in this very state
            self._started[key] = slot
            self._started.move_to_end(key)
            if len(self._started) > KEPT:
                self._started.popitem(last=False)
        charged = view.usage
        uncharged = add_usage(charged, usage_delta(_in_full(charged, mark, view.prices), charged))
        uncharged["unaccounted_cost"] = mark["unaccounted_cost"]  # a difference of costs is not exact
        slot.start(WarmCall(self._prepare(view, mark, uncharged, config), charged), self._ledger)

    def _prepare(self, view: RunView, mark: WarmMark, usage: Usage, config: RunnableConfig) -> StepCall:
        """Returns the call: the prompt of a rewrite, with one token to write and no further attempt."""
        in_flight = InFlight(
            writer="large",
            max_tokens=WARM_TOKENS,
            prompt_tokens=mark["prompt_tokens"],
            process=mark["process"],
        )
        view = view.after({**view.state, "usage": usage, "in_flight": in_flight})
        to_read = StepRequest(
            writer="large",
            until_eos=False,  # a model that continues by prompt is asked otherwise for all further steps
            max_tokens=WARM_TOKENS,
            needs_score=False,
            needs_decision=False,
            partial_text="",
            attempt=0,
        )
        call = prepare_step(
            view, to_read, view.steps, config, self._models, invocation=None, counters=self._counters
        )
        arguments = dict(call.arguments)
        if call.retry is not None:
            arguments["retry_tokens"] = lambda lost: 0
        config = tagged(config, "nostream", "trim:warm", "trim:large")
        return replace(call, retry=None, arguments=arguments, config=config)

    def settle(self, usage: Usage, invocation: Invocation | None) -> Usage | None:
        """Returns the usage of a run with what a call that has ended reported; None if none has.

        Args:
            usage: Usage of the run, with the call charged in full.
            invocation: The invocation that started it.
        """
        slot = slot_of(invocation)
        found = None if slot is None else slot.ended()
        if found is None:
            return None
        warm, task = found
        if task.cancelled() or task.exception() is not None:
            return None  # the charge in full stays
        used, answered = task.result()
        settled = _corrected(usage, warm.charged, used)
        if not answered:
            return settled
        mine = usage_delta(warm.call.usage, used)["warming"]
        read = {"input_tokens": mine["input_tokens"], "cached_tokens": mine["cached_tokens"]}
        if used.get("prompt") != warm.call.usage.get("prompt"):  # it has read the question without a step
            settled["prompt"] = count_prompt_once(usage.get("prompt"), "large", 0, **read)
        emit("warmed", step=warm.call.index, **read, tokens=mine["output_tokens"])
        return settled


def slot_of(invocation: Invocation | None) -> WarmingSlot | None:
    """Returns the slot of an invocation; None in a synchronous one."""
    found = None if invocation is None else invocation.warming
    return found if isinstance(found, WarmingSlot) else None


def _key(view: RunView, steps: int) -> tuple[str, str, int]:
    return process.NAME, view.run["id"], steps


def _in_full(usage: Usage, mark: WarmMark, prices: Prices) -> Usage:
    """Returns the usage with the most that a call may use."""
    charged = charge_in_full(
        usage, max_tokens=WARM_TOKENS, prompt_tokens=mark["prompt_tokens"], prices=prices
    )
    return _with_warming(usage, add_usage(charged, {"large": {"seconds": 0.0}}))


def _corrected(usage: Usage, charged: Usage, used: Usage) -> Usage:
    """Returns a usage with what a call has used in place of its charge in full."""
    correction = usage_delta(charged, used)
    correction.pop("prompt", None)
    corrected = add_usage(usage, correction)
    if usage["unaccounted_cost"] == charged["unaccounted_cost"]:  # a difference of costs is not exact
        corrected["unaccounted_cost"] = used["unaccounted_cost"]
    return corrected


def _with_warming(before: Usage, after: Usage, *, failed: int = 0) -> Usage:
    """Returns the usage after a call, with what the call used in its ``warming`` too.

    Args:
        before: Usage of the run before the call.
        after: Usage of the run after it.
        failed: 1 if it failed: not a failure of the run's large model, which has its own limit.
    """
    used = usage_delta(before, after)
    large = used["large"]
    warming = WarmingUsage(
        calls=large["calls"],
        failed_calls=failed,
        input_tokens=large["input_tokens"],
        cached_tokens=large["cached_tokens"],
        output_tokens=large["output_tokens"],
        unaccounted_tokens=used["unaccounted_tokens"],
    )
    return add_usage(after, {"warming": warming, "large": {"failed_calls": -large["failed_calls"]}})
