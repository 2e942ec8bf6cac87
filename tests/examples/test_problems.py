import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.examples.arithmetic import draw_problem, is_right, label_steps, part_of, problems
from trim_graph.examples.arithmetic.chains import LENGTHS
from trim_graph.examples.arithmetic.problems import (
    Operation,
    expected_step,
    extract_boxed,
    render,
    stated_result,
)
from trim_graph.examples.arithmetic.training.corpus import Mixture, draw_training_problem

SPLITS = ("standard", "hard", "words")


@pytest.mark.parametrize("split", SPLITS)
def test_solutions_are_right_by_their_own_check(split):
    for problem in problems(split, 200):
        assert all(label_steps(problem, problem.steps))
        assert is_right(problem, problem.solution)
        assert problem.steps[-1] == f"The answer is \\boxed{{{problem.answer}}}."


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_arguments_draw_the_same_different_problems(split):
    first = problems(split, 50, seed=3)
    assert first == problems(split, 50, seed=3)
    assert first != problems(split, 50, seed=4)
    assert len({problem.question for problem in first}) == 50


@pytest.mark.parametrize("split", SPLITS)
def test_parts_share_no_combination(split):
    parts = {
        part: {problem.combination for problem in problems(split, 300, part=part)}
        for part in ("train", "validation", "test")
    }
    assert not parts["train"] & parts["validation"]
    assert not parts["train"] & parts["test"]
    assert not parts["validation"] & parts["test"]


def test_training_draws_only_the_training_part_and_both_families():
    rng = random.Random(0)
    drawn = [
        draw_training_problem(rng, Mixture(), progress) for progress in (0.0, 0.2, 1.0) for _ in range(300)
    ]
    assert {part_of(problem.combination) for problem in drawn} == {"train"}
    assert {problem.split for problem in drawn} == set(SPLITS)


def test_held_out_words_combine_known_stories_with_objects_never_seen_in_them():
    held_out = {p.combination for p in problems("words", 300)}
    rng = random.Random(1)
    seen = {draw_problem(rng, "words", "train").combination for _ in range(3000)}
    assert not held_out & seen
    stories = {combination.split(" of ", 1)[0] for combination in seen}
    assert {combination.split(" of ", 1)[0] for combination in held_out} <= stories


@pytest.mark.parametrize("split", ["standard", "hard"])
def test_chains_have_the_lengths_of_their_split_and_stay_below_100(split):
    shortest, longest = LENGTHS[split]
    for problem in problems(split, 200):
        assert shortest <= len(problem.operations) <= longest
        assert all(0 <= (stated_result(step) or 0) < 100 for step in problem.steps[:-1])


def test_a_step_that_carries_on_from_a_mistake_is_right_but_the_solution_is_lost():
    problem = next(p for p in problems("standard", 50) if p.operations[1].kind == "add")
    steps = list(problem.steps)
    first = stated_result(steps[0])
    steps[0] = steps[0].replace(f"= {first}.", f"= {first + 1}.")
    second = expected_step(problem, steps[:1])
    assert label_steps(problem, [steps[0], second])[1]
    assert second != problem.steps[1]


@pytest.mark.parametrize("split", SPLITS)
@given(data=st.data())
def test_any_changed_digit_is_a_wrong_step(split, data):
    problem = data.draw(st.sampled_from(problems(split, 20)))
    index = data.draw(st.integers(0, len(problem.steps) - 1))
    step = problem.steps[index]
    places = [i for i, character in enumerate(step) if character.isdigit()]
    place = data.draw(st.sampled_from(places))
    digit = data.draw(st.sampled_from([d for d in "0123456789" if d != step[place]]))
    changed = step[:place] + digit + step[place + 1 :]
    assert label_steps(problem, [*problem.steps[:index], changed])[index] is False


@given(st.text(max_size=60))
def test_any_text_may_stand_before_a_step(text):
    problem = problems("standard", 1)[0]
    assert len(label_steps(problem, [text, text, text])) == 3


@pytest.mark.parametrize(
    ("kind", "left", "right"), [("subtract", 12, 15), ("divide", 34, 3), ("divide", 4, 0)]
)
def test_an_impossible_calculation_has_no_right_step(kind, left, right):
    assert render(Operation(kind, left, right, lead=""), left, right) is None


def test_the_last_box_counts():
    assert extract_boxed("\\boxed{1} no, \\boxed{2}") == "2"
    assert extract_boxed("none") is None
