"""An agent with a calculator and a database, whose turns are routed between a small and a large model."""

from __future__ import annotations

from .building import build_agent
from .calculating import evaluate
from .shop import QUESTION, create_shop
from .tools import calculator, query_tool

__all__ = ["QUESTION", "build_agent", "calculator", "create_shop", "evaluate", "query_tool"]
