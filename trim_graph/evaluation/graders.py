"""Graders: is the answer in a solution the right one? Numbers and choices are read from its text."""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from trim_graph.conversation import extract_answer
from trim_graph.errors import GraderError, SettingsError
from trim_graph.process import __version__

Grade = Callable[[str], bool]
Grader = Callable[[str, dict[str, Any]], Grade]
"""Makes a grade from the expected answer and the dataset's row."""

CLOSE = Fraction(1, 10**6)
"""Relative difference of two numbers that count as one, where they are not both whole."""
FAILED = "grader "
"""Begin of the error of a solution whose grader failed; that of a call begins with the name of a type."""
SECONDS = 5
"""Most time `math` takes for one comparison, where it can be limited."""
_ACCEPTED = re.compile(r"\s*\([a-z ]*accepted\)\s*$")
"""A remark behind alternatives, as AIME has it in 2022: ``080 or 081 (both were accepted)``."""


def exact(expected: str, row: dict[str, Any] | None = None) -> Grade:
    """Grades the boxed answer letter by letter; space around and between words is ignored.

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
    """Grades the answer as a number, however it is written: ``1,200``, ``$1200.00``, ``2400/2``.

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
    """Grades the chosen letter.

    Raises:
        ValueError: ``expected`` is no letter from A to J.
    """
    wanted = read_boxed_choice(expected)
    if wanted is None:
        raise ValueError(f"expected answer {expected!r} is no letter from A to J")
    return lambda solution: read_choice(solution) == wanted


def math(expected: str, row: dict[str, Any] | None = None) -> Grade:
    """Grades the boxed answer as mathematics (the package math-verify).

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
    # A box that is no LaTeX as a whole is compared as text: math-verify would then search it for numbers.
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
    """Returns a grader by its name, or a user's function.

    Args:
        name: A key of `GRADERS`, or ``module:function``: called with the solution's text and the dataset's
            row, it returns True where the solution is right, else False. Such a name runs code: take it from
            no stranger.

    Raises:
        SettingsError: There is none of that name, or it is asynchronous.
    """
    if name in GRADERS:
        return GRADERS[name]
    if ":" not in name:
        raise SettingsError(
            f"grader {name!r} is unknown; there are {', '.join(GRADERS)}, and your own as module:function"
        )
    function = import_grader(name, "(solution, row)")
    if any(map(inspect.iscoroutinefunction, (function, type(function).__call__))):
        raise SettingsError(f"grader {name!r} is an async def: write a plain def that returns True or False")
    return lambda expected, row: lambda solution: function(solution, row)


def grade_solution(grade: Grade, solution: str, *, grader: str | None, question: str) -> bool:
    """Returns whether a solution is right.

    Args:
        grade: Says so.
        solution: The solution's text.
        grader: Its name, for the message.
        question: Id of the question, for the message.

    Raises:
        GraderError: It raised, or returned neither True nor False; the message names it and the question.
    """
    place = f"{FAILED}{grader}, question {question}" if grader else f"{FAILED}of question {question}"
    try:
        verdict: Any = grade(solution)
    except Exception as error:
        raise GraderError(f"{place}: {type(error).__name__}: {error}") from error
    if _is_bool(verdict):
        return bool(verdict)
    shown = repr(verdict)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    raise GraderError(
        f"{place}: it returned {shown} ({type(verdict).__name__}); a grader returns True or False. A text, a "
        "number or None is no verdict: return the comparison that makes it one, such as score >= 0.5"
    )


def _is_bool(value: Any) -> bool:
    kind = type(value)  # NumPy's own is no subclass of bool
    return kind is bool or (kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_"))


def grader_identity(name: str) -> dict[str, str]:
    """Returns what makes verdicts those of this grader: its name, and a digest of its source or the version.

    Args:
        name: As of `find_grader`.

    Raises:
        SettingsError: There is none of that name, or its source cannot be read.
    """
    if name in GRADERS:
        return {"name": name, "version": __version__}
    function, digest = import_grader(name, "(solution, row)"), hashlib.sha256()
    # The module that is named may take the function from another one.
    for module in dict.fromkeys((name.partition(":")[0], function.__module__)):
        try:
            digest.update(Path(str(sys.modules[module].__file__)).read_bytes())
        except OSError as error:
            raise SettingsError(
                f"grader {name!r}: its source {error.filename} cannot be read: {error.strerror}"
            ) from error
    return {"name": name, "sha256": digest.hexdigest()}


def import_grader(name: str, arguments: str) -> Callable[..., Any]:
    """Imports a user's function; the working directory is searched too, as for ``python -m``.

    Args:
        name: As ``module:function``. Such a name runs code: take it from no stranger.
        arguments: Its arguments, for the message.

    Raises:
        SettingsError: There is none of that name.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise SettingsError(f"grader {name!r} names no function: give module:function")
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"grader {name!r} cannot be imported: {error}") from error
    if not callable(function):
        raise SettingsError(f"grader {name!r} is no function of {arguments}")
    return cast(Callable[..., Any], function)


_LONGEST = 1000
"""Most characters of a text that may be a number."""
_LARGEST = 400
"""Most digits of a number and most of an exponent of ten: what is beyond is no answer and slow to compare."""
_NESTED = 8
"""Most layers of dollars, braces and the like around a number."""

# Commands that change the look of a text only.
_SIGNS = str.maketrans(
    {
        "\u2212": "-",
        "\u00d7": r"\times ",
        "\u00b7": r"\cdot ",
        "\u00b2": "^2",
        "\u00b3": "^3",
        "\u00b0": r"\% ",
    }
)
_NEGATIVE = re.compile(r"(?<![\w-])negative\s+(?=[\d.])", re.I)
_NO_SPACE = re.compile(r"\\!\s*")
_SPACE = re.compile(
    r"\\[,;: ]|~|\\(?:q?quad|thinspace|enspace|displaystyle|textstyle|left|right)(?![A-Za-z])"
)
_DEGREES = re.compile(r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\degrees?(?![A-Za-z])")
_STYLE = (
    r"\\(?:text(?:bf|rm|it|sf|tt|normal)?|math(?:bf|rm|it|sf|tt)|mbox|hbox|bm|boldsymbol|operatorname)\s*"
)
_INSIDE = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_WRAPPED = re.compile(
    rf"(?:{_STYLE})?{_INSIDE}|\(([^()]*)\)|\\\((.*)\\\)|\\\[(.*)\\\]|\$(.*)\$|\*\*(.*)\*\*", re.DOTALL
)

# Numbers.
_DECIMAL = r"(?:(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?:\s\d{3})+|\d+)(?:\.\d*)?|\.\d+)"
_GROUP = rf"(?:{_INSIDE}|(\d))"
_EXPONENT = r"\^\s*(?:\{\s*([-+]?\d+)\s*\}|([-+]?\d+))"
_PLAIN = re.compile(rf"({_DECIMAL})(?:[eE]([-+]?\d+))?", re.ASCII)
_SCIENTIFIC = re.compile(rf"({_DECIMAL})\s*(?:\\times|\\cdot|[x*])\s*10\s*{_EXPONENT}", re.ASCII)
_FRACTION = re.compile(rf"(?:(\d+)\s*)?\\[dtc]?frac\s*{_GROUP}\s*{_GROUP}", re.ASCII)
_MIXED = re.compile(r"(\d+)\s+(\d+)\s*/\s*(\d+)", re.ASCII)
_POWER = re.compile(rf"({_DECIMAL}|\([^()]*\)|\{{[^{{}}]*\}})\s*{_EXPONENT}", re.ASCII)
_HEAD = re.compile(
    r"(?:\\[dtc]?frac(?![A-Za-z])|\\times|\\cdot|[-+\d.,^{}()\s]|/(?!\s*[A-Za-z])|[eE](?=[-+]?\d)|[x*](?=\s*10))*",
    re.ASCII,
)
"""The characters a number is made of; behind them a unit may follow."""

# Units and prefixes of a number.
_CURRENCY = r"(?:(?:US|CA|AU|HK)?\\?\$|[\u20ac\u00a3\u00a5\u20b9]|\\(?:pounds|euro|textdollar)(?![A-Za-z]))"
_PRICED = re.compile(rf"^([-+]?)\s*{_CURRENCY}\s*")
_RAISED = r"(?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d))?"
_UNIT = re.compile(
    rf"(?:\s*(?:{_STYLE}\{{[^{{}}\d]*\}}{_RAISED}|\\?%|{_CURRENCY}"
    rf"|(?:/\s*)?[A-Za-z]+(?![A-Za-z]){_RAISED}|[.-](?=\s|[A-Za-z]|$)))*\s*",
    re.ASCII,
)
_BARE_WORD = re.compile(rf"{_STYLE}\{{[^{{}}]*\}}|(/?)\s*([A-Za-z]+)")
_SHORT_UNITS = re.compile(
    r"[cmk]?m|[mk]?g|[mk]?L|in|ft|yd|mi|sq|cu|lbs?|oz|ml|ms|sec|min|hrs?|[ap]m|[mk]ph|pct|USD|EUR|GBP"
)
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NO_UNITS = re.compile(
    r"\b(?:or|and|to|plus|minus|over|divided|mod|modulo|squared|cubed|factorial|half|more|less|than|not)\b",
    re.I,
)
_LIST = re.compile(r"[,;](?!\d{3})|\b(?:or|and)\b")

# Numbers in running text.
_GSM8K_LINE = re.compile(r"^[ \t]*####[ \t]*(\S.*)$", re.MULTILINE)
_ANSWER = re.compile(r"\banswer\b[^.:=\d\n]{0,60}?(?:\bis\b|[:=])[:=]?", re.I)
_DELIMITER = re.compile(r"\\[()\[\]]|\*\*|(?<!\\)\$(?=\s|[.,;:!?)]|$)")
_EQUALS = re.compile(r"(?<![<>!])=")
_AROUND = "\"'`*_()[],;:!?"
_JOINS = r"(?:[-+*/^<>(\[]|\\[A-Za-z]+|\b(?:or|and|plus|minus|times|over))"
_JOINED_BEFORE = re.compile(rf"(?:{_JOINS}|[<>!]=|\d,|\d\S* to)$", re.I)
_JOINED_AFTER = re.compile(rf"(?:{_JOINS}|=|to)(?![A-Za-z])", re.I)


def find_number(solution: str) -> Fraction | None:
    r"""Returns the number a solution ends in, or None.

    The last ``\boxed{}`` decides where there is one. Else it is the first of these that is a number: the last
    line ``#### 42``, what follows the last "answer is" or "answer:", the last number of the text. The latter
    two must stand alone: the 5 of ``$\sqrt{5}$`` and the 7 of ``100 - 7`` are parts of something else.
    """
    boxed = extract_answer(solution)
    if boxed is not None:
        return read_number(boxed)
    lines = _GSM8K_LINE.findall(solution)
    if lines and (number := read_number(lines[-1])) is not None:
        return number
    text = _EQUALS.sub(" = ", _DELIMITER.sub(" ", solution.translate(_SIGNS)))
    *_, phrase = [None, *_ANSWER.finditer(text)]
    if phrase:
        line = text[phrase.end() : phrase.end() + _LONGEST].lstrip().partition("\n")[0]
        if (number := _first_number(line.split())) is not None:
            return number
    return _last_number(text.split())


def read_number(text: str) -> Fraction | None:
    r"""Returns the number that a text is, as the content of a box; None where it is anything else."""
    if len(text) > _LONGEST:
        return None
    text = _NO_SPACE.sub("", _NEGATIVE.sub("-", text.translate(_SIGNS)))
    text = _SPACE.sub(" ", text.replace("{,}", ","))
    left, equals, right = _unwrapped(" ".join(_DEGREES.sub(r"\\%", text).split())).rpartition("=")
    if equals and (not left.strip() or left.rstrip().endswith(("!", "<", ">", "\\not")) or _is_list(left)):
        return None
    try:
        return _read_measured(_PRICED.sub(r"\1", _unwrapped(right)))
    except ZeroDivisionError:
        return None


def _first_number(words: Sequence[str]) -> Fraction | None:
    for end in range(min(6, len(words)), 0, -1):
        number = None if _JOINED_AFTER.fullmatch(words[end - 1]) else _read_words(words[:end])
        if number is not None:
            after = words[end] if end < len(words) else ""
            is_list = words[end - 1].endswith(",") and after[:1].isdigit()
            return None if is_list or _JOINED_AFTER.match(after) else number
    return None


def _last_number(words: Sequence[str]) -> Fraction | None:
    last = next((i for i in reversed(range(len(words))) if re.search(r"\d", words[i])), -1)
    for begin in range(max(0, last - 2), last + 1):
        if begin < last and ("=" in words[begin:last] or _JOINED_AFTER.fullmatch(words[begin])):
            continue
        number = _read_words(words[begin : last + 1])
        if number is not None:
            before = " ".join(words[max(0, begin - 2) : begin])
            return None if _JOINED_BEFORE.search(before) else number
    return None


def _read_words(words: Sequence[str]) -> Fraction | None:
    return read_number(" ".join(words).lstrip(_AROUND).rstrip(_AROUND + "."))


def _unwrapped(text: str) -> str:
    for _ in range(_NESTED):
        text = text.strip().removesuffix(".")
        wrapped = _WRAPPED.fullmatch(text)
        if not wrapped:
            break
        text = next(inner for inner in wrapped.groups() if inner is not None)
    return text.strip()


def _is_list(left: str) -> bool:
    return _LIST.search(re.sub(r"\([^()]*\)", "", left)) is not None


def _read_measured(text: str) -> Fraction | None:
    """Returns the number with its unit."""
    head = _HEAD.match(text)
    number = head[0].rstrip() if head else ""
    scale, value = _scale(text[len(number) :]), _read_signed(number)
    return None if scale is None or value is None else value * scale


def _scale(unit: str) -> int | None:
    """Returns what a unit multiplies by, 1 for nearly all; None where the text is no unit."""
    if not _UNIT.fullmatch(unit) or _NO_UNITS.search(unit):
        return None
    for place, (slash, word) in enumerate(_BARE_WORD.findall(unit)):
        shortest = 2 if place else 3 if unit[0].isspace() else 4
        if word and not slash and len(word) < shortest and not _SHORT_UNITS.fullmatch(word):
            return None  # 5x and 5 x are products
    first, *others = re.findall(r"[a-z]+", re.sub(r"\\[A-Za-z]+", " ", unit).lower()) or [""]
    return None if _SCALES.keys() & others else _SCALES.get(first, 1)


def _read_signed(text: str) -> Fraction | None:
    sign = -1 if text.startswith("-") else 1
    value = _read_unsigned(text.removeprefix("-" if sign < 0 else "+").lstrip())
    return None if value is None else sign * value


def _read_unsigned(text: str) -> Fraction | None:
    if plain := _PLAIN.fullmatch(text):
        return _times_ten(plain[1], plain[2] or "0")
    if scientific := _SCIENTIFIC.fullmatch(text):
        return _times_ten(scientific[1], scientific[2] or scientific[3])
    if mixed := _MIXED.fullmatch(text):
        return _mixed(mixed[1], _read_unsigned(mixed[2]), _read_unsigned(mixed[3]))
    if fraction := _FRACTION.fullmatch(text):
        whole, above, above_digit, below, below_digit = fraction.groups()
        parts = [
            _read_signed((group or "").strip()) for group in (above or above_digit, below or below_digit)
        ]
        return _divided(*parts) if whole is None else _mixed(whole, *parts)
    if power := _POWER.fullmatch(text):
        return _raised(_read_signed(_unwrapped(power[1])), power[2] or power[3])
    above, slash, below = text.partition("/")
    if slash and "/" not in below and not above.startswith(("-", "+")):
        return _divided(_read_signed(_unwrapped(above)), _read_signed(_unwrapped(below)))
    return None


def _times_ten(digits: str, exponent: str) -> Fraction | None:
    if len(digits) > _LARGEST or len(exponent) > 5 or abs(int(exponent)) > _LARGEST:
        return None
    return Fraction(re.sub(r"[,\s]", "", digits)) * Fraction(10) ** int(exponent)


def _divided(above: Fraction | None, below: Fraction | None) -> Fraction | None:
    return None if above is None or below is None else above / below


def _mixed(whole: str, above: Fraction | None, below: Fraction | None) -> Fraction | None:
    r"""Returns a whole with its part; ``2\frac{3}{2}`` may be a product and is none."""
    if above is None or below is None or not 0 < above < below or len(whole) > _LARGEST:
        return None
    return int(whole) + above / below


def _raised(base: Fraction | None, exponent: str) -> Fraction | None:
    if base is None or len(exponent) > 5:
        return None
    size = abs(int(exponent)) * max(base.numerator.bit_length(), base.denominator.bit_length())
    return None if size > 4 * _LARGEST else base ** int(exponent)


# Commands that change the look of a text only.
_CHOICE_STYLE = re.compile(
    r"\\(?:text(?:bf|rm|it|normal)?|math(?:bf|rm|it)|mbox|boldsymbol|bm)\s*\{([^{}]*)\}"
)
_LOOK = re.compile(
    r"\*\*|__|[$`\"\u201c\u201d]|\\[()\[\],;:! ]|~|\\(?:left|right|q?quad|displaystyle)(?![A-Za-z])"
)
_QUOTED = re.compile(r"(?<!\w)['\u2018]([(\[]?[A-Ja-j][)\]]?[.,]?)['\u2019](?!\w)")

_BRACKETED = r"[(\[]\s*([A-Ja-j])\s*[)\]]"
_OPTION = r"(?:(?:option|choice|letter)\s*:?\s*)"
_BOXED = re.compile(
    rf"(?i:(?:answer\s*:?\s*)?{_OPTION}?)(?:{_BRACKETED}|([A-Ja-j])(?=\s*$|\s*[.):]))(.*)", re.DOTALL
)
_SECOND = re.compile(rf"{_BRACKETED}|\b(?:or|and)\s+[A-Ja-j]\s*$")

_BECAUSE = r"(?:is|as|because|since|for|by|so|due|which|where|from|that|with|given)\b"
_ENDS = rf"(?![\w'\u2019])(?=\s*$|\s*[.,;:!?)\]\n]|\s*[-\u2013\u2014]\s|\s+{_BECAUSE})"
_LETTER = rf"(?:{_BRACKETED}(?!\s*(?:or|and|,)\s*[(\[])|\b([A-Ja-j]){_ENDS})"
_ANSWER_IS = (
    r"\b(?:answer|(?:correct|right|best|final|only)\s+(?:option|choice|letter|one))\s*"
    rf"(?:(?:is|are|(?:would|must|should|has\s+to)\s+be|[:=])\s*)*(?:the\s+)?{_OPTION}?"
)
_IS_RIGHT = (
    r"\s+(?:is|must\s+be|would\s+be)\s+(?:(?:the|therefore|thus)\s+)*(?:correct|right|best|answer|true)\b"
)
_CHOSEN = re.compile(
    rf"(?i:{_ANSWER_IS}){_LETTER}|(?<![\w(\[])(?:{_BRACKETED}|([A-Ja-j]))(?i:{_IS_RIGHT})"
    rf"|\b(?i:choose|pick|select)\s+(?i:{_OPTION})?(?:{_BRACKETED}|([A-J]){_ENDS})"
)
_NOT = r"(?<!not )(?<!not be )(?<!n['\u2019]t )(?<!n['\u2019]t be )"
_ALONE = re.compile(
    rf"{_NOT}(?:(?<![\w)]){_BRACKETED}|(?<![\w'\u2019(\[])([A-J]){_ENDS}"
    rf"|\b(?i:{_OPTION}(?:is\s+)?){_LETTER})"
)
_AFTER_ANOTHER = re.compile(r"\b[A-Ja-j][)\]]?,?\s+(?:or|and)\s*(?i:option|choice)?\s*$")


def read_choice(text: str) -> str | None:
    r"""Returns the letter a solution chooses, as a capital, or None.

    The last ``\boxed{}`` decides where there is one. Else it is the letter behind the last "answer is", "best
    option:" and the like, or before "is correct"; else the last one that stands alone.
    """
    boxed = extract_answer(text)
    if boxed is not None:
        return read_boxed_choice(boxed)
    plain = _plain(text)
    *_, chosen = [None, *_CHOSEN.finditer(plain)]
    if chosen:
        return _letter(chosen)
    *_, alone = [None, *_ALONE.finditer(plain)]
    if alone is None or _AFTER_ANOTHER.search(plain[: alone.start()][-20:]):
        return None
    return _letter(alone)


def read_boxed_choice(content: str) -> str | None:
    """Returns the letter that a box is, perhaps with the text of the choice behind it, or None."""
    match = _BOXED.fullmatch(_plain(content).strip(" \n{}"))
    return None if match is None or _SECOND.search(match[3]) else _letter(match)


def _plain(text: str) -> str:
    """Returns a text without what changes its look only, with one space or line break between words."""
    text = re.sub(r"[^\S\n]+", " ", _LOOK.sub(" ", _CHOICE_STYLE.sub(r"\1", _QUOTED.sub(r"\1", text))))
    return re.sub(r" ?(?:\n ?)+", "\n", text).strip()


def _letter(match: re.Match[str]) -> str:
    return next(letter for letter in match.groups() if letter).upper()
