"""Reading a rating out of one token: log-probabilities of digits, or the digit written."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.adapters.prompted.judge import MIN_MASS, expected_score, written_score


def entry(token, tops):
    alternatives = [{"token": t, "logprob": math.log(p) if p else -9999.0} for t, p in tops]
    written = next(
        (one for one in alternatives if one["token"] == token), {"token": token, "logprob": math.log(0.5)}
    )
    return {**written, "top_logprobs": alternatives}


def test_the_expected_digit_over_nine_renormalised_over_the_digits_seen():
    content = [entry("7", [("7", 0.5), ("9", 0.25), ("x", 0.25)])]
    assert expected_score(content) == pytest.approx((7 * 0.5 + 9 * 0.25) / 0.75 / 9)


def test_a_digit_may_come_with_space_and_then_both_count():
    tops = [(" 7", 0.4), ("7", 0.2), ("\u2581" + "1", 0.2), ("\u0120" + "1", 0.2)]
    assert expected_score([entry(" 7", tops)]) == pytest.approx((7 * 0.6 + 1 * 0.4) / 9)


def test_what_looks_like_a_digit_is_none():
    tops = [("9", 0.5), ("10", 0.2), ("٣", 0.1), ("²", 0.1), ("7.", 0.05), ("-1", 0.05)]
    assert expected_score([entry("9", tops)]) == 1.0


def test_the_written_token_counts_where_it_is_not_among_the_top():
    alone = [{"token": "4", "logprob": math.log(0.5), "top_logprobs": []}]
    assert expected_score(alone) == pytest.approx(4 / 9)
    twice = [{"token": "4", "logprob": 0.0, "top_logprobs": [{"token": "4", "logprob": 0.0}]}]
    assert expected_score(twice) == pytest.approx(4 / 9)


def test_the_first_digit_written_is_the_rating():
    content = [entry("Rating", [("Rating", 1.0)]), entry(":", [(":", 1.0)]), entry(" 3", [(" 3", 0.8)])]
    assert expected_score(content) == pytest.approx(3 / 9)


def test_a_digit_in_reasoning_is_no_rating():
    written = ["<think>", "maybe", " 3", "</th", "ink>", "\n", "8"]
    content = [entry(token, [(token, 0.8)]) for token in written]
    assert expected_score(content) == pytest.approx(8 / 9)
    assert expected_score(content[1:]) == pytest.approx(8 / 9)  # its prompt had opened the reasoning
    assert expected_score(content[:3]) is None
    assert expected_score(content[:5]) is None


def test_next_to_no_probability_of_digits_is_no_rating():
    assert expected_score([entry("I", [("I", 0.95), ("7", 0.04)])]) is None
    assert expected_score([entry("I", [("I", 0.5), ("7", MIN_MASS * 1.01)])]) == pytest.approx(7 / 9)
    assert expected_score([]) is None


@given(st.dictionaries(st.sampled_from([*"0123456789", " 5", "a", "\n"]), st.floats(0, 1), min_size=1))
def test_a_score_lies_between_the_digits_it_comes_from(tops):
    score = expected_score([entry(next(iter(tops)), list(tops.items()))])
    digits = [int(t) for t, p in tops.items() if t.strip().isdigit()]
    if score is not None:
        assert min(digits) / 9 - 1e-9 <= score <= max(digits) / 9 + 1e-9


tokens = st.text(max_size=3)
logprobs = st.floats(allow_nan=True, allow_infinity=True) | st.none()
tops = st.lists(st.fixed_dictionaries({"token": tokens, "logprob": logprobs}), max_size=5)


entries = st.fixed_dictionaries({"token": tokens, "logprob": logprobs, "top_logprobs": tops})


@given(st.lists(entries, max_size=3))
def test_no_answer_of_a_server_breaks_it(content):
    score = expected_score(content)
    assert score is None or 0 <= score <= 1


READINGS = {"7": 7, " 7\n": 7, "Rating: 8": 8, "**9**": 9, "8/9": 8, "0": 0, "8.": 8}
READINGS |= {"<think>maybe 3</think>\n8": 8, "maybe 3</think>8": 8}
NONE = dict.fromkeys(["10", "8.5", "8,5", "85", "", "seven", "٣", "<think>3", "\n<think>3 of", "3</think>"])


@pytest.mark.parametrize(("text", "digit"), [*READINGS.items(), *NONE.items()])
def test_a_written_digit_is_read_as_its_ninth(text, digit):
    assert written_score(text) == (None if digit is None else digit / 9)
