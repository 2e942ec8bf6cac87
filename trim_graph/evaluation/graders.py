r"""Graders: is the answer in this solution the right one?

A grader is made for one expected answer and asked about texts of solutions. All look at the last
``\boxed{...}``; `numeric` and `multiple_choice` make do with the last number or choice where there is none.
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

Grade = Callable[[str], bool]
Grader = Callable[[str, dict[str, Any]], Grade]
"""From the expected answer and the dataset's row to a grade."""

CLOSE = 1e-6
"""Relative difference of two numbers that count as one."""
SECONDS = 5
"""Most time `math` takes for one comparison, where it can be limited."""

_NUMBER = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?")
_FRACTION = re.compile(r"(-?)\s*\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_CHOICE = re.compile(r"\(?([A-J])\)?")
# A letter that a word follows is an article or a pronoun: "the answer is a triangle", "is I believe".
_TOLD_CHOICE = re.compile(r"(?i:answer\s*(?:is|:)\s*(?:option\s*)?)\**\(?([A-Ja-j])\b(?!\s+[a-z])")
_LOOSE_CHOICE = re.compile(r"\(([A-J])\)|\b([B-HJ])\b")


def exact(expected: str, row: dict[str, Any] | None = None) -> Grade:
    """The boxed answer is the expected one, letter by letter; space around and between words is ignored."""
    wanted = " ".join(expected.split())

    def grade(solution: str) -> bool:
        answer = extract_answer(solution)
        return answer is not None and " ".join(answer.split()) == wanted

    return grade


def numeric(expected: str, row: dict[str, Any] | None = None) -> Grade:
    """The answer is the expected number, however it is written: ``1,200``, ``$1200.00``, ``2400/2``.

    Raises:
        ValueError: ``expected`` is no number.
    """
    wanted = read_number(expected)
    if wanted is None:
        raise ValueError(f"expected answer {expected!r} is no number")

    def grade(solution: str) -> bool:
        boxed = extract_answer(solution)
        found = read_number(solution if boxed is None else boxed)
        return found is not None and abs(found - wanted) <= CLOSE * abs(wanted)

    return grade


def read_number(text: str) -> Fraction | None:
    """Return the last number in a text, or None."""
    plain = text.replace("{,}", ",").replace("\\!", "").replace("\u2212", "-")
    plain = _FRACTION.sub(_divided, plain)
    found = [match[0] for match in _NUMBER.finditer(plain)]
    if not found:
        return None
    above, _, below = found[-1].replace(",", "").partition("/")
    if len(above) > 400 or ("e" in above.lower() and abs(int(re.split("[eE]", above)[1])) > 400):
        return None  # no answer, and slow to compare
    try:
        return Fraction(above.strip()) / Fraction(below.strip() or "1")
    except ZeroDivisionError:
        return None


def _divided(fraction: re.Match[str]) -> str:
    sign, above, below = fraction.groups()
    return f" {above.removeprefix('-') if sign and above.startswith('-') else sign + above}/{below} "


def multiple_choice(expected: str, row: dict[str, Any] | None = None) -> Grade:
    """The chosen letter is the expected one.

    Raises:
        ValueError: ``expected`` is no letter from A to J.
    """
    match = _CHOICE.fullmatch(expected.strip().upper())
    if match is None:
        raise ValueError(f"expected answer {expected!r} is no letter from A to J")
    wanted = match[1]
    return lambda solution: read_choice(solution) == wanted


def read_choice(text: str) -> str | None:
    """Return the letter a solution chooses: boxed, behind "answer is", or the last one that stands alone."""
    boxed = extract_answer(text)
    if boxed is not None:
        inner = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", boxed).strip()
        match = re.match(r"\(?([A-J])(?![A-Za-z])", inner)
        return match[1] if match else None
    told = _TOLD_CHOICE.findall(text)
    if told:
        return str(told[-1]).upper()
    loose = _LOOSE_CHOICE.findall(text)
    return next(filter(None, loose[-1])) if loose else None


def math(expected: str, row: dict[str, Any] | None = None) -> Grade:
    """The boxed answer is mathematically equal to the expected one (the package math-verify).

    Raises:
        ImportError: math-verify is not installed.
    """
    try:
        from math_verify import parse, verify  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            f'the grader math needs math-verify: pip install "trim-graph[eval]" ({error})'
        ) from error
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
            gold[:] = parse(f"\\boxed{{{expected}}}", parsing_timeout=seconds)
        found = parse(f"\\boxed{{{answer}}}", parsing_timeout=seconds)
        return bool(verify(gold, found, timeout_seconds=seconds))

    return grade


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
