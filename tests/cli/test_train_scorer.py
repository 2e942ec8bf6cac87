"""`trim-graph train scorer`: options, the base, and errors in one line."""

import json

import pytest

from trim_graph.adapters.prm.scorer_file import Stacking
from trim_graph.cli.train_scorer import weights_of_small
from trim_graph.config import load_config
from trim_graph.errors import SettingsError
from trim_graph.examples.arithmetic import SMALL

STEP = {
    "writer": "small",
    "tokens": 9,
    "score": None,
    "decision": None,
    "mean_token_probability": None,
    "discarded": None,
}


@pytest.fixture
def labels(tmp_path, monkeypatch):
    """Sums of two numbers, every second one with a wrong step."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for at in range(24):
        wrong = at % 2
        texts = [f"Step 1: {at} + 2 = {at + 2}.", f"Step 2: {at + 2} + 1 = {at + 3 + wrong}."]
        steps = [
            {**STEP, "text": text, "label": label, "value": float(label)}
            for text, label in zip(texts, (True, not wrong), strict=True)
        ]
        rows.append(
            {
                "id": str(at),
                "index": at,
                "dataset": "sums",
                "split": None,
                "question": f"{at} + 2 + 1?",
                "policy": {"type": "labelled", "method": "monte_carlo"},
                "seed": None,
                "correct": not wrong,
                "answer": None,
                "stopped": "finished",
                "steps": steps,
                "tokens": dict.fromkeys(
                    (
                        "small",
                        "large",
                        "small_discarded",
                        "large_discarded",
                        "large_unaccounted",
                        "scorer",
                        "scorer_output",
                    ),
                    0,
                ),
                "error": None,
            }
        )
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "labels.jsonl"


def test_the_small_model_becomes_a_scorer_of_its_own_steps(labels, run, tmp_path):
    shares = ("--validation", 0.3, "--test", 0.3)
    result = run("train", "scorer", "--labels", labels, "--out", "scorer", *shares, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["questions"], found["measured_on"], found["skipped"]) == (7, "test questions", 0)
    assert found["against_token_probability"] is None
    file = json.loads((tmp_path / "scorer/trim_scorer.json").read_text())
    assert (file["base"], file["method"], file["step_token"]) == ("small", "monte_carlo", "<|im_end|>")
    again = run("train", "scorer", "--labels", labels, "--out", "scorer")
    assert (again.exit_code, "is not empty" in again.stderr) == (2, True)
    scorer = "{type: transformers_prm, model: scorer}"
    rated = run("eval-scorer", labels, "--scorer", scorer, "--out", "rated")
    assert rated.exit_code == 0, rated.output
    assert "AUC within kinds of steps" in rated.stdout


def test_a_head_that_adds_nothing_to_the_token_probability_is_reported(labels, run, monkeypatch):
    useless = Stacking(intercept=0.1, score=0.0, token_probability=1.0)
    monkeypatch.setattr("trim_graph.training.scorer.fit_stacking", lambda *_: useless)
    result = run("train", "scorer", "--labels", "labels.jsonl", "--test", 0, "--out", "scorer")
    assert result.exit_code == 0, result.output
    assert "the head adds nothing to the token probability" in result.stdout


@pytest.mark.parametrize(
    ("tuning", "measured", "note"),
    [
        (("head",), "on 24 cross-validated questions", "rated by a head that has not learned from it"),
        (("full", "--epochs", 1), "on 10 validation questions", "the metrics are somewhat too good"),
    ],
)
def test_without_test_questions_the_card_says_what_the_figures_are_of(
    labels, run, tmp_path, tuning, measured, note
):
    shares = ("--validation", 0.4, "--test", 0)
    result = run(
        "train", "scorer", "--labels", labels, "--out", "s", "--base", SMALL, *shares, "--tuning", *tuning
    )
    assert result.exit_code == 0, result.output
    assert measured in result.stdout
    assert note in (tmp_path / "s/README.md").read_text()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--labels", "none.jsonl"), "none.jsonl"),
        (("--labels", "labels.jsonl", "--base", "nowhere/at/all"), "no such folder"),
        (("--labels", "labels.jsonl", "--validation", 1), "--validation is 1: choose a share"),
        (("--labels", "labels.jsonl", "--step-token", "<no>"), "step_token='<no>' is not an added token"),
        (("--labels", "labels.jsonl", "--pattern", "("), "cannot be read"),
    ],
)
def test_errors_are_of_one_line_and_leave_no_folder(labels, run, tmp_path, options, complaint):
    result = run("train", "scorer", "--out", "s", *options)
    assert (result.exit_code, complaint in result.stderr) == (2, True), result.output
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "s").exists()


class TestBase:
    def weights(self, tmp_path, small):
        (tmp_path / "trim.yaml").write_text(f"small: {small}\nlarge: {{type: example}}\npolicy: small_only\n")
        return weights_of_small(load_config(tmp_path / "trim.yaml"))

    def test_it_is_the_small_models_own_weights(self, tmp_path):
        assert self.weights(tmp_path, "{type: example}") == str(SMALL)
        assert self.weights(tmp_path, "{type: transformers, model: org/small}") == "org/small"
        assert self.weights(tmp_path, "{type: vllm, model: org/small}") == "org/small"
        served = "{type: vllm, model: small, serve: {path: org/weights}}"
        assert self.weights(tmp_path, served) == "org/weights"

    def test_a_model_behind_an_api_has_none(self, tmp_path):
        with pytest.raises(SettingsError, match="has no weights to train: give --base"):
            self.weights(tmp_path, "{type: langchain, model: 'openai:x'}")
