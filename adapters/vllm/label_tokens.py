"""Probabilities of label tokens as the first token of an answer: of each, not of the likeliest only.

Source: ``logprob_token_ids`` of vLLM 0.32, in ``SamplingParams`` and in requests to ``/v1/completions`` and
``/v1/chat/completions``. Its ``/generative_scoring`` reads the same numbers, but returns that of the first
label only. That is enough for two labels (`trim_graph.adapters.vllm.generative_scoring`), not for ten grades.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

_BEFORE = ":"
"""Text in front of a label, so that no tokenizer takes it for the beginning of a text."""


async def find_label_ids(
    labels: Sequence[str],
    tokenize: Callable[[str], Awaitable[list[int]]],
    text_of: Callable[[list[int]], Awaitable[str]],
) -> dict[int, str]:
    """Returns the tokens that spell a label, with the label.

    A label with a space before it counts too, where that is one token.

    Args:
        labels: Texts without spaces, such as ``7`` or ``yes``.
        tokenize: Returns the token ids of a text.
        text_of: Returns the text of token ids.
    """

    async def find(label: str, space: str) -> tuple[int, str] | None:
        token = (await tokenize(_BEFORE + space + label))[-1]
        return (token, label) if (await text_of([token])).strip() == label else None

    found = await asyncio.gather(*(find(label, space) for label in labels for space in ("", " ")))
    return dict(one for one in found if one is not None)


def label_request(ids: Mapping[int, str], top: int) -> dict[str, Any]:
    """Returns the fields that add label tokens to a generation request.

    A server that does not know ``logprob_token_ids`` answers with the ``top`` likeliest tokens instead, which
    `label_metadata` detects.
    """
    return {"logprob_token_ids": list(ids), "return_tokens_as_token_ids": True} if ids and top else {}


def name_of(token: int) -> str:
    """Returns a token's name in an answer that names tokens by their ids."""
    return f"token_id:{token}"


def label_metadata(entries: Sequence[Mapping[str, Any]], ids: Mapping[int, str]) -> dict[str, Any]:
    """Returns what an answer's ``response_metadata`` says of label tokens.

    Args:
        entries: Log-probabilities of the answer's tokens, which are named by their ids.
        ids: From `find_label_ids`.

    Returns:
        ``label_probabilities``: the probability of each label as the answer's first token, that of all its
        tokens together; ``label_tokens_exact``: whether all of them were reported. Empty where the answer has
        no log-probabilities.
    """
    if not entries:
        return {}
    first = entries[0]
    reported = {one["token"]: one["logprob"] for one in (first, *first["top_logprobs"])}
    probabilities = dict.fromkeys(ids.values(), 0.0)
    for token, label in ids.items():
        if (logprob := reported.get(name_of(token))) is not None:
            probabilities[label] += math.exp(logprob)
    exact = all(name_of(token) in reported for token in ids)
    return {"label_probabilities": probabilities, "label_tokens_exact": exact}
