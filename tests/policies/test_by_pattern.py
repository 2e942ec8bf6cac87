from dataclasses import replace

import pytest

from trim_graph import SettingsError
from trim_graph.policies import Observation, by_pattern
from trim_graph.routing.router import _built

SEEN = Observation(question="q", index=0, max_steps=8)


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
