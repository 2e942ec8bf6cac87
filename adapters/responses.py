"""Reads a chat model's response: its text, why it stopped, and its tokens, reported or counted.

Names differ by provider; the table of stop reasons and the readers of provider metadata are here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.language_models.base import BaseLanguageModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import Runnable
from typing_extensions import TypedDict

from trim_graph.errors import ChatModelContractError, FailedAttempts, ModelServerError, SettingsError

from .base import STOPPED, StepEnd
from .capabilities import chat_model_inside
from .token_confidence import Entropy, entropy_of_likeliest


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a writer.

    Attributes:
        text: Text without the delimiter.
        end: Reason that it stopped.
        separator: The stop string met; empty at any other end.
        model: Name of the model, as it reports it.
        input_tokens: Tokens of the prompt.
        cached_tokens: Prompt tokens served from a cache.
        output_tokens: Tokens generated, those of the delimiter included.
        mean_token_probability: Mean over the generated tokens; None where the adapter does not report it.
        starts_in_reasoning: Whether the chat template opened reasoning before the model wrote.
        reasoning_tokens: Generated tokens of reasoning that is not shown, as far as the answer reports them.
        estimated: Name of the counter of the tokens, where the model does not report them; else None.
        notes: Notes for the user on how the answer was read.
    """

    text: str
    end: StepEnd
    separator: str
    model: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    mean_token_probability: float | None
    starts_in_reasoning: bool = False
    reasoning_tokens: int = 0
    estimated: str | None = None
    notes: tuple[str, ...] = ()


def read_reply(message: Any, stops: Collection[str], writer: str, estimate: Estimate | None = None) -> Reply:
    """Reads a step from an AIMessage, by the meaning of vLLM's fields.

    vLLM answers ``finish_reason="stop"`` both at the end of sequence and at a stop string; only
    ``stop_reason`` distinguishes them: None at the end of sequence, else the string (or a token id, which is
    an end of sequence too). Source: vLLM, ``CompletionOutput.stop_reason``.

    Args:
        message: Return value of the model.
        stops: The stop strings that were asked for.
        writer: ``small`` or ``large``, for the error message.
        estimate: Counts its tokens where it does not report them; None refuses it then.

    Raises:
        ChatModelContractError: It is no AIMessage, or does not report why it stopped or what it cost.
        ModelServerError: A filter ended it, the model refused, or its server broke off.
    """
    metadata, usage, estimated = _counted(message, writer, estimate)
    end, separator, notes = _end(metadata, stops, writer)
    if metadata.get("usage_upper_bound"):
        notes += (
            f"the server of the {writer} model does not report usage: a call counts as its max_tokens and an "
            "upper bound of its prompt",
        )
    return Reply(
        # With include_stop_str_in_output a server repeats the stop string here.
        text=str(message.text).removesuffix(separator),
        notes=notes,
        end=end,
        separator=separator,
        model=str(metadata.get("model_name", writer)),
        mean_token_probability=metadata.get("mean_token_probability"),
        starts_in_reasoning=bool(metadata.get("starts_in_reasoning")),
        estimated=estimated,
        **usage,
    )


def read_turn(
    message: Any,
    writer: str,
    model: Any,
    *,
    last: bool,
    max_tokens: int,
    estimate: Estimate | None = None,
) -> Reply:
    """Reads a whole turn of an agent from an AIMessage: text, tool calls, or both.

    Providers report in different ways whether it was cut short (see `classify`). Where the
    reason is missing or not known, it was if it used all tokens it was asked for. A turn ends a step where
    tools are called, else the solution.

    Args:
        message: Return value of the model.
        writer: ``small`` or ``large``, for the error message.
        model: The model, for its name where the answer does not report it.
        last: Whether the agent ends with it even where it calls a tool, as for structured output.
        max_tokens: Most tokens it was asked for.
        estimate: Counts its tokens where it does not report them; None refuses it then.

    Raises:
        ChatModelContractError: It is no AIMessage, or does not report what it cost.
        ModelServerError: A filter ended it, the model refused, its server broke off, or it is empty and its
            reason is not known.
    """
    metadata, usage, estimated = _counted(message, writer, estimate)
    if (error := refusal(message)) is not None:
        raise error
    reason = provider_reason(metadata)
    kind = "unknown" if reason is None else classify(reason)
    cut = kind == "cut" or (kind == "unknown" and usage["output_tokens"] >= max_tokens)
    return Reply(
        text=str(message.text),
        end="length" if cut else "delimiter" if message.tool_calls and not last else "eos",
        separator="",
        model=model_name(message, model),
        mean_token_probability=mean_probability(metadata),
        estimated=estimated,
        notes=() if reason is None or kind != "unknown" else (_not_known(writer, reason, cut=cut),),
        **usage,
    )


def _counted(
    message: Any, writer: str, estimate: Estimate | None
) -> tuple[dict[str, Any], Tokens, str | None]:
    """Returns an answer's metadata, its tokens as fields of a `Reply`, and what estimated them."""
    if not isinstance(message, AIMessage):
        raise ChatModelContractError(
            f"the {writer} model returned {type(message).__name__}; a chat model returns an AIMessage"
        )
    metadata, usage = message.response_metadata, message.usage_metadata
    estimated: str | None = metadata.get("usage_estimated")
    reports = reports_usage(message)
    if estimate is None and (estimated is not None or not reports):
        raise ChatModelContractError(missing_usage(message, writer))
    if estimate is not None and not reports:
        usage, estimated = estimate.usage(message), estimate.counter.name
    assert usage is not None
    return metadata, reported_tokens(usage, writer), estimated


def mean_probability(metadata: dict[str, Any]) -> float | None:
    """Returns the mean probability of an answer's tokens, by one of our adapters or from OpenAI's form."""
    if (reported := metadata.get("mean_token_probability")) is not None:
        return float(reported)
    entries = logprob_entries(metadata)
    return sum(math.exp(entry["logprob"]) for entry in entries) / len(entries) if entries else None


def logprob_entries(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the log-probabilities of an answer's tokens in OpenAI's form; none where it has no such."""
    logprobs = metadata.get("logprobs")
    return (logprobs.get("content") if isinstance(logprobs, dict) else None) or []


def read_entropy(message: AIMessage, writer: str) -> Entropy | None:
    """Reads the entropy of an answer's first token.

    Our adapters report it (``first_token_entropy``, by the call setting of that name); of others the
    likeliest tokens are read, in the form of OpenAI's chat API (``logprobs``).

    Args:
        message: Return value of the model.
        writer: ``small`` or ``large``, for the error message.

    Returns:
        None where a time limit has cut the answer before its first token.

    Raises:
        ChatModelContractError: The answer reports neither.
    """
    metadata = message.response_metadata
    try:
        if (nats := metadata.get("first_token_entropy")) is not None:
            return Entropy(float(nats), float(metadata.get("unobserved_probability", 0.0)))
        entries = (metadata.get("logprobs") or {}).get("content") or []
        if entries and entries[0].get("top_logprobs"):
            likeliest = [entry["logprob"] for entry in entries[0]["top_logprobs"]]
            return entropy_of_likeliest(likeliest, chosen=entries[0].get("logprob"))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ChatModelContractError(
            f"the {writer} model's log-probabilities cannot be read, so its entropy is not known: {error}"
        ) from error
    if metadata.get("timed_out"):
        return None
    raise ChatModelContractError(
        f"the {writer} model does not report the entropy of its first token, which the policy asks for: its "
        "answer has neither response_metadata['first_token_entropy'] nor ['logprobs'] with top_logprobs; use "
        "ChatVLLM or ChatTransformers, or another policy"
    )


def _end(
    metadata: dict[str, Any], stops: Collection[str], writer: str
) -> tuple[StepEnd, str, tuple[str, ...]]:
    """Returns why a step's answer stopped, the separator met, and notes."""
    finish = metadata.get("finish_reason")
    kind = "ended" if finish is None else classify(str(finish))  # without one, stop_reason alone decides
    if kind in ("refused", "failed", "tools"):
        what = "called a tool, though none was offered" if kind == "tools" else "was ended"
        raise ModelServerError(f"the {writer} model's answer {what}: finish_reason={finish!r}", begun=True)
    if kind == "unknown":
        return "length", "", (_not_known(writer, str(finish), cut=True),)
    if kind == "cut":
        loops = str(finish).startswith("repetition")
        note = f"the {writer} model's server ended an answer that repeated itself (finish_reason={finish!r})"
        return "length", "", (note,) if loops else ()
    if "stop_reason" not in metadata:
        raise ChatModelContractError(
            f"the {writer} model does not distinguish a step's end from the solution's: its answer has no "
            "response_metadata['stop_reason'] (None at the end of sequence, the delimiter at a step's end)"
        )
    reason = metadata["stop_reason"]
    if reason == STOPPED:
        return "delimiter", "", ()
    return ("delimiter", reason, ()) if reason in stops else ("eos", "", ())


def _not_known(writer: str, reason: str, *, cut: bool) -> str:
    read = "cut off" if cut else "whole, since it used fewer tokens than it was asked for"
    return f"the {writer} model stopped for an unknown reason, {reason!r}: its answer is taken as {read}"


def cut_short(answer: AIMessage) -> bool:
    """Returns whether an answer ran into its token limit."""
    reason = provider_reason(answer.response_metadata)
    return reason is not None and classify(reason) == "cut"


def refusal(answer: AIMessage) -> ModelServerError | None:
    """Returns the error of an answer that a filter, the model or its server ended; None of any other.

    An empty answer is an error too where its reason to stop is not known.
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
    """Returns the name of the model that answered: as the answer reports it, else as configured."""
    metadata = answer.response_metadata
    return str(metadata.get("model_name") or metadata.get("model") or configured_name(model))


def configured_name(model: Any) -> str:
    """Returns the name of a model as it is configured; its class where it has none."""
    inside: Any = chat_model_inside(model)
    name = getattr(inside, "model_name", None) or getattr(inside, "model", None)
    return str(name or type(inside or model).__name__)


def failed_attempts(answer: AIMessage) -> dict[str, FailedAttempts]:
    """Returns failed attempts that the answer reports, for `response_metadata`."""
    failed = answer.response_metadata.get("failed_attempts")
    return {"failed_attempts": failed} if failed else {}


def span_probability(answer: AIMessage, text: str, spans: Sequence[tuple[int, int]]) -> float | None:
    """Returns the mean probability of the tokens of some spans of an answer; None where it is unknown.

    Source: OpenAI chat completions, ``logprobs.content``: token, logprob, and bytes where a token is part of
    a character.
    """
    entries = logprob_entries(answer.response_metadata)
    kept = [(len(_bytes(text[:first])), len(_bytes(text[:last]))) for first, last in spans if first < last]
    if not entries or not kept:
        return None
    at, whole, probabilities = 0, b"", []
    for entry in entries:
        raw = entry.get("bytes")
        piece = bytes(raw) if raw is not None else _bytes(entry["token"])
        if any(first < at + len(piece) and at < last for first, last in kept):
            probabilities.append(math.exp(entry["logprob"]))
        whole, at = whole + piece, at + len(piece)
    # Behind the text there may be an end of sequence.
    return (
        sum(probabilities) / len(probabilities) if probabilities and whole.startswith(_bytes(text)) else None
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


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
    """Returns the kind of a reason; letter case does not count."""
    return _KINDS.get(reason.lower(), "unknown")


def provider_reason(metadata: Mapping[str, Any]) -> str | None:
    """Returns the reason that an answer of any LangChain provider gives, in lower case.

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


CountTokens = Callable[[str], int]
"""Counts the tokens of a text."""


def check_count_tokens(count_tokens: Any) -> None:
    """Checks the setting ``count_tokens``.

    Raises:
        SettingsError: It is no function.
    """
    if count_tokens is not None and not callable(count_tokens):
        raise SettingsError(
            f"count_tokens is {count_tokens!r}: pass a function from a text to its number of tokens"
        )


class Tokens(TypedDict):
    """Tokens of an answer."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int


def reports_usage(message: AIMessage) -> bool:
    """Returns whether an answer reports its tokens; text with zero tokens does not count as a report."""
    usage = message.usage_metadata
    written = bool(message.text or message.tool_calls)
    return usage is not None and not (written and usage.get("output_tokens") == 0)


def reported_tokens(usage: Mapping[str, Any], writer: str) -> Tokens:
    """Reads an answer's ``usage_metadata``.

    Args:
        usage: Report of the model.
        writer: ``small`` or ``large``, for the error message.

    Raises:
        ChatModelContractError: A number in it cannot be true.
    """

    def number(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ChatModelContractError(
                f"the {writer} model reports usage_metadata with {name}={value!r}, which is no number of "
                "tokens: a whole number, 0 or more; have its adapter report what the server counts"
            )
        return value

    of_prompt, of_text = (usage.get(f"{kind}_token_details") or {} for kind in ("input", "output"))
    # OpenAI's name is another one in a service tier: flex_reasoning.
    thoughts = (value for name, value in of_text.items() if name.split("_")[-1] == "reasoning")
    tokens = Tokens(
        input_tokens=number("input_tokens", usage.get("input_tokens")),
        cached_tokens=number("cache_read", of_prompt.get("cache_read") or 0),
        output_tokens=number("output_tokens", usage.get("output_tokens")),
        reasoning_tokens=number("reasoning", next(thoughts, None) or 0),
    )
    if tokens["cached_tokens"] > tokens["input_tokens"]:
        raise ChatModelContractError(
            f"the {writer} model reports usage_metadata with cache_read={tokens['cached_tokens']}, but "
            f"input_tokens={tokens['input_tokens']}: cached tokens are a part of the prompt's"
        )
    return tokens


def missing_usage(message: AIMessage, writer: str) -> str:
    """Returns an error text: the answer does not report its tokens, and what to do."""
    missing = "has no usage_metadata"
    if message.usage_metadata is not None and not reports_usage(message):
        missing = "has text, but usage_metadata with output_tokens=0"
    return (
        f"the {writer} model's answer {missing}, so its tokens cannot be counted against the budget; use an "
        "adapter that reports usage (for OpenAI-compatible servers: stream_usage=True), or pass "
        "count_tokens=, a function from a text to its number of tokens"
    )


@dataclass(frozen=True)
class TokenCounter:
    """Counts tokens for a model that does not report them.

    Args:
        writer: ``small`` or ``large``, for error messages.
        model: The model; its own ``get_num_tokens`` counts where nothing else is given. LangChain's default
            of that method is not the model's own: it loads the tokenizer of GPT-2 from the hub.
        given: The user's function.
    """

    writer: str
    model: Runnable[Any, Any]
    given: CountTokens | None = None

    @property
    def name(self) -> str:
        """Name of the counter, for a note."""
        inside = self._inside()
        return "count_tokens" if self.given else f"{type(inside or self.model).__name__}.get_num_tokens"

    def usage(self, prompt: Sequence[BaseMessage], answer: AIMessage) -> UsageMetadata:
        """Estimates the usage of an answer from its text and that of its prompt.

        Raises:
            ChatModelContractError: The model has no way to count, or it fails.
            SettingsError: The user's function fails, or returns something that is no number of tokens.
        """
        count = self._given if self.given is not None else self._own(answer)
        read, written = sum(count(_text(message)) for message in prompt), count(_text(answer))
        return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)

    def _inside(self) -> Any:
        inside = chat_model_inside(self.model)
        # A model that is asked by prompt counts with its inner model.
        return chat_model_inside(getattr(inside, "model", None)) if hasattr(inside, "may_send") else inside

    def _given(self, text: str) -> int:
        assert self.given is not None
        try:
            counted = self.given(text)
        except Exception as error:
            raise SettingsError(
                f"count_tokens failed for a text of {len(text)} characters: {type(error).__name__}: {error}"
            ) from error
        if isinstance(counted, bool) or not isinstance(counted, int) or counted < 0:
            raise SettingsError(
                f"count_tokens returned {counted!r} for a text of {len(text)} characters; it returns a whole "
                "number of tokens, 0 or more"
            )
        return counted

    def _own(self, answer: AIMessage) -> CountTokens:
        inside, missing = self._inside(), missing_usage(answer, self.writer)
        if inside is None or _is_default(inside):
            raise ChatModelContractError(missing)

        def count(text: str) -> int:
            try:
                return int(inside.get_num_tokens(text))
            except Exception as error:
                raise ChatModelContractError(
                    f"{missing}. {self.name} could not count them either: {type(error).__name__}: {error}"
                ) from error

        return count


@dataclass(frozen=True)
class Estimate:
    """Estimator of the usage of one call.

    Args:
        counter: Counts.
        prompt: Prompt of the call.
    """

    counter: TokenCounter
    prompt: Sequence[BaseMessage]

    def usage(self, answer: AIMessage) -> UsageMetadata:
        """Estimates the usage of the call's answer."""
        return self.counter.usage(self.prompt, answer)


def _is_default(model: BaseLanguageModel[Any]) -> bool:
    kind = type(model)
    return (
        kind.get_num_tokens is BaseLanguageModel.get_num_tokens
        and kind.get_token_ids is BaseLanguageModel.get_token_ids
        and model.custom_get_token_ids is None
    )


def _text(message: BaseMessage) -> str:
    calls = [{"name": one["name"], "args": one["args"]} for one in getattr(message, "tool_calls", ())]
    return str(message.text) + (json.dumps(calls, default=str) if calls else "")
