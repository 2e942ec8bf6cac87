"""What the trainings read: the prompts, and where a loss is taken."""

import pytest

from trim_graph.examples.arithmetic import SMALL, problems
from trim_graph.examples.arithmetic.problems import expected_step
from trim_graph.examples.arithmetic.training.corpus import (
    SO_FAR,
    Judged,
    JudgedPools,
    LanguagePools,
    Mixture,
    chat_prompt,
    stream,
)
from trim_graph.examples.arithmetic.training.tokenizer import PRM_SYSTEM, STEP, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(SMALL)


def one_row(tokenizer, problem, steps):
    expected = [expected_step(problem, steps[:index]) for index in range(len(steps))]
    pools = JudgedPools(
        tokenizer, [Judged(problem.question, steps, expected)], system=PRM_SYSTEM, seed=0, steps=8, rows=1
    )
    batch = pools[0][0]
    return batch.ids[0].tolist(), batch.targets[0].tolist()


def classes_by_step(tokenizer, ids, targets):
    """For each step: its text, the classes inside it, the verdict behind it."""
    step = tokenizer.convert_tokens_to_ids(STEP)
    found, tokens, inside = [], [], []
    for token, target in zip(ids, targets, strict=True):
        if token == step:
            found.append((tokenizer.decode(tokens), inside, target))
            tokens, inside = [], []
        elif target != -100:
            tokens.append(token)
            inside.append(target - SO_FAR)
    return found


@pytest.mark.parametrize("split", ["standard", "words"])
def test_every_step_has_its_verdict_and_every_token_what_is_right_so_far(tokenizer, split):
    for problem in problems(split, 20, part="train"):
        steps = list(problem.steps)
        number = steps[1].rindex(" ") if split == "standard" else steps[1].index("= ") + 1
        steps[1] = f"{steps[1][:number]} 777{steps[1][number:]}"
        found = classes_by_step(tokenizer, *one_row(tokenizer, problem, steps))
        assert [text for text, _, _ in found] == steps
        assert [verdict for _, _, verdict in found][:2] == [1, 0]
        assert all(right == 1 for right in found[0][1])
        wrong = found[1][1]
        assert wrong == sorted(wrong, reverse=True)
        assert wrong[0] == 1
        assert wrong[-1] == 0


def test_after_the_end_nothing_is_right(tokenizer):
    (problem,) = problems("standard", 1, part="train")
    found = classes_by_step(tokenizer, *one_row(tokenizer, problem, [*problem.steps, "Step 9: 1 + 1 = 2."]))
    assert set(found[-1][1]) == {0}
    assert found[-1][2] == 0


def test_the_prompt_written_by_hand_is_the_template_s(tokenizer):
    turns = [("system", "Be brief.\n"), ("user", " 1 + 1? "), ("assistant", "2"), ("user", "x\n\ny")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert chat_prompt(turns) == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


def test_batches_are_the_same_for_the_same_seed_and_the_loss_is_on_answers(tokenizer):
    def batches(seed):
        pools = LanguagePools(tokenizer, seed=seed, steps=3, rows=4, mixture=Mixture(earlier_turns=0.5))
        return list(stream(pools, 3, workers=0))

    first, again, other = batches(1), batches(1), batches(2)
    assert [b.ids.tolist() for b in first] == [b.ids.tolist() for b in again]
    assert [b.ids.tolist() for b in first] != [b.ids.tolist() for b in other]
    end = tokenizer.eos_token_id
    for batch in first:
        for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True):
            learned = [target for target in targets if target != -100]
            assert learned[-1] == end
            assert end not in learned[:-1]
            start = targets.index(learned[0])
            assert tokenizer.decode(ids[: start + 1]).endswith("<|im_start|>assistant\n")
            assert ids[start + 1 : start + len(learned)] == learned[:-1]
