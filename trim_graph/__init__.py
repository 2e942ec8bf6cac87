"""Step-level routing between a small and a large language model, as a LangGraph state machine."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters.base import ScorableStep, Scorer, ScorerFunction, ScorerReply
    from .budget import Budget, ModelPrice, Prices, Quota, Quotas
    from .budget.ledger import open_ledger
    from .chat_model import TrimChatModel, create_trim_chat_model
    from .conversation import DEFAULT_INSTRUCTION
    from .embedding import trim_node
    from .errors import ChatModelContractError, InputError, ScorerError, SettingsError, TrimError
    from .graph import create_trim_graph
    from .process import __version__
    from .settings import Settings, TrimContext
    from .shadow.runner import Shadow
    from .state import Step, Summary, TrimInput, TrimOutput, TrimState
    from .storage.checkpoint import open_checkpointer

__all__ = [
    "DEFAULT_INSTRUCTION",
    "Budget",
    "ChatModelContractError",
    "InputError",
    "ModelPrice",
    "Prices",
    "Quota",
    "Quotas",
    "ScorableStep",
    "Scorer",
    "ScorerError",
    "ScorerFunction",
    "ScorerReply",
    "Settings",
    "SettingsError",
    "Shadow",
    "Step",
    "Summary",
    "TrimChatModel",
    "TrimContext",
    "TrimError",
    "TrimInput",
    "TrimOutput",
    "TrimState",
    "__version__",
    "create_trim_chat_model",
    "create_trim_graph",
    "open_checkpointer",
    "open_ledger",
    "trim_node",
]

_HOMES = {
    "Quota": "budget",
    "Quotas": "budget",
    "ScorableStep": "adapters.base",
    "Scorer": "adapters.base",
    "ScorerFunction": "adapters.base",
    "ScorerReply": "adapters.base",
    "Budget": "budget",
    "ModelPrice": "budget",
    "Prices": "budget",
    "TrimChatModel": "chat_model",
    "create_trim_chat_model": "chat_model",
    "open_checkpointer": "storage.checkpoint",
    "open_ledger": "budget.ledger",
    "trim_node": "embedding",
    "ChatModelContractError": "errors",
    "InputError": "errors",
    "ScorerError": "errors",
    "SettingsError": "errors",
    "TrimError": "errors",
    "create_trim_graph": "graph",
    "DEFAULT_INSTRUCTION": "conversation",
    "__version__": "process",
    "Settings": "settings",
    "TrimContext": "settings",
    "Shadow": "shadow.runner",
    "Step": "state",
    "Summary": "state",
    "TrimInput": "state",
    "TrimOutput": "state",
    "TrimState": "state",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
