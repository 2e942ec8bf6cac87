import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import a_record

from trim_graph.evaluation import accuracy_difference, compare


def arm(correct, tokens):
    return [
        a_record(i, bool(c), large_tokens=t) for i, (c, t) in enumerate(zip(correct, tokens, strict=True))
    ]


ARMS = {
    "small": arm([1, 0, 0, 0] * 25, [0] * 100),
    "large": arm([1, 1, 1, 0] * 25, [10] * 100),
    "threshold": arm([1, 1, 0, 0] * 25, [0, 10, 0, 0] * 25),
}


def test_metrics_of_an_arm_have_values_and_intervals():
    metrics = compare(ARMS)
    row = metrics["threshold"]
    assert (row["accuracy"], row["share"], row["pgr"]) == (0.5, 0.25, 0.5)
    assert (row["large_tokens"], row["large_tokens_per_question"], row["n"]) == (250, 2.5, 100)
    assert row["accuracy_interval"].low == pytest.approx(0.40, abs=0.02)
    assert row["share_interval"].low == pytest.approx(0.17, abs=0.02)
    assert 0.3 < row["pgr_interval"].low < 0.5 < row["pgr_interval"].high < 0.7
    assert (metrics["small"]["pgr"], metrics["large"]["pgr"]) == (0, 1)
    assert (metrics["small"]["share"], metrics["large"]["share"]) == (0, 1)
    assert metrics["large"]["pgr_interval"] is None


def test_no_gap_no_pgr():
    metrics = compare({"small": ARMS["large"], "large": ARMS["small"]})
    assert metrics["small"]["pgr"] is None
    assert metrics["small"]["share"] is None


def test_errors_are_counted_and_wrong():
    broken = [a_record(i, False, error="E: x") for i in range(100)]
    metrics = compare({**ARMS, "broken": broken})
    assert (metrics["broken"]["errors"], metrics["broken"]["accuracy"]) == (100, 0)


def test_a_difference_is_paired():
    alike = accuracy_difference(ARMS["large"], ARMS["large"])
    assert alike["accuracy"] == 0
    # That no question differs among 100 does not say that none ever will.
    assert alike["interval"] == pytest.approx((-3.84 / 103.84, 3.84 / 103.84), abs=1e-4)
    found = accuracy_difference(ARMS["large"], ARMS["small"])
    assert found["accuracy"] == 0.5
    assert 0.38 < found["interval"].low < 0.5 < found["interval"].high < 0.62


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 50)), min_size=1, max_size=30))
def test_any_outcomes_have_metrics(rows):
    arms = {
        "small": arm([a for a, _, _ in rows], [0] * len(rows)),
        "large": arm([b for _, b, _ in rows], [t for _, _, t in rows]),
    }
    for row in compare(arms).values():
        assert row["accuracy_interval"].low <= row["accuracy"] + 1e-9 or len(rows) < 30
        assert row["share"] is None or 0 <= row["share"] <= 1


def test_arms_must_have_the_same_questions():
    with pytest.raises(ValueError, match="lengths"):
        compare({"small": ARMS["small"], "large": ARMS["large"][:5]})
