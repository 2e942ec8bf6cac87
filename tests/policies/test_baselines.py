"""Tests of the policies of one rule: their decisions, refused arguments, and runs in the graph."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policies.test_base import SEEN, writers_of
from trim_graph import SettingsError, TrimContext
from trim_graph.policies import (
    Observation,
    advantage,
    by_pattern,
    entropy_probe,
    large_only,
    random_rate,
    small_only,
    stay_on_large,
    threshold,
)
from trim_graph.routing.router import _built


def rate(policy, draft):
    answers = [policy.decide(replace(SEEN, draft=draft, seed=str(seed))) for seed in range(400)]
    assert set(answers) <= {"accept", "regenerate"}
    return answers.count("regenerate") / 400


def test_the_kind_of_a_draft_decides():
    policy = by_pattern(r"\d (\*|\+) \d|(mod)", {"*": 1.0, "+": 0.25, "mod": 0.0}, default=0.5)
    assert rate(policy, "2 * 3 = 6") == 1
    assert rate(policy, "2 + 3 = 5, so 5 * 2 = 10") == pytest.approx(0.25, abs=0.08)
    assert rate(policy, "7 mod 2 = 1") == 0
    assert rate(policy, "so it is") == pytest.approx(0.5, abs=0.08)
    assert rate(by_pattern("so", {"so": 1.0}), "so it is") == 1  # without a group the whole match counts
    assert rate(by_pattern("so|it", {"so": 1.0}, default=0.0), "it is") == 0


def test_it_looks_at_no_score_and_repeats_itself():
    policy = by_pattern("a", {"a": 0.5})
    assert policy.needs_score is False
    seen = replace(SEEN, draft="a", seed="s")
    assert len({policy.decide(seen) for _ in range(5)}) == 1
    assert repr(policy) == "by_pattern('a', {'a': 0.5}, default=0.0)"


def test_a_graph_routes_by_it(make):
    rig = make(policy=by_pattern("small (two|three)", {"two": 1.0, "three": 0.0}))
    assert rig.ask()["trim"]["steps"] == {"small": 3, "large": 1}
    assert rig.scorer.calls == []


def test_a_pattern_or_rate_that_cannot_be_is_refused():
    with pytest.raises(SettingsError, match=r"pattern '\(' cannot be read"):
        by_pattern("(", {})
    for rates, default in (({"a": 1.5}, 0.0), ({}, -1.0), ({"a": float("nan")}, 0.0)):
        with pytest.raises(SettingsError, match="choose a probability"):
            by_pattern("a", rates, default)
    spec = '{"type": "by_pattern", "pattern": "a", "rates": {"a": 0.5}, "default": 0.1}'
    assert repr(_built(spec)) == "by_pattern('a', {'a': 0.5}, default=0.1)"
    with pytest.raises(SettingsError, match="rates"):
        _built('{"type": "by_pattern", "pattern": "a", "rates": {"a": 2}}')


# `advantage`: its formula, its bounds, its spend, and a run in the graph


DRAFT = Observation(question="q", index=0, max_steps=9, draft="x", draft_tokens=20)


probabilities = st.floats(0, 1)


@pytest.mark.parametrize(
    ("score", "decision"),
    [(0.5, "accept"), (0.46, "accept"), (0.44, "regenerate"), (0.9, "accept"), (None, "accept")],
)
def test_a_draft_is_regenerated_where_the_gain_exceeds_the_minimum(score, decision):
    assert advantage(0.1).decide(replace(DRAFT, score=score)) == decision


@pytest.mark.parametrize(("tokens", "decision"), [(20, "regenerate"), (40, "accept")])
def test_a_longer_draft_must_gain_more_where_tokens_have_a_price(tokens, decision):
    # A score of 0.3 is a gain of 0.4.
    policy = advantage(0.1, price_per_token=0.01)
    assert policy.decide(replace(DRAFT, score=0.3, draft_tokens=tokens)) == decision


def test_a_rewrite_that_gains_nothing_is_not_bought():
    assert advantage(0).decide(replace(DRAFT, score=0.5)) == "accept"
    assert advantage(0).decide(replace(DRAFT, score=0.49)) == "regenerate"
    assert advantage(-0.1).decide(replace(DRAFT, score=0.5)) == "regenerate"


@given(probabilities, probabilities, st.floats(-1, 1), st.floats(0, 1), st.integers(0, 1000))
def test_the_gain_is_that_of_the_labels(small, large, minimum, price, tokens):
    label = (1 + small - large) / 2
    seen = replace(DRAFT, score=label, draft_tokens=tokens)
    margin = (large - small) - (minimum + price * tokens)
    if abs(margin) > 1e-9:
        decision = advantage(minimum, price).decide(seen)
        assert decision == ("regenerate" if margin > 0 else "accept")


@given(probabilities, st.floats(-1, 1), st.floats(-1, 1))
def test_a_higher_minimum_regenerates_no_more(score, one, other):
    low, high = sorted((one, other))
    seen = replace(DRAFT, score=score)
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


# Thresholds, rates, and one model alone


# Single policies


@pytest.mark.parametrize(("score", "decision"), [(0.49, "regenerate"), (0.5, "accept"), (None, "accept")])
def test_a_threshold_regenerates_what_scores_below_it(score, decision):
    assert threshold(0.5).decide(replace(SEEN, score=score)) == decision


def test_at_zero_a_threshold_keeps_everything():
    assert threshold(0).decide(replace(SEEN, score=0.0)) == "accept"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda: threshold(1.1), "threshold is 1.1"),
        (lambda: threshold(float("nan")), "threshold is nan"),
        (lambda: random_rate(-0.1), "random_rate is -0.1"),
        (lambda: stay_on_large(threshold(0.5), -1), "k=-1"),
        (lambda: stay_on_large(threshold, 1), "class threshold"),
        (lambda: threshold(0.5) | "larg", "unknown type 'larg'"),
        (lambda: threshold("high"), "threshold is 'high': .* choose a value in"),
        (lambda: threshold(True), "threshold is True"),
        (lambda: random_rate(None), "random_rate is None"),
        (lambda: entropy_probe("high"), "entropy_probe is 'high'"),
        (lambda: entropy_probe(float("inf")), "entropy_probe is inf"),
        (lambda: stay_on_large(threshold(0.5), 1.5), "k=1.5"),
        (lambda: stay_on_large(threshold(0.5), "2"), "k='2'"),
        (lambda: by_pattern(5, {}), "pattern 5 cannot be read"),
        (lambda: by_pattern("a", None), "rates is None"),
        (lambda: by_pattern("a", {"x": "often"}), "rate of 'x' is 'often'"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused_when_it_is_made(wrong, named):
    with pytest.raises(SettingsError, match=named):
        wrong()


def test_a_random_decision_is_the_same_when_it_is_taken_again():
    policy, seeds = random_rate(0.5), [f"s:{step}" for step in range(200)]
    decisions = [policy.decide(replace(SEEN, seed=seed)) for seed in seeds]
    assert decisions == [policy.decide(replace(SEEN, seed=seed)) for seed in seeds]
    assert 60 < decisions.count("regenerate") < 140


def test_small_only_never_asks_the_large_model_nor_the_scorer(make):
    rig = make(policy=small_only())
    assert writers_of(rig) == ["small"] * 4
    assert not rig.large.calls
    assert not rig.scorer.calls


def test_large_only_is_one_call_cut_into_steps(make):
    rig = make(policy=large_only(), max_steps=7, max_step_tokens=11)
    result = rig.ask()
    assert not rig.small.calls
    assert not rig.scorer.calls
    (call,) = rig.large.calls
    assert (call["stop"], call["max_tokens"]) == (None, 77)
    assert result["messages"][-1].content == "\n\n".join(rig.large.script)
    assert result["trim"]["steps"] == {"small": 0, "large": 4}
    assert result["trim"]["tokens"]["large"] == call["tokens"]
    assert result["trim"]["scores"] == [None] * 4


def test_a_random_rate_needs_no_scorer_and_repeats_itself_by_its_seed(make):
    def run(seed):
        return writers_of(make(policy=random_rate(0.5), scorer=None, seed=seed))

    assert run(1) == run(1)
    assert len({tuple(run(seed)) for seed in range(8)}) > 3


def test_without_a_seed_each_run_draws_anew(make):
    rig = make(policy=random_rate(0.5), scorer=None)
    assert len({tuple(writers_of(rig)) for _ in range(12)}) > 1


@pytest.mark.parametrize(("k", "kinds"), [(0, "slss"), (1, "slls"), (2, "slll"), (9, "slll")])
def test_staying_on_large_writes_the_next_k_steps_without_a_draft(make, k, kinds):
    rig = make(policy=stay_on_large(threshold(0.5), k))
    assert [writer[0] for writer in writers_of(rig)] == list(kinds)
    assert len(rig.small.calls) == kinds.count("s") + 1
