"""Text to steps: the draft in an answer, and the steps of a text that was written to its end in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trim_graph.adapters.base import StepEnd
from trim_graph.adapters.responses import Reply
from trim_graph.segmentation import Part, Segmentation, Thinking, divide_tokens, is_step, partial_text_counts
from trim_graph.settings import Settings
from trim_graph.state import DecisionRecord, Draft, Step, StepRequest

MAX_ATTEMPTS = 16
"""Consecutive answers without a step (blank lines, a rule, a lone tag) after which the writer has failed."""
MAX_IDLE = 3
"""The same for answers that added no text, since the next prompt would be the same."""


def _ends_a_cut_step(text: str, end: StepEnd, previous: Step | None) -> bool:
    """Returns whether punctuation completes a step that its token limit cut, as ``}.`` of a boxed answer."""
    return end == "eos" and bool(text.strip()) and previous is not None and previous["end"] == "length"


def partial_tokens(request: StepRequest, previous: Step | None) -> int:
    """Returns the tokens of earlier attempts whose text is in the step.

    Args:
        request: Request of the step.
        previous: The step accepted last.
    """
    tokens = request.get("partial_tokens", 0)
    return tokens if tokens and partial_text_counts(previous, request["partial_text"]) else 0


def parse_draft(
    reply: Reply,
    *,
    writer: Any,
    partial_text: str,
    segmentation: Segmentation | None,
    settings: Settings,
    previous: Step | None,
    partial_tokens: int = 0,
) -> Draft | None:
    """Returns the draft in an answer; None if it holds no step.

    Args:
        reply: The answer.
        writer: The model that gave it.
        partial_text: Text of this step from earlier attempts.
        segmentation: Finds the end of the step; None if the writer continues to the end of the solution.
        settings: Settings of the run.
        previous: The step accepted last.
        partial_tokens: Tokens of ``partial_text``.
    """
    text, end, separator = partial_text + reply.text, reply.end, reply.separator
    tokens = partial_tokens + reply.output_tokens
    thinking = settings.thinking
    if segmentation is not None:
        ends = [segmentation.boundary(text, ended=True)]
        if thinking is not None:  # the writer may have written past the close mark
            ends.append(thinking.boundary(previous, text, opened=reply.starts_in_reasoning))
        found = min(filter(None, ends), default=None)
    else:
        found = None
    if found is not None:
        rest = text[found.next :]
        if rest.strip() or end != "eos":
            end, separator = "delimiter", text[found.end : found.next]
            tokens = divide_tokens(tokens, [text[: found.next], rest])[0] if rest else tokens
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
    if reply.lowest_window_probability is not None:
        step["lowest_window_probability"] = reply.lowest_window_probability
    if end == "delimiter" and separator != settings.delimiter:
        step["separator"] = separator
    if thinking is not None:
        part = thinking.part_of(previous, text, opened=reply.starts_in_reasoning)
        if part is not None:
            step["part"] = part
    return Draft(**step, score=None)


def next_attempt(request: StepRequest, reply: Reply, *, by_prompt: bool = False) -> StepRequest | None:
    """Returns the request for another attempt after an answer without a step; None if its writer has failed.

    Args:
        request: Request of the answer.
        reply: The answer.
        by_prompt: Whether a prompt asked for the continuation, which shows the model no blank lines.
    """
    text, attempt = reply.text + reply.separator, request["attempt"] + 1
    adds = _adds_text(text, by_prompt=by_prompt)
    only_reasoning = reply.end == "length" and not text.strip() and reply.reasoning_tokens > 0
    if reply.end == "eos" or only_reasoning or attempt >= (MAX_ATTEMPTS if adds else MAX_IDLE):
        return None
    again = StepRequest(**{**request, "partial_text": request["partial_text"] + text, "attempt": attempt})
    if again["partial_text"]:
        again["partial_tokens"] = request.get("partial_tokens", 0) + reply.output_tokens
    return again


def _adds_text(text: str, *, by_prompt: bool) -> bool:
    return bool(text.strip() if by_prompt else text)


def why_no_step(request: StepRequest, reply: Reply, *, by_prompt: bool, timed_out: bool) -> str:
    """Returns why a writer's answers hold no step, with advice for the user.

    Args:
        request: Request of the last answer.
        reply: The last answer.
        by_prompt: Whether a prompt asked for the continuation; see `next_attempt`.
        timed_out: Whether a time limit cut the last answer.
    """
    before, text = request["partial_text"], reply.text + reply.separator
    partial_text = before + text if _adds_text(text, by_prompt=by_prompt) else before.strip()
    if partial_text.strip():
        return f"it wrote nothing but punctuation or tags: {partial_text.strip()[:40]!r}"
    if timed_out:
        return "a time limit cut its answer off before the first word"
    if reply.end == "length":
        spent = f"all {reply.output_tokens} tokens of its answer were used up"
        seen = "before it showed any text"
        if reply.reasoning_tokens:
            seen = f"and {reply.reasoning_tokens} of them are reasoning that is not shown"
        return f"{spent} {seen}; raise max_step_tokens, or have it think less"
    if partial_text:
        return "it wrote nothing but blank lines"
    return "its answer was empty" if reply.end == "eos" else "its answer had nothing new in it"


def split_into_steps(
    whole: Step,
    segmentation: Segmentation,
    *,
    delimiter: str,
    thinking: Thinking | None,
) -> Sequence[Step]:
    """Returns the steps of a text that was written to its end in one call.

    Args:
        whole: The text as one step.
        segmentation: Finds the end of a step.
        delimiter: Delimiter of the settings.
        thinking: How reasoning is marked, which decides the part of each step.
    """
    texts = segmentation.split(whole["text"]) or [(whole["text"], "")]
    parts: list[Part | None] = [whole.get("part"), *[None] * (len(texts) - 1)]
    if thinking is not None:
        texts, parts = _split_at_reasoning(texts, thinking, whole.get("part"))
    tokens = divide_tokens(whole["tokens"], [text for text, _ in texts])
    found: list[Step] = []
    for (text, separator), part, share in zip(texts, parts, tokens, strict=True):
        step = Step(**{**whole, "text": text, "tokens": share})
        last = len(found) == len(texts) - 1
        # A text cut by its token limit right after a separator: the next text begins a new step.
        if not last or (separator and whole["end"] == "length"):
            step["end"] = "delimiter"
            if separator != delimiter:
                step["separator"] = separator
        if part is not None:
            step["part"] = part
        found.append(step)
    return found


def _split_at_reasoning(
    texts: Sequence[tuple[str, str]], thinking: Thinking, first: Part | None
) -> tuple[list[tuple[str, str]], list[Part | None]]:
    """Cuts steps after reasoning that an answer follows, and returns the part of each step too.

    Args:
        texts: The steps of one draft, with their separators.
        thinking: How reasoning is marked.
        first: Part of the first step.
    """
    cut: list[tuple[str, str]] = []
    parts: list[Part | None] = []
    previous: dict[str, Any] | None = None
    for text, separator in texts:
        rest: str | None = text
        while rest is not None:
            opened = previous is None and first == "reasoning"
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
    """Returns the draft that the large model was to replace at this step; None if there is none."""
    if not decisions or decisions[-1]["step"] != index or "discarded" not in decisions[-1]:
        return None
    return Draft(**decisions[-1]["discarded"], score=decisions[-1]["score"])
