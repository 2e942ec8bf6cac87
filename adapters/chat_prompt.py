"""From LangChain messages to the exact token ids a local chat model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .special_tokens import SpecialTokenGuard


def text_of(message: BaseMessage) -> str:
    """The text of a message, byte for byte.

    Raises:
        ValueError: It holds something that is not text.
    """
    if isinstance(message.content, str):
        return message.content
    parts = []
    for block in message.content:
        if isinstance(block, dict) and block.get("type") == "text":
            parts.append(str(block["text"]))
        elif isinstance(block, str):
            parts.append(block)
        else:
            kind = block.get("type") if isinstance(block, dict) else type(block).__name__
            raise ValueError(
                f"a {message.type} message holds a content block of type {kind!r}; "
                "this adapter takes text only"
            )
    return "".join(parts)


def split_continuation(messages: Sequence[BaseMessage]) -> tuple[Sequence[BaseMessage], str]:
    """Take a trailing AIMessage off a conversation.

    Returns:
        The messages before it, and its text, which is to be continued; all messages and "" without one.

    Raises:
        ValueError: The conversation is empty, or has nothing before the text to continue, or that is a
            tool call.
    """
    if not messages:
        raise ValueError("the conversation is empty; give at least one message")
    *before, last = messages
    if not isinstance(last, AIMessage):
        return messages, ""
    if not before:
        raise ValueError("the conversation is one AIMessage alone; put the message it answers before it")
    if last.tool_calls:
        raise ValueError("the last AIMessage holds tool calls, which cannot be continued; answer them first")
    return before, text_of(last)


def opens_thought(rendered: str) -> bool:
    """Tell whether a rendered generation prompt ends within a thought, as that of DeepSeek-R1 does."""
    return rendered.rstrip().endswith("<think>")


def template_opens_thought(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a chat template opens a thought before the model writes anything.

    Args:
        tokenizer: Brings the chat template.
        template_kwargs: Further arguments of it, such as ``enable_thinking``.
    """
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True, **template_kwargs
    )
    return opens_thought(str(rendered))


def encode_chat(
    messages: Sequence[BaseMessage],
    tokenizer: PreTrainedTokenizerBase,
    guard: SpecialTokenGuard,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Render a conversation with the model's chat template and tokenise it.

    A trailing AIMessage is continued: its text follows the generation prompt unchanged, newlines included.

    Args:
        messages: The conversation; text only.
        tokenizer: Brings the chat template.
        guard: Made from the same tokenizer; special tokens inside the messages stay plain text.
        template_kwargs: Further arguments of the chat template.

    Returns:
        The token ids of the prompt.

    Raises:
        ValueError: The conversation is empty, has nothing before the text to continue, holds something that
            is not text, or is refused by the chat template.
    """
    messages, continuation = split_continuation(messages)
    turns = [_turn(message, guard) for message in messages]
    try:
        rendered = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **(template_kwargs or {})
        )
    except Exception as error:
        roles = [turn["role"] for turn in turns]
        raise ValueError(f"the model's chat template refused the roles {roles}: {error}") from error
    return guard.encode(str(rendered), continuation)


def _turn(message: BaseMessage, guard: SpecialTokenGuard) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": guard.shield(role_of(message)), "content": guard.shield(text_of(message))}
    if isinstance(message, AIMessage) and message.tool_calls:
        turn["tool_calls"] = [
            {
                "type": "function",
                "function": _shield_all({"name": call["name"], "arguments": call["args"]}, guard),
            }
            for call in message.tool_calls
        ]
    return turn


def role_of(message: BaseMessage) -> str:
    """The role that chat templates and OpenAI-compatible servers know a message by.

    Raises:
        ValueError: It has none.
    """
    match message:
        case SystemMessage():
            return "system"
        case HumanMessage():
            return "user"
        case AIMessage():
            return "assistant"
        case ToolMessage():
            return "tool"
        case ChatMessage():
            return message.role
    raise ValueError(
        f"a message of type {message.type!r} has no role in a chat template; "
        "use SystemMessage, HumanMessage, AIMessage, ToolMessage or ChatMessage"
    )


def _shield_all(value: Any, guard: SpecialTokenGuard) -> Any:
    if isinstance(value, str):
        return guard.shield(value)
    if isinstance(value, dict):
        return {guard.shield(str(key)): _shield_all(item, guard) for key, item in value.items()}
    if isinstance(value, list):
        return [_shield_all(item, guard) for item in value]
    return value
