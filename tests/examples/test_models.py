"""The shipped models keep what their card promises; floors with a margin for the smaller sample."""

import pytest

from trim_graph.adapters import ChatTransformers
from trim_graph.examples.arithmetic import LARGE, PRM, SMALL, WEIGHTS, problems
from trim_graph.examples.arithmetic.training.evaluate import (
    judge_metrics,
    judge_solutions,
    solver_metrics,
    write_solutions,
)
from trim_graph.examples.arithmetic.training.tokenizer import load_tokenizer

N = 300
SMALL_RANGE = {"standard": (0.30, 0.55), "hard": (0.05, 0.50), "words": (0.05, 0.50)}
LARGE_FLOOR = {"standard": 0.95, "hard": 0.85, "words": 0.85}
MARGIN = 0.04
AUC_FLOOR, WITHIN_KIND_FLOOR, AUC_MARGIN = 0.95, 0.85, 0.01


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(SMALL)


def solved(folder, tokenizer, split):
    from transformers import Qwen2ForCausalLM

    held_out = problems(split, N)
    return held_out, write_solutions(Qwen2ForCausalLM.from_pretrained(folder), tokenizer, held_out)


@pytest.fixture(scope="module", params=SMALL_RANGE)
def by_small(request, tokenizer):
    return request.param, *solved(SMALL, tokenizer, request.param)


def test_small_is_weak_but_not_hopeless(by_small):
    split, held_out, solutions = by_small
    low, high = SMALL_RANGE[split]
    assert low - MARGIN <= solver_metrics(held_out, solutions)["accuracy"] <= high + MARGIN


def judged(folder, tokenizer, held_out, solutions):
    import torch

    from trim_graph.adapters.prm.heads import load_prm

    judge = load_prm(str(folder), device=torch.device("cpu"), dtype="float32")
    return judge_metrics(held_out, solutions, judge_solutions(judge, tokenizer, held_out, solutions))


@pytest.fixture(scope="module")
def by_judge(by_small, tokenizer):
    """Metrics of the judge on the small model's solutions."""
    return judged(PRM, tokenizer, *by_small[1:])


def test_the_judge_spots_wrong_steps_also_within_one_kind(by_judge):
    assert by_judge["auc"] >= AUC_FLOOR - AUC_MARGIN
    assert by_judge["auc_within_kind"] >= WITHIN_KIND_FLOOR - AUC_MARGIN


def test_the_early_judge_is_worse_but_no_coin(by_small, by_judge, tokenizer):
    metrics = judged(WEIGHTS / "prm_early", tokenizer, *by_small[1:])
    assert 0.6 < metrics["auc"] < by_judge["auc"]


@pytest.mark.parametrize("split", LARGE_FLOOR)
def test_large_solves_nearly_everything(split, tokenizer):
    metrics = solver_metrics(*solved(LARGE, tokenizer, split))
    assert metrics["accuracy"] >= LARGE_FLOOR[split] - MARGIN


@pytest.mark.parametrize("folder", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    "text", ["Who was Ada Lovelace?", "x", "¿Qué hora es? 🙂", "def f(x):\n    return x", "<extra_0>" * 5]
)
def test_foreign_text_gets_some_answer(folder, text):
    answer = ChatTransformers(model=str(folder), max_tokens=64).invoke(text)
    assert answer.text.strip()


@pytest.mark.parametrize("split", ["standard", "words"])
def test_large_answers_the_last_of_several_turns_with_any_system_message(split):
    earlier, *asked = problems(split, 21, seed=7)
    large = ChatTransformers(model=str(LARGE), max_tokens=256)
    before = [
        ("system", "You are a helpful assistant."),
        ("user", earlier.question),
        ("ai", earlier.solution),
    ]
    answers = large.batch([[*before, ("user", problem.question)] for problem in asked])
    assert sum(a.text == p.solution for a, p in zip(answers, asked, strict=True)) >= 14


def test_the_weights_are_small_and_load_no_code():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja", ".md"}
