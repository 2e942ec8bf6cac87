"""Tests of the protocol of asking by prompt: what is asked, and how every manner of answering is read."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trim_graph.adapters.prompted.protocol import DONE, START, new_from, read_step, request

D = "\n\n"


WRITTEN = "One is 1.\n\nTwo is 2.\n\n"


def read(answer, written=WRITTEN, *, stops=(D,), truncated=False, delimiter=D):
    found = read_step(answer, written, delimiter, stops=stops, truncated=truncated)
    return found.text, found.end


@pytest.mark.parametrize(
    ("answer", "text", "end"),
    [
        # As asked.
        (f"{START}\nThree is 3.", "Three is 3.", "delimiter"),
        (f"{START}\nThree is 3.\n{DONE}", "Three is 3.", "eos"),
        (DONE, "", "eos"),
        # Marks where the model would have them.
        (f"{START} Three is 3. {DONE}", "Three is 3.", "eos"),
        (f"**{START}**\n\nThree is 3.\n\n**{DONE}**", "Three is 3.", "eos"),
        (f"{START}\nThree is 3.\n\n{DONE}.\n\nAnything else?", "Three is 3.", "eos"),
        (f"{START}\n{DONE}", "", "eos"),
        # Without marks.
        ("Three is 3.", "Three is 3.", "delimiter"),
        ("  \n\nThree is 3.\n\n", "Three is 3.", "delimiter"),
        ("", "", "eos"),
        (" \n\n ", "", "eos"),
        # An introduction counts as one only where the mark shows it.
        (f"Sure! Here is the next step:\n\n{START}\nThree is 3.", "Three is 3.", "delimiter"),
        ("Here is the next step:\n\nThree is 3.", "Here is the next step:", "delimiter"),
        # Several steps at once.
        (f"{START}\nThree is 3.\n\nFour is 4.\n{DONE}", "Three is 3.", "delimiter"),
        (f"{START}\nThree is 3.\n{START}\nFour is 4.\n{DONE}", "Three is 3.", "delimiter"),
        ("Three is 3.\n\nFour is 4.\n\nFive is 5.", "Three is 3.", "delimiter"),
        # Repetition.
        (f"{START}\n{WRITTEN}Three is 3.", "Three is 3.", "delimiter"),
        (f"{START}\nTwo is 2.\n\nThree is 3.\n{DONE}", "Three is 3.", "eos"),
        (f"{START}\nTwo is 2.\n{DONE}", "", "eos"),
        ("Two is 2.", "", "delimiter"),
        ("One is 1.\nTwo is 2.", "", "delimiter"),
        ("Two is 2. So three is 3.", "Two is 2. So three is 3.", "delimiter"),
        # What is no step waits for one.
        (f"{START}\n---\n\nThree is 3.\n\nFour is 4.", "---\n\nThree is 3.", "delimiter"),
        # Mentions are neither an answer nor an end.
        ("It will be \\boxed{3} once done.", "It will be \\boxed{3} once done.", "delimiter"),
        (f"I write {DONE} when done.", f"I write {DONE} when done.", "delimiter"),
        ("Let M = [[1, 2], [3, 4]].", "Let M = [[1, 2], [3, 4]].", "delimiter"),
    ],
)
def test_an_answer_with_a_marked_step_is_read_as_that_step(answer, text, end):
    assert read(answer) == (text, end)


@pytest.mark.parametrize(
    ("answer", "text", "end"),
    [
        ("Three is", "Three is", "length"),
        ("Three is ", "Three is ", "length"),
        ("Three is 3.\n\nFour", "Three is 3.", "delimiter"),
        (f"{START}\nThree is 3.\n[[DO", "Three is 3.\n", "length"),
        (f"{START}\nThree is 3.\n{DONE}", "Three is 3.", "eos"),
        ("[[ST", "", "length"),
        ("", "", "length"),
        ("One is 1.\n\nTwo", "Two", "length"),
        ("Two is 2.", "", "length"),
    ],
)
def test_an_answer_that_ran_into_its_token_limit(answer, text, end):
    assert read(answer, truncated=True) == (text, end)


@pytest.mark.parametrize(
    ("answer", "truncated", "text", "end"),
    [
        (f"{START}\nThree.\n\nFour.\n{DONE}", False, "Three.\n\nFour.", "eos"),
        ("Three.\n\nFour.", False, "Three.\n\nFour.", "eos"),
        (f"{START}\nThree.\n\n{START}\nFour.\n\n{DONE}\nBye.", False, "Three.\n\nFour.", "eos"),
        (f"{WRITTEN}Three.\n\nFour.", False, "Three.\n\nFour.", "eos"),
        (DONE, False, "", "eos"),
        ("", False, "", "eos"),
        ("Three.\n\nFou", True, "Three.\n\nFou", "length"),
    ],
)
def test_an_answer_to_the_end_is_read_whole_without_its_marks(answer, truncated, text, end):
    assert read(answer, stops=(), truncated=truncated) == (text, end)


@pytest.mark.parametrize(
    ("written", "answer", "text"),
    [
        ("One is 1.\n\nThe sum is", "12.", " 12."),
        ("One is 1.\n\nThe sum is ", "12.", "12."),
        ("One is 1.\n\nThe sum is", ", by the way, 12.", ", by the way, 12."),
        ("One is 1.\n\nThe sum is (", "12).", "12)."),
        ("One is 1.\n\nThe whole numer", "The whole numerator is 12.", "ator is 12."),
        ("One is 1.\n\nThe whole sum is", f"{START}\nThe whole sum is 12.", " 12."),
        ("One is 1.\n\nSo it is 12.", "Which is \\boxed{12}.", " Which is \\boxed{12}."),
    ],
)
def test_a_step_that_was_cut_off_is_joined(written, answer, text):
    assert read(answer, written) == (text, "delimiter")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (f"{START}\n    return y\n```", "    return y\n```"),
        (f"{START}\n\n\t- nested\n\t  - deeper  \n{DONE}", "\t- nested\n\t  - deeper  "),
        (f"{START}\r\n  a\r\n  b\r\n{DONE}\r\n", "  a\r\n  b"),
        ("    return y", "    return y"),
        ("Two is 2.\n\n    return y", "    return y"),
        ("One is 1.\n\nTwo is 2.\n\n\n  - three", "  - three"),
        (f"{START}\n  x = 1  \n\n  y = 2", "  x = 1  "),
        (f"{START}\n  x = 1\t\n{START}\n  y = 2", "  x = 1\t"),
        (f"{START}    return y", "    return y"),
        (f"{START} `y` is 2 {DONE}", "`y` is 2"),
        (f"**{START}** **Three** is 3.", "**Three** is 3."),
        (f"{START}\n```\ny = 2\n```{DONE}", "```\ny = 2\n```"),
    ],
)
def test_the_blanks_and_line_breaks_of_a_text_are_its_own(answer, text):
    assert read(answer)[0] == text
    assert read(answer, stops=())[0].startswith(text)


@pytest.mark.parametrize("mark", [f"{START}\n", ""])
@pytest.mark.parametrize(
    "rest", ["\ny = 2", "\n    y = 2", "\r\ny = 2", "\n\ny = 2", " + 1", "0", "\t# one", "}"]
)
@pytest.mark.parametrize("stops", [(D,), ()])
def test_a_cut_step_goes_on_as_the_answer_says(mark, rest, stops):
    written = "Two is 2.\n\n```\nx = 1"
    assert read(f"{mark}{rest}\n{DONE}", written, stops=stops) == (rest, "eos")


def test_an_answer_with_its_mark_goes_on_within_a_word():
    assert read(f"{START}\nator is 12.", "The numer")[0] == "ator is 12."
    assert read("is 12.", "The sum")[0] == " is 12."


@pytest.mark.parametrize("rest", ["y = 2", "    y = 2", "\ny = 2"])
@pytest.mark.parametrize("blanks", ["", " ", "\n", "\n    ", "\n\t"])
def test_repeated_words_of_a_cut_step_show_where_it_continues(blanks, rest):
    words = "x = the sum of both"
    written = f"Two is 2.\n\n```\n{words}{blanks}"
    answer = f"{START}\nthe sum of both{blanks}{rest}"
    assert read(answer, written)[0] == rest


def test_a_cut_step_is_asked_for_by_its_last_words():
    asked = request("Two is 2.\n\n```\nx = the sum of both\n    ", D, until_eos=False)
    assert '"sum of both"' not in asked
    assert '"the sum of both"' in asked
    assert "Repeat nothing" not in asked
    for few in ("```\nx = 1", "x" * 500, f"Two\n\n{'x' * 500} y"):
        assert "Repeat nothing" in request(few, D, until_eos=False)


@pytest.mark.parametrize("torn", ["[", "[[", "[[ST", "[[DONE]", "  [[D"])
def test_half_a_mark_is_no_text(torn):
    assert read(f"{START}\nThree is 3.\n{torn}", truncated=True) == ("Three is 3.\n", "length")
    assert read(f"{START}\nThree is {torn.strip()}", truncated=True)[0] in ("Three is ", "Three is [")


def test_a_step_ends_at_another_delimiter():
    assert read("Three.\nFour.", "One.\nTwo.\n", stops=("\n",), delimiter="\n") == ("Three.", "delimiter")
    assert read(f"Three.\n{DONE}", "One.\nTwo.\n", stops=("\n",), delimiter="\n") == ("Three.", "eos")
    assert read("###Three.###Four.", "One.###", stops=("###",), delimiter="###") == ("Three.", "delimiter")


def test_the_stop_string_met_is_reported():
    found = read_step("Three. Obs: 4", WRITTEN, D, stops=(D, "Obs:"), truncated=False)
    assert (found.text, found.stop) == ("Three. ", "Obs:")
    assert read_step(DONE, WRITTEN, D, stops=(D,), truncated=False).stop is None


def test_what_is_asked_depends_on_what_is_written():
    first, following, rest = request("", D, until_eos=False), request(WRITTEN, D, until_eos=False), ""
    rest = request(WRITTEN, D, until_eos=True)
    cut_off = request(WRITTEN + "Thr", D, until_eos=False)
    assert len({first, following, rest, cut_off}) == 4
    assert all(START in asked and DONE in asked for asked in (first, following, rest, cut_off))
    assert "cut off" in cut_off
    assert "blank line" in following
    assert '"###"' in request("One.###", "###", until_eos=False)


texts = st.text("ab1. \n*[]", max_size=40) | st.sampled_from([START, DONE, D, WRITTEN, ""])


answers = st.lists(texts, max_size=5).map("".join)


@given(answers, st.sampled_from(["", WRITTEN, WRITTEN + "Thr"]), st.booleans(), st.booleans())
def test_no_answer_breaks_it_and_spans_show_where_the_text_is(answer, written, truncated, until_eos):
    stops = () if until_eos else (D,)
    found = read_step(answer, written, D, stops=stops, truncated=truncated)
    assert "".join(answer[a:b] for a, b in found.spans) in (found.text, found.text[1:])
    assert (found.stop is not None) == (found.end == "delimiter")
    if not until_eos:
        assert f"{D}a" not in found.text.lstrip("*[]. \n")
    if truncated:
        assert found.end != "eos" or DONE in answer


@given(st.text(max_size=100), st.text(max_size=100))
def test_nor_does_any_text(answer, written):
    read_step(answer, written, D, stops=(D,), truncated=False)


sentences = (
    st.text("abc de1+=", min_size=1, max_size=20).map(str.strip).filter(lambda t: any(map(str.isalnum, t)))
)


@given(sentences, st.lists(sentences, max_size=3), st.booleans())
def test_the_first_step_is_the_same_however_much_follows(step, more, marks):
    answer = D.join([step, *more])
    found = read(f"{START}\n{answer}" if marks else answer, "")
    assert found == (step, "delimiter")
    assert read(f"{START}\n{answer}\n{DONE}", "") == (step, "delimiter" if more else "eos")


# `new_from`: what repeats is found whatever the spacing, and nothing new is taken for a repetition


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
