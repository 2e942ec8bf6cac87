"""What learned policies see of an `Observation`: the same functions in training and at run time.

The aggregate features are those of TRIM-Agg (arXiv 2601.10245): the smallest and the product of the earlier
scores, the draft's score, its tokens, the step's index. The sequence features are one row for each step.

Every earlier step that the scorer has seen has a score, those of the large model too: they are scored with
the draft that follows. A step that was never scored (the scorer had failed, or another policy had not asked
it) counts as `UNSCORED`, so that it changes neither the smallest score nor the product; a row says by its
feature ``scored`` whether the score was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .base import Observation

UNSCORED = 1.0
"""Stands in place of a score that is not there."""
TOKENS = 300
"""Tokens of a step that count as 1."""

AGGREGATE = ("min_earlier", "product_earlier", "score", "tokens", "index")
"""Names of the aggregate features, in order."""
SEQUENCE = ("present", "draft", "large", "scored", "score", "tokens", "index")
"""Names of the features of one step, in order; ``present`` is 1 and tells a step from padding."""


def aggregate_features(observation: Observation) -> list[float]:
    """Return the aggregate features of a draft and the steps before it."""
    earlier = [UNSCORED if score is None else score for score in observation.scores]
    return [
        min(earlier, default=UNSCORED),
        math.prod(earlier),
        UNSCORED if observation.score is None else observation.score,
        observation.draft_tokens / TOKENS,
        observation.index / observation.max_steps,
    ]


def sequence_features(observation: Observation, window: int) -> list[list[float]]:
    """Return one row for each of the last steps; the draft's is the last row.

    Args:
        observation: Of a draft.
        window: Most rows. Steps further back are left out.
    """
    first = max(0, len(observation.scores) - window + 1)
    rows = [
        _row(index, observation.max_steps, score, tokens, large=writer == "large")
        for index, (score, tokens, writer) in enumerate(
            zip(observation.scores, observation.tokens, observation.writers, strict=True)
        )
        if index >= first
    ]
    draft = _row(observation.index, observation.max_steps, observation.score, observation.draft_tokens)
    draft[SEQUENCE.index("draft")] = 1.0
    return [*rows, draft]


def padded(rows: Sequence[Sequence[float]], window: int) -> list[list[float]]:
    """Return ``window`` rows: zeros before the given ones, so that the draft's stays the last."""
    return [[0.0] * len(SEQUENCE) for _ in range(window - len(rows))] + [list(row) for row in rows]


def _row(index: int, max_steps: int, score: float | None, tokens: int, *, large: bool = False) -> list[float]:
    return [
        1.0,
        0.0,
        float(large),
        float(score is not None),
        UNSCORED if score is None else score,
        tokens / TOKENS,
        index / max_steps,
    ]
