"""Tests of graders: their verdicts, and the numbers and choices that they read out of any text."""

import re
import sys
import threading
import time
from fractions import Fraction

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
    find_number,
    grader_identity,
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


# `read_choice`: the letter of a multiple-choice answer


LETTERS = "ABCDEFGHIJ"


EITHER_CASE = [
    "\\boxed{%s}",
    "\\boxed{(%s)}",
    "\\boxed{\\text{%s}}",
    "\\boxed{\\text{(%s)}}",
    "\\boxed{\\textbf{(%s)}}",
    "\\boxed{\\textbf{(%s)}~14}",
    "\\boxed{\\mathrm{%s}}",
    "\\boxed{$%s$}",
    "\\boxed{**%s**}",
    "\\boxed{%s. 14}",
    "\\boxed{%s) a triangle}",
    "\\boxed{(%s) 14}",
    "\\boxed{\\text{Option %s}}",
    "\\boxed{Answer: %s}",
    "Answer: %s",
    "**Answer: %s**",
    "**Answer:** %s",
    "Answer:\n\n%s\n\nThis is so.",
    "Answer: %s) 14",
    "the answer is %s.",
    "The answer is (%s) 14.",
    "The answer is **(%s)**.",
    "The answer is \\(\\text{(%s)}\\).",
    "The answer is $\\textbf{%s}$.",
    "The answer is %s because it fits.",
    "The answer is option %s, since it fits.",
    "The best answer is choice %s.",
    "The answer must be %s",
    "Final choice: %s",
    "The correct option is %s.",
    "Option %s is correct.",
    "**%s** is the right one",
    "(%s) is correct, (C) is not.",
    "So it must be option %s.",
    "So the choice is %s.",
    "so (%s)",
]


CAPITALS = ["%s", "**%s**", "%s.", "%s)", "Therefore, %s", "I choose %s.", "I would go with %s, as it fits."]


NONE = [
    "%s man walks",
    "I know %s man",
    "\\boxed{%spples}",
    "\\boxed{%s^2}",
    "\\boxed{2%s}",
    "\\boxed{%s = 5}",
    "\\boxed{%s + 1}",
    "\\boxed{%s, C}",
    "\\boxed{%s or C}",
    "\\boxed{(%s) and (C)}",
    "The answer is %s triangle",
    "The answer is not (%s).",
    "The answer isn't %s.",
    "The answer can\u2019t be %s.",
    "The answer cannot be %s.",
    "Either %s or C.",
    "f(%s) is large",
]


@pytest.mark.parametrize("letter", LETTERS)
def test_every_letter_is_read_where_any_is(letter):
    for text in EITHER_CASE:
        assert read_choice(text % letter) == read_choice(text % letter.lower()) == letter, text
    for text in CAPITALS:
        assert read_choice(text % letter) == letter, text
    for text in NONE:
        assert read_choice(text % letter) is None, text
        assert read_choice(text % letter.lower()) is None, text


PHRASES = [
    "The answer is",
    "Answer:",
    "Final choice:",
    "option",
    "is correct.",
    ".",
    ",",
    "or",
    "not",
    "because",
]


PHRASES += ["\n", "**", "\\boxed{", "}", "\\text{", "5", "triangle", "I choose"]


LETTERS_OR_NOT = st.sampled_from([*LETTERS, *LETTERS.lower(), *(f"({letter})" for letter in LETTERS)])


@given(
    st.lists(st.tuples(st.sampled_from(PHRASES), LETTERS_OR_NOT | st.just("")), max_size=6),
    st.sampled_from([".", "", " is correct", ", since"]),
    st.permutations(LETTERS),
)
def test_no_letter_is_read_better_than_another(pairs, end, order):
    """Of a text with its letters exchanged the exchanged letter is read."""
    places = dict(zip(LETTERS, order, strict=True))
    exchanged = str.maketrans(places | {letter.lower(): other.lower() for letter, other in places.items()})
    text = " ".join(f"{phrase} {letter}" for phrase, letter in pairs) + end
    other = " ".join(f"{phrase} {letter.translate(exchanged)}" for phrase, letter in pairs) + end
    chosen = read_choice(text)
    assert read_choice(other) == (chosen and places[chosen])


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(A) is tempting, but the answer is **(B)**.", "B"),
        ("Option A is wrong, option B is correct.", "B"),
        ("The answer is a triangle, so (C).", "C"),
        ("The answer is I believe (B)", "B"),
        ("I think it is D.", "D"),
        ("It is B, not A.", "B"),
        ("It isn't A, it's C.", "C"),
        ("It is 'B'.", "B"),
        ("The answer is \u2018(B)\u2019, don't ask why", "B"),
        ("\\boxed{A} is wrong: \\boxed{B}", "B"),
        ("The answer is (A): \\boxed{none}", None),
        ("\\boxed{K}", None),
        ("", None),
    ],
)
def test_the_choice_is_distinguished_from_other_letters(text, letter):
    assert read_choice(text) == letter


@pytest.mark.parametrize("expected", ["b", "(B)", "B.", "\\text{(B)}", "B) 14"])
def test_the_expected_letter_may_be_written_in_many_ways(expected):
    assert multiple_choice(expected)("Answer: b")
    assert not multiple_choice(expected)("Answer: a")


@pytest.mark.parametrize("expected", ["Z", "", "2", "A, B", "AB", "a man"])
def test_what_is_no_letter_is_refused(expected):
    with pytest.raises(ValueError, match="is no letter from A to J"):
        multiple_choice(expected)


@given(st.text(max_size=60))
def test_any_text_is_read_as_a_choice_or_not(text):
    for solution in (text, f"\\boxed{{{text}}}", f"The answer is {text}"):
        assert multiple_choice("C")(solution) in (True, False)


@pytest.mark.parametrize(
    "piece",
    ["A ", " ", "\n", " \n", "\\text{", "answer is ", "answer:", "A or ", "(A", "(", "option ", "**", "\\"],
)
def test_long_texts_are_searched_for_a_choice_in_no_time(piece):
    text = piece * (100_000 // len(piece))
    begun = time.perf_counter()
    for solution in (text, f"{text}!", f"answer{text}x", f"\\boxed{{{text}}}", f"\\boxed{{A {text}!}}"):
        read_choice(solution)
    assert time.perf_counter() - begun < 2


# `read_number` and `find_number`


NUMBERS = {
    "1200": [
        "1200",
        "1,200",
        "1{,}200",
        "1\\,200",
        "1\\!200",
        "1,\\!200",
        "1{,}\\!200",
        "1\\ 200",
        "1\u2009200",
        "1\u202f200",
        "1~200",
        "1200.00",
        "1200.",
        "+1200",
        "01200",
        "1.2e3",
        "1.2 \\times 10^3",
        "1.2\\cdot 10^{3}",
        "1.2\u00d710\u00b3",
        "2400/2",
        "\\frac{2400}{2}",
        "\\dfrac{2{,}400}{2}",
        "\\$1{,}200.00",
        "$1200$",
        "$1200",
        "\\text{\\$1200}",
        "1200\u20ac",
        "\\text{1200}",
        "\\textbf{1,200}",
        "\\mathbf{1200}",
        "\\left(1200\\right)",
        "**1200**",
        "x = 1200",
        "m + n = 1200",
        "f(1, 2) = 1200",
        "100 + 1,100 = 1,200",
        "\\text{Total} = \\$1200",
        "1200 apples",
        "1200\\text{ apples}",
        "1200\\ \\text{cm}^2",
        "1200\\,\\mathrm{km/h}",
        "1200 miles per hour",
        "1200cm",
        "\\$1200/week",
        "1200\\%",
        "1200 percent",
        "1200^\\circ",
        "1200^{\\circ}",
        "1200\u00b0",
        "1.2 \\text{ thousand}",
    ],
    "-7/2": ["-3.5", "-\\frac{7}{2}", "-\\frac72", "\\frac{-7}{2}", "\\frac{7}{-2}", "-7/2", "\u22123.5"],
    "7/2": [
        "3\\frac{1}{2}",
        "3 \\tfrac12",
        "3\\,\\frac{1}{2}",
        "3 1/2",
        "3\\frac{1}{2}\\text{ cups}",
        "{7}/{2}",
    ],
    "8": ["2^3", "2^{3}", "(-2)^2 = 4 + 4 = 8", "\\frac{2^4}{2}", "8^1"],
    "1/8": ["2^{-3}", "\\left(\\frac{1}{2}\\right)^3", ".125"],
    "-8": ["-2^3", "(-2)^3"],
    "3000000": ["\\$3 \\text{ million}", "3 million dollars"],
}


NOT_NUMBERS = [
    "",
    "x",
    "\\sqrt{5}",
    "2\\sqrt{5}",
    "x^2",
    "x_1",
    "5x",
    "5 x",
    "5xy",
    "5\\pi",
    "\\frac{\\pi}{3}",
    "\\frac{x}{3}",
    "5!",
    "\\pm 5",
    "100 - 7",
    "2 + 3",
    "2 \\times 3",
    "5^x",
    "5^{x}",
    "(3, 4)",
    "3, 4",
    "1,00",
    "1,2345",
    "1, 200",
    "3 \\text{ or } 4",
    "3 or 4",
    "5 and a half",
    "5 hours and 30 minutes",
    "12:30",
    "5/12/2024",
    "1/0",
    "\\frac{1}{0}",
    "0^{-1}",
    "2\\frac{3}{2}",
    "52_8",
    "5 \\pmod{7}",
    "x \\neq 5",
    "x != 5",
    "x \\not= 5",
    "x \\ge 5",
    "x >= 5",
    "x \\approx 5",
    "x = 5, y = 6",
    "x = 5 \\text{ or } x = 6",
    "= 5",
    "5 = x",
    "5th",
    "\\text{about } 5",
    "1e999999",
    "10^{999999999999}",
    "9^{99999}",
    "\u0665",
    "5" * 5000,
]


@pytest.mark.parametrize(("number", "text"), [(n, text) for n, texts in NUMBERS.items() for text in texts])
def test_a_box_is_a_number_however_it_is_written(number, text):
    assert read_number(text) == Fraction(number)
    assert numeric(number)(f"So it is \\boxed{{{text}}}.")
    assert not numeric(str(Fraction(number) + 1))(f"So it is \\boxed{{{text}}}.")


@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_a_box_of_anything_else_is_no_number(text):
    assert read_number(text) is None
    for number in ("0", "1", "2", "3", "4", "5", "7", "52", "200", "1/2"):
        assert not numeric(number)(f"So it is 5, 7 and \\boxed{{{text}}}.")


@given(st.integers(-(10**12), 10**12))
def test_whole_numbers_are_the_same_or_not(number):
    grade = numeric(str(number))
    assert grade(f"\\boxed{{{number:,}}}")
    assert grade(f"\\boxed{{\\text{{{number}}}}}")
    assert not grade(f"\\boxed{{{number + 1}}}")
    assert not grade(f"\\boxed{{\\sqrt{{{number}}}}}")
    assert not grade(f"\\boxed{{{number}x}}")
    assert not grade(f"\\boxed{{({number}, {number})}}")


@given(st.decimals(-1000, 1000, places=4, allow_nan=False))
def test_a_decimal_is_read_as_written(number):
    assert read_number(f"{number:f}") == Fraction(number)


@given(st.integers(-999, 999), st.integers(1, 99))
def test_a_fraction_is_read(above, below):
    wanted = Fraction(above, below)
    assert read_number(f"{above}/{below}") == read_number(f"\\frac{{{above}}}{{{below}}}") == wanted
    assert read_number(f"x = -\\frac{{{above}}}{{{below}}}") == -wanted


@given(st.integers(1, 999), st.integers(1, 98), st.booleans())
def test_a_mixed_fraction_is_a_sum(whole, above, negative):
    sign = -1 if negative else 1
    wanted = sign * (whole + Fraction(above, 99))
    assert read_number(f"{'-' * negative}{whole}\\frac{{{above}}}{{99}}") == wanted
    assert read_number(f"{'-' * negative}{whole} {above}/99") == wanted


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 1,200", 1200),
        ("2 * 3 = 6\n#### 6\n", 6),
        ("#### The answer\nThe answer is 42 cm^2.", 42),
        ("**Answer:** $42$.", 42),
        ("Answer:\n42", 42),
        ("The answer to this is \\(x = 42\\).", 42),
        ("The answer is 42, since 6 * 7 = 42 and not 43.", 42),
        ("The answer is 42 as 5 + 37 is.", 42),
        ("The answer is 3 + 4 = 7.", 7),
        ("As an answer to this: 6 men / 12 men * 100 = 50%", 50),
        ("The answer is clear: 6 * 7, so 42.", 42),
        ("The answer is 3 1/2 cups.", Fraction(7, 2)),
        ("it is 1.", 1),
        ("He pays 3*4=$12", 12),
        ("40 - 4 + 6=42 apples are left.", 42),
        ("It comes to \\$1,200.50 in all.", Fraction(2401, 2)),
        ("= $\\frac{1}{2}$.", Fraction(1, 2)),
        ("(it is -7)", -7),
        ("The answer is negative 5.", -5),
        ("so \\boxed{\\text{negative 5}}", -5),
        ("the least non-negative 5", 5),
        ("we get 100 - 7", None),
        ("it is $\\sqrt{5}$.", None),
        ("The answer is $\\sqrt{5}$.", None),
        ("it is $x^2$", None),
        ("at (3, 4)", None),
        ("The answer is 3 or 4.", None),
        ("The answer is 3, 4.", None),
        ("between 3 and 4", None),
        ("from 3 to 4", None),
        ("on 5/12/2024", None),
        ("so x_1", None),
        ("so x >= 5", None),
        ("cut off at \\boxed{4", None),
        ("5 is one, but \\boxed{none}", None),
        ("none", None),
        ("", None),
    ],
)
def test_without_a_box_a_number_is_looked_for(text, number):
    assert find_number(text) == number


@given(st.integers(-(10**9), 10**9), st.booleans())
def test_a_whole_number_is_found(number, grouped):
    written = f"{number:,}" if grouped else str(number)
    for text in (f"so it is {written}.", f"The answer is {written}, as 2 + 2 = 4.", f"4\n#### {written}"):
        assert find_number(text) == number


NUMERALS = ["0", "5", "12", "1/2", ".", ",", "-", "+", "=", "^", "_", "e", "x", "*", "**", "(", ")", "{", "}"]


PIECES = [
    *NUMERALS,
    "$",
    "#",
    "#### ",
    "\\",
    "\\!",
    "\\,",
    "\\frac",
    "\\text{ cm}",
    " or ",
    "answer is ",
    "\n",
    " ",
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join))
def test_any_text_is_read_as_a_number_or_not(text):
    for solution in (text, f"\\boxed{{{text}}}", f"The answer is {text}"):
        assert numeric("3")(solution) in (True, False)


REPEATED = [*PIECES, "1,", "1 ", "1/", "5 a  ", "cm ", "\\frac{", "answer is 5 x ", "#### 5\n", "\\boxed{5"]


REPEATED += ["5^", "\\a", "e5", "\u2009", "\t\n", "1.5e5 or "]


@pytest.mark.parametrize("piece", REPEATED)
def test_long_texts_are_searched_for_a_number_in_no_time(piece):
    text = piece * (100_000 // len(piece))
    begun = time.perf_counter()
    for solution in (text, f"{text}!", f"\\boxed{{{text}}}", f"\\boxed{{5 {text[:990]}!}}"):
        numeric("3")(solution)
    assert time.perf_counter() - begun < 2
