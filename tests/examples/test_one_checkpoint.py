"""One checkpoint's curve beside policies trained apart: equal spend, and what is measured."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.examples.arithmetic.study.families import LAMBDAS
from trim_graph.examples.arithmetic.study.one_checkpoint import MEASURED, Curve, table
from trim_graph.examples.arithmetic.study.worlds import Arm

N = 6
arms = st.lists(
    st.tuples(
        st.lists(st.booleans(), min_size=N, max_size=N),
        st.lists(st.integers(0, 50), min_size=N, max_size=N),
    ),
    min_size=2,
    max_size=6,
)


def curve_of(made):
    ordered = sorted(
        (Arm(np.array(right), np.array(tokens)) for right, tokens in made), key=lambda a: a.spent
    )
    return Curve(tuple(np.linspace(1, 0, len(ordered)).tolist()), tuple(ordered))


@given(arms, st.floats(0, 1))
def test_the_accuracy_at_a_spend_is_between_those_of_its_neighbours(made, part):
    curve = curve_of(made)
    low, high = curve.arms[0].spent, curve.arms[-1].spent
    tokens = low + round(part * (high - low))
    found = curve.at_spend(tokens).mean()
    below = max(arm.spent for arm in curve.arms if arm.spent <= tokens)
    above = min(arm.spent for arm in curve.arms if arm.spent >= tokens)
    near = [arm.accuracy for arm in curve.arms if arm.spent in (below, above)]
    assert min(near) - 1e-9 <= found <= max(near) + 1e-9


def test_halfway_between_two_thresholds_half_of_each_counts():
    curve = curve_of([([False] * N, [0] * N), ([True] * N, [10] * N)])
    assert curve.at_spend(30).tolist() == [0.5] * N
    assert curve.at_spend(60).tolist() == [1.0] * N


def test_no_spend_outside_the_curve_is_compared():
    curve = curve_of([([False] * N, [1] * N), ([True] * N, [10] * N)])
    assert curve.at_spend(5) is None
    assert curve.at_spend(61) is None


def test_every_shipped_checkpoint_is_measured():
    measured = json.loads(MEASURED.read_text())
    assert measured["n"] >= 600
    names = [(row["kind"], row["lambda"]) for row in measured["rows"]]
    assert names == [(kind, price) for kind in ("aggregate", "sequence") for price in LAMBDAS]
    assert table(measured["rows"]).count("\n") == len(names) + 1
    for row in measured["rows"]:
        spent = [point["share"] for point in row["curve"]]
        assert spent == sorted(spent)
        for other in row["others"].values():
            assert other["difference"] == pytest.approx(other["accuracy"] - other["accuracy_of_other"])
