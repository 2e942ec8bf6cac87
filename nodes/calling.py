"""A call of a writer, for a step or for an agent's turn: what it may use, and what it is charged for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trim_graph.adapters.replies import Reply
from trim_graph.budget import Spend, budget_left
from trim_graph.context import Settings, settings_of
from trim_graph.events import emit
from trim_graph.process import this_process
from trim_graph.state import Failure, InFlight, Order, TrimState

from .failures import charge_attempts, charge_failed_call, failure, has_way_out, told_of_retries


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a call goes by."""

    order: Order
    spend: Spend
    """Before it."""
    notes: list[str]
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
    """Look what the call that `route` ordered may use now; None where a crash cut off the one before it."""
    order = state["order"]
    assert order is not None
    if _lost_call(state) is not None:
        return None
    settings, spend = settings_of(state["run"]), state["spend"]
    left = budget_left(settings.budget, spend, settings.prices)
    return Call(
        order=order,
        spend=spend,
        notes=state["notes"],
        settings=settings,
        prompt_tokens=(state.get("in_flight") or {"prompt_tokens": 0})["prompt_tokens"],
        limit=None if left.seconds is None else max(left.seconds, 0.01),
    )


def charged_first(state: TrimState) -> dict[str, Any]:
    """Charge the lost call and nothing else, so that the charge is kept whatever becomes of the next call."""
    order = state["order"]
    assert order is not None
    spend, notes = charge_lost_call(state)
    return {
        "spend": spend,
        "notes": [*state["notes"], *notes],
        "in_flight": None,
        "order": Order(**{**order, "lost": True}),
        "draft": None,
    }


def charge_lost_call(state: TrimState) -> tuple[Spend, list[str]]:
    """Charge a large call that another process began and nobody saw the end of."""
    in_flight, spend = _lost_call(state), state["spend"]
    if in_flight is None:
        return spend, []
    lost, prices = in_flight["max_tokens"], settings_of(state["run"]).prices
    charged = Spend(**{**spend, "large": {**spend["large"], "calls": spend["large"]["calls"] + 1}})
    charged["unaccounted_tokens"] += lost
    charged["unaccounted_cost"] += prices.large.cost(in_flight["prompt_tokens"], lost)
    note = f"a call of the large model was cut off by a crash; {lost} tokens were charged for it"
    emit("note", text=note)
    return charged, [note]


def _lost_call(state: TrimState) -> InFlight | None:
    in_flight = state.get("in_flight")
    return None if in_flight is None or in_flight["process"] == this_process() else in_flight


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
