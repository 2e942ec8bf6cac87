"""Accuracy, share of large tokens, performance gap recovered (PGR), curves (IBC, CPT), and intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Number = float | Array
    Point = tuple[Number, Number]

RESAMPLES = 2000
_CHUNK = 200
_COUNTS = 2_000_000
"""Most counts in memory at once: with many questions fewer resamples are drawn at a time."""
_MANY = 50_000
"""Questions from which drawing each one is faster than drawing how often each was drawn."""
LEAST = 20
"""Fewest questions for resampled intervals, which are too narrow of fewer, and for verdicts that decide."""
UNDEFINED_ALLOWED = 0.05
"""Share of resamples in which a metric may be undefined (no gap) for its interval still to be given."""


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


def accuracy(correct: Sequence[bool]) -> float | None:
    """Returns the share of right answers; None for no questions."""
    return sum(correct) / len(correct) if correct else None


def share_of_large_tokens(large_tokens: float, of_large_only: float) -> float | None:
    """Returns the large tokens as a share of what the large model alone uses; None where it uses none."""
    return large_tokens / of_large_only if of_large_only > 0 else None


def performance_gap_recovered(acc: float, acc_small: float, acc_large: float) -> float | None:
    """Returns the PGR: 0 is the small model alone, 1 the large one; None where the large one is no better."""
    gap = acc_large - acc_small
    return (acc - acc_small) / gap if gap > 0 else None


def resampled_means(
    columns: Mapping[str, Sequence[float] | NDArray[np.float64]], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """Draws questions with replacement and returns the mean of each column in each resample.

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
    """Returns the quantile of each of many resamples of values drawn with replacement.

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
    """Returns the least value that has this share of the values at or below it; None for no values."""
    import numpy as np

    return float(np.quantile(values, share, method="inverted_cdf")) if len(values) else None


def interval(values: Sequence[float | None] | NDArray[np.float64]) -> Interval | None:
    """Returns the middle 95 % of resampled values; None where too many of them are undefined (None, NaN)."""
    import numpy as np

    given = np.array(values, dtype=float)  # None becomes NaN
    defined = given[~np.isnan(given)]
    if not len(defined) or len(given) - len(defined) > UNDEFINED_ALLOWED * len(given):
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(float(low), float(high))


SHARES = 20
"""How many evenly spaced shares a mean is taken over: 0.05, 0.10, ..., 1.00."""


def ibc(pgr: Number, share: Number) -> Any:
    """Returns the incremental benefit per cost: PGR divided by the share of large tokens.

    1 is the straight line from the small model alone to the large one.

    Args:
        pgr: Performance gap recovered.
        share: Of the tokens that the large model alone uses.

    Returns:
        A number, None where the share is 0; of arrays an array, NaN there.
    """
    if not _is_array(pgr) and not _is_array(share):
        return pgr / share if share > 0 else None
    import numpy as np

    shares, pgrs = np.broadcast_arrays(np.asarray(share, float), np.asarray(pgr, float))
    return np.divide(pgrs, shares, out=np.full(shares.shape, np.nan), where=shares > 0)


def mean_ibc(points: Sequence[Point], *, shares: int = SHARES, up_to: float = 1.0) -> Any:
    """Returns the mean of the curve's IBC over evenly spaced shares.

    The paper (arXiv 2601.10245) does not say over which shares it takes the mean; its values mean small
    ones. With ``up_to`` the curve's own CPT(95) the mean is over the shares that a user would choose from.

    Args:
        points: ``(share, pgr)`` in order of share; all of them count, those below others too.
        shares: How many: at 20 they are 0.05, 0.10, ..., 1.00.
        up_to: The greatest of them, in (0, 1].

    Returns:
        A number, None where a point is undefined; of arrays an array.

    Raises:
        ValueError: ``shares`` is below 1, ``up_to`` out of range, or the points are not in order.
    """
    if shares < 1:
        raise ValueError(f"shares={shares}: a mean needs 1 or more")
    if not 0 < up_to <= 1:
        raise ValueError(f"up_to={up_to}: choose a share above 0 and at most 1")
    spaced = [up_to * number / shares for number in range(1, shares + 1)]

    def mean(curve: list[tuple[float, float]]) -> float:
        return fmean(pgr_at(curve, share) / share for share in spaced)

    return _on_curve(points, mean, lambda curve: curve.mean_ibc(spaced))


def mean_delta_ibc(points: Sequence[Point], *, shares: int = SHARES, up_to: float = 1.0) -> Any:
    """Returns the mean of IBC - 1: how far the curve lies above the straight line, relative to the spend.

    Args:
        points: See `mean_ibc`.
        shares: See `mean_ibc`.
        up_to: See `mean_ibc`.

    Raises:
        ValueError: See `mean_ibc`.
    """
    mean = mean_ibc(points, shares=shares, up_to=up_to)
    return None if mean is None else mean - 1


def cpt(points: Sequence[Point], target: float) -> Any:
    """Returns the CPT: the least share of large tokens at which this PGR is reached.

    Straight lines between the points of the Pareto frontier, those that recover more than every cheaper one.

    Args:
        points: ``(share, pgr)`` in order of share.
        target: The PGR, above 0 and at most 1.

    Returns:
        A number, None where a point is undefined; of arrays an array.

    Raises:
        ValueError: ``target`` is out of range, or the points are not in order.
    """
    if not 0 < target <= 1:
        raise ValueError(f"target={target}: choose a PGR above 0 and at most 1")
    return _on_curve(
        points, lambda curve: _least_share(frontier(curve), target), lambda curve: curve.cpt(target)
    )


def best_pgr(points: Sequence[Point], share: float) -> Any:
    """Returns the most that can be recovered at this share of large tokens, on the lines of `cpt`.

    Args:
        points: ``(share, pgr)`` in order of share.
        share: In [0, 1].

    Returns:
        A number, None where a point is undefined; of arrays an array.

    Raises:
        ValueError: ``share`` is out of range, or the points are not in order.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: choose one from 0 to 1")

    def best(curve: list[tuple[float, float]]) -> float:
        efficient = frontier(curve)
        return pgr_at(efficient, min(share, efficient[-1][0]))

    return _on_curve(points, best, lambda curve: curve.best_pgr(share))


def interpolated(spends: Sequence[Number], values: Sequence[Number], at: Number) -> Any:
    """Returns the value at a spend, by straight lines between points.

    Args:
        spends: Of each point, in any order; a number, or an array over the resamples.
        values: Of each point.
        at: The spend that is asked for.

    Returns:
        A number; of arrays an array. NaN where the spend lies outside of those of the points.
    """
    import numpy as np

    def read(place: NDArray[np.float64], value: NDArray[np.float64], spend: float) -> float:
        order = np.argsort(place, kind="stable")
        return float(np.interp(spend, place[order], value[order], left=np.nan, right=np.nan))

    x, y = np.array(spends, dtype=float), np.array(values, dtype=float)
    if x.ndim == 1:
        return read(x, y, float(at))
    return np.array([read(*one) for one in zip(x.T, y.T, np.asarray(at, dtype=float), strict=True)])


def whole_curve(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the points of a curve from (0, 0) to (1, 1), one for each share."""
    inner = sorted(point for point in points if 0 < point[0] < 1)
    if any(low[0] == high[0] for low, high in pairwise(inner)):
        groups = groupby(inner, key=lambda point: point[0])
        inner = [(share, fmean(pgr for _, pgr in same)) for share, same in groups]
    return [(0.0, 0.0), *inner, (1.0, 1.0)]


def frontier(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the points that recover more than every cheaper one."""
    kept = list[tuple[float, float]]()
    for point in curve:
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return kept


def pgr_at(curve: Sequence[tuple[float, float]], share: float) -> float:
    """Returns the PGR of a curve at a share, by straight lines between its points."""
    for (low, before), (high, after) in pairwise(curve):
        if share <= high:
            return before + (after - before) * (share - low) / (high - low)
    return curve[-1][1]


def _least_share(curve: Sequence[tuple[float, float]], target: float) -> float:
    for (low, before), (high, after) in pairwise(curve):
        if after >= target:
            return low + (high - low) * (target - before) / (after - before)
    raise AssertionError("a frontier that begins at 0 and ends at 1 or more reaches every PGR up to 1")


def _on_curve(
    points: Sequence[Point],
    metric: Callable[[list[tuple[float, float]]], float],
    resampled: Callable[[ResampledCurve], Any],
) -> Any:
    """Computes a metric of a curve, in all resamples where points are arrays."""
    if any(_is_array(value) for point in points for value in point):
        return resampled(ResampledCurve(points))
    if any(value is None or value != value for point in points for value in point):
        return None
    _in_order(points)
    return metric(whole_curve([(float(share), float(pgr)) for share, pgr in points]))


def _in_order(points: Sequence[Any]) -> None:
    shares = [share for share, _ in points]
    if shares != sorted(shares):
        raise ValueError(f"the points of a curve come in order of share; these are at {shares}")


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and value.shape != ()


class ResampledCurve:
    """A curve in each of many resamples.

    Args:
        points: ``(share, pgr)``, each an array over the resamples, or a number for all of them.

    Attributes:
        shares: Shape (points and two ends, resamples), rising.
        pgrs: Theirs; of points at one share the mean.
        known: Shape (resamples,): where no point is NaN.
    """

    def __init__(self, points: Sequence[tuple[Any, Any]]) -> None:
        import numpy as np

        values = np.array(np.broadcast_arrays(*(value for point in points for value in point)), dtype=float)
        shares, pgrs = values[0::2], values[1::2]
        self.known = np.isfinite(values).all(axis=0)
        # Points outside say nothing beyond the ends, and are put there.
        for outside, end in ((~(shares > 0), 0.0), (shares >= 1, 1.0)):
            shares, pgrs = np.where(outside, end, shares), np.where(outside, end, pgrs)
        ends = np.zeros((1, shares.shape[1]))
        shares, pgrs = np.vstack([ends, shares, ends + 1]), np.vstack([ends, pgrs, ends + 1])
        order = np.argsort(shares, axis=0, kind="stable")
        self.shares, pgrs = (np.take_along_axis(one, order, axis=0) for one in (shares, pgrs))
        same = self.shares[:, None] == self.shares[None, :]
        self.pgrs = (same * pgrs[None, :]).sum(axis=1) / same.sum(axis=1)

    def masked(self, values: Array) -> Array:
        """Returns values with NaN where a point is not known."""
        import numpy as np

        return np.where(self.known, values, np.nan)

    def mean_ibc(self, spaced: Sequence[float]) -> Array:
        """Returns the mean IBC over these shares."""
        import numpy as np

        total = np.zeros(self.shares.shape[1])
        for share in spaced:
            high = (self.shares < share).sum(axis=0)
            total += self._between(self.shares, self.pgrs, high - 1, high, share) / share
        return self.masked(total / len(spaced))

    def cpt(self, target: float) -> Array:
        """Returns the least share at which a PGR is reached on the frontier."""
        import numpy as np

        high = (self.pgrs >= target).argmax(axis=0)
        low = np.take_along_axis(self._best(), high[None] - 1, axis=0)[0]
        return self.masked(self._between(self.pgrs, self.shares, low, high, target))

    def best_pgr(self, share: float) -> Array:
        """Returns the most that is recovered at a share, on the frontier."""
        import numpy as np

        best = self._best()
        places = np.arange(len(best))[:, None]
        reached = (best == places) & (self.shares >= share)
        high = reached.argmax(axis=0)
        low = np.take_along_axis(best, np.maximum(high - 1, 0)[None], axis=0)[0]
        whole = self.pgrs.max(axis=0)
        inside = reached.any(axis=0) & (high > 0)
        value = self._between(self.shares, self.pgrs, low, np.where(inside, high, low + 1), share)
        at_nothing = reached.any(axis=0) & (high == 0)
        return self.masked(np.where(inside, value, np.where(at_nothing, 0.0, whole)))

    def _best(self) -> NDArray[np.intp]:
        """Returns for each place the first one that none up to it surpasses: the frontier's last point."""
        import numpy as np

        best = np.zeros(self.pgrs.shape, dtype=np.intp)
        for place in range(1, len(best)):
            before = np.take_along_axis(self.pgrs, best[place - 1][None], axis=0)[0]
            best[place] = np.where(self.pgrs[place] > before, place, best[place - 1])
        return best

    @staticmethod
    def _between(known: Array, wanted: Array, low: Any, high: Any, at: float) -> Array:
        """Reads a straight line between two places off at a value."""
        import numpy as np

        high = np.minimum(high, len(known) - 1)
        x, y = (np.take_along_axis(known, place[None], axis=0)[0] for place in (low, high))
        a, b = (np.take_along_axis(wanted, place[None], axis=0)[0] for place in (low, high))
        part = np.divide(at - x, y - x, out=np.zeros_like(x), where=y > x)
        answer: Array = a + (b - a) * part
        return answer
