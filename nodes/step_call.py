"""What a writer is asked for one step, from the state alone."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig

from trim_graph.adapters.inner_model import capable
from trim_graph.adapters.usage import Estimate, TokenCounter
from trim_graph.budget import Writer
from trim_graph.conversation import compose
from trim_graph.run import segmentation_of
from trim_graph.segment import Segmentation, cut_text, join_steps
from trim_graph.state import Step, TrimState

from .calling import Call, RetryGrant, begin_call, estimate_of
from .drafting import endings, lead_counts
from .node import tagged
from .probing import entropy_arguments
from .unsaved import invocation_of, place_of
from .work_ahead import key_of


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCall(Call):
    """A call for a step: which model is asked what."""

    model: Runnable[Any, Any]
    messages: list[BaseMessage]
    config: RunnableConfig
    arguments: dict[str, Any]
    segmentation: Segmentation
    previous: Step | None
    index: int
    """Of the step."""
    lead: str
    """What was written of this step before, as far as it counts."""
    key: str
    """Names the call within its run."""
    estimate: Estimate | None
    """Counts its tokens if the model does not report them."""


def prepare_step(
    state: TrimState,
    config: RunnableConfig,
    models: dict[Writer, Runnable[Any, Any]],
    own_segmentation: Segmentation | None,
    counters: dict[Writer, TokenCounter] | None = None,
) -> StepCall:
    """Make the call that `route` ordered.

    Args:
        state: Of the run.
        config: Of the node.
        models: The two writers.
        own_segmentation: The graph's own.
        counters: Count the tokens of writers that do not report them.
    """
    call = begin_call(state, place_of(config), invocation_of(config))
    order, settings = call.order, call.settings
    prefix = join_steps(state["steps"], settings.delimiter) + order["lead"]
    model = models[order["writer"]]
    segmentation = segmentation_of(settings, own_segmentation).continuing(cut_text(state["steps"]))
    previous = state["steps"][-1] if state["steps"] else None
    lead = order["lead"] if lead_counts(previous, order["lead"]) else ""
    arguments: dict[str, Any] = {"max_tokens": order["max_tokens"]}
    if "probe" in order:
        arguments |= entropy_arguments(model)
    elif not order["to_end"]:
        arguments |= endings(segmentation, settings.thinking, previous, lead=lead, model=model)
    if call.limit is not None:
        arguments["timeout"] = call.limit
    retry = None
    if order["writer"] == "large" and capable(model, "takes_retry_tokens"):
        retry = arguments["retry_tokens"] = RetryGrant(call)
    messages = compose(state["messages"], settings.instruction, prefix)
    tag = "trim:draft" if order["decided"] else "trim:accepted"
    tag = "trim:probe" if "probe" in order else tag
    return StepCall(
        **{field.name: getattr(call, field.name) for field in fields(call)} | {"retry": retry},
        model=model,
        messages=messages,
        config=tagged(config, "nostream", tag, f"trim:{order['writer']}"),
        arguments=arguments,
        segmentation=segmentation,
        previous=previous,
        index=len(state["steps"]),
        lead=lead,
        key=key_of(prefix, arguments),
        estimate=estimate_of(call, (counters or {}).get(order["writer"]), messages),
    )
