"""`new_from`: what repeats is found whatever the spacing, and nothing new is ever taken for a repetition."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trim_graph.adapters.prompted.protocol import new_from

D = "\n\n"


def rest(answer, written, delimiter=D):
    return answer[new_from(answer, written, delimiter) :].strip()


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        ("A one.\n\nB two.\n\nC three.", "C three."),
        ("B two.\n\nC three.", "C three."),
        ("A  one.\nB two.\n \nC three.", "C three."),
        ("  A one.\n\n\n\nB two.\r\n\r\nC three.", "C three."),
        ("A one.\n\nB two.", ""),
        ("B two.", ""),
        ("A one.", ""),
        ("A one.\n\nC three.", "C three."),
        ("C three.", "C three."),
        ("B two. And more.", "B two. And more."),
        ("B two.5", "B two.5"),
        ("A one. B two. C three.", "A one. B two. C three."),
        ("", ""),
    ],
)
def test_the_whole_its_last_steps_or_its_first_ones(answer, left):
    assert rest(answer, "A one.\n\nB two.\n\n") == left


def test_a_longer_number_is_no_repetition():
    assert rest("x = 20", "Let x be.\n\nx = 2\n\n") == "x = 20"


def test_a_repetition_is_found_at_another_delimiter():
    assert rest("A one.###B two.###C", "A one.###B two.###", "###") == "###C"
    assert rest("B two.\nC", "A one.###B two.###", "###") == "C"


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        ("So the first numerator is 12.", "ator is 12."),
        ("A one.\n\nSo the first numerator is 12.", "ator is 12."),
        ("the first numerator is 12.", "ator is 12."),
        ("ator is 12.", "ator is 12."),
        ("numerator is 12.", "numerator is 12."),
        ("So the last numerator is 12.", "So the last numerator is 12."),
    ],
)
def test_a_step_that_was_cut_off_is_carried_on(answer, left):
    assert rest(answer, "A one.\n\nSo the first numer") == left


def test_a_word_or_two_in_common_is_chance():
    assert rest("If we add", "A one.\n\nI") == "If we add"
    assert rest("the sum", "A one.\n\nThis is the") == "the sum"


words = st.text("abcdefgh .,=+0123456789\\{}", min_size=1, max_size=20).filter(lambda t: t.strip())
solutions = st.lists(words.map(str.strip), min_size=1, max_size=6)
spaces = st.sampled_from(["\n\n", "\n", "\n \n", "\r\n\r\n", "\n\n\n\n"])


@given(solutions, words.map(str.strip), st.data(), spaces)
def test_any_run_of_last_steps_goes_and_the_new_step_stays(steps, new, data, space):
    kept = data.draw(st.integers(1, len(steps)))
    repeated = space.join(steps[-kept:])
    assume(new not in steps and not any("".join(s.split()) == "".join(new.split()) for s in steps))
    left = rest(f"{repeated}{space}{new}", D.join(steps) + D)
    assert left == new


@given(solutions, st.text(max_size=60))
def test_what_goes_was_written_before(steps, answer):
    written = D.join(steps) + D
    gone = "".join(answer[: new_from(answer, written, D)].split())
    assert gone in "".join(written.split())


@given(solutions, st.text("xyzXYZ!?", min_size=1, max_size=30))
def test_a_new_text_is_left_alone(steps, new):
    assert new_from(new, D.join(steps) + D, D) == 0


@given(st.text(max_size=80), st.text(max_size=80), st.sampled_from([D, "\n", "###"]))
def test_no_text_breaks_it(answer, written, delimiter):
    assert 0 <= new_from(answer, written, delimiter) <= len(answer)
