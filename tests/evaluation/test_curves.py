import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.evaluation.metrics import best_pgr, cpt, ibc, mean_delta_ibc, mean_ibc

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
