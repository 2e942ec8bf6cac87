"""Accuracy, share of large tokens, performance gap recovered, and intervals by paired bootstrap. All pure.

Each works on plain numbers and, element by element, on arrays of resampled means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 2000
_CHUNK = 200
_COUNTS = 2_000_000
"""Most counts in memory at once: with many questions fewer resamples are drawn at a time."""
_MANY = 50_000
"""Questions from which drawing each one is faster than drawing how often each was drawn."""
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
    columns: Mapping[str, Sequence[float] | NDArray[np.float64]], *, resamples: int = RESAMPLES, seed: int = 0
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
    values = np.array([np.asarray(column, dtype=float) for column in columns.values()])
    rng = np.random.default_rng(seed)
    means = np.empty((len(columns), resamples))
    chunk, chances = max(1, min(_CHUNK, _COUNTS // n)), np.full(n, 1 / n)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        # How often each question was drawn says as much as the draws themselves, in less memory.
        if n < _MANY:
            counts = rng.multinomial(n, chances, size=size)
        else:
            counts = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(size)])
        means[:, start : start + size] = values @ counts.T / n
    return dict(zip(columns, means, strict=True))


def resampled_quantiles(
    values: Sequence[float] | NDArray[np.float64], share: float, *, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Return the quantile of each of many resamples of values drawn with replacement.

    The quantile of a resample is one of the values, and its rank is distributed as the same quantile of as
    many uniform draws, which is a Beta distribution: so no resample needs to be drawn, however many values
    there are.

    Args:
        values: At least one, none of them NaN.
        share: Below which values are to lie, in (0, 1]: 0.5 is the median. The quantile is the least value
            that has this share of values at or below it.
        resamples: How many.
        seed: The same seed gives the same draws.

    Raises:
        ValueError: There are no values.
    """
    import numpy as np

    ordered = np.sort(np.asarray(values, dtype=float))
    n = len(ordered)
    if not n:
        raise ValueError("there is no quantile of no values")
    rank = max(1, int(np.ceil(share * n)))
    drawn = np.random.default_rng(seed).beta(rank, n - rank + 1, size=resamples)
    quantiles: NDArray[np.float64] = ordered[np.minimum((drawn * n).astype(int), n - 1)]
    return quantiles


def quantile(values: Sequence[float] | NDArray[np.float64], share: float) -> float | None:
    """Return the least value that has this share of the values at or below it; None for no values."""
    import numpy as np

    return float(np.quantile(values, share, method="inverted_cdf")) if len(values) else None


def interval(values: Sequence[float | None] | NDArray[np.float64]) -> Interval | None:
    """Return the middle 95 % of resampled values; None where too many of them are undefined (None, NaN)."""
    import numpy as np

    given = np.array(values, dtype=float)  # None becomes NaN
    defined = given[~np.isnan(given)]
    if not len(defined) or len(given) - len(defined) > UNDEFINED_ALLOWED * len(given):
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(float(low), float(high))
