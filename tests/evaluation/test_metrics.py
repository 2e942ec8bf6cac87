import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.evaluation import (
    accuracy,
    interval,
    performance_gap_recovered,
    resampled_means,
    share_of_large_tokens,
)

shares = st.floats(0, 1)
bits = st.lists(st.booleans(), min_size=1, max_size=40)


@given(bits)
def test_accuracy_is_the_share_of_right_answers(correct):
    assert accuracy(correct) == correct.count(True) / len(correct)


def test_accuracy_of_nothing_is_undefined():
    assert accuracy([]) is None


@given(shares, shares)
def test_pgr_is_0_at_small_and_1_at_large(small, large):
    if large > small:
        assert performance_gap_recovered(small, small, large) == 0
        assert performance_gap_recovered(large, small, large) == 1
    else:
        assert performance_gap_recovered(large, small, large) is None


def test_pgr_may_leave_the_unit_interval():
    assert performance_gap_recovered(0.9, 0.5, 0.7) == pytest.approx(2)
    assert performance_gap_recovered(0.4, 0.5, 0.7) == pytest.approx(-0.5)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_share_of_large_tokens_is_none_of_nothing(tokens, whole):
    share = share_of_large_tokens(tokens, whole)
    assert share is None if whole == 0 else share * whole == pytest.approx(tokens)


@given(bits, st.integers(0, 5))
def test_resampled_means_are_means_of_what_is_there(correct, seed):
    means = resampled_means({"a": correct, "same": correct}, resamples=50, seed=seed)
    assert means["a"].shape == (50,)
    assert (means["a"] >= min(correct)).all()
    assert (means["a"] <= max(correct)).all()
    assert (means["a"] == means["same"]).all()  # paired
    again = resampled_means({"a": correct, "same": correct}, resamples=50, seed=seed)
    assert (again["a"] == means["a"]).all()


def test_the_spread_is_that_of_the_mean():
    correct = [True] * 70 + [False] * 30
    found = interval(resampled_means({"a": correct})["a"])
    half = 1.96 * math.sqrt(0.7 * 0.3 / 100)
    assert found.low == pytest.approx(0.7 - half, abs=0.02)
    assert found.high == pytest.approx(0.7 + half, abs=0.02)


@pytest.mark.parametrize("columns", [{}, {"a": []}, {"a": [1], "b": [1, 2]}])
def test_columns_of_different_lengths_are_refused(columns):
    with pytest.raises(ValueError, match="columns have the lengths"):
        resampled_means(columns)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60))
def test_an_interval_lies_within_its_values(values):
    low, high = interval(values)
    assert min(values) <= low <= high <= max(values)


def test_an_interval_needs_a_figure_in_nearly_all_resamples():
    assert interval([None] * 5 + [0.5] * 95) == (0.5, 0.5)
    assert interval([None] * 6 + [0.5] * 94) is None
    assert interval(np.array([])) is None
