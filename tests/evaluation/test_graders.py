import re
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trim_graph import SettingsError
from trim_graph.evaluation.graders import (
    GRADERS,
    exact,
    find_grader,
    math,
    numeric,
)


def test_exact_looks_at_the_last_boxed_answer_only():
    grade = exact("a  b")
    assert grade("\\boxed{c} no, \\boxed{a b}")
    assert not grade("\\boxed{a b} no, \\boxed{c}")
    assert not grade("a b")


@given(st.text(max_size=60))
def test_any_text_is_graded(text):
    for name, expected in (("numeric", "3"), ("multiple_choice", "C"), ("exact", "x")):
        assert GRADERS[name](expected, {})(text) in (True, False)
        assert GRADERS[name](expected, {})(f"\\boxed{{{text}}}") in (True, False)


@given(
    st.lists(
        st.sampled_from(["5", "x", "_", "{", "}", "(", ")", "\\frac", "\\sqrt", "$", "=", ",", "@"]),
        max_size=12,
    )
)
@settings(max_examples=60, deadline=None)
def test_any_text_is_graded_as_mathematics(pieces):
    text = "".join(pieces)
    grade = math("5")
    assert grade(f"\\boxed{{{text}}}") in (True, False)
    assert not grade(text)


@pytest.mark.parametrize(
    "text", ["so it is 5.", "x @@ 5", "junk # 5", "\\begin{foo} 5", "\\left\\{ 5 \\right\\} @"]
)
def test_mathematics_among_other_things_is_none(text):
    assert not math("5")(f"\\boxed{{{text}}}")
    assert math(text)(f"\\boxed{{{text}}}")


def test_two_whole_numbers_are_one_only_if_they_are_the_same():
    assert not numeric("1575000")("\\boxed{1575001}")
    assert numeric("1575000")("\\boxed{1575000.00}")
    assert numeric("1/3")("\\boxed{0.333333}")
    assert not numeric("1/3")("\\boxed{0.33333}")


def test_one_of_several_numbers_is_enough_where_all_are_accepted():
    grade = numeric("080 or 081 (both were accepted)")
    assert grade("\\boxed{080}")
    assert grade("\\boxed{81}")
    assert not grade("\\boxed{82}")
    assert not grade("\\boxed{80 or 81}")


def test_an_expected_answer_that_will_not_do():
    for expected in ("some", "", "\\sqrt{5}", "(3, 4)", "100 - 7", "3 or x", "80 (perhaps)"):
        with pytest.raises(ValueError, match=rf"{re.escape(repr(expected))} is no number"):
            numeric(expected)
    for grader in (exact, math):
        for expected in ("\\left\\{ 3 \\right.", "}{", "\\boxed{3}"):
            with pytest.raises(ValueError, match="fits no box"):
                grader(expected)


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
