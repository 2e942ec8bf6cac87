"""Reading a rating from 0 to 9 out of one token of a chat model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

HIGHEST = 9
MIN_MASS = 0.1
"""Probability that digits must have together; less, and the model was about to write something else."""

_DIGITS = "0123456789"
_THOUGHT, _THOUGHT_ENDS = "<think>", "</think>"
_MARKS_OF_SPACE = " \t\r\n\u2581\u0120"
"""Space, also as SentencePiece and byte-level tokenizers write it where a server tells raw tokens."""


def expected_score(content: Sequence[Mapping[str, Any]]) -> float | None:
    """Expected rating over the digits that a model might have written, divided by 9.

    Source of the format: OpenAI chat completions, ``logprobs.content``; vLLM answers alike. Of the tokens of
    an answer, the first that is a digit counts, else the first. Tokens of a thought do not count.

    Args:
        content: One entry a token written: ``token``, ``logprob`` and ``top_logprobs``, alternatives with
            the same two keys.

    Returns:
        None where digits have less than `MIN_MASS` of the probability.
    """
    content = _behind_thought(content)
    if not content:
        return None
    place = next((entry for entry in content if _digit(entry["token"]) is not None), content[0])
    mass = expected = 0.0
    seen: set[str] = set()
    for entry in [*(place.get("top_logprobs") or []), place]:  # the written one may be none of the top
        digit = _digit(entry["token"])
        if digit is None or entry["token"] in seen:
            continue
        seen.add(entry["token"])
        probability = _probability(entry["logprob"])
        mass += probability
        expected += probability * digit
    if mass < MIN_MASS:
        return None
    return min(max(expected / mass / HIGHEST, 0.0), 1.0)


def written_score(text: str) -> float | None:
    """Rating behind the thought of a text, divided by 9; None where its first number is no single digit."""
    text = text.rpartition(_THOUGHT_ENDS)[2]
    if text.lstrip().startswith(_THOUGHT):
        return None
    number = re.search(r"[0-9]+(?:[.,][0-9]+)?", text)
    return int(number[0]) / HIGHEST if number and len(number[0]) == 1 else None


def _behind_thought(content: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the tokens behind the end of a thought; none where it does not end."""
    begin, text = 0, ""
    for index, entry in enumerate(content):
        text += entry["token"]
        if _THOUGHT_ENDS in text:
            begin, text = index + 1, ""
    return [] if text.lstrip(_MARKS_OF_SPACE).startswith(_THOUGHT) else content[begin:]


def _digit(token: str) -> int | None:
    bare = token.strip(_MARKS_OF_SPACE)
    return _DIGITS.index(bare) if len(bare) == 1 and bare in _DIGITS else None


def _probability(logprob: Any) -> float:
    return math.exp(min(logprob, 0.0)) if isinstance(logprob, int | float) and logprob == logprob else 0.0
