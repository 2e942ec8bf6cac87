"""A judge that knows the right answers, beside a recorded run of both models alone."""

import json

import pytest
import yaml

from trim_graph.evaluation.records import WorkItem, new_record
from trim_graph.examples import oracle_judge
from trim_graph.examples.arithmetic import problems
from trim_graph.storage.rows import read_rows

N = 6
ASKED = problems("hard", N, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Questions, a configuration, and what both models alone answered."""
    place = tmp_path_factory.mktemp("oracle")
    questions = "".join(json.dumps({"question": p.question, "answer": p.answer}) + "\n" for p in ASKED)
    (place / "questions.jsonl").write_text(questions)
    models = {"small": {"type": "example"}, "large": {"type": "example"}}
    content = {**models, "scorer": {"type": "example"}, "policy": {"type": "threshold", "t": 0.5}}
    (place / "trim.yaml").write_text(yaml.safe_dump(content))
    (place / "run/rows").mkdir(parents=True)
    for arm in ("small", "large"):
        right, tokens = arm == "large", 60 * (arm == "large")
        with (place / f"run/rows/{arm}.jsonl").open("w") as file:
            for index, asked in enumerate(ASKED):
                item = WorkItem(index, 0, oracle_judge.Question(asked.question))
                row = new_record(item, correct=right, large_tokens=tokens)
                file.write(json.dumps({"arm": arm, **row}) + "\n")
    return place


def given(folder, *more, out="oracle", n=N):
    dataset = {"type": "file", "path": str(folder / "questions.jsonl")}
    return [
        *("--config", str(folder / "trim.yaml"), "--dataset", json.dumps(dataset), "-n", str(n)),
        *("--beside", str(folder / "run"), "--out", str(folder / out), *more),
    ]


@pytest.fixture(scope="module")
def measured(folder):
    assert oracle_judge.main(given(folder)) == 0
    return [row.values for row in read_rows(folder / "oracle/rows.jsonl")]


def test_it_keeps_what_can_still_end_right_and_has_all_else_written_again(measured):
    steps = [step for row in measured for step in row["steps"]]
    by_small = [step["score"] for step in steps if step["writer"] == "small"]
    replaced = [step["discarded"]["score"] for step in steps if step["writer"] == "large"]
    assert set(by_small) == {1.0}
    assert set(replaced) == {0.0}
    assert sum(row["correct"] for row in measured) >= 4


def test_metrics_are_beside_the_models_alone(folder, measured):
    metrics = json.loads((folder / "oracle" / oracle_judge.METRICS).read_text())
    arms = metrics["arms"]
    assert list(arms) == ["small", "large", "oracle"]
    assert (arms["small"]["accuracy"], arms["large"]["accuracy"]) == (0.0, 1.0)
    assert arms["oracle"]["share"] == sum(row["large_tokens"] for row in measured) / (60 * N)


def test_the_same_command_resumes(folder, measured, capsys):
    journal = folder / "oracle/rows.jsonl"
    first, *others = journal.read_text().splitlines(keepends=True)
    (folder / "resumed").mkdir()
    for name in ("rows.jsonl", "rows.jsonl.settings.json"):
        (folder / "resumed" / name).write_bytes((folder / "oracle" / name).read_bytes())
    (folder / "resumed/rows.jsonl").write_text("".join(others))

    assert oracle_judge.main(given(folder, out="resumed")) == 0

    again = (folder / "resumed/rows.jsonl").read_text().splitlines(keepends=True)
    assert again[:-1] == others
    assert json.loads(again[-1])["index"] == json.loads(first)["index"]
    assert f"n {N}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("-n", "0"), "-n is 0: choose 1 or more"),
        (("--continuations", "0"), "--continuations is 0: choose 1 or more"),
        (("--temperature", "0"), "--temperature is 0.0: above 0"),
    ],
)
def test_wrong_options_are_named(folder, capsys, more, said):
    with pytest.raises(SystemExit):
        oracle_judge.main([*given(folder), *more])
    assert said in capsys.readouterr().err


def test_a_run_of_other_questions_is_refused_before_any_model(folder, capsys):
    (folder / "questions.jsonl").rename(folder / "kept.jsonl")
    try:
        lines = (folder / "kept.jsonl").read_text().splitlines(keepends=True)
        (folder / "questions.jsonl").write_text("".join(lines[::-1]))
        assert oracle_judge.main(given(folder, out="none")) == 2
    finally:
        (folder / "kept.jsonl").replace(folder / "questions.jsonl")
    assert "run: arm small lacks question 0 of the dataset" in capsys.readouterr().err
    assert not (folder / "none").exists()
