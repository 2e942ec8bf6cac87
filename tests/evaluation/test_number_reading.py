import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.evaluation.graders import find_number, numeric, read_number

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
def test_any_text_is_read_or_not(text):
    for solution in (text, f"\\boxed{{{text}}}", f"The answer is {text}"):
        assert numeric("3")(solution) in (True, False)


REPEATED = [*PIECES, "1,", "1 ", "1/", "5 a  ", "cm ", "\\frac{", "answer is 5 x ", "#### 5\n", "\\boxed{5"]
REPEATED += ["5^", "\\a", "e5", "\u2009", "\t\n", "1.5e5 or "]


@pytest.mark.parametrize("piece", REPEATED)
def test_long_texts_are_read_in_no_time(piece):
    text = piece * (100_000 // len(piece))
    begun = time.perf_counter()
    for solution in (text, f"{text}!", f"\\boxed{{{text}}}", f"\\boxed{{5 {text[:990]}!}}"):
        numeric("3")(solution)
    assert time.perf_counter() - begun < 2
