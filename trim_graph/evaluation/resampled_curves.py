"""The metrics of `trim_graph.evaluation.metrics` on resampled points, all resamples at once. Needs NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


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
        return np.where(self.known, values, np.nan)

    def mean_ibc(self, spaced: Sequence[float]) -> Array:
        """Returns the mean IBC over these shares."""
        total = np.zeros(self.shares.shape[1])
        for share in spaced:
            high = (self.shares < share).sum(axis=0)
            total += self._between(self.shares, self.pgrs, high - 1, high, share) / share
        return self.masked(total / len(spaced))

    def cpt(self, target: float) -> Array:
        """Returns the least share at which a PGR is reached on the frontier."""
        high = (self.pgrs >= target).argmax(axis=0)
        low = np.take_along_axis(self._best(), high[None] - 1, axis=0)[0]
        return self.masked(self._between(self.pgrs, self.shares, low, high, target))

    def best_pgr(self, share: float) -> Array:
        """Returns the most that is recovered at a share, on the frontier."""
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
        best = np.zeros(self.pgrs.shape, dtype=np.intp)
        for place in range(1, len(best)):
            before = np.take_along_axis(self.pgrs, best[place - 1][None], axis=0)[0]
            best[place] = np.where(self.pgrs[place] > before, place, best[place - 1])
        return best

    @staticmethod
    def _between(known: Array, wanted: Array, low: Any, high: Any, at: float) -> Array:
        """Reads a straight line between two places off at a value."""
        high = np.minimum(high, len(known) - 1)
        x, y = (np.take_along_axis(known, place[None], axis=0)[0] for place in (low, high))
        a, b = (np.take_along_axis(wanted, place[None], axis=0)[0] for place in (low, high))
        part = np.divide(at - x, y - x, out=np.zeros_like(x), where=y > x)
        answer: Array = a + (b - a) * part
        return answer
