"""Measuring routing: run questions through a graph, and turn the outcomes into figures with intervals."""

from .comparison import ArmFigures, Difference, accuracy_difference, compare
from .figures import (
    Interval,
    accuracy,
    interval,
    performance_gap_recovered,
    resampled_means,
    share_of_large_tokens,
)
from .runner import Outcome, Question, run_arm

__all__ = [
    "ArmFigures",
    "Difference",
    "Interval",
    "Outcome",
    "Question",
    "accuracy",
    "accuracy_difference",
    "compare",
    "interval",
    "performance_gap_recovered",
    "resampled_means",
    "run_arm",
    "share_of_large_tokens",
]
