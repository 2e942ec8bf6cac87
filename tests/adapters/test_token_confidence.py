"""The entropy of a distribution of which only the likeliest tokens are observed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.adapters.token_confidence import entropy_of_likeliest, lowest_window_mean

weights = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=200)


def exact(p):
    return -math.fsum(x * math.log(x) for x in p if x)


@given(weights, st.integers(1, 30), st.data())
def test_it_is_a_lower_bound_and_exact_where_all_are_observed(weights, k, data):
    total = math.fsum(weights)
    p = sorted((w / total for w in weights), reverse=True)
    chosen = math.log(data.draw(st.sampled_from(p)))
    # What a server reports: the k likeliest, and the token generated even if it is none of them.
    observed = [math.log(x) for x in p[:k]]
    if chosen < observed[-1]:
        observed[data.draw(st.sampled_from([len(observed) - 1, len(observed)])) :] = [chosen]
    found = entropy_of_likeliest(observed, chosen)
    assert found.nats <= exact(p) + 1e-9
    assert found.unobserved_probability == pytest.approx(
        max(0.0, 1 - math.fsum(map(math.exp, observed))), abs=1e-9
    )
    if len(p) <= k:
        assert found.nats == pytest.approx(exact(p), abs=1e-6)


@given(weights, st.integers(1, 30))
def test_it_is_no_worse_a_bound_than_renormalising(weights, k):
    total = math.fsum(weights)
    observed = sorted((w / total for w in weights), reverse=True)[:k]
    renormalised = exact([x / math.fsum(observed) for x in observed])
    assert entropy_of_likeliest([math.log(x) for x in observed]).nats >= renormalised - 1e-9


def test_the_flattest_distributions_are_distinguished():
    found = [entropy_of_likeliest([-math.log(size)] * 20).nats for size in (20, 1000, 100_000)]
    assert found == [pytest.approx(math.log(size)) for size in (20, 1000, 100_000)]


def test_a_certain_token_has_none_and_minus_infinity_is_no_obstacle():
    assert entropy_of_likeliest([0.0, -9999.0, -math.inf]).nats == 0.0
    assert entropy_of_likeliest([-1e-9]).nats == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("wrong", [[], [math.nan], [0.0, 0.5]])
def test_what_are_no_log_probabilities_is_refused(wrong):
    with pytest.raises(ValueError, match="not log-probabilities"):
        entropy_of_likeliest(wrong)


probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=40)


@given(probabilities, st.integers(1, 50))
def test_the_lowest_window_is_the_least_mean_of_neighbours(probabilities, window):
    found = lowest_window_mean(probabilities, window)
    mean = math.fsum(probabilities) / len(probabilities)
    assert min(probabilities) - 1e-9 <= found
    assert lowest_window_mean(probabilities, 1) == min(probabilities)
    assert lowest_window_mean(probabilities, len(probabilities)) == pytest.approx(mean)
    if window < len(probabilities):
        whole = [probabilities[i : i + window] for i in range(0, len(probabilities) - window + 1)]
        assert found == pytest.approx(min(math.fsum(part) / window for part in whole))


def test_the_lowest_window_of_no_token_is_unknown():
    assert lowest_window_mean([], 4) is None
