import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.evaluation.scorer_metrics import (
    Rated,
    best_threshold,
    compare_areas,
    compute_scorer_metrics,
    discrimination,
    first_error,
    labels_from,
    looked_at,
)

SCORES = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.5000001, 0.7, 0.9, 1.0])


@st.composite
def solutions(draw):
    scores = draw(st.lists(SCORES, min_size=1, max_size=5))
    wrong = draw(st.integers(-1, len(scores) - 1))
    failed = draw(st.integers(0, 9)) == 0
    return Rated(None if failed else tuple(scores), tuple(labels_from(wrong, len(scores))))


def benchmark_f1(rated, threshold):
    """As the benchmark says it, word for word."""
    right = {True: [], False: []}
    for one in rated:
        label = one.labels.index(False) if False in one.labels else -1
        below = [at for at, score in enumerate(one.scores or ()) if score < threshold]
        reported = None if one.scores is None else (below[0] if below else -1)
        right[label >= 0].append(reported == label)
    if not (right[True] and right[False]):
        return None
    wrong, fine = (sum(right[kind]) / len(right[kind]) for kind in (True, False))
    return 0.0 if wrong + fine == 0 else 2 * wrong * fine / (wrong + fine)


@given(st.lists(solutions(), max_size=12), SCORES)
def test_f1_is_that_of_the_benchmark(rated, threshold):
    found = first_error(rated, threshold)["f1"]
    expected = benchmark_f1(rated, threshold)
    assert (found is None) == (expected is None)
    assert found is None or math.isclose(found, expected, abs_tol=1e-12)


@given(st.lists(solutions(), max_size=12))
def test_no_threshold_is_better_than_the_best(rated):
    best = best_threshold(rated)
    if best is None:
        assert benchmark_f1(rated, 0.5) is None
        return
    assert 0 <= best <= 1
    every = {score for one in rated for score in one.scores or ()} | {0.0, 0.2, 0.6, 1.0}
    assert benchmark_f1(rated, best) >= max(benchmark_f1(rated, t) for t in every) - 1e-12


def test_metrics_of_a_known_case_are_exact():
    rated = [
        Rated((0.9, 0.2, 0.1), (True, False, None)),  # found
        Rated((0.4, 0.2, 0.9), (True, False, None)),  # predicted one step too early
        Rated((0.9, 0.8), (True, True)),  # none predicted
        Rated((0.9, 0.3), (True, True)),  # a false alarm
        Rated(None, (True, True)),  # the scorer failed: judged wrong
    ]
    found = compute_scorer_metrics(rated, 0.5)
    first = found["first_error"]
    assert (first["n"], first["erroneous"], found["errors"]) == (5, 2, 1)
    assert (first["accuracy_erroneous"], first["accuracy_correct"]) == (0.5, 1 / 3)
    assert first["f1"] == pytest.approx(0.4)
    low, high = first_error(rated * 4, 0.5)["f1_interval"]
    assert 0 <= low < 0.4 < high <= 1
    # What stands behind a first wrong step is in no metric.
    assert (found["steps"]["n"], found["steps"]["right"]) == (8, 6)
    assert (found["whole"]["n"], found["whole"]["right"]) == (4, 2)


def test_one_kind_alone_has_no_f1_and_no_area():
    found = compute_scorer_metrics([Rated((0.9, 0.4), (True, True))], 0.5)
    assert found["first_error"]["accuracy_erroneous"] is None
    assert found["first_error"]["f1"] is found["steps"]["auc"] is found["whole"]["auc"] is None
    assert found["steps"]["brier"] == pytest.approx((0.01 + 0.36) / 2)


def test_drafts_nobody_looked_at_count_nowhere():
    unknown = Rated((0.9, 0.1), (True, None))
    assert looked_at(unknown) == [(0.9, True)]
    found = compute_scorer_metrics([unknown], 0.5)
    assert (found["first_error"]["n"], found["whole"]["n"], found["steps"]["n"]) == (0, 0, 1)
    assert compute_scorer_metrics([], 0.5)["steps"]["auc"] is None


@given(st.lists(st.tuples(SCORES, st.booleans()), max_size=30))
def test_the_area_is_the_chance_that_right_scores_above_wrong(pairs):
    found = discrimination(pairs[:12])
    right, wrong = ([score for score, label in pairs[:12] if label is kind] for kind in (True, False))
    if not (right and wrong):
        assert found["auc"] is None
        return
    above = sum((r > w) + (r == w) / 2 for r in right for w in wrong)
    assert found["auc"] == pytest.approx(above / len(right) / len(wrong))


def test_two_areas_are_compared_on_the_same_draws():
    right, questions = [True, False, True, False] * 5, [at // 4 for at in range(20)]
    scores = [0.5 + 0.4 * one for one in right]
    found = compare_areas(scores, scores, right, questions)
    assert (found["n"], found["questions"], found["auc"]) == (20, 5, 1.0)
    assert (found["difference_interval"], found["better"]) == ((0.0, 0.0), False)
    found = compare_areas(scores, [1 - score for score in scores], right, questions)
    assert (found["difference"], found["difference_interval"], found["better"]) == (1.0, (1.0, 1.0), True)
    assert compare_areas(scores, scores, [True] * 20, questions) is None


def test_reliability_is_counted_in_bins():
    pairs = [(0.05, False)] * 9 + [(0.09, True)] + [(1.0, True)] * 4
    low, high = discrimination(pairs)["bins"]
    assert (low["low"], low["high"], low["n"], low["right"]) == (0.0, 0.1, 10, 0.1)
    assert low["mean_score"] == pytest.approx(0.054)
    # Wilson's interval of 1 in 10.
    assert low["right_interval"] == pytest.approx((0.0179, 0.4042), abs=1e-4)
    assert (high["n"], high["right"], high["mean_score"]) == (4, 1.0, 1.0)
    expected = (10 * abs(0.054 - 0.1) + 0) / 14
    assert discrimination(pairs)["calibration_error"] == pytest.approx(expected)


def test_intervals_draw_whole_solutions():
    # The steps of a solution stand and fall together: drawn one by one they would seem to say more.
    pairs = [(0.9, True)] * 20 + [(0.4, True)] * 20 + [(0.5, False)] * 20 + [(0.2, False)] * 20
    alone = discrimination(pairs)["auc_interval"]
    joint = discrimination(pairs, [at // 5 for at in range(80)])["auc_interval"]
    assert joint.high - joint.low > 1.5 * (alone.high - alone.low)
