"""From a writer's text to a draft, and from a draft to the steps it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from trim_graph.adapters.base import StepEnd
from trim_graph.adapters.responses import Reply
from trim_graph.segmentation import Part, Segmentation, Thinking, is_step, separator_of, share_out
from trim_graph.settings import Settings
from trim_graph.state import DecisionRecord, Draft, Step


def partial_text_counts(previous: Step | None, partial_text: str) -> bool:
    """Tell whether what was written before this step, and was none by itself, is a part of it.

    Blank lines behind a separator of blank space are not.
    """
    if partial_text.strip():
        return True
    return previous is not None and (not separator_of(previous) or bool(separator_of(previous).strip()))


def stop_arguments(
    segmentation: Segmentation,
    thinking: Thinking | None,
    previous: Step | None,
    *,
    partial_text: str,
    takes_stop_when: bool,
) -> dict[str, Any]:
    """Return the call settings that end an answer at the end of a step.

    Args:
        segmentation: Where that is.
        thinking: A thought ends a step too.
        previous: The step accepted last.
        partial_text: What was written of the step before.
        takes_stop_when: Whether the model watches its text itself; else all it writes is cut afterwards.
    """
    stops = list(segmentation.stops)
    if thinking is not None and thinking.may_close(previous, partial_text):
        stops.append(thinking.close)
    arguments: dict[str, Any] = {"stop": stops} if stops else {}
    if segmentation.watches and takes_stop_when:

        def stop_when(text: str) -> bool:
            return segmentation.boundary(partial_text + text, ended=False) is not None

        arguments["stop_when"] = stop_when
    return arguments


def _ends_a_cut_step(text: str, end: StepEnd, previous: Step | None) -> bool:
    """Tell whether punctuation is the rest of a step that was cut by its length: ``}.`` of a boxed answer."""
    return end == "eos" and bool(text.strip()) and previous is not None and previous["end"] == "length"


def parse_draft(
    reply: Reply,
    *,
    writer: Any,
    partial_text: str,
    segmentation: Segmentation | None,
    settings: Settings,
    previous: Step | None,
) -> Draft | None:
    """Make a draft of an answer; None where it holds no step.

    Args:
        reply: The answer.
        writer: Who gave it.
        partial_text: What was written of the step before.
        segmentation: Finds the end of the step; None where the writer goes on to the end.
        settings: Of the run.
        previous: The step accepted last.
    """
    text, tokens, end, separator = partial_text + reply.text, reply.output_tokens, reply.end, reply.separator
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
        step = end_step(step, separator, settings.delimiter)
    if thinking is not None:
        part = thinking.part_of(previous, text, opened=reply.opens_thought)
        if part is not None:
            step["part"] = part
    return Draft(**step, score=None)


def why_no_step(reply: Reply, partial_text: str, *, timed_out: bool) -> str:
    """Say what a writer's answers held in place of a step, and what may help.

    Args:
        reply: The last answer.
        partial_text: All that was written of the step.
        timed_out: Whether a time limit cut the last answer.
    """
    if partial_text.strip():
        return f"it wrote nothing but punctuation or tags: {partial_text.strip()[:40]!r}"
    if timed_out:
        return "a time limit cut its answer off before the first word"
    if reply.end == "length":
        spent = f"all {reply.output_tokens} tokens of its answer were used up"
        seen = "before it showed any text"
        if reply.reasoning_tokens:
            seen = f"and {reply.reasoning_tokens} of them went into thoughts that are not shown"
        return f"{spent} {seen}; raise max_step_tokens, or have it think less"
    if partial_text:
        return "it wrote nothing but blank lines"
    return "its answer was empty" if reply.end == "eos" else "its answer had nothing new in it"


def as_step(draft: Draft) -> Step:
    """The draft without its score, which has a channel of its own."""
    kept = {**draft}
    del kept["score"]
    return cast(Step, kept)


def end_step(step: Step, separator: str, delimiter: str) -> Step:
    """The step, ended by a separator; the record names it only where it is not the delimiter."""
    ended = Step(**{**step, "end": "delimiter"})
    if separator != delimiter:
        ended["separator"] = separator
    return ended


def split_into_steps(
    draft: Draft,
    segmentation: Segmentation,
    *,
    delimiter: str,
    thinking: Thinking | None,
) -> Sequence[Step]:
    """Cut what was written in one go into steps.

    Args:
        draft: What was written.
        segmentation: Where a step ends.
        delimiter: Of the settings.
        thinking: How a thought is marked, to tell which part each step belongs to.
    """
    texts = segmentation.split(draft["text"]) or [(draft["text"], "")]
    parts: list[Part | None] = [draft.get("part"), *[None] * (len(texts) - 1)]
    if thinking is not None:
        texts, parts = _thoughts_apart(texts, thinking, draft.get("part"))
    tokens = share_out(draft["tokens"], [text for text, _ in texts])
    whole = as_step(draft)
    found: list[Step] = []
    for (text, separator), part, share in zip(texts, parts, tokens, strict=True):
        step = Step(**{**whole, "text": text, "tokens": share})
        last = len(found) == len(texts) - 1
        # Cut by its limit right behind a separator: the next step is one of its own.
        if not last or (separator and draft["end"] == "length"):
            step = end_step(step, separator, delimiter)
        if part is not None:
            step["part"] = part
        found.append(step)
    return found


def _thoughts_apart(
    texts: Sequence[tuple[str, str]], thinking: Thinking, first: Part | None
) -> tuple[list[tuple[str, str]], list[Part | None]]:
    """Cut steps behind each thought where an answer follows it, and tell the part of each.

    Args:
        texts: The steps of one draft, with what separates them.
        thinking: How a thought is marked.
        first: Part of the first step.
    """
    cut: list[tuple[str, str]] = []
    parts: list[Part | None] = []
    previous: dict[str, Any] | None = None
    for text, separator in texts:
        rest: str | None = text
        while rest is not None:
            opened = previous is None and first == "thought"
            step, after, remains = rest, separator, None
            mark = thinking.boundary(previous, rest, opened=opened)
            if mark is not None and is_step(rest[mark.next :]):
                step, after, remains = rest[: mark.end], thinking.close, rest[mark.next :]
            part = first if previous is None else thinking.part_of(previous, step)
            cut.append((step, after))
            parts.append(part)
            previous = {"text": step, "end": "delimiter", "separator": after, "part": part}
            rest = remains
    return cut, parts


def rejected_draft(decisions: Sequence[DecisionRecord], index: int) -> Draft | None:
    """The draft that the large model was to replace at this step; None where there was none."""
    if not decisions or decisions[-1]["step"] != index or "discarded" not in decisions[-1]:
        return None
    return Draft(**decisions[-1]["discarded"], score=decisions[-1]["score"])
