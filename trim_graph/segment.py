"""What a step is, and how steps make a text again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

DEFAULT_DELIMITER = "\n\n"


def is_step(text: str) -> bool:
    """Tell whether a piece of text says anything: nothing but space and punctuation is not a step."""
    return any(character.isalnum() for character in text)


def join_steps(steps: Iterable[Mapping[str, Any]], delimiter: str = DEFAULT_DELIMITER) -> str:
    """Join step records into the text the models continue, byte for byte what they wrote.

    Args:
        steps: Records with ``text`` and ``end``. After ``delimiter`` the delimiter is put back; a step cut
            by its token limit (``length``) is carried on without one; after ``eos`` there is none.
        delimiter: What separates steps.
    """
    return "".join(step["text"] + (delimiter if step["end"] == "delimiter" else "") for step in steps)


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
