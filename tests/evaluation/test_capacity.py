"""How many servers a load needs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_runs import a_summary

from trim_graph.errors import SettingsError
from trim_graph.evaluation.capacity import Server, capacity


def summary(**tokens):
    """One whose arm threshold-0.5 has these figures."""
    made = a_summary(10)
    (arm,) = [arm for arm in made["arms"] if arm["arm"] == "threshold-0.5"]
    arm["figures"] |= {name: {"value": value, "interval": None} for name, value in tokens.items()}
    return made


def test_a_worked_example():
    measured = {"small": Server(1000), "large": Server(400, gpus=2), "scorer": Server(5000)}
    asked = summary(
        small_tokens=300, small_calls=10, small_prefill=4000, small_cached_prefill=3000,
        large_tokens=90, large_calls=3, large_prefill=1200, scorer_tokens=5000, scorer_calls=10,
    )  # fmt: skip
    (found,) = capacity(asked, ["threshold-0.5"], measured, questions_per_second=10, utilisation=0.5)
    small, large, scorer = found.needs
    assert (small.load, small.replicas, small.gpus, small.busy) == (3000, 6, 6, 0.5)
    assert (large.load, large.replicas, large.gpus) == (900, 5, 10)  # 4.5 servers
    assert (scorer.load, scorer.replicas) == (50_000, 20)
    assert (small.prompt, large.prompt, scorer.prompt) == ((400, 300), (400, 0), None)
    assert (found.gpus, found.share) == (36, 0.26)


@settings(deadline=None)
@given(
    st.floats(0.01, 1000), st.floats(0.1, 1e5), st.floats(0.1, 1e6), st.floats(0.05, 1.0), st.integers(1, 8)
)
def test_the_servers_are_just_enough(rate, tokens, speed, utilisation, gpus):
    asked = summary(large_tokens=tokens)
    (found,) = capacity(
        asked,
        ["threshold-0.5"],
        {"large": Server(speed, gpus)},
        questions_per_second=rate,
        utilisation=utilisation,
    )
    (need,) = found.needs
    assert need.busy <= utilisation * (1 + 1e-6)
    assert need.replicas >= 1
    assert (need.replicas - 1) * utilisation * speed < need.load * (1 + 1e-6)
    assert found.gpus == need.replicas * gpus


def test_a_load_near_none_takes_a_server():
    asked = summary(large_tokens=1e-6)
    (found,) = capacity(asked, ["threshold-0.5"], {"large": Server(1e9)}, questions_per_second=1e-6)
    assert [(need.part, need.replicas) for need in found.needs] == [("large", 1)]


def test_a_part_that_is_not_asked_needs_nothing():
    (found,) = capacity(summary(), ["large"], {"large": Server(1e9)}, questions_per_second=1)
    assert [(need.part, need.replicas) for need in found.needs] == [("large", 1)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"questions_per_second": 0}, "questions_per_second=0"),
        ({"questions_per_second": float("inf")}, "questions_per_second=inf"),
        ({"utilisation": 1.1}, "utilisation=1.1"),
        ({"arms": ["best"]}, "no arm 'best'; it has small, large, threshold-0.5"),
        ({"servers": {}}, "threshold-0.5 has large write 16 tokens a question"),
        ({"servers": {"large": Server(0)}}, "large: 0 tokens a second"),
        ({"servers": {"large": Server(1, 0)}}, "large: 0 GPUs"),
    ],
)
def test_wrong_numbers_are_named(changes, said):
    usual = {"arms": ["threshold-0.5"], "servers": {"large": Server(1)}, "questions_per_second": 1}
    with pytest.raises(SettingsError, match=said):
        capacity(summary(), **{**usual, **changes})
