"""Runs and ratings of folds, joined: with the same scorer in all folds, equal to those of all questions."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from trim_graph.cli.app import app
from trim_graph.config import load_config
from trim_graph.errors import InputError
from trim_graph.evaluation.datasets import make_dataset
from trim_graph.evaluation.records import read_run
from trim_graph.examples.arithmetic import stream_problems
from trim_graph.examples.text_to_sql import evaluate
from trim_graph.examples.text_to_sql.data import Prepared
from trim_graph.examples.text_to_sql.folds import is_complete, join_ratings, join_runs

CONFIG = {
    **{part: {"type": "example"} for part in ("small", "large", "scorer")},
    "policy": {"type": "threshold", "t": 0.5},
}
COUNT = 24


def _run(*options):
    assert not app([str(option) for option in options], prog_name="trim-graph", standalone_mode=False)


def _dataset(path):
    mapping = {"type": "file", "path": str(path), "question": "question", "answer": "answer", "id": "id"}
    return {**mapping, "grader": "numeric"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of all questions, and one of each of three folds; the questions of the folds are mixed."""
    folder = tmp_path_factory.mktemp("folds")
    drawn = zip(stream_problems("standard", part="test", seed=3), range(COUNT), strict=False)
    rows = [
        {"id": f"q{number}", "question": problem.question, "answer": str(problem.answer)}
        for problem, number in drawn
    ]
    (folder / "trim.yaml").write_text(yaml.safe_dump(CONFIG))
    for name, part in {"all": rows, **{str(fold): rows[fold::3] for fold in range(3)}}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        _evaluate(folder, name, folder / f"run-{name}", "threshold:0.3,0.9")
    return folder


def _evaluate(folder, name, out, sweep):
    dataset = json.dumps(_dataset(folder / f"{name}.jsonl"))
    _run(
        *("eval", "--config", folder / "trim.yaml", "--dataset", dataset, "--out", out, "--yes"),
        *("--sweep", sweep, "--baselines", "score_cascade"),
    )


def _join(runs, out, *folds):
    dataset = make_dataset(_dataset(runs / "all.jsonl"))
    config = load_config(runs / "trim.yaml")
    folders = [fold if isinstance(fold, Path) else runs / f"run-{fold}" for fold in folds]
    join_runs(folders, out, dataset=dataset, config=config)


def test_joined_runs_are_the_run_of_all_questions(runs, tmp_path):
    _join(runs, tmp_path / "joined", 2, 0, 1)
    _join(runs, tmp_path / "joined", 0, 1, 2)  # an earlier one is replaced

    whole, joined = read_run(runs / "run-all"), read_run(tmp_path / "joined")
    assert whole.summary is not None
    assert joined.summary is not None
    for key in ("id", "question", "solution", "correct", "large_tokens"):
        known = {
            (row["arm"], row["index"]): row[key] for row in whole.rows("small", "large", "threshold-0.9")
        }
        found = {
            (row["arm"], row["index"]): row[key] for row in joined.rows("small", "large", "threshold-0.9")
        }
        assert found == known
    for arm, other in zip(whole.summary["arms"], joined.summary["arms"], strict=True):
        assert (arm["arm"], arm["kind"], arm["family"]) == (other["arm"], other["kind"], other["family"])
        if arm["family"] != "score_cascade":  # each fold has fitted its limits
            assert arm["metrics"]["accuracy"] == other["metrics"]["accuracy"]
            assert arm["metrics"]["share"] == other["metrics"]["share"]
    fitted = joined.settings["arms"]["score_cascade-0.5"]["policy"]
    assert len(fitted["folds"]) == 3
    assert joined.summary["n"] == COUNT


def test_only_arms_that_all_folds_have_are_joined(runs, tmp_path):
    shutil.copytree(runs / "run-1", tmp_path / "run-1")
    _evaluate(runs, "1", tmp_path / "run-1", "threshold:0.6")  # adds an arm
    _join(runs, tmp_path / "joined", 0, tmp_path / "run-1", 2)

    joined = read_run(tmp_path / "joined")
    assert joined.summary is not None
    assert {arm["arm"] for arm in joined.summary["arms"]} >= {"small", "large", "threshold-0.3"}
    assert "threshold-0.6" not in {arm["arm"] for arm in joined.summary["arms"]}


def test_a_fold_that_is_lacking_is_an_error_in_words_and_leaves_the_earlier_run(runs, tmp_path):
    _join(runs, tmp_path / "joined", 0, 1, 2)
    before = (tmp_path / "joined/summary.json").read_bytes()
    with pytest.raises(InputError, match="8 rows are missing"):
        _join(runs, tmp_path / "joined", 0, 1)
    with pytest.raises(InputError, match="two rows"):
        _join(runs, tmp_path / "joined", 0, 1, 1, 2)
    assert (tmp_path / "joined/summary.json").read_bytes() == before


def test_folds_of_other_models_or_settings_are_not_joined(runs, tmp_path):
    shutil.copytree(runs / "run-1", tmp_path / "run-1")
    file = tmp_path / "run-1/settings.json"
    settings = json.loads(file.read_text())
    settings["settings"]["small"]["type"] = "another"
    file.write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"run-1 and .*run-0 were run with other settings: small was"):
        _join(runs, tmp_path / "joined", 0, tmp_path / "run-1", 2)


def test_a_run_that_was_begun_again_is_not_complete(runs, tmp_path):
    shutil.copytree(runs / "run-1", tmp_path / "run-1")
    assert is_complete(tmp_path / "run-1")
    (tmp_path / "run-1/rows/small.jsonl").write_text("")
    assert not is_complete(tmp_path / "run-1")
    assert not is_complete(tmp_path / "run-2")


def test_the_stages_of_own_scorers_from_end_to_end(tmp_path, monkeypatch, capsys):
    """With arithmetic problems in place of the questions on databases, since these models write no SQL."""
    drawn = zip(stream_problems("standard", part="train", seed=5), range(75), strict=False)
    rows = [
        {"id": f"q{number}", "question": one.question, "answer": str(one.answer), "fold": number % 5}
        for one, number in drawn
    ]
    monkeypatch.setattr(evaluate, "prepare", lambda *_: Prepared(rows, {}))
    monkeypatch.setattr(evaluate, "GRADER", "numeric")
    config = {**CONFIG, **{part: {"type": "example", "logprobs": True} for part in ("small", "large")}}
    (tmp_path / "trim.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "runs"
    out.mkdir()
    given = ["--data", "d", "--out", str(out), "--config", str(tmp_path / "trim.yaml"), "--rollouts", "2"]
    stages = [*given, "--own-thresholds", "0.5", "--stage", "train_scorers", "--stage", "own_scorer"]

    assert evaluate.main([*stages, *("--fold", "0", "--fold", "1")]) == 0
    said = capsys.readouterr().out
    assert "not rated yet: rated-2, rated-3, rated-4; the ratings are joined when all folds are done" in said
    assert "not run yet: own_scorer-2, own_scorer-3, own_scorer-4; the runs are joined" in said
    assert not (out / "own_scorer").exists()

    assert evaluate.main([*stages, "--stage", "report"]) == 0
    assert re.search(
        r"This scorer is (no )?better than token probability on your \d+ quest", capsys.readouterr().out
    )
    run = read_run(out / "own_scorer")
    assert run.summary is not None
    assert {row["index"] for row in run.rows("threshold-0.5")} == {*range(75)}
    assert {"small", "large", "router-0.5", "score_cascade-0.5"} <= {
        arm["arm"] for arm in run.summary["arms"]
    }
    rated = json.loads((out / "rated/own_scorer/metrics.json").read_text())["sets"]["labels"]
    assert rated["solutions"] == len((out / "labels.jsonl").read_text().splitlines())
    assert "## Scorer: own scorer" in (out / "RESULTS.md").read_text("utf-8")


def test_joined_ratings_are_those_of_all_solutions(runs, tmp_path):
    solutions = [
        {
            "question": row["question"],
            "steps": [step["text"] for step in row["steps"]],
            "label": -1 if row["correct"] else 0,
            "id": row["id"],
        }
        for row in read_run(runs / "run-all").rows("small")
    ]
    scorer = json.dumps({"type": "example"})
    for name, part in (("all", solutions), ("a", solutions[:9]), ("b", solutions[9:])):
        rows = "".join(
            json.dumps(
                {"id": one["id"], "problem": one["question"], "steps": one["steps"], "label": one["label"]}
            )
            + "\n"
            for one in part
        )
        (tmp_path / f"{name}.jsonl").write_text(rows)
        _run(
            "eval-scorer", tmp_path / f"{name}.jsonl", "--scorer", scorer, "--out", tmp_path / f"rated-{name}"
        )

    traces = {tmp_path / f"{name}.jsonl": tmp_path / f"rated-{name}/{name}.traces.jsonl" for name in "ab"}
    compared = join_ratings(traces, tmp_path / "joined")

    (known,) = json.loads((tmp_path / "rated-all/metrics.json").read_text())["sets"].values()
    (found,) = json.loads((tmp_path / "joined/metrics.json").read_text())["sets"].values()
    for key in ("solutions", "first_error", "steps", "whole"):
        assert found[key] == known[key]
    assert compared is None  # these solutions have no token probabilities

    lines = traces[tmp_path / "b.jsonl"].read_text().splitlines(keepends=True)
    traces[tmp_path / "b.jsonl"].write_text("".join(lines[:-2]))
    with pytest.raises(
        InputError, match="lacks 2 of 15 solutions: trim-graph eval-scorer with --retry-errors"
    ):
        join_ratings(traces, tmp_path / "joined")
