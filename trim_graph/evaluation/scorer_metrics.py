"""How good a scorer is, from its scores of solutions whose first wrong step is known.

Labelled solutions, in the shape of ProcessBench and others, are read here and rated by the scorer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NotRequired, TypeVar

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from trim_graph.adapters import ScorableStep
from trim_graph.adapters.base import as_scorer, read_scores, scorable_step
from trim_graph.adapters.provider_errors import error_line
from trim_graph.errors import InputError, SettingsError
from trim_graph.policies.baselines import step_type_of
from trim_graph.storage.rows import read_rows

from .metrics import Interval, interval, resampled_means
from .records import TOKENS, Question, RecordStep, WorkItem, new_record
from .traces import Source, Trace, parse_trace, trace_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

BINS = 10
"""Number of bins of a reliability curve, of equal width."""
AUC_RESAMPLES = 500
"""Resamples of the bootstrap of an area, which is dearer than that of a mean."""


class Rated(NamedTuple):
    """A solution and what a scorer made of it."""

    scores: tuple[float, ...] | None
    """One for each step; None where the scorer failed."""
    labels: tuple[bool | None, ...]
    """True for right steps up to the first wrong one, False there; later steps are not looked at."""

    @property
    def first_wrong(self) -> int | None:
        """Index of the first wrong step; -1 where all are right, None where unknown."""
        for index, label in enumerate(self.labels):
            if not label:
                return index if label is False else None
        return -1


class FirstErrorMetrics(TypedDict):
    """Metrics that ProcessBench reports. A metric is None where there are no solutions of that kind."""

    threshold: float
    n: int
    erroneous: int
    """Solutions with a wrong step."""
    accuracy_erroneous: float | None
    accuracy_correct: float | None
    f1: float | None
    f1_interval: Interval | None


class ReliabilityBin(TypedDict):
    """Bin of scores between two bounds."""

    low: float
    high: float
    n: int
    mean_score: float
    right: float
    """Share that was right."""
    right_interval: Interval
    """Wilson's, as if every rated step were independent of the others."""


class Discrimination(TypedDict):
    """Discrimination (AUC) and calibration of scores."""

    n: int
    right: int
    auc: float | None
    """Chance that a right one scores above a wrong one; None where there is only one kind."""
    auc_interval: Interval | None
    brier: float | None
    """Mean squared distance of the score from 0 (wrong) or 1 (right)."""
    calibration_error: float | None
    """Expected calibration error: mean distance of mean score and share right over the bins, by size."""
    bins: list[ReliabilityBin]


class ScorerMetrics(TypedDict):
    """Everything about one scorer on one set of solutions."""

    solutions: int
    errors: int
    """Solutions the scorer failed on; in the F1 they count as judged wrong, elsewhere they are left out."""
    first_error: FirstErrorMetrics
    steps: Discrimination
    """Scores of each step up to the first wrong one."""
    whole: Discrimination
    """Whole solutions by their least score: right means that no step is wrong."""


def compute_scorer_metrics(rated: Sequence[Rated], threshold: float, *, seed: int = 0) -> ScorerMetrics:
    """Computes all metrics of a scorer.

    Args:
        rated: Solutions; those whose first wrong step is unknown count in ``steps`` only.
        threshold: A step is taken for wrong if its score is below it.
        seed: Of the bootstrap over solutions.
    """
    steps, whole, owners = list[tuple[float, bool]](), list[tuple[float, bool]](), list[int]()
    for index, solution in enumerate(rated):
        if solution.scores is None:
            continue
        known = looked_at(solution)
        steps += known
        owners += [index] * len(known)
        if solution.first_wrong is not None:
            whole.append((min(solution.scores), solution.first_wrong < 0))
    return ScorerMetrics(
        solutions=len(rated),
        errors=sum(solution.scores is None for solution in rated),
        first_error=first_error(rated, threshold, seed=seed),
        steps=discrimination(steps, owners, seed=seed),
        whole=discrimination(whole, seed=seed),
    )


def looked_at(solution: Rated) -> list[tuple[float, bool]]:
    """Returns score and label of each step up to the first that is wrong or unlabelled."""
    known: list[tuple[float, bool]] = []
    for score, label in zip(solution.scores or (), solution.labels, strict=False):
        if label is None:
            break
        known.append((score, label))
        if not label:
            break
    return known


def first_error(rated: Iterable[Rated], threshold: float, *, seed: int = 0) -> FirstErrorMetrics:
    """Computes ProcessBench's F1 at a threshold, with an interval by bootstrap over the solutions."""
    known = [solution for solution in rated if solution.first_wrong is not None]
    wrong = [solution.first_wrong != -1 for solution in known]
    hit = [_predicted_first_error(solution, threshold) == solution.first_wrong for solution in known]
    columns = {
        "wrong": [float(one) for one in wrong],
        "wrong hit": [float(one and found) for one, found in zip(wrong, hit, strict=True)],
        "right hit": [float(not one and found) for one, found in zip(wrong, hit, strict=True)],
    }
    on_wrong, on_right = _accuracies(len(known), *map(sum, columns.values()))
    spread = None
    if known:
        means = zip(*resampled_means(columns, seed=seed).values(), strict=True)
        spread = interval([_harmonic(*_accuracies(1, *map(float, row))) for row in means])
    return FirstErrorMetrics(
        threshold=threshold,
        n=len(known),
        erroneous=sum(wrong),
        accuracy_erroneous=on_wrong,
        accuracy_correct=on_right,
        f1=_harmonic(on_wrong, on_right),
        f1_interval=spread,
    )


def best_threshold(rated: Iterable[Rated]) -> float | None:
    """Returns the threshold in [0, 1] with the highest F1; the least of several; None where F1 is undefined.

    A solution is judged right for the thresholds of one interval: above the score of its first wrong step,
    and not above any score before it. So the best one is the upper end of some interval.
    """
    import numpy as np

    ends: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    kinds = {True: 0, False: 0}
    for solution in rated:
        at = solution.first_wrong
        if at is None:
            continue
        kinds[at >= 0] += 1
        if solution.scores is None:
            continue
        before = solution.scores if at < 0 else solution.scores[:at]
        low, high = -1.0 if at < 0 else solution.scores[at], min(before, default=1.0)
        if low < high:
            ends[at >= 0].append((low, high))
    if not all(kinds.values()):
        return None
    candidates = np.unique([high for pairs in ends.values() for _, high in pairs] or [0.5])
    hits = {}
    for kind, pairs in ends.items():
        lows, highs = np.sort(np.array(pairs).reshape(-1, 2), axis=0).T
        begun, over = (np.searchsorted(bounds, candidates, side="left") for bounds in (lows, highs))
        hits[kind] = (begun - over) / kinds[kind]
    total = hits[True] + hits[False]
    f1 = 2 * hits[True] * hits[False] / np.where(total > 0, total, 1)
    return float(candidates[int(np.argmax(f1))])


def discrimination(
    pairs: Sequence[tuple[float, bool]], owners: Sequence[int] | None = None, *, seed: int = 0
) -> Discrimination:
    """Computes area, calibration and reliability of scores.

    Args:
        pairs: Score, and whether what was scored is right.
        owners: Solution of each pair; whole solutions are resampled. Default: one each.
        seed: Of the bootstrap.
    """
    import numpy as np
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

    scores = np.array([score for score, _ in pairs], dtype=np.float64)
    right = np.array([bool(label) for _, label in pairs], dtype=np.bool_)
    n, both = len(scores), bool(right.any()) and not bool(right.all())
    bins = reliability(scores, right)
    return Discrimination(
        n=n,
        right=int(right.sum()),
        auc=float(roc_auc_score(right, scores)) if both else None,
        auc_interval=_auc_interval(scores, right, owners, seed) if both else None,
        brier=float(((scores - right) ** 2).mean()) if n else None,
        calibration_error=sum(one["n"] / n * abs(one["mean_score"] - one["right"]) for one in bins)
        if n
        else None,
        bins=bins,
    )


def reliability(scores: Floats, right: NDArray[np.bool_]) -> list[ReliabilityBin]:
    """Returns the bins of a reliability curve that are not empty, from low to high.

    Args:
        scores: (n,) in [0, 1].
        right: (n,) of what was scored.
    """
    import numpy as np
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    place = np.minimum((scores * BINS).astype(np.intp), BINS - 1)
    found: list[ReliabilityBin] = []
    for index in range(BINS):
        here = place == index
        n, hits = int(here.sum()), int(right[here].sum())
        if n:
            spread = binomtest(hits, n).proportion_ci(method="wilson")
            found.append(
                ReliabilityBin(
                    low=index / BINS,
                    high=(index + 1) / BINS,
                    n=n,
                    mean_score=float(scores[here].mean()),
                    right=hits / n,
                    right_interval=Interval(float(spread.low), float(spread.high)),
                )
            )
    return found


def step_rows(
    solutions: Iterable[tuple[str, Sequence[str], Sequence[float | None], Rated]],
) -> list[StepRow]:
    """Returns the steps of rated solutions up to the first wrong one of each.

    Args:
        solutions: Question, texts of the steps, mean token probabilities of the steps, scores and labels.
    """
    return [
        StepRow(question, text, probability, score, right)
        for question, texts, probabilities, rated in solutions
        for (score, right), text, probability in zip(looked_at(rated), texts, probabilities, strict=False)
    ]


class StepRow(NamedTuple):
    """A rated step."""

    question: str
    text: str
    token_probability: float | None
    score: float
    right: bool


class KindMetrics(TypedDict):
    """Steps of one kind."""

    kind: str | None
    """As `trim_graph.policies.by_pattern` names it; None: steps without a match."""
    n: int
    right: int
    auc: float | None


class WithinKinds(TypedDict):
    """Discrimination among steps of one kind, where the kind itself carries no information."""

    auc: float | None
    """Chance that a right step scores above a wrong one of its kind; None where no kind has both."""
    auc_of_kind: float | None
    """AUC of the kind alone: each step scored by the share of its kind that is right."""
    kinds: list[KindMetrics]
    """The most frequent first."""


def compiled_pattern(pattern: str) -> re.Pattern[str]:
    """Compiles the expression that finds the kind of a step.

    Raises:
        SettingsError: It cannot be read.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"the pattern {pattern!r} cannot be read: {error}") from error


def within_kinds(rows: Sequence[StepRow], pattern: str) -> WithinKinds:
    """Computes the area within kinds of steps: the mean over kinds, weighted by pairs of right and wrong.

    Args:
        rows: Rated steps.
        pattern: Regular expression that finds the kind; see `trim_graph.policies.by_pattern`.

    Raises:
        SettingsError: The expression cannot be read.
    """
    from sklearn.metrics import roc_auc_score

    expression = compiled_pattern(pattern)
    kinds = [step_type_of(expression, row.text) for row in rows]
    found: dict[str | None, list[tuple[float, bool]]] = {}
    for row, kind in zip(rows, kinds, strict=True):
        found.setdefault(kind, []).append((row.score, row.right))
    metrics, won, pairs = list[KindMetrics](), 0.0, 0
    for kind, those in sorted(found.items(), key=lambda item: -len(item[1])):
        right = sum(label for _, label in those)
        auc = None
        if 0 < right < len(those):
            auc = float(roc_auc_score([label for _, label in those], [score for score, _ in those]))
            won, pairs = won + auc * right * (len(those) - right), pairs + right * (len(those) - right)
        metrics.append(KindMetrics(kind=kind, n=len(those), right=right, auc=auc))
    shares = {one["kind"]: one["right"] / one["n"] for one in metrics}
    labels = [row.right for row in rows]
    alone = None
    if any(labels) and not all(labels):
        alone = float(roc_auc_score(labels, [shares[kind] for kind in kinds]))
    return WithinKinds(auc=won / pairs if pairs else None, auc_of_kind=alone, kinds=metrics)


class Paired(TypedDict):
    """Two scorers on the same steps."""

    n: int
    questions: int
    auc: float
    auc_of_other: float
    difference: float
    """AUC less that of the other."""
    difference_interval: Interval | None
    """By bootstrap over questions."""
    better: bool
    """Whether all of the interval is above 0."""


def against_token_probability(rows: Sequence[StepRow], *, seed: int = 0) -> Paired | None:
    """Compares the areas of scores and of mean token probabilities; see `compare_areas`.

    Args:
        rows: Rated steps; those without a token probability are left out.
        seed: Of the bootstrap.

    Returns:
        The comparison; None where no step has a token probability, or those that have are of one kind.
    """
    known = [(row, row.token_probability) for row in rows if row.token_probability is not None]
    return compare_areas(
        [row.score for row, _ in known],
        [other for _, other in known],
        [row.right for row, _ in known],
        [row.question for row, _ in known],
        seed=seed,
    )


def compare_areas(
    scores: Sequence[float],
    others: Sequence[float],
    right: Sequence[bool],
    questions: Sequence[str] | Sequence[int],
    *,
    seed: int = 0,
) -> Paired | None:
    """Compares the areas of two scorers on the same steps, with whole questions drawn again.

    Args:
        scores: Of each step.
        others: The other scorer's.
        right: Whether each step is right.
        questions: Of each step.
        seed: Of the bootstrap.

    Returns:
        The comparison; None where the steps are of one kind.
    """
    import numpy as np
    from sklearn.metrics import roc_auc_score

    label = np.array(right, dtype=np.bool_)
    if not label.any() or label.all():
        return None
    columns = [np.array(values, dtype=np.float64) for values in (scores, others)]
    areas = [float(roc_auc_score(label, values)) for values in columns]
    _, owner = np.unique(questions, return_inverse=True)
    drawn = [_drawn_areas(values, label, owner, seed) for values in columns]
    spread = interval(
        [None if one is None or two is None else one - two for one, two in zip(*drawn, strict=True)]
    )
    return Paired(
        n=len(label),
        questions=int(owner.max()) + 1,
        auc=areas[0],
        auc_of_other=areas[1],
        difference=areas[0] - areas[1],
        difference_interval=spread,
        better=spread is not None and spread.low > 0,
    )


def _predicted_first_error(solution: Rated, threshold: float) -> int | None:
    if solution.scores is None:
        return None
    return next((at for at, score in enumerate(solution.scores) if score < threshold), -1)


def _accuracies(
    n: float, wrong: float, wrong_hit: float, right_hit: float
) -> tuple[float | None, float | None]:
    return (
        wrong_hit / wrong if wrong > 0 else None,
        right_hit / (n - wrong) if wrong < n else None,
    )


def _harmonic(left: float | None, right: float | None) -> float | None:
    if left is None or right is None:
        return None
    return 2 * left * right / (left + right) if left + right > 0 else 0.0


def _auc_interval(
    scores: Floats, right: NDArray[np.bool_], owners: Sequence[int] | None, seed: int
) -> Interval | None:
    import numpy as np

    _, owner = np.unique(np.arange(len(scores)) if owners is None else owners, return_inverse=True)
    return interval(_drawn_areas(scores, right, owner, seed))


def _drawn_areas(
    scores: Floats, right: NDArray[np.bool_], owner: NDArray[np.intp], seed: int
) -> list[float | None]:
    """Draws owners with replacement; an owner drawn twice has the weight 2. One seed, the same draws."""
    import numpy as np

    levels, place = np.unique(scores, return_inverse=True)
    count = int(owner.max()) + 1
    rng = np.random.default_rng(seed)
    values: list[float | None] = []
    for _ in range(AUC_RESAMPLES):
        weights = np.bincount(rng.integers(count, size=count), minlength=count)[owner]
        above = np.bincount(place, weights * right, len(levels))
        below = np.bincount(place, weights * ~right, len(levels))
        pairs = above.sum() * below.sum()
        won = (above * (np.cumsum(below) - below / 2)).sum()  # what is level counts half
        values.append(float(won / pairs) if pairs else None)
    return values


class LabelledSolution(TypedDict):
    """A solution whose first wrong step is known."""

    id: str
    dataset: str
    question: str
    generator: str | None
    steps: list[str]
    labels: list[bool | None]
    """True up to the first wrong step, False there, None after it: unlabelled."""
    correct: bool | None
    """Whether the final answer is right."""
    token_probabilities: list[float | None]
    """Mean probability of each step's tokens; None where nobody measured it."""
    trace: Trace | None
    """The trace that it was read from; None of a solution in the shape of ProcessBench."""


class _Row(TypedDict, total=False):
    id: str | int
    generator: str | None
    problem: str
    steps: list[str]
    label: int
    final_answer_correct: bool | None


class _MistakeRow(TypedDict):
    input: str
    steps: list[str]
    mistake_index: int | None
    target: NotRequired[str | None]
    answer: NotRequired[str | None]


class _RatedText(TypedDict):
    text: str
    rating: Literal[-1, 0, 1] | None


class _RatedStep(TypedDict):
    completions: list[_RatedText] | None
    human_completion: NotRequired[_RatedText | None]
    chosen_completion: NotRequired[int | None]


class _RatedSolution(TypedDict):
    steps: list[_RatedStep]


class _RatedProblem(TypedDict):
    problem: str


class _RatedRow(TypedDict):
    question: _RatedProblem
    label: _RatedSolution


_ROW: TypeAdapter[_Row] = TypeAdapter(_Row)
_MISTAKE: TypeAdapter[_MistakeRow] = TypeAdapter(_MistakeRow)
_RATED: TypeAdapter[_RatedRow] = TypeAdapter(_RatedRow)
_REQUIRED = ("problem", "steps", "label")


def read_labelled(path: str | Path) -> Iterator[LabelledSolution]:
    """Reads solutions whose first wrong step is known, one at a time.

    The shape of each row decides: ProcessBench (``problem``, ``steps``, ``label``), BIG-Bench-Mistake
    (``input``, ``steps``, ``mistake_index``; arXiv 2311.08516), PRM800K (``question.problem``,
    ``label.steps``; arXiv 2305.20050), or a trace with labelled steps. A row of PRM800K holds the solution
    that its annotator chose, and another one for each step that was rated -1 in its place. Its ratings 0 and
    1 count as right.

    Args:
        path: JSONL, Parquet, or a JSON array.

    Raises:
        InputError: The file cannot be read, or a row has another shape; the message names file and line.
        ImportError: A Parquet file, and pyarrow is not installed.
    """
    file = Path(path)
    for number, (place, values) in enumerate(read_rows(file)):
        if isinstance(values.get("label"), Mapping):
            yield from _of_ratings(_checked(_RATED, values, place), place, file.stem, number)
        elif "mistake_index" in values:
            yield _of_mistake(_checked(_MISTAKE, values, place), place, file.stem, number)
        elif "question" in values and "label" not in values:
            if (from_trace := _of_trace(values, place)) is not None:
                yield from_trace
        else:
            yield _of_row(values, place, file.stem, number)


Shape = TypeVar("Shape")


def _checked(adapter: TypeAdapter[Shape], values: dict[str, Any], place: str) -> Shape:
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{place}: no labelled solution: {key}: {first['msg']}") from error


def _of_row(values: dict[str, Any], place: str, dataset: str, number: int) -> LabelledSolution:
    missing = [key for key in _REQUIRED if key not in values]
    if missing:
        raise InputError(
            f"{place}: no labelled solution: {', '.join(missing)} is missing; expected {', '.join(_REQUIRED)}"
        )
    row = _checked(_ROW, values, place)
    return LabelledSolution(
        id=str(row.get("id", number)),
        dataset=dataset,
        question=row["problem"],
        generator=row.get("generator"),
        steps=row["steps"],
        labels=_checked_labels("label", row["label"], row["steps"], place),
        correct=row.get("final_answer_correct"),
        token_probabilities=[None] * len(row["steps"]),
        trace=None,
    )


def _checked_labels(key: str, first_wrong: int, steps: Sequence[str], place: str) -> list[bool | None]:
    if not steps:
        raise InputError(f"{place}: no labelled solution: steps is empty")
    if not -1 <= first_wrong < len(steps):
        none = "-1" if key == "label" else "null"
        raise InputError(
            f"{place}: {key} is {first_wrong}; expected the index of one of the {len(steps)} steps, or {none}"
        )
    return labels_from(first_wrong, len(steps))


def _of_mistake(row: _MistakeRow, place: str, dataset: str, number: int) -> LabelledSolution:
    mistake, target, answer = row["mistake_index"], row.get("target"), row.get("answer")
    return LabelledSolution(
        id=str(number),
        dataset=dataset,
        question=row["input"],
        generator=None,
        steps=row["steps"],
        labels=_checked_labels("mistake_index", -1 if mistake is None else mistake, row["steps"], place),
        correct=None if target is None or answer is None else answer == target,
        token_probabilities=[None] * len(row["steps"]),
        trace=None,
    )


def _of_ratings(row: _RatedRow, place: str, dataset: str, number: int) -> Iterator[LabelledSolution]:
    """Yields the solution that an annotator chose step by step, and one for each wrong alternative."""
    before = list[str]()
    wrong = False
    for index, step in enumerate(row["label"]["steps"]):
        completions, chosen = step["completions"] or [], step.get("chosen_completion")
        if chosen is not None and not 0 <= chosen < len(completions):
            raise InputError(
                f"{place}: label.steps.{index}.chosen_completion is {chosen}; expected the index of one of "
                f"the {len(completions)} completions, or null"
            )
        for other, completion in enumerate(completions):
            if other != chosen and completion["rating"] == -1:
                steps = [*before, completion["text"]]
                labels = labels_from(len(before), len(steps))
                yield _rated_solution(row, dataset, f"{number}-{index}-{other}", steps, labels)
        human = step.get("human_completion")
        taken = completions[chosen] if chosen is not None else human
        if taken is None or (taken is not human and taken["rating"] is None):
            break
        before.append(taken["text"])
        wrong = taken["rating"] == -1
        if wrong:
            break
    if before:
        labels = labels_from(len(before) - 1 if wrong else -1, len(before))
        yield _rated_solution(row, dataset, str(number), before, labels)


def _rated_solution(
    row: _RatedRow, dataset: str, name: str, steps: list[str], labels: list[bool | None]
) -> LabelledSolution:
    return LabelledSolution(
        id=name,
        dataset=dataset,
        question=row["question"]["problem"],
        generator=None,
        steps=steps,
        labels=labels,
        correct=None,
        token_probabilities=[None] * len(steps),
        trace=None,
    )


def _of_trace(values: dict[str, Any], place: str) -> LabelledSolution | None:
    """Takes the accepted steps of a trace; None where its question failed, or a label file knows nothing."""
    trace = parse_trace(values, place)
    if trace["error"] is not None:
        return None
    labels = [step["label"] for step in trace["steps"]]
    if all(label is None for label in labels):
        labels = labels_of_values([step.get("value") for step in trace["steps"]])
    if (not labels or labels[0] is None) and trace["policy"].get("type") == "labelled":
        return None
    if not labels or labels[0] is None:
        raise InputError(f"{place}: no labelled solution: this trace says of no step whether it is right")
    wrong = labels.index(False) if False in labels else -1
    return LabelledSolution(
        id=trace["id"],
        dataset=trace["dataset"],
        question=trace["question"],
        generator=None,
        steps=[step["text"] for step in trace["steps"]],
        labels=labels if wrong < 0 else labels_from(wrong, len(labels)),
        correct=trace["correct"],
        token_probabilities=[step["mean_token_probability"] for step in trace["steps"]],
        trace=trace,
    )


RIGHT_FROM = 0.5
"""Least value of a step that counts as right where no label is known."""


def labels_of_values(values: Sequence[float | None]) -> list[bool | None]:
    """Makes hard labels of soft targets: True up to the first value below `RIGHT_FROM`, False there."""
    known = values[: values.index(None)] if None in values else values
    wrong = next((at for at, value in enumerate(known) if value is not None and value < RIGHT_FROM), None)
    if wrong is not None:
        return labels_from(wrong, len(values))
    return [*([True] * len(known)), *([None] * (len(values) - len(known)))]


def labels_from(first_wrong: int, count: int) -> list[bool | None]:
    """Turns the index of the first wrong step (-1: none) into one label per step."""
    if first_wrong < 0:
        return [True] * count
    return [*([True] * first_wrong), False, *([None] * (count - first_wrong - 1))]


async def score_labelled(
    scorer: Any, solutions: Iterable[LabelledSolution], *, concurrency: int = 16
) -> AsyncGenerator[Trace]:
    """Has a scorer rate every step, and yields traces in the order of the solutions.

    In the traces all steps count as the small model's: that is what a policy is to judge. Nobody counted
    their tokens.

    Args:
        scorer: A `Scorer`, a Runnable, or a function of (question, steps).
        solutions: From `read_labelled`; taken as they are needed.
        concurrency: Most solutions with the scorer at once.

    Raises:
        ValueError: ``concurrency`` is below 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency={concurrency} must be 1 or more")
    asked, waiting = as_scorer(scorer), iter(enumerate(solutions))

    async def rated(index: int, solution: LabelledSolution) -> Trace:
        steps = _to_be_rated(solution)
        try:
            reply = read_scores(await asked.ascore(solution["question"], steps), len(steps))
        except Exception as error:
            return _trace(index, solution, None, error_line(error), {})
        used = {"scorer": reply.input_tokens, "scorer_output": reply.output_tokens}
        return _trace(index, solution, reply.scores, None, used)

    pending = [asyncio.ensure_future(rated(*item)) for item in islice(waiting, concurrency)]
    try:
        while pending:
            trace = await pending.pop(0)
            pending += [asyncio.ensure_future(rated(*item)) for item in islice(waiting, 1)]
            yield trace
    finally:
        for task in pending:
            task.cancel()


def _to_be_rated(solution: LabelledSolution) -> list[ScorableStep]:
    if solution["trace"] is not None:
        return [scorable_step(step) for step in solution["trace"]["steps"]]
    return [ScorableStep(text) for text in solution["steps"]]


def window_probabilities(solution: LabelledSolution) -> list[float | None]:
    """Returns the lowest window probability of each step; None where nobody measured it."""
    trace = solution["trace"]
    if trace is None:
        return [None] * len(solution["steps"])
    return [step.get("lowest_window_probability") for step in trace["steps"]]


def _trace(
    index: int,
    solution: LabelledSolution,
    scores: Sequence[float] | None,
    error: str | None,
    used: Mapping[str, int],
) -> Trace:
    steps = (
        [
            RecordStep(
                text=text,
                writer="small",
                tokens=0,
                score=score,
                decision=None,
                mean_token_probability=None,
                label=label,
                discarded=None,
            )
            for text, label, score in zip(solution["steps"], solution["labels"], scores or (), strict=True)
        ]
        if scores is not None
        else []
    )
    record = new_record(
        WorkItem(index, 0, Question(solution["question"], id=solution["id"])),
        correct=False if error else solution["correct"],
        stopped="" if error else "finished",
        steps=steps,
        tokens={**dict.fromkeys(TOKENS, 0), **used},
        error=error,
    )
    policy = {"type": "labelled", "generator": solution["generator"]}
    return trace_of(record, Source(solution["dataset"], None, policy))


def scored_trace(index: int, solution: LabelledSolution, scores: Sequence[float]) -> Trace:
    """Returns a solution as a trace with the scores of a scorer, and its labels.

    Args:
        index: Of the solution in its file.
        solution: From `read_labelled`. One that was a trace keeps its other values: writers, tokens, targets.
        scores: Of each step.
    """
    source = solution["trace"]
    if source is None:
        return _trace(index, solution, scores, None, {})
    steps = []
    for step, score, label in zip(source["steps"], scores, solution["labels"], strict=True):
        # Whatever scored a discarded draft was another scorer.
        discarded = None if step["discarded"] is None else {**step["discarded"], "score": None}
        steps.append({**step, "score": score, "label": label, "discarded": discarded})
    return {**source, "steps": steps}  # type: ignore[typeddict-item]
