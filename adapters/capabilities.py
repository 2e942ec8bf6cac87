"""What a model says of itself, looked up through the wrappers that LangChain puts around it."""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import RunnableBinding


def capable(model: Any, capability: str) -> bool:
    """Tell whether the model inside ``bind``, ``with_config`` and their like has an attribute set to True."""
    while isinstance(model, RunnableBinding):
        model = model.bound
    return getattr(model, capability, False) is True
