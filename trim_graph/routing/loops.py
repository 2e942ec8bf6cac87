"""Loops: a run whose last steps repeat word for word, or that boxes the same answer repeatedly.

Only the end of a solution counts. So a step that reappears later is no loop, nor is an answer restated once
or twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from trim_graph.summary import extract_answer

SHORT = 20
"""Characters below which repeated steps are short, such as ``end`` or a row of a table. Short steps must
repeat more often, until as many characters repeat as of steps of this length."""
ANSWERS = 3
"""Factor by which a boxed answer must repeat more often than a step: the questions of one message may have
the same answer a few times in a row."""


def loop_in(steps: Sequence[Mapping[str, Any]], max_repeats: int) -> str | None:
    """Returns a description of the loop at the end of a solution; None if there is none.

    Args:
        steps: The accepted steps.
        max_repeats: Number of repetitions that make a loop, as in `trim_graph.Settings`.
    """
    return _repeated_steps(steps, max_repeats) or _repeated_answer(steps, max_repeats)


def _repeated_steps(steps: Sequence[Mapping[str, Any]], max_repeats: int) -> str | None:
    texts = [step["text"].strip() for step in steps]
    for size in range(1, len(texts) // (max_repeats + 1) + 1):
        characters = sum(map(len, texts[-size:]))
        repeats = math.ceil(max_repeats * max(1.0, SHORT / max(characters, 1)))
        again = size * repeats
        if len(texts) >= again + size and texts[-again:] == texts[-again - size : -size]:
            what = "step was" if size == 1 else f"{size} steps were"
            return f"the last {what} written {repeats + 1} times word for word"
    return None


def _repeated_answer(steps: Sequence[Mapping[str, Any]], max_repeats: int) -> str | None:
    last = _boxed(steps[-1]) if steps else None
    if last is None:
        return None
    times = sum(1 for _ in takewhile(lambda step: _boxed(step) == last, reversed(steps)))
    most = ANSWERS * max_repeats
    return f"{times} steps in a row box the answer {last}" if times > most else None


def _boxed(step: Mapping[str, Any]) -> str | None:
    """Returns the answer that a step boxes; one in reasoning does not count, as reasoning tries answers."""
    return None if step.get("part") == "reasoning" else extract_answer(step["text"])
