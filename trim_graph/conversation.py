"""The conversation that both models see, the question that the scorer sees, and the answer in a solution."""

from __future__ import annotations

import re
from collections.abc import Sequence

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, SystemMessage

from .errors import InputError

DEFAULT_INSTRUCTION = (
    "Solve the problem step by step. Separate the steps with blank lines. "
    "Put the final answer into \\boxed{}."
)
"""Asks for the two things the graph relies on: steps separated by the delimiter, and a boxed answer."""

_BRACE = re.compile(r"\\boxed\s*\{|[{}]")


def compose(messages: Sequence[BaseMessage], instruction: str | None, prefix: str) -> list[BaseMessage]:
    """Returns the prompt of a writer: the messages, the instruction, the text to continue.

    Args:
        messages: The conversation, with system messages and earlier turns.
        instruction: Appended to the leading system message, or a system message of its own; None adds none.
        prefix: The accepted steps; a trailing AIMessage if not empty.
    """
    prompt = list(messages)
    if instruction:
        if prompt and isinstance(prompt[0], SystemMessage):
            system, text = prompt[0].content, f"\n\n{instruction}"
            content = system + text if isinstance(system, str) else [*system, {"type": "text", "text": text}]
            prompt[0] = prompt[0].model_copy(update={"content": content})
        else:
            prompt.insert(0, SystemMessage(instruction))
    if prefix:
        prompt.append(AIMessage(prefix))
    return prompt


def question_of(messages: Sequence[BaseMessage]) -> str:
    """Returns the text of the last human message, the scorer's default question; empty if there is none."""
    for message in reversed(messages):
        if isinstance(message, HumanMessage):
            return str(message.text)
    return ""


def require_answerable(messages: Sequence[AnyMessage], question: str) -> None:
    """Checks that a conversation can be answered, before any model is called.

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


def extract_answer(text: str) -> str | None:
    r"""Returns the content of the last complete ``\boxed{...}``, braces inside it balanced; else None."""
    opened: list[int | None] = []
    last, answer = -1, None
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            opened.append(None)
        elif brace[0] != "}":
            opened.append(brace.end())
        elif opened and (start := opened.pop()) is not None and start > last:
            last, answer = start, text[start : brace.start()].strip()
    return answer
