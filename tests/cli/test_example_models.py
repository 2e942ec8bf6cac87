"""The command line on the shipped models and their calibration, with nothing put in their place."""

import json
import re

import pytest

from trim_graph.cli.demo import ARMS
from trim_graph.examples.arithmetic import LARGE, PRM, SMALL, problems
from trim_graph.examples.arithmetic.shipped import load_calibration


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_demo_shows_that_routing_pays(here, run):
    result = run("demo", "-n", "60", "--json", "out.json")
    assert result.exit_code == 0, result.output
    found = json.loads((here / "out.json").read_text())
    arms = found["arms"]
    assert {name: len(arm["outcomes"]) for name, arm in arms.items()} == dict.fromkeys(ARMS, 60)
    assert arms["small"]["accuracy"] < 0.7 < arms["large"]["accuracy"]
    # Floors for so few problems; the README has the metrics of two thousand.
    for name in ("threshold", "planned", "aggregate", "sequence"):
        assert arms[name]["pgr"] >= 0.8
        assert arms[name]["share"] <= 0.4
    assert arms["random"]["share"] == pytest.approx(arms["threshold"]["share"], abs=0.05)
    assert found["threshold_minus_random"]["interval"][0] > 0


def test_solve_prints_the_right_solution_and_who_wrote_it(here, run):
    solved = 0
    for problem in problems("standard", 5, seed=3):
        result = run("solve", problem.question)
        assert result.exit_code == 0, result.output
        answer = re.search(r"^answer +(\S+)$", result.stdout, re.MULTILINE)
        solved += answer is not None and answer[1] == problem.answer
        assert len(re.findall(r"^ +\d+  (small|large) ", result.stdout, re.MULTILINE)) >= 4
    assert solved >= 4


def test_a_budget_holds_on_real_models(here, run):
    (problem,) = problems("hard", 1)
    result = run("solve", problem.question, "--threshold", "1", "--large-tokens", "20", "--json")
    record = json.loads(result.stdout)
    assert 0 < record["summary"]["usage"]["large"]["output_tokens"] <= 20
    assert record["steps"][-1]["writer"] == "small"


def test_a_configuration_by_folders_with_a_checkpoint(here, run):
    (here / "trim.yaml").write_text(
        f"small: {{type: transformers, model: {SMALL}}}\n"
        f"large: {{type: transformers, model: {LARGE}}}\n"
        f"scorer: {{type: transformers_prm, model: {PRM}}}\n"
        "policy: {type: threshold, t: 0.5}\nbudget: {large_tokens: 200}\ncheckpoint: sqlite:runs.db\n"
    )
    (problem,) = problems("standard", 1, seed=8)
    result = run("solve", "--config", "trim.yaml", problem.question, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["answer"] == problem.answer
    assert (here / "runs.db").stat().st_size > 0


def test_a_problem_that_the_models_cannot_read_is_shown_the_form(here, run):
    result = run("solve", "Prove that the square root of 2 is irrational.")
    assert result.exit_code == 2
    assert "Start with" in result.stderr


def test_the_calibration_fits_the_shipped_models():
    known = load_calibration()
    chosen = next(point for point in known.curve if point["setting"] == known.threshold)
    assert known.n >= 500
    assert chosen["pgr"] >= 0.9
    assert chosen["share"] <= 0.35
    assert known.random["pgr"] < chosen["pgr"]
    assert known.random["share"] == pytest.approx(chosen["share"], abs=0.01)


def test_the_example_reward_model_finds_first_errors(here, run):
    collected = ("collect", "--dataset", "arithmetic:standard", "--policy", "small_only", "-n", 24)
    assert run(*collected, "--label-steps", "--out", "labelled.jsonl").exit_code == 0
    result = run("eval-scorer", "labelled.jsonl", "--threshold", "0.6", "--out", "scorer")
    assert result.exit_code == 0, result.output
    found = json.loads((here / "scorer/metrics.json").read_text())["sets"]["labelled"]
    assert found["first_error"]["f1"] > 0.6
    assert found["steps"]["auc"] > 0.9
    again = run("eval-scorer", "labelled.jsonl", "--scorer", f"{{type: transformers_prm, model: {PRM}}}")
    assert f"{found['steps']['auc']:.3f}" in again.stdout
