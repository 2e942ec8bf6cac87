"""Reading the answer of a chat model that keeps LangChain's contract only: names differ by provider."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage

from trim_graph.errors import FailedAttempts, ModelServerError

from .inner_model import chat_model_inside
from .stop_reasons import classify, provider_reason


def cut_short(answer: AIMessage) -> bool:
    """Tell whether an answer ran into its token limit."""
    reason = provider_reason(answer.response_metadata)
    return reason is not None and classify(reason) == "cut"


def refusal(answer: AIMessage) -> ModelServerError | None:
    """Return the error that an answer is which a filter, the model or its server ended; else None.

    So is an empty answer that ended for a reason that is not known.
    """
    reason = provider_reason(answer.response_metadata)
    kind = "ended" if reason is None else classify(reason)
    empty = not (str(answer.text).strip() or answer.tool_calls or answer.invalid_tool_calls)
    if kind not in ("refused", "failed") and not (empty and kind in ("unknown", "tools")):
        return None
    wrote = "wrote nothing" if empty else "did not end its answer by itself"
    error = ModelServerError(f"the model {wrote}: it stopped for {reason!r}", begun=True)
    usage = answer.usage_metadata
    if usage is not None:
        error.attempts = FailedAttempts(
            count=1, input_tokens=usage["input_tokens"], output_tokens=usage["output_tokens"], unknown=0
        )
    return error


def model_name(answer: AIMessage, model: Any) -> str:
    """Name of the model that answered: as the answer tells, else as it is configured."""
    metadata = answer.response_metadata
    return str(metadata.get("model_name") or metadata.get("model") or configured_name(model))


def configured_name(model: Any) -> str:
    """Name of a model as it is configured; its class where it has none."""
    inside: Any = chat_model_inside(model)
    name = getattr(inside, "model_name", None) or getattr(inside, "model", None)
    return str(name or type(inside or model).__name__)


def failed_attempts(answer: AIMessage) -> dict[str, FailedAttempts]:
    """Failed attempts that the answer tells of, for `response_metadata`."""
    told = answer.response_metadata.get("failed_attempts")
    return {"failed_attempts": told} if told else {}


def span_probability(answer: AIMessage, text: str, spans: Sequence[tuple[int, int]]) -> float | None:
    """Mean probability of the tokens of some spans of an answer; None where it cannot be told.

    Source: OpenAI chat completions, ``logprobs.content``: token, logprob, and bytes where a token is part of
    a character.
    """
    logprobs = answer.response_metadata.get("logprobs")
    entries = (logprobs.get("content") if isinstance(logprobs, dict) else None) or []
    kept = [(len(_bytes(text[:first])), len(_bytes(text[:last]))) for first, last in spans if first < last]
    if not entries or not kept:
        return None
    at, whole, told = 0, b"", []
    for entry in entries:
        raw = entry.get("bytes")
        piece = bytes(raw) if raw is not None else _bytes(entry["token"])
        if any(first < at + len(piece) and at < last for first, last in kept):
            told.append(math.exp(entry["logprob"]))
        whole, at = whole + piece, at + len(piece)
    # Behind the text there may be an end of sequence.
    return sum(told) / len(told) if told and whole.startswith(_bytes(text)) else None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
