"""Finding where an answer that begins by repeating a text says something new."""

from __future__ import annotations

from collections.abc import Iterator

ENOUGH = 12
"""Characters, space aside, from which on equal text within a line counts as repeated; fewer may be chance."""
LONGEST = 80
"""Characters of the words that a model is asked to repeat."""


def new_from(answer: str, written: str, delimiter: str) -> int:
    r"""Return the offset at which an answer stops repeating what was written before it.

    Repeated is the whole text or its last steps, or else its first steps; space does not count. Only whole
    steps are, each up to the end of a line, so ``x = 20`` behind ``x = 2`` is new. Where the text ends in the
    middle of a step, the words that lead up to that place may be repeated too.

    Args:
        answer: What may begin with a repetition.
        written: The steps so far; ends in the delimiter, or in the middle of a step.
        delimiter: What separates steps.
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
    """Return the words at the end of a cut-off step that `new_from` finds again; None where they are too few.

    Args:
        written: The steps so far; ends in the middle of a step.
        delimiter: What separates steps.
    """
    starts = list(_starts(written, delimiter))
    found = _word_starts(written, starts[-1]) if starts else []
    words = written[found[-1] :].rstrip() if found else ""
    return words if 0 < len(words) <= LONGEST else None


def _compact(text: str) -> tuple[str, list[int]]:
    """The characters that are no space, and where they stand."""
    places = [index for index, character in enumerate(text) if not character.isspace()]
    return "".join(text[index] for index in places), places


def _starts(written: str, delimiter: str) -> Iterator[int]:
    """Where steps begin."""
    start = 0
    for piece in written.split(delimiter):
        if piece.strip():
            yield start
        start += len(piece) + len(delimiter)


def _word_starts(written: str, step: int) -> list[int]:
    """Where the last step's words begin, the first one aside, from which there is enough text to the end."""
    found = [
        i for i in range(step + 1, len(written)) if written[i - 1].isspace() and not written[i].isspace()
    ]
    return [i for i in found if len(_compact(written[i:])[0]) >= ENOUGH]


def _line_ends(rest: str, delimiter: str) -> bool:
    new = rest.lstrip()
    return not new or "\n" in rest[: len(rest) - len(new)] or new.startswith(delimiter)
