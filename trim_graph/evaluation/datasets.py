"""Datasets: questions from a file, from the Hugging Face Hub or from the arithmetic world, one at a time.

Which keys of a row hold the question and the answer, and how answers are graded, is found from the rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from trim_graph.config.errors import explain_value
from trim_graph.conversation import extract_answer
from trim_graph.errors import InputError, SettingsError, may_be_shown
from trim_graph.examples.arithmetic import Part, Split, is_right, label_steps, stream_problems
from trim_graph.examples.arithmetic.problems import Problem
from trim_graph.settings import ConfigSection
from trim_graph.storage.rows import SUFFIXES, Row, import_parquet, read_rows

from .graders import Grader, find_grader, grader_identity
from .records import Question

QUESTION_KEYS = ("problem", "question", "prompt", "input")
ANSWER_KEYS = ("final_answer", "answer", "expected", "target", "solution")
ID_KEYS = ("id", "unique_id", "question_id")
_GSM8K = re.compile(r"####[ \t]*(\S[^\n]*)")
"""The answer in a solution of GSM8K."""
_SENTENCE = re.compile(r"\s*[A-Za-z]{2,}\s+[A-Za-z]{2,}\s[^\\$^_={}]*\d[^\\$^_={}]*\.\s*")
"""Two words or more before a number and a full stop behind it, without LaTeX."""
_OLYMPIAD = "final_answer"


class KeyMapping(ConfigSection):
    """Keys by which the rows of a dataset are read.

    Attributes:
        question: Key of the question's text; default: the first of `QUESTION_KEYS` that is there.
        answer: Key of the right answer; default: the first of `ANSWER_KEYS` that is there.
        id: Key of a question's name; default: the first of `ID_KEYS`, else its place.
        grader: See `trim_graph.evaluation.graders`; default: by the shape. ``none`` to grade nothing.
        part: Train, validation or test, for the record.
    """

    question: str | None = None
    answer: str | None = None
    id: str | None = None
    grader: str | None = None
    part: str | None = None


class Shape:
    """Keys of question, answer and id in the rows of one dataset, and its grader."""

    def __init__(
        self, question: str, answer: str | None, id: str | None, grader: str | None, *, guessed: bool = False
    ) -> None:
        self.keys, self.guessed, self.grader_name = (question, answer, id), guessed, grader
        self.grader: Grader | None = find_grader(grader) if grader else None

    @classmethod
    def of(cls, given: KeyMapping, row: Row) -> Shape:
        """Fills in from the first row what was not given.

        Raises:
            InputError: No key holds a question, or the grader needs answers and there are none.
            SettingsError: There is no such grader.
        """
        values = row.values
        question = given.question or _first(values, QUESTION_KEYS)
        if question is None:
            raise InputError(
                f"{row.place}: which key holds the question? There are {', '.join(map(str, values))}: "
                "give the dataset as {type: file, path: ..., question: KEY, answer: KEY}"
            )
        answer = given.answer
        if answer is None and given.grader != "none":
            # In ProcessBench what is called a solution has a label, not an answer.
            answer = _first({key: value for key, value in values.items() if _text(value)}, ANSWER_KEYS)
            if answer is None and ":" not in (given.grader or ""):
                # A key without its value makes a row that is refused, not a dataset without answers.
                answer = _first(
                    {key: value for key, value in values.items() if _is_missing(value)}, ANSWER_KEYS
                )
        id = given.id or _first(values, ID_KEYS)
        if given.grader == "none" or (answer is None and given.grader is None):
            return cls(question, None, id, None)
        name = given.grader or _usual_grader(answer or "", values)
        if answer is None and ":" not in name:
            raise InputError(f"{row.place}: the grader {name} needs answers: which key holds them?")
        return cls(question, answer, id, name, guessed=given.grader is None)

    def __str__(self) -> str:
        """Returns keys and grader in words: ``question=problem, answer=solution, grader=math``."""
        question, answer, _ = self.keys
        return f"question={question}, answer={answer or 'none'}, grader={self.grader_name or 'none'}"

    def question(self, row: Row, number: int) -> Question:
        """Reads one row.

        Raises:
            InputError: It has no question, or no answer that the grader can work with.
        """
        question, answer, id = self.keys
        text = _field(row, question)
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{row.place}: {question} is {text!r}; expected the text of a question")
        name = str(row.values.get(id, number)) if id else str(number)
        if self.grader is None:
            return Question(text, id=name)
        if answer == _OLYMPIAD:
            text = "\n\n".join(filter(None, (row.values.get("context"), text)))
        expected = expected_answer(_field(row, answer)) if answer else None
        if answer and not expected:
            raise InputError(
                f"{row.place}: {answer} is {row.values.get(answer)!r}; expected an answer, or grader: none "
                "for the dataset"
            )
        if self.guessed and self.grader_name == "math" and expected and _SENTENCE.match(expected):
            raise InputError(
                f"{row.place}: {answer} is {expected!r}, a sentence around a number, which the grader math "
                "would compare as text: name the key that holds the answer alone (answer: KEY), or a grader "
                "(grader: module:function; math to take it all the same)"
            )
        try:
            grade = self.grader(expected or "", row.values)
        except ValueError as error:
            raise InputError(f"{row.place}: {answer}: {error}") from error
        return Question(text, grade, expected, id=name, grader=self.grader_name)


def _field(row: Row, key: str) -> Any:
    """Returns a field of a row.

    Raises:
        InputError: The row has no such field.
    """
    if key not in row.values:
        raise InputError(
            f"{row.place} has no field {key}; it has {', '.join(map(str, row.values)) or 'none'}"
        )
    return row.values[key]


def expected_answer(value: Any) -> str | None:
    r"""Returns the answer in a field: what is in ``\boxed{}``, else what follows the last ``####``, else all.

    Of a list, as OlympiadBench has, all of its answers, separated by commas. None where the field or a part
    of the list holds neither text nor a number.
    """
    text = _text(value)
    if text is None:
        return None
    boxed = extract_answer(text)
    return (_GSM8K.findall(text) or [text])[-1].strip() if boxed is None else boxed


def _text(value: Any) -> str | None:
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        parts = [_text(part) for part in value]
        return ", ".join(part.strip().strip("$") for part in parts if part) if all(parts) else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return None if value != value or value in (inf, -inf) else str(value)


def _is_missing(value: Any) -> bool:
    """Returns whether a field is empty as files of data have it: null, NaN, an empty text or list."""
    return value is None or (isinstance(value, str | float | Sequence) and not _text(value))


def _first(values: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    there = {str(key).lower(): key for key in reversed(list(values))}
    return next((there[key] for key in keys if key in there), None)


def _usual_grader(key: str, values: Mapping[str, Any]) -> str:
    text = _text(values.get(key)) or ""
    is_aime = key.lower() == "solution" and re.fullmatch(r"-?\d+(?: or .*)?", text.strip())
    is_gsm8k = extract_answer(text) is None and _GSM8K.search(text)
    return "numeric" if is_aime or is_gsm8k else "math"


class ArithmeticDataset(ConfigSection):
    """Problems of the arithmetic world, which the example models were trained for."""

    type: Literal["arithmetic"]
    split: Split = "standard"
    part: Part = "test"
    seed: int = 0

    @property
    def name(self) -> str:
        """Name in traces and reports."""
        return f"arithmetic:{self.split}"

    @property
    def part_name(self) -> str | None:
        """Trains, validation or test."""
        return self.part

    def count(self) -> int | None:
        """Returns how many there are: None, no end."""
        return None

    def identity(self) -> dict[str, Any]:
        """Returns what makes it this dataset and no other."""
        return self.model_dump()

    def questions(self) -> Iterator[Question]:
        """Draws without end."""
        for index, problem in enumerate(stream_problems(self.split, part=self.part, seed=self.seed)):
            yield arithmetic_question(problem, id=f"{self.split}-{self.part}-{self.seed}-{index}")


def arithmetic_question(problem: Problem, *, id: str = "") -> Question:
    """Turns a problem of the arithmetic world into a question with exact grading and step labels."""
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
        """Name in traces and reports."""
        return Path(self.path).stem

    @property
    def part_name(self) -> str | None:
        """Trains, validation or test, if known."""
        return self.part

    def count(self) -> int | None:
        """Counts the rows without keeping any."""
        file = Path(self.path)
        if file.suffix == ".parquet" and file.is_file():
            return int(import_parquet().read_metadata(file).num_rows)
        if file.suffix in (".jsonl", ".ndjson") and file.is_file():
            with file.open("rb") as stream:
                return sum(bool(line.strip()) for line in stream)
        return sum(1 for _ in read_rows(file))

    def identity(self) -> dict[str, Any]:
        """Returns what makes it this dataset: the file's content, wherever it lies, and how it is read."""
        try:
            with open(self.path, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"dataset {self.path} cannot be read: {error.strerror}") from error
        return {**self.model_dump(exclude={"path"}), "file": Path(self.path).name, "sha256": digest}

    def questions(self) -> Iterator[Question]:
        """Reads one after the other.

        Raises:
            InputError: The file cannot be read, or a row has no question or no answer that the grader can
                work with; the message names file and line.
            SettingsError: There is no such grader.
        """
        return _questions(self, self.rows())

    def rows(self) -> Iterator[Row]:
        """Reads the rows as they are."""
        return read_rows(self.path)


class HubDataset(KeyMapping):
    """Questions of the Hugging Face Hub, or of a folder in its layout (`trim_graph.evaluation.datasets`).

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
        """Name in traces and reports."""
        return f"{self.path}:{self.split}"

    @property
    def part_name(self) -> str | None:
        """The split, where no part is given."""
        return self.part or self.split

    @property
    def _place(self) -> tuple[str, str | None, str, str | None]:
        return self.path, self.config, self.split, self.revision

    def count(self) -> int | None:
        """Counts the rows."""
        return count_rows(*self._place)

    def identity(self) -> dict[str, Any]:
        """Returns what makes it this dataset: its name, its content, and how it is read."""
        return {**self.model_dump(), "fingerprint": fingerprint(*self._place)}

    def questions(self) -> Iterator[Question]:
        """Reads one after the other; raises as `FileDataset.questions`."""
        return _questions(self, self.rows())

    def rows(self) -> Iterator[Row]:
        """Reads the rows as they are."""
        return read_hub(*self._place)


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


def make_dataset(given: str | Mapping[str, Any], *, part: Part = "test", seed: int = 0) -> Dataset:
    """Takes a dataset as a command line or a configuration names it.

    Args:
        given: ``arithmetic:SPLIT``, ``arithmetic:SPLIT:PART``, the path of a file, ``OWNER/NAME`` or
            ``OWNER/NAME:SPLIT`` of the hub, or a mapping.
        part: Of the arithmetic world, where ``given`` names none.
        seed: Of the arithmetic world, where ``given`` names none.

    Raises:
        SettingsError: It is none of these.
    """
    if isinstance(given, str):
        kind, *rest = given.split(":")
        if kind == "arithmetic" and len(rest) <= 2:
            given = {"type": kind, **dict(zip(("split", "part"), filter(None, rest), strict=False))}
        elif (named := _HUB.fullmatch(given)) and not _is_file(Path(given)):
            given = {"type": "hub", "path": named[1], **({"split": named[2]} if named[2] else {})}
        else:
            given = {"type": "file", "path": given}
    values = dict(given)
    if "://" in str(values.get("path")):
        raise SettingsError("a dataset is a file, a folder or an id on the hub, not a URL: download it first")
    if values.get("type") == "arithmetic":
        values = {"part": part, "seed": seed, **values}
    if isinstance(values.get("path"), str):
        path = Path(os.path.expanduser(values["path"]))
        if values.get("type") != "hub" or path.is_dir():
            values["path"] = os.fspath(path)
    try:
        return _DATASET.validate_python(values)
    except ValidationError as error:
        shown = f" {json.dumps(dict(given))}" if may_be_shown(given) else ""
        wrong = explain_value(error, values, _DATASET.json_schema(), f"dataset{shown}")
        raise SettingsError(
            f"{wrong}; expected arithmetic:SPLIT[:PART], a file, OWNER/NAME:SPLIT on the hub, or "
            "{type: file, path: ..., question: KEY, answer: KEY}"
        ) from error


def title_of(dataset: Dataset) -> str:
    """Returns what a reader calls a dataset: a file by its whole name."""
    return Path(dataset.path).name if dataset.type == "file" else dataset.name


def mapping_of(dataset: Dataset) -> str | None:
    """Says which fields are read and who grades: ``question=problem, answer=solution, grader=math``.

    None of the arithmetic world, and of a dataset without rows.

    Raises:
        InputError: The first row cannot be read, or has no question.
        SettingsError: There is no such grader.
    """
    first = None if dataset.type == "arithmetic" else next(dataset.rows(), None)
    return None if first is None or dataset.type == "arithmetic" else str(Shape.of(dataset, first))


def _is_file(path: Path) -> bool:
    return path.suffix in SUFFIXES or path.exists()


def first_questions(dataset: Dataset, n: int | None, *, default: int) -> Iterator[Question]:
    """Gives the first questions of a dataset.

    Args:
        dataset: From `make_dataset`.
        n: How many; None: all of a file, ``default`` of a dataset without end.
        default: See there.
    """
    limit = default if n is None and dataset.count() is None else n
    return islice(dataset.questions(), limit)


def read_through(dataset: Dataset, n: int) -> frozenset[int]:
    """Reads the first questions of a dataset once, so that a faulty one is reported before any is asked.

    Returns:
        Places of the questions whose text is that of an earlier one. As evidence, a question counts once.

    Raises:
        InputError: One cannot be read, or has the id of another; the message names the file and the line, or
            the id.
    """
    texts, ids, repeats = set[bytes](), dict[str, bytes](), set[int]()
    for index, question in enumerate(islice(dataset.questions(), n)):
        digest = _digest(question)
        if ids.setdefault(question.id, digest) != digest:
            raise InputError(
                f"dataset {dataset.name}: two questions have the id {question.id!r}, by which results are "
                "kept: make the ids unique, or name another key with {..., id: KEY}"
            )
        if digest in texts:
            repeats.add(index)
        texts.add(digest)
    return frozenset(repeats)


def grader_of(dataset: Dataset) -> dict[str, str] | None:
    """Returns what makes verdicts on a dataset comparable: its grader by name and code (`grader_identity`).

    None where nothing is graded, and for the arithmetic world, whose verdicts are part of its problems.
    """
    first = next(dataset.questions(), None)
    return None if first is None or first.grader is None else grader_identity(first.grader)


def shared_questions(dataset: Dataset, n: int, other: Dataset, m: int) -> int:
    """Counts which of the first ``m`` questions of one dataset are among the first ``n`` of another, by text.

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


def read_hub(path: str, config: str | None, split: str, revision: str | None) -> Iterator[Row]:
    """Reads a split row by row.

    Args:
        path: Id of the dataset, ``owner/name``, or a folder.
        config: Which of its configurations.
        split: ``test`` and the like, as the dataset calls it.
        revision: Branch, tag or commit; default: its main branch.

    Raises:
        InputError: There is no such dataset or split, or the hub cannot be reached.
        ImportError: The package is not installed.
    """
    for number, values in enumerate(_loaded(path, config, split, revision), 1):
        yield Row(f"{path}:{split}, row {number}", dict(values))


def count_rows(path: str, config: str | None, split: str, revision: str | None) -> int:
    """Returns how many rows a split has; raises as `read_hub`."""
    return len(_loaded(path, config, split, revision))


def fingerprint(path: str, config: str | None, split: str, revision: str | None) -> str:
    """Returns what differs where a split's content does; raises as `read_hub`."""
    return str(_loaded(path, config, split, revision)._fingerprint)


@lru_cache(maxsize=8)
def _loaded(path: str, config: str | None, split: str, revision: str | None) -> Any:
    try:
        from datasets import load_dataset  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            f'datasets of the hub need the package datasets: pip install "trim-graph[eval]" ({error})'
        ) from error
    try:
        return load_dataset(path, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise InputError(
            f"dataset {path}, split {split}{f', {config}' if config else ''}: {reason}. For a file give its "
            "path with .jsonl, .parquet or .json"
        ) from error
