import re
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trim_graph import SettingsError, __version__
from trim_graph.errors import GraderError
from trim_graph.evaluation import Question
from trim_graph.evaluation.graders import (
    GRADERS,
    exact,
    find_grader,
    grader_identity,
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
def test_math_accepts_equal_answers_and_rejects_others(expected, right, wrong, thread):
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


def test_a_function_of_the_user_is_a_grader(tmp_path, monkeypatch):
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


@pytest.mark.parametrize("value", ["right", "", 0.5, 1, 0, None, [True], np.float64(1)])
def test_what_is_no_verdict_is_refused(value):
    question = Question("2+2?", lambda text: value, id="q7", grader="mine:grade")
    with pytest.raises(GraderError, match=r"^grader mine:grade, question q7: it returned .*True or False"):
        question.is_right("4")


@pytest.mark.parametrize("value", [True, False, np.True_, np.False_])
def test_both_verdicts_of_python_and_numpy(value):
    verdict = Question("2+2?", lambda text: value).is_right("4")
    assert verdict is bool(value)


def test_an_error_of_a_grader_names_grader_and_question():
    question = Question("2+2?", lambda text: 1 / 0, id="q7", grader="mine:grade")
    expected = "^grader mine:grade, question q7: ZeroDivisionError: division by zero$"
    with pytest.raises(GraderError, match=expected):
        question.is_right("4")


def test_an_asynchronous_grader_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "async_graders.py").write_text(
        "async def f(solution, row):\n    return True\n"
        "class G:\n    async def __call__(self, solution, row):\n        return True\n"
        "g = G()\n"
    )
    for name in ("f", "g"):
        with pytest.raises(SettingsError, match=f"'async_graders:{name}' is an async def"):
            find_grader(f"async_graders:{name}")


def test_a_grader_is_another_one_when_its_source_is(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    source = tmp_path / "graders_of_mine.py"
    source.write_text("def f(solution, row):\n    return True\n")
    (tmp_path / "named_elsewhere.py").write_text("from graders_of_mine import f\n")
    names = ("graders_of_mine:f", "named_elsewhere:f")
    before = [grader_identity(name) for name in names]
    assert [one["name"] for one in before] == list(names)
    source.write_text("def f(solution, row):\n    return False\n")
    assert not any(one == other for one, other in zip(before, map(grader_identity, names), strict=True))
    assert grader_identity("numeric") == {"name": "numeric", "version": __version__}


@pytest.mark.parametrize("name", ["maths", "no_such_module:f"])
def test_a_grader_that_is_not_known_is_refused(name):
    with pytest.raises(SettingsError, match=f"grader '{name}'"):
        find_grader(name)
