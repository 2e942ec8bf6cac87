"""Reading a chat model's answer: its text, why it stopped, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage

from .protocols import ChatModelContractError, StepEnd


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a writer.

    Attributes:
        text: Without the delimiter.
        end: Why it stopped.
        model: Name of the model, as it reports it.
        input_tokens: Tokens of the prompt.
        cached_tokens: Those of them that were served from a cache.
        output_tokens: Tokens generated, those of the delimiter included.
        mean_token_probability: Of the generated tokens; None where the adapter does not tell.
    """

    text: str
    end: StepEnd
    model: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    mean_token_probability: float | None


def read_reply(message: Any, delimiter: str, writer: str) -> Reply:
    """Read an AIMessage the way vLLM's fields are meant.

    vLLM answers ``finish_reason="stop"`` both at the end of sequence and at a stop string; only
    ``stop_reason`` tells them apart: None at the end of sequence, else the string (or a token id, which is
    an end of sequence too). Source: vLLM, ``CompletionOutput.stop_reason``.

    Args:
        message: What the model returned.
        delimiter: The stop string that was asked for.
        writer: ``small`` or ``large``, for the error message.

    Raises:
        ChatModelContractError: It is no AIMessage, or does not tell why it stopped or what it cost.
    """
    if not isinstance(message, AIMessage):
        raise ChatModelContractError(
            f"the {writer} model returned {type(message).__name__}; a chat model returns an AIMessage"
        )
    metadata, usage = message.response_metadata, message.usage_metadata
    if usage is None:
        raise ChatModelContractError(
            f"the {writer} model's answer has no usage_metadata, so its tokens cannot be counted against the "
            "budget; use an adapter that reports usage (for OpenAI-compatible servers: stream_usage=True)"
        )
    text, end = str(message.text), _end(metadata, delimiter, writer)
    return Reply(
        # A server told to keep the stop string in its output (include_stop_str_in_output) repeats it here.
        text=text.removesuffix(delimiter) if end == "delimiter" else text,
        end=end,
        model=str(metadata.get("model_name", writer)),
        input_tokens=usage["input_tokens"],
        cached_tokens=usage.get("input_token_details", {}).get("cache_read", 0) or 0,
        output_tokens=usage["output_tokens"],
        mean_token_probability=metadata.get("mean_token_probability"),
    )


def _end(metadata: dict[str, Any], delimiter: str, writer: str) -> StepEnd:
    if metadata.get("finish_reason") in ("length", "max_tokens"):
        return "length"
    if "stop_reason" not in metadata:
        raise ChatModelContractError(
            f"the {writer} model does not tell a step's end from the solution's: its answer has no "
            "response_metadata['stop_reason'] (None at the end of sequence, the delimiter at a step's end)"
        )
    return "delimiter" if metadata["stop_reason"] == delimiter else "eos"
