"""Datasets: questions from a file, from the Hugging Face Hub or from the arithmetic world, one at a time.

In a configuration or on a command line a dataset is ``arithmetic:standard``, ``arithmetic:hard:test``, the
path of a file, the id of a dataset on the hub with its split, ``HuggingFaceH4/MATH-500:test``, or a mapping:
``{type: file, path: questions.jsonl, question: problem, answer: solution, grader: numeric}``. The shapes that
are recognised (`trim_graph.evaluation.dataset_shapes`) need no more than the name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from trim_graph.errors import InputError, SettingsError
from trim_graph.examples.arithmetic import Part, Split, is_right, label_steps, stream_problems
from trim_graph.examples.arithmetic.problems import Problem
from trim_graph.part import Part as Mapped
from trim_graph.redaction import may_be_shown
from trim_graph.rows import SUFFIXES, Row, import_parquet, read_rows

from .dataset_shapes import KeyMapping, Shape
from .hub import count_rows, fingerprint, read_hub
from .runner import Question


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


class FileDataset(KeyMapping):
    """Questions in a JSONL or Parquet file, or a JSON array.

    Attributes:
        path: Of the file.
    """

    type: Literal["file"]
    path: str

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
        return _questions(self, read_rows(self.path))


class HubDataset(KeyMapping):
    """Questions of the Hugging Face Hub, or of a folder in its layout (`trim_graph.evaluation.hub`).

    Attributes:
        path: Id of the dataset, ``owner/name``, or the folder.
        config: Which of its configurations.
        split: As the dataset calls it.
        revision: Branch, tag or commit.
    """

    type: Literal["hub"]
    path: str
    config: str | None = None
    split: str = "test"
    revision: str | None = None

    @property
    def name(self) -> str:
        """What traces and reports call it."""
        return f"{self.path}:{self.split}"

    @property
    def part_name(self) -> str | None:
        """The split, where no part is told."""
        return self.part or self.split

    @property
    def _place(self) -> tuple[str, str | None, str, str | None]:
        return self.path, self.config, self.split, self.revision

    def count(self) -> int | None:
        """Count the rows."""
        return count_rows(*self._place)

    def identity(self) -> dict[str, Any]:
        """Return what makes it this dataset: its name, its content, and how it is read."""
        return {**self.model_dump(), "fingerprint": fingerprint(*self._place)}

    def questions(self) -> Iterator[Question]:
        """Read one after the other; raises as `FileDataset.questions`."""
        return _questions(self, read_hub(*self._place))


def _questions(given: KeyMapping, rows: Iterable[Row]) -> Iterator[Question]:
    shape: Shape | None = None
    for number, row in enumerate(rows):
        shape = shape or Shape.of(given, row)
        yield shape.question(row, number)


Dataset = ArithmeticDataset | FileDataset | HubDataset
DatasetConfig = Annotated[Dataset, Field(discriminator="type")]
_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?")
"""An id on the hub, and perhaps a split."""
_DATASET: TypeAdapter[Dataset] = TypeAdapter(DatasetConfig)


def make_dataset(
    given: str | Mapping[str, Any], *, part: Part = "test", seed: int = 0, base: str | Path = "."
) -> Dataset:
    """Take a dataset as a command line or a configuration names it.

    Args:
        given: ``arithmetic:SPLIT``, ``arithmetic:SPLIT:PART``, the path of a file, ``OWNER/NAME`` or
            ``OWNER/NAME:SPLIT`` of the hub, or a mapping.
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
        elif (named := _HUB.fullmatch(given)) and not _is_file(Path(base) / given):
            given = {"type": "hub", "path": named[1], **({"split": named[2]} if named[2] else {})}
        else:
            given = {"type": "file", "path": given}
    values = dict(given)
    if "://" in str(values.get("path")):
        raise SettingsError("a dataset is a file, a folder or an id on the hub, not a URL: download it first")
    if values.get("type") == "arithmetic":
        values = {"part": part, "seed": seed, **values}
    if isinstance(values.get("path"), str) and (
        values.get("type") != "hub" or _is_folder(values["path"], base)
    ):
        values["path"] = os.fspath(Path(base) / os.path.expanduser(values["path"]))
    try:
        return _DATASET.validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(step) for step in first["loc"] if step not in ("arithmetic", "file", "hub"))
        shown = f" {json.dumps(dict(given))}" if may_be_shown(given) else ""
        raise SettingsError(
            f"dataset{shown}: {key + ': ' if key else ''}{first['msg']}; expected "
            "arithmetic:SPLIT[:PART], a file, OWNER/NAME:SPLIT on the hub, or {type: file, path: ..., "
            "question: KEY, answer: KEY}"
        ) from error


def _is_file(path: Path) -> bool:
    return path.suffix in SUFFIXES or path.exists()


def _is_folder(path: str, base: str | Path) -> bool:
    return (Path(base) / os.path.expanduser(path)).is_dir()


def first_questions(dataset: Dataset, n: int | None, *, default: int) -> Iterator[Question]:
    """Give the first questions of a dataset.

    Args:
        dataset: From `make_dataset`.
        n: How many; None: all of a file, ``default`` of a dataset without end.
        default: See there.
    """
    limit = default if n is None and dataset.count() is None else n
    return islice(dataset.questions(), limit)


def read_through(dataset: Dataset, n: int) -> None:
    """Read the first questions of a dataset once, so that what is wrong with one is told before any is asked.

    Raises:
        InputError: One cannot be read; the message names the file and the line.
    """
    for _ in islice(dataset.questions(), n):
        pass


def shared_questions(dataset: Dataset, n: int, other: Dataset, m: int) -> int:
    """Count which of the first ``m`` questions of one dataset are among the first ``n`` of another, by text.

    Args:
        dataset: Kept in memory as a digest of 8 bytes a question.
        n: Of it.
        other: The one whose questions are counted.
        m: Of it.
    """
    known = {_digest(question) for question in islice(dataset.questions(), n)}
    return sum(_digest(question) in known for question in islice(other.questions(), m))


def _digest(question: Question) -> bytes:
    words = " ".join(question.text.split())
    return hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=8).digest()
