"""Arms side by side: every figure of each, with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from .figures import (
    RESAMPLES,
    Interval,
    accuracy,
    interval,
    performance_gap_recovered,
    resampled_means,
    share_of_large_tokens,
)
from .runner import Outcome

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Means = dict[str, NDArray[np.float64]]


class ArmFigures(TypedDict):
    """What one arm came to. Shares and PGR are None where the large model uses no tokens, or is no better."""

    n: int
    errors: int
    accuracy: float
    accuracy_interval: Interval | None
    large_tokens: int
    large_tokens_per_question: float
    share: float | None
    share_interval: Interval | None
    pgr: float | None
    pgr_interval: Interval | None


class Difference(TypedDict):
    """Accuracy of one arm minus that of another, on the same questions."""

    accuracy: float
    interval: Interval | None


def compare(
    arms: Mapping[str, Sequence[Outcome]],
    *,
    small: str = "small",
    large: str = "large",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, ArmFigures]:
    """Compute the figures of each arm.

    Args:
        arms: Outcomes by arm, all of the same questions in the same order. A question that failed counts
            as answered wrong.
        small: The arm of the small model alone.
        large: The arm of the large model alone.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: The arms are empty, did not get the same number of questions, or questions have no known
            answer.
    """
    means = _means(arms, resamples, seed)
    plain = {name: accuracy(graded(outcomes)) or 0.0 for name, outcomes in arms.items()}
    tokens = {name: sum(o.large_tokens for o in outcomes) for name, outcomes in arms.items()}
    figures: dict[str, ArmFigures] = {}
    for name, outcomes in arms.items():
        accuracies = zip(*(means[f"{arm} correct"] for arm in (name, small, large)), strict=True)
        spent = zip(*(means[f"{arm} tokens"] for arm in (name, large)), strict=True)
        reference = name in (small, large)  # their share and PGR are 0 and 1 by definition
        figures[name] = ArmFigures(
            n=len(outcomes),
            errors=sum(outcome.error is not None for outcome in outcomes),
            accuracy=plain[name],
            accuracy_interval=interval(means[f"{name} correct"]),
            large_tokens=tokens[name],
            large_tokens_per_question=tokens[name] / len(outcomes),
            share=share_of_large_tokens(tokens[name], tokens[large]),
            share_interval=None if reference else interval([share_of_large_tokens(*row) for row in spent]),
            pgr=performance_gap_recovered(plain[name], plain[small], plain[large]),
            pgr_interval=None
            if reference
            else interval([performance_gap_recovered(*row) for row in accuracies]),
        )
    return figures


def accuracy_difference(
    left: Sequence[Outcome], right: Sequence[Outcome], *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Return the accuracy of ``left`` minus that of ``right``, paired by question.

    Raises:
        ValueError: They are empty or did not get the same number of questions.
    """
    means = _means({"left": left, "right": right}, resamples, seed)
    plain = (accuracy(graded(left)) or 0.0) - (accuracy(graded(right)) or 0.0)
    return Difference(accuracy=plain, interval=interval(means["left correct"] - means["right correct"]))


def graded(outcomes: Sequence[Outcome]) -> list[bool]:
    """Return whether each question was answered right.

    Raises:
        ValueError: A question has no known answer.
    """
    if any(outcome.correct is None for outcome in outcomes):
        raise ValueError("questions without a known answer have no accuracy")
    return [bool(outcome.correct) for outcome in outcomes]


def _means(arms: Mapping[str, Sequence[Outcome]], resamples: int, seed: int) -> Means:
    columns: dict[str, list[float]] = {}
    for name, outcomes in arms.items():
        columns[f"{name} correct"] = [float(right) for right in graded(outcomes)]
        columns[f"{name} tokens"] = [float(outcome.large_tokens) for outcome in outcomes]
    return resampled_means(columns, resamples=resamples, seed=seed)
