"""What to expect of an operating point: its figures with 95 % intervals, by bootstrap over questions.

The intervals tell the spread over draws of as many questions from the same source. The point was chosen on
these very questions: an accuracy or PGR it was chosen for is a little optimistic, a spend hardly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from .calibration import cost_of
from .comparison import graded
from .figures import (
    RESAMPLES,
    Interval,
    interval,
    performance_gap_recovered,
    resampled_means,
    share_of_large_tokens,
)
from .runner import Outcome


class Expected(TypedDict):
    """One figure; None where it is not known."""

    value: float | None
    interval: Interval | None


class Expectation(TypedDict):
    """What a policy is expected to come to."""

    n: int
    large_tokens: Expected
    """Per question."""
    share: Expected
    cost: Expected
    """Per question, by the price table."""
    accuracy: Expected
    pgr: Expected


def expectation(
    outcomes: Sequence[Outcome],
    *,
    small: Sequence[Outcome] | None = None,
    large: Sequence[Outcome] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Expectation:
    """Compute the figures of a policy.

    Args:
        outcomes: Of the policy.
        small: Of the small model alone on the same questions, if it was run.
        large: Of the large model alone on the same questions, if it was run.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: There are no outcomes, or not as many of each.
    """
    arms = {"it": outcomes, "small": small, "large": large}
    columns: dict[str, list[float]] = {"cost": [cost_of(outcome) for outcome in outcomes]}
    for name, arm in arms.items():
        if arm is None:
            continue
        columns[f"{name} tokens"] = [float(outcome.large_tokens) for outcome in arm]
        if all(outcome.correct is not None for outcome in arm):
            columns[f"{name} correct"] = [float(right) for right in graded(arm)]
    means = resampled_means(columns, resamples=resamples, seed=seed)
    plain = {name: sum(column) / len(column) for name, column in columns.items()}

    def told(*names: str, figure: object = None) -> Expected:
        if not set(names) <= columns.keys():
            return Expected(value=None, interval=None)
        if figure is None:
            return Expected(value=plain[names[0]], interval=interval(means[names[0]]))
        assert callable(figure)
        rows = zip(*(means[name] for name in names), strict=True)
        return Expected(
            value=figure(*(plain[name] for name in names)), interval=interval([figure(*row) for row in rows])
        )

    gap = ("it correct", "small correct", "large correct")
    return Expectation(
        n=len(outcomes),
        large_tokens=told("it tokens"),
        share=told("it tokens", "large tokens", figure=share_of_large_tokens),
        cost=told("cost"),
        accuracy=told("it correct"),
        pgr=told(*gap, figure=performance_gap_recovered),
    )
