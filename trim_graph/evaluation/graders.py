r"""Graders: is the answer in this solution the right one?

A grader is made for one expected answer and asked about texts of solutions. All look at the last
``\boxed{...}`` and read it as a whole: a number among other things is no number. Without a box
`numeric` and `multiple_choice` look at the text (`trim_graph.evaluation.number_reading`, `choice_reading`);
`exact` and `math` do not.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from importlib import import_module
from typing import Any

from trim_graph.errors import SettingsError
from trim_graph.summary import extract_answer

from .choice_reading import read_boxed_choice, read_choice
from .number_reading import find_number, read_number

Grade = Callable[[str], bool]
Grader = Callable[[str, dict[str, Any]], Grade]
"""From the expected answer and the dataset's row to a grade."""

CLOSE = Fraction(1, 10**6)
"""Relative difference of two numbers that count as one, where they are not both whole."""
SECONDS = 5
"""Most time `math` takes for one comparison, where it can be limited."""
_ACCEPTED = re.compile(r"\s*\([a-z ]*accepted\)\s*$")
"""A remark behind alternatives, as AIME has it in 2022: ``080 or 081 (both were accepted)``."""


def exact(expected: str, row: dict[str, Any] | None = None) -> Grade:
    """The boxed answer is the expected one, letter by letter; space around and between words is ignored.

    Raises:
        ValueError: No box can hold ``expected``.
    """
    _check_fits_a_box(expected)
    wanted = " ".join(expected.split())

    def grade(solution: str) -> bool:
        answer = extract_answer(solution)
        return answer is not None and " ".join(answer.split()) == wanted

    return grade


def numeric(expected: str, row: dict[str, Any] | None = None) -> Grade:
    """The answer is the expected number, however it is written: ``1,200``, ``$1200.00``, ``2400/2``.

    Args:
        expected: A number, or several that are all accepted: ``080 or 081 (both were accepted)``.
        row: Is not used.

    Raises:
        ValueError: ``expected`` is no number.
    """
    numbers = [read_number(part) for part in _ACCEPTED.sub("", expected).split(" or ")]
    wanted = [number for number in numbers if number is not None]
    if len(wanted) < len(numbers):
        raise ValueError(f"expected answer {expected!r} is no number")

    def grade(solution: str) -> bool:
        found = find_number(solution)
        return found is not None and any(_is_same(found, number) for number in wanted)

    return grade


def _is_same(found: Fraction, wanted: Fraction) -> bool:
    if found.denominator == wanted.denominator == 1:
        return found == wanted
    return abs(found - wanted) <= CLOSE * abs(wanted)


def multiple_choice(expected: str, row: dict[str, Any] | None = None) -> Grade:
    """The chosen letter is the expected one.

    Raises:
        ValueError: ``expected`` is no letter from A to J.
    """
    wanted = read_boxed_choice(expected)
    if wanted is None:
        raise ValueError(f"expected answer {expected!r} is no letter from A to J")
    return lambda solution: read_choice(solution) == wanted


def math(expected: str, row: dict[str, Any] | None = None) -> Grade:
    """The boxed answer is mathematically equal to the expected one (the package math-verify).

    Raises:
        ImportError: math-verify is not installed.
        ValueError: No box can hold ``expected``.
    """
    _check_fits_a_box(expected)
    try:
        from math_verify import LatexExtractionConfig, parse, verify  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            f'the grader math needs math-verify: pip install "trim-graph[eval]" ({error})'
        ) from error
    # A box that is no LaTeX as a whole is compared as text: math-verify would go on to search it for numbers.
    box = [LatexExtractionConfig(boxed_match_priority=0)]

    def read(answer: str, seconds: int | None) -> list[Any]:
        content = f"\\boxed{{{answer}}}"
        return list(parse(content, box, extraction_mode="first_match", parsing_timeout=seconds))

    gold: list[Any] = []

    def grade(solution: str) -> bool:
        answer = extract_answer(solution)
        if answer is None:
            return False
        if answer == expected.strip():
            return True
        # Its limits are alarm signals, which only the main thread can set.
        seconds = SECONDS if threading.current_thread() is threading.main_thread() else None
        if not gold:
            gold[:] = read(expected, seconds)
        return bool(verify(gold, read(answer, seconds), timeout_seconds=seconds))

    return grade


def _check_fits_a_box(expected: str) -> None:
    if extract_answer(f"\\boxed{{{expected}}}") != expected.strip():
        raise ValueError(
            f"expected answer {expected!r} fits no box: its braces are not balanced, or it holds a box"
        )


GRADERS: dict[str, Grader] = {
    "arithmetic": exact,
    "exact": exact,
    "numeric": numeric,
    "multiple_choice": multiple_choice,
    "math": math,
}


def find_grader(name: str) -> Grader:
    """Return a grader by its name, or a user's function.

    Args:
        name: A key of `GRADERS`, or ``module:function``: called with the solution's text and the dataset's
            row, it says whether the solution is right. Such a name runs code: take it from no stranger.

    Raises:
        SettingsError: There is none of that name.
    """
    if name in GRADERS:
        return GRADERS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise SettingsError(
            f"grader {name!r} is unknown; there are {', '.join(GRADERS)}, and your own as module:function"
        )
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")  # the working directory, as for python -m
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"grader {name!r} cannot be imported: {error}") from error
    if not callable(function):
        raise SettingsError(f"grader {name!r} is no function of (solution, row)")
    return lambda expected, row: lambda solution: bool(function(solution, row))
