"""Requests to OpenAI-compatible endpoints, readers of their responses, and differences between servers."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata

from trim_graph.adapters.base import STOPPED, CallSettings, RetryTokens, StopWhen
from trim_graph.adapters.responses import classify
from trim_graph.adapters.token_confidence import Entropy, entropy_of_likeliest, lowest_window_mean
from trim_graph.adapters.tokenization import role_of, text_of
from trim_graph.errors import FailedAttempts, ModelServerError

_ROUNDING = 1e-3
"""Rounding: so much may a log-probability be above 0."""


class AnswerError(ValueError):
    """An answer that breaks the contract; the message says how, as a clause about the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VLLMCallSettings(CallSettings):
    """Settings of one call of a vLLM model.

    Attributes:
        top_logprobs: Number of the likeliest tokens to report at each place.
        entropy_logprobs: Number of tokens that the first one's entropy is computed from; 0 if none is wanted.
        retry_tokens: Grants tokens to further attempts.
        thinking_token_budget: Most tokens of reasoning, those that the prompt ends with included; None
            without a limit.
    """

    top_logprobs: int
    entropy_logprobs: int
    retry_tokens: RetryTokens | None = None
    thinking_token_budget: int | None = None


def openai_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Converts a conversation; texts stay byte for byte.

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
                "function": {"name": call["name"], "arguments": json.dumps(call["args"], ensure_ascii=False)},
            }
            for call in message.tool_calls
        ]
    return turn


def sampling(settings: VLLMCallSettings, *, raw: bool) -> dict[str, Any]:
    """Returns the part of a request that does not depend on the prompt.

    Args:
        settings: Settings of the call.
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
    if settings.thinking_token_budget is not None:
        body["thinking_token_budget"] = settings.thinking_token_budget
    tops = max(settings.top_logprobs, settings.entropy_logprobs)
    if settings.logprobs or tops:
        wanted: dict[str, Any] = {"logprobs": True, "top_logprobs": tops}
        body |= {"logprobs": tops} if raw else wanted
    if settings.entropy_logprobs and raw:
        # This endpoint names them by their text, which several tokens may share: halves of characters.
        body["return_tokens_as_token_ids"] = True
    return body


@dataclass(slots=True)
class Answer:
    """An answer, whole or in part; takes documents and stream events of both endpoints."""

    text: str = ""
    reasoned: bool = False
    """Whether a reasoning parser of the server took part of the text away."""
    finish_reason: str | None = None
    stop_reason: str | None = None
    """The stop string met; None at the end of sequence."""
    stop_field: str = ""
    """Field in which the server reports the stop string it met; empty where it does not."""
    model: str = ""
    input_tokens: int = 0
    cached_tokens: int | None = None
    output_tokens: int = 0
    usage_known: bool = False
    """Whether the server has reported the tokens of all that has arrived."""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    logprobs_known: bool = True
    """Whether all log-probabilities that came could be read."""
    begun: bool = False
    """Whether anything has arrived."""
    timed_out: bool = False
    choice: int | None = None
    """Index of the choice that is read, where there are several."""

    def add(self, event: dict[str, Any]) -> str:
        """Adds a document or event.

        Returns:
            The text of the event.

        Raises:
            AnswerError: A number of its usage cannot be true, or its text is no text.
        """
        self.begun = True
        self.model = event.get("model") or self.model
        # If the event cannot be read, the usage reported before does not cover its text.
        known, self.usage_known = self.usage_known, False
        text = self._add_choice(event)
        usage = event.get("usage") or _llama_cpp_usage(event)
        self.usage_known = self._add_usage(usage) if usage else known and not text
        return text

    def _add_choice(self, event: dict[str, Any]) -> str:
        choices = event.get("choices") or []
        if self.choice is None and choices:
            self.choice = min(map(_index, choices))
        choice = next((one for one in choices if _index(one) == self.choice), None)
        if choice is None:
            return ""
        message = choice.get("message") or choice.get("delta") or {}
        if message.get("tool_calls"):
            raise AnswerError(
                "it called a tool, though none was offered: start the server without a tool parser "
                "(--enable-auto-tool-choice), which takes text away"
            )
        text = _content(choice.get("text") or message.get("content"))
        self.reasoned |= bool(message.get("reasoning") or message.get("reasoning_content"))
        logprobs = _logprobs(choice.get("logprobs"))
        self.logprobs_known &= logprobs is not None
        self.logprobs += logprobs or []
        self.text += text
        if choice.get("finish_reason"):
            self._finish(choice, event)
        return text

    def _finish(self, choice: dict[str, Any], event: dict[str, Any]) -> None:
        self.finish_reason = str(choice["finish_reason"])
        self.stop_field, reason = _stop_reported(choice, event)
        # A token id is one of several ends of sequence that the model's generation_config names.
        self.stop_reason = reason if isinstance(reason, str) else None

    def _add_usage(self, usage: dict[str, Any]) -> bool:
        """Reads the usage of an event; returns whether it covers all text that has arrived."""
        read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        if read is not None:
            self.input_tokens = _count("prompt_tokens", read)
        if written is not None:
            self.output_tokens = _count("completion_tokens", written)
        if cached is not None:
            self.cached_tokens = min(_count("cached_tokens", cached), self.input_tokens)
        return written is not None and bool(self.input_tokens)

    @property
    def counted(self) -> bool:
        """Whether the tokens of all that has arrived are known: a text of zero tokens is no report."""
        return self.usage_known and bool(self.output_tokens or not (self.text or self.reasoned))

    def stopped_by(self, stop_when: StopWhen | None) -> bool:
        """Ends an unfinished answer where the caller's function says so; returns whether it does."""
        if stop_when is None or self.finish_reason is not None or not stop_when(self.text):
            return False
        self.finish_reason, self.stop_reason, self.stop_field = "stop", STOPPED, STOPPED
        return True

    def cut(self) -> None:
        """Ends the answer at the time limit."""
        self.timed_out = True
        self.finish_reason, self.stop_reason = "length", None

    def check(self) -> None:
        """Checks a finished answer.

        Raises:
            AnswerError: It was refused or broken off, or has text without tokens.
        """
        assert self.finish_reason is not None
        if classify(self.finish_reason) == "refused":
            raise AnswerError(f"it was ended by {self.finish_reason!r}, and what it says is not complete")
        if self.text and self.usage_known and not self.output_tokens:
            raise AnswerError("its usage reports 0 completion_tokens for an answer that has text")

    @property
    def token_probabilities(self) -> list[float]:
        """Those of the generated tokens, none where they are unknown.

        The end of sequence counts only if it is the only one.
        """
        if not self.logprobs_known:
            return []
        reported = [math.exp(entry["logprob"]) for entry in self.logprobs]
        if self.finish_reason == "stop" and self.stop_reason is None and len(reported) > 1:
            del reported[-1]
        return reported

    @property
    def mean_token_probability(self) -> float | None:
        """Mean of the `token_probabilities`; None where they are unknown."""
        probabilities = self.token_probabilities
        return sum(probabilities) / len(probabilities) if probabilities else None

    @property
    def first_token_entropy(self) -> Entropy | None:
        """A lower bound, from the likeliest tokens; None where they are unknown."""
        if not self.logprobs_known or not self.logprobs or not self.logprobs[0]["top_logprobs"]:
            return None
        first = self.logprobs[0]
        return entropy_of_likeliest([top["logprob"] for top in first["top_logprobs"]], first["logprob"])


@dataclass(slots=True)
class Lost:
    """Tokens of attempts that failed, as far as the server reported them."""

    attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    unknown: int = 0
    """Attempts that the server may have worked on without reporting their tokens."""
    unknown_tokens: int = 0
    """Most tokens that those may have generated."""
    overshoot_tokens: int = 0
    """Tokens reported beyond the most that an attempt could generate."""

    def add(self, answer: Answer, *, max_tokens: int, worked_on: bool, usage_streamed: bool = True) -> None:
        """Counts an attempt that failed.

        Args:
            answer: The part of it that had arrived.
            max_tokens: Most tokens it could generate.
            worked_on: Whether the server may have worked on it.
            usage_streamed: Whether the server reported tokens while it wrote; else those of an unfinished
                answer are unknown.
        """
        self.attempts += 1
        if answer.counted and (usage_streamed or answer.finish_reason is not None):
            self.input_tokens += answer.input_tokens
            self.output_tokens += answer.output_tokens
            self.overshoot_tokens += max(0, answer.output_tokens - max_tokens)
        elif worked_on or answer.begun:
            self.unknown += 1
            self.unknown_tokens += max_tokens

    @property
    def reported(self) -> FailedAttempts:
        """The failed attempts, for ``response_metadata`` and errors."""
        found = FailedAttempts(
            count=self.attempts,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            unknown=self.unknown,
        )
        if self.unknown:
            found["unknown_tokens"] = self.unknown_tokens
        if self.overshoot_tokens:
            found["overshoot_tokens"] = self.overshoot_tokens
        return found


def metadata_of(
    answer: Answer, settings: VLLMCallSettings, lost: Lost, model: str, *, starts_in_reasoning: bool
) -> dict[str, Any]:
    """Returns the ``response_metadata`` of an answer."""
    metadata: dict[str, Any] = {
        "model_name": answer.model or model,
        "finish_reason": answer.finish_reason,
    }
    if answer.stop_field or not settings.stop or classify(answer.finish_reason or "") != "ended":
        metadata["stop_reason"] = answer.stop_reason
    if settings.logprobs and answer.mean_token_probability is not None:
        metadata["mean_token_probability"] = answer.mean_token_probability
        if settings.probability_window is not None:
            lowest = lowest_window_mean(answer.token_probabilities, settings.probability_window)
            metadata["lowest_window_probability"] = lowest
    if settings.entropy_logprobs and (entropy := answer.first_token_entropy) is not None:
        metadata["first_token_entropy"], metadata["unobserved_probability"] = (
            entropy.nats,
            entropy.unobserved_probability,
        )
    if settings.top_logprobs and answer.logprobs_known:
        metadata["logprobs"] = {"content": answer.logprobs}
    if starts_in_reasoning:
        metadata["starts_in_reasoning"] = True
    if answer.timed_out:
        metadata["timed_out"] = True
    if lost.attempts:
        metadata["failed_attempts"] = lost.reported
    if not answer.counted:
        metadata["usage_upper_bound"] = True
    return metadata


def usage_of(answer: Answer, lost: Lost, *, most_read: int = 0, most_written: int = 0) -> UsageMetadata:
    """Returns the ``usage_metadata`` of an answer: its tokens and those of the failed attempts before it.

    Args:
        answer: The answer.
        lost: The failed attempts.
        most_read: Upper bound of its prompt's tokens, charged where the server does not report them.
        most_written: Most tokens it could generate, charged likewise.
    """
    read, written = answer.input_tokens, answer.output_tokens
    if not answer.counted:
        read, written = read or most_read, max(written, most_written)
    read, written = read + lost.input_tokens, written + lost.output_tokens
    usage = UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
    if answer.cached_tokens is not None:
        usage["input_token_details"] = InputTokenDetails(cache_read=answer.cached_tokens)
    return usage


def _stop_reported(choice: dict[str, Any], event: dict[str, Any]) -> tuple[str, Any]:
    """Returns the field in which a server reports which stop string ended an answer, and the string.

    vLLM: ``stop_reason`` of the choice (``CompletionOutput.stop_reason``). SGLang: ``matched_stop`` of the
    choice. llama.cpp: ``stop_type`` and ``stopping_word`` in ``__verbose``, asked for by ``verbose``.
    """
    for name in ("stop_reason", "matched_stop"):
        if name in choice:
            return name, choice[name]
    verbose = event.get("__verbose") or {}
    if verbose.get("stop_type") in ("eos", "word"):
        return "stop_type", verbose.get("stopping_word") if verbose["stop_type"] == "word" else None
    return "", None


def _llama_cpp_usage(event: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the usage so far, which a verbose llama.cpp server reports with each event."""
    verbose = event.get("__verbose") or {}
    if "tokens_predicted" not in verbose:
        return None
    return {
        "prompt_tokens": verbose.get("tokens_evaluated"),
        "completion_tokens": verbose["tokens_predicted"],
    }


def _index(choice: dict[str, Any]) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else 0


def _content(content: Any) -> str:
    """Returns the text of a choice, which some servers give in parts."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [None]
    texts = [
        part.get("text") or "" for part in parts if isinstance(part, dict) and part.get("type") == "text"
    ]
    if len(texts) == len(parts):
        return "".join(map(str, texts))
    raise AnswerError(f"its content is no text: {str(content)[:100]}")


def _count(name: str, value: Any) -> int:
    """Returns a number of tokens; some servers write it as 5.0.

    Raises:
        AnswerError: It cannot be true.
    """
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
    if not whole or value < 0:
        raise AnswerError(f"its usage reports {name}={value!r}, which is no number of tokens")
    return int(value)


def _logprobs(found: Any) -> list[dict[str, Any]] | None:
    """Returns log-probabilities of either endpoint in the form of the chat endpoint, without bytes.

    None where one is missing or cannot be true: then nothing is computed from them.
    """
    try:
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
                **_pair({"token": token, "logprob": logprob}),
                "top_logprobs": [_pair({"token": t, "logprob": p}) for t, p in (top or {}).items()],
            }
            for token, logprob, top in zip(found["tokens"], found["token_logprobs"], tops, strict=True)
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _pair(entry: dict[str, Any]) -> dict[str, Any]:
    logprob = entry["logprob"]
    if not logprob <= _ROUNDING:
        raise ValueError(f"logprob={logprob!r}")
    return {"token": entry["token"], "logprob": min(logprob, 0.0)}


Post = Callable[[str, dict[str, Any]], Awaitable[Any]]
"""Posts a document to a path of the server, and returns the answer."""


class Dialect:
    """Dialect of vLLM, also of servers that name no other.

    Attributes:
        name: Name of the server.
        renders: Whether the server returns the tokens of a conversation without answering it. Where it does
            not, its chat endpoint must continue a text exactly by itself.
        takes_text: Whether a completion's prompt may be a text that is tokenised as it is; else ids are sent.
        reads_labels: Whether it may know `trim_graph.adapters.vllm.label_tokens`.
        limits_reasoning: Whether it may end reasoning at a number of tokens.
    """

    name = "vLLM"
    renders = True
    takes_text = True
    reads_labels = True
    limits_reasoning = True

    def max_model_len(self, entry: Mapping[str, Any]) -> int | None:
        """Returns the longest sequence in tokens, from the model's entry in ``/v1/models``."""
        length = entry.get("max_model_len")
        return length if isinstance(length, int) else None

    def adapted(self, body: dict[str, Any]) -> dict[str, Any]:
        """Returns the sampling part of a generation request in this dialect."""
        return body

    async def tokens(self, post: Post, body: dict[str, Any]) -> list[int]:
        """Returns token ids of a text (``prompt``) or of a conversation (``messages``)."""
        return [int(token) for token in await _asked(post, "/tokenize", body, "tokens")]

    async def text(self, post: Post, tokens: list[int]) -> str:
        """Returns the text of token ids, special tokens included."""
        return str(await _asked(post, "/detokenize", {"tokens": tokens}, "prompt"))


class SGLang(Dialect):
    """SGLang: its chat endpoint appends the text to be continued to the rendered prompt, byte for byte."""

    name = "SGLang"
    renders = False
    reads_labels = False
    limits_reasoning = False

    async def tokens(self, post: Post, body: dict[str, Any]) -> list[int]:
        """Returns token ids of a text; of a conversation SGLang returns none."""
        if "messages" in body:
            raise ModelServerError(
                "a SGLang server does not return the tokens of a conversation, so prompts cannot be counted: "
                "limit large_tokens or large_calls, not large_cost"
            )
        return await super().tokens(post, body)

    async def text(self, post: Post, tokens: list[int]) -> str:
        """Returns the text of token ids, special tokens included."""
        asked = {"tokens": tokens, "skip_special_tokens": False}
        return str(await _asked(post, "/detokenize", asked, "text"))


class LlamaCpp(Dialect):
    """llama.cpp's server: a text prompt would get a second token of beginning, so ids are sent."""

    name = "llama.cpp"
    takes_text = False
    reads_labels = False
    limits_reasoning = False

    def max_model_len(self, entry: Mapping[str, Any]) -> int | None:
        """Returns the longest sequence of one slot in tokens, where the server names it."""
        length = (entry.get("meta") or {}).get("n_ctx")
        return length if isinstance(length, int) else None

    def adapted(self, body: dict[str, Any]) -> dict[str, Any]:
        """Returns the sampling part of a generation request in this dialect."""
        if (
            "logprobs" in body
        ):  # one at least: without alternatives the server does not report the token itself
            body = {**body, "logprobs": max(1, body["logprobs"])}
        return {**body, "verbose": True, "response_fields": ["stop_type", "stopping_word"]}

    async def tokens(self, post: Post, body: dict[str, Any]) -> list[int]:
        """Returns token ids of a text or of a conversation."""
        content, begins = body.get("prompt"), False
        if content is None:
            content, begins = await self._rendered(post, body), True
        asked = {"content": content, "add_special": begins, "parse_special": True}
        return [int(token) for token in await _asked(post, "/tokenize", asked, "tokens")]

    async def text(self, post: Post, tokens: list[int]) -> str:
        """Returns the text of token ids, special tokens included."""
        return str(await _asked(post, "/detokenize", {"tokens": tokens}, "content"))

    @staticmethod
    async def _rendered(post: Post, body: dict[str, Any]) -> str:
        try:
            return str(await _asked(post, "/apply-template", body, "prompt"))
        except ModelServerError as error:
            if error.status != 500:
                raise
            raise ModelServerError(
                str(error), 400
            ) from error  # a chat template's refusal is no failure of its server


async def _asked(post: Post, path: str, body: dict[str, Any], field: str) -> Any:
    """Returns a field of an answer; an answer without it comes from a gateway that lacks the endpoint."""
    answer = await post(path, body)
    if field not in answer:
        said = f"the answer of {path} could not be read: it has no {field!r}"
        raise ModelServerError(f"{said}; a gateway must pass it on as it is", 404)
    return answer[field]


_BY_OWNER = {"sglang": SGLang(), "llamacpp": LlamaCpp()}
_VLLM = Dialect()


def dialect_of(entry: Mapping[str, Any]) -> Dialect:
    """Returns the dialect of a server by the ``owned_by`` of the model's entry in ``/v1/models``."""
    return _BY_OWNER.get(str(entry.get("owned_by")), _VLLM)
