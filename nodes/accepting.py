"""From a draft to the steps it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from trim_graph.segment import Segmentation, is_step, share_out
from trim_graph.state import DecisionRecord, Draft, Step
from trim_graph.thinking import Part, Thinking


def as_step(draft: Draft) -> Step:
    """The draft without its score, which has a channel of its own."""
    kept = {**draft}
    del kept["score"]
    return cast(Step, kept)


def separated(step: Step, separator: str, delimiter: str) -> Step:
    """The step, ended by a separator; the record names it only where it is not the delimiter."""
    ended = Step(**{**step, "end": "delimiter"})
    if separator != delimiter:
        ended["separator"] = separator
    return ended


def pieces(
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
            step = separated(step, separator, delimiter)
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


def draft_turned_down(decisions: Sequence[DecisionRecord], index: int) -> Draft | None:
    """The draft that the large model was to replace at this step; None where there was none."""
    if not decisions or decisions[-1]["step"] != index or "discarded" not in decisions[-1]:
        return None
    return Draft(**decisions[-1]["discarded"], score=decisions[-1]["score"])
