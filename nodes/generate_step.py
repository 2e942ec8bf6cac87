"""Ask the writer that `route` named for one step that carries on the accepted ones. Nothing else."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.config import merge_configs

from trim_graph.adapters.replies import Reply, read_reply
from trim_graph.budget import Spend, Writer, budget_left, grant
from trim_graph.context import Settings
from trim_graph.conversation import compose
from trim_graph.events import emit
from trim_graph.ledger import Ledger
from trim_graph.process import this_process
from trim_graph.run import segmentation_of
from trim_graph.segment import Segmentation, join_steps
from trim_graph.state import Failure, Order, Step, TrimState, changed

from .deadline import GRACE, call_within
from .drafting import draft_of, endings, lead_counts
from .drawing import Drawing, noting
from .failures import charge_attempts, charge_failed_call, failure, has_way_out, told_of_retries
from .probing import entropy_arguments, probed


@dataclass(frozen=True, slots=True)
class _Call:
    model: Runnable[Any, Any]
    messages: list[BaseMessage]
    config: RunnableConfig
    arguments: dict[str, Any]
    order: Order
    spend: Spend
    notes: list[str]
    noted: bool
    """Whether ``notes`` holds more than the state does."""
    settings: Settings
    segmentation: Segmentation
    previous: Step | None
    index: int
    """Of the step."""
    lead: str
    """What was written of this step before, as far as it counts."""
    prompt_tokens: int

    @property
    def limit(self) -> float | None:
        """Seconds it may take."""
        return self.arguments.get("timeout")

    def charge(self) -> dict[str, Any]:
        """What a charge for tokens that nobody told goes by."""
        return {
            "max_tokens": self.arguments["max_tokens"],
            "prompt_tokens": self.prompt_tokens,
            "prices": self.settings.prices,
        }


def generate_step_node(
    small: Runnable[Any, Any],
    large: Runnable[Any, Any],
    segmentation: Segmentation | None = None,
    ledger: Ledger | None = None,
) -> RunnableLambda[Any, Any]:
    """Build the node from the two writers, the graph's own way to find the end of a step, and its ledger."""
    models: dict[Writer, Runnable[Any, Any]] = {"small": small, "large": large}

    def run(state: TrimState, config: RunnableConfig) -> dict[str, Any]:
        call = _prepare(state, config, models, segmentation)
        if call is None:
            return changed(state, _given_up(state))
        drawing = Drawing(state, call.order, ledger)
        drawn = drawing.reserve(call.order["max_tokens"])
        if drawn.refused is not None:
            return changed(state, _refused(call, drawn.refused))
        call = _granted(call, drawn.tokens)
        try:
            update = _asked(call)
        except BaseException as error:
            drawing.settle(call.spend, _spend_of_raised(call, error))
            raise
        return changed(state, noting(update, state, drawing.settle(call.spend, update["spend"])))

    async def arun(state: TrimState, config: RunnableConfig) -> dict[str, Any]:
        call = _prepare(state, config, models, segmentation)
        if call is None:
            return changed(state, _given_up(state))
        drawing = Drawing(state, call.order, ledger)
        if not drawing:
            return changed(state, await _aasked(call))
        drawn = await asyncio.to_thread(drawing.reserve, call.order["max_tokens"])
        if drawn.refused is not None:
            return changed(state, _refused(call, drawn.refused))
        call = _granted(call, drawn.tokens)
        try:
            update = await _aasked(call)
        except BaseException as error:
            spend = _spend_of_raised(call, error)
            await asyncio.shield(asyncio.to_thread(drawing.settle, call.spend, spend))
            raise
        note = await asyncio.shield(asyncio.to_thread(drawing.settle, call.spend, update["spend"]))
        return changed(state, noting(update, state, note))

    return RunnableLambda(run, arun, name="generate_step")


def _asked(call: _Call) -> dict[str, Any]:
    begun = time.monotonic()
    ask = partial(call.model.invoke, call.messages, call.config, **call.arguments)
    try:
        message = call_within(call.limit, ask)
    except Exception as error:
        return _came_to_nothing(call, error, time.monotonic() - begun)
    return _noted(call, message, time.monotonic() - begun)


async def _aasked(call: _Call) -> dict[str, Any]:
    begun = time.monotonic()
    try:
        async with asyncio.timeout(None if call.limit is None else call.limit + GRACE):
            message = await call.model.ainvoke(call.messages, call.config, **call.arguments)
    except Exception as error:
        return _came_to_nothing(call, error, time.monotonic() - begun)
    return _noted(call, message, time.monotonic() - begun)


def after_generate_step(state: TrimState) -> Literal["score decides", "no score needed"]:
    """Go to the scorer only where a decision hangs on its answer."""
    order, draft = state.get("order"), state.get("draft")
    scored = order is not None and draft is not None and order["scored"]
    return "score decides" if scored else "no score needed"


def _prepare(
    state: TrimState,
    config: RunnableConfig,
    models: dict[Writer, Runnable[Any, Any]],
    own_segmentation: Segmentation | None,
) -> _Call | None:
    order = state["order"]
    assert order is not None
    settings = Settings.model_validate(state["run"]["settings"])
    spend, notes = _charge_lost_call(state, settings)
    left = budget_left(settings.budget, spend, settings.prices)
    if notes:
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
    prefix = join_steps(state["steps"], settings.delimiter) + order["lead"]
    segmentation, model = segmentation_of(settings, own_segmentation), models[order["writer"]]
    previous = state["steps"][-1] if state["steps"] else None
    lead = order["lead"] if lead_counts(previous, order["lead"]) else ""
    arguments: dict[str, Any] = {"max_tokens": order["max_tokens"]}
    if "probe" in order:
        arguments |= entropy_arguments(model)
    elif not order["to_end"]:
        arguments |= endings(segmentation, settings.thinking, previous, lead=lead, model=model)
    if left.seconds is not None:
        arguments["timeout"] = max(left.seconds, 0.01)
    tag = "trim:draft" if order["decided"] else "trim:accepted"
    tag = "trim:probe" if "probe" in order else tag
    return _Call(
        model=model,
        messages=compose(state["messages"], settings.instruction, prefix),
        config=merge_configs(config, {"tags": ["nostream", tag, f"trim:{order['writer']}"]}),
        arguments=arguments,
        order=order,
        spend=spend,
        notes=[*state["notes"], *notes],
        noted=bool(notes),
        settings=settings,
        segmentation=segmentation,
        previous=previous,
        index=len(state["steps"]),
        lead=lead,
        prompt_tokens=(state.get("in_flight") or {"prompt_tokens": 0})["prompt_tokens"],
    )


def _charge_lost_call(state: TrimState, settings: Settings) -> tuple[Spend, list[str]]:
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


def _given_up(state: TrimState) -> dict[str, Any]:
    """The call lost in a crash has used up the budget: let `route` find another way."""
    settings = Settings.model_validate(state["run"]["settings"])
    spend, notes = _charge_lost_call(state, settings)
    return {
        "spend": spend,
        "notes": [*state["notes"], *notes],
        "in_flight": None,
        "order": None,
        "draft": None,
    }


def _granted(call: _Call, tokens: int) -> _Call:
    """Cut the call to what the accounts grant."""
    if tokens == call.order["max_tokens"]:
        return call
    order = Order(**{**call.order, "max_tokens": tokens})
    return replace(call, order=order, arguments={**call.arguments, "max_tokens": tokens})


def _refused(call: _Call, limit: str) -> dict[str, Any]:
    """Other runs have used an account up since `route` looked: let it find another way."""
    error = f"the limit on {limit} is spent"
    return {
        "spend": call.spend,
        "draft": None,
        "in_flight": None,
        "failed": Failure(part="large", error=error, refused=limit),
        "notes": call.notes,
    }


def _spend_of_raised(call: _Call, error: BaseException) -> Spend:
    """What a call has used that leaves the node by an error; all it might have, where it was cancelled."""
    return charge_failed_call(call.spend, call.order["writer"], error, **call.charge())


def _came_to_nothing(call: _Call, error: Exception, seconds: float) -> dict[str, Any]:
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


def _timed_out(call: _Call, seconds: float) -> dict[str, Any]:
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


def _noted(call: _Call, message: Any, seconds: float) -> dict[str, Any]:
    order, thinking = call.order, call.settings.thinking
    reply = read_reply(message, call.arguments.get("stop", ()), order["writer"])
    spend = _billed(call, reply, message.response_metadata, seconds)
    update: dict[str, Any] = {"spend": spend, "in_flight": None}
    notes = _told_of_prompting(call, message.response_metadata)
    if call.noted or notes != call.notes:
        update["notes"] = notes
    if "probe" in order:
        return update | {"order": probed(order, message, index=call.index)}
    draft = draft_of(
        reply,
        writer=order["writer"],
        lead=call.lead,
        segmentation=None if order["to_end"] else call.segmentation,
        settings=call.settings,
        previous=call.previous,
    )
    update["draft"] = draft
    if draft is not None:
        if order["decided"]:
            part = {"part": draft["part"]} if "part" in draft else {}
            emit("draft", writer=order["writer"], text=draft["text"], tokens=draft["tokens"], **part)
            left = budget_left(call.settings.budget, spend, call.settings.prices).seconds
            routed = thinking is None or not part or thinking.routed in ("both", draft["part"])
            # A part that is not routed stays; and with no time left nobody could act on a decision.
            if not routed or (left is not None and left <= 0):
                update["order"] = Order(**{**order, "decided": False, "scored": False})
    elif reply.end == "eos":
        update["stopped"] = "finished"
    else:
        lead = order["lead"] + reply.text + reply.separator
        update["order"] = Order(**{**order, "lead": lead, "attempt": order["attempt"] + 1})
    return update


def _told_of_prompting(call: _Call, metadata: dict[str, Any]) -> list[str]:
    """The notes, with word of a writer that is asked by prompt, once a run."""
    note = f"the {call.order['writer']} model continues by prompt: it cannot carry on a text exactly"
    if metadata.get("continuation") != "prompt" or note in call.notes:
        return call.notes
    emit("note", text=note)
    return [*call.notes, note]


def _billed(call: _Call, reply: Reply, metadata: dict[str, Any], seconds: float) -> Spend:
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
        spend["overshoot_tokens"] += max(0, reply.output_tokens - call.arguments["max_tokens"])
    if (lost := told_of_retries(metadata, writer)) is not None:
        spend = charge_attempts(spend, writer, lost, **call.charge())
    return spend
