"""`MinimumScorer`: the lowest of several scores, and what all of them cost."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.runnables import RunnableLambda

from trim_graph import ScorableStep
from trim_graph.adapters import MinimumScorer, Scorer, ScorerError, ScorerReply, TokenProbability
from trim_graph.budget.usage import attempts_of
from trim_graph.errors import FailedAttempts

STEPS = [ScorableStep("a"), ScorableStep("b")]
both_ways = pytest.mark.parametrize("asynchronously", [False, True])


def ask(scorer, steps=STEPS, *, asynchronously=False):
    return asyncio.run(scorer.ascore("q", steps)) if asynchronously else scorer.score("q", steps)


@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=2), min_size=2, max_size=4), st.booleans())
def test_each_step_gets_the_lowest_score(given_scores, asynchronously):
    made = [lambda question, steps, scores=scores: scores for scores in given_scores]
    reply = ask(MinimumScorer(*made), asynchronously=asynchronously)
    assert reply.scores == [min(both) for both in zip(*given_scores, strict=True)]


@both_ways
def test_the_costs_are_totalled(asynchronously):
    first = lambda question, steps: ScorerReply([0.5, 0.5], 10, 1, 2, 1)  # noqa: E731
    second = RunnableLambda(lambda asked: ScorerReply([0.4, 0.6], 5))
    scorer = MinimumScorer(first, second)
    assert isinstance(scorer, Scorer)
    assert ask(scorer, asynchronously=asynchronously) == ScorerReply([0.4, 0.5], 15, 1, 2, 1)


@both_ways
def test_a_failure_carries_what_the_others_cost(asynchronously):
    def failing(question, steps):
        error = ScorerError("broken")
        error.attempts = FailedAttempts(count=2, input_tokens=7, output_tokens=1, unknown=1)
        raise error

    good = lambda question, steps: ScorerReply([0.5, 0.5], 10, 1, 2, 0)  # noqa: E731
    with pytest.raises(ScorerError, match="broken") as raised:
        ask(MinimumScorer(good, failing), asynchronously=asynchronously)
    assert attempts_of(raised.value) == FailedAttempts(count=3, input_tokens=17, output_tokens=3, unknown=1)


@both_ways
def test_a_score_that_is_missing_is_not_passed_over(asynchronously):
    with pytest.raises(ScorerError, match="1 scores for 2 steps"):
        ask(MinimumScorer(lambda q, s: [0.5], lambda q, s: [0.5, 0.5]), asynchronously=asynchronously)


def test_two_or_more_scorers_are_needed():
    with pytest.raises(ValueError, match="got 1 scorers"):
        MinimumScorer(lambda q, s: [])
    with pytest.raises(TypeError, match=r"scorer is 0\.5"):
        MinimumScorer(0.5, 0.5)


def test_the_writers_are_asked_for_the_window_that_one_of_them_reads():
    scorer = MinimumScorer(TokenProbability("lowest_window", window=3), lambda q, s: [1.0] * len(s))
    assert scorer.probability_window == 3
    assert MinimumScorer(TokenProbability(), TokenProbability()).probability_window is None
    with pytest.raises(ValueError, match="windows of 3 and 4 tokens"):
        MinimumScorer(scorer, TokenProbability("lowest_window", window=4))
