"""Tests of the check whether the example models can read a question."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph import InputError
from trim_graph.examples.arithmetic import problems
from trim_graph.examples.arithmetic.readable import CHAIN_EXAMPLE, WORDS_EXAMPLE, read_problem


@pytest.mark.parametrize("split", ["standard", "hard", "words"])
@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_whatever_is_drawn_is_readable(split, part):
    for problem in problems(split, 100, part=part, seed=5):
        assert read_problem(problem.question) == problem.question


@pytest.mark.parametrize("example", [CHAIN_EXAMPLE, WORDS_EXAMPLE])
def test_the_examples_are_readable_however_they_are_spaced(example):
    assert read_problem(f"\n {example.replace(' ', '  ')}\t") == example


RULE, END = "Always keep only the last two digits.", "What is the result?"


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ("What is 2 + 2?", "'What is 2 + 2?' belongs to none of their stories"),
        ("Tom owns 23 apples.", "'Tom owns 23 apples.' belongs to none"),
        ("Tom has 23 marbles. How many marbles does Tom have now?", "at least two facts"),
        (WORDS_EXAMPLE.replace("Mia", "Alice"), "'Tom gives 15 apples to Alice.'"),
        (WORDS_EXAMPLE.replace("apples", "houses"), "belongs to none"),
        (f"Open with 34. Step 1: add 12. {RULE} {END}", "a chain opens as"),
        (f"Start with 34. Step 1: add 12. {RULE} What now?", "a chain ends as"),
        (
            f"Start with 34. Step 1: add 12. {END}",
            "the rule 'Always keep only the last two digits.' is missing",
        ),
        (f"Start with 34. Step 2: add 12. {RULE} {END}", "'Step 2: add 12.' stands where 'Step 1: ...'"),
        (f"Start with 34. Add 12. Step 2: add 1. {RULE} {END}", "'Add 12.' stands where 'Step 1: ...'"),
        (f"Start with 34. Step 1: cube it. {RULE} {END}", "'Step 1: cube it.' is not an operation they know"),
        (f"Start with 340. Step 1: add 1. {RULE} {END}", "a chain opens as"),
        (f"Start with 34. {' '.join(f'Step {i}: add 1.' for i in range(1, 14))} {RULE} {END}", "13 steps"),
        ("Step 1: add", "a chain opens as"),
        *(
            (
                f"Start with 34. {' '.join(f'Step {i}: add 9.' for i in range(1, n + 1))} {RULE} {END}",
                f"it has {n} step{'s' * (n > 1)}; they were trained on chains of 4 to 12 steps",
            )
            for n in (1, 2, 3)
        ),
        (
            "Tom has 23 apples. Tom gives 15 apples to Mia. How many apples does Tom have now?",
            "it takes one calculation; they were trained on stories of two to four",
        ),
    ],
)
def test_what_is_wrong_is_said(problem, said):
    with pytest.raises(InputError) as caught:
        read_problem(problem)
    first = str(caught.value).splitlines()[0]
    assert said in first
    assert CHAIN_EXAMPLE in str(caught.value)
    assert WORDS_EXAMPLE in str(caught.value)


@given(st.text(max_size=80))
def test_any_other_text_is_refused(text):
    with pytest.raises(InputError):
        read_problem(text)
