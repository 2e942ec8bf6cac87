"""The protocol of `ContinueByPrompt`: the request for a step, and the reader of the response.

A response that begins by repeating the text so far is cut to what is new.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from trim_graph.adapters.base import StepEnd
from trim_graph.segmentation import is_step

START = "[[STEP]]"
DONE = "[[DONE]]"

FIRST_STEP = (
    "Write only the first step of your solution, without {separator} in it. "
    "Begin with {start} on a line of its own. "
    "If the solution is complete with this step, put {done} on a line of its own after it."
)
NEXT_STEP = (
    "Write only the next step of your solution, without {separator} in it. Repeat nothing of the above. "
    "Begin with {start} on a line of its own. "
    "If the solution is complete with this step, put {done} on a line of its own after it. "
    "If it is complete already, answer only {done}"
)
SAME_STEP = (
    "Your last step was cut off. Go on exactly where it ends, and write only the rest of that step, without "
    "{separator} in it. Begin with {start} on a line of its own. {again} "
    "If the solution is complete with this step, put {done} on a line of its own after it. "
    "If it is complete already, answer only {done}"
)
FROM_LAST_WORDS = (
    'On the next line repeat the words that it ends with, "{words}", and nothing else of the above; '
    "go on right behind them, with the blanks and line breaks that belong there."
)
REPEAT_NOTHING = "Repeat nothing of the above."
REST = (
    "Write all that remains of your solution, in steps with {separator} between them. Repeat nothing of the "
    "above; go on exactly where it ends. Begin with {start} on a line of its own, and put {done} on a line "
    "of its own at the end. If the solution is complete already, answer only {done}"
)


@dataclass(frozen=True, slots=True)
class PromptedStep:
    """Content of an answer.

    Attributes:
        text: The new text: one step, or all that remained. It joins the written text as it is.
        end: Reason of its end: of the step, of the solution, or of the answer at its token limit.
        stop: The stop string met, where ``end`` is ``delimiter``.
        spans: Places of the text in the answer.
    """

    text: str
    end: StepEnd
    stop: str | None
    spans: tuple[tuple[int, int], ...]


def request(written: str, delimiter: str, *, until_eos: bool) -> str:
    """Returns the request to a model after the steps so far.

    Args:
        written: The steps so far.
        delimiter: Separator of steps.
        until_eos: Whether all that remains is wanted.
    """
    if until_eos:
        template = REST
    elif not written.strip():
        template = FIRST_STEP
    else:
        # The end of reasoning ends a step too.
        whole = written.endswith(delimiter) or written.rstrip().endswith("</think>")
        template = NEXT_STEP if whole else SAME_STEP
    words = last_words(written, delimiter) if template is SAME_STEP else None
    again = REPEAT_NOTHING if words is None else FROM_LAST_WORDS.format(words=words)
    separator = "a blank line" if delimiter == "\n\n" else f"the separator {json.dumps(delimiter)}"
    return template.format(separator=separator, start=START, done=DONE, again=again)


def read_step(
    answer: str, written: str, delimiter: str, *, stops: Sequence[str], truncated: bool
) -> PromptedStep:
    r"""Reads an answer, also of a model that follows only half of the request.

    Text before a line ``[[STEP]]`` is not part of the solution, nor is a repetition of its beginning or its
    last steps, nor text after ``[[DONE]]`` at the end of a line. The step ends at the first stop string,
    whatever follows. Without ``[[DONE]]`` more steps follow, unless the answer is empty.

    All other text is taken as it is, with its indentation, line breaks and trailing blanks. Left out
    are the line of a mark, blank lines in front of a step that begins, and line breaks between a step's end
    and a mark or the end of the answer: they separate steps. A blank is added in one case only: an answer
    without marks continues behind a word as if a new word began.

    Args:
        answer: Answer of the model.
        written: The steps so far.
        delimiter: Separator of steps.
        stops: Any of them ends the step. Where the delimiter is none of them, all that remains was asked for.
        truncated: Whether the answer ran into its token limit.
    """
    mark = _START.search(answer)
    behind_mark = mark.end() if mark else 0
    begin = behind_mark + new_from(answer[behind_mark:], written, delimiter)
    repeated = begin > behind_mark
    done = _DONE.search(answer, begin)
    end = done.start() if done else _without_torn_mark(answer) if truncated else len(answer)
    cut, until_eos = truncated and done is None, delimiter not in stops
    begins = not written.strip() or written.endswith(delimiter)
    if begins:
        begin = _skip(answer, begin, end, () if until_eos else stops)
    elif repeated:
        begin += _common_blanks(written, answer[begin:end])
    if until_eos:
        found = _rest(answer, begin, end, stops, done=done is not None, cut=cut)
    else:
        found = _read(answer, begin, end, stops, done=done is not None, cut=cut, repeated=repeated)
    if mark or repeated or begins:
        return found
    return replace(found, text=_space(written, found.text) + found.text)


def _read(
    answer: str, begin: int, end: int, stops: Sequence[str], *, done: bool, cut: bool, repeated: bool
) -> PromptedStep:
    """Reads one step."""
    for at, stop in _ends(answer, begin, end, stops):
        if is_step(answer[begin:at]):
            last = done and _skip(answer, at + len(stop), end, stops) >= end
            text_end = at if stop else _text_end(answer, begin, at)
            return _piece(answer, begin, text_end, "eos" if last else "delimiter", stop or stops[0])
    nothing = not answer[begin:end].strip()
    if cut:
        return _piece(answer, begin, end, "length", None)
    ended: StepEnd = "eos" if done or (nothing and not repeated) else "delimiter"
    return _piece(answer, begin, _text_end(answer, begin, end), ended, stops[0])


def _rest(answer: str, begin: int, end: int, stops: Sequence[str], *, done: bool, cut: bool) -> PromptedStep:
    """Reads all that remains, up to a stop string that is really there."""
    found = [(at, stop) for at, stop in _ends(answer, begin, end, stops) if stop]
    if found and is_step(answer[begin : found[0][0]]):
        return _piece(answer, begin, found[0][0], "delimiter", found[0][1])
    if done or not answer[begin:end].strip():
        end = _text_end(answer, begin, end)
    return _all(answer, begin, end, "length" if cut else "eos")


def _space(written: str, text: str) -> str:
    """Returns the blank between a text and its continuation, where a model most likely left it out."""
    if not text or written[-1].isspace() or (written[-1].isdigit() and text[0].isdigit()):
        return ""
    word_ends = written[-1].isalnum() or written[-1] in ".,;:!?)]}"
    return " " if word_ends and (text[0].isalnum() or text[0] in "([{\\$") else ""


def _common_blanks(written: str, rest: str) -> int:
    """Counts the blanks and line breaks at the end of a text that its repetition contains again."""
    blanks = written[len(written.rstrip()) :]
    ahead = rest[: len(rest) - len(rest.lstrip())]
    return next(size for size in range(len(blanks), -1, -1) if ahead.startswith(blanks[len(blanks) - size :]))


_START = re.compile(
    # The rest of the mark's line belongs to it; text on that line does not, but for one blank in front of it.
    rf"^[ \t]*(?P<around>[*_`]*){re.escape(START)}"
    r"(?:[*_`:]*[ \t]*(?:\r?\n|\Z)|:?(?:(?P=around))?:?(?:[ ](?![ \t]))?)",
    re.MULTILINE,
)
# Three backticks before it may end a block of code.
_DONE = re.compile(
    rf"(?:(?<![*_`])[*_]*(?P<ticks>`*))?{re.escape(DONE)}(?(ticks)(?P=ticks))[*_`.]*[ \t\r]*$", re.MULTILINE
)


def _without_torn_mark(answer: str) -> int:
    """Returns the end of an answer without the beginning of a mark at which it was cut off."""
    line = answer[answer.rfind("\n") + 1 :]
    for size in range(min(len(line), len(START)), 0, -1):
        before, torn = line[:-size], line[-size:]
        if any(mark.startswith(torn) for mark in (START, DONE)) and (size > 1 or not before.strip()):
            return len(answer) - size - (0 if before.strip() else len(before))
    return len(answer)


def _skip(answer: str, begin: int, end: int, stops: Sequence[str]) -> int:
    """Returns where a step begins: behind blank lines and stop strings, in front of its indentation."""
    while True:
        at, line = begin, begin
        while at < end and answer[at].isspace():
            at += 1
            line = at if answer[at - 1] == "\n" else line
        stop = next((one for one in stops if answer.startswith(one, at, end)), None)
        if stop is None:
            return line if at < end else end
        begin = at + len(stop)


def _text_end(answer: str, begin: int, end: int) -> int:
    """Returns where a text ends in front of a mark or of the answer's end: before its last line breaks."""
    last = begin + len(answer[begin:end].rstrip())
    line_break = answer.find("\n", last, end)
    if line_break < 0:
        # A mark on the same line is set off by blanks; the end of the answer by none.
        return last if end < len(answer) else end
    return line_break - answer.endswith("\r", last, line_break)


def _ends(answer: str, begin: int, end: int, stops: Sequence[str]) -> list[tuple[int, str]]:
    """Returns places where the step may end: stop strings, and marks of a next step (as empty strings)."""
    found = [(mark.start(), "") for mark in _START.finditer(answer, begin, end)]
    for stop in stops:
        at = answer.find(stop, begin, end)
        while at >= 0:
            found.append((at, stop))
            at = answer.find(stop, at + 1, end)
    return sorted(found, key=lambda one: (one[0], -len(one[1])))


def _piece(answer: str, begin: int, end: int, why: StepEnd, stop: str | None) -> PromptedStep:
    text = answer[begin:end]
    return PromptedStep(text, why, stop if why == "delimiter" else None, ((begin, begin + len(text)),))


def _all(answer: str, begin: int, end: int, why: StepEnd) -> PromptedStep:
    """Returns all up to the end, without the marks of steps in it."""
    spans, at = [], begin
    for mark in _START.finditer(answer, begin, end):
        spans.append((at, mark.start()))
        at = mark.end()
    spans.append((at, end))
    kept = tuple((first, last) for first, last in spans if first < last)
    return PromptedStep("".join(answer[first:last] for first, last in kept), why, None, kept)


ENOUGH = 12
"""Characters, space aside, from which on equal text within a line counts as repeated; fewer may be chance."""
LONGEST = 80
"""Characters of the words that a model is asked to repeat."""


def new_from(answer: str, written: str, delimiter: str) -> int:
    r"""Returns the offset at which an answer stops repeating the text before it.

    Repeated is the whole text or its last steps, or else its first steps; space does not count. Only whole
    steps are, each up to the end of a line, so ``x = 20`` behind ``x = 2`` is new. Where the text ends in the
    middle of a step, the words that lead up to that place may be repeated too.

    Args:
        answer: May begin with a repetition.
        written: The steps so far; ends in the delimiter, or in the middle of a step.
        delimiter: Separator of steps.
    """
    said, places = _compact(answer)
    if not said:
        return 0
    starts = list(_starts(written, delimiter))
    cut_off = bool(written) and not written.endswith(delimiter)
    for start in starts + (_word_starts(written, starts[-1]) if cut_off and starts else []):
        repeated, _ = _compact(written[start:].removesuffix(delimiter))
        if not repeated or not said.startswith(repeated):
            continue
        end = places[len(repeated) - 1] + 1
        if _line_ends(answer[end:], delimiter) or (cut_off and len(repeated) >= ENOUGH):
            return end
    for stop in reversed(starts[1:]):
        repeated, _ = _compact(written[:stop].removesuffix(delimiter))
        if repeated and said.startswith(repeated):
            end = places[len(repeated) - 1] + 1
            if _line_ends(answer[end:], delimiter):
                return end
    return 0


def last_words(written: str, delimiter: str) -> str | None:
    """Returns the last words of a cut-off step for `new_from` to find again; None where they are too few.

    Args:
        written: The steps so far; ends in the middle of a step.
        delimiter: Separator of steps.
    """
    starts = list(_starts(written, delimiter))
    found = _word_starts(written, starts[-1]) if starts else []
    words = written[found[-1] :].rstrip() if found else ""
    return words if 0 < len(words) <= LONGEST else None


def _compact(text: str) -> tuple[str, list[int]]:
    """Returns the characters that are no space, and their places."""
    places = [index for index, character in enumerate(text) if not character.isspace()]
    return "".join(text[index] for index in places), places


def _starts(written: str, delimiter: str) -> Iterator[int]:
    """Yields the offsets at which steps begin."""
    start = 0
    for piece in written.split(delimiter):
        if piece.strip():
            yield start
        start += len(piece) + len(delimiter)


def _word_starts(written: str, step: int) -> list[int]:
    """Returns the offsets of the last step's words, but the first, with enough text up to the end."""
    found = [
        i for i in range(step + 1, len(written)) if written[i - 1].isspace() and not written[i].isspace()
    ]
    return [i for i in found if len(_compact(written[i:])[0]) >= ENOUGH]


def _line_ends(rest: str, delimiter: str) -> bool:
    new = rest.lstrip()
    return not new or "\n" in rest[: len(rest) - len(new)] or new.startswith(delimiter)
