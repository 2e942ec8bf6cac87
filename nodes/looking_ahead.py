"""When the small model writes ahead, and the bill of what it wrote for nothing."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.types import Command

from trim_graph.adapters.inner_model import bound_setting, caches, capable, native_async
from trim_graph.adapters.token_probability import TokenProbability
from trim_graph.budget import LookaheadSpend, Spend, WriterSpend, lookahead_spend
from trim_graph.policies import Policy
from trim_graph.prompt_size import UnboundedPrompt, prompt_bound
from trim_graph.run import SCORED_ROUND, policy_of
from trim_graph.segment import Segmentation
from trim_graph.settings import settings_of
from trim_graph.state import Order, Run, TrimState

from .accepting import as_step
from .node import tagged
from .step_call import StepCall, prepare_step
from .work_ahead import Ahead, GiveUp, Unbooked, Wasted, work_ahead_of


class LookingAhead:
    """A graph's way to have the small model write the next step while the scorer looks at this one.

    Args:
        small: The small model.
        scorer: The graph's; None has nothing to be waited for.
        policy: The graph's own.
        segmentation: The graph's own.
    """

    def __init__(
        self, small: Runnable[Any, Any], scorer: Any, policy: Policy, segmentation: Segmentation | None
    ) -> None:
        self._small, self._policy, self._segmentation = small, policy, segmentation
        self._hindered = _hindrance(small, scorer)
        self._warned = False
        self._unbooked = Unbooked()

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

    def begin(self, state: TrimState, config: RunnableConfig) -> None:
        """Begin the step behind the draft that the scorer is about to rate, where that may be of use."""
        under_way = work_ahead_of(config)
        wanted = bool(state["run"]["settings"].get("lookahead"))
        if not self.check(wanted=wanted, synchronous=under_way is None) or under_way is None:
            return
        call = self._next_call(state, config)
        if call is None:
            return
        arguments, give_up = call.arguments, None
        if _can_end(self._small):
            give_up = GiveUp(arguments.get("stop_when"))
            arguments = {**arguments, "stop_when": give_up}
        ahead = Ahead(
            run=call.run,
            key=call.key,
            max_tokens=call.order["max_tokens"],
            prompt_tokens=under_way.prompt_tokens or _bound(call),
            give_up=give_up,
        )
        told = tagged(call.config, "trim:lookahead")
        ask = partial(call.model.ainvoke, call.messages, told, **arguments)
        under_way.start(ahead, ask, self._unbooked)

    def _next_call(self, state: TrimState, config: RunnableConfig) -> StepCall | None:
        """The call that `generate_step` will make if the draft stays; None where it will make none."""
        draft, order = state["draft"], state["order"]
        assert draft is not None
        assert order is not None
        settings = settings_of(state["run"])
        if draft["end"] == "eos" or len(state["steps"]) + 1 >= settings.max_steps:
            return None
        # As `route` will look at it, one superstep from now.
        if state["remaining_steps"] - 1 <= SCORED_ROUND:
            return None
        if not policy_of(settings, self._policy).small_follows:
            return None
        after = {
            **state,
            "steps": [*state["steps"], as_step(draft)],
            "order": Order(**{**order, "lead": "", "attempt": 0}),
        }
        return prepare_step(after, config, {"small": self._small, "large": self._small}, self._segmentation)  # type: ignore[arg-type]

    def after_route(self, state: TrimState, command: Command[Any], config: RunnableConfig) -> Command[Any]:
        """Give up what the decision has made useless, and put on the bill what has ended so far."""
        update: dict[str, Any] = command.update  # type: ignore[assignment]
        run: Run = update.get("run") or state["run"]
        order: Order | None = update.get("order", state.get("order"))
        writes = order is not None and order["writer"] == "small" and "probe" not in order
        under_way = work_ahead_of(config)
        if under_way is not None and not (writes and command.goto == "generate_step"):
            under_way.drop()
        wasted = self._unbooked.take(run["id"])
        if wasted is None:
            return command
        spend = booked(update.get("spend") or state["spend"], wasted)
        return replace(command, update={**update, "spend": spend})

    def settle(self, state: TrimState) -> Spend | None:
        """Return the bill with what has ended since `route`; None where nothing has."""
        wasted = self._unbooked.take(state["run"]["id"])
        return None if wasted is None else booked(state["spend"], wasted)


def booked(spend: Spend, wasted: Wasted) -> Spend:
    """Put calls for steps that nobody took on the bill."""
    before, ahead = spend["small"], lookahead_spend(spend)
    small = WriterSpend(
        calls=before["calls"] + wasted.calls,
        input_tokens=before["input_tokens"] + wasted.input_tokens,
        output_tokens=before["output_tokens"] + wasted.output_tokens,
        cached_tokens=before["cached_tokens"] + wasted.cached_tokens,
        failed_attempts=before["failed_attempts"] + wasted.failed_attempts,
        failed_calls=before["failed_calls"] + wasted.failed_calls,
    )
    lookahead = LookaheadSpend(
        taken=ahead["taken"],
        discarded=ahead["discarded"] + wasted.calls,
        input_tokens=ahead["input_tokens"] + wasted.input_tokens,
        output_tokens=ahead["output_tokens"] + wasted.output_tokens,
        unaccounted_tokens=ahead["unaccounted_tokens"] + wasted.unaccounted_tokens,
    )
    return Spend(**{**spend, "small": small, "lookahead": lookahead})


def with_taken(spend: Spend) -> Spend:
    """Count a step that was written ahead and has become a draft."""
    ahead = lookahead_spend(spend)
    return Spend(**{**spend, "lookahead": LookaheadSpend(**{**ahead, "taken": ahead["taken"] + 1})})


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
