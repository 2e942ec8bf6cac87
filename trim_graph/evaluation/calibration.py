"""Chooses the operating point of a family of policies on validation questions: for a spend, a loss or a PGR.

A loss of accuracy against the large model alone is tested, not estimated: the cheapest of many points looks
better on the questions it was chosen on than it is. The numbers of a `ParameterSweep` are tested in a fixed
sequence, from the one that spends most downwards, until one fails; each test may then have the whole error
(fixed sequence testing: A. N. Angelopoulos et al., "Learn then Test", arXiv 2110.01052). The policies of a
`PolicyList` have no order, and share the error (Bonferroni).

Records are kept in a folder, so that an interrupted calibration resumes, and scores in memory.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

from trim_graph.adapters import ScorableStep, ScorerReply
from trim_graph.adapters.base import (
    as_scorer,
    read_scores,
    reads_reports,
    reads_token_probability,
    step_facts,
    step_texts,
)
from trim_graph.errors import InputError, SettingsError, TrimError, counted
from trim_graph.savings import LargeAlone
from trim_graph.storage.journal import Journal, without_addresses
from trim_graph.storage.rows import read_rows

from .arms import ParameterSweep, PolicyList, PolicyMapping
from .comparison import graded
from .metrics import (
    Interval,
    accuracy,
    interval,
    performance_gap_recovered,
    resampled_means,
    share_of_large_tokens,
)
from .noninferiority import CONFIDENCE, PairedOutcomes, chance_interval, further_questions
from .records import Metric, Question, Record, WorkItem, new_record, write_json
from .runner import run_arm

ROUNDS = 9
"""Most operating points tried in a search."""
CLOSE = 0.01
"""How far, relative to the target, a spend may be off for the search to end."""
_DIGITS = 6
_MEASURED = ("correct", "large_tokens", "tokens", "seconds", "cost")


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a calibration.

    Attributes:
        kind: ``large_share``: this share of the tokens that the large model alone uses. ``max_cost``: no more
            than this per question, by the price table. ``pgr``: this much of the gap, as cheap as can be.
            ``save``: at least this share of those tokens is saved, with the least loss. ``max_loss``: at most
            this loss of accuracy is shown, as cheap as can be.
        value: In (0, 1], but for a cost.

    Raises:
        SettingsError: The value is out of range.
    """

    kind: Literal["large_share", "max_cost", "pgr", "save", "max_loss"]
    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < float("inf") or (self.kind != "max_cost" and self.value > 1):
            allowed = "above 0" if self.kind == "max_cost" else "above 0 and at most 1"
            raise SettingsError(f"{self.kind} is {self.value}: choose a number {allowed}")
        if self.kind in ("save", "max_loss") and self.value == 1:
            raise SettingsError(f"{self.kind} is {self.value}: choose a number above 0 and below 1")

    @property
    def level(self) -> float:
        """What `MeasuredPoint.value` is compared with."""
        return 1 - self.value if self.kind == "save" else self.value

    @property
    def is_limit(self) -> bool:
        """Whether `MeasuredPoint.value` must not exceed the level."""
        return self.kind in ("max_cost", "save", "max_loss")


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """Measurement of one operating point on the validation questions.

    Attributes:
        setting: What was chosen: a number, or which policy of a list.
        accuracy: None where no answers are known.
        share: Of large tokens; None where the large model alone was not run.
        pgr: None where the models alone were not run, or the large one is no better.
        cost: Per question, by the price table.
        paired: Compared to the large model alone; None where it was not run, or no answers are known.
    """

    setting: float | str
    accuracy: float | None
    share: float | None
    pgr: float | None
    cost: float = 0.0
    paired: PairedOutcomes | None = None

    def value(self, target: Target) -> float | None:
        """Returns the metric that a target is about."""
        return {
            "large_share": self.share,
            "max_cost": self.cost,
            "pgr": self.pgr,
            "save": self.share,
            "max_loss": None if self.paired is None else self.paired.loss,
        }[target.kind]


@dataclass(frozen=True, slots=True)
class Selection:
    """Answer of a calibration.

    Attributes:
        point: The operating point; None: undecided.
        undecided: What a decision, or one for a cheaper point, failed on: the first point of a sequence whose
            loss is not shown to be allowed, or the large model against the small one for a PGR.
        further: How many more questions are likely to decide that; None where nothing failed, or none would.
        confidence: Of the bound of each point's loss.
        nearest: The point that ``undecided`` is of; None where that is no point.
    """

    point: MeasuredPoint | None
    undecided: PairedOutcomes | None = None
    further: int | None = None
    confidence: float = CONFIDENCE
    nearest: MeasuredPoint | None = None


class Store(Protocol):
    """Keeps the outcomes of a policy between two calibrations."""

    def read(self) -> list[Record]:
        """Returns what is there."""
        ...

    def append(self, record: Record) -> None:
        """Keeps one more."""
        ...

    def __enter__(self) -> Store:
        """Opens it."""
        ...

    def __exit__(self, *failure: Any) -> None:
        """Closes it."""
        ...


class Calibrator:
    """Measures policies on one set of questions, each only once.

    Args:
        build: Makes the graph of a policy.
        questions: To measure on.
        scores: Scores of drafts seen so far, in order of size: where between 0 and 1 settings differ.
        concurrency: Most questions under way at once.
        store: Opens what is kept of a policy's outcomes; default: nothing is kept.
        on_begin: Called before a policy is run, with it and how many outcomes are there already.
        on_record: Called after each question.
        on_point: Called with each point that was measured.
    """

    def __init__(
        self,
        build: Callable[[PolicyMapping], Any],
        questions: Sequence[Question],
        *,
        scores: Callable[[], Sequence[float]] = list,
        concurrency: int = 64,
        store: Callable[[PolicyMapping], Store] | None = None,
        on_begin: Callable[[PolicyMapping, int], None] = lambda policy, done: None,
        on_record: Callable[[Record], None] = lambda record: None,
        on_point: Callable[[MeasuredPoint], None] = lambda point: None,
    ) -> None:
        self.build, self.questions, self.scores, self.concurrency = build, questions, scores, concurrency
        self.store, self.on_begin, self.on_record, self.on_point = store, on_begin, on_record, on_point
        self.graded = all(question.grade is not None for question in questions)
        self.small: list[Record] | None = None
        self.large: list[Record] | None = None
        self.points: dict[str, MeasuredPoint] = {}
        self._known: dict[str, list[Record]] = {}

    async def measure(self, *, small: bool = True, large: bool = True) -> None:
        """Runs the models alone: what everything else is compared with."""
        if small:
            self.small = await self.outcomes({"type": "small_only"})
        if large:
            self.large = await self.outcomes({"type": "large_only"})

    def large_alone(self, *, timed: bool = True) -> LargeAlone:
        """Returns what the runs of the models alone show of the large one, for `net_savings` of later runs.

        The pace is that of the runs' wall clock, at the concurrency of the calibration.

        Args:
            timed: Whether the seconds were those of calls, and not of a cache.
        """
        large, tokens = self.large or [], spent(self.large or ())
        written = sum(
            record["tokens"]["small"] + record["tokens"]["small_discarded"] for record in self.small or ()
        )
        return LargeAlone(
            length_ratio=tokens / written if tokens and written else None,
            seconds_per_token=sum(record["seconds"] for record in large) / tokens
            if tokens and timed
            else None,
        )

    async def point(self, family: ParameterSweep | PolicyList, setting: float | str) -> MeasuredPoint:
        """Measures one operating point."""
        policy = family.policy(setting)
        key = json.dumps(policy, sort_keys=True)
        if key not in self.points:
            outcomes = await self.outcomes(policy)
            right = accuracy(graded(outcomes)) if self.graded else None
            self.points[key] = MeasuredPoint(
                setting=setting,
                accuracy=right,
                share=None
                if self.large is None
                else share_of_large_tokens(spent(outcomes), spent(self.large)),
                pgr=self._pgr(right),
                cost=sum(record["cost"] for record in outcomes) / len(outcomes),
                paired=self._paired(outcomes, self.large),
            )
            self.on_point(self.points[key])
        return self.points[key]

    def _pgr(self, right: float | None) -> float | None:
        if right is None or self.small is None or self.large is None:
            return None
        alone = [accuracy(graded(outcomes)) or 0.0 for outcomes in (self.small, self.large)]
        return performance_gap_recovered(right, *alone)

    def _paired(
        self, outcomes: Sequence[Record], reference: Sequence[Record] | None
    ) -> PairedOutcomes | None:
        if not self.graded or reference is None:
            return None
        return PairedOutcomes.of(graded(outcomes), graded(reference))

    @property
    def none_right(self) -> bool:
        """Whether both models alone were run and neither answered a single question right."""
        alone = [*(self.small or ()), *(self.large or ())]
        measured = self.graded and self.small is not None and self.large is not None
        return measured and not any(graded(alone))

    async def outcomes(self, policy: PolicyMapping) -> list[Record]:
        """Runs a policy, or returns the records of an earlier run.

        Raises:
            TrimError: A question failed: a figure that leaves questions out is no figure.
        """
        key = json.dumps(policy, sort_keys=True)
        if key not in self._known:
            with self.store(policy) if self.store else nullcontext(None) as store:
                self._known[key] = await self._run(policy, store)
        return self._known[key]

    async def _run(self, policy: PolicyMapping, store: Store | None) -> list[Record]:
        found = {o["index"]: o for o in store.read() if o["index"] < len(self.questions)} if store else {}
        self.on_begin(policy, len(found))
        left = [index for index in range(len(self.questions)) if index not in found]

        def keep(record: Record) -> None:
            if record["error"] is not None:
                raise TrimError(f"calibration cannot leave questions out: {record['error']}")
            named = _measured(left[record["index"]], record)
            found[named["index"]] = named
            if store:
                store.append(named)
            self.on_record(named)

        questions = [self.questions[index] for index in left]
        if questions:
            graph = self.build(policy)
            await run_arm(graph, questions, concurrency=self.concurrency, on_record=keep)
        return [found[index] for index in range(len(self.questions))]

    async def select(self, family: ParameterSweep | PolicyList, target: Target) -> Selection:
        """Chooses the operating point for a target, or says how many questions are missing.

        Raises:
            InputError: See `find`.
            TrimError: A question failed.
        """
        confidence = CONFIDENCE
        if isinstance(family, PolicyList):
            confidence = 1 - (1 - CONFIDENCE) / len(family.policies)
        if target.kind == "max_loss":
            return await self._test(family, target, confidence)
        point = await self.find(family, target)
        gap = self._paired(self.large or (), self.small) if target.kind == "pgr" else None
        if gap is not None and gap.loss_bound() > 0:
            return Selection(None, gap, further_questions(gap, 0.0), confidence)
        return Selection(point, confidence=confidence)

    async def _test(
        self, family: ParameterSweep | PolicyList, target: Target, confidence: float
    ) -> Selection:
        """Chooses the cheapest point whose loss is shown to be allowed."""
        await self._measure_for(target)
        if isinstance(family, PolicyList):
            points = [await self.point(family, name) for name in family.policies]
        else:
            points = await self._descend(family, target.value)
        # All that are shown are so together: which of them is chosen needs no further correction.
        shown = [point for point in points if _bound(point, confidence) <= target.value]
        saving = [point for point in shown if (point.share or 0.0) < 1]
        failed = [point for point in points if point.paired is not None and point not in shown]
        nearest = min(failed, key=lambda point: point.value(target) or 0.0, default=None)
        undecided = None if nearest is None else nearest.paired
        return Selection(
            point=min(saving, key=lambda point: point.share or 0.0, default=None),
            undecided=undecided,
            further=None if undecided is None else further_questions(undecided, target.value, confidence),
            confidence=confidence,
            nearest=nearest,
        )

    async def _descend(self, family: ParameterSweep, max_loss: float) -> list[MeasuredPoint]:
        """Measures the numbers of a sequence up to the first whose loss is not shown to be allowed."""
        points: list[MeasuredPoint] = []
        for setting in family.sequence():
            scores = self.scores() if family.scored and points else ()
            if scores and bisect_left(scores, setting) == bisect_left(scores, float(points[-1].setting)):
                continue  # no draft has a score between the two thresholds: the runs would be the same
            points.append(await self.point(family, setting))
            if _bound(points[-1], CONFIDENCE) > max_loss:
                break
        return points

    async def find(self, family: ParameterSweep | PolicyList, target: Target) -> MeasuredPoint:
        """Returns the point that was measured nearest to a target, be it shown or not.

        Raises:
            InputError: Answers are needed and missing, neither model has any right, or the large model is no
                better than the small one.
            TrimError: A question failed.
        """
        await self._measure_for(target)
        if isinstance(family, PolicyList):
            points = [await self.point(family, name) for name in family.policies]
        else:
            points = await self._search(family, target)
        return choose(points, target, by_accuracy=isinstance(family, PolicyList))

    async def _measure_for(self, target: Target) -> None:
        """Runs the models alone where a target is relative to them, and checks that it can be."""
        if target.kind in ("pgr", "max_loss") and not self.graded:
            what = "a PGR" if target.kind == "pgr" else "a loss of accuracy"
            raise InputError(f"{what} needs the right answers, and the dataset has none: choose a spend")
        alone = self.graded and target.kind != "max_cost"
        await self.measure(small=alone, large=target.kind != "max_cost")
        if target.kind in ("large_share", "save", "max_loss") and not spent(self.large or ()):
            raise InputError("the large model alone wrote nothing: there is no share to choose")
        if target.kind in ("pgr", "max_loss", "save") and self.none_right:
            raise InputError(
                f"neither model alone answered one of {counted(len(self.questions), 'question')} "
                "right, so nothing is "
                "known of a loss: check the grader and the prompt"
            )
        if target.kind == "pgr" and self._pgr(1.0) is None:
            raise InputError("the large model is no better than the small one on these questions")

    async def _search(self, family: ParameterSweep, target: Target) -> list[MeasuredPoint]:
        """Closes in on the setting that meets the target; spend and PGR are monotonic, but for noise."""
        low, high = 0.0, 1.0
        values: dict[float, float] = {}
        # In log-odds most of the spend may lie anywhere: halving finds it, guessing from the ends does not.
        if target.kind != "max_cost" and not family.log_odds:
            values = {low: 0.0, high: 1.0}  # roughly; measured only where needed
        points: list[MeasuredPoint] = []
        if not family.complete:
            points.append(await self.point(family, family.setting(high)))
            values[high] = points[0].value(target) or 0.0
            if values[high] <= target.level:
                return points
        above: list[bool] = []
        for _ in range(ROUNDS):
            # An end that has stayed twice is far off: cutting in proportion to it creeps (false position).
            halve = target.kind == "pgr" or above[-2:] in ([True, True], [False, False])
            level = None if halve else target.level
            guess = _between(low, high, values, level, self.scores() if family.scored else ())
            if guess is None:
                break
            point = await self.point(family, family.setting(guess))
            points.append(point)
            value = point.value(target) or 0.0
            values[guess] = value
            near = abs(value - target.level) <= CLOSE * target.level
            if target.kind != "pgr" and near and not (target.is_limit and value > target.level):
                return points
            above.append(value >= target.level)
            low, high = (low, guess) if above[-1] else (guess, high)
        # At an end the search has taken a value for granted.
        ends = [family.setting(end) for end in (low, high) if end in (0.0, 1.0)]
        return [*points, *[await self.point(family, end) for end in ends]]


def _bound(point: MeasuredPoint, confidence: float) -> float:
    """Returns the bound of a point's loss, which is known."""
    assert point.paired is not None
    return point.paired.loss_bound(confidence)


def _between(
    low: float, high: float, values: dict[float, float], level: float | None, scores: Sequence[float]
) -> float | None:
    """Guesses a setting between two; None where none of those between makes a difference.

    Where scores are known, it is not the setting that is cut in proportion but the number of scores below it:
    scores crowd at 0 and 1.

    Args:
        low: A setting below the one looked for.
        high: A setting above it.
        values: What was measured at settings.
        level: The value looked for, which cuts in proportion to the values at the ends; None: in halves.
        scores: Of the drafts so far.
    """
    part = 0.5
    if level is not None and {low, high} <= values.keys() and values[high] > values[low]:
        part = (level - values[low]) / (values[high] - values[low])
        part = min(max(part, 0.05), 0.95)
    if not scores:
        guess = low + part * (high - low)
    else:
        between = sorted({score for each in scores if low <= (score := round(each, _DIGITS)) < high})
        if len(between) < 2:
            return None
        place = min(max(round(part * len(between)), 1), len(between) - 1)
        guess = (between[place - 1] + between[place]) / 2
    guess = round(guess, _DIGITS)
    return guess if low < guess < high else None


def choose(points: Sequence[MeasuredPoint], target: Target, *, by_accuracy: bool = False) -> MeasuredPoint:
    """Returns the point that meets a target best.

    For a share the nearest; for a cost, or a share to be saved, the dearest within it, else the cheapest; for
    a PGR the cheapest that recovers enough, else the one that recovers most.

    Args:
        points: Any number.
        target: The target.
        by_accuracy: Whether of those that save enough the most accurate is chosen, where that is known: a
            policy of a list is not better because it spends more.

    Raises:
        ValueError: No point has the metric the target is about.
    """
    known = [(point, value) for point in points if (value := point.value(target)) is not None]
    if not known:
        raise ValueError("the large model is no better than the small one on these questions")
    if target.kind == "large_share":
        return min(known, key=lambda item: (abs(item[1] - target.value), item[1]))[0]
    if target.is_limit:
        within = [item for item in known if item[1] <= target.level]
        if not within:
            return min(known, key=lambda item: item[1])[0]
        if target.kind == "save" and by_accuracy:
            return max(within, key=lambda item: (item[0].accuracy or 0.0, -item[1]))[0]
        return max(within, key=lambda item: item[1])[0]
    good = [point for point, value in known if value >= target.value]
    if good:
        return min(good, key=lambda point: (point.share or 0.0, point.setting))
    return max(known, key=lambda item: (item[1], -(item[0].share or 0.0)))[0]


def _measured(index: int, values: Mapping[str, Any]) -> Record:
    """Returns the record of a question with nothing but what a calibration measures."""
    item = WorkItem(index, 0, Question(""))
    return new_record(item, **{key: values[key] for key in _MEASURED})


def spent(outcomes: Sequence[Record]) -> int:
    """Returns the tokens the large model generated."""
    return sum(record["large_tokens"] for record in outcomes)


class Forecast(TypedDict):
    """Metrics that a policy is expected to reach."""

    n: int
    large_tokens: Metric
    """Per question."""
    share: Metric
    cost: Metric
    """Per question, by the price table."""
    accuracy: Metric
    """The interval is that of Clopper and Pearson."""
    pgr: Metric
    """Without an interval where no question tells the policy from the large model: a bootstrap of those shows
    nothing."""
    loss: Loss | None
    """None where the large model alone was not run, or no answers are known."""


class Loss(TypedDict):
    """Loss of accuracy against the large model alone."""

    value: float
    bound: float
    """Upper one, exact: `trim_graph.evaluation.noninferiority`."""
    lost: int
    """Questions that only the large model alone answered right."""
    gained: int
    """Questions that only the policy answered right."""


def forecast(
    outcomes: Sequence[Record],
    *,
    small: Sequence[Record] | None = None,
    large: Sequence[Record] | None = None,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Forecast:
    """Computes the metrics of a policy.

    Args:
        outcomes: Of the policy.
        small: Of the small model alone on the same questions, if it was run.
        large: Of the large model alone on the same questions, if it was run.
        seed: Of the bootstrap.
        confidence: Of the bound of the loss.

    Raises:
        ValueError: There are no outcomes, or not as many of each.
    """
    arms = {"it": outcomes, "small": small, "large": large}
    columns: dict[str, list[float]] = {"cost": [record["cost"] for record in outcomes]}
    for name, arm in arms.items():
        if arm is None:
            continue
        columns[f"{name} tokens"] = [float(record["large_tokens"]) for record in arm]
        if all(record["correct"] is not None for record in arm):
            columns[f"{name} correct"] = [float(right) for right in graded(arm)]
    means = resampled_means(columns, seed=seed)
    plain = {name: sum(column) / len(column) for name, column in columns.items()}

    def estimate(*names: str, metric: object = None) -> Metric:
        if not set(names) <= columns.keys():
            return Metric(value=None, interval=None)
        if metric is None:
            return Metric(value=plain[names[0]], interval=interval(means[names[0]]))
        assert callable(metric)
        rows = zip(*(means[name] for name in names), strict=True)
        return Metric(
            value=metric(*(plain[name] for name in names)), interval=interval([metric(*row) for row in rows])
        )

    gap = ("it correct", "small correct", "large correct")
    right = estimate("it correct")
    if right["value"] is not None:
        n = len(outcomes)
        right["interval"] = Interval(*chance_interval(round(right["value"] * n), n))
    paired = None
    if large is not None and {"it correct", "large correct"} <= columns.keys():
        paired = PairedOutcomes.of(graded(outcomes), graded(large))
    pgr = estimate(*gap, metric=performance_gap_recovered)
    if paired is not None and not paired.lost + paired.gained:
        pgr["interval"] = None
    return Forecast(
        n=len(outcomes),
        large_tokens=estimate("it tokens"),
        share=estimate("it tokens", "large tokens", metric=share_of_large_tokens),
        cost=estimate("cost"),
        accuracy=right,
        pgr=pgr,
        loss=None
        if paired is None
        else Loss(
            value=paired.loss,
            bound=paired.loss_bound(confidence),
            lost=round(paired.lost),
            gained=round(paired.gained),
        ),
    )


class CachedScorer:
    """A scorer that reads no solution twice: the runs of a calibration share most of their prefixes."""

    def __init__(self, scorer: Any) -> None:
        self.scorer = as_scorer(scorer)
        self.known: dict[tuple[str, ...], ScorerReply] = {}
        self._recalled: dict[str, float] = {}

    @property
    def probability_window(self) -> int | None:
        """Tokens of the window that the scorer reads, if it does (`trim_graph.adapters.TokenProbability`)."""
        window: int | None = getattr(self.scorer, "probability_window", None)
        return window

    @property
    def reads_token_probability(self) -> bool:
        """Whether the scorer reads the small model's mean token probabilities."""
        return reads_token_probability(self.scorer)

    def check_writer(self, writer: str, model: Any) -> None:
        """Has the scorer refuse a model that does not report what it reads."""
        if (check := getattr(self.scorer, "check_writer", None)) is not None:
            check(writer, model)

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Recalls or asks."""
        key = self._key(question, steps)
        if key not in self.known:
            self.known[key] = read_scores(self.scorer.score(question, steps), len(steps))
        return self.known[key]

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Recalls or asks."""
        key = self._key(question, steps)
        if key not in self.known:
            self.known[key] = read_scores(await self.scorer.ascore(question, steps), len(steps))
        return self.known[key]

    def _key(self, question: str, steps: Sequence[ScorableStep]) -> tuple[str, ...]:
        """Returns what the scores of steps depend on."""
        reported = map(repr, step_facts(steps)) if reads_reports(self.scorer) else ()
        return (question, *step_texts(steps), *reported)

    def draft_scores(self) -> list[float]:
        """Returns the scores of all drafts so far, in order of size."""
        return sorted(self.drafts().values())

    def drafts(self) -> dict[str, float]:
        """Returns the score of each draft so far, by a digest of what was read."""
        read = {_digest(key): reply.scores[-1] for key, reply in self.known.items()}
        return {**self._recalled, **read}

    def recall(self, drafts: Mapping[str, float]) -> None:
        """Takes in the scores of an earlier process (`drafts`), for `draft_scores` only."""
        self._recalled.update(drafts)


def _digest(key: tuple[str, ...]) -> str:
    return hashlib.blake2b(json.dumps(key).encode(), digest_size=8).hexdigest()


class RecordFile:
    """File of one policy's records, question by question.

    Args:
        folder: Made if it is not there.
        settings: What decides over the outcomes: models, policy, dataset. Each has a file of its own.
        scorer: Its scores of drafts are kept too, so that a resumed search guesses as one that was not
            interrupted.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], scorer: CachedScorer | None = None) -> None:
        self.folder, self.settings, self.scorer = folder, settings, scorer
        # Files that hold less, of an earlier release, have other names.
        kept = {**settings, "measured": _MEASURED}
        names = [
            hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest()[:16]
            for one in (without_addresses(kept), kept)  # in names of earlier releases addresses counted
        ]
        name = next((name for name in names if (folder / f"{name}.jsonl").exists()), names[0])
        self.path = folder / f"{name}.jsonl"
        self._drafts, self._added = folder / f"{name}.scores.json", False

    def __enter__(self) -> RecordFile:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(self.path, self.settings)
        if self.scorer is not None and self._drafts.exists():
            self.scorer.recall(json.loads(self._drafts.read_bytes()))
        return self

    def __exit__(self, *failure: Any) -> None:
        if self.scorer is not None and (self._added or not self._drafts.exists()):
            write_json(self._drafts, self.scorer.drafts())
        self.journal.close()

    def read(self) -> list[Record]:
        """Returns what is there."""
        return [_measured(values["index"], values) for _, values in read_rows(self.path)]

    def append(self, record: Record) -> None:
        """Keeps one more."""
        self._added = True
        self.journal.append({key: record[key] for key in ("index", *_MEASURED)})  # type: ignore[literal-required]
