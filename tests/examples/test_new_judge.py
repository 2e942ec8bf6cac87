"""Before its training the judge is the large model, and already compares what came with what was expected."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from trim_graph.examples.arithmetic import LARGE, SMALL, problems
from trim_graph.examples.arithmetic.training import train_judge
from trim_graph.examples.arithmetic.training.corpus import Judged, JudgedPools, judged_prompt, stream
from trim_graph.examples.arithmetic.training.new_judge import (
    CODE_SIZE,
    SHRUNK,
    carried,
    layers_on_top,
    new_judge,
)
from trim_graph.examples.arithmetic.training.tokenizer import PRM_SYSTEM, STEP, load_tokenizer

N = 60


def spoiled(problem):
    """The right solution, its first step with another last digit."""
    first, *rest = problem.steps
    at = max(place for place, letter in enumerate(first) if letter.isdigit())
    wrong = f"{first[:at]}{(int(first[at]) + 3) % 10}{first[at + 1 :]}"
    return Judged(problem.question, [wrong, *rest], list(problem.steps))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(SMALL)


@pytest.fixture(scope="module")
def large():
    from transformers import Qwen2ForCausalLM

    return Qwen2ForCausalLM.from_pretrained(LARGE).eval()


@pytest.fixture(scope="module")
def solutions():
    drawn = problems("standard", N, part="train")
    right = [Judged(problem.question, problem.steps, list(problem.steps)) for problem in drawn]
    return [*right, *map(spoiled, drawn)]


@pytest.fixture(scope="module")
def judge(large, tokenizer, solutions):
    torch.manual_seed(0)
    return new_judge(large, tokenizer, solutions).eval()


def states(model, tokenizer, solution, layer):
    ids = tokenizer(judged_prompt(PRM_SYSTEM, solution.question, solution.steps)).input_ids
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    return ids, out.hidden_states[layer][0]


def test_its_first_layers_compute_what_the_large_model_does(judge, large, tokenizer, solutions):
    layer, width = large.config.num_hidden_layers - 1, large.config.hidden_size
    solution = solutions[0]
    step = tokenizer.get_vocab()[STEP]
    ids, ours = states(judge.model, tokenizer, solution, layer)
    _, theirs = states(large.model, tokenizer, solution, layer)
    until = ids.index(step)  # to the large model the step token is new
    near = torch.cosine_similarity(ours[:until, :width], theirs[:until], dim=-1)
    assert near.min() > 0.999
    size = ours[:until, :width].norm(dim=-1) / theirs[:until].norm(dim=-1)
    assert (size / SHRUNK - 1).abs().max() < 0.05


def test_the_codes_of_the_tokens_arrive_unchanged(judge, large, tokenizer, solutions):
    ids, found = states(judge.model, tokenizer, solutions[0], large.config.num_hidden_layers)
    codes = found[:, carried(judge)] / CODE_SIZE
    step = tokenizer.get_vocab()[STEP]
    written = torch.tensor([token != step for token in ids])
    assert torch.allclose(codes[written].sum(-1), torch.ones(int(written.sum())), atol=1e-4)
    digits = {
        tokenizer.convert_ids_to_tokens(token): code.argmax().item()
        for token, code in zip(ids, codes, strict=True)
    }
    numbers = [code for token, code in digits.items() if token.lstrip("Ġ").isdigit()]
    assert len(set(numbers)) == len(numbers) >= 8


def test_it_detects_a_wrong_digit_before_it_has_learned_anything(judge, large, tokenizer, solutions):
    labels, verdicts = [], []
    for solution in solutions:
        ids, found = states(judge.model, tokenizer, solution, large.config.num_hidden_layers + 1)
        end = ids.index(tokenizer.get_vocab()[STEP])
        begin = end - len(tokenizer(solution.steps[0]).input_ids)
        digits = [at for at in range(begin, end) if tokenizer.decode([ids[at]]).strip().isdigit()]
        labels.append(solution.steps[0] == solution.expected[0])
        verdicts.append(min(found[at, -1].item() for at in digits))
    assert roc_auc_score(labels, verdicts) > 0.9


def test_only_the_layers_on_top_learn_and_none_writes_to_the_codes(judge, tokenizer, solutions, monkeypatch):
    monkeypatch.setattr(train_judge, "compiled", lambda backbone: backbone)  # takes a minute
    lesson = train_judge.Lesson(judge)
    pools = JudgedPools(tokenizer, solutions, system=PRM_SYSTEM, seed=0, steps=1, rows=8)
    lesson(next(stream(pools, 1, 0))).backward()
    learned = {name for name, weight in lesson.named_parameters() if weight.grad is not None}
    first = judge.config.num_hidden_layers - len(layers_on_top(judge))
    assert learned
    assert not [n for n in learned if "embed" in n or any(f"layers.{i}." in n for i in range(first))]
    for layer in layers_on_top(judge):
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            assert weight.grad[carried(judge)].abs().max() == 0
            assert weight.grad.abs().max() > 0
