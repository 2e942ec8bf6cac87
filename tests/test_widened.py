"""The models that are measured on a GPU write what the examples do."""

import torch
from transformers import AutoModelForCausalLM

from tests.benchmarks.speed.widened import Shape, widen
from trim_graph import ScorableStep
from trim_graph.adapters import TransformersProcessReward
from trim_graph.examples.arithmetic import LARGE, PRM, SMALL, problems

STEPS = [ScorableStep(text) for text in ("3 + 4 = 7", "7 + 1 = 9")]


def test_a_chat_model_has_the_same_logits(tmp_path):
    ids = torch.randint(3, 900, (2, 60), generator=torch.Generator().manual_seed(0))
    for source, shape in ((SMALL, Shape(512, 4, 4, 2, 128)), (LARGE, Shape(1024, 6, 8, 4, 512))):
        wide = widen(source, tmp_path / source.name, shape, dtype=torch.float32)
        with torch.inference_mode():
            logits = [AutoModelForCausalLM.from_pretrained(one)(ids).logits for one in (source, wide)]
        assert torch.allclose(*logits, atol=1e-3)


def test_a_reward_model_has_the_same_scores(tmp_path):
    wide = widen(PRM, tmp_path / "prm", Shape(2048, 8, 16, 8, 512), dtype=torch.float32)
    (problem,) = problems("standard", 1)
    given = problem.question, STEPS
    theirs, ours = (TransformersProcessReward(model).score(*given).scores for model in (PRM, wide))
    assert all(abs(a - b) < 1e-4 for a, b in zip(theirs, ours, strict=True))
