import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.runnables import RunnableLambda

from trim_graph import ScorableStep
from trim_graph.adapters.base import ScorerReply, as_scorer, read_scores
from trim_graph.errors import ScorerError
from trim_graph.testing import ScriptedScorer

probabilities = st.lists(st.floats(0, 1), max_size=8)


@given(probabilities)
def test_one_probability_per_step_is_read_as_it_is(scores):
    assert read_scores(scores, len(scores)).scores == scores
    assert read_scores(ScorerReply(tuple(scores), 5), len(scores)) == ScorerReply(scores, 5)


@given(probabilities, st.integers(0, 9))
def test_another_count_is_never_padded_or_cut(scores, expected):
    if len(scores) != expected:
        with pytest.raises(ScorerError, match=f"{len(scores)} scores for {expected} steps"):
            read_scores(scores, expected)


@given(st.floats(allow_nan=True).filter(lambda x: math.isnan(x) or not 0 <= x <= 1))
def test_what_is_no_probability_is_refused(score):
    with pytest.raises(ScorerError, match="rated step 1"):
        read_scores([0.5, score], 2)


@pytest.mark.parametrize("answer", [None, 0.5, "11", ["high", "low"], {"a": 1, "b": 0}, [[0.1], [0.2]]])
def test_what_are_no_numbers_is_refused(answer):
    with pytest.raises(ScorerError, match="did not return numbers"):
        read_scores(answer, 2)


async def _afunction(question, steps):
    return [0.5 for _ in steps]


@pytest.mark.parametrize(
    "scorer",
    [
        lambda question, steps: [0.5 for _ in steps],
        RunnableLambda(lambda given: [0.5 for _ in given["steps"]]),
        ScriptedScorer(default=0.5),
    ],
)
def test_functions_runnables_and_scorers_are_taken_sync_and_async(scorer):
    taken, steps = as_scorer(scorer), [ScorableStep("a")]
    assert read_scores(taken.score("q", steps), 1).scores == [0.5]
    assert read_scores(asyncio.run(taken.ascore("q", steps)), 1).scores == [0.5]


def test_an_async_function_needs_an_async_call():
    taken = as_scorer(_afunction)
    assert asyncio.run(taken.ascore("q", [{}])) == [0.5]
    with pytest.raises(ScorerError, match="ainvoke"):
        taken.score("q", [{}])


@pytest.mark.parametrize("wrong", [ScriptedScorer, 0.5, "prm"])
def test_anything_else_is_refused(wrong):
    with pytest.raises(TypeError, match="scorer is"):
        as_scorer(wrong)
