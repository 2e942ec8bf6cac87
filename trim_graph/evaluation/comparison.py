"""Arms side by side: numbers of their rows, metrics of each, and 95 % intervals paired by question.

Intervals of accuracies are those of Clopper and Pearson, those of differences in accuracy Tango's: both hold
for any number of questions. All others are resampled, and are given from `metrics.LEAST` questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from trim_graph.budget import Prices
from trim_graph.errors import InputError
from trim_graph.savings import LargeAlone

from .metrics import (
    LEAST,
    Interval,
    accuracy,
    best_pgr,
    cpt,
    ibc,
    interpolated,
    interval,
    mean_delta_ibc,
    mean_ibc,
    performance_gap_recovered,
    quantile,
    resampled_means,
    resampled_quantiles,
    share_of_large_tokens,
)
from .noninferiority import PairedOutcomes, chance_interval
from .records import (
    BUDGETS,
    CPT_TARGETS,
    TOKENS,
    ArmSettings,
    ArmSummary,
    CurvePoint,
    CurveSummary,
    MatchedBudget,
    Metric,
    OverQueryLevel,
    Record,
    Row,
    arm_label,
    failed_in_grader,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Means = dict[str, NDArray[np.float64]]
    Array = NDArray[np.float64]


class ArmMetrics(TypedDict):
    """Metrics of one arm. Shares and PGR are None where the large model uses no tokens, or is no better."""

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


def compare(arms: Mapping[str, Sequence[Record]], *, seed: int = 0) -> dict[str, ArmMetrics]:
    """Computes the metrics of each arm.

    Args:
        arms: Records by arm, all of the same questions in the same order; ``small`` and ``large``, the models
            alone, are among them. A question that failed counts as answered wrong.
        seed: Of the bootstrap.

    Raises:
        ValueError: The arms are empty, did not get the same number of questions, or questions have no known
            answer.
    """
    means = _means(arms, seed)
    enough = len(next(iter(arms.values()))) >= LEAST
    plain = {name: accuracy(graded(records)) or 0.0 for name, records in arms.items()}
    tokens = {name: sum(o["large_tokens"] for o in records) for name, records in arms.items()}
    metrics: dict[str, ArmMetrics] = {}
    for name, records in arms.items():
        accuracies = zip(*(means[f"{arm} correct"] for arm in (name, SMALL, LARGE)), strict=True)
        spent = zip(*(means[f"{arm} tokens"] for arm in (name, LARGE)), strict=True)
        # Share and PGR of the models alone are 0 and 1 by definition.
        given = enough and name not in (SMALL, LARGE)
        metrics[name] = ArmMetrics(
            n=len(records),
            errors=sum(record["error"] is not None for record in records),
            accuracy=plain[name],
            accuracy_interval=chance_interval(sum(graded(records)), len(records)),
            large_tokens=tokens[name],
            large_tokens_per_question=tokens[name] / len(records),
            share=share_of_large_tokens(tokens[name], tokens[LARGE]),
            share_interval=interval([share_of_large_tokens(*row) for row in spent]) if given else None,
            pgr=performance_gap_recovered(plain[name], plain[SMALL], plain[LARGE]),
            pgr_interval=interval([performance_gap_recovered(*row) for row in accuracies])
            if given and graded(records) != graded(arms[LARGE])
            else None,
        )
    return metrics


def accuracy_difference(left: Sequence[Record], right: Sequence[Record]) -> Difference:
    """Returns the accuracy of ``left`` minus that of ``right``, paired by question.

    Raises:
        ValueError: They are empty or did not get the same number of questions.
    """
    seen = PairedOutcomes.of(graded(left), graded(right))
    return Difference(accuracy=0.0 - seen.loss, interval=seen.gain_interval())


def graded(records: Sequence[Record]) -> list[bool]:
    """Returns whether each question was answered right.

    Raises:
        ValueError: A question has no known answer.
    """
    if any(record["correct"] is None for record in records):
        raise ValueError("questions without a known answer have no accuracy")
    return [bool(record["correct"]) for record in records]


def _means(arms: Mapping[str, Sequence[Record]], seed: int) -> Means:
    columns: dict[str, list[float]] = {}
    for name, records in arms.items():
        columns[f"{name} correct"] = [float(right) for right in graded(records)]
        columns[f"{name} tokens"] = [float(record["large_tokens"]) for record in records]
    return resampled_means(columns, seed=seed)


def _cost_of_small_and_scorer(row: Row, prices: Prices) -> float | None:
    small, cached = row["prefill"]["small"], row["cached_prefill"]["small"]
    written = row["tokens"]["small"] + row["tokens"]["small_discarded"]
    scorer = prices.scorer_cost(row["tokens"]["scorer"], row["tokens"].get("scorer_output", 0))
    return None if scorer is None else prices.small.cost(small, written, cached) + scorer


NUMBERS: dict[str, Callable[[Row], float | None]] = {
    "correct": lambda row: row["correct"],
    "large_tokens": lambda row: row["large_tokens"],
    "small_tokens": lambda row: row["tokens"]["small"] + row["tokens"]["small_discarded"],
    "discarded_tokens": lambda row: row["tokens"]["small_discarded"] + row["tokens"]["large_discarded"],
    "scorer_tokens": lambda row: row["tokens"]["scorer"],
    "scorer_output_tokens": lambda row: row["tokens"].get("scorer_output", 0),
    "small_prefill": lambda row: row["prefill"]["small"],
    "large_prefill": lambda row: row["prefill"]["large"],
    "small_cached_prefill": lambda row: row["cached_prefill"]["small"],
    "large_cached_prefill": lambda row: row["cached_prefill"]["large"],
    "small_calls": lambda row: row["calls"]["small"],
    "large_calls": lambda row: row["calls"]["large"],
    "scorer_calls": lambda row: row["calls"]["scorer"],
    "cost": lambda row: row["cost"],
    "seconds": lambda row: row["seconds"],
    "first_step": lambda row: row["first_step_seconds"],
    "tokens": lambda row: (
        row["prefill"]["small"] + row["prefill"]["large"] + sum(row["tokens"].get(kind, 0) for kind in TOKENS)
    ),
}
"""Value of a row; None where it is unknown."""
ADDED = "added_cost"
"""Cost of the small model and of the scorer, the part of ``cost`` that is not the large model's."""


@dataclass(frozen=True, slots=True)
class MetricColumns:
    """The numbers of one arm.

    Attributes:
        errors: Runs that failed.
        of: By the keys of `NUMBERS` and `ADDED`: shape (questions,), the mean over the samples of each; NaN
            where one is not known.
    """

    errors: int
    of: dict[str, NDArray[np.float64]]

    @property
    def graded(self) -> bool:
        """Whether the right answers are known."""
        correct = self.of["correct"]
        return bool((correct == correct).all())

    def mean(self, name: str) -> float:
        """Returns the mean over the questions."""
        return float(self.of[name].mean())


def read_metric_columns(
    rows: Iterable[Row], *, n: int, samples: int, prices: Prices, repeats: frozenset[int] = frozenset()
) -> MetricColumns:
    """Reads the numbers of an arm off its rows.

    Args:
        rows: Of one arm, in any order; questions and samples beyond those wanted are passed over.
        n: Questions wanted: the first of the dataset.
        samples: Of each.
        prices: To separate the large model's cost from that of the others.
        repeats: Places of questions that are earlier ones again: they do not count.

    Raises:
        InputError: Rows are missing or not graded, or there are two of one question and sample.
    """
    import numpy as np

    table = np.zeros((len(NUMBERS) + 1, n))
    seen, errors = np.zeros((n, samples), dtype=bool), 0
    for row in rows:
        index, sample = row["index"], row["sample"]
        if index >= n or sample >= samples or index in repeats:
            continue
        if seen[index, sample]:
            raise InputError(f"arm {row['arm']}: question {index}, sample {sample} has two rows")
        if failed_in_grader(row):
            raise InputError(f"arm {row['arm']}: {row['error']}")
        seen[index, sample] = True
        errors += row["error"] is not None
        numbers = [*(number(row) for number in NUMBERS.values()), _cost_of_small_and_scorer(row, prices)]
        table[:, index] += [np.nan if number is None else number for number in numbers]
    counted = np.array([index not in repeats for index in range(n)])
    seen[~counted] = True
    if not seen.all():
        index, sample = (int(place) for place in np.argwhere(~seen)[0])
        raise InputError(
            f"{int((~seen).sum())} rows are missing, the first of question {index}, sample {sample}"
        )
    return MetricColumns(errors, dict(zip((*NUMBERS, ADDED), table[:, counted] / samples, strict=True)))


SMALL, LARGE = "small", "large"
"""The arms of the models alone."""
QUERY_LEVEL = ("router", "cascade", "score_cascade")
"""Families of baselines that route whole questions."""
_MEANS = (*(name for name in NUMBERS if name != "first_step"), ADDED)
_PLAIN = tuple(name for name in _MEANS if name not in ("correct", ADDED))
_QUANTILES = {
    "seconds_median": ("seconds", 0.5),
    "seconds_p95": ("seconds", 0.95),
    "first_step_median": ("first_step", 0.5),
    "first_step_p95": ("first_step", 0.95),
}
UNKNOWN = Metric(value=None, interval=None)


@dataclass(frozen=True, slots=True)
class Resampled:
    """The means of an arm, and in each resample of the questions; draws are the same for all arms.

    Attributes:
        plain: By name.
        means: By name, shape (resamples,).
        quantiles: Metrics that are no means.
        errors: Runs that failed.
        correct: Share of right samples of each question; None where the right answers are not known.
    """

    plain: Mapping[str, float]
    means: Mapping[str, Array]
    quantiles: Mapping[str, Metric]
    errors: int
    correct: Array | None


def resample(columns: MetricColumns, *, seed: int = 0, timed: bool = True) -> Resampled:
    """Draws questions with replacement; after this the columns are not needed any more.

    Args:
        columns: The numbers of an arm.
        seed: Of the draws.
        timed: Whether the seconds are those that the models took; not where a cache has answered.
    """
    known = {"correct": columns.graded, "seconds": timed}
    names = [name for name in _MEANS if known.get(name, True)]
    return Resampled(
        plain={name: columns.mean(name) for name in names},
        means=resampled_means({name: columns.of[name] for name in names}, seed=seed),
        quantiles={
            metric: _quantile(columns.of[name], share, seed) if timed else UNKNOWN
            for metric, (name, share) in _QUANTILES.items()
        },
        errors=columns.errors,
        correct=columns.of["correct"] if columns.graded else None,
    )


def _quantile(values: Array, share: float, seed: int) -> Metric:
    known = values[values == values]
    if not len(known):
        return UNKNOWN
    drawn = resampled_quantiles(known, share, seed=seed) if len(known) >= LEAST else None
    return Metric(value=quantile(known, share), interval=None if drawn is None else interval(drawn))


def lacking_prices(arm: Resampled, prices: Prices) -> list[str]:
    """Names the prices that are lacking of the tokens that an arm reports (`Prices.lacking`)."""
    own = arm.plain
    return prices.lacking(
        {"small": own["small_prefill"], "large": own["large_prefill"], "scorer": own["scorer_tokens"]},
        {
            "small": own["small_tokens"],
            "large": own["large_tokens"],
            "scorer": own["scorer_output_tokens"],
        },
    )


class Comparison:
    """All arms of an evaluation, compared to each other.

    Args:
        arms: By name; those of the models alone, `SMALL` and `LARGE`, are among them.
        settings: Of each arm.
        n: Questions.
        unpriced: Prices that are lacking (`Prices.lacking`): without them every cost is unknown.
    """

    def __init__(
        self,
        arms: Mapping[str, Resampled],
        settings: Mapping[str, ArmSettings],
        *,
        n: int,
        unpriced: Sequence[str] = (),
    ) -> None:
        self.arms, self.settings, self.n, self.unpriced = arms, settings, n, unpriced
        self.graded = all("correct" in arm.plain for arm in arms.values())

    def spread(self, drawn: Any) -> Interval | None:
        """Returns the interval of resampled values; None of too few questions to resample."""
        return interval(drawn) if self.n >= LEAST else None

    def outcomes(self, name: str, other: str) -> PairedOutcomes | None:
        """Returns where two arms differ in what is right; None where the right answers are not known."""
        own, reference = self.arms[name].correct, self.arms[other].correct
        if own is None or reference is None:
            return None
        return PairedOutcomes.of(own.tolist(), reference.tolist())

    def summaries(self) -> list[ArmSummary]:
        """Returns the metrics of each arm."""
        return [self._summary(name) for name in self.arms]

    def _summary(self, name: str) -> ArmSummary:
        settings = self.settings[name]
        return ArmSummary(
            arm=name,
            label=arm_label(name, settings),
            kind=settings["kind"],
            family=settings["family"],
            policy=settings["policy"],
            n=self.n,
            errors=self.arms[name].errors,
            metrics=self._metrics(name),
            matched_budget=self.matched_budget(name),
            differences={other: self.differences(name, other) for other in (SMALL, LARGE) if other != name},
            savings=self.savings(name),
        )

    def savings(self, name: str) -> dict[str, Metric]:
        """Returns what an arm saves net against the large model alone, which was run on the same questions.

        By the keys of `trim_graph.savings.Savings`: ``tokens`` of all models and kinds, ``large_tokens``,
        ``cost`` (None where the large model, or tokens of another one, have no price) and ``seconds`` of wall
        clock. Negative where the arm used more.
        """
        spent = {key: self.difference(name, LARGE, key) for key in ("tokens", "large_tokens", "seconds")}
        priced = self.arms[LARGE].plain["cost"] > 0
        spent["cost"] = self.difference(name, LARGE, "cost") if priced else UNKNOWN
        return {key: _negative(spent[key]) for key in ("tokens", "large_tokens", "cost", "seconds")}

    def large_alone(self) -> LargeAlone:
        """Returns what the arms of the models alone show of the large one, for `net_savings` of later runs.

        The pace is that of the runs' wall clock, at the concurrency of the evaluation.
        """
        small, large = self.arms[SMALL].plain, self.arms[LARGE].plain
        return LargeAlone(
            length_ratio=_ratio(large["large_tokens"], small["small_tokens"]) or None,
            seconds_per_token=_ratio(large["seconds"], large["large_tokens"]) if "seconds" in large else None,
        )

    def matched_budget(self, name: str) -> dict[str, MatchedBudget]:
        """Compares an arm with what other families reach at its spend; nothing without right answers.

        A policy is compared with random routing and with baselines that have a curve, a baseline with random
        routing.
        """
        kind = self.settings[name]["kind"]
        if not self.graded or kind in ("reference", "random"):
            return {}
        curves = self._families("random")
        if kind != "baseline":
            curves |= {family: arms for family, arms in self._families("baseline").items() if len(arms) > 1}
        return {family: self._at_spend_of(name, arms) for family, arms in curves.items()}

    def _at_spend_of(self, name: str, family: Sequence[str]) -> MatchedBudget:
        arm, curve = self.arms[name], [self.arms[one] for one in (SMALL, *family, LARGE)]
        spends, rights = ([one.plain[key] for one in curve] for key in ("large_tokens", "correct"))
        spend, right = arm.plain["large_tokens"], arm.plain["correct"]
        if spend > max(spends):
            return MatchedBudget(accuracy=UNKNOWN, difference=UNKNOWN, curve_ends=max(spends))
        drawn_spends, drawn_rights = (
            [one.means[key] for one in curve] for key in ("large_tokens", "correct")
        )
        value = interpolated(spends, rights, spend)
        drawn = interpolated(drawn_spends, drawn_rights, arm.means["large_tokens"])
        return MatchedBudget(
            accuracy=Metric(value=value, interval=self.spread(drawn)),
            difference=Metric(value=right - value, interval=self.spread(arm.means["correct"] - drawn)),
            curve_ends=None,
        )

    def _families(self, *kinds: str) -> dict[str, list[str]]:
        families: dict[str, list[str]] = {}
        for name in self.arms:
            if self.settings[name]["kind"] in kinds:
                families.setdefault(self.settings[name]["family"], []).append(name)
        return families

    def _metrics(self, name: str) -> dict[str, Metric]:
        arm = self.arms[name]
        found = {
            "accuracy": self._mean(name, "correct"),
            "share": self._derived(name, "share"),
            "pgr": self._derived(name, "pgr"),
            "ibc": self._derived(name, "ibc"),
        }
        return {**found, **{key: self._mean(name, key) for key in _PLAIN}, **arm.quantiles}

    def _mean(self, name: str, key: str) -> Metric:
        arm = self.arms[name]
        if key not in arm.plain or (key == "cost" and self.unpriced):
            return UNKNOWN
        if key == "correct" and arm.correct is not None:
            return Metric(value=arm.plain[key], interval=chance_interval(float(arm.correct.sum()), self.n))
        return Metric(value=arm.plain[key], interval=self.spread(arm.means[key]))

    def differences(self, name: str, other: str) -> dict[str, Metric]:
        """Returns what one arm has more of than another: accuracy, cost, seconds."""
        keys = {"accuracy": "correct", "cost": "cost", "seconds": "seconds", "large_tokens": "large_tokens"}
        return {metric: self.difference(name, other, key) for metric, key in keys.items()}

    def difference(self, name: str, other: str, key: str) -> Metric:
        """Returns the mean of a column in one arm minus that in another."""
        left, right = self.arms[name], self.arms[other]
        if key not in left.plain or key not in right.plain or (key == "cost" and self.unpriced):
            return UNKNOWN
        value = left.plain[key] - right.plain[key]
        if key == "correct" and (seen := self.outcomes(name, other)) is not None:
            return Metric(value=value, interval=seen.gain_interval())
        return Metric(value=value, interval=self.spread(left.means[key] - right.means[key]))

    def _derived(self, name: str, metric: str) -> Metric:
        """Returns a metric that the models alone have by definition, and so without an interval."""
        plain, drawn = self.point(name, drawn=False), self.point(name, drawn=True)
        place = {"share": 0, "pgr": 1}.get(metric)
        if place is None:
            value, values = _ibc(plain), None if drawn[1] is None else ibc(drawn[1], drawn[0])
        else:
            value, values = plain[place], drawn[place]
        if value is None:
            return UNKNOWN
        # Where no question differs from the large model's, no resample has another PGR.
        seen = self.outcomes(name, LARGE)
        alike = metric != "share" and seen is not None and seen.lost == seen.gained == 0
        unspread = name in (SMALL, LARGE) or values is None or alike
        return Metric(value=value, interval=None if unspread else self.spread(values))

    def point(self, name: str, *, drawn: bool) -> tuple[Any, Any]:
        """Returns share and PGR of an arm: numbers or None, or arrays over the resamples."""
        arm, small, large = (self._of(one, drawn) for one in (name, SMALL, LARGE))
        share = _ratio(arm["large_tokens"], large["large_tokens"])
        if not self.graded:
            return share, None
        return share, _ratio(arm["correct"] - small["correct"], large["correct"] - small["correct"])

    def _of(self, name: str, drawn: bool) -> Mapping[str, Any]:
        return self.arms[name].means if drawn else self.arms[name].plain

    def curves(self) -> list[CurveSummary]:
        """Returns the curve of each family; none where the right answers are not known."""
        if not self.graded:
            return []
        families = self._families("policy", "sweep", "random", "baseline")
        deltas = {family: self._delta_ibc(names) for family, names in families.items()}
        return [self._curve(family, names, deltas) for family, names in families.items()]

    def _ordered(self, names: Sequence[str]) -> list[str] | None:
        """Returns a family's arms in order of share; None where a share or PGR is undefined."""
        points = {name: self.point(name, drawn=False) for name in names}
        known = all(value is not None for point in points.values() for value in point)
        return sorted(names, key=lambda name: points[name]) if known else None

    def _delta_ibc(self, names: Sequence[str]) -> tuple[float, Array] | None:
        """Returns a curve's mean Delta IBC up to its CPT(95), and the same in each resample."""
        if (order := self._ordered(names)) is None:
            return None
        plain = [self.point(name, drawn=False) for name in order]
        up_to = cpt(plain, CPT_TARGETS[-1])
        drawn = [self.point(name, drawn=True) for name in order]
        return mean_delta_ibc(plain, up_to=up_to), mean_delta_ibc(drawn, up_to=up_to)

    def _over_query_level(
        self, family: str, deltas: Mapping[str, tuple[float, Array] | None]
    ) -> OverQueryLevel | None:
        query_level = {name: delta for name in QUERY_LEVEL if (delta := deltas.get(name)) is not None}
        ours = deltas[family]
        if ours is None or not query_level or family in query_level:
            return None
        best = max(query_level, key=lambda name: query_level[name][0])
        theirs = query_level[best]
        spread = self.spread(theirs[1])
        clear = spread is not None and spread.low > 0
        return OverQueryLevel(
            family=best,
            difference=Metric(value=ours[0] - theirs[0], interval=self.spread(ours[1] - theirs[1])),
            ratio=Metric(value=ours[0] / theirs[0], interval=self.spread(ours[1] / theirs[1]))
            if clear
            else UNKNOWN,
        )

    def _curve(
        self, family: str, names: Sequence[str], deltas: Mapping[str, tuple[float, Array] | None]
    ) -> CurveSummary:
        points = {name: self.point(name, drawn=False) for name in names}
        ordered, delta = self._ordered(names), deltas[family]
        known, order = ordered is not None, ordered or list(names)
        plain = [points[name] for name in order]
        drawn = [self.point(name, drawn=True) for name in order]

        def metric(compute: Any) -> Metric:
            return Metric(value=compute(plain), interval=self.spread(compute(drawn))) if known else UNKNOWN

        small, large = (self.arms[name] for name in (SMALL, LARGE))
        mean = metric(mean_ibc)

        def within(share: float) -> Metric:
            if not known:
                return UNKNOWN
            gap = large.plain["correct"] - small.plain["correct"]
            gaps = large.means["correct"] - small.means["correct"]
            return Metric(
                value=small.plain["correct"] + best_pgr(plain, share) * gap,
                interval=self.spread(small.means["correct"] + best_pgr(drawn, share) * gaps),
            )

        return CurveSummary(
            family=family,
            points=[CurvePoint(arm=name, share=points[name][0], pgr=points[name][1]) for name in order],
            mean_ibc=mean,
            mean_delta_ibc=_shifted(mean, -1.0),
            cpt={
                f"{round(100 * target)}": metric(lambda given, t=target: cpt(given, t))
                for target in CPT_TARGETS
            },
            delta_ibc=UNKNOWN if delta is None else Metric(value=delta[0], interval=self.spread(delta[1])),
            over_query_level=self._over_query_level(family, deltas),
            budgeted_accuracy={f"{share:g}": within(share) for share in BUDGETS},
        )


def _negative(metric: Metric) -> Metric:
    value, spread = metric["value"], metric["interval"]
    if value is None:
        return UNKNOWN
    turned = None if spread is None else Interval(0.0 - spread.high, 0.0 - spread.low)
    return Metric(value=0.0 - value, interval=turned)


def _ratio(above: Any, below: Any) -> Any:
    """Divides; None or NaN where the divisor is not above 0."""
    if not hasattr(below, "shape"):
        return above / below if below > 0 else None
    import numpy as np

    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)


def _ibc(point: tuple[float | None, float | None]) -> float | None:
    share, pgr = point
    return None if share is None or pgr is None else ibc(pgr, share)


def _shifted(metric: Metric, by: float) -> Metric:
    value, spread = metric["value"], metric["interval"]
    if value is None:
        return UNKNOWN
    return Metric(
        value=value + by, interval=None if spread is None else type(spread)(*(b + by for b in spread))
    )
