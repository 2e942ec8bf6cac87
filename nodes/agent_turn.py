"""One turn of an agent as a step: the nodes' own functions, where a writer gives a message, not a text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage
from langchain_core.runnables.config import ensure_config
from langgraph.types import Command

from trim_graph.adapters.replies import Reply
from trim_graph.adapters.usage import reports_usage
from trim_graph.budget import Spend
from trim_graph.errors import SettingsError
from trim_graph.events import emit
from trim_graph.ledger import Ledger
from trim_graph.policies.base import Observation, Policy
from trim_graph.process import this_process
from trim_graph.state import DecisionRecord, Draft, InFlight, Order, Step, TrimState

from .accepting import as_step, draft_turned_down
from .calling import (
    Call,
    begin_call,
    billed,
    came_to_nothing,
    charged,
    charged_if_left,
    notes_on,
    out_of_time,
    refused,
    spend_of_raised,
)
from .deadline import GRACE, call_within
from .drawing import Drawing, noting
from .failures import NEVER_CAUGHT, charge_failed_call, failure
from .route import Goto, Turn
from .unsaved import place_of


class AgentRouting(TrimState, total=False):
    """The state of a run whose steps are an agent's turns."""

    handed_over: bool
    """Whether the large model writes all turns that remain."""
    returns_direct: bool
    """Whether the agent ends with what the tools of the last turn return."""
    ended: bool
    """Whether the end of the question is in the summary, and told."""


class Answered(NamedTuple):
    """What a model has answered."""

    message: AIMessage
    last: bool
    """Whether the agent ends with it even where it calls a tool: structured output."""


Read = Callable[[Call, Answered], Reply]
"""Reads what a model has answered to a call."""


class _HandedOver(Policy):
    """The large model writes on; nobody decides any more."""

    needs_score = False
    decides = False

    def next_writer(self, observation: Observation) -> str:
        return "large_to_end"


@dataclass
class AgentTurn(Turn):
    """`route` for an agent: it decides as for a step, but the next turn is the agent's to begin."""

    prompt_tokens: Callable[[], int] = int
    """Most tokens that the conversation has, for limits on cost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.state.get("handed_over"):
            self.policy = _HandedOver()

    def accept(self, draft: Draft, order: Order) -> Command[Goto]:
        """End the turn with this draft, unless it was cut off and something better is to be had."""
        if draft["writer"] == "large" and draft["end"] == "length":
            better = self._instead_of_a_cut(order)
            if better is not None:
                return better
        self.keep([as_step(draft)], draft["score"])
        if order["to_end"]:
            self.update["handed_over"] = True
        if draft["end"] == "length":
            self.note(f"a turn of the {draft['writer']} model was cut off at {order['max_tokens']} tokens")
        return self.finish("finished" if draft["end"] == "eos" else "")

    def _instead_of_a_cut(self, order: Order) -> Command[Goto] | None:
        """Keep the small model's turn, or have it write one: half a tool call is of no use."""
        if not self.has_better_than_a_cut(order):
            return None
        told = f"the large model's turn was cut off at {order['max_tokens']} tokens"
        self.note(told)
        kept = draft_turned_down(self.state["decisions"], len(self.steps))
        small = self.small_order(decided=False)
        if kept is None:
            return self.write(small)
        score = kept["score"]
        self.decide(DecisionRecord(step=len(self.steps), decision="accept", score=score, fallback=told))
        return self.accept(kept, small)

    def has_better_than_a_cut(self, order: Order) -> bool:
        """Tell whether the small model's turn is to be had where the large one's was cut off."""
        kept = draft_turned_down(self.state["decisions"], len(self.steps))
        return order["max_tokens"] < self.step_tokens if kept is None else kept["end"] != "length"

    def again(self, order: Order) -> Order | None:
        """Return the order for a writer's next fallback; None where the budget has nothing left for it."""
        if order["writer"] == "small":
            return order
        granted, _ = self._grant(order["max_tokens"])
        return Order(**{**order, "max_tokens": granted}) if granted else None

    def begin(self) -> Command[Goto]:
        """Give the order that stands in the state, now that the whole prompt is known, tools included."""
        order = self.state["order"]
        if order is None:
            return self.take()
        if order["writer"] == "small":
            return self.write(order)
        granted, refused = self._grant(order["max_tokens"])
        if refused is None:
            return self.write(Order(**{**order, "max_tokens": granted}))
        self.note_refusal(refused)
        return self.finish("budget") if self.stops(refused) else self.write(self.small_order(decided=False))

    def show(self, step: Step) -> None:
        """The agent's own node streams the message."""

    def finish(self, reason: str) -> Command[Goto]:
        """End the turn; without a reason the agent goes on."""
        return self.go("finalize", stopped=reason, order=None)

    def write(self, order: Order) -> Command[Goto]:
        """Send an order to its writer, and note what a call of the large model in this turn may use."""
        most = order["max_tokens"] if order["writer"] == "large" else 0
        if order["writer"] == "small" and (order["decided"] or self.settings.on_small_error == "large"):
            most = self._grant(self.step_tokens)[0]
        in_flight = None
        if most:
            in_flight = InFlight(
                writer="large",
                max_tokens=most,
                prompt_tokens=self._prompt_tokens()[0],
                process=this_process(),
            )
        return self.go("generate_step", order=order, in_flight=in_flight)

    def _probe(self) -> Command[Goto]:
        raise SettingsError(
            f"policy {self.policy!r} wants a probe, one token of the small model, which tells nothing of a "
            "turn with tool calls; choose a policy that decides on drafts, such as threshold(0.5)"
        )

    def _tokens_to_end(self) -> int:
        return self.step_tokens

    def _count_prompt(self, lead: str) -> int:
        return self.prompt_tokens()


def generate_turn(
    state: TrimState,
    ask: Callable[[Call], Answered],
    *,
    read: Read,
    render: Callable[[AIMessage], str],
    fall_back: Callable[[Exception, Spend], Order | None],
    ledger: Ledger | None = None,
) -> dict[str, Any]:
    """Ask the writer that `route` named for one turn.

    Args:
        state: Of the run.
        ask: Makes the call.
        read: Reads the answer.
        render: Makes the text of a turn that scorers and policies see.
        fall_back: Orders the turn from the writer's next fallback, after an error and what it has cost;
            None: there is none.
        ledger: Keeps the accounts that runs share.

    Returns:
        An update of the state: a draft, an order for a fallback, or word of a failure.
    """
    call = replace(begin_call(state, place_of(ensure_config())), solution=False)
    drawing = Drawing(state, call.order, ledger)
    drawn = drawing.reserve(call.order["max_tokens"])
    if drawn.refused is not None:
        return refused(call, drawn.refused)
    call = _granted(call, drawn.tokens)
    begun = time.monotonic()
    try:
        update = _asked(call, partial(ask, call), begun, read, render, fall_back)
    except BaseException as error:
        drawing.settle(call.spend, spend_of_raised(call, error))
        raise
    return noting(update, state, drawing.settle(call.spend, update["spend"]))


async def agenerate_turn(
    state: TrimState,
    ask: Callable[[Call], Awaitable[Answered]],
    *,
    read: Read,
    render: Callable[[AIMessage], str],
    fall_back: Callable[[Exception, Spend], Awaitable[Order | None]],
    ledger: Ledger | None = None,
) -> dict[str, Any]:
    """As `generate_turn`, without blocking."""
    call = replace(begin_call(state, place_of(ensure_config())), solution=False)
    drawing = Drawing(state, call.order, ledger)
    if not drawing:
        return await _aasked(call, ask(call), time.monotonic(), read, render, fall_back)
    drawn = await drawing.areserve(call.order["max_tokens"])
    if drawn.refused is not None:
        return refused(call, drawn.refused)
    call = _granted(call, drawn.tokens)
    try:
        update = await _aasked(call, ask(call), time.monotonic(), read, render, fall_back)
    except BaseException as error:
        spend = spend_of_raised(call, error)
        await asyncio.shield(asyncio.to_thread(drawing.settle, call.spend, spend))
        raise
    note = await asyncio.shield(asyncio.to_thread(drawing.settle, call.spend, update["spend"]))
    return noting(update, state, note)


def _granted(call: Call, tokens: int) -> Call:
    """Cut the call to what the accounts grant."""
    return replace(call, order=Order(**{**call.order, "max_tokens": tokens}))


def _asked(
    call: Call,
    ask: Callable[[], Answered],
    begun: float,
    read: Read,
    render: Callable[[AIMessage], str],
    fall_back: Callable[[Exception, Spend], Order | None],
) -> dict[str, Any]:
    with charged_if_left(call):
        try:
            answered = call_within(call.limit, ask)
            reply = read(call, answered)
        except Exception as error:
            seconds = time.monotonic() - begun
            if (spend := _before_fallback(call, error, seconds)) and (order := fall_back(error, spend)):
                return charged(call, _fallen_back(call, error, spend, order))
            return charged(call, came_to_nothing(call, error, seconds))
        return charged(call, _noted(call, reply, time.monotonic() - begun, answered.message, render))


async def _aasked(
    call: Call,
    asked: Awaitable[Answered],
    begun: float,
    read: Read,
    render: Callable[[AIMessage], str],
    fall_back: Callable[[Exception, Spend], Awaitable[Order | None]],
) -> dict[str, Any]:
    with charged_if_left(call):
        try:
            async with asyncio.timeout(None if call.limit is None else call.limit + GRACE):
                answered = await asked
            if reports_usage(answered.message):
                reply = read(call, answered)
            else:  # what counts tokens may have to be loaded first
                reply = await asyncio.to_thread(read, call, answered)
        except Exception as error:
            seconds = time.monotonic() - begun
            if (spend := _before_fallback(call, error, seconds)) and (order := await fall_back(error, spend)):
                return charged(call, _fallen_back(call, error, spend, order))
            return charged(call, came_to_nothing(call, error, seconds))
        return charged(call, _noted(call, reply, time.monotonic() - begun, answered.message, render))


def _before_fallback(call: Call, error: Exception, seconds: float) -> Spend | None:
    """Charge a failed call after which a fallback may be asked; None where none may."""
    if isinstance(error, NEVER_CAUGHT) or (call.limit is not None and seconds >= call.limit):
        return None
    writer = call.order["writer"]
    spent = Spend(**{**call.spend, "seconds": call.spend["seconds"] + seconds})
    spend = charge_failed_call(spent, writer, error, **call.charge())
    # The writer has not failed yet.
    spend[writer] = {**spend[writer], "failed_calls": call.spend[writer]["failed_calls"]}
    return spend


def _fallen_back(call: Call, error: Exception, spend: Spend, order: Order) -> dict[str, Any]:
    writer = order["writer"]
    note = f"the {writer} model failed, so its fallback was asked: {failure(error, writer)['error']}"
    notes = call.notes if note in call.notes else [*call.notes, note]
    return {"spend": spend, "draft": None, "order": order, "notes": notes}


def _noted(
    call: Call, reply: Reply, seconds: float, message: AIMessage, render: Callable[[AIMessage], str]
) -> dict[str, Any]:
    order, metadata = call.order, message.response_metadata
    spend = billed(call, reply, metadata, seconds)
    draft = Draft(
        text=render(message),
        writer=order["writer"],
        model=reply.model,
        tokens=reply.output_tokens,
        mean_token_probability=reply.mean_token_probability,
        end=reply.end,
        score=None,
    )
    if message.id is not None:
        draft["message"] = message.id
    update: dict[str, Any] = {
        "spend": spend,
        "in_flight": None,
        "order": order,  # as it was granted
        "draft": draft,
        "notes": notes_on(call, reply, metadata),
    }
    if order["decided"]:
        emit("draft", writer=draft["writer"], text=draft["text"], tokens=draft["tokens"])
        if out_of_time(call, spend):
            update["order"] = Order(**{**order, "decided": False, "scored": False})
    return update
