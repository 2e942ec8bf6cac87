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

from .protocols import ScorableStep, Scorer, ScorerFunction, ScorerReply, StepEnd

if TYPE_CHECKING:
    from .chat_transformers import ChatTransformers
    from .chat_vllm import ChatVLLM
    from .chat_vllm_engine import ChatVLLMEngine
    from .continue_by_prompt import ContinueByPrompt
    from .llm_judge import LLMJudge
    from .prm_serving import serve_options
    from .process_reward_transformers import TransformersProcessReward
    from .process_reward_vllm import VLLMProcessReward
    from .process_reward_vllm_engine import VLLMEngineProcessReward
    from .token_probability import TokenProbability

_LAZY = {
    "ChatTransformers": "chat_transformers",
    "ChatVLLM": "chat_vllm",
    "ChatVLLMEngine": "chat_vllm_engine",
    "ContinueByPrompt": "continue_by_prompt",
    "LLMJudge": "llm_judge",
    "TokenProbability": "token_probability",
    "TransformersProcessReward": "process_reward_transformers",
    "VLLMEngineProcessReward": "process_reward_vllm_engine",
    "VLLMProcessReward": "process_reward_vllm",
    "serve_options": "prm_serving",
}

__all__ = [
    "ChatModelContractError",
    "ChatTransformers",
    "ChatVLLM",
    "ChatVLLMEngine",
    "ContextLengthError",
    "ContinueByPrompt",
    "LLMJudge",
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
