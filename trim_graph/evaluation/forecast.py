"""Estimate of what an evaluation will spend: runs, calls, tokens and money, before a model is called.

Steps and tokens of a solution are not known before. Where a folder holds runs already, they are measured on
these; else they are assumed, and the estimate says so. A policy whose share of large steps is not known is
taken to have every step written again, so the estimate is an upper end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Literal

from trim_graph.budget import Prices

from .records import Row, failed_in_grader, read_rows_of

MODELS: tuple[Literal["small", "large", "scorer"], ...] = ("small", "large", "scorer")
LETTERS_A_TOKEN = 4
"""Roughly, of English text."""
ASSUMED_STEPS, ASSUMED_TOKENS = 8, 400
"""A solution, where none has been seen."""
_MEASURED = 200
"""Rows of an arm that means are taken of."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of questions and solutions.

    Attributes:
        prompt: Tokens of a question with its instruction.
        steps: Steps of a solution.
        tokens: Tokens of a solution.
        measured: Whether they are those of runs; else they are assumed.
    """

    prompt: float
    steps: float = ASSUMED_STEPS
    tokens: float = ASSUMED_TOKENS
    measured: bool = False

    @property
    def reading(self) -> float:
        """Tokens that a model reads if it is asked for each step, prompt and earlier steps each time."""
        return self.steps * self.prompt + self.tokens * (self.steps - 1) / 2


@dataclass(frozen=True, slots=True)
class Spend:
    """Runs, and what they take of each of `MODELS`: calls, tokens read and tokens written."""

    runs: float = 0.0
    calls: Mapping[str, float] = field(default_factory=dict)
    read: Mapping[str, float] = field(default_factory=dict)
    written: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Spend) -> Spend:
        """Returns both together."""

        def total(left: Mapping[str, float], right: Mapping[str, float]) -> dict[str, float]:
            return {model: left.get(model, 0.0) + right.get(model, 0.0) for model in MODELS}

        return Spend(
            self.runs + other.runs,
            total(self.calls, other.calls),
            total(self.read, other.read),
            total(self.written, other.written),
        )

    def times(self, count: float) -> Spend:
        """Returns so many of these."""
        calls, read, written = (
            {model: count * value for model, value in one.items()}
            for one in (self.calls, self.read, self.written)
        )
        return Spend(count * self.runs, calls, read, written)

    def scored_by(self, judge: str) -> Spend:
        """Returns the same with what the scorer takes as the model's that scores: a row does not name it."""

        def moved(one: Mapping[str, float]) -> dict[str, float]:
            return {**one, judge: one.get(judge, 0.0) + one.get("scorer", 0.0), "scorer": 0.0}

        return Spend(self.runs, moved(self.calls), moved(self.read), moved(self.written))

    def cost(self, prices: Prices) -> float:
        """Returns the cost by a price table; no prompt counts as cached."""
        costs = (
            price.cost(round(self.read.get(model, 0.0)), self.written.get(model, 0.0))
            for model, price in prices
            if price is not None
        )
        return float(sum(costs))


Kind = Literal["small", "large", "routed", "probed", "scores"]
"""How an arm runs: a model alone, with drafts, with a probe before each step, or the scorer alone."""


@dataclass(frozen=True, slots=True)
class PlannedRuns:
    """Runs of one arm that are left to do.

    Attributes:
        group: What they are for, as the estimate names it.
        arm: Name of the arm, where it has rows of its own.
        kind: How it runs.
        left: How many runs.
        rate: Share of the steps that the large model writes.
        scored: Whether each draft is scored.
        judge: ``small`` or ``large``, where that model scores.
    """

    group: str
    arm: str | None
    kind: Kind
    left: int
    rate: float = 1.0
    scored: bool = True
    judge: str | None = None

    def spend(self, lengths: Lengths, seen: Mapping[str, Spend]) -> Spend:
        """Returns what they take.

        Args:
            lengths: Of questions and solutions.
            seen: What a run of an arm took, by arm, where some are done.
        """
        each = seen.get(self.arm or "") or self._run(lengths)
        return (each.scored_by(self.judge) if self.judge else each).times(self.left)

    def _run(self, one: Lengths) -> Spend:
        alone = Spend(1.0, {"small": one.steps}, {"small": one.reading}, {"small": one.tokens})
        if self.kind == "small":
            return alone
        if self.kind == "large":
            return Spend(1.0, {"large": 1.0}, {"large": one.prompt}, {"large": one.tokens})
        scorer = self.judge or "scorer"
        if self.kind == "scores":
            return Spend(0.0, {scorer: 1.0}, {scorer: one.prompt + one.tokens})
        if self.kind == "probed":
            alone += Spend(0.0, {"small": one.steps}, {"small": one.reading}, {"small": one.steps})
        again = Spend(0.0, {"large": one.steps}, {"large": one.reading}, {"large": one.tokens})
        scoring = Spend(0.0, {scorer: one.steps}, {scorer: one.reading + one.tokens})
        return alone + again.times(self.rate) + (scoring if self.scored else Spend())


def count_and_measure(
    folder: Path, arms: Iterable[str], *, retry_errors: bool = False
) -> tuple[dict[str, int], dict[str, Spend]]:
    """Counts the rows of each arm that a folder holds, and measures what a run took.

    Args:
        folder: Of the run.
        arms: Names.
        retry_errors: Whether runs that failed are run again, and so are not counted.

    Raises:
        InputError: A row cannot be read.
    """
    counts, seen = dict[str, int](), dict[str, Spend]()
    for arm in arms:
        rows = (
            row
            for row in read_rows_of(folder, arm)
            if not retry_errors or row["error"] is None or failed_in_grader(row)
        )
        first = list(islice(rows, _MEASURED))
        counts[arm] = len(first) + sum(1 for _ in rows)
        if first:
            seen[arm] = _total(map(_spend_of, first)).times(1 / len(first))
    return counts, seen


def _spend_of(row: Row) -> Spend:
    tokens, written = row["tokens"], {"scorer": float(row["tokens"].get("scorer_output", 0))}
    for writer in ("small", "large"):
        written[writer] = float(tokens.get(writer, 0) + tokens.get(f"{writer}_discarded", 0))
    read = {"scorer": float(tokens["scorer"])} | {
        key: float(row["prefill"][key]) for key in ("small", "large")
    }
    return Spend(1.0, {key: float(row["calls"][key]) for key in MODELS}, read, written)


def _total(spends: Iterable[Spend]) -> Spend:
    whole = Spend()
    for spend in spends:
        whole += spend
    return whole


def lengths_of(prompts: Sequence[str], instruction: str | None, seen: Mapping[str, Spend]) -> Lengths:
    """Returns the lengths of questions and solutions.

    Args:
        prompts: Texts of questions.
        instruction: What is asked besides.
        seen: What a run of the models alone took, where some are done.
    """
    small, large = seen.get("small"), seen.get("large")
    if small is not None and large is not None and small.calls["small"] and large.read["large"]:
        return Lengths(
            large.read["large"],
            small.calls["small"],
            max(small.written["small"], large.written["large"]),
            measured=True,
        )
    letters = fmean(map(len, prompts)) + len(instruction or "") if prompts else 0.0
    return Lengths(letters / LETTERS_A_TOKEN)


@dataclass(frozen=True, slots=True)
class SpendEstimate:
    """What an evaluation will spend.

    Attributes:
        groups: By what it is for.
        lengths: That it is computed from.
        cost: By the price table; None without one.
        unpriced: Prices that are lacking (`Prices.lacking`); the cost is a lower bound then.
    """

    groups: Mapping[str, Spend]
    lengths: Lengths
    cost: float | None
    unpriced: Sequence[str] = ()

    @property
    def total(self) -> Spend:
        """All groups together."""
        return _total(self.groups.values())

    @property
    def calls(self) -> float:
        """Calls of all models."""
        return sum(self.total.calls.values())


def estimate_spend(
    planned: Sequence[PlannedRuns], lengths: Lengths, seen: Mapping[str, Spend], prices: Prices | None
) -> SpendEstimate:
    """Returns what planned runs will spend.

    Args:
        planned: The runs.
        lengths: Of questions and solutions.
        seen: What a run of an arm took, by arm.
        prices: The price table, if there is one.
    """
    groups = dict[str, Spend]()
    for one in planned:
        groups[one.group] = groups.get(one.group, Spend()) + one.spend(lengths, seen)
    if prices is None:
        return SpendEstimate(groups, lengths, None)
    whole = _total(groups.values())
    return SpendEstimate(groups, lengths, whole.cost(prices), prices.lacking(whole.read, whole.written))
