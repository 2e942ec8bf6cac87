"""The training script, on a fraction of its steps."""

import shutil
import sys

import pytest

from trim_graph import ScorableStep
from trim_graph.adapters import TransformersProcessReward
from trim_graph.examples.arithmetic import LARGE, SMALL, problems
from trim_graph.examples.arithmetic.training import train


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    # As on a machine without a C compiler: compiling takes longer than these few steps.
    monkeypatch.setattr("shutil.which", lambda name: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train", "--out", str(tmp_path), "--workers", "0", *arguments])
        train.main()
        return capsys.readouterr().out

    return run


def losses(log):
    return [float(line.split("loss ")[1].split()[0]) for line in log.splitlines() if " loss " in line]


def test_a_solver_learns_and_is_the_same_for_the_same_seed(tmp_path, run):
    log = run("--only", "small", "--scale", "0.01")
    assert losses(log)[-1] < 0.9 * losses(log)[0]
    first = (tmp_path / "small" / "model.safetensors").read_bytes()
    run("--only", "small", "--scale", "0.01")
    assert (tmp_path / "small" / "model.safetensors").read_bytes() == first


def test_the_judge_learns_from_the_solvers_and_loads_in_its_adapter(tmp_path, run):
    for folder in (SMALL, LARGE):
        shutil.copytree(folder, tmp_path / folder.name)
    log = run("--only", "prm", "--scale", "0.002")
    assert "40 solutions" in log
    assert losses(log)[-1] < losses(log)[0]
    (problem,) = problems("standard", 1)
    steps = [ScorableStep(step) for step in problem.steps]
    late, early = (
        TransformersProcessReward(tmp_path / name).score(problem.question, steps)
        for name in ("prm", "prm_early")
    )
    assert len(late.scores) == len(early.scores) == len(steps)
    assert late.scores != early.scores
