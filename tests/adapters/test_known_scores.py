"""Tests of known scores: which steps count as known, how many are kept, and what copies share."""

from __future__ import annotations

import copy
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph import ScorableStep
from trim_graph.adapters.known_scores import KnownScores, KnownSteps

texts = st.text(st.sampled_from(["a", "b", "\n", " ", "\ud800", "ä"]), max_size=4)


def steps(*given):
    return [ScorableStep(text) for text in given]


def rated(known, question, given, **options):
    """Has every missing step rated by its place among the ratings so far."""
    request = KnownSteps(question, given, known, **options)
    missing = list(request.missing)
    for index in missing:
        request.keep(index, (len(known) + 1) / 1000)
    return missing, request.whole()


def test_a_step_is_rated_once_while_a_solution_grows():
    known = KnownScores(100)
    assert rated(known, "q", steps("a")) == ([0], [0.001])
    assert rated(known, "q", steps("a", "b")) == ([1], [0.001, 0.002])
    assert rated(known, "q", steps("a", "b")) == ([], [0.001, 0.002])


@given(st.tuples(texts, st.lists(texts, max_size=4)), st.tuples(texts, st.lists(texts, max_size=4)))
def test_a_score_is_known_for_the_same_question_and_the_same_steps_before_it_alone(first, second):
    known = KnownScores(100)
    rated(known, first[0], steps(*first[1]))
    missing = KnownSteps(second[0], steps(*second[1]), known).missing
    for index in range(len(second[1])):
        same = first[0] == second[0] and first[1][: index + 1] == second[1][: index + 1]
        assert (index not in missing) == same


@pytest.mark.parametrize(
    "other",
    [
        ScorableStep("a", "large"),
        ScorableStep("a", mean_token_probability=0.5),
        ScorableStep("a", lowest_window_probability=0.5),
    ],
    ids=["writer", "probability", "window"],
)
@pytest.mark.parametrize("reported", [False, True])
def test_what_the_writer_reports_distinguishes_steps_only_where_the_scorer_reads_it(other, reported):
    known = KnownScores(100)
    rated(known, "q", steps("a"), reported=reported)
    assert KnownSteps("q", [other], known, reported=reported).missing == ([0] if reported else [])


def test_a_report_of_an_earlier_step_distinguishes_the_later_ones_too():
    known = KnownScores(100)
    later = ScorableStep("b")
    rated(known, "q", [ScorableStep("a", mean_token_probability=0.5), later], reported=True)
    again = KnownSteps("q", [ScorableStep("a", mean_token_probability=0.6), later], known, reported=True)
    assert again.missing == [0, 1]


def test_of_the_wanted_steps_alone_scores_are_missing_and_given_in_their_order():
    known = KnownScores(100)
    given = steps("a", "b", "c")
    request = KnownSteps("q", given, known, only=[2, 0])
    assert request.missing == [2, 0]
    request.keep(0, 0.1)
    request.keep(2, 0.3)
    assert request.whole() == [0.3, 0.1]
    assert KnownSteps("q", given, known).missing == [1]


def test_the_score_that_was_not_used_for_longest_is_dropped():
    known = KnownScores(2)
    known.put(b"a", 0.1)
    known.put(b"b", 0.2)
    assert known.get(b"a") == 0.1
    known.put(b"c", 0.3)
    assert [known.get(key) for key in (b"a", b"b", b"c")] == [0.1, None, 0.3]


@given(st.integers(0, 5), st.lists(st.integers(0, 9), max_size=40))
def test_no_more_scores_are_kept_than_the_size_says(size, numbers):
    known = KnownScores(size)
    for number in numbers:
        known.put(bytes([number]), number / 10)
    assert len(known) == min(size, len(set(numbers)))
    latest = list(dict.fromkeys(reversed(numbers)))[:size]
    assert [known.get(bytes([number])) for number in latest] == [number / 10 for number in latest]


def test_a_size_of_0_keeps_nothing_and_the_request_has_its_scores_all_the_same():
    known = KnownScores(0)
    assert rated(known, "q", steps("a", "b")) == ([0, 1], [0.001, 0.001])
    assert rated(known, "q", steps("a"))[0] == [0]


def test_deep_copies_share_the_scores():
    known = KnownScores(9)
    copied = copy.deepcopy({"scorer": [known]})["scorer"][0]
    copied.put(b"a", 0.5)
    assert known.get(b"a") == 0.5


def test_threads_may_use_it_together():
    known, failed = KnownScores(8), []

    def work(own):
        try:
            for number in range(3000):
                known.put(bytes([own, number % 16]), number / 3000)
                known.get(bytes([number % 4, number % 16]))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=[own]) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(known) == 8
