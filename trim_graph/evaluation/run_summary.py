"""The summary of an evaluation, ``RUN/summary.json``: figures of arms, curves of families, a verdict."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

from .figures import Interval
from .run_files import ArmKind

VERSION = 2

CPT_TARGETS = (0.5, 0.8, 0.95)
"""PGRs for which the large tokens needed are told."""
BUDGETS = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Shares of the large model's own tokens at which the accuracy within that budget is told."""


class Figure(TypedDict):
    """A figure and its 95 % interval by bootstrap over questions; None where it is undefined."""

    value: float | None
    interval: Interval | None


FIGURES = {
    "accuracy": "share of right answers",
    "share": "large tokens, as a share of what the large model alone uses",
    "pgr": "performance gap recovered",
    "ibc": "PGR divided by the share",
    "large_tokens": "tokens the large model generated",
    "small_tokens": "tokens the small model generated",
    "discarded_tokens": "tokens of either that are in no accepted step",
    "scorer_tokens": "tokens the scorer read",
    "scorer_output_tokens": "tokens the scorer wrote, if it is a judge",
    "small_prefill": "prompt tokens of the small model",
    "large_prefill": "prompt tokens of the large model",
    "small_cached_prefill": "those of them served from a cache",
    "large_cached_prefill": "those of them served from a cache",
    "small_calls": "calls of the small model",
    "large_calls": "calls of the large model",
    "scorer_calls": "calls of the scorer",
    "cost": "cost by the price table",
    "seconds": "mean wall clock",
    "seconds_median": "median wall clock",
    "seconds_p95": "95th percentile of the wall clock",
    "first_step_median": "median wall clock to the first accepted step",
    "first_step_p95": "95th percentile of the wall clock to the first accepted step",
}
"""Keys of `ArmSummary` ``figures``. All but the first four are per question, means over its samples."""


class MatchedBudget(TypedDict):
    """An arm compared with the curve of a family, at the arm's own spend.

    The curve is accuracy against large tokens: straight lines from the small model alone over the arms of the
    family to the large model alone.
    """

    accuracy: Figure
    """Of the family's curve at this spend."""
    difference: Figure
    """Accuracy of the arm minus that."""
    curve_ends: float | None
    """The most large tokens a question that the curve reaches, where the arm spends more: nothing is told
    beyond. None where its spend lies on the curve."""


class ArmSummary(TypedDict):
    """Figures of one arm."""

    arm: str
    kind: ArmKind
    family: str
    policy: dict[str, Any]
    n: int
    """Questions."""
    errors: int
    """Runs that failed: they count as wrong, and as nothing spent."""
    figures: dict[str, Figure]
    """By the keys `FIGURES`."""
    matched_budget: dict[str, MatchedBudget]
    """By family: ``random``, and of a policy the baselines that were run at several shares."""
    differences: dict[str, dict[str, Figure]]
    """This arm minus ``small`` and ``large``, paired by question: by the other's name, then ``accuracy``,
    ``cost``, ``seconds``, ``large_tokens``."""


class CurvePoint(TypedDict):
    """A point of a curve."""

    arm: str
    share: float | None
    pgr: float | None


class CurveSummary(TypedDict):
    """What the arms of one family come to together (`trim_graph.evaluation.curves`)."""

    family: str
    points: list[CurvePoint]
    """In order of share."""
    mean_ibc: Figure
    mean_delta_ibc: Figure
    cpt: dict[str, Figure]
    """By the PGR in per cent: ``50``, ``80``, ``95``."""
    budgeted_accuracy: dict[str, Figure]
    """The accuracy reached within a budget of large tokens, by its share of the large model's own (see
    `BUDGETS`), on the lines that CPT is read off."""


class Verdict(TypedDict):
    """What one arm saves and costs beside the large model alone."""

    arm: str
    use: Literal["yes", "no", "undecided"]
    text: str
    saved: Figure
    """Large cost saved a question; by the price table, or in large tokens where it is empty."""
    added: Figure
    """Cost of the small model and the scorer a question; None where there are no prices."""
    net: Figure
    """Saved minus added; None where there are no prices."""
    accuracy: Figure
    """Accuracy minus that of the large model alone."""
    seconds: Figure
    """Wall clock added to that of the large model alone, mean a question."""


class RunSummary(TypedDict):
    """A whole evaluation."""

    version: int
    dataset: dict[str, Any]
    n: int
    samples: int
    seed: int
    concurrency: int
    priced: bool
    """Whether there was a price table."""
    models: dict[str, Any]
    """Small, large and scorer as the configuration names them."""
    budgets: dict[str, float]
    """Large tokens a question of each of `BUDGETS`."""
    arms: list[ArmSummary]
    """Small alone and large alone first."""
    curves: list[CurveSummary]
    verdicts: list[Verdict]
    verdict: str
    """In words, of the whole."""
    warnings: list[str]
