"""Tests of metrics of paired results and of curves."""

import json
import math
from pathlib import Path

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
from trim_graph.evaluation.metrics import (
    best_pgr,
    cpt,
    ibc,
    mean_delta_ibc,
    mean_ibc,
    quantile,
    resampled_quantiles,
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


# Metrics of a curve of accuracy over spend


PUBLISHED = Path(__file__).parents[3] / "shared/data/trim_published_math500_threshold.jsonl"


numbers = st.floats(-1, 2, allow_nan=False)


curves = st.lists(st.tuples(st.floats(0.001, 0.999), numbers), max_size=6).map(sorted)


@pytest.fixture(scope="module")
def published():
    if not PUBLISHED.exists():
        pytest.skip(f"{PUBLISHED} is not here")
    rows = [json.loads(line) for line in PUBLISHED.read_text().splitlines()]
    small, large = rows[0]["accuracy"], rows[-1]["accuracy"]
    tokens = [row["avg_target_tokens_per_question"] for row in rows]
    return sorted(
        (used / tokens[-1], (row["accuracy"] - small) / (large - small))
        for row, used in zip(rows, tokens, strict=True)
    )


def test_the_published_metrics_are_reproduced(published):
    assert [round(100 * cpt(published, target), 1) for target in (0.5, 0.8, 0.95)] == [19.7, 27.8, 43.4]
    assert mean_ibc(published) == pytest.approx(1.908, abs=5e-4)
    assert mean_delta_ibc(published) == pytest.approx(0.908, abs=5e-4)


def test_the_mean_up_to_a_share_leaves_out_what_is_beyond(published):
    within = cpt(published, 0.95)

    assert mean_delta_ibc(published, up_to=within) == pytest.approx(1.559, abs=5e-4)
    # On a straight piece every share has the same slope.
    assert mean_ibc([(0.2, 0.8)], up_to=0.2) == pytest.approx(4)


@pytest.mark.parametrize("up_to", [0, -0.1, 1.1, float("nan")])
def test_a_mean_up_to_no_share_is_refused(up_to):
    with pytest.raises(ValueError, match=f"up_to={up_to}: choose a share above 0"):
        mean_ibc([], up_to=up_to)


def test_the_straight_line_is_one():
    assert mean_ibc([]) == pytest.approx(1)
    assert mean_delta_ibc([(0.3, 0.3), (0.6, 0.6)]) == pytest.approx(0)
    assert cpt([], 0.8) == pytest.approx(0.8)
    assert best_pgr([], 0.3) == pytest.approx(0.3)


def test_points_are_joined_by_lines():
    points = [(0.2, 0.8), (0.4, 0.6)]
    # 0.05 to 0.2 lie on a line of slope 4; the worse point counts in the mean.
    assert mean_ibc(points, shares=5) == pytest.approx(
        (0.8 / 0.2 + 0.6 / 0.4 + (0.6 + 0.4 / 3) / 0.6 + (0.6 + 0.8 / 3) / 0.8 + 1) / 5
    )
    # ... and not on the frontier.
    assert cpt(points, 0.4) == pytest.approx(0.1)
    assert cpt(points, 0.9) == pytest.approx(0.6)
    assert best_pgr(points, 0.4) == pytest.approx(0.85)
    assert ibc(0.8, 0.2) == 4
    assert ibc(0.8, 0) is None


def test_more_than_the_large_model_recovers():
    assert cpt([(0.5, 1.25)], 1) == pytest.approx(0.4)
    assert best_pgr([(0.5, 1.25)], 0.9) == 1.25


@given(curves, st.floats(0.01, 1))
def test_a_target_is_reached_at_its_cpt(points, target):
    share = cpt(points, target)
    assert 0 < share <= 1
    assert best_pgr(points, share) == pytest.approx(target, abs=1e-6) or best_pgr(points, share) > target
    assert cpt(points, 1) >= share


@given(curves, numbers)
def test_a_better_point_never_hurts(points, more):
    better = [(share, max(pgr, more)) for share, pgr in points]
    assert mean_ibc(better) >= mean_ibc(points) - 1e-9
    assert mean_delta_ibc(points) == mean_ibc(points) - 1


ties = st.sampled_from([-0.1, 0.0, 0.2, 0.5, 1.0, 1.2])


resampled = st.lists(
    st.lists(st.tuples(ties | st.floats(0.001, 1.2), ties | numbers), min_size=3, max_size=3),
    min_size=1,
    max_size=5,
)


@given(resampled, st.sampled_from([0.0, 0.2, 0.3, 0.5, 1.0]), st.sampled_from([0.2, 0.5, 0.95, 1.0]))
def test_arrays_give_each_resample_its_own_metric(resamples, share, target):
    """Points of a resample may have changed places."""
    points = [
        (np.array([one[place][0] for one in resamples]), np.array([one[place][1] for one in resamples]))
        for place in range(3)
    ]
    for metric in (
        mean_ibc,
        mean_delta_ibc,
        lambda given: cpt(given, target),
        lambda given: best_pgr(given, share),
    ):
        alone = [metric(sorted(one)) for one in resamples]
        assert metric(points).tolist() == pytest.approx(alone, rel=1e-9, abs=1e-9)
    plain = [ibc(one[0][1], one[0][0]) for one in resamples]
    found = ibc(points[0][1], points[0][0]).tolist()
    assert [None if value != value else value for value in found] == plain


def test_what_is_undefined_stays_so():
    assert mean_ibc([(0.5, None)]) is None
    assert mean_delta_ibc([(0.5, None)]) is None
    assert cpt([(0.5, float("nan"))], 0.5) is None
    assert np.isnan(mean_ibc([(np.array([0.5, 0.5]), np.array([0.7, np.nan]))])).tolist() == [False, True]
    assert np.isnan(ibc(np.array([0.5, 0.5]), np.array([0.0, 0.5]))).tolist() == [True, False]


def test_what_is_no_curve_is_refused():
    with pytest.raises(ValueError, match="in order of share"):
        mean_ibc([(0.5, 0.6), (0.2, 0.4)])
    with pytest.raises(ValueError, match="target=0"):
        cpt([], 0)
    with pytest.raises(ValueError, match=r"share=1\.5"):
        best_pgr([], 1.5)
    with pytest.raises(ValueError, match="shares=0"):
        mean_ibc([], shares=0)


# Quantiles and resamples


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.floats(0.01, 1))
def test_a_quantile_is_a_value_that_the_share_does_not_exceed(values, share):
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    drawn = resampled_quantiles(values, share, resamples=50)
    assert set(drawn.tolist()) <= set(values)


def test_the_spread_of_a_median_is_that_of_real_resamples():
    values = np.random.default_rng(1).exponential(size=80)
    rng = np.random.default_rng(2)
    real = [quantile(rng.choice(values, 80), 0.5) for _ in range(4000)]
    drawn = resampled_quantiles(values, 0.5, resamples=4000)
    assert np.percentile(drawn, [5, 50, 95]) == pytest.approx(np.percentile(real, [5, 50, 95]), abs=0.06)
    assert quantile([], 0.5) is None
    with pytest.raises(ValueError, match="no values"):
        resampled_quantiles([], 0.5)


def test_many_questions_are_resampled_in_little_memory():
    import tracemalloc

    n = 200_000
    column = np.tile([0.0, 1.0], n // 2)
    tracemalloc.start()
    means = resampled_means({"a": column}, resamples=20)["a"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6  # all 20 resamples at once would take half as much again
    assert means.mean() == pytest.approx(0.5, abs=0.002)
    assert means.std() == pytest.approx(0.5 / n**0.5, rel=0.6)
