import json
from pathlib import Path

import pytest

from trim_graph import InputError
from trim_graph.evaluation.scorer_metrics import labels_from, read_labelled, score_labelled
from trim_graph.evaluation.traces import read_traces, write_traces
from trim_graph.testing import ScriptedScorer

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
