r"""What a step is: where it ends, and how steps make a text again.

By default a blank line ends a step. ``segmentation`` chooses another way: `markdown`, `pattern` (a regular
expression), `token_cap`, or any function that finds the end of the first step of a text. A scorer that was
trained on steps, as process reward models are, has to be given steps of the same kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from .errors import SettingsError
from .markdown_blocks import Blocks

__all__ = [
    "DEFAULT_DELIMITER",
    "AnySegmentation",
    "Boundary",
    "Segmentation",
    "as_segmentation",
    "cut_text",
    "delimiter",
    "is_step",
    "join_steps",
    "markdown",
    "pattern",
    "separator_of",
    "share_out",
    "split_steps",
    "token_cap",
]

DEFAULT_DELIMITER = "\n\n"

_WORD = re.compile(r"</?\w+>|([^\W_])")
"""A lone tag, or the first letter or digit of a word: `str.isalnum`."""

FindStep = Callable[[str], "int | tuple[int, int] | None"]
"""Gets the text written so far; says where its first step ends, or None while it has not ended. A pair tells
also where the next step begins, behind what separates the two."""


class Boundary(NamedTuple):
    """A step ends at ``end``; the next one begins at ``next``, behind what separates them."""

    end: int
    next: int


def is_step(text: str) -> bool:
    """Tell whether a piece of text says anything: space, punctuation or a lone ``<tag>`` is not a step."""
    return _next_word(text) is not None


def _next_word(text: str, begin: int = 0) -> int | None:
    """Return the place of the first letter or digit that is not part of a lone tag."""
    return next((found.start() for found in _WORD.finditer(text, begin) if found[1]), None)


def separator_of(step: Mapping[str, Any], delimiter: str = DEFAULT_DELIMITER) -> str:
    """Return what the writer wrote between this step and the next: nothing after ``length`` and ``eos``."""
    return str(step.get("separator", delimiter)) if step["end"] == "delimiter" else ""


def join_steps(steps: Iterable[Mapping[str, Any]], delimiter: str = DEFAULT_DELIMITER) -> str:
    """Join step records into the text the models continue, byte for byte what they wrote.

    Args:
        steps: Records with ``text`` and ``end``. After ``delimiter`` the ``separator`` of the record is put
            back, or ``delimiter`` where it has none; a step cut by its token limit (``length``) is carried
            on without one; after ``eos`` there is none.
        delimiter: What separates steps.
    """
    return "".join(step["text"] + separator_of(step, delimiter) for step in steps)


def cut_text(steps: Sequence[Mapping[str, Any]]) -> str:
    """Return what is written of a step that its token limit has cut; empty where the last step is whole."""
    cut = takewhile(lambda step: step["end"] == "length", reversed(steps))
    return "".join(reversed([step["text"] for step in cut]))


def split_steps(text: str, delimiter: str = DEFAULT_DELIMITER) -> list[str]:
    """Cut a text written in one go into steps; pieces that are no step join the one that follows."""
    steps: list[str] = []
    pending = ""
    for piece in text.split(delimiter):
        if is_step(piece):
            steps.append(pending + piece)
            pending = ""
        elif piece.strip():
            pending += piece + delimiter
    if pending.strip() and steps:
        steps[-1] += delimiter + pending.removesuffix(delimiter)
    return steps


def share_out(total: int, texts: list[str]) -> list[int]:
    """Share ``total`` tokens among ``texts`` by their lengths; the shares add up to ``total``."""
    lengths = [len(text) or 1 for text in texts]
    weight = sum(lengths)
    shares, given, seen = [], 0, 0
    for length in lengths:
        seen += length
        upto = total * seen // weight
        shares.append(upto - given)
        given = upto
    return shares


class Segmentation(BaseModel):
    """Base of the ways to find where a step ends; what it stores is JSON-native."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings at which the writer itself stops."""
        return ()

    @property
    def watches(self) -> bool:
        """Whether the end of a step is found in the text instead."""
        return False

    def cap(self, max_step_tokens: int) -> int:
        """Return the most tokens of a step."""
        return max_step_tokens

    def continuing(self, cut: str) -> Segmentation:
        """Return the segmentation for text that goes on with a step which its token limit has cut.

        Args:
            cut: What is written of that step; empty where a step begins.
        """
        return self

    def boundary(self, text: str, *, ended: bool) -> Boundary | None:
        """Find where the first step of a text ends.

        Args:
            text: Written so far.
            ended: Whether nothing will be added to it.
        """
        return None

    def split(self, text: str) -> list[tuple[str, str]]:
        """Cut a text written in one go into steps.

        Returns:
            Each step and what separates it from the next; the last separator is empty unless the text
            ends right behind one.
        """
        steps: list[tuple[str, str]] = []
        while found := self.boundary(text, ended=True):
            steps.append((text[: found.end], text[found.end : found.next]))
            text = text[found.next :]
        return self._with_rest(steps, text)

    def _with_rest(self, steps: list[tuple[str, str]], rest: str) -> list[tuple[str, str]]:
        """Add what stands behind the last separator; where that is no step, it belongs to the last one."""
        if is_step(rest):
            return [*steps, (rest, "")]
        if not rest or not steps:
            return steps
        last, separator = steps[-1]
        return [*steps[:-1], (last + separator + rest, "")]


class DelimiterSteps(Segmentation):
    """A string ends a step; the writer stops there by itself."""

    type: Literal["delimiter"] = "delimiter"
    delimiter: str = Field(default=DEFAULT_DELIMITER, min_length=1)

    @property
    def stops(self) -> tuple[str, ...]:
        """The delimiter."""
        return (self.delimiter,)

    def split(self, text: str) -> list[tuple[str, str]]:
        """Cut a text written in one go into steps; see `split_steps`."""
        steps = [(step, self.delimiter) for step in split_steps(text, self.delimiter)]
        if steps and text.rsplit(self.delimiter, 1)[-1].strip():
            steps[-1] = (steps[-1][0], "")
        return steps


class WatchedSteps(Segmentation):
    """Base of the ways that find all steps of a text in one pass. The text is watched as it is written."""

    @property
    def watches(self) -> bool:
        """True."""
        return True

    def boundary(self, text: str, *, ended: bool) -> Boundary | None:
        """Find where the first step ends; until the text has ended, only what more text will not move."""
        return next(self._boundaries(text, ended=ended), None)

    def split(self, text: str) -> list[tuple[str, str]]:
        """Cut a text written in one go into steps, in one pass: it may be long."""
        steps, begin = list[tuple[str, str]](), 0
        for found in self._boundaries(text, ended=True):
            steps.append((text[begin : found.end], text[found.end : found.next]))
            begin = found.next
        return self._with_rest(steps, text[begin:])

    def _boundaries(self, text: str, *, ended: bool) -> Iterator[Boundary]:
        raise NotImplementedError


class PatternSteps(WatchedSteps):
    """A match of a regular expression separates steps. One at the very end of a text may still grow."""

    type: Literal["pattern"] = "pattern"
    pattern: str = Field(min_length=1)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            compiled = re.compile(value)
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from error
        if compiled.match(""):
            raise ValueError("matches the empty text, so that every letter would be a step")
        return value

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def _boundaries(self, text: str, *, ended: bool) -> Iterator[Boundary]:
        word = _next_word(text)
        for match in self._compiled.finditer(text):
            if word is None:
                return
            if word < match.start() and (ended or match.end() < len(text)):
                yield Boundary(match.start(), match.end())
                word = _next_word(text, match.end())


class MarkdownSteps(WatchedSteps):
    """Blank lines separate steps, but not within a block of Markdown or LaTeX (`trim_graph.markdown_blocks`).

    A block that is never closed reaches to the end of the text. The limit on a step's tokens cuts it there,
    and the next step goes on within the block.
    """

    type: Literal["markdown"] = "markdown"
    _cut: str = PrivateAttr(default="")

    def continuing(self, cut: str) -> Segmentation:
        """Return the segmentation that knows which blocks the text before has left open."""
        if not cut:
            return self
        going_on = self.model_copy()
        going_on._cut = cut
        return going_on

    def _boundaries(self, text: str, *, ended: bool) -> Iterator[Boundary]:
        blocks, word, before = Blocks(), _next_word(text), len(self._cut)
        end: int | None = None  # of the last line with text
        gap: Boundary | None = None  # the blank lines behind it
        for line in _LINE.finditer(self._cut + text):
            if word is None:
                return
            if line[0].isspace():
                if end is not None and line[0].endswith("\n"):
                    gap = Boundary(end, line.end() - before)
                    blocks.add_blank()
                continue
            if gap is not None and word < gap.end and blocks.may_end(line[0]):
                yield gap
                word = _next_word(text, gap.next)
            end, gap = line.end() - before - _line_break(line[0]), None
            blocks.add(line[0])
        if ended and gap is not None and word is not None and word < gap.end and blocks.may_end(""):
            yield gap


_LINE = re.compile(r"[^\n]*\n|[^\n]+")


def _line_break(line: str) -> int:
    """Return the length of a line's break."""
    return len(line) - len(line.removesuffix("\n").removesuffix("\r"))


class TokenSteps(Segmentation):
    """Every so many tokens are a step, wherever they end."""

    type: Literal["tokens"] = "tokens"
    tokens: int = Field(ge=1)

    def cap(self, max_step_tokens: int) -> int:
        """Return the smaller of both limits."""
        return min(self.tokens, max_step_tokens)


class FunctionSteps(Segmentation):
    """A user's function finds the end of a step. The state keeps its name only."""

    type: Literal["function"] = "function"
    name: str
    function: Any = Field(default=None, exclude=True, repr=False)

    @property
    def watches(self) -> bool:
        """True."""
        return True

    def boundary(self, text: str, *, ended: bool) -> Boundary | None:
        """Ask the function; what it calls a step and is none joins the one that follows.

        Raises:
            SettingsError: It answered with something that is no place in the text.
        """
        begin, word = 0, _next_word(text)
        while begin < len(text) and word is not None:
            found = self._ask(text[begin:])
            if found is None:
                return None
            if word < begin + found.end:
                return Boundary(begin + found.end, begin + found.next)
            begin += found.next
        return None

    def _ask(self, text: str) -> Boundary | None:
        found = self.function(text)
        if found is None:
            return None
        pair = (found, found) if isinstance(found, int) else found
        try:
            end, following = (int(place) for place in pair)
        except (TypeError, ValueError):
            end, following = -1, -1
        if not 0 <= end <= following <= len(text) or following == 0:
            raise SettingsError(
                f"the segmentation function {self.name} returned {found!r} for a text of {len(text)} "
                "characters; it returns None, the place where the first step ends, or that place and the one "
                "where the next step begins"
            )
        return Boundary(end, following)


AnySegmentation = Annotated[
    DelimiterSteps | PatternSteps | MarkdownSteps | TokenSteps | FunctionSteps, Field(discriminator="type")
]


def delimiter(text: str = DEFAULT_DELIMITER) -> Segmentation:
    """End a step at this string, which the writer is told to stop at."""
    return DelimiterSteps(delimiter=text)


def pattern(expression: str) -> Segmentation:
    r"""End a step where a regular expression matches; what it matches separates the steps.

    A lookahead keeps what follows: ``pattern(r"\n+(?=Step \d)")``.
    """
    return PatternSteps(pattern=expression)


def markdown() -> Segmentation:
    r"""End a step at blank lines outside blocks of Markdown and LaTeX, and not behind a heading.

    Blocks are code between fences, tables, ``$$...$$``, ``\[...\]`` and ``\begin{...}...\end{...}``. The
    writer cannot be told to stop at a blank line, so the text is watched as it is written.
    """
    return MarkdownSteps()


def token_cap(tokens: int) -> Segmentation:
    """End a step after so many tokens."""
    return TokenSteps(tokens=tokens)


def as_segmentation(given: Any) -> Any:
    """Take a segmentation as it is, and wrap a function."""
    if isinstance(given, Segmentation | Mapping) or not callable(given):
        return given
    name = f"{getattr(given, '__module__', '?')}.{getattr(given, '__qualname__', type(given).__qualname__)}"
    return FunctionSteps(name=name, function=given)
