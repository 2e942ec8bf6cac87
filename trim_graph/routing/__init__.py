"""Routing: pure rules of what comes next in a run, without LangGraph, I/O or a model."""

from .router import (
    AcceptedText,
    Action,
    AskHuman,
    Event,
    Finish,
    Generate,
    Router,
    RouterOptions,
    RunView,
)

__all__ = [
    "AcceptedText",
    "Action",
    "AskHuman",
    "Event",
    "Finish",
    "Generate",
    "Router",
    "RouterOptions",
    "RunView",
]
