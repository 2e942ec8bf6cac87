"""From what a process reward model (PRM) answers to one probability per step. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trim_graph.errors import ScorerError

from .prm_formats import Head, PRMInput

_SUM = 1e-2
"""How far the probabilities of two labels may be from 1 together: bfloat16 has three digits."""


def probability(outputs: Sequence[float]) -> float:
    """The score of a step from what the PRM's head gives there, before any activation.

    Args:
        outputs: Two logits (wrong, right): the softmax of the second; or one value: its sigmoid.

    Returns:
        A probability in [0, 1]; NaN where an output is not finite.
    """
    if not all(map(math.isfinite, outputs)):
        return math.nan
    value = outputs[1] - outputs[0] if len(outputs) == 2 else outputs[0]
    small = math.exp(-abs(value))
    return 1 / (1 + small) if value >= 0 else small / (1 + small)


def read_pooled(rows: Any, asked: PRMInput, head: Head, *, at: str, hint: str) -> list[float]:
    """Read what a vLLM pooler answers for one solution.

    vLLM gives a row for every token (pooling type ALL), or for every token with the id of a step's position
    (STEP), and applies the activation itself. The number of rows tells which.

    Args:
        rows: One row per token: the probabilities (wrong, right), or the probability of right alone.
        asked: What the PRM was asked.
        head: What kind of head the format is read from.
        at: Which PRM answered, for errors.
        hint: What would be right, for errors about the number of rows.

    Returns:
        One probability per step.

    Raises:
        ScorerError: It is anything else.
    """
    chosen = _rows_of_steps(rows if isinstance(rows, list) else [], asked, at, hint)
    return [_score(row, number, len(chosen), head, at) for number, row in enumerate(chosen, start=1)]


def _rows_of_steps(rows: list[Any], asked: PRMInput, at: str, hint: str) -> list[Any]:
    ids, positions = asked.ids, asked.step_positions
    if len(rows) == len(ids):
        return [rows[position] for position in positions]
    tag = ids[positions[0]]
    tagged = [position for position, token in enumerate(ids) if token == tag]
    if len(rows) != len(tagged) or any(ids[position] != tag for position in positions):
        raise ScorerError(f"the PRM at {at} gave {len(rows)} scores for {len(positions)} steps; {hint}")
    by_position = dict(zip(tagged, rows, strict=True))
    return [by_position[position] for position in positions]


def _score(row: Any, number: int, count: int, head: Head, at: str) -> float:
    values = row if isinstance(row, list) else [row]
    widths = {"labels": (2,), "value": (1,), "tokens": (1, 2)}[head]
    if len(values) not in widths:
        expected = "[wrong, right]" if head == "labels" else "one probability"
        raise ScorerError(f"the PRM at {at} gave {row!r} for step {number}; expected {expected}")
    score = values[-1]
    if not isinstance(score, int | float) or not (math.isfinite(score) and 0.0 <= score <= 1.0):
        raise ScorerError(
            f"the PRM at {at} gave {score} for step {number} of {count}, not a probability in [0, 1]"
        )
    if len(values) == 2 and not (isinstance(values[0], int | float) and abs(sum(values) - 1) <= _SUM):
        raise ScorerError(
            f"the PRM at {at} gave {row!r} for step {number} of {count}, which are not the probabilities of "
            "wrong and right"
        )
    return float(score)
