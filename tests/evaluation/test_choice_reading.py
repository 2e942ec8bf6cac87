import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.evaluation.graders import multiple_choice, read_choice

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
def test_any_text_is_read_or_not(text):
    for solution in (text, f"\\boxed{{{text}}}", f"The answer is {text}"):
        assert multiple_choice("C")(solution) in (True, False)


@pytest.mark.parametrize(
    "piece",
    ["A ", " ", "\n", " \n", "\\text{", "answer is ", "answer:", "A or ", "(A", "(", "option ", "**", "\\"],
)
def test_long_texts_are_read_in_no_time(piece):
    text = piece * (100_000 // len(piece))
    begun = time.perf_counter()
    for solution in (text, f"{text}!", f"answer{text}x", f"\\boxed{{{text}}}", f"\\boxed{{A {text}!}}"):
        read_choice(solution)
    assert time.perf_counter() - begun < 2
