"""Why a model stopped: the names that servers and providers have for it, in one table.

A name that is not in the table is never read as an end of the solution: see `classify`.

Sources: OpenAI (chat completions ``finish_reason``; responses ``status`` and ``incomplete_details.reason``),
Anthropic (``stop_reason``), Google (``FinishReason`` of Gemini), Amazon Bedrock (``stopReason`` of Converse),
Cohere (``finish_reason``), Mistral (``finish_reason``), Ollama (``done_reason``), IBM watsonx
(``stop_reason``), Hugging Face text-generation-inference (``finish_reason``), vLLM (``FinishReason``), SGLang
(``finish_reason``), llama.cpp's server (``stop_type``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

StopKind = Literal["ended", "tools", "cut", "refused", "failed", "unknown"]
"""``ended``: at the end of sequence or a stop string. ``tools``: for tool calls. ``cut``: before its end, by
a limit or because it repeated itself. ``refused``: by a filter or the model, or what it wrote cannot be read.
``failed``: the server broke off. ``unknown``: a name that is not in the table."""

_NAMES: dict[StopKind, frozenset[str]] = {
    "ended": frozenset(
        {
            "stop",  # OpenAI, vLLM, SGLang, Mistral, Ollama, Google
            "eos",  # llama.cpp
            "word",  # llama.cpp
            "eos_token",  # text-generation-inference, watsonx
            "end_turn",  # Anthropic, Bedrock
            "stop_sequence",  # Anthropic, Bedrock, text-generation-inference, Cohere, watsonx
            "complete",  # Cohere
            "completed",  # OpenAI responses
        }
    ),
    "tools": frozenset(
        {
            "tool_calls",  # OpenAI, vLLM, Mistral
            "function_call",  # OpenAI
            "tool_use",  # Anthropic, Bedrock
            "tool_call",  # Cohere
        }
    ),
    "cut": frozenset(
        {
            "length",  # OpenAI, vLLM, SGLang, Mistral, Ollama, text-generation-inference
            "max_tokens",  # Anthropic, Bedrock, Cohere, Google, watsonx
            "max_output_tokens",  # OpenAI responses
            "model_length",  # Mistral
            "token_limit",  # watsonx
            "time_limit",  # watsonx
            "limit",  # llama.cpp
            "model_context_window_exceeded",  # Anthropic, Bedrock
            "pause_turn",  # Anthropic
            "repetition",  # vLLM
            "repetition_detected",  # vLLM's stop_reason
        }
    ),
    "refused": frozenset(
        {
            "content_filter",  # OpenAI
            "content_filtered",  # Bedrock
            "guardrail_intervened",  # Bedrock
            "refusal",  # Anthropic
            "error_toxic",  # Cohere
            "safety",  # Google, this and what follows
            "recitation",
            "language",
            "blocklist",
            "prohibited_content",
            "spii",
            "image_safety",
            "malformed_function_call",
            "unexpected_tool_call",
            "too_many_tool_calls",
            "malformed_model_output",  # Bedrock
            "malformed_tool_use",  # Bedrock
        }
    ),
    "failed": frozenset(
        {
            "abort",  # vLLM, SGLang
            "error",  # vLLM, Cohere, Mistral, watsonx
            "error_limit",  # Cohere
            "user_cancel",  # Cohere
            "cancelled",  # OpenAI responses, watsonx
            "failed",  # OpenAI responses
            "incomplete",  # OpenAI responses, where it does not say why
            "not_finished",  # watsonx
            "other",  # Google
            "finish_reason_unspecified",  # Google
            "load",  # Ollama: the model was only loaded
            "unload",  # Ollama
        }
    ),
}
_KINDS: dict[str, StopKind] = {name: kind for kind, names in _NAMES.items() for name in names}


def classify(reason: str) -> StopKind:
    """Return the kind of a reason; letter case does not count."""
    return _KINDS.get(reason.lower(), "unknown")


def provider_reason(metadata: Mapping[str, Any]) -> str | None:
    """Return the reason that an answer of any LangChain provider gives, in lower case.

    Args:
        metadata: ``response_metadata`` of the answer.

    Returns:
        None where the answer gives none.
    """
    for name in ("finish_reason", "stop_reason", "stopReason", "done_reason"):
        if isinstance(reason := metadata.get(name), str) and reason:
            return reason.lower()
    details = metadata.get("incomplete_details")
    reason = details.get("reason") if isinstance(details, Mapping) else None
    reason = reason or metadata.get("status")
    return reason.lower() if isinstance(reason, str) and reason else None
