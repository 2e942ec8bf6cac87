"""Datasets: questions from a file or from the arithmetic world, one at a time.

In a configuration or on a command line a dataset is ``arithmetic:standard``, ``arithmetic:hard:test``, the
path of a file, or a mapping: ``{type: file, path: questions.jsonl, question: problem, answer: solution,
grader: numeric}``. Of files the shapes of MATH-500, AIME, GSM8K and ProcessBench need no more than the path.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from trim_graph.config_places import Part as Mapped
from trim_graph.errors import InputError, SettingsError
from trim_graph.examples.arithmetic import Part, Split, is_right, label_steps, stream_problems
from trim_graph.examples.arithmetic.problems import Problem
from trim_graph.rows import Row, import_parquet, read_rows
from trim_graph.summary import extract_answer

from .graders import Grader, find_grader
from .runner import Question

QUESTION_KEYS = ("problem", "question", "prompt", "input")
ANSWER_KEYS = ("answer", "expected", "target", "solution")
ID_KEYS = ("id", "ID", "unique_id", "question_id")
_GSM8K = "#### "
"""What stands before the answer in a solution of GSM8K."""


class ArithmeticDataset(Mapped):
    """Problems of the arithmetic world, which the example models were trained for."""

    type: Literal["arithmetic"]
    split: Split = "standard"
    part: Part = "test"
    seed: int = 0

    @property
    def name(self) -> str:
        """What traces and reports call it."""
        return f"arithmetic:{self.split}"

    @property
    def part_name(self) -> str | None:
        """Train, validation or test."""
        return self.part

    def count(self) -> int | None:
        """Return how many there are: None, no end."""
        return None

    def identity(self) -> dict[str, Any]:
        """Return what makes it this dataset and no other."""
        return self.model_dump()

    def questions(self) -> Iterator[Question]:
        """Draw without end."""
        for index, problem in enumerate(stream_problems(self.split, part=self.part, seed=self.seed)):
            yield arithmetic_question(problem, id=f"{self.split}-{self.part}-{self.seed}-{index}")


def arithmetic_question(problem: Problem, *, id: str = "") -> Question:
    """Turn a problem of the arithmetic world into a question with exact grading and step labels."""
    return Question(
        problem.question,
        lambda text: is_right(problem, text),
        problem.answer,
        id=id,
        label_steps=lambda steps: label_steps(problem, steps),
    )


class FileDataset(Mapped):
    """Questions in a JSONL or Parquet file, or a JSON array.

    Attributes:
        path: Of the file.
        question: Key of the question's text; default: the first of `QUESTION_KEYS` that is there.
        answer: Key of the right answer; default: the first of `ANSWER_KEYS` that is there.
        id: Key of a question's name; default: the first of `ID_KEYS`, else its place.
        grader: See `trim_graph.evaluation.graders`; default: ``numeric`` for the shapes of GSM8K (``####``)
            and AIME (a ``solution`` that is a number), else ``math``. ``none`` to grade nothing.
        part: Train, validation or test, for the record.
    """

    type: Literal["file"]
    path: str
    question: str | None = None
    answer: str | None = None
    id: str | None = None
    grader: str | None = None
    part: str | None = None

    @property
    def name(self) -> str:
        """What traces and reports call it."""
        return Path(self.path).stem

    @property
    def part_name(self) -> str | None:
        """Train, validation or test, if told."""
        return self.part

    def count(self) -> int | None:
        """Count the rows without keeping any."""
        file = Path(self.path)
        if file.suffix == ".parquet" and file.is_file():
            return int(import_parquet().read_metadata(file).num_rows)
        if file.suffix in (".jsonl", ".ndjson") and file.is_file():
            with file.open("rb") as stream:
                return sum(bool(line.strip()) for line in stream)
        return sum(1 for _ in read_rows(file))

    def identity(self) -> dict[str, Any]:
        """Return what makes it this dataset: the file's content, wherever it lies, and how it is read."""
        try:
            with open(self.path, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"dataset {self.path} cannot be read: {error.strerror}") from error
        return {**self.model_dump(exclude={"path"}), "file": Path(self.path).name, "sha256": digest}

    def questions(self) -> Iterator[Question]:
        """Read one after the other.

        Raises:
            InputError: The file cannot be read, or a row has no question or no answer that the grader can
                work with; the message names file and line.
            SettingsError: There is no such grader.
        """
        shape: _Shape | None = None
        for number, row in enumerate(read_rows(self.path)):
            shape = shape or _Shape.of(self, row)
            yield shape.question(row, number)


class _Shape:
    """Where in a row the question and its answer stand."""

    def __init__(self, question: str, answer: str | None, id: str | None, grader: Grader | None) -> None:
        self.keys, self.grader = (question, answer, id), grader

    @classmethod
    def of(cls, given: FileDataset, row: Row) -> _Shape:
        """Fill in from the first row what was not given."""
        values = row.values
        question = given.question or next((key for key in QUESTION_KEYS if key in values), None)
        if question is None:
            raise InputError(
                f"{row.place}: which key holds the question? There are {', '.join(map(str, values))}: "
                "give the dataset as {type: file, path: ..., question: KEY, answer: KEY}"
            )
        answer = given.answer
        if answer is None and given.grader != "none":
            # In ProcessBench what is called a solution has a label, not an answer.
            answer = next(
                (key for key in ANSWER_KEYS if isinstance(values.get(key), str | int | float)), None
            )
        id = given.id or next((key for key in ID_KEYS if key in values), None)
        if given.grader == "none" or (answer is None and given.grader is None):
            return cls(question, None, id, None)
        name = given.grader or _usual_grader(answer or "", values)
        if answer is None and ":" not in name:
            raise InputError(f"{row.place}: the grader {name} needs answers: which key holds them?")
        return cls(question, answer, id, find_grader(name))

    def question(self, row: Row, number: int) -> Question:
        question, answer, id = self.keys
        text = row.values.get(question)
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{row.place}: {question} is {text!r}; expected the text of a question")
        name = str(row.values.get(id, number)) if id else str(number)
        if self.grader is None:
            return Question(text, id=name)
        expected = expected_answer(row.values.get(answer)) if answer else None
        if answer and not expected:
            raise InputError(f"{row.place}: {answer} is {row.values.get(answer)!r}; expected an answer")
        try:
            grade = self.grader(expected or "", row.values)
        except ValueError as error:
            raise InputError(f"{row.place}: {answer}: {error}") from error
        return Question(text, grade, expected, id=name)


def expected_answer(value: Any) -> str | None:
    r"""Return the answer in a field: what follows the last ``####`` or is in ``\boxed{}``, else all of it."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value)
    if _GSM8K in text:
        return text.rpartition(_GSM8K)[2].strip()
    boxed = extract_answer(text)
    return text.strip() if boxed is None else boxed


def _usual_grader(key: str, values: Mapping[str, Any]) -> str:
    text = str(values.get(key, ""))
    is_aime = key == "solution" and re.fullmatch(r"-?\d+", text.strip())
    return "numeric" if is_aime or _GSM8K in text else "math"


Dataset = ArithmeticDataset | FileDataset
DatasetConfig = Annotated[Dataset, Field(discriminator="type")]
_DATASET: TypeAdapter[Dataset] = TypeAdapter(DatasetConfig)


def make_dataset(
    given: str | Mapping[str, Any], *, part: Part = "test", seed: int = 0, base: str | Path = "."
) -> Dataset:
    """Take a dataset as a command line or a configuration names it.

    Args:
        given: ``arithmetic:SPLIT``, ``arithmetic:SPLIT:PART``, the path of a file, or a mapping.
        part: Of the arithmetic world, where ``given`` names none.
        seed: Of the arithmetic world, where ``given`` names none.
        base: What a relative path is relative to.

    Raises:
        SettingsError: It is none of these.
    """
    if isinstance(given, str):
        kind, *rest = given.split(":")
        if kind == "arithmetic" and len(rest) <= 2:
            given = {"type": kind, **dict(zip(("split", "part"), filter(None, rest), strict=False))}
        else:
            given = {"type": "file", "path": given}
    values = dict(given)
    if values.get("type") == "arithmetic":
        values = {"part": part, "seed": seed, **values}
    if isinstance(values.get("path"), str):
        values["path"] = os.fspath(Path(base) / os.path.expanduser(values["path"]))
    try:
        return _DATASET.validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(step) for step in first["loc"] if step not in ("arithmetic", "file"))
        raise SettingsError(
            f"dataset {json.dumps(dict(given))}: {key + ': ' if key else ''}{first['msg']}; expected "
            "arithmetic:SPLIT[:PART], a file, or {type: file, path: ..., question: KEY, answer: KEY}"
        ) from error


def first_questions(dataset: Dataset, n: int | None, *, default: int) -> Iterator[Question]:
    """Give the first questions of a dataset.

    Args:
        dataset: From `make_dataset`.
        n: How many; None: all of a file, ``default`` of a dataset without end.
        default: See there.
    """
    limit = default if n is None and dataset.count() is None else n
    return islice(dataset.questions(), limit)
