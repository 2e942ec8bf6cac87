"""What a chat template puts around a plain question, found out once instead of asked for every question."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from trim_graph.errors import ModelServerError

_PROBES = (
    "What is 12 times 12?",
    "Two lines, with numbers (1, 2.5),\n\nand signs: + - * / = ' \" \\ $ % # @ ! ; _ ^ ~ `, é ü 中",
)
_MARKED = re.compile(r"[<>\[\]{}|]|(?<![\w/])/[a-z_]|\A\s|\s\Z|\A\Z")
"""What templates look for in a text, or change: special tokens, tags, commands, space at its ends."""

Turns = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What stands before and behind a plain question."""

    before: str
    behind: str


def plain_question(turns: Turns) -> str | None:
    """The text of the one user turn of a conversation, if no template has a reason to look into it."""
    *before, last = turns
    if [turn["role"] for turn in before] not in ([], ["system"]) or last["role"] != "user":
        return None
    text = last["content"]
    return None if not isinstance(text, str) or _MARKED.search(text) else text


async def surroundings(
    turns: Turns, render: Callable[[Turns], Awaitable[str]]
) -> Surroundings | Literal[False]:
    """Find out what a template puts around the last turn; False where that depends on its text.

    Args:
        turns: A conversation with a plain question.
        render: Asks for the rendered conversation.
    """
    try:
        first, other = [await render([*turns[:-1], {"role": "user", "content": probe}]) for probe in _PROBES]
    except ModelServerError as error:
        if error.status is not None or error.begun:
            raise
        return False  # its tokenizer cannot tell one of these texts; a question may be another matter
    before, found, behind = first.partition(_PROBES[0])
    if not found or before + _PROBES[1] + behind != other:
        return False
    return Surroundings(before, behind)
