"""Figures of operating points and of the curves through them, with paired bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trim_graph.evaluation import Interval, accuracy_difference, interval, resampled_means
from trim_graph.evaluation.metrics import RESAMPLES, cpt, mean_delta_ibc, mean_ibc

from .worlds import Arm, Floats, World

TARGETS = (0.5, 0.8, 0.95)
"""PGR for which the CPT is reported."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure, and its values on other draws of the problems."""

    value: float | None
    draws: Floats

    @property
    def interval(self) -> Interval | None:
        """The middle 95 % of the draws; None where it is undefined on too many."""
        return interval([None if np.isnan(draw) else float(draw) for draw in self.draws])

    def document(self) -> dict[str, Any]:
        """Returns value and interval, JSON-native."""
        return {"value": self.value, "interval": self.interval}

    def over(self, other: Figure) -> Figure | None:
        """Returns the ratio; None where the other's interval is not clear of zero."""
        spread = other.interval
        if spread is None or spread.low <= 0 <= spread.high or not other.value or self.value is None:
            return None
        return Figure(self.value / other.value, self.draws / other.draws)

    def minus(self, other: Figure) -> Figure:
        """Returns the difference."""
        known = self.value is not None and other.value is not None
        return Figure(
            self.value - other.value if known else None,  # type: ignore[operator]
            self.draws - other.draws,
        )


class Draws:
    """The means of many arms on the same draws of a world's problems.

    Args:
        world: Whose problems.
        arms: By name.
        resamples: How many draws.
        seed: Seed of the draws.
    """

    def __init__(
        self, world: World, arms: Mapping[str, Arm], *, resamples: int = RESAMPLES, seed: int = 0
    ) -> None:
        self.arms = {**arms, "small": world.small, "large": world.large}
        columns: dict[str, Sequence[float]] = {}
        for name, arm in self.arms.items():
            columns[f"{name} correct"] = arm.correct.astype(float).tolist()
            columns[f"{name} tokens"] = arm.tokens.astype(float).tolist()
        means = resampled_means(columns, resamples=resamples, seed=seed)
        self._correct = {name: means[f"{name} correct"] for name in self.arms}
        self._tokens = {name: means[f"{name} tokens"] for name in self.arms}

    def accuracy(self, name: str) -> Figure:
        """Returns the accuracy of an arm."""
        return Figure(self.arms[name].accuracy, self._correct[name])

    def share(self, name: str) -> Figure:
        """Returns its share of large tokens."""
        whole = self.arms["large"].spent
        return Figure(self.arms[name].spent / whole, self._tokens[name] / self._tokens["large"])

    def pgr(self, name: str) -> Figure:
        """Returns the performance gap that it recovers."""
        small, large = self.arms["small"].accuracy, self.arms["large"].accuracy
        gap = self._correct["large"] - self._correct["small"]
        plain = (self.arms[name].accuracy - small) / (large - small) if large > small else None
        lifted = self._correct[name] - self._correct["small"]
        return Figure(plain, np.divide(lifted, gap, out=np.full_like(gap, np.nan), where=gap > 0))

    def curve(self, names: Sequence[str]) -> dict[str, Figure]:
        """Returns the figures of the curve through some arms: mean IBC, mean Delta IBC, CPT.

        ``delta_ibc`` is the mean Delta IBC over the shares up to the curve's own CPT(95).
        """
        ordered = sorted(names, key=lambda name: self.arms[name].spent)
        plain = [(self.share(name).value, self.pgr(name).value) for name in ordered]
        drawn = [(self.share(name).draws, self.pgr(name).draws) for name in ordered]
        mean, means = mean_ibc(plain), mean_ibc(drawn)  # type: ignore[arg-type]
        found = {
            "mean_ibc": Figure(mean, means),
            "mean_delta_ibc": Figure(None if mean is None else mean - 1, means - 1),
        }
        for target in TARGETS:
            found[f"cpt_{round(100 * target)}"] = Figure(cpt(plain, target), cpt(drawn, target))  # type: ignore[arg-type]
        up_to = cpt(plain, TARGETS[-1])  # type: ignore[arg-type]
        found["delta_ibc"] = (
            Figure(None, np.full_like(means, np.nan))
            if up_to is None
            else Figure(mean_delta_ibc(plain, up_to=up_to), mean_delta_ibc(drawn, up_to=up_to))  # type: ignore[arg-type]
        )
        return found


def difference(left: Arm, right: Arm) -> dict[str, Any]:
    """Returns the accuracy of ``left`` minus that of ``right``, paired by problem."""
    return dict(accuracy_difference(left.outcomes(), right.outcomes()))


def over_random_questions(world: World, arm: Arm) -> dict[str, Any]:
    """Returns an arm's accuracy over that of random whole questions of the same spend, paired by problem.

    Of those the mean is taken: each question goes to the large model with the chance that spends as much.
    """
    share = world.share(arm)
    columns = {
        "arm": arm.correct.astype(float).tolist(),
        "random": ((1 - share) * world.small.correct + share * world.large.correct).tolist(),
    }
    means = resampled_means(columns)
    plain = arm.accuracy - sum(columns["random"]) / len(world)
    return {"accuracy": plain, "interval": interval(means["arm"] - means["random"])}
