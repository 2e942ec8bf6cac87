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


_REASONING = {"reasoning", "thinking", "redacted_thinking", "reasoning_content"}
"""Content blocks of an earlier turn's reasoning: LangChain's name, and those of Anthropic, Google, Mistral
and Bedrock. No provider wants them back from another one, and a chat template has no place for them."""
_CALLS = {"tool_call", "tool_use", "function_call"}
"""Content blocks that repeat the tool calls of their message."""


def text_of(message: BaseMessage) -> str:
    """The text of a message, byte for byte; blocks of reasoning are left out.

    Raises:
        ValueError: It holds something that is not text.
    """
    if isinstance(message.content, str):
        return message.content
    called = isinstance(message, AIMessage) and bool(message.tool_calls)
    parts = []
    for block in message.content:
        if is_reasoning(block) or (called and _kind(block) in _CALLS):
            continue
        if isinstance(block, dict) and block.get("type") == "text":
            parts.append(str(block["text"]))
        elif isinstance(block, str):
            parts.append(block)
        else:
            raise ValueError(
                f"a {message.type} message holds a content block of type {_kind(block)!r}; "
                "this adapter takes text only"
            )
    return "".join(parts)


def is_reasoning(block: Any) -> bool:
    """Tell whether a content block is what a model thought, not what it said."""
    wrapped = block.get("value") if isinstance(block, dict) and block.get("type") == "non_standard" else None
    return _kind(block if wrapped is None else wrapped) in _REASONING


def _kind(block: Any) -> Any:
    return block.get("type") if isinstance(block, dict) else type(block).__name__


def without_reasoning(message: BaseMessage) -> BaseMessage:
    """The message without its reasoning, for a model of whichever provider."""
    content, further = message.content, message.additional_kwargs
    if not isinstance(content, str):
        content = [block for block in content if not is_reasoning(block)] or ""
    further = {name: value for name, value in further.items() if name not in _REASONING}
    if content == message.content and further == message.additional_kwargs:
        return message
    return message.model_copy(update={"content": content, "additional_kwargs": further})


Turns = list[dict[str, Any]]


def acceptable_forms(turns: Turns) -> list[Turns]:
    """Return the turns as they are, and in forms that chat templates take which refuse those.

    Some templates (Mistral's, Gemma's) want user and assistant to alternate: turns of one role in a row
    become one. Some have no role for a system message: it goes in front of the user turn that follows.
    """
    forms = [turns]
    for form in (_alternating(turns), _alternating(_without_system(turns))):
        if form != forms[-1]:
            forms.append(form)
    return forms


def system_texts(turns: Turns) -> list[str]:
    """The texts that a rendered chat must show somewhere, or its template has dropped system messages."""
    return [turn["content"].strip() for turn in turns if turn["role"] == "system"]


def _without_system(turns: Turns) -> Turns:
    made: Turns = []
    said: list[str] = []
    for turn in turns:
        if turn["role"] == "system":
            said.append(turn["content"])
        elif turn["role"] == "user" and said:
            made.append({**turn, "content": "\n\n".join([*said, turn["content"]])})
            said = []
        else:
            made.append(turn)
    return [*made, {"role": "user", "content": "\n\n".join(said)}] if said else made


def _alternating(turns: Turns) -> Turns:
    made: Turns = []
    for turn in turns:
        plain = turn.keys() == {"role", "content"} and turn["role"] in ("user", "assistant")
        if plain and made and made[-1].keys() == turn.keys() and made[-1]["role"] == turn["role"]:
            made[-1] = {**turn, "content": f"{made[-1]['content']}\n\n{turn['content']}"}
        else:
            made.append(turn)
    return made


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
    A template that refuses or drops a system message, or refuses two turns of one role in a row, gets them in
    a form that it takes; see `acceptable_forms`.

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
    return guard.encode(_rendered(turns, tokenizer, template_kwargs or {}), continuation)


def _rendered(turns: Turns, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> str:
    refusal: Exception | None = None
    for form in acceptable_forms(turns):
        try:
            rendered = str(
                tokenizer.apply_chat_template(
                    form, tokenize=False, add_generation_prompt=True, **template_kwargs
                )
            )
        except Exception as error:
            refusal = refusal or error
            continue
        if all(text in rendered for text in system_texts(form)):
            return rendered
        refusal = refusal or ValueError("it does not show the system message")
    roles = [turn["role"] for turn in turns]
    raise ValueError(f"the model's chat template refused the roles {roles}: {refusal}") from refusal


def takes_system_role(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a chat template has a role for system messages.

    Args:
        tokenizer: Brings the chat template.
        template_kwargs: Further arguments of it.
    """
    try:
        rendered = tokenizer.apply_chat_template(
            SYSTEM_PROBE, tokenize=False, add_generation_prompt=True, **template_kwargs
        )
    except Exception:  # a template raises whatever it likes
        return False
    return all(text in str(rendered) for text in system_texts(SYSTEM_PROBE))


SYSTEM_PROBE: Turns = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "?"}]


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
