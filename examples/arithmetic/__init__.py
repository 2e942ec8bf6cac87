"""The embedded default: multi-step arithmetic, and three small transformers trained on it from scratch.

`SMALL`, `LARGE` and `PRM` are folders in transformers format; `problems` draws problems with exact
solutions from splits and parts that do not overlap.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

from .chains import draw_chain
from .problems import Part, Problem, Split, is_right, label_steps, part_of
from .words import draw_words

WEIGHTS = Path(__file__).parent / "weights"
SMALL = WEIGHTS / "small"
"""Folder of the small model."""
LARGE = WEIGHTS / "large"
"""Folder of the large model."""
PRM = WEIGHTS / "prm"
"""Folder of the process reward model."""

__all__ = [
    "LARGE",
    "PRM",
    "SMALL",
    "Part",
    "Problem",
    "Split",
    "draw_problem",
    "is_right",
    "label_steps",
    "part_of",
    "problems",
    "stream_problems",
]


def draw_problem(rng: random.Random, split: Split, part: Part) -> Problem:
    """Draws one problem of ``split`` that belongs to ``part``."""
    while True:
        problem = draw_words(rng) if split == "words" else draw_chain(rng, split)
        if part_of(problem.combination) == part:
            return problem


def problems(split: Split, n: int, *, part: Part = "test", seed: int = 0) -> list[Problem]:
    """Draws ``n`` different problems; the same arguments always give the same ones.

    Args:
        split: ``standard`` (chains of 4 to 7 operations), ``hard`` (8 to 12) or ``words``.
        n: How many.
        part: ``test`` and ``validation`` were never trained on.
        seed: Another seed draws other problems of the same part.
    """
    return list(islice(stream_problems(split, part=part, seed=seed), n))


def stream_problems(split: Split, *, part: Part = "test", seed: int = 0) -> Iterator[Problem]:
    """Draws different problems without end; the first ``n`` are those of `problems`."""
    seen: set[str] = set()
    for index in count():
        problem = draw_problem(random.Random(f"{seed}:{split}:{part}:{index}"), split, part)
        if problem.question not in seen:
            seen.add(problem.question)
            yield problem
