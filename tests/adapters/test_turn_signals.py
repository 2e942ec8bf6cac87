"""`TurnSignals`: one score a turn from calls and results alone, whatever the texts say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trim_graph import ScorableStep
from trim_graph.adapters import Scorer, ScorerError, TurnSignals
from trim_graph.adapters.base import ToolResult, Turn, TurnCall, read_scores

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=True) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
calls = st.builds(
    TurnCall,
    name=st.sampled_from(["search", "query", ""]),
    args=st.dictionaries(st.text(max_size=2), json_values, max_size=2) | st.text(max_size=4),
    invalid=st.sampled_from([None, None, "no_json", "unknown_tool", "arguments"]),
)
results = st.builds(ToolResult, name=st.just("search"), status=st.sampled_from(["success", "error"]))
turn_texts = st.sampled_from(["", " \n", "I look it up.", '[tool_error] search "no"', "[tool_none]"])
some_turns = st.builds(
    Turn, results=st.lists(results, max_size=2), text=turn_texts, calls=st.lists(calls, max_size=2)
)
conversations = st.lists(st.none() | some_turns, max_size=6)
scores = st.none() | st.floats(0, 1)


def steps(turns):
    return [ScorableStep("whatever").as_turn(turn) for turn in turns]


def turn(*called, text="Hm.", failed=(), invalid=None):
    return Turn(
        results=[ToolResult(name="search", status="error" if one else "success") for one in failed],
        text=text,
        calls=[TurnCall(name=name, args=args, invalid=invalid) for name, args in called],
    )


def scored(*turns, **settings):
    return list(TurnSignals(**settings).score("q", steps(turns)).scores)


SEARCH = ("search", {"q": "Paris", "n": 1})


def test_it_is_a_scorer():
    assert isinstance(TurnSignals(), Scorer)


@pytest.mark.parametrize(
    ("shown", "score"),
    [
        (turn(SEARCH), 1.0),
        (turn(SEARCH, failed=[False]), 1.0),
        (turn(SEARCH, failed=[True]), 0.2),
        (turn(SEARCH, failed=[True, False]), 0.2),
        (turn(SEARCH, invalid="unknown_tool"), 0.0),
        (turn(SEARCH, invalid="arguments", failed=[True]), 0.0),
        (turn(text=" \n"), 0.0),
        (turn(SEARCH, text=""), 1.0),
        (None, 1.0),
    ],
)
def test_each_signal_has_its_score_and_the_lowest_holds(shown, score):
    assert scored(shown) == [score]


def test_a_failed_tool_says_nothing_of_the_large_models_turn():
    step = ScorableStep("whatever", "large").as_turn(turn(SEARCH, failed=[True]))
    assert TurnSignals().score("q", [step]).scores == [1.0]


def test_a_call_is_repeated_whatever_the_order_of_its_arguments():
    again = turn(("search", {"n": 1, "q": "Paris"}))
    other = turn(("search", {"n": 2, "q": "Paris"}), ("query", {"q": "Paris", "n": 1}))
    assert scored(turn(SEARCH), other, again, again) == [1.0, 1.0, 0.2, 0.2]
    assert scored(turn(SEARCH, SEARCH)) == [1.0]
    assert scored(turn(SEARCH), again, repeated_call=None) == [1.0, 1.0]


@given(conversations, scores, scores, scores, scores, st.floats(0, 1))
def test_every_turn_gets_one_of_the_scores_set(turns, tool_error, invalid, repeated, empty, otherwise):
    scorer = TurnSignals(
        tool_error=tool_error,
        invalid_call=invalid,
        repeated_call=repeated,
        empty=empty,
        otherwise=otherwise,
    )
    given_scores = read_scores(scorer.score("q", steps(turns)), len(turns)).scores
    assert set(given_scores) <= {tool_error, invalid, repeated, empty, otherwise}


@given(conversations, some_turns)
def test_a_later_turn_changes_no_earlier_score(turns, later):
    assert scored(*turns, later)[:-1] == scored(*turns)


@given(conversations, st.text())
def test_no_text_makes_or_hides_a_signal_of_calls_and_results(turns, text):
    written = [None if one is None else Turn(**{**one, "text": text}) for one in turns]
    assert scored(*turns, empty=None) == scored(*written, empty=None)


async def test_turn_signals_refuse_a_step_that_is_no_turn():
    with pytest.raises(ScorerError, match="step 1 is not an agent's turn"):
        await TurnSignals().ascore("q", [*steps([turn()]), ScorableStep("x")])


@pytest.mark.parametrize(
    "wrong", [{"tool_error": 1.5}, {"empty": float("nan")}, {"otherwise": None}, {"eror": 0}]
)
def test_settings_that_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TurnSignals(**wrong)
