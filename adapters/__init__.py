"""Chat models and scorers for trim-graph, and the protocols that others can implement.

Importing this package loads neither torch nor transformers; an adapter imports what it needs when it is
first used. Models in this process need ``pip install "trim-graph[local]"``, models behind a vLLM server
``pip install "trim-graph[vllm]"``, and on a vLLM engine in this process ``pip install
"trim-graph[vllm-engine]"``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trim_graph.errors import (
    ChatModelContractError,
    ContextLengthError,
    ModelServerError,
    ScorerError,
    TrimError,
)

from .base import ScorableStep, Scorer, ScorerFunction, ScorerReply, StepEnd

if TYPE_CHECKING:
    from .minimum import MinimumScorer
    from .prm.scores import serve_options
    from .prompted.chat import ContinueByPrompt
    from .prompted.judge import LLMJudge
    from .token_confidence import TokenProbability
    from .transformers.chat import ChatTransformers
    from .transformers.scorer import TransformersProcessReward
    from .turn_signals import TurnSignals
    from .vllm.chat import ChatVLLM
    from .vllm.engine_chat import ChatVLLMEngine
    from .vllm.engine_scorer import VLLMEngineProcessReward
    from .vllm.scorer import VLLMProcessReward

_LAZY = {
    "ChatTransformers": "transformers.chat",
    "ChatVLLM": "vllm.chat",
    "ChatVLLMEngine": "vllm.engine_chat",
    "ContinueByPrompt": "prompted.chat",
    "LLMJudge": "prompted.judge",
    "MinimumScorer": "minimum",
    "TokenProbability": "token_confidence",
    "TransformersProcessReward": "transformers.scorer",
    "TurnSignals": "turn_signals",
    "VLLMEngineProcessReward": "vllm.engine_scorer",
    "VLLMProcessReward": "vllm.scorer",
    "serve_options": "prm.scores",
}

__all__ = [
    "ChatModelContractError",
    "ChatTransformers",
    "ChatVLLM",
    "ChatVLLMEngine",
    "ContextLengthError",
    "ContinueByPrompt",
    "LLMJudge",
    "MinimumScorer",
    "ModelServerError",
    "ScorableStep",
    "Scorer",
    "ScorerError",
    "ScorerFunction",
    "ScorerReply",
    "StepEnd",
    "TokenProbability",
    "TransformersProcessReward",
    "TrimError",
    "TurnSignals",
    "VLLMEngineProcessReward",
    "VLLMProcessReward",
    "serve_options",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
