"""Size of a prompt in tokens: exact if the model counts it, else an upper bound, or an error.

The limit on cost depends on this number. An image or a file, which has no bound, is never assumed to be a few
tokens: `UnboundedPrompt` names it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from .adapters.capabilities import bound_setting, chat_model_inside

TEMPLATE = 16
"""Most tokens that a chat template adds around a message, a content block or a tool."""
TOOLS_PROMPT = 600
"""Most tokens that a provider adds to a prompt with tools; Anthropic documents up to 530."""
_BOUND_SCHEMAS = ("tools", "functions", "response_format")
"""Bound settings of a model that enter its prompt."""
_MEDIA = ("image", "audio", "video", "file", "document", "media", "upload")
_TEXTUAL = (
    *("text", "reasoning", "thinking", "refusal", "citation", "annotation", "json", "code", "search"),
    *("tool", "function", "call", "result", "non_standard"),
)
"""Words in the types of content blocks whose tokens are at most the bytes of their JSON."""
_CALLS = ("tool_use", "tool_call", "function_call")
"""Content blocks that repeat a message's tool calls."""
_UNTYPED = frozenset({"text", "reasoningContent", "toolUse", "toolResult", "cachePoint", "json"})
"""Content blocks of Amazon Bedrock, whose type is their key."""


class UnboundedPrompt(Exception):
    """A prompt has a content block whose tokens have no upper bound before the call.

    Attributes:
        what: Type of the content block.
        least: Upper bound of the rest in tokens.
    """

    def __init__(self, what: str, least: int) -> None:
        super().__init__(what)
        self.what, self.least = what, least


def counts_itself(model: Any) -> bool:
    """Returns whether a model counts its prompts itself; counting may load it, or query its server."""
    counted = getattr(model, "model", None) if hasattr(model, "may_send") else model
    return hasattr(chat_model_inside(counted), "count_prompt_tokens")


def prompt_bound(model: Any, messages: Sequence[BaseMessage]) -> int:
    """Returns the size of a prompt in tokens: exact if the adapter can count it, else an upper bound.

    A byte-level tokenizer makes at most one token per byte; `TEMPLATE` covers the tokens around a message.
    All of a message counts: text, reasoning, tool calls, names, additional fields; so do schemas bound to
    the model. For a model that continues by prompt, the messages really sent count.

    Args:
        model: The model; None counts nothing itself.
        messages: The prompt.

    Raises:
        UnboundedPrompt: The model does not count, and the prompt holds more than text.
    """
    inside: Any = chat_model_inside(model)  # a configurable model may build itself for the question
    may_send = getattr(inside, "may_send", None)
    if may_send is not None:
        return max(prompt_bound(inside.model, prompt) for prompt in may_send(messages))
    counter = getattr(inside, "count_prompt_tokens", None)
    if counter is not None:
        return int(counter(messages))
    schemas = [bound for name in _BOUND_SCHEMAS if (bound := bound_setting(model, name)) is not None]
    least = sum(map(_message, messages)) + _schemas(schemas)
    if (what := uncountable(messages)) is not None:
        raise UnboundedPrompt(what, least)
    return least


def sent_prompt_bound(model: Any, messages: Sequence[BaseMessage]) -> int:
    """Returns an upper bound of a prompt in tokens for a charge, without asking the model.

    Of an image or a file, which has no bound, the text around it counts.

    Args:
        model: The model.
        messages: The prompt.
    """
    may_send = getattr(chat_model_inside(model), "may_send", None)
    try:
        return max(prompt_bound(None, prompt) for prompt in (may_send(messages) if may_send else [messages]))
    except UnboundedPrompt as unbounded:
        return unbounded.least


def turn_prompt_bound(messages: Sequence[BaseMessage], schemas: Sequence[Any]) -> int:
    """Returns an upper bound of an agent's prompt in tokens.

    Args:
        messages: The conversation, the system message included.
        schemas: JSON schemas of the tools and of the response format.

    Raises:
        UnboundedPrompt: The conversation holds more than text.
    """
    try:
        return prompt_bound(None, messages) + _schemas(schemas)
    except UnboundedPrompt as unbounded:
        raise UnboundedPrompt(unbounded.what, unbounded.least + _schemas(schemas)) from None


def uncountable(messages: Sequence[BaseMessage]) -> str | None:
    """Returns the type of the first content block whose tokens have no upper bound; None if there is none."""
    for message in messages:
        beside = filter(_is_media, message.additional_kwargs)
        what: str | None = next(chain(_unbounded(message.content), beside), None)
        if what is not None:
            return what
    return None


def _unbounded(content: Any) -> Iterator[str]:
    """Yields the types of unbounded blocks in a message's content, and in the content of its blocks."""
    if not isinstance(content, list | tuple):
        return
    for block in content:
        if not isinstance(block, Mapping):
            continue
        kind = block.get("type")
        if not isinstance(kind, str):
            yield from sorted(block.keys() - _UNTYPED)
        elif kind == "text-plain" and not isinstance(block.get("text"), str):
            yield kind  # given by URL or file name
        elif _is_media(kind) or not any(word in kind for word in _TEXTUAL):
            yield kind
        for inner in (block, block.get("toolResult"), block.get("value")):
            if isinstance(inner, Mapping):
                yield from chain.from_iterable(_unbounded(inner.get(key)) for key in ("content", "output"))


def _is_media(kind: str) -> bool:
    return any(word in kind for word in _MEDIA)


def _message(message: BaseMessage) -> int:
    content = message.content
    parts = [content] if isinstance(content, str) else list(content)
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    if calls:  # counted once: contents and additional fields may hold them again, as the provider spells them
        parts = [one for one in parts if isinstance(one, str) or one.get("type") not in _CALLS]
    beside = {key: v for key, v in message.additional_kwargs.items() if not calls or key != "tool_calls"}
    invalid = message.invalid_tool_calls if isinstance(message, AIMessage) else []
    called = [getattr(message, name, None) for name in ("name", "tool_call_id", "role")]
    extra = [one for one in (*calls, *invalid, *called, beside) if one]
    return TEMPLATE + sum(map(_size, parts)) + sum(_size(one) + TEMPLATE for one in extra)


def _schemas(schemas: Sequence[Any]) -> int:
    return sum(_size(one) + TEMPLATE for one in schemas) + (TOOLS_PROMPT if schemas else 0)


def _size(value: Any) -> int:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return len(text.encode("utf-8", "surrogatepass"))
