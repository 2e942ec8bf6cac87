"""The policy on advantage: its formula, its bounds, its spend, and a run in the graph."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph import SettingsError, TrimContext
from trim_graph.policies import Observation, advantage

SEEN = Observation(question="q", index=0, max_steps=9, draft="x", draft_tokens=20)
probabilities = st.floats(0, 1)


@pytest.mark.parametrize(
    ("score", "decision"),
    [(0.5, "accept"), (0.46, "accept"), (0.44, "regenerate"), (0.9, "accept"), (None, "accept")],
)
def test_a_draft_is_regenerated_where_the_gain_exceeds_the_minimum(score, decision):
    assert advantage(0.1).decide(replace(SEEN, score=score)) == decision


@pytest.mark.parametrize(("tokens", "decision"), [(20, "regenerate"), (40, "accept")])
def test_a_longer_draft_must_gain_more_where_tokens_have_a_price(tokens, decision):
    # A score of 0.3 is a gain of 0.4.
    policy = advantage(0.1, price_per_token=0.01)
    assert policy.decide(replace(SEEN, score=0.3, draft_tokens=tokens)) == decision


def test_a_rewrite_that_gains_nothing_is_not_bought():
    assert advantage(0).decide(replace(SEEN, score=0.5)) == "accept"
    assert advantage(0).decide(replace(SEEN, score=0.49)) == "regenerate"
    assert advantage(-0.1).decide(replace(SEEN, score=0.5)) == "regenerate"


@given(probabilities, probabilities, st.floats(-1, 1), st.floats(0, 1), st.integers(0, 1000))
def test_the_gain_is_that_of_the_labels(small, large, minimum, price, tokens):
    label = (1 + small - large) / 2
    seen = replace(SEEN, score=label, draft_tokens=tokens)
    margin = (large - small) - (minimum + price * tokens)
    if abs(margin) > 1e-9:
        decision = advantage(minimum, price).decide(seen)
        assert decision == ("regenerate" if margin > 0 else "accept")


@given(probabilities, st.floats(-1, 1), st.floats(-1, 1))
def test_a_higher_minimum_regenerates_no_more(score, one, other):
    low, high = sorted((one, other))
    seen = replace(SEEN, score=score)
    if advantage(high).decide(seen) == "regenerate":
        assert advantage(low).decide(seen) == "regenerate"


@pytest.mark.parametrize(
    ("minimum", "price", "named"),
    [
        (1.1, 0, r"minimum is 1\.1: choose a gain in \[-1, 1\]"),
        (math.nan, 0, "minimum is nan"),
        (0, -1, "price_per_token is -1"),
        (0, math.inf, "price_per_token is inf"),
    ],
)
def test_a_number_out_of_range_is_refused(minimum, price, named):
    with pytest.raises(SettingsError, match=named):
        advantage(minimum, price)


def test_in_the_graph_a_call_may_name_it(make):
    rig = make()  # the second draft scores 0.1, the others 1.0
    context = TrimContext(policy={"type": "advantage", "minimum": 0.1})
    assert [step["writer"] for step in rig.steps(context=context)] == ["small", "large", "small", "small"]
