"""The estimate of an evaluation: what each kind of run takes, and what is measured where runs are there."""

import json

import pytest
from written_runs import a_row, write_run

from trim_graph import ModelPrice, Prices
from trim_graph.evaluation.baselines import BASELINES, count_fitting_runs, planned_runs
from trim_graph.evaluation.forecast import (
    ASSUMED_STEPS,
    Lengths,
    PlannedRuns,
    Spend,
    count_and_measure,
    estimate_spend,
    lengths_of,
)

LENGTHS = Lengths(prompt=100, steps=4, tokens=40)
READING = 4 * 100 + 40 * 3 / 2


def spend(kind, **more):
    return PlannedRuns("all", None, kind, 10, **more).spend(LENGTHS, {})


@pytest.mark.parametrize(
    ("kind", "more", "calls", "read", "written"),
    [
        ("small", {}, {"small": 4}, {"small": READING}, {"small": 40}),
        ("large", {}, {"large": 1}, {"large": 100}, {"large": 40}),
        ("scores", {}, {"scorer": 1}, {"scorer": 140}, {}),
        (
            "routed",
            {"rate": 0.5},
            {"small": 4, "large": 2, "scorer": 4},
            {"small": READING, "large": READING / 2, "scorer": READING + 40},
            {"small": 40, "large": 20},
        ),
        (
            "routed",
            {"judge": "large"},
            {"small": 4, "large": 8},
            {"small": READING, "large": 2 * READING + 40},
            {"small": 40, "large": 40},
        ),
        (
            "probed",
            {"rate": 0.0, "scored": False},
            {"small": 8},
            {"small": 2 * READING},
            {"small": 44},
        ),
    ],
)
def test_each_kind_of_run_takes_what_its_calls_take(kind, more, calls, read, written):
    found = spend(kind, **more)
    for got, wanted in ((found.calls, calls), (found.read, read), (found.written, written)):
        assert {model: value for model, value in got.items() if value} == pytest.approx(
            {model: 10 * value for model, value in wanted.items()}
        )


def test_an_arm_with_rows_is_measured_on_them(tmp_path):
    folder = write_run(tmp_path / "run", [a_row(arm, i) for arm in ("small", "large") for i in range(3)])
    counts, seen = count_and_measure(folder, ["small", "large", "new"])
    assert counts == {"small": 3, "large": 3, "new": 0}
    assert seen.keys() == {"small", "large"}
    row = a_row("large", 0)
    assert seen["large"].calls["large"] == row["calls"]["large"]
    assert seen["large"].written["large"] == row["large_tokens"]
    lengths = lengths_of(["a question"], None, seen)
    assert lengths == Lengths(row["prefill"]["large"], row["calls"]["small"], row["large_tokens"], True)
    left = PlannedRuns("all", "large", "large", 7).spend(lengths, seen)
    assert left.calls["large"] == 7 * row["calls"]["large"]
    assert left.runs == 7


def test_without_rows_lengths_are_assumed_from_the_texts():
    lengths = lengths_of(["x" * 300, "y" * 100], "z" * 40, {})
    assert (lengths.prompt, lengths.steps, lengths.measured) == (60, ASSUMED_STEPS, False)


def test_a_judge_is_the_model_that_it_is_where_rows_are_there_too():
    seen = {"judge-7of9": Spend(1, {"large": 2, "scorer": 5}, {"scorer": 100}, {"large": 30, "scorer": 5})}
    planned = PlannedRuns("baselines", "judge-7of9", "routed", 2, judge="large")
    found = planned.spend(LENGTHS, seen)
    assert (found.calls["large"], found.read["large"], found.written["large"]) == (14, 200, 70)
    assert found.calls["scorer"] == found.read["scorer"] == found.written["scorer"] == 0


def test_cost_is_that_of_the_price_table():
    prices = Prices(small=ModelPrice(input=1, output=2), large=ModelPrice(output=10))
    one = Spend(1, {}, {"small": 1e6, "large": 1e6}, {"small": 1e6, "large": 1e6})
    assert one.cost(prices) == pytest.approx(1 + 2 + 10)
    planned = [PlannedRuns("a", None, "large", 2), PlannedRuns("b", None, "large", 3)]
    found = estimate_spend(planned, LENGTHS, {}, prices)
    assert found.cost == pytest.approx(5 * 40 * 10 / 1e6)
    assert {name: group.runs for name, group in found.groups.items()} == {"a": 2, "b": 3}
    assert (found.total.runs, found.calls) == (5, 5)
    assert estimate_spend(planned, LENGTHS, {}, None).cost is None


def left(names, **more):
    given = {
        "n": 60,
        "samples": 2,
        "validation_n": 30,
        "scorer_type": "vllm_prm",
        "judged": True,
        "judge": None,
    }
    return list(planned_runs(names, **{**given, "done": lambda name: 0, **more}))


def test_baselines_plan_the_runs_that_they_make():
    assert {name: sum(one.left for one in left([name]) if one.kind != "scores") for name in BASELINES} == {
        "router": 60,  # either model on the validation questions
        "cascade": 0,
        "score_cascade": 0,
        "prm": 120,
        "judge": 120,
        "entropy": 50 + 3 * 120,  # a pilot, and three operating points
        "kind": 30 + 3 * 120,
    }
    assert [(one.kind, one.left) for one in left(["score_cascade"])] == [("scores", 120)]
    assert left(["kind", "router"], validation_n=0) == left(["prm"], scorer_type=None) == []
    assert left(["prm"], scorer_type="token_probability") == []
    assert left(["judge"], judged=False) == []


def test_runs_that_fit_baselines_count_as_done(tmp_path):
    assert set(count_fitting_runs(tmp_path).values()) == {0}
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation/small.jsonl").write_text("{}\n{}\n")
    (tmp_path / "entropies.json").write_text(json.dumps({"entropies": []}))
    done = count_fitting_runs(tmp_path)
    assert (done["validation/small"], done["validation/large"], done["pilot"]) == (2, 0, 50)
    assert (
        sum(one.left for one in left(["router"], done=lambda name: done.get(name, 0)) if one.kind != "scores")
        == 58
    )
