"""A step that a scorer gets: a text that knows its writer."""

import copy
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from trim_graph import ScorableStep
from trim_graph.adapters.base import scorable_step, step_texts
from trim_graph.agents.turn_data import Turn

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
