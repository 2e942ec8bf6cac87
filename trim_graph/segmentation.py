"""Segmentation: where a step ends, which part of a thinking model's text it belongs to, how steps join.

By default a blank line ends a step. ``segmentation`` selects another way: `markdown`, `pattern` (a regular
expression), `token_cap`, or any function that finds the end of the first step of a text. A process reward
model needs steps of the kind that it was trained on.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, PrivateAttr, field_validator, model_validator

from .errors import KnownFields, SettingsError

_CONTAINERS = r"[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+|>[ \t]*)*"
"""List markers and quote marks in front of a block."""
_OPENING = re.compile(rf"{_CONTAINERS}(?P<marks>`{{3,}}|~{{3,}})(?P<info>.*)")
_CLOSING = re.compile(r"[ \t>]*(?P<marks>`{3,}|~{3,})[ \t\r]*$")
_HEADING = re.compile(r" {0,3}#{1,6}(?:\s|$)")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-+)\s*$")
_COLON = re.compile(r"[:\uff1a][*_]*\s*$")
"""The end of a line that announces what follows, as in ``**Step 1:**``."""
_TABLE_RULE = re.compile(r"\s*\|[\s:|]*-[\s:|-]*$")
"""The line below a table's head. Without one, lines that begin with ``|`` may be ``|x| < 3``."""
_LATEX = re.compile(
    r"`+|\\[\\$]|\$\$|\\\[|\\\]|\\begin\s*\{(?P<begin>[^{}\n]*)\}|\\end\s*\{(?P<end>[^{}\n]*)\}"
)

DEEPEST = 100
"""Most nested environments; deeper ones are ignored."""


class Blocks:
    """Reader of Markdown and LaTeX lines in order; tracks which blocks are open.

    A code fence within open math ends that math, so that a stray ``$$`` has no effect past the next code.
    """

    def __init__(self) -> None:
        self._fence: tuple[str, int] | None = None
        """Marks of the open fence, and the deepest column at which they may close it."""
        self._math: list[str] = []
        """Closing marks of open math and environments, the innermost last."""
        self._lead_in = self._table = self._paragraph = False
        """Block of the last line; an underline turns a paragraph into a heading, which is a lead-in."""

    def may_end(self, line: str) -> bool:
        """Returns whether a block ends at the blank lines just read.

        Args:
            line: The line after them, as far as it is known; its first character suffices.
        """
        within_table = self._table and line.lstrip().startswith("|")
        return not (self._fence or self._math or self._lead_in or within_table)

    def add_blank(self) -> None:
        """Reads a blank line."""
        self._paragraph = False

    def add(self, line: str) -> None:
        """Reads a complete line that is not blank."""
        after_paragraph, after_table = self._paragraph, self._table
        self._lead_in = self._table = self._paragraph = False
        if self._fence is not None:
            self._close_fence(line, *self._fence)
        elif self._open_fence(line):
            self._math.clear()
        else:
            within = bool(self._math)
            self._read_latex(line)
            if not within and not self._math:
                underlined = after_paragraph and _UNDERLINE.match(line) is not None
                heading = underlined or _HEADING.match(line) is not None
                self._lead_in = heading or _COLON.search(line) is not None
                row = line.lstrip().startswith("|")
                self._table = row and (after_table or _TABLE_RULE.match(line) is not None)
                self._paragraph = not heading

    def _open_fence(self, line: str) -> bool:
        found = _OPENING.match(line)
        if found is None or (found["marks"][0] == "`" and "`" in found["info"]):
            return False
        self._fence = found["marks"], _column(line, found.start("marks")) + 3
        return True

    def _close_fence(self, line: str, marks: str, deepest: int) -> None:
        found = _CLOSING.match(line)
        if (
            found is not None
            and found["marks"].startswith(marks)
            and _column(line, found.start("marks")) <= deepest
        ):
            self._fence = None

    def _read_latex(self, line: str) -> None:
        tokens = list(_LATEX.finditer(line))
        # The last run of backticks of each length: without a later one like it, a run opens no code.
        last = {token[0]: index for index, token in enumerate(tokens) if token[0][0] == "`"}
        code = None
        for index, token in enumerate(tokens):
            sign = token[0]
            if code is not None:
                code = None if sign == code else code
            elif sign[0] == "`":
                code = sign if not self._math and last[sign] > index else None
            else:
                self._read_sign(sign, token["begin"], token["end"])

    def _read_sign(self, sign: str, begin: str | None, end: str | None) -> None:
        closes = f"\\end{{{end}}}" if end is not None else sign
        if len(self._math) == DEEPEST and closes not in self._math:
            return
        if closes in self._math:
            while self._math.pop() != closes:
                pass  # blocks left open within it
        elif begin is not None:
            self._math.append(f"\\end{{{begin}}}")
        elif sign in ("$$", "\\["):
            self._math.append("$$" if sign == "$$" else "\\]")


def _column(line: str, place: int) -> int:
    return len(line[:place].expandtabs(4))


DEFAULT_DELIMITER = "\n\n"

_WORD = re.compile(r"</?\w+>|([^\W_])")
"""A lone tag, or the first letter or digit of a word: `str.isalnum`."""

FindStep = Callable[[str], "int | tuple[int, int] | None"]
"""Gets the text written so far; returns the index where its first step ends, or None while it has not ended.
A pair adds the index where the next step begins, after the separator."""


class Boundary(NamedTuple):
    """End of a step: index ``end``; the next step begins at index ``next``, after the separator."""

    end: int
    next: int


def is_step(text: str) -> bool:
    """Returns whether a text has content: white space, punctuation or a lone ``<tag>`` is not a step."""
    return _next_word(text) is not None


def _next_word(text: str, begin: int = 0) -> int | None:
    """Returns the index of the first letter or digit that is not part of a lone tag; None without one."""
    return next((found.start() for found in _WORD.finditer(text, begin) if found[1]), None)


def separator_of(step: Mapping[str, Any], delimiter: str = DEFAULT_DELIMITER) -> str:
    """Returns the text between a step and the next; empty after ``length`` and ``eos``."""
    return str(step.get("separator", delimiter)) if step["end"] == "delimiter" else ""


def join_steps(steps: Iterable[Mapping[str, Any]], delimiter: str = DEFAULT_DELIMITER) -> str:
    """Returns the text of steps, byte for byte as the models wrote it, for the models to continue.

    Args:
        steps: Records with ``text`` and ``end``. If ``end`` is ``delimiter``, the record's ``separator``
            follows, or ``delimiter`` if it has none. Nothing follows a step cut by its token limit
            (``length``), nor the last one (``eos``).
        delimiter: Default separator of steps.
    """
    # As `separator_of`, without a call a step: every call of a model joins all steps.
    return "".join(
        [
            step["text"] + step.get("separator", delimiter) if step["end"] == "delimiter" else step["text"]
            for step in steps
        ]
    )


def cut_text(steps: Sequence[Mapping[str, Any]]) -> str:
    """Returns the text so far of a step that its token limit cut; empty if the last step is complete."""
    cut = takewhile(lambda step: step["end"] == "length", reversed(steps))
    return "".join(reversed([step["text"] for step in cut]))


def split_steps(text: str, delimiter: str = DEFAULT_DELIMITER) -> list[str]:
    """Splits a text at a delimiter into steps; a piece that is no step joins the next one."""
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


def divide_tokens(total: int, texts: list[str]) -> list[int]:
    """Returns the shares of ``total`` tokens for texts, by their lengths; the shares sum to ``total``."""
    lengths = [len(text) or 1 for text in texts]
    weight = sum(lengths)
    shares, given, seen = [], 0, 0
    for length in lengths:
        seen += length
        upto = total * seen // weight
        shares.append(upto - given)
        given = upto
    return shares


class Segmentation(KnownFields):
    """Base class: finds where a step ends. Its fields are JSON-native, for the state."""

    model_config = ConfigDict(frozen=True)

    @property
    def stops(self) -> tuple[str, ...]:
        """Stops strings of the writer's call."""
        return ()

    @property
    def watches(self) -> bool:
        """Whether `boundary` finds the end of a step while the text is written."""
        return False

    def continuing(self, cut: str) -> Segmentation:
        """Returns the segmentation for text that continues a step that its token limit cut.

        Args:
            cut: Text of that step so far; empty if a new step begins.
        """
        return self

    def boundary(self, text: str, *, ended: bool) -> Boundary | None:
        """Returns where the first step of a text ends; None if it has not ended.

        Args:
            text: Text so far.
            ended: Whether the text is complete.
        """
        return None

    def split(self, text: str) -> list[tuple[str, str]]:
        """Splits a complete text into steps.

        Returns:
            Each step with its separator from the next; the last separator is empty unless the text ends
            with one.
        """
        steps: list[tuple[str, str]] = []
        while found := self.boundary(text, ended=True):
            steps.append((text[: found.end], text[found.end : found.next]))
            text = text[found.next :]
        return self._with_rest(steps, text)

    def _with_rest(self, steps: list[tuple[str, str]], rest: str) -> list[tuple[str, str]]:
        """Adds the text after the last separator, as a step or, if it is none, to the last step."""
        if is_step(rest):
            return [*steps, (rest, "")]
        if not rest or not steps:
            return steps
        last, separator = steps[-1]
        return [*steps[:-1], (last + separator + rest, "")]


class DelimiterSteps(Segmentation):
    """A fixed string ends a step; it is a stop string of the writer's call."""

    type: Literal["delimiter"] = "delimiter"
    delimiter: str = Field(default=DEFAULT_DELIMITER, min_length=1)
    """The string."""

    @property
    def stops(self) -> tuple[str, ...]:
        """The delimiter."""
        return (self.delimiter,)

    def split(self, text: str) -> list[tuple[str, str]]:
        """Splits a complete text into steps; see `split_steps`."""
        steps = [(step, self.delimiter) for step in split_steps(text, self.delimiter)]
        if steps and text.rsplit(self.delimiter, 1)[-1].strip():
            steps[-1] = (steps[-1][0], "")
        return steps


class WatchedSteps(Segmentation):
    """Base class: finds all steps of a text in one pass, while the text is written."""

    @property
    def watches(self) -> bool:
        """True."""
        return True

    def boundary(self, text: str, *, ended: bool) -> Boundary | None:
        """Returns where the first step ends; in an incomplete text only if more text cannot move that."""
        return next(self._boundaries(text, ended=ended), None)

    def split(self, text: str) -> list[tuple[str, str]]:
        """Splits a complete text into steps, in one pass, since it may be long."""
        steps, begin = list[tuple[str, str]](), 0
        for found in self._boundaries(text, ended=True):
            steps.append((text[begin : found.end], text[found.end : found.next]))
            begin = found.next
        return self._with_rest(steps, text[begin:])

    def _boundaries(self, text: str, *, ended: bool) -> Iterator[Boundary]:
        raise NotImplementedError


class PatternSteps(WatchedSteps):
    """A match of a regular expression separates steps. At the end of an incomplete text it may still grow."""

    type: Literal["pattern"] = "pattern"
    pattern: str = Field(min_length=1)
    """The regular expression, in Python's syntax."""

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
    """Blank lines separate steps, but not within a block of Markdown or LaTeX (see `markdown`).

    A block that is never closed extends to the end of the text. The token limit of a step cuts it, and the
    next step continues within the block.
    """

    type: Literal["markdown"] = "markdown"
    _cut: str = PrivateAttr(default="")

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        yield from super().__repr_args__()
        yield "cut", self._cut

    def continuing(self, cut: str) -> Segmentation:
        """Returns the segmentation with the blocks that the earlier text left open."""
        if not cut:
            return self
        continued = self.model_copy()
        continued._cut = cut
        return continued

    def _boundaries(self, text: str, *, ended: bool) -> Iterator[Boundary]:
        blocks, word, before = Blocks(), _next_word(text), len(self._cut)
        end: int | None = None  # of the last line with text
        gap: Boundary | None = None  # the blank lines after it
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
    """Returns the length of a line's break."""
    return len(line) - len(line.removesuffix("\n").removesuffix("\r"))


class TokenSteps(Segmentation):
    """A fixed number of tokens is a step."""

    type: Literal["tokens"] = "tokens"
    tokens: int = Field(ge=1)
    """Their number."""


class FunctionSteps(Segmentation):
    """A user's function finds the end of a step. The state holds only its name."""

    type: Literal["function"] = "function"
    name: str
    function: Any = Field(default=None, exclude=True, repr=False)

    @property
    def watches(self) -> bool:
        """True."""
        return True

    def boundary(self, text: str, *, ended: bool) -> Boundary | None:
        """Returns where the first step ends, by the function; a piece that is no step joins the next one.

        Raises:
            SettingsError: The function returned something other than indices into the text.
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
    """Ends a step at a string, which is a stop string of the writer's call."""
    return DelimiterSteps(delimiter=text)


def pattern(expression: str) -> Segmentation:
    r"""Ends a step where a regular expression matches; the match is the separator.

    A lookahead keeps the text that follows: ``pattern(r"\n+(?=Step \d)")``.
    """
    return PatternSteps(pattern=expression)


def markdown() -> Segmentation:
    r"""Ends a step at blank lines outside blocks of Markdown and LaTeX, but not after a lead-in.

    Blocks are fenced code, tables, ``$$...$$``, ``\[...\]`` and ``\begin{...}...\end{...}``. A lead-in is a
    heading, or a line that ends in a colon: on its own it is no step of a solution, and scorers rate it low.
    A blank line cannot be a stop string then, so `boundary` checks the text while it is written.
    """
    return MarkdownSteps()


def token_cap(tokens: int) -> Segmentation:
    """Ends a step after a fixed number of tokens."""
    return TokenSteps(tokens=tokens)


def as_segmentation(given: Any) -> Any:
    """Returns a segmentation unchanged, and a function wrapped as `FunctionSteps`."""
    if isinstance(given, Segmentation | Mapping) or not callable(given):
        return given
    name = f"{getattr(given, '__module__', '?')}.{getattr(given, '__qualname__', type(given).__qualname__)}"
    return FunctionSteps(name=name, function=given)


Part = Literal["reasoning", "answer"]


class Thinking(KnownFields):
    """The marks of reasoning, and which part of a thinking model's text is routed.

    The defaults are the tags of DeepSeek-R1, QwQ and Qwen3. If a model's chat template opens the reasoning
    itself, the adapter reports so in ``response_metadata["starts_in_reasoning"]``.
    """

    model_config = ConfigDict(frozen=True)

    open: str = Field(default="<think>", min_length=1)
    """Text that opens the reasoning."""
    close: str = Field(default="</think>", min_length=1)
    """Text that closes it."""
    routed: Literal["both", "reasoning", "answer"] = "both"
    """Drafts of a part that is not routed are accepted without score and decision."""

    @model_validator(mode="after")
    def _marks_differ(self) -> Thinking:
        if self.close in self.open:
            raise ValueError(
                f"close={self.close!r} is in open={self.open!r}: reasoning would end as it begins"
            )
        return self

    def inside(self, previous: Mapping[str, Any] | None) -> bool:
        """Returns whether the last accepted step left its reasoning open."""
        return previous is not None and previous.get("part") == "reasoning" and not self._closed(previous)

    def may_close(self, previous: Mapping[str, Any] | None, partial_text: str) -> bool:
        """Returns whether the close mark of reasoning may occur in the next text of a writer.

        At the first step it may: whether the step or its prompt opens reasoning is not known before.

        Args:
            previous: The previous step.
            partial_text: Text of the step from earlier attempts.
        """
        opens = previous is None or self.inside(previous) or partial_text.lstrip().startswith(self.open)
        return opens and self.close not in partial_text

    def boundary(
        self, previous: Mapping[str, Any] | None, text: str, *, opened: bool = False
    ) -> Boundary | None:
        """Returns where the reasoning that a text begins in ends; None if it begins in none or an empty one.

        Args:
            previous: The step before the text.
            text: Text of one step or more.
            opened: Whether the prompt already opened the reasoning.
        """
        if self.close not in text or self.part_of(previous, text, opened=opened) != "reasoning":
            return None
        end = text.index(self.close)
        return Boundary(end, end + len(self.close))

    def part_of(self, previous: Mapping[str, Any] | None, text: str, *, opened: bool = False) -> Part | None:
        """Returns the part that a step begins in; None if the model does not think.

        Args:
            previous: The previous step.
            text: Text of the step.
            opened: Whether the prompt already opened the reasoning.
        """
        inside = self.inside(previous) or (previous is None and opened)
        begun = text.lstrip()
        if not inside and begun.startswith(self.open):
            inside, begun = True, begun[len(self.open) :]
        if inside:
            if self._torn(previous, text):
                return "answer"
            reasoning, closed, _ = begun.partition(self.close)
            return "reasoning" if is_step(reasoning) or not closed else "answer"
        return "answer" if previous is not None and "part" in previous else None

    def answer_in(self, text: str, first: Mapping[str, Any] | None) -> str:
        """Returns the text after the reasoning: all of it without any, none while the reasoning is open."""
        if first is None or first.get("part") is None:
            return text
        return text.rpartition(self.close)[2] if self.close in text else ""

    def _torn(self, previous: Mapping[str, Any] | None, text: str) -> bool:
        """Returns whether a token limit split the close mark, and this text begins with its second half."""
        if previous is None or previous["end"] != "length":
            return False
        places = range(1, len(self.close))
        return any(
            previous["text"].endswith(self.close[:at]) and text.startswith(self.close[at:]) for at in places
        )

    def _closed(self, step: Mapping[str, Any]) -> bool:
        return self.close in step["text"] or self.close in step.get("separator", "")


def partial_text_counts(previous: Mapping[str, Any] | None, partial_text: str) -> bool:
    """Returns whether text of earlier attempts belongs to this step.

    Blank lines after a blank separator do not.

    Args:
        previous: The step accepted last.
        partial_text: Text of earlier attempts, which was no step by itself.
    """
    if partial_text.strip():
        return True
    return previous is not None and (not separator_of(previous) or bool(separator_of(previous).strip()))


class StepEnded:
    """The call setting ``stop_when`` that ends an answer at the end of a step.

    It is represented by what it does, since LangChain's caches take that for a part of the request: equal
    requests of two processes are then one. What a user's function does is not known, so such a request is
    equal to none.

    Args:
        segmentation: Finds the end of a step.
        partial_text: Text of this step from earlier attempts.
    """

    def __init__(self, segmentation: Segmentation, partial_text: str) -> None:
        self._segmentation, self._partial_text = segmentation, partial_text

    def __call__(self, text: str) -> bool:
        """Returns whether the step ends in the text so far."""
        return self._segmentation.boundary(self._partial_text + text, ended=False) is not None

    def __repr__(self) -> str:
        unknown = isinstance(self._segmentation, FunctionSteps)
        does = uuid.uuid4().hex if unknown else repr(self._partial_text)
        return f"StepEnded({self._segmentation!r}, {does})"


def stop_arguments(
    segmentation: Segmentation,
    thinking: Thinking | None,
    previous: Mapping[str, Any] | None,
    *,
    partial_text: str,
    takes_stop_when: bool,
) -> dict[str, Any]:
    """Returns the call settings that end an answer at the end of a step: ``stop`` and ``stop_when``.

    Args:
        segmentation: Finds the end of a step.
        thinking: How reasoning is marked; its end ends a step too.
        previous: The step accepted last.
        partial_text: Text of this step from earlier attempts.
        takes_stop_when: Whether the model takes ``stop_when``; the answer of another is cut afterwards.
    """
    stops = list(segmentation.stops)
    if thinking is not None and thinking.may_close(previous, partial_text):
        stops.append(thinking.close)
    arguments: dict[str, Any] = {"stop": stops} if stops else {}
    if segmentation.watches and takes_stop_when:
        arguments["stop_when"] = StepEnded(segmentation, partial_text)
    return arguments
