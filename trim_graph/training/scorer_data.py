"""Label files as training data of a scorer: targets of steps, and the split by questions.

Imports no torch.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from trim_graph.adapters.base import ScorableStep
from trim_graph.budget.usage import StepWriter
from trim_graph.errors import InputError, counted
from trim_graph.evaluation.scorer_metrics import RIGHT_FROM, Rated, labels_from, labels_of_values
from trim_graph.evaluation.traces import Trace, read_traces


@dataclass(frozen=True, slots=True)
class LabelledSteps:
    """A solution whose steps have targets.

    Attributes:
        question: Question that the steps answer.
        steps: Their texts.
        targets: Target of each step in [0, 1]: its ``value``, or 1 or 0 for its label where the solution has
            no values; None where nothing is known.
        labels: Hard label of each step: True up to the first wrong one, False there, None after it. Where no
            label is known, a value of `RIGHT_FROM` or more counts as right.
        hard: Whether ``labels`` come from labels, not from values.
        token_probabilities: Mean probability of each step's tokens; None where nobody measured it.
        method: Method of the labels.
        dataset: Name of the dataset that the question is from.
        writers: Who wrote each step.
    """

    question: str
    steps: tuple[str, ...]
    targets: tuple[float | None, ...]
    labels: tuple[bool | None, ...]
    hard: bool
    token_probabilities: tuple[float | None, ...]
    method: str
    dataset: str
    writers: tuple[StepWriter, ...]

    @property
    def labelled(self) -> int:
        """Number of steps with a target."""
        return sum(target is not None for target in self.targets)

    def scorable_steps(self) -> list[ScorableStep]:
        """Returns the steps as a scorer gets them."""
        known = zip(self.steps, self.writers, self.token_probabilities, strict=True)
        return [
            ScorableStep(text, writer, mean_token_probability=probability)
            for text, writer, probability in known
        ]

    def rated(self, scores: Sequence[float] | None) -> Rated:
        """Joins scores of the steps and their labels."""
        return Rated(None if scores is None else tuple(scores), self.labels)


def read_label_files(files: Sequence[Path]) -> list[LabelledSteps]:
    """Reads the solutions with at least one known target.

    Args:
        files: Traces with labelled steps: of ``trim-graph label``, or of ``collect --label-steps``.

    Raises:
        InputError: A file cannot be read, or none of them has a step with a target.
    """
    if not files:
        raise InputError("no label files: name one or more")
    found = [of_trace(trace) for trace in read_traces(*files)]
    solutions = [solution for solution in found if solution.labelled]
    if not solutions:
        raise InputError(
            f"{', '.join(map(str, files))}: {counted(len(found), 'solution')}, and none has a step "
            "with a label or a "
            "value; trim-graph label writes them, or collect --label-steps"
        )
    return solutions


def of_trace(trace: Trace) -> LabelledSteps:
    """Takes texts and targets of a trace.

    Labels after the first wrong step are dropped: `collect --label-steps` gives some to steps that follow
    from a wrong one.
    """
    values = [step.get("value") for step in trace["steps"]]
    labels = [step["label"] for step in trace["steps"]]
    hard = any(label is not None for label in labels)
    if False in labels:
        labels = labels_from(labels.index(False), len(labels))
    targets = values
    # A label does not replace a missing value: an advantage of 0.5 says something else than right.
    if all(value is None for value in values) and trace["policy"].get("method") != "advantage":
        targets = [None if label is None else float(label) for label in labels]
    return LabelledSteps(
        question=trace["question"],
        steps=tuple(step["text"] for step in trace["steps"]),
        targets=tuple(targets),
        labels=tuple(labels if hard else labels_of_values(values)),
        hard=hard,
        token_probabilities=tuple(step["mean_token_probability"] for step in trace["steps"]),
        method=str(trace["policy"].get("method", "labelled")),
        dataset=trace["dataset"],
        writers=tuple(step.get("writer", "small") for step in trace["steps"]),
    )


class Split(NamedTuple):
    """Solutions by use. No question is in two of them."""

    train: list[LabelledSteps]
    validation: list[LabelledSteps]
    test: list[LabelledSteps]


def split_by_question(
    solutions: Iterable[LabelledSteps], *, validation: float, test: float, seed: int
) -> Split:
    """Draws the questions for validation and test; all solutions of a question go with it.

    Questions with a wrong step are spread evenly, so that each part has its share of them.

    Args:
        solutions: All of them.
        validation: Share of the questions.
        test: Share of the questions; 0: none.
        seed: Draws them.

    Raises:
        InputError: There are too few questions, or a part would have right or wrong steps only.
    """
    by_question: dict[str, list[LabelledSteps]] = {}
    for solution in solutions:
        by_question.setdefault(solution.question, []).append(solution)
    names = _spread(by_question, random.Random(seed))
    counts = {"validation": _count(len(names), validation), "test": _count(len(names), test)}
    if sum(counts.values()) >= len(names):
        raise InputError(
            f"{counted(len(names), 'question is', 'questions are')} too few to hold out "
            f"{counts['validation']} for validation and "
            f"{counts['test']} for the test; label more questions"
        )
    parts = dict[str, list[LabelledSteps]]()
    for part, count in counts.items():
        parts[part] = [solution for name in names[:count] for solution in by_question[name]]
        names = names[count:]
    parts["train"] = [solution for name in names for solution in by_question[name]]
    for part, those in parts.items():
        if those or part != "test":
            _check_both_kinds(part, those)
    return Split(**parts)


def folds_by_question(solutions: Sequence[LabelledSteps], count: int, *, seed: int) -> list[int]:
    """Draws a fold for each solution; all solutions of a question are in one.

    Args:
        solutions: Of two questions with a wrong step at least.
        count: Most folds. There are fewer where fewer questions have a wrong step, so that each fold has one.
        seed: Draws them.
    """
    by_question: dict[str, list[LabelledSteps]] = {}
    for solution in solutions:
        by_question.setdefault(solution.question, []).append(solution)
    groups = _shuffled(by_question, random.Random(seed))
    count = max(2, min(count, len(groups[0])))
    fold = {name: at % count for names in groups for at, name in enumerate(names)}
    return [fold[solution.question] for solution in solutions]


def _shuffled(
    by_question: Mapping[str, Sequence[LabelledSteps]], draw: random.Random
) -> tuple[list[str], list[str]]:
    """Shuffles the questions with a wrong step, and the others."""
    groups: tuple[list[str], list[str]] = [], []
    for name in sorted(by_question):
        groups[not any(False in one.labels for one in by_question[name])].append(name)
    for names in groups:
        draw.shuffle(names)
    return groups


def _spread(by_question: Mapping[str, Sequence[LabelledSteps]], draw: random.Random) -> list[str]:
    """Shuffles the questions, those with a wrong step evenly among the others."""
    places = [
        ((at + 0.5) / len(names), name)
        for names in _shuffled(by_question, draw)
        for at, name in enumerate(names)
    ]
    return [name for _, name in sorted(places)]


def _count(questions: int, share: float) -> int:
    return max(1, round(share * questions)) if share > 0 else 0


def _check_both_kinds(part: str, solutions: Sequence[LabelledSteps]) -> None:
    counts = Counter(label for one in solutions for label in one.labels if label is not None)
    if not counts[True] or not counts[False]:
        kind = "right" if counts[True] else "wrong"
        raise InputError(
            f"all {counts.total()} labelled steps of the {part} questions are {kind}: a scorer learns "
            f"from both kinds. Label more questions, or harder ones (without labels, a value counts as right "
            f"from {RIGHT_FROM:g} on)"
        )


def methods_of(solutions: Iterable[LabelledSteps]) -> str:
    """Names the methods of the labels, the most frequent first."""
    return "+".join(name for name, _ in Counter(one.method for one in solutions).most_common())
