"""Loops: a run whose last steps come again and again, or box one answer again and again.

Only the end of a solution is looked at. So a step that comes back later is no loop, nor is an answer that is
restated once or twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from trim_graph.summary import extract_answer

SHORT = 20
"""Characters of repeated steps below which they are short, such as ``end`` or a row of a table. Short steps
must come again more often: until as many characters are repeated as of steps of this length."""


ANSWERS = 3
"""How many times more often an answer must come again than a step: the questions of one message may well have
the same answer a few times in a row."""


def loop_in(steps: Sequence[Mapping[str, Any]], max_repeats: int) -> str | None:
    """Say what is repeated at the end of a solution; None where nothing is.

    Args:
        steps: Accepted so far.
        max_repeats: How often the last steps, word for word, or a boxed answer come again in a loop.
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
    """Return the answer that a step boxes; a thought may try one as often as it likes."""
    return None if step.get("part") == "thought" else extract_answer(step["text"])
