r"""Renders a turn of an agent as text for the scorer: its text, its tool calls, the last tools' results.

One line a tool result, then the text, then one line a tool call::

    [tool_result] query "city | inhabitants\nParis | 2102650"
    Paris has 2102650 inhabitants. I divide that by its area.
    [tool_call] calculator {"expression": "2102650 / 105.4"}

- ``[tool_result] NAME TEXT``, or ``[tool_error] NAME TEXT`` where the tool failed: a result of
  the tools that the previous turn called. The text is a JSON string, cut in its middle if it is long.
- The turn's own text, unchanged. Of a message in parts, the parts that are text.
- ``[tool_call] NAME ARGUMENTS``: the arguments as JSON, on one line.
- ``[tool_invalid] NAME TEXT``: a call whose arguments were not JSON; they are in a JSON string.
- ``[tool_none]`` alone: the turn has neither text nor a call.
- ``[tool_turn_removed]`` alone: an earlier turn whose message was removed, as by a summary.

A name with anything but letters, digits and ``_ . : / -`` in it is a JSON string. No line of a turn's own
text can imitate these marks: one that begins like a mark gets a backslash before the bracket. A line begins
after any character that some reader treats as a line break. It begins like a mark regardless of white space,
backslashes and capitals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from trim_graph.state import Step

__all__ = ["render_turn"]

LONGEST_RESULT = 4000
"""Default of the characters of a tool's result that the scorer sees."""
REMOVED = "[tool_turn_removed]"

_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_LIKE_A_MARK = re.compile(rf"((?:^|[{_LINE_ENDS}])[^\S{_LINE_ENDS}]*)(\\*\[\s*tool)", re.IGNORECASE)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.:/-]+")


def render_turn(
    message: AIMessage, results: Sequence[ToolMessage] = (), *, longest_result: int = LONGEST_RESULT
) -> str:
    """Returns a turn as the text that the scorer sees; the module describes the format.

    Args:
        message: The turn.
        results: Results of the tools that the previous turn called, in order.
        longest_result: Characters of each result to show.
    """
    lines = [_result(result, longest_result) for result in results]
    text = str(message.text)
    if text.strip():
        lines.append(_LIKE_A_MARK.sub(r"\1\\\2", text))
    lines += [f"[tool_call] {_name(call['name'])} {_json(call['args'])}" for call in message.tool_calls]
    lines += [
        f"[tool_invalid] {_name(call.get('name') or '')} {_json(call.get('args') or '')}"
        for call in message.invalid_tool_calls
    ]
    if len(lines) == len(results):
        lines.append("[tool_none]")
    return "\n".join(lines)


def results_of(messages: Sequence[BaseMessage]) -> list[ToolMessage]:
    """Returns the tool results since the last turn, in order."""
    results: list[ToolMessage] = []
    for message in reversed(messages):
        if isinstance(message, AIMessage):
            break
        if isinstance(message, ToolMessage):
            results.append(message)
    return results[::-1]


def find_turns(
    steps: Sequence[Step], messages: Sequence[BaseMessage]
) -> list[tuple[AIMessage, list[ToolMessage]] | None]:
    """Returns the message of each turn and the tool results before it; None where the message was removed.

    Args:
        steps: The turns, with the ids of their messages.
        messages: The conversation.
    """
    at = {one.id: (index, one) for index, one in enumerate(messages) if isinstance(one, AIMessage)}
    found = [at.get(step["message"]) if "message" in step else None for step in steps]
    return [None if one is None else (one[1], results_of(messages[: one[0]])) for one in found]


def with_message_texts(
    steps: Sequence[Step], messages: Sequence[BaseMessage], *, longest_result: int
) -> list[Step]:
    """Returns turns with the current texts of their messages, which another middleware may have rewritten.

    Args:
        steps: The turns. A turn without the id of its message (an older release's) stays as it is.
        messages: The conversation.
        longest_result: Characters of each tool result to show.
    """

    def text(step: Step, turn: tuple[AIMessage, list[ToolMessage]] | None) -> str:
        if "message" not in step:
            return step["text"]
        return REMOVED if turn is None else render_turn(*turn, longest_result=longest_result)

    turns = zip(steps, find_turns(steps, messages), strict=True)
    return [Step(**{**step, "text": text(step, turn)}) for step, turn in turns]


def _result(result: ToolMessage, longest: int) -> str:
    mark = "[tool_error]" if result.status == "error" else "[tool_result]"
    return f"{mark} {_name(result.name or '')} {_json(_cut(str(result.text), longest))}"


def _cut(text: str, longest: int) -> str:
    left_out = len(text) - longest
    if left_out <= 0:
        return text
    head = longest - longest // 2
    return f"{text[:head]} ... {left_out} characters left out ... {text[len(text) - longest // 2 :]}"


def _name(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else _json(name)


def _json(value: Any) -> str:
    """Returns JSON on one line, also for readers that know more line breaks than JSON does."""
    written = json.dumps(value, ensure_ascii=False, default=str)
    return re.sub(f"[{_LINE_ENDS}]", lambda found: f"\\u{ord(found[0]):04x}", written)
