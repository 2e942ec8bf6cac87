"""Tokens of a response: as its model reports them, checked, or counted in its text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.language_models.base import BaseLanguageModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import Runnable
from typing_extensions import TypedDict

from trim_graph.errors import ChatModelContractError, SettingsError

from .capabilities import chat_model_inside

CountTokens = Callable[[str], int]
"""Counts the tokens of a text."""


def check_count_tokens(count_tokens: Any) -> None:
    """Check the setting of that name.

    Raises:
        SettingsError: It is no function.
    """
    if count_tokens is not None and not callable(count_tokens):
        raise SettingsError(
            f"count_tokens is {count_tokens!r}: pass a function from a text to its number of tokens"
        )


class Tokens(TypedDict):
    """What an answer has used."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int


def reports_usage(message: AIMessage) -> bool:
    """Tell whether an answer says what it has used; a text of no tokens says nothing."""
    usage = message.usage_metadata
    written = bool(message.text or message.tool_calls)
    return usage is not None and not (written and usage.get("output_tokens") == 0)


def reported_tokens(usage: Mapping[str, Any], writer: str) -> Tokens:
    """Read an answer's ``usage_metadata``.

    Args:
        usage: As the model reports it.
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
    """Say that an answer does not tell its tokens, and what to do."""
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
        """What counts, for a note."""
        inside = self._inside()
        return "count_tokens" if self.given else f"{type(inside or self.model).__name__}.get_num_tokens"

    def usage(self, prompt: Sequence[BaseMessage], answer: AIMessage) -> UsageMetadata:
        """Estimate what an answer has used, by its text and that of its prompt.

        Raises:
            ChatModelContractError: The model has no way to count, or it fails.
            SettingsError: The user's function fails, or returns something that is no number of tokens.
        """
        count = self._given if self.given is not None else self._own(answer)
        read, written = sum(count(_text(message)) for message in prompt), count(_text(answer))
        return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)

    def _inside(self) -> Any:
        inside = chat_model_inside(self.model)
        # A model that is asked by prompt counts by its own inner model.
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
    """A way to estimate what one call has used.

    Args:
        counter: Counts.
        prompt: Of the call.
    """

    counter: TokenCounter
    prompt: Sequence[BaseMessage]

    def usage(self, answer: AIMessage) -> UsageMetadata:
        """Estimate the usage of the call's answer."""
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
