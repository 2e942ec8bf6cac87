"""Tests of metrics of scorers, and of labelled solutions as they are read and scored."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph import InputError
from trim_graph.evaluation.scorer_metrics import (
    Rated,
    best_threshold,
    compare_areas,
    compute_scorer_metrics,
    discrimination,
    first_error,
    labels_from,
    looked_at,
    read_labelled,
    score_labelled,
)
from trim_graph.evaluation.traces import read_traces, write_traces
from trim_graph.testing import ScriptedScorer

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


# Labelled solutions: their formats, and their scores


DATA = Path(__file__).parents[3] / "shared" / "data"


ROWS = [
    {
        "id": "a",
        "problem": "p",
        "steps": ["x", "y", "z"],
        "label": 1,
        "generator": "G",
        "final_answer_correct": False,
    },
    {"id": "b", "problem": "q", "steps": ["u"], "label": -1, "final_answer_correct": True},
]


def file_of(tmp_path, rows, name="bench.jsonl"):
    file = tmp_path / name
    whole = json.dumps(rows) if file.suffix == ".json" else "\n".join(json.dumps(row) for row in rows)
    file.write_text(whole)
    return file


@pytest.mark.parametrize("name", ["bench.jsonl", "bench.json"])
def test_labels_end_at_the_first_wrong_step(tmp_path, name):
    first, second = read_labelled(file_of(tmp_path, ROWS, name))
    assert first["labels"] == [True, False, None]
    assert second["labels"] == [True]
    assert (first["dataset"], first["id"], first["generator"], first["correct"]) == ("bench", "a", "G", False)
    assert labels_from(0, 2) == [False, None]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "p", "steps": ["x"]}, "label is missing; expected problem, steps, label"),
        (
            {"problem": "p", "steps": ["x"], "label": 1},
            "label is 1; expected the index of one of the 1 steps, or -1",
        ),
        ({"problem": "p", "steps": ["x"], "label": -2}, "label is -2"),
        ({"problem": "p", "steps": [], "label": -1}, "steps is empty"),
        ({"problem": "p", "steps": "x", "label": 0}, "steps: Input should be a valid list"),
        ({"problem": "p", "steps": ["x"], "label": "no"}, "label: Input should be a valid integer"),
    ],
)
def test_another_shape_is_refused_with_its_line(tmp_path, row, message):
    with pytest.raises(InputError, match=rf"bench\.jsonl, line 2: .*{message}"):
        list(read_labelled(file_of(tmp_path, [ROWS[0], row])))


def test_big_bench_mistake_has_the_index_of_the_first_mistake(tmp_path):
    row = {"input": "q", "steps": ["x", "y", "z"], "mistake_index": 1, "target": "(A)", "answer": "(B)"}
    wrong, right = read_labelled(file_of(tmp_path, [row, {**row, "mistake_index": None, "answer": "(A)"}]))
    assert (wrong["question"], wrong["labels"], wrong["correct"]) == ("q", [True, False, None], False)
    assert (right["labels"], right["correct"]) == ([True, True, True], True)


def rated(*steps):
    """A row of PRM800K: of each step the ratings of its completions, and which of them was chosen."""
    return {
        "question": {"problem": "q"},
        "label": {
            "steps": [
                {
                    "completions": [{"text": f"{rating}", "rating": rating} for rating in ratings],
                    "human_completion": None,
                    "chosen_completion": chosen,
                }
                for ratings, chosen in steps
            ]
        },
    }


def test_prm800k_gives_the_chosen_solution_and_each_wrong_alternative(tmp_path):
    row = rated(([1, -1], 0), ([0], 0), ([-1, 1], 1))
    found = [(one["id"], one["steps"], one["labels"]) for one in read_labelled(file_of(tmp_path, [row]))]
    assert found == [
        ("0-0-1", ["-1"], [False]),
        ("0-2-0", ["1", "0", "-1"], [True, True, False]),
        ("0", ["1", "0", "1"], [True, True, True]),
    ]


def test_prm800k_ends_where_nothing_was_chosen_and_takes_what_a_person_wrote(tmp_path):
    row = rated(([1], 0), ([-1], None), ([1], 0))
    row["label"]["steps"][1]["human_completion"] = {"text": "by hand", "rating": None}
    found = [(one["steps"], one["labels"]) for one in read_labelled(file_of(tmp_path, [row]))]
    assert found == [(["1", "-1"], [True, False]), (["1", "by hand", "1"], [True, True, True])]
    row["label"]["steps"][1]["human_completion"] = None
    assert [one["steps"] for one in read_labelled(file_of(tmp_path, [row]))] == [["1", "-1"], ["1"]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input": "q", "steps": ["x"], "mistake_index": 1}, "mistake_index is 1; expected .* or null"),
        (rated(([1], 3)), "chosen_completion is 3; expected the index of one of the 1 completions"),
        (rated(([2], 0)), "label.steps.0.completions.0.rating: Input should be"),
    ],
)
def test_damaged_rows_of_other_shapes_are_refused_with_their_line(tmp_path, row, message):
    with pytest.raises(InputError, match=rf"bench\.jsonl, line 1: .*{message}"):
        list(read_labelled(file_of(tmp_path, [row])))


async def test_scored_solutions_are_traces(tmp_path):
    rows = [{**ROWS[index % 2], "id": index} for index in range(40)]
    solutions = read_labelled(file_of(tmp_path, rows))
    scorer = ScriptedScorer({"y": 0.25})
    traces = [trace async for trace in score_labelled(scorer, solutions, concurrency=3)]
    assert [trace["id"] for trace in traces] == [str(i) for i in range(40)]
    assert [step["score"] for step in traces[0]["steps"]] == [1, 0.25, 1]
    assert [step["label"] for step in traces[0]["steps"]] == [True, False, None]
    assert traces[0]["policy"] == {"type": "labelled", "generator": "G"}
    assert traces[0]["tokens"]["scorer"] == 3
    write_traces(tmp_path / "t.parquet", traces)
    assert list(read_traces(tmp_path / "t.parquet")) == traces


async def test_a_solution_the_scorer_fails_on_is_kept_with_its_error(tmp_path):
    def broken(question, steps):
        if question == "q":
            raise OSError("gone")
        return [0.5] * len(steps)

    good, bad = [t async for t in score_labelled(broken, read_labelled(file_of(tmp_path, ROWS)))]
    assert good["error"] is None
    assert (bad["error"], bad["steps"], bad["correct"]) == ("OSError: gone", [], None)


async def test_no_more_are_read_than_are_at_work(tmp_path):
    read = []
    solutions = (read.append(s["id"]) or s for s in read_labelled(file_of(tmp_path, ROWS * 50)))
    traces = score_labelled(ScriptedScorer(), solutions, concurrency=4)
    await anext(traces)
    assert len(read) <= 5
    await traces.aclose()


async def test_concurrency_must_be_positive():
    with pytest.raises(ValueError, match="concurrency=0"):
        await anext(score_labelled(ScriptedScorer(), [], concurrency=0))


@pytest.mark.skipif(not DATA.is_dir(), reason="the data folder beside the repository is absent")
@pytest.mark.parametrize(("name", "count"), [("processbench_math", 1000), ("processbench_gsm8k", 400)])
def test_processbench_is_read_with_a_label_for_each_step(name, count):
    solutions = list(read_labelled(DATA / f"{name}.json"))
    assert len(solutions) == count
    assert all(len(s["steps"]) == len(s["labels"]) for s in solutions)
    # A solution all of whose steps are right has the right answer; ProcessBench promises as much.
    assert all(s["correct"] for s in solutions if s["labels"][-1])
