"""The node `generate_step`: one metered call of the requested writer for one more step."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig

from trim_graph.adapters.responses import Reply, TokenCounter, read_entropy
from trim_graph.budget.ledger import Ledger
from trim_graph.budget.usage import Usage, Writer, add_usage
from trim_graph.calls.interrupted import astored_calls, charge_interrupted_calls, stored_calls
from trim_graph.calls.model_call import (
    StepCall,
    WriterModel,
    amake_step,
    make_step,
    notes_on,
    prepare_step,
    skip_late_call,
    usage_with_reply,
)
from trim_graph.calls.speculation import Speculation
from trim_graph.calls.warming import Warming
from trim_graph.routing import RunView
from trim_graph.routing.drafts import MAX_IDLE, next_attempt, parse_draft, partial_tokens, why_no_step
from trim_graph.routing.router import request_after_draft
from trim_graph.runtime import CallNode, Invocation, emit
from trim_graph.segmentation import Segmentation
from trim_graph.state import Failure, Probe, StepRequest, TrimState


def generate_step_node(
    small: Runnable[Any, Any],
    large: Runnable[Any, Any],
    segmentation: Segmentation | None = None,
    ledger: Ledger | None = None,
    counters: Mapping[Writer, TokenCounter] | None = None,
    speculation: Speculation | None = None,
    warming: Warming | None = None,
) -> CallNode:
    """Builds the node.

    Args:
        small: The small model.
        large: The large model.
        segmentation: The graph's own way to find the end of a step.
        ledger: Holds the accounts that runs share.
        counters: Token counters for writers that do not report their tokens.
        speculation: Holds speculative calls; one for the requested step replaces the call.
        warming: Starts the call that warms the large model's cache while the small one drafts.
    """
    models: dict[Writer, WriterModel] = {"small": WriterModel.of(small), "large": WriterModel.of(large)}

    def prepare(state: TrimState, config: RunnableConfig, invocation: Invocation | None) -> StepCall:
        view = RunView(state, segmentation=segmentation)
        assert view.request is not None
        return prepare_step(
            view, view.request, view.steps, config, models, invocation=invocation, counters=counters
        )

    def run(state: TrimState, config: RunnableConfig, invocation: Invocation | None) -> dict[str, Any]:
        if state.get("in_flight") is not None:
            charge = charge_interrupted_calls(state, stored_calls(state, config), invocation)
            if charge:
                return _charged_first(state, charge)
        call = prepare(state, config, invocation)
        return skip_late_call(call) or make_step(call, ledger, _apply_reply)

    async def arun(state: TrimState, config: RunnableConfig, invocation: Invocation | None) -> dict[str, Any]:
        if state.get("in_flight") is not None:
            charge = charge_interrupted_calls(state, await astored_calls(state, config), invocation)
            if charge:
                return _charged_first(state, charge)
        call = prepare(state, config, invocation)
        if (skipped := skip_late_call(call)) is not None:
            return skipped
        if warming is not None and "warm" in call.request:
            warming.start(call.view, config, invocation)
        if call.writer == "small" and speculation is not None and call.settings.lookahead:
            return await speculation.on_generate(call, partial(amake_step, call, ledger, _apply_reply))
        return await amake_step(call, ledger, _apply_reply)

    return CallNode(run, arun, name="generate_step")


def after_generate_step(state: TrimState) -> Literal["score decides", "no score needed"]:
    """Returns the label of the next node: the scorer only if a decision depends on the score."""
    request, draft = state.get("request"), state.get("draft")
    needs_score = request is not None and draft is not None and request["needs_score"]
    return "score decides" if needs_score else "no score needed"


def _charged_first(state: TrimState, charge: dict[str, Any]) -> dict[str, Any]:
    """Returns the update that only charges interrupted calls: the next call cannot lose the charge."""
    request = state["request"]
    assert request is not None
    return {
        **charge,
        "in_flight": None,
        "request": StepRequest(**{**request, "interrupted": True}),
        "draft": None,
    }


def _apply_reply(call: StepCall, message: Any, reply: Reply, seconds: float) -> dict[str, Any]:
    request, metadata = call.request, message.response_metadata
    usage = usage_with_reply(call, reply, metadata, seconds)
    update: dict[str, Any] = {"usage": usage, "in_flight": None}
    notes = notes_on(call, reply, metadata)
    if notes != call.notes:
        update["notes"] = notes
    if "probe" in request:
        request = _apply_probe(call, message)
        if request["attempt"] < MAX_IDLE:
            return update | {"request": request}
        return update | _no_step(call, usage, "a time limit cut it off before its first token")
    draft = parse_draft(
        reply,
        writer=request["writer"],
        partial_text=call.partial_text,
        segmentation=None if request["until_eos"] else call.segmentation,
        settings=call.settings,
        previous=call.previous,
        partial_tokens=partial_tokens(request, call.previous),
    )
    update["draft"] = draft
    if draft is not None:
        if request["needs_decision"]:
            part = {"part": draft["part"]} if "part" in draft else {}
            emit("draft", writer=request["writer"], text=draft["text"], tokens=draft["tokens"], **part)
            after = request_after_draft(request, draft, call.settings, usage)
            if after is not request:
                update["request"] = after
    elif reply.end == "eos" and call.previous is not None:
        update["request"] = StepRequest(**{**request, "ended": True})
    else:
        update |= _without_step(call, reply, usage, metadata)
    return update


def _apply_probe(call: StepCall, message: AIMessage) -> StepRequest:
    """Returns the request with the entropy that a probe found, one token of the small model.

    Raises:
        ChatModelContractError: The model does not report the entropy.
    """
    request = call.request
    found = read_entropy(message, request["writer"])
    if found is None:  # cut by a time limit before the first token
        return StepRequest(**{**request, "attempt": request["attempt"] + 1})
    emit("probe", step=call.index, entropy=found.nats, unobserved_probability=found.unobserved_probability)
    return StepRequest(
        **{
            **request,
            "attempt": 0,
            "probe": Probe(entropy=found.nats, unobserved_probability=found.unobserved_probability),
        }
    )


def _without_step(call: StepCall, reply: Reply, usage: Usage, metadata: dict[str, Any]) -> dict[str, Any]:
    """Returns the update after a reply without a step: another attempt after its text, or a failure."""
    by_prompt = metadata.get("continuation") == "prompt"
    again = next_attempt(call.request, reply, by_prompt=by_prompt)
    if again is not None:
        return {"request": again}
    timed_out = bool(metadata.get("timed_out"))
    return _no_step(call, usage, why_no_step(call.request, reply, by_prompt=by_prompt, timed_out=timed_out))


def _no_step(call: StepCall, usage: Usage, why: str) -> dict[str, Any]:
    writer = call.writer
    emit("failed", part=writer, error=why)
    charged = add_usage(usage, {writer: {"failed_calls": 1}})
    return {"failed": Failure(part=writer, error=why, no_step=True), "usage": charged}
