"""Streaming of a running run: step events ("custom") and accepted text ("messages")."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessageChunk
from langgraph.config import get_stream_writer
from langgraph.graph.message import push_message


def emit(event: str, **content: Any) -> None:
    """Emits one step event to ``stream_mode="custom"``.

    Args:
        event: ``started``, ``probe``, ``draft``, ``decision``, ``accepted``, ``asked``, ``answered``,
            ``retried``, ``failed``, ``note`` or ``finished``.
        content: JSON-native values of the event.
    """
    get_stream_writer()({"type": "trim", "event": event, **content})


def push_text(text: str, message_id: str) -> None:
    """Emits accepted text to ``stream_mode="messages"`` as a chunk of the final message."""
    push_message(AIMessageChunk(content=text, id=message_id), state_key=None)
