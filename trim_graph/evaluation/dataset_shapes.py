r"""Where in a row a question and its answer stand, and how its answers are graded.

| shape | question | answer | grader |
|---|---|---|---|
| MATH-500, MATH | ``problem`` | ``answer``, else the last ``\boxed{}`` of ``solution`` | math |
| AIME | ``problem`` | ``solution`` or ``answer``, a whole number | numeric |
| GSM8K | ``question`` | behind ``####`` in ``answer`` | numeric |
| OlympiadBench | ``context`` and ``question`` | ``final_answer``, a list | math |
| ProcessBench | ``problem`` | none | none |

Keys are found whatever their letters' case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from trim_graph.errors import InputError
from trim_graph.part import Part
from trim_graph.rows import Row
from trim_graph.summary import extract_answer

from .graders import Grader, find_grader
from .runner import Question

QUESTION_KEYS = ("problem", "question", "prompt", "input")
ANSWER_KEYS = ("final_answer", "answer", "expected", "target", "solution")
ID_KEYS = ("id", "unique_id", "question_id")
_GSM8K = re.compile(r"####[ \t]*(\S[^\n]*)")
"""The answer in a solution of GSM8K."""
_OLYMPIAD = "final_answer"


class KeyMapping(Part):
    """How the rows of a dataset are read.

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
    """Where in the rows of one dataset the question and its answer stand."""

    def __init__(self, question: str, answer: str | None, id: str | None, grader: Grader | None) -> None:
        self.keys, self.grader = (question, answer, id), grader

    @classmethod
    def of(cls, given: KeyMapping, row: Row) -> Shape:
        """Fill in from the first row what was not given.

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
        return cls(question, answer, id, find_grader(name))

    def question(self, row: Row, number: int) -> Question:
        """Read one row.

        Raises:
            InputError: It has no question, or no answer that the grader can work with.
        """
        question, answer, id = self.keys
        text = row.values.get(question)
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{row.place}: {question} is {text!r}; expected the text of a question")
        name = str(row.values.get(id, number)) if id else str(number)
        if self.grader is None:
            return Question(text, id=name)
        if answer == _OLYMPIAD:
            text = "\n\n".join(filter(None, (row.values.get("context"), text)))
        expected = expected_answer(row.values.get(answer)) if answer else None
        if answer and not expected:
            raise InputError(
                f"{row.place}: {answer} is {row.values.get(answer)!r}; expected an answer, or grader: none "
                "for the dataset"
            )
        try:
            grade = self.grader(expected or "", row.values)
        except ValueError as error:
            raise InputError(f"{row.place}: {answer}: {error}") from error
        return Question(text, grade, expected, id=name)


def expected_answer(value: Any) -> str | None:
    r"""Return the answer in a field: what is in ``\boxed{}``, else what follows the last ``####``, else all.

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
    """Whether a field is empty as files of data have it: null, NaN, an empty text or list."""
    return value is None or (isinstance(value, str | float | Sequence) and not _text(value))


def _first(values: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    there = {str(key).lower(): key for key in reversed(list(values))}
    return next((there[key] for key in keys if key in there), None)


def _usual_grader(key: str, values: Mapping[str, Any]) -> str:
    text = _text(values.get(key)) or ""
    is_aime = key.lower() == "solution" and re.fullmatch(r"-?\d+(?: or .*)?", text.strip())
    is_gsm8k = extract_answer(text) is None and _GSM8K.search(text)
    return "numeric" if is_aime or is_gsm8k else "math"
