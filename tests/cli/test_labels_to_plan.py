"""From a file of labels to a routed run, on the shipped models: eval-scorer, plan, and the graph."""

import asyncio
import json

import pytest

from trim_graph.config import build_parts, load_config
from trim_graph.evaluation import run_arm
from trim_graph.evaluation.datasets import arithmetic_question
from trim_graph.evaluation.scorer_metrics import labels_from
from trim_graph.evaluation.traces import read_traces, write_traces
from trim_graph.examples.arithmetic import problems
from trim_graph.graph import create_trim_graph
from trim_graph.policies import load_policy, small_only

CONFIG = "small: {type: example, logprobs: true}\nlarge: {type: example, logprobs: true}\n"
SCORERS = {"reward_model": "{type: example}", "token_probability": "{type: token_probability}"}


def as_labels(trace):
    """Returns a trace as the labels of the method monte_carlo have it: no score, no decision."""
    right = [step["label"] for step in trace["steps"]]
    labels = labels_from(right.index(False) if False in right else -1, len(right))
    steps = [
        {**step, "score": None, "decision": None, "label": label}
        for step, label in zip(trace["steps"], labels, strict=True)
    ]
    return {**trace, "steps": steps, "policy": {"type": "labelled", "method": "monte_carlo"}}


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    from typer.testing import CliRunner

    from trim_graph.cli.app import app

    folder = tmp_path_factory.mktemp("labels")
    (folder / "models.yaml").write_text(f"{CONFIG}scorer: {{type: example}}\npolicy: small_only\n")
    collected = ("collect", "--config", folder / "models.yaml", "--dataset", "arithmetic:standard", "-n", 40)
    collected = (*collected, "--policy", "small_only", "--label-steps", "--out", folder / "traces.jsonl")
    result = CliRunner().invoke(app, list(map(str, collected)))
    assert result.exit_code == 0, result.output
    write_traces(folder / "labels.jsonl", map(as_labels, read_traces(folder / "traces.jsonl")))
    return folder / "labels.jsonl"


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_plan_comes_from_labels_and_the_scores_of_any_scorer(labels, run, tmp_path, monkeypatch, scorer):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trim.yaml").write_text(f"{CONFIG}scorer: {SCORERS[scorer]}\npolicy: plan.json\n")
    rated = run("eval-scorer", labels, "--scorer", SCORERS[scorer], "--out", "rated")
    assert rated.exit_code == 0, rated.output
    traces = list(read_traces("rated/labels.traces.jsonl"))
    assert len(traces) == 40
    before = list(read_traces(labels))
    for trace, source in zip(traces, before, strict=True):
        assert trace["policy"] == source["policy"]
        assert [{**step, "score": None} for step in trace["steps"]] == source["steps"]
        assert all(step["score"] is not None for step in trace["steps"])

    planned = ("plan", "rated/labels.traces.jsonl", "-o", "plan.json", "--cost-per-token", 1)
    refused = run(*planned)
    assert refused.exit_code == 2
    assert "0 advantage labels" in refused.stderr
    assert "give p_large (--p-large)" in refused.stderr
    assert run(*planned, "--p-large", 0.99, "--simulate", 500).exit_code == 0

    parts = build_parts(load_config("trim.yaml"))
    fresh = [arithmetic_question(problem) for problem in problems("standard", 20, part="test", seed=5)]
    found = {}
    for name, policy in (("plan", load_policy("plan.json")), ("small", small_only())):
        outcomes = asyncio.run(run_arm(create_trim_graph(*parts, policy=policy), fresh))
        assert [outcome["error"] for outcome in outcomes] == [None] * 20
        found[name] = sum(bool(outcome["correct"]) for outcome in outcomes)
        spent = sum(outcome["large_tokens"] for outcome in outcomes)
        assert (spent > 0) == (name == "plan")
    assert found["plan"] > found["small"]


def test_labels_without_scores_are_not_planned_on(labels, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("plan", labels, "-o", "plan.json", "--cost-per-token", 1, "--p-large", 0.99)
    assert result.exit_code == 2
    assert "score them first, with trim-graph eval-scorer --out" in result.stderr


def test_the_scores_of_discarded_drafts_are_dropped_with_the_scorer_that_gave_them(
    run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    step = {"text": "a", "writer": "large", "tokens": 3, "score": 0.7, "label": True}
    draft = {"text": "b", "tokens": 4, "score": 0.2, "label": False}
    trace = {
        **{"id": "0", "index": 0, "dataset": "d", "split": None, "question": "q", "policy": {}, "seed": None},
        **{"correct": True, "answer": None, "stopped": "finished", "tokens": {}, "error": None},
        "steps": [{**step, "decision": "regenerate", "mean_token_probability": 0.6, "discarded": draft}],
    }
    (tmp_path / "t.jsonl").write_text(json.dumps(trace))
    result = run("eval-scorer", "t.jsonl", "--scorer", "{type: token_probability}", "--out", ".")
    assert result.exit_code == 0, result.output
    (rated,) = read_traces("t.traces.jsonl")
    assert (rated["steps"][0]["score"], rated["steps"][0]["discarded"]) == (0.6, {**draft, "score": None})
