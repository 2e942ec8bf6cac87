"""From a writer's answer to a draft: where the step ends, and which part of the text it belongs to."""

from __future__ import annotations

from typing import Any

from trim_graph.adapters.inner_model import capable
from trim_graph.adapters.protocols import StepEnd
from trim_graph.adapters.replies import Reply
from trim_graph.segment import Segmentation, is_step, separator_of, share_out
from trim_graph.settings import Settings
from trim_graph.state import Draft, Step
from trim_graph.thinking import Thinking

from .accepting import separated


def lead_counts(previous: Step | None, lead: str) -> bool:
    """Tell whether what was written before this step, and was none by itself, is a part of it.

    Blank lines behind a separator of blank space are not.
    """
    if lead.strip():
        return True
    return previous is not None and (not separator_of(previous) or bool(separator_of(previous).strip()))


def endings(
    segmentation: Segmentation,
    thinking: Thinking | None,
    previous: Step | None,
    *,
    lead: str,
    model: Any,
) -> dict[str, Any]:
    """Return the call settings that end an answer at the end of a step.

    Args:
        segmentation: Where that is.
        thinking: A thought ends a step too.
        previous: The step accepted last.
        lead: What was written of the step before.
        model: Watches the text itself where it can; else all it writes is cut afterwards.
    """
    stops = list(segmentation.stops)
    if thinking is not None and thinking.may_close(previous, lead):
        stops.append(thinking.close)
    arguments: dict[str, Any] = {"stop": stops} if stops else {}
    if segmentation.watches and capable(model, "takes_stop_when"):

        def stop_when(text: str) -> bool:
            return segmentation.boundary(lead + text, ended=False) is not None

        arguments["stop_when"] = stop_when
    return arguments


def _ends_a_cut_step(text: str, end: StepEnd, previous: Step | None) -> bool:
    """Tell whether punctuation is the rest of a step that was cut by its length: ``}.`` of a boxed answer."""
    return end == "eos" and bool(text.strip()) and previous is not None and previous["end"] == "length"


def draft_of(
    reply: Reply,
    *,
    writer: Any,
    lead: str,
    segmentation: Segmentation | None,
    settings: Settings,
    previous: Step | None,
) -> Draft | None:
    """Make a draft of an answer; None where it holds no step.

    Args:
        reply: The answer.
        writer: Who gave it.
        lead: What was written of the step before.
        segmentation: Finds the end of the step; None where the writer goes on to the end.
        settings: Of the run.
        previous: The step accepted last.
    """
    text, tokens, end, separator = lead + reply.text, reply.output_tokens, reply.end, reply.separator
    thinking = settings.thinking
    if segmentation is not None:
        ends = [segmentation.boundary(text, ended=True)]
        if thinking is not None:  # the writer may not stop at the close mark by itself
            ends.append(thinking.boundary(previous, text, opened=reply.opens_thought))
        found = min(filter(None, ends), default=None)
    else:
        found = None
    if found is not None:
        rest = text[found.next :]
        if rest.strip() or end != "eos":
            end, separator = "delimiter", text[found.end : found.next]
            tokens = share_out(tokens, [text[: found.next], rest])[0] if rest else tokens
            text = text[: found.end]
    if not is_step(text) and not _ends_a_cut_step(text, end, previous):
        return None
    step = Step(
        text=text,
        writer=writer,
        model=reply.model,
        tokens=tokens,
        mean_token_probability=reply.mean_token_probability,
        end=end,
    )
    if end == "delimiter":
        step = separated(step, separator, settings.delimiter)
    if thinking is not None:
        part = thinking.part_of(previous, text, opened=reply.opens_thought)
        if part is not None:
            step["part"] = part
    return Draft(**step, score=None)


def why_no_step(reply: Reply, lead: str, *, timed_out: bool) -> str:
    """Say what a writer's answers held in place of a step, and what may help.

    Args:
        reply: The last answer.
        lead: All that was written of the step.
        timed_out: Whether a time limit cut the last answer.
    """
    if lead.strip():
        return f"it wrote nothing but punctuation or tags: {lead.strip()[:40]!r}"
    if timed_out:
        return "a time limit cut its answer off before the first word"
    if reply.end == "length":
        spent = f"all {reply.output_tokens} tokens of its answer were used up"
        seen = "before it showed any text"
        if reply.reasoning_tokens:
            seen = f"and {reply.reasoning_tokens} of them went into thoughts that are not shown"
        return f"{spent} {seen}; raise max_step_tokens, or have it think less"
    if lead:
        return "it wrote nothing but blank lines"
    return "its answer was empty" if reply.end == "eos" else "its answer had nothing new in it"
