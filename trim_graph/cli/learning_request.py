"""What `trim-graph train aggregate` and `sequence` are asked for, and their questions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from trim_graph.errors import SettingsError
from trim_graph.evaluation import Question
from trim_graph.evaluation.datasets import Dataset, make_dataset

from .models import parsed_option

SETS = ("training", "validation")


@dataclass(frozen=True, slots=True)
class Request:
    """The command line, as given."""

    kind: Literal["aggregate", "sequence"]
    out: Path
    prices: tuple[float, ...]
    dataset: str
    validation_dataset: str | None = None
    config: Path | None = None
    n: int = 1000
    validation: int = 300
    simulator: Path | None = None
    seeds: int = 1
    steps: int = 200_000
    simulated_steps: int = 100_000
    patience: int = 10
    window: int = 16
    rollouts: Path | None = None
    rounds: int = 64
    concurrency: int = 128
    ray: str | None = None
    ray_workers: int | None = None


def read_questions(request: Request) -> tuple[list[Question], list[Question]]:
    """Return the training and the validation questions.

    Raises:
        SettingsError: There are too few, one is in both, or one has no right answer.
    """
    if request.validation_dataset is None:
        every = _first(request.n + request.validation, "--dataset", request.dataset)
        training, validation = every[: request.n], every[request.n :]
    else:
        training = _first(request.n, "--dataset", request.dataset)
        validation = _first(request.validation, "--validation-dataset", request.validation_dataset)
    known = {question.text for question in training}
    if both := [question.text for question in validation if question.text in known]:
        raise SettingsError(f"a validation question is a training question too: {both[0][:80]}")
    return training, validation


def named_dataset(option: str, named: str) -> Dataset:
    """Read an option that names a dataset."""
    given = parsed_option(option, named, "{type: file, path: questions.jsonl}")
    # Another seed than that of calibrate: what is trained here may be calibrated there.
    return make_dataset(given, part="validation", seed=1)


def _first(wanted: int, option: str, named: str) -> list[Question]:
    questions = list(islice(named_dataset(option, named).questions(), wanted))
    if len(questions) < wanted:
        raise SettingsError(f"{option} {named} has {len(questions)} questions; {wanted} are needed")
    if any(question.grade is None for question in questions):
        raise SettingsError(f"{option} {named} has questions without a right answer")
    return questions
