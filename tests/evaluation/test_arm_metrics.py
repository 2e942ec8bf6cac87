import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import a_record
from scipy.stats import binom

from trim_graph import InputError, ModelPrice, Prices
from trim_graph.evaluation import compare
from trim_graph.evaluation.comparison import (
    ADDED,
    NUMBERS,
    Comparison,
    MetricColumns,
    read_metric_columns,
    resample,
)
from trim_graph.evaluation.metrics import mean_ibc, quantile, resampled_means, resampled_quantiles
from trim_graph.evaluation.records import METRICS
from trim_graph.evaluation.verdicts import LEAST, CostModel, headline, judge, overall

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


def test_without_a_gap_there_is_no_curve():
    arms = {**small_and_large(right=N), "p": columns([True] * N, [10] * N)}
    (curve,) = compared(arms).curves()
    assert curve["mean_ibc"] == {"value": None, "interval": None}
    assert curve["points"][0]["pgr"] is None
    (verdict,) = judge(compared(arms), CostModel(priced=True))
    assert verdict["use"] == "no"
    assert "use the small one alone" in verdict["text"]


def decided(arm, *, priced=True, second=0.0, max_loss=0.5, kinds=(), **others):
    comparison = compared({**small_and_large(), "p": arm, **others}, kinds)
    verdicts = {verdict["arm"]: verdict for verdict in judge(comparison, CostModel(priced, second, max_loss))}
    return verdicts["p"], overall(list(verdicts.values()), comparison)


def good(**more):
    """An arm that recovers most of the gap at a fifth of the spend."""
    return columns([i < 55 for i in range(N)], [20] * N, added=1.0, **more)


def test_what_saves_and_is_nearly_as_good_is_to_be_used():
    verdict, whole = decided(good())
    assert verdict["use"] == "yes"
    assert verdict["saved"]["value"] == pytest.approx(8)
    assert verdict["added"]["value"] == pytest.approx(1)
    assert verdict["net"]["value"] == pytest.approx(7)
    assert verdict["accuracy"]["value"] == pytest.approx(-5 / 60)
    assert "saves 80 % of the large model's cost and spends 10 %" in verdict["text"]
    assert "70 % net" in verdict["text"]
    assert f"{whole.removeprefix('Use it here, with ')} Use it here." == verdict["text"]


@pytest.mark.parametrize(
    ("arm", "options", "expected"),
    [
        (columns([True] * N, [95] * N, added=1.0), {}, "It costs no less than the large model alone."),
        (columns([i < 20 for i in range(N)], [20] * N), {}, "no more often right than the small model alone"),
        (
            columns([i < 25 for i in range(N)], [50] * N),
            {},
            "drawing one of the two models for each question",
        ),
        (good(seconds=9.0), {"second": 1.0}, "It costs no less than the large model alone."),
        (
            good(),
            {
                "random-1": columns([i < 56 for i in range(N)], [20] * N),
                "kinds": {"random-1": "random"},
            },
            "the scores are of no use",
        ),
        (
            columns([i < 45 for i in range(N)], [20] * N),
            {
                "kind-1": columns([True] * N, [15] * N),
                "kind-2": columns([True] * N, [25] * N),
                "kinds": {"kind-1": "baseline", "kind-2": "baseline"},
            },
            "With the same large tokens kind is more often right: use that.",
        ),
    ],
)
def test_what_is_not_to_be_used(arm, options, expected):
    verdict, whole = decided(arm, **options)
    assert verdict["use"] == "no"
    assert expected in verdict["text"]
    assert verdict["text"].endswith("Do not use it here.")
    assert whole.startswith("Do not use it here.")


@pytest.mark.parametrize(
    ("arm", "options", "expected"),
    [
        (good(), {"priced": False}, "Without prices nobody can say whether that pays."),
        (
            columns([True] * N, [180, 10] * (N // 2)),
            {},
            "whether it costs less than the large",
        ),
        (columns([i < 34 for i in range(N)], [30] * N), {}, "whether it beats drawing one of the two models"),
    ],
)
def test_a_verdict_without_enough_evidence_is_undecided_with_its_reason(arm, options, expected):
    verdict, whole = decided(arm, **options)
    assert verdict["use"] == "undecided"
    assert expected in verdict["text"]
    assert whole.startswith("Undecided.")


def test_a_spend_beyond_the_random_curve_is_reported():
    """A policy that spends more than the large model alone does, at small cost."""
    arm = columns([True] * N, [120] * N, cost=[1.0] * N)
    random = {"random-0.5": columns([i < 30 for i in range(N)], [50] * N)}
    verdict, _ = decided(arm, kinds={"random-0.5": "random"}, **random)
    assert verdict["use"] != "yes"
    reported = "It spends 120 large tokens a question, and routing at random was measured up to 100"
    assert reported in verdict["text"]


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


@pytest.mark.parametrize("n", [1, LEAST - 1, LEAST])
def test_a_few_questions_decide_nothing(n):
    arms = {"small": columns([False] * n, [0] * n), "large": columns([True] * n, [100] * n)}
    comparison = compared({**arms, "p": columns([True] * n, [20] * n)})
    (verdict,) = judge(comparison, CostModel(priced=True, max_loss=0.2))
    assert verdict["use"] == ("undecided" if n < LEAST else "yes")
    assert ("too few to decide" in verdict["text"]) is (n < LEAST)
    metrics = comparison.summaries()[2]["metrics"]
    assert metrics["accuracy"]["interval"].low == pytest.approx(0.025 ** (1 / n))
    assert (metrics["share"]["interval"] is None) is (n < LEAST)


def test_nothing_is_refused_on_one_question_either():
    arms = {"small": columns([True], [0]), "large": columns([False], [1]), "p": columns([False], [9])}
    assert judge(compared(arms), CostModel(priced=True))[0]["use"] == "undecided"


def test_a_loss_is_to_be_used_only_where_its_bound_is_within_the_margin():
    """One question lost of 60: seen is 1.7 points, and the exact bound 7.7."""
    arm = columns([i < 59 for i in range(N)], [20] * N, added=1.0)
    for max_loss, use, more in ((0.08, "yes", ""), (0.07, "undecided", "About"), (0.01, "undecided", "Here")):
        verdict, whole = decided(arm, max_loss=max_loss)
        assert verdict["use"] == use
        assert verdict["loss_bound"] == pytest.approx(0.0766, abs=1e-3)
        assert ("its loss may be 7.7 points (95 % confidence)." in whole) is (use == "undecided")
        planned = {
            "": use == "yes",
            "About": r"About \d\d0* more questions are likely to show it, if questions are lost and gained",
            "Here": r"Here it lost 1\.7 points: more questions show it only if that was chance",
        }[more]
        assert planned is True or re.search(rf"confidence\). {planned}", whole)


def test_a_loss_beyond_doubt_is_not_to_be_used():
    arm = columns([i < 45 for i in range(N)], [20] * N, added=1.0)
    verdict, whole = decided(arm, max_loss=0.1)
    assert verdict["use"] == "no"
    assert (
        "It loses at least 15.8 points of accuracy, more than the 10 points that --max-loss allows." in whole
    )


@pytest.mark.parametrize("n", [1, N])
def test_two_models_that_are_never_right_say_to_check_grader_and_prompt(n):
    wrong = {"small": columns([False] * n, [0] * n), "large": columns([False] * n, [100] * n)}
    comparison = compared({**wrong, "p": columns([False] * n, [20] * n)})
    verdicts = judge(comparison, CostModel(priced=True))
    assert verdicts[0]["use"] == "undecided"
    assert "check grader and prompt" in verdicts[0]["text"]
    said = headline(verdicts, comparison, CostModel(priced=True))
    assert said["text"] == f"Undecided: both models answer 0 of {n} right. Check grader and prompt."


@pytest.mark.parametrize("name", ["threshold-0.5", "p" * 200])
@pytest.mark.parametrize("priced", [True, False])
def test_a_headline_is_one_line_with_its_number(name, priced):
    terms = CostModel(priced, max_loss=0.5)
    comparison = compared({**small_and_large(), name: good()})
    said = headline(judge(comparison, terms), comparison, terms)
    assert len(said["text"]) <= 80
    assert said["use"] == ("yes" if priced else "undecided")
    assert (said["arm"], said["number"]) == (name, "saves 70 %" if priced else "saves 80 %")
    assert "accuracy -8.3 points." in said["text"]
    nothing = headline([], compared(small_and_large()), terms)
    assert nothing["text"] == "Undecided: no policy was evaluated."


def test_samples_of_one_question_are_no_further_questions():
    """Four samples each, half of them right: as wide as 20 questions, not as 80."""
    arms = {"small": columns([0.0] * 20, [0] * 20), "large": columns([0.5] * 20, [9] * 20)}
    metrics = {arm["arm"]: arm for arm in compared(arms).summaries()}
    low, high = metrics["large"]["metrics"]["accuracy"]["interval"]
    assert (low, high) == pytest.approx((0.272, 0.728), abs=1e-3)
    low, high = metrics["large"]["differences"]["small"]["accuracy"]["interval"]
    assert low == pytest.approx(0.265, abs=0.03)
    assert high == pytest.approx(0.71, abs=0.03)


def test_a_slower_way_says_what_waiting_may_cost():
    verdict, _ = decided(good(seconds=3.0))
    assert "That pays where a second of waiting costs less than 3.5." in verdict["text"]
    assert "second of waiting" not in decided(good(seconds=0.5))[0]["text"]


def test_questions_without_answers_have_no_accuracy():
    unknown = {name: columns([np.nan] * N, arm.of["large_tokens"]) for name, arm in small_and_large().items()}
    comparison = compared({**unknown, "p": columns([np.nan] * N, [20] * N)})
    metrics = comparison.summaries()[2]["metrics"]
    assert metrics["accuracy"]["value"] is metrics["pgr"]["value"] is None
    assert metrics["share"]["value"] == 0.2
    assert comparison.curves() == []
    assert judge(comparison, CostModel(True))[0]["use"] == "undecided"


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
