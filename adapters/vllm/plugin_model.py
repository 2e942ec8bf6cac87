"""Model class for vLLM: Qwen2.5-Math-PRM, scored at the last token of an input. Imports vllm."""

from __future__ import annotations

from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler import DispatchPooler
from vllm.model_executor.models.interfaces_base import default_pooling_type
from vllm.model_executor.models.qwen2_rm import Qwen2RewardBaseModel


@default_pooling_type(seq_pooling_type="LAST", tok_pooling_type="ALL")
class TrimQwen2ForProcessReward(Qwen2RewardBaseModel):  # type: ignore[misc]
    """Backbone and two-layer head of vLLM's ``Qwen2ForProcessRewardModel`` with a pooler for ``classify``.

    vLLM's own class pools tokens, and for that reads no prefix from its cache. Weights, layout and numbers
    are the same.

    Args:
        vllm_config: Configuration of the engine.
        prefix: Prefix of the weights' names.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        vllm_config.model_config.hf_config.num_labels = 2
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.pooler = DispatchPooler.for_seq_cls(vllm_config.model_config.pooler_config)
