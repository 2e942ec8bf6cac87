"""Measuring routing: run questions through a graph, and turn the records into metrics with intervals."""

from .comparison import ArmMetrics, Difference, accuracy_difference, compare
from .metrics import (
    Interval,
    accuracy,
    cpt,
    ibc,
    interval,
    mean_delta_ibc,
    mean_ibc,
    performance_gap_recovered,
    resampled_means,
    share_of_large_tokens,
)
from .records import Question, Record, Run, read_run
from .runner import run_arm

__all__ = [
    "ArmMetrics",
    "Difference",
    "Interval",
    "Question",
    "Record",
    "Run",
    "accuracy",
    "accuracy_difference",
    "compare",
    "cpt",
    "ibc",
    "interval",
    "mean_delta_ibc",
    "mean_ibc",
    "performance_gap_recovered",
    "read_run",
    "resampled_means",
    "run_arm",
    "share_of_large_tokens",
]
