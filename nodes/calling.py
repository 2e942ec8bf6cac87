"""A call of a writer, for a step or for an agent's turn: what it may use, and what it is charged for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trim_graph.adapters.replies import Reply
from trim_graph.budget import Spend, budget_left, grant
from trim_graph.context import Settings
from trim_graph.events import emit
from trim_graph.process import this_process
from trim_graph.state import Order, TrimState

from .failures import charge_attempts, charge_failed_call, failure, has_way_out, told_of_retries


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a call goes by."""

    order: Order
    """With ``max_tokens`` as granted now."""
    spend: Spend
    """Before it."""
    notes: list[str]
    noted: bool
    """Whether ``notes`` holds more than the state does."""
    settings: Settings
    prompt_tokens: int
    """Of a call of the large model, for charges."""
    limit: float | None
    """Seconds it may take."""

    def charge(self) -> dict[str, Any]:
        """What a charge for tokens that nobody told goes by."""
        return {
            "max_tokens": self.order["max_tokens"],
            "prompt_tokens": self.prompt_tokens,
            "prices": self.settings.prices,
        }


def begin_call(state: TrimState) -> Call | None:
    """Look what the call that `route` ordered may use now; None where a crash has used up the budget."""
    order = state["order"]
    assert order is not None
    settings = Settings.model_validate(state["run"]["settings"])
    spend, notes = charge_lost_call(state, settings)
    left = budget_left(settings.budget, spend, settings.prices)
    if notes and order["writer"] == "large":
        in_flight = state["in_flight"]
        assert in_flight is not None
        granted, _ = grant(
            settings.budget,
            left,
            settings.prices,
            wanted=order["max_tokens"],
            prompt_tokens=in_flight["prompt_tokens"],
        )
        if granted == 0:
            return None
        order = Order(**{**order, "max_tokens": granted})
    return Call(
        order=order,
        spend=spend,
        notes=[*state["notes"], *notes],
        noted=bool(notes),
        settings=settings,
        prompt_tokens=(state.get("in_flight") or {"prompt_tokens": 0})["prompt_tokens"],
        limit=None if left.seconds is None else max(left.seconds, 0.01),
    )


def given_up(state: TrimState) -> dict[str, Any]:
    """The call lost in a crash has used up the budget: let `route` find another way."""
    settings = Settings.model_validate(state["run"]["settings"])
    spend, notes = charge_lost_call(state, settings)
    return {
        "spend": spend,
        "notes": [*state["notes"], *notes],
        "in_flight": None,
        "order": None,
        "draft": None,
    }


def charge_lost_call(state: TrimState, settings: Settings) -> tuple[Spend, list[str]]:
    """Charge a large call that another process began and nobody saw the end of."""
    in_flight, spend = state.get("in_flight"), state["spend"]
    if in_flight is None or in_flight["process"] == this_process():
        return spend, []
    lost = in_flight["max_tokens"]
    charged = Spend(**{**spend, "large": {**spend["large"], "calls": spend["large"]["calls"] + 1}})
    charged["unaccounted_tokens"] += lost
    charged["unaccounted_cost"] += settings.prices.large.cost(in_flight["prompt_tokens"], lost)
    note = f"a call of the large model was cut off by a crash; {lost} tokens were charged for it"
    emit("note", text=note)
    return charged, [note]


def came_to_nothing(call: Call, error: Exception, seconds: float) -> dict[str, Any]:
    """Note why there is no answer, where the run has a way to go on; else raise."""
    if isinstance(error, TimeoutError) and call.limit is not None and seconds >= call.limit:
        return _timed_out(call, seconds)
    writer = call.order["writer"]
    if not has_way_out(error, writer, call.settings):
        raise error
    spend = Spend(**{**call.spend, "seconds": call.spend["seconds"] + seconds})
    return {
        "spend": charge_failed_call(spend, writer, error, **call.charge()),
        "draft": None,
        "in_flight": None,
        "failed": failure(error, writer),
        "notes": call.notes,
    }


def _timed_out(call: Call, seconds: float) -> dict[str, Any]:
    """The writer did not answer in time: charge what it may have generated."""
    spend, writer = Spend(**{**call.spend, "seconds": call.spend["seconds"] + seconds}), call.order["writer"]
    spend[writer] = {**spend[writer], "calls": spend[writer]["calls"] + 1}
    note = f"a call of the {writer} model was cut off by the limit on seconds"
    if writer == "large":
        lost = call.order["max_tokens"]
        spend["unaccounted_tokens"] += lost
        spend["unaccounted_cost"] += call.settings.prices.large.cost(call.prompt_tokens, lost)
        note += f"; {lost} tokens were charged for it"
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
    if writer == "large":
        spend["overshoot_tokens"] += max(0, reply.output_tokens - call.order["max_tokens"])
    if (lost := told_of_retries(metadata, writer)) is not None:
        spend = charge_attempts(spend, writer, lost, **call.charge())
    return spend


def out_of_time(call: Call, spend: Spend) -> bool:
    """Tell whether no time is left in which anybody could act on a decision."""
    left = budget_left(call.settings.budget, spend, call.settings.prices).seconds
    return left is not None and left <= 0
