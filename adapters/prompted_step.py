"""Asking for a step by prompt, and reading the answer: the protocol of `ContinueByPrompt`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trim_graph.segment import is_step

from .protocols import StepEnd
from .repetition import new_from

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
    "{separator} in it. Repeat nothing of the above. Begin with {start} on a line of its own. "
    "If the solution is complete with this step, put {done} on a line of its own after it. "
    "If it is complete already, answer only {done}"
)
REST = (
    "Write all that remains of your solution, in steps with {separator} between them. Repeat nothing of the "
    "above; go on exactly where it ends. Begin with {start} on a line of its own, and put {done} on a line "
    "of its own at the end. If the solution is complete already, answer only {done}"
)


@dataclass(frozen=True, slots=True)
class PromptedStep:
    """What an answer says.

    Attributes:
        text: What is new in it: one step, or all that remained; joins the written text as it is.
        end: Why it ends: the step is over, the solution is, or the answer ran into its token limit.
        stop: The stop string met, where ``end`` is ``delimiter``.
        spans: Where in the answer the text stands.
    """

    text: str
    end: StepEnd
    stop: str | None
    spans: tuple[tuple[int, int], ...]


def request(written: str, delimiter: str, *, to_end: bool) -> str:
    """Return what a model is asked, after the steps so far.

    Args:
        written: The steps so far.
        delimiter: What separates steps.
        to_end: Whether all that remains is wanted.
    """
    if to_end:
        template = REST
    elif not written.strip():
        template = FIRST_STEP
    else:
        # The end of a thought ends a step too.
        whole = written.endswith(delimiter) or written.rstrip().endswith("</think>")
        template = NEXT_STEP if whole else SAME_STEP
    separator = "a blank line" if delimiter == "\n\n" else f"the separator {json.dumps(delimiter)}"
    return template.format(separator=separator, start=START, done=DONE)


def read_step(
    answer: str, written: str, delimiter: str, *, stops: Sequence[str], truncated: bool
) -> PromptedStep:
    r"""Read an answer, also of a model that keeps to half of what it was asked.

    What stands before a line ``[[STEP]]`` is not part of the solution, nor is what repeats its beginning or
    its last steps, nor what follows ``[[DONE]]`` at the end of a line. The step ends at the first stop
    string, whatever follows. Without ``[[DONE]]`` more steps follow, unless the answer is empty.

    Args:
        answer: Of the model.
        written: The steps so far.
        delimiter: What separates steps.
        stops: Any of them ends the step. Where the delimiter is none of them, all that remains was asked for.
        truncated: Whether the answer ran into its token limit.
    """
    behind_mark = _behind_start(answer)
    new = behind_mark + new_from(answer[behind_mark:], written, delimiter)
    if delimiter in stops:
        found = _read(answer, new, stops, truncated=truncated, repeated=new > behind_mark)
    else:
        found = _rest(answer, new, stops, truncated=truncated)
    before = answer[new - 1 : found.spans[0][0]] if new > behind_mark and found.spans else ""
    return replace(found, text=_space(written, found.text, delimiter, before) + found.text)


def _read(answer: str, begin: int, stops: Sequence[str], *, truncated: bool, repeated: bool) -> PromptedStep:
    done = _DONE.search(answer, begin)
    end = done.start() if done else _without_torn_mark(answer) if truncated else len(answer)
    begin = _skip(answer, begin, end, stops)
    for at, stop in _ends(answer, begin, end, stops):
        if is_step(answer[begin:at]):
            last = done is not None and _skip(answer, at + len(stop), end, stops) >= end
            return _piece(answer, begin, at, "eos" if last else "delimiter", stop or stops[0])
    nothing = not answer[begin:end].strip()
    if done or (nothing and not repeated and not truncated):
        return _piece(answer, begin, end, "eos", None)
    return _piece(answer, begin, end, "length" if truncated else "delimiter", stops[0])


def _rest(answer: str, begin: int, stops: Sequence[str], *, truncated: bool) -> PromptedStep:
    """Read all that remains, up to a stop string that is really there."""
    done = _DONE.search(answer, begin)
    end = done.start() if done else _without_torn_mark(answer) if truncated else len(answer)
    begin = _skip(answer, begin, end, ())
    found = [(at, stop) for at, stop in _ends(answer, begin, end, stops) if stop]
    if found and is_step(answer[begin : found[0][0]]):
        return _piece(answer, begin, found[0][0], "delimiter", found[0][1])
    return _all(answer, begin, end, "length" if truncated and not done else "eos")


def _space(written: str, text: str, delimiter: str, before: str) -> str:
    """What joins a text to the written one where that ends within a step.

    Args:
        written: The steps so far.
        text: That goes on.
        delimiter: What separates steps.
        before: What stands in the answer between a repetition and the text; empty where nothing was repeated.
    """
    if not text or not written.strip() or written.endswith(delimiter) or written[-1].isspace():
        return ""
    if before:
        return " " if before[-1].isspace() else ""
    word_ends = written[-1].isalnum() or written[-1] in ".,;:!?)]}"
    return " " if word_ends and (text[0].isalnum() or text[0] in "([{\\$") else ""


_START = re.compile(rf"^[ \t]*[*_`]*{re.escape(START)}[*_`:]*[ \t]*\n?", re.MULTILINE)
_DONE = re.compile(rf"[*_`]*{re.escape(DONE)}[*_`.]*[ \t]*$", re.MULTILINE)


def _behind_start(answer: str) -> int:
    mark = _START.search(answer)
    return mark.end() if mark else 0


def _without_torn_mark(answer: str) -> int:
    """End of an answer without the beginning of a mark at which it was cut off."""
    line = answer[answer.rfind("\n") + 1 :]
    torn = len(line.strip()) >= 2 and any(mark.startswith(line.strip()) for mark in (START, DONE))
    return len(answer) - len(line) if torn else len(answer)


def _skip(answer: str, begin: int, end: int, stops: Sequence[str]) -> int:
    """Where text begins, behind space and stop strings."""
    while True:
        while begin < end and answer[begin].isspace():
            begin += 1
        stop = next((one for one in stops if answer.startswith(one, begin, end)), None)
        if stop is None:
            return begin
        begin += len(stop)


def _ends(answer: str, begin: int, end: int, stops: Sequence[str]) -> list[tuple[int, str]]:
    """Where the step may end: stop strings, and marks of a next step (as an empty stop string)."""
    found = [(mark.start(), "") for mark in _START.finditer(answer, begin, end)]
    for stop in stops:
        at = answer.find(stop, begin, end)
        while at >= 0:
            found.append((at, stop))
            at = answer.find(stop, at + 1, end)
    return sorted(found, key=lambda one: (one[0], -len(one[1])))


def _piece(answer: str, begin: int, end: int, why: StepEnd, stop: str | None) -> PromptedStep:
    text = answer[begin:end]
    if why != "length":  # what is cut off is carried on to the letter
        text = text.rstrip()
    return PromptedStep(text, why, stop if why == "delimiter" else None, ((begin, begin + len(text)),))


def _all(answer: str, begin: int, end: int, why: StepEnd) -> PromptedStep:
    """All up to the end, without the marks of steps in it."""
    spans, at = [], begin
    for mark in _START.finditer(answer, begin, end):
        spans.append((at, mark.start()))
        at = mark.end()
    spans.append((at, len(answer[:end].rstrip()) if why != "length" else end))
    kept = tuple((first, last) for first, last in spans if first < last)
    return PromptedStep("".join(answer[first:last] for first, last in kept), why, None, kept)
