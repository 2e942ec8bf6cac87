"""What is sent to vLLM's OpenAI-compatible endpoints, and how their answers are read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata

from .chat_prompt import role_of, text_of
from .entropy import Entropy, entropy_of_likeliest
from .protocols import STOPPED, FailedAttempts, StopWhen


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """What one call goes by; units as in `ChatVLLM`."""

    stop: tuple[str, ...] = ()
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    logprobs: bool
    top_logprobs: int
    entropy_logprobs: int = 0
    """How many tokens to compute the first one's entropy from; 0: it is not wanted."""
    timeout: float | None
    stop_when: StopWhen | None = None


def openai_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Convert a conversation; texts stay byte for byte.

    Raises:
        ValueError: A message has no role in a chat template, or holds something that is not text.
    """
    return [_turn(message) for message in messages]


def _turn(message: BaseMessage) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": role_of(message), "content": text_of(message)}
    if isinstance(message, ToolMessage):
        turn["tool_call_id"] = message.tool_call_id
    if isinstance(message, AIMessage) and message.tool_calls:
        turn["tool_calls"] = [
            {
                "type": "function",
                "id": call["id"],
                "function": {"name": call["name"], "arguments": json.dumps(call["args"])},
            }
            for call in message.tool_calls
        ]
    return turn


def sampling(settings: CallSettings, *, raw: bool) -> dict[str, Any]:
    """The part of a request that does not depend on the prompt.

    Args:
        settings: Of the call.
        raw: Whether it is for ``/v1/completions``, which asks for log-probabilities in another way.
    """
    body: dict[str, Any] = {
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        # A server takes what a request leaves open from the model's generation_config.
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    if settings.stop:
        body["stop"] = list(settings.stop)
    if settings.seed is not None:
        body["seed"] = settings.seed
    tops = max(settings.top_logprobs, settings.entropy_logprobs)
    if settings.logprobs or tops:
        wanted: dict[str, Any] = {"logprobs": True, "top_logprobs": tops}
        body |= {"logprobs": tops} if raw else wanted
    if settings.entropy_logprobs and raw:
        # This endpoint tells them by their text, which several tokens may share: halves of characters.
        body["return_tokens_as_token_ids"] = True
    return body


@dataclass(slots=True)
class Answer:
    """An answer, whole or as far as it has come; takes documents and stream events of both endpoints."""

    text: str = ""
    reasoned: bool = False
    """Whether a reasoning parser of the server took part of the text away."""
    finish_reason: str | None = None
    stop_reason: str | None = None
    """The stop string met; None at the end of sequence."""
    model: str = ""
    input_tokens: int = 0
    cached_tokens: int | None = None
    output_tokens: int = 0
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    begun: bool = False
    """Whether anything has arrived."""
    timed_out: bool = False

    def add(self, event: dict[str, Any]) -> str:
        """Take in a document or event.

        Returns:
            The text it brought.
        """
        self.begun = True
        self.model = event.get("model") or self.model
        self._add_usage(event.get("usage") or {})
        choices = event.get("choices") or []
        if not choices:
            return ""
        choice = choices[0]
        message = choice.get("message") or choice.get("delta") or {}
        text = choice.get("text") or message.get("content") or ""
        self.reasoned |= bool(message.get("reasoning") or message.get("reasoning_content"))
        self.logprobs += _logprobs(choice.get("logprobs"))
        self.text += text
        if choice.get("finish_reason"):
            self.finish_reason = choice["finish_reason"]
            reason = choice.get("stop_reason")
            # A token id is one of several ends of sequence that the model's generation_config names.
            self.stop_reason = reason if isinstance(reason, str) else None
        return str(text)

    def _add_usage(self, usage: dict[str, Any]) -> None:
        self.input_tokens = usage.get("prompt_tokens") or self.input_tokens
        self.output_tokens = usage.get("completion_tokens") or self.output_tokens
        details = usage.get("prompt_tokens_details") or {}
        if details.get("cached_tokens") is not None:
            self.cached_tokens = details["cached_tokens"]

    def stop(self) -> None:
        """End it here: its own `StopWhen` said so."""
        self.finish_reason, self.stop_reason = "stop", STOPPED

    @property
    def mean_token_probability(self) -> float | None:
        """Mean over the generated tokens; the end of sequence counts only if it is the only one."""
        told = [entry["logprob"] for entry in self.logprobs]
        if self.finish_reason == "stop" and self.stop_reason is None and len(told) > 1:
            del told[-1]
        return sum(map(math.exp, told)) / len(told) if told else None

    @property
    def first_token_entropy(self) -> Entropy | None:
        """A lower bound, from the likeliest tokens; None where they were not told."""
        if not self.logprobs or not self.logprobs[0]["top_logprobs"]:
            return None
        first = self.logprobs[0]
        return entropy_of_likeliest([top["logprob"] for top in first["top_logprobs"]], first["logprob"])


@dataclass(slots=True)
class Lost:
    """Tokens of attempts that failed, as far as the server told them."""

    attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    unknown: int = 0
    """Attempts that the server may have worked on and told nothing of."""

    def add(self, answer: Answer, *, worked_on: bool, told: bool = True) -> None:
        """Count an attempt that came to nothing.

        Args:
            answer: What had arrived of it.
            worked_on: Whether the server may have worked on it.
            told: Whether the tokens were told as they were written; else those of an answer that did not
                come to its end are unknown.
        """
        self.attempts += 1
        if not told and answer.finish_reason is None:
            self.unknown += worked_on or answer.begun
            return
        self.input_tokens += answer.input_tokens
        self.output_tokens += answer.output_tokens
        self.unknown += worked_on and not answer.input_tokens

    @property
    def told(self) -> FailedAttempts:
        """What ``response_metadata`` and errors say of it."""
        return FailedAttempts(
            count=self.attempts,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            unknown=self.unknown,
        )


def metadata_of(
    answer: Answer, settings: CallSettings, lost: Lost, model: str, *, opens_thought: bool
) -> dict[str, Any]:
    """The ``response_metadata`` of an answer."""
    metadata: dict[str, Any] = {
        "model_name": answer.model or model,
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
    }
    if settings.logprobs and answer.mean_token_probability is not None:
        metadata["mean_token_probability"] = answer.mean_token_probability
    if settings.entropy_logprobs and (entropy := answer.first_token_entropy) is not None:
        metadata["first_token_entropy"], metadata["untold_probability"] = entropy.nats, entropy.untold
    if settings.top_logprobs:
        metadata["logprobs"] = {"content": answer.logprobs}
    if opens_thought:
        metadata["prompt_opens_thought"] = True
    if answer.timed_out:
        metadata["timed_out"] = True
    if lost.attempts:
        metadata["failed_attempts"] = lost.told
    return metadata


def usage_of(answer: Answer, lost: Lost) -> UsageMetadata:
    """The ``usage_metadata`` of an answer: what it and the failed attempts before it cost."""
    read = answer.input_tokens + lost.input_tokens
    written = answer.output_tokens + lost.output_tokens
    usage = UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
    if answer.cached_tokens is not None:
        usage["input_token_details"] = InputTokenDetails(cache_read=answer.cached_tokens)
    return usage


def _logprobs(found: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Log-probabilities of either endpoint in the form of the chat endpoint, without bytes."""
    if not found:
        return []
    if "content" in found:
        entries = found["content"] or []
        return [
            {**_pair(entry), "top_logprobs": [_pair(top) for top in entry.get("top_logprobs") or []]}
            for entry in entries
        ]
    tops = found.get("top_logprobs") or [None] * len(found["tokens"])
    return [
        {
            "token": token,
            "logprob": logprob,
            "top_logprobs": [{"token": t, "logprob": p} for t, p in (top or {}).items()],
        }
        for token, logprob, top in zip(found["tokens"], found["token_logprobs"], tops, strict=True)
    ]


def _pair(entry: dict[str, Any]) -> dict[str, Any]:
    return {"token": entry["token"], "logprob": entry["logprob"]}
