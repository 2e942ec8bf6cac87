"""Ask the writer that `route` named for one step that carries on the accepted ones. Nothing else."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig

from trim_graph.adapters.replies import Reply, read_reply
from trim_graph.adapters.usage import TokenCounter, reports_usage
from trim_graph.budget import Spend, Writer
from trim_graph.errors import ModelServerError
from trim_graph.events import emit
from trim_graph.ledger import Ledger
from trim_graph.segment import Segmentation
from trim_graph.state import Failure, Order, TrimState, changed

from .calling import (
    RetryGrant,
    billed,
    came_to_nothing,
    charge_lost_calls,
    charged,
    charged_first,
    charged_if_left,
    not_made,
    notes_on,
    out_of_time,
    refused,
    spend_of_raised,
    too_late,
    used_between,
)
from .clock import timed
from .deadline import GRACE, call_within
from .drafting import draft_of, why_no_step
from .drawing import Drawing, noting
from .failures import attempts_of_answer
from .looking_ahead import with_taken
from .node import Node
from .probing import probed
from .route import MAX_ATTEMPTS, MAX_IDLE
from .step_call import StepCall, prepare_step
from .unsaved import astored_calls, invocation_of, stored_calls
from .work_ahead import WorkAhead, work_ahead_of


def generate_step_node(
    small: Runnable[Any, Any],
    large: Runnable[Any, Any],
    segmentation: Segmentation | None = None,
    ledger: Ledger | None = None,
    counters: dict[Writer, TokenCounter] | None = None,
) -> Node:
    """Build the node.

    Args:
        small: A writer.
        large: The other one.
        segmentation: The graph's own way to find the end of a step.
        ledger: The graph's.
        counters: Count the tokens of writers that do not report them.
    """
    models: dict[Writer, Runnable[Any, Any]] = {"small": small, "large": large}

    def write(state: TrimState, config: RunnableConfig) -> dict[str, Any]:
        if _may_have_lost(state):
            stored = stored_calls(state, config)
            if charge := charge_lost_calls(state, stored, invocation_of(config)):
                return charged_first(state, charge)
        call = prepare_step(state, config, models, segmentation, counters)
        if too_late(call):
            return not_made(call)
        drawing = Drawing(state, call.order, ledger)
        drawn = drawing.reserve(call.order["max_tokens"])
        if drawn.refused is not None:
            return refused(call, drawn.refused)
        call = _granted(call, drawn.tokens, reserved=bool(drawing))
        try:
            update = _asked(call)
        except BaseException as error:
            drawing.settle(call.spend, spend_of_raised(call, error))
            raise
        return noting(update, state, drawing.settle(call.spend, update["spend"]))

    async def awrite(state: TrimState, config: RunnableConfig) -> dict[str, Any]:
        if _may_have_lost(state):
            stored = await astored_calls(state, config)
            if charge := charge_lost_calls(state, stored, invocation_of(config)):
                return charged_first(state, charge)
        call = prepare_step(state, config, models, segmentation, counters)
        if too_late(call):
            return not_made(call)
        drawing = Drawing(state, call.order, ledger)
        if not drawing:
            return await _aasked(call, work_ahead_of(config))
        drawn = await drawing.areserve(call.order["max_tokens"])
        if drawn.refused is not None:
            return refused(call, drawn.refused)
        call = _granted(call, drawn.tokens, reserved=bool(drawing))
        try:
            update = await _aasked(call)
        except BaseException as error:
            spend = spend_of_raised(call, error)
            await asyncio.shield(asyncio.to_thread(drawing.settle, call.spend, spend))
            raise
        note = await asyncio.shield(asyncio.to_thread(drawing.settle, call.spend, update["spend"]))
        return noting(update, state, note)

    def run(given: TrimState, config: RunnableConfig) -> dict[str, Any]:
        with timed(given, config) as state:
            return changed(given, write(state, config))

    async def arun(given: TrimState, config: RunnableConfig) -> dict[str, Any]:
        with timed(given, config) as state:
            return changed(given, await awrite(state, config))

    return Node(run, arun, name="generate_step")


def _may_have_lost(state: TrimState) -> bool:
    """Tell whether `route` has ordered a call of the large model."""
    return state.get("in_flight") is not None


def _asked(call: StepCall) -> dict[str, Any]:
    begun = time.monotonic()
    ask = partial(call.model.invoke, call.messages, call.config, **call.arguments)
    with charged_if_left(call):
        try:
            message = call_within(call.limit, ask)
        except Exception as error:
            return charged(call, came_to_nothing(call, error, time.monotonic() - begun))
        try:
            reply = _read(call, message)
        except ModelServerError as error:
            return charged(call, came_to_nothing(call, error, time.monotonic() - begun))
        return charged(call, _noted(call, message, reply, time.monotonic() - begun))


async def _aasked(call: StepCall, under_way: WorkAhead | None = None) -> dict[str, Any]:
    """Ask the writer, or wait for what it is writing already."""
    begun = time.monotonic()
    ahead = None if under_way is None else under_way.take(call.run, call.key)
    with charged_if_left(call):
        try:
            async with asyncio.timeout(None if call.limit is None else call.limit + GRACE):
                message = await (ahead or call.model.ainvoke(call.messages, call.config, **call.arguments))
        except Exception as error:
            return charged(call, came_to_nothing(call, error, time.monotonic() - begun))
        try:
            reply = await _aread(call, message)
        except ModelServerError as error:
            return charged(call, came_to_nothing(call, error, time.monotonic() - begun))
        update = charged(call, _noted(call, message, reply, time.monotonic() - begun))
    if under_way is not None:
        under_way.prompt_tokens = used_between(call.spend, update["spend"], call.order["writer"])
    return update if ahead is None else update | {"spend": with_taken(update["spend"])}


def after_generate_step(state: TrimState) -> Literal["score decides", "no score needed"]:
    """Go to the scorer only where a decision hangs on its answer."""
    order, draft = state.get("order"), state.get("draft")
    scored = order is not None and draft is not None and order["scored"]
    return "score decides" if scored else "no score needed"


def _granted(call: StepCall, tokens: int, *, reserved: bool) -> StepCall:
    """Cut the call to what the accounts grant."""
    if not reserved:
        return call
    order = Order(**{**call.order, "max_tokens": tokens})
    call = replace(call, order=order, arguments={**call.arguments, "max_tokens": tokens})
    if call.retry is None:
        return call
    retry = RetryGrant(call, reserved=True)
    return replace(call, retry=retry, arguments={**call.arguments, "retry_tokens": retry})


def _read(call: StepCall, message: Any) -> Reply:
    """Read an answer; one that is a failure by itself, such as a filter's, is charged as it tells."""
    try:
        return read_reply(message, call.arguments.get("stop", ()), call.order["writer"], call.estimate)
    except ModelServerError as error:
        if error.attempts is None:
            error.attempts = attempts_of_answer(message)
        raise


async def _aread(call: StepCall, message: Any) -> Reply:
    """As `_read`; what counts tokens may have to be loaded first, so that is done in a thread."""
    if call.estimate is None or not isinstance(message, AIMessage) or reports_usage(message):
        return _read(call, message)
    return await asyncio.to_thread(_read, call, message)


def _noted(call: StepCall, message: Any, reply: Reply, seconds: float) -> dict[str, Any]:
    order, thinking = call.order, call.settings.thinking
    spend = billed(call, reply, message.response_metadata, seconds)
    update: dict[str, Any] = {"spend": spend, "in_flight": None}
    notes = notes_on(call, reply, message.response_metadata)
    if notes != call.notes:
        update["notes"] = notes
    if "probe" in order:
        order = probed(order, message, index=call.index)
        if order["attempt"] < MAX_IDLE:
            return update | {"order": order}
        return update | _gave_no_step(call, spend, "a time limit cut it off before its first token")
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
            routed = thinking is None or not part or thinking.routed in ("both", draft["part"])
            # A part that is not routed stays; and with no time left nobody could act on a decision.
            if not routed or out_of_time(call, spend):
                update["order"] = Order(**{**order, "decided": False, "scored": False})
    elif reply.end == "eos" and call.previous is not None:
        update["stopped"] = "finished"
    else:
        update |= _without_step(call, reply, spend, message.response_metadata)
    return update


def _without_step(call: StepCall, reply: Reply, spend: Spend, metadata: dict[str, Any]) -> dict[str, Any]:
    """Have the writer asked again behind what it has written, while that may lead to a step."""
    order, added = call.order, reply.text + reply.separator
    lead, attempt = order["lead"] + added, order["attempt"] + 1
    if metadata.get("continuation") == "prompt":  # a prompt shows the model no blank lines
        added = added.strip()
    most = MAX_ATTEMPTS if added else MAX_IDLE
    only_thought = reply.end == "length" and not added.strip() and reply.reasoning_tokens > 0
    if reply.end != "eos" and not only_thought and attempt < most:
        return {"order": Order(**{**order, "lead": lead, "attempt": attempt})}
    written = lead if added else order["lead"].strip()
    return _gave_no_step(call, spend, why_no_step(reply, written, timed_out=bool(metadata.get("timed_out"))))


def _gave_no_step(call: StepCall, spend: Spend, why: str) -> dict[str, Any]:
    writer = call.order["writer"]
    emit("failed", part=writer, error=why)
    charged = Spend(**{**spend})
    charged[writer] = {**spend[writer], "failed_calls": spend[writer]["failed_calls"] + 1}
    return {"failed": Failure(part=writer, error=why, no_step=True), "spend": charged}
