"""Tests of steps as scorers get them, of what is taken for a scorer, and of what a scorer may return."""

import asyncio
import copy
import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from trim_graph import ScorableStep
from trim_graph.adapters.base import ScorerReply, as_scorer, read_scores, scorable_step, step_texts
from trim_graph.agents.turn_data import Turn
from trim_graph.errors import ScorerError
from trim_graph.testing import ScriptedScorer

TURN = Turn(results=[], text="Hm.", calls=[])


steps = st.builds(
    ScorableStep,
    st.text(),
    st.sampled_from(["small", "large", "human"]),
    mean_token_probability=st.none() | st.floats(0, 1),
    lowest_window_probability=st.none() | st.floats(0, 1),
)


def known(step):
    return (str(step), *(getattr(step, name) for name in ScorableStep.__slots__))


@given(steps, st.text())
def test_it_is_its_text(step, other):
    text = str(step)
    assert type(text) is str
    assert (step == text, hash(step), list(step), step + other) == (
        True,
        hash(text),
        list(text),
        text + other,
    )
    assert (other in step) == (other in text)
    assert step_texts([step]) == [text]
    assert json.loads(json.dumps([step])) == [text]


@given(steps, st.none() | st.just(TURN))
def test_copies_and_pickles_know_all_of_it(step, turn):
    for one in (step, step.as_turn(turn)):
        for made in (pickle.loads(pickle.dumps(one)), copy.copy(one), copy.deepcopy(one)):
            assert type(made) is ScorableStep
            assert known(made) == known(one)


def test_in_a_checkpoint_it_is_the_plain_text():
    kept = JsonPlusSerializer()
    assert kept.loads_typed(kept.dumps_typed([ScorableStep("a", "large")])) == ["a"]


def test_a_solution_has_no_turn_and_an_agents_may_have_lost_its_message():
    step = ScorableStep("a")
    assert (step.is_turn, step.turn) == (False, None)
    assert (step.as_turn(None).is_turn, step.as_turn(None).turn) == (True, None)
    assert step.as_turn(TURN).turn == TURN


def test_a_step_of_a_run_becomes_one_with_what_is_known():
    step = scorable_step({"text": "a", "mean_token_probability": 0.5})
    assert known(step) == known(ScorableStep("a", "small", mean_token_probability=0.5))


def test_a_key_as_of_a_runs_state_says_what_to_write_instead():
    with pytest.raises(
        TypeError, match=r"step\['text'\]: a step that a scorer gets is its text; writer and .*step\.w"
    ):
        ScorableStep("a")["text"]


def test_a_mapping_is_no_step():
    with pytest.raises(TypeError, match=r"a step is a dict, and a scorer reads texts: ScorableStep\(text\)"):
        step_texts([{"text": "a"}])


def test_a_function_may_look_for_a_text_in_a_step(make):
    rig = make(scorer=lambda question, steps: [0.1 if "small two" in step else 1.0 for step in steps])
    assert [event["writer"] for event in rig.steps()] == ["small", "large", "small", "small"]


# What is taken for a scorer, and what it may return


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
