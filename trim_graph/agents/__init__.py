"""Middleware that routes the turns of a LangChain agent."""

from .middleware import TrimMiddleware
from .rendering import render_turn
from .state import TrimAgentState

__all__ = ["TrimAgentState", "TrimMiddleware", "render_turn"]
