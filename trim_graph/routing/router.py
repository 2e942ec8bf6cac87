"""The rules of routing: who writes next, whether a draft is accepted, when to ask a human or to end.

Pure: no LangGraph, no I/O, no model. `Router.next` maps a view of the run to one action with its update of
the state. The graph, an agent's turn, lookahead and offline replay use the same router.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import takewhile
from typing import Any, Literal, cast

from pydantic import TypeAdapter, ValidationError

from trim_graph import process
from trim_graph.budget.limits import Budget, RemainingBudget, Shortage, cost_limit, grant, shortage, tightest
from trim_graph.budget.usage import LargeUsage, Prices, Usage, warming_usage
from trim_graph.conversation import extract_answer
from trim_graph.errors import InputError, SettingsError
from trim_graph.events import EventName
from trim_graph.policies.base import DECISIONS, NEXT_WRITERS, WRITERS, Choice, Observation, Policy, checked
from trim_graph.prompt_size import UnboundedPrompt
from trim_graph.segmentation import (
    DelimiterSteps,
    FunctionSteps,
    Segmentation,
    TokenSteps,
    cut_text,
    separator_of,
)
from trim_graph.settings import Settings, describe
from trim_graph.state import (
    SCHEMA_VERSION,
    DecisionRecord,
    Draft,
    Failure,
    HumanResponse,
    InFlight,
    PendingInterrupt,
    Probe,
    Run,
    Step,
    StepRequest,
    Stopped,
    TrimState,
    check_schema,
    diff_update,
)

from . import explain
from .drafts import partial_tokens, rejected_draft, split_into_steps

SCORED_ROUND = 6
"""Supersteps reserved for a draft with a decision: generate, score, route, generate, route, finalize."""
PLAIN_ROUND = 3
"""Supersteps reserved for a step that needs no decision: generate, route, finalize."""
PROBE = 2
"""Supersteps that a probe adds to a step: generate, route."""
RECURSION_FLOOR = 1 + PROBE + SCORED_ROUND + 1
"""Lowest recursion limit of a run: the first `route`, the longest round, LangGraph's final check."""
LIMIT_REACHED = (
    "the recursion limit is reached: give the call's config a higher recursion_limit; a chain (a | graph) "
    "has LangChain's 25 unless its config names one"
)
WARM_TOKENS = 1
"""Tokens that the large model writes where it only reads a prompt; servers take no call for none."""
MAX_LARGE_FAILURES = 3
"""Failed calls of the large model after which a run stops calling it, so that a dead server does not cost a
timeout at every step."""
REPEATED_CHARACTERS = 20
"""Characters below which repeated steps are short, such as ``end`` or a row of a table. Short steps must
repeat more often, until as many characters repeat as of steps of this length."""
REPEATED_ANSWERS = 3
"""Factor by which a boxed answer must repeat more often than a step: the questions of one message may have
the same answer a few times in a row."""

_NO_LIMIT = (explain.LARGE_FAILURES, explain.UNBOUNDED)

CountPrompt = Callable[[Sequence[Step], str], int]
"""Gets accepted steps and the partial text of the next one; returns an upper bound of the large model's
prompt in tokens. Raises `trim_graph.prompt_size.UnboundedPrompt` if there is no bound."""


def settings_of(run: Run) -> Settings:
    """Returns the settings of a run, as they were stored when it began.

    Raises:
        SettingsError: Another release began the run, or the stored settings are not valid (an edited state).
    """
    if run["schema"] != SCHEMA_VERSION:
        check_schema(run)
    for known, settings in _recent:
        if known == run["settings"]:
            return settings
    return _read(run["settings"], run["id"])


_recent: tuple[tuple[dict[str, Any], Settings], ...] = ()
"""Settings read last, newest first: every node reads them, and most runs have the same ones."""
_RECENT_KEPT = 8


def _read(stored: dict[str, Any], run: str) -> Settings:
    global _recent
    try:
        settings = Settings.model_validate(stored)
    except ValidationError as error:
        raise SettingsError(f"the stored settings of run {run} are not valid: {describe(error)}") from error
    # A copy, since the owner of the state may change it in place.
    _recent = ((deepcopy(stored), settings), *_recent[: _RECENT_KEPT - 1])
    return settings


def policy_of(settings: Settings, own: Policy | None) -> Policy:
    """Returns the policy of a run: the one that its context names, or the graph's own.

    Raises:
        SettingsError: The context's policy is not valid.
    """
    if settings.policy is not None:
        return _built(json.dumps(settings.policy, sort_keys=True))
    assert own is not None
    return own


@lru_cache(maxsize=64)
def _built(spec: str) -> Policy:
    from trim_graph.policies.parsing import (  # slow to import, and most calls name none
        PolicyConfig,
        invalid_policy,
    )

    try:
        policy: Policy = TypeAdapter[Any](PolicyConfig).validate_python(json.loads(spec)).build()
    except ValidationError as error:
        raise invalid_policy("the context's policy", error) from error
    return policy


def segmentation_of(settings: Settings, own: Segmentation | None) -> Segmentation:
    """Returns the segmentation of a run.

    Args:
        settings: Settings of the run, which hold only the name of a user's function.
        own: The graph's segmentation.

    Raises:
        SettingsError: The run began with a function that this graph does not have.
    """
    chosen = settings.segmentation
    if chosen is None:
        return _delimiter_steps(settings.delimiter)
    if not isinstance(chosen, FunctionSteps):
        return chosen
    if not isinstance(own, FunctionSteps) or own.name != chosen.name:
        raise SettingsError(
            f"this run was begun with the segmentation function {chosen.name}; build the graph "
            "with it to resume it"
        )
    return own


def step_tokens_of(settings: Settings) -> int:
    """Returns the most tokens of one step."""
    most, chosen = settings.max_step_tokens, settings.segmentation
    return min(most, chosen.tokens) if isinstance(chosen, TokenSteps) else most


@lru_cache(maxsize=64)
def _delimiter_steps(delimiter: str) -> Segmentation:
    return DelimiterSteps(delimiter=delimiter)


class RunView:
    """A run, as one execution of a node reads it from the state.

    Args:
        state: State of the run; not changed.
        policy: The graph's policy, which the run's settings may override; only the router needs it.
        segmentation: The graph's segmentation.
        accounts_left: What is left in each account of the run; only the router needs it.
        count_prompt: Bounds the large model's prompt; only the router needs it, if prompts have a price.
    """

    def __init__(
        self,
        state: TrimState,
        policy: Policy | None = None,
        segmentation: Segmentation | None = None,
        *,
        accounts_left: Mapping[str, RemainingBudget] | None = None,
        count_prompt: CountPrompt | None = None,
    ) -> None:
        self.state = state
        self.run: Run = state["run"]
        self.settings = settings_of(self.run)
        self.budget: Budget = self.settings.budget
        self.prices: Prices = self.settings.prices
        self.accounts: Mapping[str, Mapping[str, Any]] = self.run.get("accounts") or {}
        self.usage: Usage = state["usage"]
        self.steps: Sequence[Step] = state["steps"]
        self.draft: Draft | None = state.get("draft")
        self.request: StepRequest | None = state.get("request")
        self.accounts_left: Mapping[str, RemainingBudget] = accounts_left or {}
        self.count_prompt = count_prompt
        self._own_policy, self._own_segmentation = policy, segmentation

    def after(self, state: TrimState) -> RunView:
        """Returns the view of the same run in a later state; what the change leaves alone is kept.

        Args:
            state: With the same ``run``, and no account to draw from.
        """
        view = object.__new__(RunView)
        view.__dict__.update(self.__dict__)
        view.state, view.steps, view.usage = state, state["steps"], state["usage"]
        view.draft, view.request = state.get("draft"), state.get("request")
        view.__dict__.pop("scores", None)
        if view.usage is not self.usage:
            for name in ("left", "seconds_left"):
                view.__dict__.pop(name, None)
        return view

    @cached_property
    def policy(self) -> Policy:
        """The policy in effect."""
        return policy_of(self.settings, self._own_policy)

    @cached_property
    def segmentation(self) -> Segmentation:
        """Segmentation of the run, which finds the ends of steps."""
        return segmentation_of(self.settings, self._own_segmentation)

    @cached_property
    def step_tokens(self) -> int:
        """Most tokens of one step."""
        return step_tokens_of(self.settings)

    @cached_property
    def left(self) -> RemainingBudget:
        """What is left of the limits of the run."""
        return self.budget.left(self.usage, self.prices)

    @cached_property
    def seconds_left(self) -> float | None:
        """What is left of the active seconds of the run; None without a limit."""
        return None if self.budget.seconds is None else self.left.seconds

    @cached_property
    def scores(self) -> tuple[float | None, ...]:
        """One score in [0, 1] per accepted step; None for a step that was never scored."""
        scores = self.state["scores"]
        return tuple([scores.get(str(index)) for index in range(len(self.steps))])


@dataclass(frozen=True, slots=True)
class Event:
    """One step event of a run, for ``stream_mode="custom"``; its fields are in `trim_graph.events`."""

    name: EventName
    content: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AcceptedText:
    """Text that joins the final message, for ``stream_mode="messages"``."""

    text: str


@dataclass(frozen=True, slots=True)
class Action:
    """The next action of a run.

    Attributes:
        update: Update of the state.
        events: Events for streams, in order.
    """

    update: dict[str, Any]
    events: Sequence[Event | AcceptedText]


@dataclass(frozen=True, slots=True)
class WarmRequest:
    """A call of the large model that reads the steps so far, so that its cache holds them for a rewrite.

    Attributes:
        steps: The accepted steps.
        prompt_tokens: Upper bound of the prompt in tokens; 0 if prompts have no price.
    """

    steps: Sequence[Step]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Generate(Action):
    """A writer is called for the step that ``update["request"]`` requests.

    Attributes:
        warm: Call of the large model that may be made in the background meanwhile; None if none is of use.
    """

    warm: WarmRequest | None = None


class AskHuman(Action):
    """The run is interrupted for a human; ``update["pending_interrupt"]`` holds the reason."""


class Finish(Action):
    """The run ends, or the turn of an agent; ``update["stopped"]`` names the reason."""


def end_of_solution(
    steps: Sequence[Step], settings: Settings, *, at_limit: bool = False
) -> Literal["finished", "loop", "max_steps"] | None:
    """Returns why a solution ends with its last step by itself; None if another one follows.

    Args:
        steps: The accepted steps, at least one.
        settings: Settings of the run.
        at_limit: Whether the last step is cut because the solution may have no further token.
    """
    if steps[-1]["end"] == "eos":
        return "finished"
    if _loop_at_end(steps, settings, at_limit=at_limit) is not None:
        return "loop"
    return "max_steps" if len(steps) >= settings.max_steps else None


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """Options of a router.

    Attributes:
        unit: What is routed. ``step``: a part of one solution; the large model may write all further steps at
            once. ``turn``: a whole message of an agent. It may hold tool calls, so a turn that was cut off is
            useless, no interrupt is possible within it, and the agent's own node begins the next one.
    """

    unit: Literal["step", "turn"] = "step"


class Router:
    """Decides the next action of a run.

    Args:
        options: Options; default: the steps of a solution.
    """

    def __init__(self, options: RouterOptions | None = None) -> None:
        self.options = options or RouterOptions()

    def next(self, view: RunView) -> Action:
        """Returns the next action, given the state that the last node left.

        Args:
            view: View of the run.

        Raises:
            SettingsError: The policy's answer is not valid.
            InputError: The conversation fills the contexts of both models.
        """
        return _Decision(view, self.options).take()

    def if_kept(self, view: RunView) -> Action | None:
        """Returns the next action if the draft is accepted and the small model writes on, for speculation.

        The draft has no decision yet, so neither policy nor limits are applied.

        Args:
            view: View of the run before the draft's score is known.

        Returns:
            The action; None if the policy may choose another next writer.
        """
        if view.draft is None or view.request is None or not view.policy.small_follows:
            return None
        return _Decision(view, self.options, foreseen=True).accept(view.draft, view.request)

    def renewed(self, view: RunView) -> Action:
        """Returns the action for the request in the state, now that the whole prompt with tools is known."""
        request = view.request
        decision = _Decision(view, self.options)
        if request is None:
            return decision.take()
        if request["writer"] == "small":
            exhausted = decision.leaves_no_choice(request)
        else:
            granted, exhausted = decision.grant(request["max_tokens"])
            request = StepRequest(**{**request, "max_tokens": granted})
        if exhausted is None:
            return decision.write(request)
        decision.note_exhausted(exhausted)
        if decision.stops(exhausted):
            return decision.finish("budget")
        because = decision.explain_exhausted(exhausted, request.get("why"))
        return decision.write(decision.small_request(why=explain.left_to("small", because)))

    def for_fallback(self, view: RunView, request: StepRequest) -> StepRequest | None:
        """Returns the request for a writer's next fallback; None if the budget leaves nothing for it."""
        if request["writer"] == "small":
            return request
        granted, _ = _Decision(view, self.options).grant(request["max_tokens"])
        return StepRequest(**{**request, "max_tokens": granted}) if granted else None

    def replaces_cut_turn(self, view: RunView, request: StepRequest) -> bool:
        """Returns whether the small model's turn can replace the large one's that was cut off."""
        return _Decision(view, self.options).replaces_cut_turn(request)


class _HandedOver(Policy):
    """Policy after a handover: the large model writes all further steps, without decisions."""

    needs_score = False
    decides = False

    def next_writer(self, observation: Observation) -> str:
        return "large_to_end"

    def __repr__(self) -> str:
        return "the handover"


@dataclass
class _Decision:
    """One decision in progress: the view, and the changes so far."""

    view: RunView
    options: RouterOptions
    foreseen: bool = False
    """Whether the draft has no decision yet; see `Router.if_kept`."""
    update: dict[str, Any] = field(default_factory=dict)
    events: list[Event | AcceptedText] = field(default_factory=list)

    def __post_init__(self) -> None:
        view = self.view
        self.state, self.settings = view.state, view.settings
        self.policy = _HandedOver() if self.state.get("handed_over") else view.policy
        self.steps: list[Step] = list(view.steps)
        self.scores = list(view.scores)
        self.left = view.left
        failed = self.state.get("failed")
        timed_out = failed is not None and "timed_out" in failed
        self.out_of_time = timed_out or (self.left.seconds is not None and self.left.seconds <= 0)
        self.memory = self.state.get("memory")
        self.notes: list[str] = list(self.state.get("notes", []))
        self._prompts: dict[tuple[int, str], tuple[int, bool]] = {}
        self._shortages: dict[str, Shortage] = {}

    @property
    def step_tokens(self) -> int:
        """Most tokens of the next step: what one may have, within what is left of the solution's limit."""
        left = self._tokens_left()
        return self.view.step_tokens if left is None else max(1, min(self.view.step_tokens, left))

    def _tokens_left(self) -> int | None:
        """Returns what is left of the limit on a solution's tokens; None without one, as of an agent."""
        most = self.settings.max_tokens
        if most is None or self.options.unit == "turn":
            return None
        return most - sum(step["tokens"] for step in self.steps)

    def take(self) -> Action:
        """Returns the next action, given the state that the last node left."""
        draft, request = self.view.draft, self.view.request
        if (human_response := self.state.get("human_response")) is not None:
            acted = self._act_on(human_response, draft, request)
            if acted is not None:
                return acted
        if (failed := self.state.get("failed")) is not None:
            assert request is not None
            if way_out(failed, self.settings, self.steps, solution=self.options.unit == "step") == "end":
                return self._end_with_full_context(failed, draft, request)
            if self.out_of_time:  # a draft that was not rated in time stays
                return self.finish("deadline") if draft is None else self.accept(draft, request)
            return self._fall_back(failed, draft, request)
        if draft is not None:
            assert request is not None
            return self._judge(draft, request)
        if request is not None and "ended" in request:
            return self.finish("finished")
        if request is not None and (request["attempt"] > 0 or "interrupted" in request):
            return self.finish("deadline") if self.out_of_time else self._write_again(request)
        return self._next_writer(request)

    def _write_again(self, request: StepRequest) -> Action:
        """Requests a step again; text of earlier attempts counts for the limit on the solution's tokens."""
        request = StepRequest(**request)
        request.pop("warm", None)  # the call was started with the first attempt
        if (left := self._tokens_left()) is not None:
            left -= partial_tokens(request, self.steps[-1] if self.steps else None)
            if left <= 0:
                return self.finish("max_tokens")
            request = StepRequest(**{**request, "max_tokens": min(request["max_tokens"], left)})
        return self.write(request)

    # Who writes the next step?

    def _next_writer(self, probed: StepRequest | None = None) -> Action:
        if len(self.steps) >= self.settings.max_steps:
            return self.finish("max_steps")
        if (left := self._tokens_left()) is not None and left <= 0:
            return self.finish("max_tokens")
        if self.out_of_time:
            return self.finish("deadline")
        if self.foreseen:
            return self.write(self.small_request())
        entropy = probed["probe"]["entropy"] if probed is not None and "probe" in probed else None
        seen = self._observation("next_writer", entropy=entropy)
        answers = NEXT_WRITERS if entropy is None else WRITERS
        choice = checked(self.policy.next_writer(seen), answers, self.policy, self.memory)
        if choice.value == "probe":
            return self._probe()
        request, exhausted, why = None, None, None
        if choice.value != "small":
            why = explain.named(self.policy, seen, choice.value, self.options.unit)
            request, exhausted = self.large_request(choice.value == "large_to_end", why)
            if self.asks(exhausted):  # before the choice is remembered: it is asked for again
                return self._ask("budget", exhausted, draft=None, request=probed)
        elif self.policy.decides:
            exhausted = self.grant(self.step_tokens)[1]
            if self.asks(exhausted):  # only if the policy wants the large model
                exhausted = None
        self._remember(choice.memory)
        if request is not None:
            return self.write(request)
        if exhausted:
            self.note_exhausted(exhausted)
            if self.stops(exhausted):
                return self.finish("budget")
            why = explain.left_to("small", self.explain_exhausted(exhausted, why))
        if (self.policy.decides and not exhausted) or self.settings.ask_below is not None:
            return self.write(self.small_request())
        named = why or explain.named(self.policy, seen, choice.value, self.options.unit)
        return self.write(self.small_request(why=named))

    def _probe(self) -> Action:
        """Requests one token of the small model, unless the budget leaves no choice to its entropy."""
        if self.options.unit == "turn":
            raise SettingsError(
                f"policy {self.policy!r} wants a probe, one token of the small model, which says nothing of "
                "a turn with tool calls; choose a policy that decides on drafts, such as threshold(0.5)"
            )
        exhausted = self.grant(self.step_tokens)[1]
        if exhausted and not self.asks(exhausted):
            self.note_exhausted(exhausted)
            why = explain.left_to("small", self.explain_exhausted(exhausted))
            return self.finish("budget") if self.stops(exhausted) else self.write(self.small_request(why=why))
        request = self.small_request(why="")
        return self.write(
            StepRequest(
                **{**request, "max_tokens": 1, "probe": Probe(entropy=None, unobserved_probability=None)}
            )
        )

    # Does the draft stay?

    def _judge(self, draft: Draft, request: StepRequest) -> Action:
        if not request["needs_decision"]:
            return self.accept(draft, request)
        score, bar = draft["score"], self.settings.ask_below
        if bar is not None and score is not None and score < bar and self.state.get("human_response") is None:
            return self._ask("score", None, draft=draft, request=request)
        seen = self._observation("decide", draft)
        choice = checked(self.policy.decide(seen), DECISIONS, self.policy, self.memory)
        why = explain.decided(self.policy, seen, choice.value, self.options.unit)
        return self._carry_out(choice, draft, request, why)

    def _carry_out(
        self, choice: Choice, draft: Draft, request: StepRequest, why: str, *, by_human: bool = False
    ) -> Action:
        """Carries out the decision on a draft, as far as the budget allows."""
        record = self._record(choice.value, draft["score"])
        if "part" in draft:
            record["part"] = draft["part"]
        if by_human:
            record["by"] = "human"
        large: StepRequest | None = None
        ended: Stopped | None = None
        if choice.value != "accept":
            large, exhausted = self.large_request(choice.value == "handover", why)
            if self.asks(exhausted):  # before the choice is remembered: it is asked for again
                return self._ask("budget", exhausted, draft=draft, request=request)
            if large is None:
                assert exhausted is not None
                record["exhausted_limit"] = exhausted
                self.note_exhausted(exhausted)
                why = explain.left_to("draft", self.explain_exhausted(exhausted, why))
                ended = self._ends_before_calls(draft)
                if ended is None:
                    record["decision"] = "accept"
            if record["decision"] != "accept":
                record["discarded"] = step_from_draft(draft)
        self._remember(choice.memory)
        self._decide(record)
        if ended is not None:
            return self._end_before_calls(ended)
        return self.accept(draft, request, why) if large is None else self.write(large)

    def accept(
        self, draft: Draft, request: StepRequest, why: str | None = None, *, ends: Stopped | None = None
    ) -> Action:
        """Adds a draft to the solution, and returns the next action.

        Args:
            draft: The draft.
            request: Its request.
            why: Explanation; default: that of the request, or why there was no decision on the draft.
            ends: Why no step follows, whatever the draft is; None if that depends on the draft.
        """
        why = why or request.get("why") or self._undecided(draft)
        if self.options.unit == "turn":
            return self._accept_turn(draft, request, why)
        accepted: Sequence[Step] = [step_from_draft(draft)]
        if request["until_eos"]:
            way = self.view.segmentation.continuing(cut_text(self.steps))
            thinking = self.settings.thinking
            accepted = split_into_steps(
                accepted[0], way, delimiter=self.settings.delimiter, thinking=thinking
            )
        # A writer that was to continue to the end and used all remaining tokens leaves no further step.
        used_up = request["until_eos"] and request["max_tokens"] >= self._tokens_to_end()
        self._keep(accepted, draft["score"], why)
        end = end_of_solution(self.steps, self.settings, at_limit=used_up)
        if end != "finished" and ends is not None:
            return self.finish(ends)
        if end == "loop":
            loop = _loop_at_end(self.steps, self.settings, at_limit=used_up)
            self.note(f"the run has ended in a loop: {loop}")
        if end is not None:
            return self.finish(end)
        if used_up and not self.out_of_time:
            left = self._tokens_left()
            return self.finish("max_steps" if left is None or left > 0 else "max_tokens")
        return self._next_writer()

    def _undecided(self, draft: Draft) -> str | None:
        """Explains a draft without the decision that its request asked for; None if that is unknown."""
        if not _is_routed(draft, self.settings):
            assert self.settings.thinking is not None
            return explain.not_routed(draft["part"], self.settings.thinking.routed)
        return explain.NO_TIME if self.out_of_time else None

    def _accept_turn(self, draft: Draft, request: StepRequest, why: str | None) -> Action:
        """Ends an agent's turn with this draft, unless it was cut off and the small model has a better."""
        cut = draft["end"] == "length"
        if cut and draft["writer"] == "large" and self.replaces_cut_turn(request):
            cut_off = f"the large model's turn was cut off at {request['max_tokens']} tokens"
            self.note(cut_off)
            return self._instead_of_large(self._record("accept", None, fallback=cut_off), cut_off)
        if why == explain.NO_TIME and (ended := self._ends_before_calls(draft)) is not None:
            return self._end_before_calls(ended)
        self._keep([step_from_draft(draft)], draft["score"], why)
        if request["until_eos"]:
            self.update["handed_over"] = True
        if cut:
            self.note(f"a turn of the {draft['writer']} model was cut off at {request['max_tokens']} tokens")
        return self.finish("finished" if draft["end"] == "eos" else "")

    def _ends_before_calls(self, draft: Draft) -> Stopped | None:
        """Returns the limit that ends an agent before a draft's tool calls; None if the draft may stay.

        Args:
            draft: A draft that was rejected, or that nobody could decide on. No turn would follow its calls,
                and tools have effects. A solution keeps such a draft, and an agent an answer.
        """
        if self.options.unit == "step" or draft["end"] != "delimiter":
            return None
        if self.out_of_time:
            return "deadline"
        exhausted = self.grant(self.step_tokens)[1]
        return "budget" if exhausted is not None and self.stops(exhausted) else None

    def _end_before_calls(self, limit: Stopped) -> Action:
        self.note("the agent has ended before its last draft was accepted: no tool call of it is executed")
        return self.finish(limit)

    def replaces_cut_turn(self, request: StepRequest) -> bool:
        """Returns whether the small model's turn can replace the large one's that was cut off."""
        kept = self._rejected_draft()
        return request["max_tokens"] < self.step_tokens if kept is None else kept["end"] != "length"

    # What a human has answered

    def _ask(
        self,
        reason: Literal["budget", "score"],
        limit: str | None,
        *,
        draft: Draft | None,
        request: StepRequest | None,
        failed: Failure | None = None,
    ) -> Action:
        """Interrupts for a human; after the answer the router decides on the same state again.

        Args:
            reason: Reason of the interrupt.
            limit: The exhausted limit.
            draft: Draft that awaits a decision.
            request: Request of the draft, or of the step still to be written.
            failed: Earlier failure.
        """
        self._event("asked", step=len(self.steps), reason=reason, limit=limit)
        pending_interrupt = PendingInterrupt(reason=reason, limit=limit)
        return self._leave(
            AskHuman, pending_interrupt=pending_interrupt, draft=draft, request=request, failed=failed
        )

    def _act_on(
        self, human_response: HumanResponse, draft: Draft | None, request: StepRequest | None
    ) -> Action | None:
        """Carries out a human's response; None if new limits require another decision."""
        self._event("answered", step=len(self.steps), answer=human_response)
        if "step" in human_response:
            return self._by_hand(human_response["step"], ends=human_response["ends"], draft=draft)
        if "decision" in human_response:
            assert draft is not None
            assert request is not None
            choice = Choice(human_response["decision"], self.memory)
            why = explain.decided_by_human(choice.value, self.options.unit)
            return self._carry_out(choice, draft, request, why, by_human=True)
        if "more" in human_response:
            raised = ", ".join(f"{name} by {amount:g}" for name, amount in human_response["more"].items())
            self.note(f"a human raised the limits: {raised or 'none of those that are set'}")
            return None
        if human_response["continue_with"] == "stop":
            return self.finish("human")
        self.note("a human had the small model continue alone")
        waits = self.state.get("failed") is not None or (request is not None and request["writer"] == "large")
        if draft is not None or not waits:
            return None
        record = self._record("accept", None)
        record["by"] = "human"
        return self._instead_of_large(record, explain.HUMAN_CONTINUES_SMALL)

    def _by_hand(self, text: str, *, ends: bool, draft: Draft | None) -> Action:
        record = self._record("by_hand", None)
        record["by"] = "human"
        if draft is not None:
            record["score"], record["discarded"] = draft["score"], step_from_draft(draft)
        self._decide(record)
        step = Step(
            text=text.strip(),
            writer="human",
            model="human",
            tokens=0,
            mean_token_probability=None,
            end="eos" if ends else "delimiter",
        )
        if not ends and (separator := self._separator(draft)) is not None:
            step["separator"] = separator
        thinking, previous = self.settings.thinking, self.steps[-1] if self.steps else None
        if thinking is not None and (part := thinking.part_of(previous, step["text"])) is not None:
            step["part"] = part
        # To the end: what was written may be several steps.
        whole = StepRequest(**{**self.small_request(why=explain.BY_HAND), "until_eos": True, "max_tokens": 0})
        return self.accept(Draft(**step, score=None), whole)

    def _separator(self, draft: Draft | None) -> str | None:
        """Returns the separator of this solution's steps; None for the delimiter of the settings."""
        thinking = self.settings.thinking
        for step in (draft, *reversed(self.steps)):
            if step is None or step["end"] != "delimiter":
                continue
            separator = step.get("separator")
            # The close mark ends reasoning, which has ended already.
            if thinking is None or separator != thinking.close:
                return separator
        way = self.view.segmentation
        return way.delimiter if isinstance(way, DelimiterSteps) else None

    # What follows a failure: `on_small_error` and its like

    def _fall_back(self, failed: Failure, draft: Draft | None, request: StepRequest) -> Action:
        """Returns the way out of a failure that the settings declare.

        Args:
            failed: The failure.
            draft: Draft that the scorer could not rate; None if a writer failed.
            request: Request of the writer.
        """
        if "exhausted_limit" in failed:
            return self._exhausted_by_others(failed["exhausted_limit"], request)
        full, name = failed.get("context_full", False), _name(failed)
        if "no_step" in failed:
            self.note(f"the {name} wrote no step: {failed['error']}")
            if getattr(self.settings, f"on_{failed['part']}_error") == "raise":
                return self.finish("no_step")  # no error: the steps so far are an answer too
        else:
            why = f"the {name} failed: {failed['error']}"
            self.note(f"the context of the {name} is full" if full else why)
        if failed["part"] == "scorer":
            assert draft is not None
            return self._unrated(failed, draft, request)
        if failed["part"] == "large":
            return self._large_failed(failed, request)
        because = explain.failed(name, failed, self.settings)
        large, exhausted = self.large_request(False, explain.left_to("large", because))
        if large is not None:
            return self.write(large)
        assert exhausted is not None
        if self.asks(exhausted):
            return self._ask("budget", exhausted, draft=None, request=request, failed=failed)
        self.note_exhausted(exhausted)
        if full and not self.steps:
            raise InputError(f"no model has room for this conversation: {failed['error']}")
        return self.finish("length" if full else "failed")

    def _end_with_full_context(self, failed: Failure, draft: Draft | None, request: StepRequest) -> Action:
        """Ends the solution; a draft that the scorer had no room for stays."""
        self.note(f"the context of the {_name(failed)} is full: the solution ends here")
        if draft is None:
            return self.finish("length")
        return self.accept(draft, request, explain.NO_ROOM, ends="length")

    def _exhausted_by_others(self, limit: str, request: StepRequest) -> Action:
        """Returns the action after other runs exhausted an account before the large model could be called."""
        wanted = request.get("why")
        large, exhausted = self.large_request(request["until_eos"], wanted)
        if large is not None:  # there is some again: another run has used less than it had reserved
            return self.write(large)
        if self.asks(exhausted):
            failed = Failure(part="large", error="", exhausted_limit=limit)
            return self._ask("budget", exhausted, draft=None, request=request, failed=failed)
        return self._fall_back_to_small(exhausted or limit, wanted)

    def _fall_back_to_small(self, limit: str, wanted: str | None) -> Action:
        """Continues without the large model if an exhausted limit prevents a call requested of it."""
        self.note_exhausted(limit)
        if self._rejected_draft() is None and self.stops(limit):
            return self.finish("budget")
        record = self._record("accept", None)
        record["exhausted_limit"] = limit
        return self._instead_of_large(record, self.explain_exhausted(limit, wanted))

    def _unrated(self, failed: Failure, draft: Draft, request: StepRequest) -> Action:
        record = self._record("accept", None, fallback=f"the {_name(failed)} failed")
        because = explain.failed(_name(failed), failed, self.settings)
        if self.settings.on_scorer_error == "regenerate":
            large, exhausted = self.large_request(False, explain.left_to("large", because))
            if large is not None:
                record["decision"], record["discarded"] = "regenerate", step_from_draft(draft)
                self._decide(record)
                return self.write(large)
            assert exhausted is not None
            if self.asks(exhausted):
                return self._ask("budget", exhausted, draft=draft, request=request, failed=failed)
            record["exhausted_limit"] = exhausted
            self.note_exhausted(exhausted)
            if (ended := self._ends_before_calls(draft)) is not None:
                record["decision"], record["discarded"] = "regenerate", step_from_draft(draft)
                self._decide(record)
                return self._end_before_calls(ended)
            because = self.explain_exhausted(exhausted, because)
        self._decide(record)
        return self.accept(draft, request, explain.left_to("draft", because))

    def _large_failed(self, failed: Failure, request: StepRequest) -> Action:
        if self._given_up():
            self.note(f"the large model failed {MAX_LARGE_FAILURES} times: it is not called any more")
        name = _name(failed)
        because = explain.failed(name, failed, self.settings, request.get("why"))
        return self._instead_of_large(self._record("accept", None, fallback=f"the {name} failed"), because)

    def _instead_of_large(self, record: DecisionRecord, because: str) -> Action:
        """Keeps the draft that the large model was to replace, or has the small one write the step.

        Args:
            record: Of the decision, where there is such a draft.
            because: Beginning of the explanation.
        """
        kept = self._rejected_draft()
        small = self.small_request(why=explain.left_to("small" if kept is None else "draft", because))
        if kept is None:
            return self.write(small)
        if (ended := self._ends_before_calls(kept)) is not None:
            return self._end_before_calls(ended)
        record["score"] = kept["score"]
        self._decide(record)
        return self.accept(kept, small)

    def _rejected_draft(self) -> Draft | None:
        return rejected_draft(self.state["decisions"], len(self.steps))

    # What may be requested

    def small_request(self, why: str | None = None) -> StepRequest:
        """Returns a request for a draft; it is scored only if a decision depends on the score.

        Args:
            why: Explanation of a step that is accepted as it is; None if its draft needs a decision.
        """
        needs_decision = why is None
        request = StepRequest(
            writer="small",
            until_eos=False,
            max_tokens=self.step_tokens,
            needs_score=needs_decision and (self.policy.needs_score or self.settings.ask_below is not None),
            needs_decision=needs_decision,
            partial_text="",
            attempt=0,
        )
        return _explained(request, why)

    def large_request(self, until_eos: bool, why: str | None) -> tuple[StepRequest | None, str | None]:
        """Returns a request for a step or for all further ones within the limits, or the exhausted limit.

        Args:
            until_eos: Whether the large model is to write all further steps.
            why: Explanation of the step; None if it is unknown.
        """
        granted, exhausted = self.grant(self._tokens_to_end() if until_eos else self.step_tokens)
        if granted == 0:
            return None, exhausted
        request = StepRequest(
            writer="large",
            until_eos=until_eos,
            max_tokens=granted,
            needs_score=False,
            needs_decision=False,
            partial_text="",
            attempt=0,
        )
        return _explained(request, why), None

    def grant(self, wanted: int, partial_text: str = "") -> tuple[int, str | None]:
        """Returns how many tokens the large model may generate and None, or 0 and the exhausted limit."""
        if self._given_up():
            return 0, explain.LARGE_FAILURES
        view = self.view
        prompt, bounded = self._prompt_tokens(partial_text)
        limit = None if bounded else cost_limit(view.budget, view.prices, view.accounts)
        if limit is not None:
            self.note(f"{limit} cannot be kept for this prompt: the large model is not called for it")
            return 0, explain.UNBOUNDED
        for account, left in (("", self.left), *view.accounts_left.items()):
            granted, exhausted = grant(view.budget, left, view.prices, wanted=wanted, prompt_tokens=prompt)
            if exhausted is not None:
                name = f"{exhausted} of {account}" if account else exhausted
                tokens = min(view.budget.min_tokens, wanted)
                self._shortages[name] = shortage(exhausted, left, view.prices, tokens, prompt)
                return 0, name
            wanted = granted
        return wanted, None

    def _given_up(self) -> bool:
        return self.view.usage["large"]["failed_calls"] >= MAX_LARGE_FAILURES

    def _tokens_to_end(self) -> int:
        """Returns what all steps that remain may take together; of an agent, what one turn may."""
        remain = 1 if self.options.unit == "turn" else self.settings.max_steps - len(self.steps)
        most, left = self.view.step_tokens * remain, self._tokens_left()
        return most if left is None else max(1, min(most, left))

    def _prompt_tokens(self, partial_text: str = "") -> tuple[int, bool]:
        """Returns the most tokens of the large model's prompt, and whether that is true of all it holds."""
        if not self.view.prices.large.input:
            return 0, True
        key = len(self.steps), partial_text
        if key not in self._prompts:
            self._prompts[key] = self._count_prompt(partial_text)
        return self._prompts[key]

    def _count_prompt(self, partial_text: str) -> tuple[int, bool]:
        assert self.view.count_prompt is not None  # or a limit on cost would take prompts for free
        try:
            return self.view.count_prompt(self.steps, partial_text), True
        except UnboundedPrompt as unbounded:
            self.note(
                f"the prompt holds a content block of type {unbounded.what}, whose tokens are not known "
                "before a call: a call of the large model that is cut off is charged without it"
            )
            return unbounded.least, False

    def leaves_no_choice(self, request: StepRequest) -> str | None:
        """Returns the exhausted limit for which no decision on a draft can be carried out; None if one can.

        A human decides too, on a draft with a low score, or on a larger budget.
        """
        if not request["needs_decision"] or not self.policy.decides or self.settings.ask_below is not None:
            return None
        exhausted = self.grant(self.step_tokens)[1]
        return None if self.asks(exhausted) else exhausted

    def asks(self, exhausted: str | None) -> bool:
        """Returns whether an exhausted limit interrupts the run for a human."""
        return self.view.budget.on_exhausted == "ask" and exhausted not in (None, *_NO_LIMIT)

    def stops(self, exhausted: str) -> bool:
        """Returns whether an exhausted limit ends the run."""
        return self.view.budget.on_exhausted == "stop" and exhausted not in _NO_LIMIT

    # Where to next?

    def write(self, request: StepRequest) -> Action:
        """Returns the action that sends a request to its writer."""
        if self.options.unit == "turn":
            return self._leave(Generate, request=request, in_flight=self._turn_in_flight(request))
        if request["writer"] == "large" and (request["attempt"] or "interrupted" in request):
            granted, exhausted = self.grant(request["max_tokens"], request["partial_text"])
            if granted == 0:
                assert exhausted is not None
                if self.asks(exhausted):
                    return self._ask("budget", exhausted, draft=None, request=request)
                return self._fall_back_to_small(exhausted, request.get("why"))
            request = StepRequest(**{**request, "max_tokens": granted})
            request.pop("interrupted", None)
        needed = SCORED_ROUND if request["needs_decision"] else PLAIN_ROUND
        if "probe" in request:
            needed = PROBE + (SCORED_ROUND if self.policy.decides else PLAIN_ROUND)
        # LangGraph counts one more check after the last superstep.
        if self.state["remaining_steps"] - self.foreseen <= needed:
            self.note(LIMIT_REACHED)
            return self.finish("recursion_limit")
        large = request["writer"] == "large"
        in_flight = self._in_flight(request["max_tokens"], request["partial_text"]) if large else None
        warm = self._warm_request(request)
        generate = self._leave(Generate, request=request, in_flight=in_flight)
        return generate if warm is None else Generate(generate.update, generate.events, warm)

    def _warm_request(self, request: StepRequest) -> WarmRequest | None:
        """Returns the call that warms the large model's cache beside a draft that it may have to rewrite.

        It takes nothing that a rewrite needs: what is left after it allows a whole step, and a call for each
        step that may follow.
        """
        may_be_rewritten = request["needs_decision"] or "probe" in request
        if not self.settings.warm_large or self.foreseen or request["writer"] != "small":
            return None
        if not may_be_rewritten or request["attempt"] or "interrupted" in request:
            return None
        if self.steps and self.steps[-1]["writer"] == "large":  # its cache holds what it wrote itself
            return None
        view, wanted = self.view, self.step_tokens
        if warming_usage(view.usage)["failed_calls"] >= MAX_LARGE_FAILURES or self.grant(wanted)[0] < wanted:
            return None
        prompt, _ = self._prompt_tokens()
        used = LargeUsage(WARM_TOKENS, 1, view.prices.large.cost(prompt, WARM_TOKENS))
        for left in (self.left, *view.accounts_left.values()):
            rest = left.after(used)
            granted, _ = grant(view.budget, rest, view.prices, wanted=wanted, prompt_tokens=prompt)
            calls = math.inf if rest.large_calls is None else rest.large_calls
            if granted < wanted or calls < self.settings.max_steps - len(self.steps):
                return None
        return WarmRequest(tuple(self.steps), prompt)

    def _turn_in_flight(self, request: StepRequest) -> InFlight | None:
        """Notes what a call of the large model in this turn may use, one in place of a draft included."""
        most = request["max_tokens"] if request["writer"] == "large" else 0
        if request["writer"] == "small" and (
            request["needs_decision"] or self.settings.on_small_error == "large"
        ):
            most = self.grant(self.step_tokens)[0]
        return self._in_flight(most) if most else None

    def _in_flight(self, max_tokens: int, partial_text: str = "") -> InFlight:
        return InFlight(
            writer="large",
            max_tokens=max_tokens,
            prompt_tokens=self._prompt_tokens(partial_text)[0],
            process=process.NAME,
        )

    def finish(self, reason: Literal["", Stopped]) -> Action:
        """Ends the run."""
        if not self.update.get("steps") and self.options.unit == "step":
            # LangGraph streams a message whole unless a chunk of it went before; those of a run that is
            # resumed went into another stream.
            self.events.append(AcceptedText(""))
        return self._leave(Finish, stopped=reason, request=None)

    def _leave(self, action: type[Action], **channels: Any) -> Action:
        """Returns an action; channels of the last nodes that it does not set are cleared."""
        done = dict.fromkeys(("draft", "in_flight", "failed", "pending_interrupt", "human_response"))
        return action(self.update | diff_update(self.state, done | channels), self.events)

    # What a decision leaves behind

    def _record(self, decision: str, score: float | None, *, fallback: str | None = None) -> DecisionRecord:
        record = DecisionRecord(step=len(self.steps), decision=decision, score=score)
        if fallback is not None:
            record["fallback"] = fallback
        return record

    def _decide(self, record: DecisionRecord) -> None:
        """Adds a decision record."""
        self.update["decisions"] = [record]
        self._event("decision", **record)

    def _keep(self, accepted: Sequence[Step], score: float | None, why: str | None) -> None:
        """Adds steps to the solution; score and explanation are those of the first."""
        first = len(self.steps)
        if why is not None:
            further = why if why == explain.BY_HAND else explain.CONTINUED
            whys = [why, *[further] * (len(accepted) - 1)]
            accepted = [Step(**{**step, "why": one}) for step, one in zip(accepted, whys, strict=True)]
        if score is not None:
            self.update["scores"] = {str(first): score}
        for index, step in enumerate(accepted, first):
            own = score if index == first else None
            self._event(
                "accepted",
                step=index,
                writer=step["writer"],
                text=step["text"],
                score=own,
                tokens=step["tokens"],
                **({"part": step["part"]} if "part" in step else {}),
                **({"why": step["why"]} if "why" in step else {}),
            )
            if self.options.unit == "step":
                # With the separator before it, so that the chunks join to the final message.
                between = separator_of(self.steps[-1], self.settings.delimiter) if self.steps else ""
                self.events.append(AcceptedText(between + step["text"]))
            self.steps.append(step)
            self.scores.append(own)
        self.update["steps"] = accepted

    def _observation(
        self, asked: str, draft: Draft | None = None, *, entropy: float | None = None
    ) -> Observation:
        """Returns what the policy observes.

        Args:
            asked: Method of the policy, ``next_writer`` or ``decide``; their random draws differ.
            draft: Draft to decide on.
            entropy: Entropy of the first token in nats, from a probe.
        """
        run, index = self.view.run, len(self.steps)
        return Observation(
            question=run["question"],
            index=index,
            max_steps=self.settings.max_steps,
            scores=tuple(self.scores),
            tokens=tuple([step["tokens"] for step in self.steps]),
            writers=tuple([step["writer"] for step in self.steps]),
            score=draft["score"] if draft else None,
            draft=draft["text"] if draft else None,
            draft_tokens=draft["tokens"] if draft else 0,
            draft_probability=draft["mean_token_probability"] if draft else None,
            draft_ends=draft["end"] == "eos" if draft else False,
            part=draft.get("part") if draft else None,
            probe_entropy=entropy,
            budget_left=tightest(self.left, accounts) if (accounts := self.view.accounts_left) else self.left,
            memory=self.memory,
            seed=f"{run['seed']}:{index}:{asked}",
        )

    def _remember(self, memory: Any) -> None:
        if memory != self.memory:
            self.memory = self.update["memory"] = memory

    def note_exhausted(self, exhausted: str) -> None:
        """Adds the note on what follows from an exhausted limit."""
        if exhausted == "seconds":
            self.note("the limit on seconds is reached: the run ends with the steps it has")
        elif exhausted not in _NO_LIMIT and not any(  # else noted when it happened
            note.startswith(f"the limit on {exhausted} ") for note in self.notes
        ):
            why = explain.used_up(exhausted, self._shortages.get(exhausted))
            self.note(f"{why}: the large model is not called any more")

    def explain_exhausted(self, exhausted: str, wanted: str | None = None) -> str:
        """Explains that the large model may not be called; see `explain.exhausted`."""
        return explain.exhausted(exhausted, self._shortages.get(exhausted), wanted)

    def note(self, note: str) -> None:
        """Adds a note for the user; a run has each note once."""
        if note not in self.notes:
            self.notes.append(note)
            self.update["notes"] = self.notes
            self._event("note", text=note)

    def _event(self, name: EventName, **content: Any) -> None:
        self.events.append(Event(name, content))


def _explained(request: StepRequest, why: str | None) -> StepRequest:
    return StepRequest(**{**request, "why": why}) if why else request


def _name(failed: Failure) -> str:
    return "scorer" if failed["part"] == "scorer" else f"{failed['part']} model"


def way_out(
    failed: Failure, settings: Settings, steps: Sequence[Step], *, solution: bool = True
) -> Literal["continue", "end"] | None:
    """Returns how a run goes on after a failed call, other than one that wrote no step.

    Args:
        failed: The failure.
        settings: Settings of the run.
        steps: The accepted steps.
        solution: Whether they form a solution, which ends if it fills a context; else they are an agent's
            turns, and another middleware may shorten the conversation.

    Returns:
        ``continue``: without the failed component. ``end``: the accepted steps are the solution. None: not at
        all, so that the error is raised.
    """
    part, full = failed["part"], solution and failed.get("context_full", False)
    # With its context full, the large model is skipped as with its budget spent.
    if "exhausted_limit" in failed or (full and part == "large"):
        return "continue"
    if getattr(settings, f"on_{part}_error") != "raise":
        return "continue"
    return "end" if full and steps else None


def request_after_draft(request: StepRequest, draft: Draft, settings: Settings, usage: Usage) -> StepRequest:
    """Returns the request of a draft that was just written: without a decision where nobody is to make one.

    A draft in a part that is not routed is accepted. So is any draft if no time is left to act on a decision.

    Args:
        request: Request of the draft.
        draft: The draft.
        settings: Settings of the run.
        usage: Usage of the run with the draft.
    """
    seconds = settings.budget.seconds
    late = seconds is not None and usage["seconds"] >= seconds
    if not late and _is_routed(draft, settings):
        return request
    return StepRequest(**{**request, "needs_decision": False, "needs_score": False})


def _is_routed(draft: Draft, settings: Settings) -> bool:
    """Returns whether the policy decides on drafts in this one's part of a thinking model's text."""
    part, thinking = draft.get("part"), settings.thinking
    return part is None or thinking is None or thinking.routed in ("both", part)


def step_from_draft(draft: Draft) -> Step:
    """Returns the draft without its score, which has a channel of its own."""
    kept = {**draft}
    del kept["score"]
    return cast(Step, kept)


def _loop_at_end(steps: Sequence[Step], settings: Settings, *, at_limit: bool) -> str | None:
    if settings.max_repeats is None:
        return None
    # Another limit than that of a step cuts these, so that a cut says nothing of a step.
    cuts = not at_limit and not isinstance(settings.segmentation, TokenSteps)
    return loop_in(steps, settings.max_repeats, cuts=cuts)


def loop_in(steps: Sequence[Mapping[str, Any]], max_repeats: int, *, cuts: bool = True) -> str | None:
    """Returns a description of the loop at the end of a solution; None if there is none.

    In a loop the last steps repeat word for word, or box the same answer repeatedly, or the last step, which
    its token limit cut, is one pattern repeated. Only the end of a solution counts. So a step that reappears
    later is no loop, nor is an answer restated once or twice.

    Args:
        steps: The accepted steps.
        max_repeats: Number of repetitions that make a loop, as in `trim_graph.Settings`.
        cuts: Whether a step that was cut may be a loop by itself.
    """
    return (
        _repeated_steps(steps, max_repeats)
        or _repeated_answer(steps, max_repeats)
        or (_repeated_pattern(steps, max_repeats) if cuts else None)
    )


def _repeated_steps(steps: Sequence[Mapping[str, Any]], max_repeats: int) -> str | None:
    texts = [step["text"].strip() for step in steps]
    for size in range(1, len(texts) // (max_repeats + 1) + 1):
        if texts[-1] != texts[-1 - size]:  # as with most steps
            continue
        repeats = _repeats_of_loop(sum(map(len, texts[-size:])), max_repeats)
        again = size * repeats
        if len(texts) >= again + size and texts[-again:] == texts[-again - size : -size]:
            what = "step was" if size == 1 else f"{size} steps were"
            return f"the last {what} written {repeats + 1} times word for word"
    return None


def _repeats_of_loop(characters: int, max_repeats: int) -> int:
    """Returns how often a text of so many characters is repeated in a loop; a short one more often."""
    return math.ceil(max_repeats * max(1.0, REPEATED_CHARACTERS / max(characters, 1)))


def _repeated_pattern(steps: Sequence[Mapping[str, Any]], max_repeats: int) -> str | None:
    text = steps[-1]["text"].strip() if steps and steps[-1]["end"] == "length" else ""
    if not text:
        return None
    # A text of period p begins with itself shifted by p (the border table of Knuth, Morris and Pratt).
    borders = [0]
    for letter in text[1:]:
        border = borders[-1]
        while border and text[border] != letter:
            border = borders[border - 1]
        borders.append(border + (text[border] == letter))
    period = len(text) - borders[-1]
    times = len(text) // period
    if times <= _repeats_of_loop(period, max_repeats):
        return None
    return f"the last step, cut at its token limit, is the same text {times} times"


def _repeated_answer(steps: Sequence[Mapping[str, Any]], max_repeats: int) -> str | None:
    last = _boxed(steps[-1]) if steps else None
    if last is None:
        return None
    times = sum(1 for _ in takewhile(lambda step: _boxed(step) == last, reversed(steps)))
    most = REPEATED_ANSWERS * max_repeats
    return f"{times} steps in a row box the answer {last}" if times > most else None


def _boxed(step: Mapping[str, Any]) -> str | None:
    """Returns the answer that a step boxes; one in reasoning does not count, as reasoning tries answers."""
    if "\\boxed" not in step["text"] or step.get("part") == "reasoning":
        return None
    return extract_answer(step["text"])
