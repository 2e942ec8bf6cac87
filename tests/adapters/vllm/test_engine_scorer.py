"""Tests of `VLLMEngineProcessReward` without vLLM: refused settings, and the options of its engine."""

import pytest

from trim_graph.adapters import VLLMEngineProcessReward
from trim_graph.adapters.vllm.engine_scorer import pooling_options
from trim_graph.examples.arithmetic import PRM, SMALL


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"model": SMALL / "nothing"}, "no such folder"),
        ({"format": "other"}, "format='other' is not known"),
        ({"gpu_memory_utilization": 0}, r"gpu_memory_utilization\n.*greater than 0"),
        ({"kv_cache_gib": -1}, r"kv_cache_gib\n.*greater than 0"),
        ({"max_model_len": 0}, r"max_model_len\n.*greater than or equal to 1"),
    ],
)
def test_wrong_settings_of_a_reward_model(settings, match):
    with pytest.raises(ValueError, match=match):
        VLLMEngineProcessReward(**{"model": PRM, **settings})


def test_a_reward_models_options_are_those_of_the_server():
    from trim_graph.adapters.model_source import load_tokenizer

    tokenizer = load_tokenizer(str(PRM))
    step = tokenizer.convert_tokens_to_ids("<extra_0>")
    assert pooling_options("qwen", tokenizer, None) == {
        "pooler_config": {"pooling_type": "STEP", "step_tag_id": step}
    }
