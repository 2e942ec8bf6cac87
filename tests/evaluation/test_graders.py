import sys
import threading
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph import SettingsError
from trim_graph.evaluation.graders import (
    GRADERS,
    exact,
    find_grader,
    math,
    multiple_choice,
    numeric,
    read_choice,
    read_number,
)


def test_exact_looks_at_the_last_boxed_answer_only():
    grade = exact("a  b")
    assert grade("\\boxed{c} no, \\boxed{a b}")
    assert not grade("\\boxed{a b} no, \\boxed{c}")
    assert not grade("a b")


WRITTEN = [
    "\\boxed{1200}",
    "\\boxed{1,200}",
    "\\boxed{\\$1{,}200.00}",
    "\\boxed{2400/2}",
    "in all it is 1,200.",
    "\\boxed{1.2e3}",
    "\\boxed{\\frac{2400}{2}}",
    "\\boxed{x = 1200}",
]


@pytest.mark.parametrize("solution", WRITTEN)
def test_a_number_may_be_written_in_many_ways(solution):
    assert numeric("1200")(solution)
    assert not numeric("1201")(solution)
    assert not numeric("-1200")(solution)


@pytest.mark.parametrize(
    "solution", ["", "none", "\\boxed{}", "\\boxed{x}", "\\boxed{1/0}", "\\boxed{1e999999}"]
)
def test_no_number_is_wrong(solution):
    assert not numeric("0")(solution)


@given(st.text(max_size=60))
def test_any_text_is_read_or_not(text):
    for name, expected in (("numeric", "3"), ("multiple_choice", "C"), ("exact", "x")):
        assert GRADERS[name](expected, {})(text) in (True, False)
        assert GRADERS[name](expected, {})(f"\\boxed{{{text}}}") in (True, False)


@given(st.integers(-(10**9), 10**9), st.booleans())
def test_a_whole_number_is_read(number, grouped):
    assert read_number(f"so it is {number:,}" if grouped else f"so it is {number}.") == number


@given(st.integers(-999, 999), st.integers(1, 99))
def test_a_fraction_is_read(above, below):
    assert (
        read_number(f"{above}/{below}")
        == read_number(f"\\frac{{{above}}}{{{below}}}")
        == Fraction(above, below)
    )
    assert read_number(f"x = -\\frac{{{above}}}{{{below}}}") == Fraction(-above, below)


@given(st.lists(st.text("1/. ,-e", max_size=4), max_size=6).map("".join))
def test_what_looks_like_numbers_is_read_or_not(text):
    assert numeric("3")(f"\\boxed{{{text}}}") in (True, False)


@pytest.mark.parametrize(
    ("text", "number"), [("5/12/2024", 2024), ("1/2/3", 3), ("-.5", Fraction(-1, 2)), ("it is 1.", 1)]
)
def test_the_last_number_is_read(text, number):
    assert read_number(text) == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("\\boxed{B}", "B"),
        ("\\boxed{\\text{(C)}}", "C"),
        ("\\boxed{D. 14}", "D"),
        ("\\boxed{Apples}", None),
        ("(A) is tempting, but the answer is **(B)**.", "B"),
        ("Answer: c", "C"),
        ("so (D)", "D"),
        ("The answer is a triangle, so (C).", "C"),
        ("The answer is I believe (B)", "B"),
        ("A man walks", None),
        ("", None),
    ],
)
def test_choices(text, letter):
    assert read_choice(text) == letter
    if letter:
        assert multiple_choice(f"({letter.lower()})")(text)


def test_an_expected_answer_that_will_not_do():
    with pytest.raises(ValueError, match="'Z' is no letter"):
        multiple_choice("Z")
    with pytest.raises(ValueError, match="'some' is no number"):
        numeric("some")


@pytest.mark.parametrize(
    ("expected", "right", "wrong"),
    [
        ("\\frac{1}{2}", "0.5", "0.6"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\pi/2)", "(3, \\pi)"),
        ("x^2+2x+1", "(x+1)^2", "(x-1)^2"),
        ("\\{1,2\\}", "\\{2,1\\}", "\\{1,3\\}"),
    ],
)
@pytest.mark.parametrize("thread", [False, True])
def test_mathematical_equality(expected, right, wrong, thread):
    grades = []

    def check():
        grade = math(expected)
        grades.extend(grade(text) for text in (f"\\boxed{{{right}}}", f"\\boxed{{{wrong}}}", right))

    if thread:  # where no alarm can be set
        worker = threading.Thread(target=check)
        worker.start()
        worker.join()
    else:
        check()
    assert grades == [True, False, False]


def test_ones_own_function(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", ".")])
    (tmp_path / "my_graders.py").write_text(
        "def longer(solution, row):\n    return len(solution) > row['least']\nx = 1\n"
    )
    grade = find_grader("my_graders:longer")("", {"least": 3})
    assert grade("four") is True
    assert grade("two") is False
    with pytest.raises(SettingsError, match="is no function"):
        find_grader("my_graders:x")
    with pytest.raises(SettingsError, match="cannot be imported"):
        find_grader("my_graders:y")


@pytest.mark.parametrize("name", ["maths", "no_such_module:f"])
def test_an_unknown_grader(name):
    with pytest.raises(SettingsError, match=f"grader '{name}'"):
        find_grader(name)
