"""The conversation that both models see, and the question that the scorer sees."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, SystemMessage

from .errors import InputError

DEFAULT_INSTRUCTION = (
    "Solve the problem step by step. Separate the steps with blank lines. "
    "Put the final answer into \\boxed{}."
)
"""Asks for the two things the graph relies on: steps separated by the delimiter, and a boxed answer."""


def compose(messages: Sequence[BaseMessage], instruction: str | None, prefix: str) -> list[BaseMessage]:
    """Put together what a writer is asked: the messages, the instruction, the text to carry on.

    Args:
        messages: The conversation as given, system messages and earlier turns included.
        instruction: Joins the leading system message, or becomes one; None adds nothing.
        prefix: The accepted steps; a trailing AIMessage if not empty.
    """
    asked = list(messages)
    if instruction:
        if asked and isinstance(asked[0], SystemMessage):
            said, added = asked[0].content, f"\n\n{instruction}"
            content = said + added if isinstance(said, str) else [*said, {"type": "text", "text": added}]
            asked[0] = asked[0].model_copy(update={"content": content})
        else:
            asked.insert(0, SystemMessage(instruction))
    if prefix:
        asked.append(AIMessage(prefix))
    return asked


def question_of(messages: Sequence[BaseMessage]) -> str:
    """Return the text of the last human message, which the scorer takes for the question."""
    for message in reversed(messages):
        if isinstance(message, HumanMessage):
            return str(message.text)
    return ""


def require_answerable(messages: Sequence[AnyMessage], question: str) -> None:
    """Refuse a conversation nobody can answer, before any model is called.

    Raises:
        InputError: There is no message, the last one is the assistant's, or the question is empty.
    """
    if not messages:
        raise InputError("messages is empty: give at least one human message with the problem")
    if isinstance(messages[-1], AIMessage):
        raise InputError("the last message is the assistant's: add a human message with the next problem")
    if not question.strip():
        raise InputError(
            "the question is empty: the last human message has no text, and no `question` was given"
        )
