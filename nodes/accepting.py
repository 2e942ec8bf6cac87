"""From a draft to the steps it becomes."""

from __future__ import annotations

from collections.abc import Sequence

from trim_graph.segment import share_out, split_steps
from trim_graph.state import DecisionRecord, Draft, Step


def as_step(draft: Draft) -> Step:
    """The draft without its score, which has a channel of its own."""
    return Step(
        text=draft["text"],
        writer=draft["writer"],
        model=draft["model"],
        tokens=draft["tokens"],
        mean_token_probability=draft["mean_token_probability"],
        end=draft["end"],
    )


def pieces(draft: Draft, delimiter: str) -> Sequence[Step]:
    """Cut what was written in one go into steps."""
    texts = split_steps(draft["text"], delimiter) or [draft["text"]]
    tokens = share_out(draft["tokens"], texts)
    whole = as_step(draft)
    found = [
        Step(**{**whole, "text": t, "tokens": n, "end": "delimiter"})
        for t, n in zip(texts, tokens, strict=True)
    ]
    found[-1]["end"] = draft["end"]
    last = draft["text"].split(delimiter)[-1]
    if draft["end"] == "length" and last != draft["text"] and not last.strip():
        found[-1]["end"] = "delimiter"  # cut right behind it: the next step is a paragraph of its own
    return found


def draft_turned_down(decisions: Sequence[DecisionRecord], index: int) -> Draft | None:
    """The draft that the large model was to replace at this step; None where there was none."""
    if not decisions or decisions[-1]["step"] != index or "discarded" not in decisions[-1]:
        return None
    return Draft(**decisions[-1]["discarded"], score=decisions[-1]["score"])
