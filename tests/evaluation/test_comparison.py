"""Tests of comparisons of arms: their metrics with intervals, savings and curves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import a_record
from scipy.stats import binom

from trim_graph import InputError, ModelPrice, Prices
from trim_graph.evaluation import accuracy_difference, compare
from trim_graph.evaluation.comparison import (
    ADDED,
    NUMBERS,
    Comparison,
    MetricColumns,
    read_metric_columns,
    resample,
)
from trim_graph.evaluation.metrics import mean_ibc
from trim_graph.evaluation.records import METRICS


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


# Comparisons of columns: savings, curves, and what is read from rows


N = 60


def columns(correct, large_tokens, *, cost=None, added=0.0, seconds=1.0):
    n = len(correct)
    of = {name: np.zeros(n) for name in (*NUMBERS, ADDED)}
    of["correct"] = np.array(correct, dtype=float)
    of["large_tokens"] = np.array(large_tokens, dtype=float)
    of["cost"] = of["large_tokens"] / 10 + added if cost is None else np.array(cost, dtype=float)
    of[ADDED] = np.full(n, float(added))
    of["seconds"] = np.full(n, float(seconds))
    of["first_step"] = of["seconds"] / 2
    return MetricColumns(0, of)


def compared(arms, kinds=(), *, timed=True):
    """Compares arms; ``small`` and ``large`` are among them."""
    known = {"small": "reference", "large": "reference", **dict(kinds)}
    settings = {
        name: {
            "kind": known.get(name, "policy"),
            "family": name.partition("-")[0],
            "policy": {},
        }
        for name in arms
    }
    n = len(next(iter(arms.values())).of["correct"])
    return Comparison({name: resample(arm, timed=timed) for name, arm in arms.items()}, settings, n=n)


def small_and_large(n=N, right=20, **more):
    return {
        "small": columns([i < right for i in range(n)], [0] * n, added=0.5, **more),
        "large": columns([True] * n, [100] * n, **more),
    }


numbers = st.lists(
    st.tuples(st.booleans(), st.booleans(), st.booleans(), st.integers(0, 50), st.integers(1, 50)),
    min_size=2,
    max_size=30,
)


@settings(max_examples=20)
@given(numbers)
def test_metrics_are_those_of_compare(rows):
    """The same accuracy, share and PGR, with the same intervals, as the function for outcomes in memory."""
    small, large, policy, own, whole = (list(column) for column in zip(*rows, strict=True))
    of = {"small": (small, [0] * len(rows)), "large": (large, whole), "p": (policy, own)}
    outcomes = {
        name: [
            a_record(i, right, large_tokens=spent) for i, (right, spent) in enumerate(zip(*arm, strict=True))
        ]
        for name, arm in of.items()
    }
    old = compare(outcomes)
    new = {
        arm["arm"]: arm["metrics"]
        for arm in compared({n: columns(*arm) for n, arm in of.items()}).summaries()
    }
    for name, metrics in old.items():
        for key in ("accuracy", "share", "pgr"):
            assert new[name][key]["value"] == (
                None if metrics[key] is None else pytest.approx(metrics[key], abs=1e-12)
            )
            spread = metrics[f"{key}_interval"]
            assert new[name][key]["interval"] == (None if spread is None else pytest.approx(spread, abs=1e-9))
        assert set(new[name]) == set(METRICS)


def test_savings_are_those_against_the_large_model_as_it_was_run():
    arms = {**small_and_large(), "p": columns([True] * N, [120] * N, added=3.0, seconds=1.5)}
    for arm, tokens in (("small", 40), ("large", 200), ("p", 500)):
        arms[arm].of["tokens"] += tokens
    savings = {arm["arm"]: arm["savings"] for arm in compared(arms).summaries()}
    assert {key: one["value"] for key, one in savings["p"].items()} == {
        "tokens": -300,
        "large_tokens": -20,
        "cost": -5,
        "seconds": -0.5,
    }
    assert savings["small"]["cost"]["value"] == 9.5
    assert all(one["value"] == 0 for one in savings["large"].values())
    for one in savings["p"].values():
        low, high = one["interval"]
        assert low <= one["value"] <= high


def test_savings_in_money_are_unknown_without_a_price_of_the_large_model():
    arms = {**small_and_large(cost=[0] * N), "p": columns([True] * N, [10] * N, cost=[0] * N)}
    (*_, p) = compared(arms).summaries()
    assert p["savings"]["cost"] == {"value": None, "interval": None}


def test_seconds_of_a_cache_are_of_no_arm():
    arms = {**small_and_large(seconds=2.0), "p": columns([True] * N, [10] * N, seconds=1.0)}
    found = compared(arms, timed=False)
    (*_, p) = found.summaries()
    seconds = [p["savings"]["seconds"], p["differences"]["large"]["seconds"]]
    seconds += [p["metrics"][name] for name in ("seconds", "seconds_median", "seconds_p95", "first_step_p95")]
    assert seconds == [{"value": None, "interval": None}] * 6
    assert found.large_alone().seconds_per_token is None
    (*_, p) = compared(arms).summaries()
    assert p["differences"]["large"]["seconds"]["value"] == -1.0


def test_the_models_alone_show_length_ratio_and_pace_of_the_large_one():
    arms = small_and_large(seconds=2.0)
    arms["small"].of["small_tokens"] += 80
    found = compared(arms).large_alone()
    assert (found.length_ratio, found.seconds_per_token) == (1.25, 0.02)
    assert compared(small_and_large()).large_alone().length_ratio is None


def test_arms_of_a_family_make_one_curve():
    arms = small_and_large()
    arms["t-1"] = columns([i < 40 for i in range(N)], [20] * N)
    arms["t-2"] = columns([i < 50 for i in range(N)], [50] * N)
    (curve,) = compared(arms).curves()
    assert [(point["arm"], point["share"]) for point in curve["points"]] == [("t-1", 0.2), ("t-2", 0.5)]
    assert curve["mean_ibc"]["value"] == pytest.approx(mean_ibc([(0.2, 0.5), (0.5, 0.75)]))
    assert curve["mean_delta_ibc"]["value"] == pytest.approx(curve["mean_ibc"]["value"] - 1)
    assert curve["cpt"]["50"]["value"] == pytest.approx(0.2)
    assert curve["cpt"]["80"]["value"] == pytest.approx(0.6)
    # Within a tenth of the large tokens: a quarter of the gap, 20 of 60 and a sixth more.
    assert curve["budgeted_accuracy"]["0.1"]["value"] == pytest.approx(20 / 60 + 0.25 * 40 / 60)
    for metric in (curve["mean_ibc"], curve["cpt"]["80"], curve["budgeted_accuracy"]["0.2"]):
        low, high = metric["interval"]
        assert low <= metric["value"] <= high
        assert low < high


def test_a_curve_is_read_off_at_the_spend_of_a_policy():
    """Spends are the same for all questions, so the curve at 25 is half of random-0.5, in every resample."""
    right = [i % 4 == 0 for i in range(N)]
    arms = {
        "small": columns([False] * N, [0] * N),
        "random-0.5": columns([True] * N, [50] * N),
        "large": columns([True] * N, [100] * N),
        "p": columns(right, [25] * N),
        "q": columns(right, [75] * N),
        "dear": columns(right, [101] * N),
    }
    comparison = compared(arms, {"random-0.5": "random"})
    found = {name: comparison.matched_budget(name) for name in arms}
    assert found["small"] == found["large"] == found["random-0.5"] == {}
    at_25 = found["p"]["random"]
    assert at_25["accuracy"] == {"value": 0.5, "interval": (0.5, 0.5)}
    assert at_25["difference"]["value"] == 0.25 - 0.5
    # What is left is the spread of 15 right answers of 60 questions: a binomial one.
    expected = binom.ppf([0.025, 0.975], N, 0.25) / N - 0.5
    assert at_25["difference"]["interval"] == pytest.approx(expected, abs=1.01 / N)
    assert at_25["curve_ends"] is None
    assert found["q"]["random"]["accuracy"] == {"value": 1.0, "interval": (1.0, 1.0)}
    unknown = {"value": None, "interval": None}
    assert found["dear"]["random"] == {"accuracy": unknown, "difference": unknown, "curve_ends": 100.0}


def test_a_curve_is_that_of_each_resample():
    """Where spends differ by question, the interval is that of resamples that are drawn one by one."""
    rng = np.random.default_rng(3)
    spends = {"small": 0, "random-0.3": 30, "random-0.6": 60, "large": 100, "p": 45}
    chances = {"small": 0.3, "random-0.3": 0.5, "random-0.6": 0.6, "large": 0.9, "p": 0.7}
    arms = {
        name: columns(rng.random(N) < chances[name], rng.poisson(spend, N) if spend else [0] * N)
        for name, spend in spends.items()
    }
    kinds = dict.fromkeys(("random-0.3", "random-0.6"), "random")
    difference = compared(arms, kinds).matched_budget("p")["random"]["difference"]

    def at(places):
        means = {
            name: (arm.of["large_tokens"][places].mean(), arm.of["correct"][places].mean())
            for name, arm in arms.items()
        }
        (at, own), curve = means.pop("p"), sorted(means.values())
        return own - np.interp(at, *zip(*curve, strict=True))

    assert difference["value"] == pytest.approx(at(np.arange(N)))
    drawn = [at(rng.integers(0, N, N)) for _ in range(2000)]
    assert difference["interval"] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.02)


def test_columns_of_rows_want_all_of_them(make_row):
    rows = [make_row(index=index, sample=sample) for index in (1, 0) for sample in (1, 0)]
    read = read_metric_columns(iter(rows), n=2, samples=2, prices=Prices())
    assert read.mean("large_tokens") == 14
    assert read.mean("small_tokens") == 6
    assert read.graded
    assert read_metric_columns(iter(rows), n=1, samples=2, prices=Prices()).of["cost"].shape == (1,)
    with pytest.raises(InputError, match="1 rows are missing, the first of question 0, sample 0"):
        read_metric_columns(iter(rows[:3]), n=2, samples=2, prices=Prices())
    with pytest.raises(InputError, match="question 1, sample 1 has two rows"):
        read_metric_columns(iter([rows[0], rows[0]]), n=2, samples=2, prices=Prices())
    failed = make_row(index=0, error="OSError: gone", correct=False, first_step_seconds=None)
    one = read_metric_columns(iter([failed]), n=1, samples=1, prices=Prices())
    assert one.errors == 1
    assert resample(one).quantiles["first_step_median"]["value"] is None


def test_what_a_judge_writes_is_part_of_the_cost_besides_the_large_model(make_row):
    prices = Prices(scorer=ModelPrice(input=1, output=10))
    row = make_row()
    judged = {**row, "tokens": {**row["tokens"], "scorer": 100, "scorer_output": 50}}
    older = {**row, "tokens": {**row["tokens"], "scorer": 100}}
    del older["tokens"]["scorer_output"]
    columns = read_metric_columns([judged, {**older, "index": 1, "id": "q1"}], n=2, samples=1, prices=prices)
    assert columns.of[ADDED].tolist() == pytest.approx([600e-6, 100e-6])
    assert columns.of["scorer_output_tokens"].tolist() == [50, 0]
