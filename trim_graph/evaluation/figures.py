"""Accuracy, share of large tokens, performance gap recovered, and intervals by paired bootstrap. All pure.

Each works on plain numbers and, element by element, on arrays of resampled means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 2000
_CHUNK = 200
UNDEFINED_ALLOWED = 0.05
"""Share of resamples in which a figure may be undefined (no gap) for its interval still to be told."""


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


def accuracy(correct: Sequence[bool]) -> float | None:
    """Return the share of right answers; None for no questions."""
    return sum(correct) / len(correct) if correct else None


def share_of_large_tokens(large_tokens: float, of_large_only: float) -> float | None:
    """Return the large tokens as a share of what the large model alone uses; None where it uses none."""
    return large_tokens / of_large_only if of_large_only > 0 else None


def performance_gap_recovered(acc: float, acc_small: float, acc_large: float) -> float | None:
    """Return the PGR: 0 is the small model alone, 1 the large one; None where the large one is no better."""
    gap = acc_large - acc_small
    return (acc - acc_small) / gap if gap > 0 else None


def resampled_means(
    columns: Mapping[str, Sequence[float]], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """Draw questions with replacement and return the mean of each column in each resample.

    All columns are resampled together (paired): whatever is computed from several of the means has the
    spread it would have on another draw of questions.

    Args:
        columns: One value per question; all of the same length.
        resamples: How many draws.
        seed: The same seed gives the same draws.

    Raises:
        ValueError: The columns are empty or of different lengths.
    """
    import numpy as np

    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"columns have the lengths {sorted(lengths)}; expected one length of 1 or more")
    n = lengths.pop()
    values = np.array([list(map(float, column)) for column in columns.values()])
    rng = np.random.default_rng(seed)
    means = np.empty((len(columns), resamples))
    for start in range(0, resamples, _CHUNK):
        # How often each question was drawn says as much as the draws themselves, in less memory.
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(_CHUNK, resamples - start))
        means[:, start : start + len(counts)] = values @ counts.T / n
    return dict(zip(columns, means, strict=True))


def interval(values: Sequence[float | None] | NDArray[np.float64]) -> Interval | None:
    """Return the middle 95 % of resampled values; None where too many of them are undefined."""
    import numpy as np

    given: list[Any] = list(values)
    defined = [value for value in given if value is not None]
    if not defined or len(given) - len(defined) > UNDEFINED_ALLOWED * len(given):
        return None
    low, high = np.percentile(np.array(defined, dtype=float), [2.5, 97.5])
    return Interval(float(low), float(high))
