"""A call of a writer, for a step or for an agent's turn: what it may use, and what it is charged for."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage
from langgraph.errors import GraphBubbleUp

from trim_graph.adapters.refused_setting import LOGPROBS, refused_setting, remedy
from trim_graph.adapters.replies import Reply
from trim_graph.adapters.usage import Estimate, TokenCounter
from trim_graph.budget import Spend, Writer, budget_left, grant, spend_since
from trim_graph.errors import ChatModelContractError, FailedAttempts, SettingsError, is_context_full
from trim_graph.events import emit
from trim_graph.process import this_process
from trim_graph.settings import Settings, settings_of
from trim_graph.state import Failure, Order, TrimState

from .failures import (
    NEVER_CAUGHT,
    attempts_of,
    charge_attempts,
    charge_failed_call,
    charge_lost,
    failure,
    has_way_out,
    note_full,
    told_of_retries,
)
from .unsaved import Invocation, LargeCall, Place, charged_with, lost_calls, remember


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a call goes by."""

    order: Order
    spend: Spend
    """Before it."""
    notes: list[str]
    settings: Settings
    run: str
    """Id of the run."""
    id: str
    """Name of this execution of the call."""
    behind: str | None
    """Name of the last large call that ``spend`` holds."""
    place: Place
    """Where the run's checkpoints are."""
    invocation: Invocation | None
    """That makes it."""
    prompt_tokens: int
    """Of a call of the large model, for charges."""
    limit: float | None
    """Seconds it may take."""
    begun: bool
    """Whether the run has steps already, with which it may end."""
    solution: bool = True
    """Whether these are a solution's: an agent's conversation may be shortened by others, whom its error
    tells that it is too long."""
    retry: RetryGrant | None = None
    """What further attempts may use, where the model's adapter asks."""

    def charge(self) -> dict[str, Any]:
        """What a charge for tokens that nobody told goes by."""
        return {
            "max_tokens": self.order["max_tokens"],
            "prompt_tokens": self.prompt_tokens,
            "prices": self.settings.prices,
        }


class RetryGrant:
    """How many tokens another attempt of a large call may generate: what the limits leave.

    Args:
        call: Of the large model.
        reserved: Whether accounts that runs share have granted the call: then an attempt that may have cost
            something ends it, and `route` asks the accounts anew.

    Attributes:
        max_tokens: Of the attempt at hand.
        exhausted_limit: Name of the limit that left nothing; None while there was something left.
    """

    def __init__(self, call: Call, *, reserved: bool = False) -> None:
        self._call = call
        self._reserved = reserved
        self.max_tokens = call.order["max_tokens"]
        self.exhausted_limit: str | None = None

    def __call__(self, lost: FailedAttempts) -> int:
        """Return ``max_tokens`` of the next attempt; 0: there is to be none."""
        call = self._call
        if self._reserved and (lost["unknown"] or lost["input_tokens"] or lost["output_tokens"]):
            self.exhausted_limit = "a reservation"
            return 0
        spend = charge_lost(call.spend, "large", lost, **call.charge())
        left = budget_left(call.settings.budget, spend, call.settings.prices)
        self.max_tokens, self.exhausted_limit = grant(
            call.settings.budget,
            left,
            call.settings.prices,
            wanted=call.order["max_tokens"],
            prompt_tokens=call.prompt_tokens,
        )
        return self.max_tokens


def estimate_of(call: Call, counter: TokenCounter | None, prompt: Sequence[BaseMessage]) -> Estimate | None:
    """Return how a call's tokens may be estimated; None where a limit hangs on them and nobody said how.

    Args:
        call: The call.
        counter: Of its model.
        prompt: That was sent.
    """
    settings = call.settings
    limits = (settings.budget, settings.allowances.thread, settings.allowances.user)
    limited = call.order["writer"] == "large" and any(
        limit is not None and (limit.large_tokens is not None or limit.large_cost is not None)
        for limit in limits
    )
    if counter is None or (limited and counter.given is None):
        return None
    return Estimate(counter, prompt)


def notes_on(call: Call, reply: Reply, metadata: dict[str, Any]) -> list[str]:
    """Return the run's notes, with what a user should know of the answers of a writer, each once."""
    writer, found = call.order["writer"], list[str]()
    if metadata.get("continuation") == "prompt":
        found.append(f"the {writer} model continues by prompt: it cannot carry on a text exactly")
    if reply.estimated is not None:
        found.append(
            f"the {writer} model does not report its tokens: they are estimated by {reply.estimated}, and "
            "thoughts that it does not show are not among them"
        )
    return with_notes(call, [*found, *reply.notes])


def begin_call(state: TrimState, place: Place, invocation: Invocation | None = None) -> Call:
    """Look what the call that `route` ordered may use now.

    Args:
        state: Of the run.
        place: Where its checkpoints are.
        invocation: That makes the call.
    """
    order = state["order"]
    assert order is not None
    settings, spend = settings_of(state["run"]), state["spend"]
    left = budget_left(settings.budget, spend, settings.prices)
    return Call(
        order=order,
        spend=spend,
        notes=state["notes"],
        settings=settings,
        run=state["run"]["id"],
        id=uuid.uuid4().hex,
        behind=state.get("charged_call"),
        place=place,
        invocation=invocation,
        prompt_tokens=(state.get("in_flight") or {"prompt_tokens": 0})["prompt_tokens"],
        limit=None if left.seconds is None else max(left.seconds, 0.01),
        begun=bool(state["steps"]),
    )


def charged_first(state: TrimState, charge: dict[str, Any]) -> dict[str, Any]:
    """Charge lost calls and nothing else, so that the charge is kept whatever becomes of the next call."""
    order = state["order"]
    assert order is not None
    return {**charge, "in_flight": None, "order": Order(**{**order, "lost": True}), "draft": None}


def charge_lost_calls(
    state: TrimState, stored: Collection[str], invocation: Invocation | None = None
) -> dict[str, Any]:
    """Return the update that charges a state for large calls whose end or whose charge was lost.

    A crash ended the process of a call, an error its node, or its charge is in no checkpoint.

    Args:
        state: Of the run.
        stored: Names of large calls that its checkpoints hold; see `unsaved.stored_calls`.
        invocation: That charges.

    Returns:
        An update with ``spend`` and ``notes``; empty where nothing was lost.
    """
    update: dict[str, Any] = {}
    notes = list[str]()
    if lost := lost_calls(state, stored):
        update = charged_with(state, lost, invocation)
        for call in lost:
            how = "was cut off by an error" if call.raised else "was made, but its result could not be stored"
            notes.append(_told(how, call.used["large"]["output_tokens"] + call.used["unaccounted_tokens"]))
    in_flight = state.get("in_flight")
    if in_flight is not None and in_flight["process"] != this_process():
        tokens, prices = in_flight["max_tokens"], settings_of(state["run"]).prices
        spend: Spend = update.get("spend", state["spend"])
        charged = Spend(**{**spend, "large": {**spend["large"], "calls": spend["large"]["calls"] + 1}})
        charged["unaccounted_tokens"] += tokens
        charged["unaccounted_cost"] += prices.large.cost(in_flight["prompt_tokens"], tokens)
        update["spend"] = charged
        notes.append(_told("was cut off by a crash", tokens))
    for note in notes:
        emit("note", text=note)
    return update | {"notes": [*state["notes"], *notes]} if notes else update


def _told(how: str, tokens: int) -> str:
    return f"a call of the large model {how}; {tokens} tokens were charged for it"


@contextmanager
def charged_if_left(call: Call) -> Iterator[None]:
    """Remember what a large call may have used that leaves its node by an error: the run may go on later."""
    try:
        yield
    except (GraphBubbleUp, SettingsError):
        raise
    except BaseException as error:
        if call.order["writer"] == "large":
            spend = spend_of_raised(call, error)
            # Raised to the caller, who has it tried again: no reason to give the model up.
            spend["large"] = {**spend["large"], "failed_calls": call.spend["large"]["failed_calls"]}
            _remember(call, spend, raised=True)
        raise


def charged(call: Call, update: dict[str, Any]) -> dict[str, Any]:
    """Name a large call in the update that charges for it, and remember it until that is stored.

    A charge for tokens that nobody told is noted.
    """
    if call.order["writer"] != "large":
        return update
    _remember(call, update["spend"], raised=False)
    update = update | {"charged_call": call.id}
    tokens = update["spend"]["unaccounted_tokens"] - call.spend["unaccounted_tokens"]
    notes, note = update.get("notes", call.notes), _told("did not tell all that it had generated", tokens)
    if not tokens or note in notes or update.get("stopped") == "deadline":  # which has a note of its own
        return update
    emit("note", text=note)
    return update | {"notes": [*notes, note]}


def _remember(call: Call, spend: Spend, *, raised: bool) -> None:
    used = spend_since(call.spend, spend)
    remember(call.run, LargeCall(call.id, call.behind, used, call.place, raised, call.invocation))


def came_to_nothing(call: Call, error: Exception, seconds: float) -> dict[str, Any]:
    """Note why there is no answer, where the run has a way to go on; else raise."""
    # A client that was given the time limit may have an error of its own for it.
    if call.limit is not None and seconds >= call.limit and not isinstance(error, NEVER_CAUGHT):
        return _timed_out(call, error, seconds)
    writer = call.order["writer"]
    if "probe" in call.order and refused_setting(error) in LOGPROBS:
        raise ChatModelContractError(
            f"the {writer} model does not tell the entropy of its first token, which the policy asks for; it "
            f"refuses log-probabilities. Use ChatVLLM or ChatTransformers, or another policy ({error})"
        ) from error
    limit = None if call.retry is None else call.retry.exhausted_limit
    full = call.solution and is_context_full(error)
    # The small model goes on alone where the large one has no room, as where its budget is spent.
    goes_on = limit is not None or (full and writer == "large")
    if not goes_on and not has_way_out(error, writer, call.settings):
        if not (full and call.begun):
            if (told := remedy(error)) is not None:
                error.add_note(f"trim-graph, {writer}: {told}")
            raise error
        spend = Spend(**{**call.spend, "seconds": call.spend["seconds"] + seconds})
        notes = note_full(call.notes, f"{writer} model")
        return {"spend": spend, "draft": None, "in_flight": None, "stopped": "length", "notes": notes}
    spend = Spend(**{**call.spend, "seconds": call.spend["seconds"] + seconds})
    failed = failure(error, writer, context_full=full)
    notes = call.notes
    if limit is not None:
        notes = with_notes(call, [f"the {writer} model failed: {failed['error']}"])
        failed["refused"] = limit
    return {
        "spend": charge_failed_call(spend, writer, error, **call.charge()),
        "draft": None,
        "in_flight": None,
        "failed": failed,
        "notes": notes,
    }


def refused(call: Call, limit: str) -> dict[str, Any]:
    """Other runs have used an account up since `route` looked: let it find another way."""
    error = f"the limit on {limit} is spent"
    return {
        "spend": call.spend,
        "draft": None,
        "in_flight": None,
        "failed": Failure(part="large", error=error, refused=limit),
        "notes": call.notes,
    }


def spend_of_raised(call: Call, error: BaseException) -> Spend:
    """What a call has used that leaves the node by an error; all it might have, where it was cancelled."""
    return charge_failed_call(call.spend, call.order["writer"], error, **call.charge())


def _timed_out(call: Call, error: Exception, seconds: float) -> dict[str, Any]:
    """The writer did not answer in time: charge what it may have generated."""
    spend, writer = Spend(**{**call.spend, "seconds": call.spend["seconds"] + seconds}), call.order["writer"]
    spend[writer] = {**spend[writer], "calls": spend[writer]["calls"] + 1}
    note = f"a call of the {writer} model was cut off by the limit on seconds"
    if writer == "large":
        before = spend["unaccounted_tokens"]
        spend = charge_lost(spend, writer, attempts_of(error), **call.charge())
        note += f"; {spend['unaccounted_tokens'] - before} tokens were charged for it"
    emit("note", text=note)
    return {
        "spend": spend,
        "draft": None,
        "in_flight": None,
        "stopped": "deadline",
        "notes": [*call.notes, note],
    }


def billed(call: Call, reply: Reply, metadata: dict[str, Any], seconds: float) -> Spend:
    """Add an answer's tokens and time to the bill, and those of attempts that failed before it."""
    writer = call.order["writer"]
    before = call.spend[writer]
    spend = Spend(**{**call.spend, "seconds": call.spend["seconds"] + seconds})
    spend[writer] = {
        **before,
        "calls": before["calls"] + 1,
        "input_tokens": before["input_tokens"] + reply.input_tokens,
        "output_tokens": before["output_tokens"] + reply.output_tokens,
        "cached_tokens": before["cached_tokens"] + reply.cached_tokens,
    }
    lost = told_of_retries(metadata, writer)
    if writer == "large":
        written = reply.output_tokens - (lost["output_tokens"] if lost else 0)
        most = call.retry.max_tokens if call.retry else call.order["max_tokens"]
        spend["overshoot_tokens"] += max(0, written - most)
    return spend if lost is None else charge_attempts(spend, writer, lost, **call.charge())


def with_notes(call: Call, added: Sequence[str]) -> list[str]:
    """The notes of the run with some of an answer, each once a run."""
    new = [note for note in dict.fromkeys(added) if note not in call.notes]
    for note in new:
        emit("note", text=note)
    return [*call.notes, *new]


def used_between(before: Spend, after: Spend, writer: Writer) -> int:
    """Return the tokens that a writer has read and written meanwhile."""
    kinds = ("input_tokens", "output_tokens")
    return sum(after[writer][kind] - before[writer][kind] for kind in kinds)  # type: ignore[literal-required]


def too_late(call: Call) -> bool:
    """Tell whether the time ended on the way to a large call, which would be cut off and charged in full."""
    return call.order["writer"] == "large" and out_of_time(call, call.spend)


def not_made(call: Call) -> dict[str, Any]:
    """End the run without the call."""
    return {"spend": call.spend, "draft": None, "in_flight": None, "stopped": "deadline"}


def out_of_time(call: Call, spend: Spend) -> bool:
    """Tell whether no time is left in which anybody could act on a decision."""
    left = budget_left(call.settings.budget, spend, call.settings.prices).seconds
    return left is not None and left <= 0
