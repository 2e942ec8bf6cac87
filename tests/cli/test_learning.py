"""`trim-graph train aggregate` and `sequence`: from questions to policy files and learning curves."""

import json

import pytest

from trim_graph.policies import Observation, load_policy

QUESTIONS = "{type: arithmetic, split: standard, part: validation, seed: 0}"
QUICK = ["--dataset", QUESTIONS, "-n", 12, "--validation", 8, "--steps", 2048, "--simulated-steps", 0]


@pytest.fixture
def train(world, run, monkeypatch):
    from trim_graph.cli import demo

    monkeypatch.setattr("trim_graph.cli.learning.load_parts", lambda config, rated: demo.load_parts(config))
    return lambda *arguments: run("train", *arguments, "--out", world)


def draft(score):
    return Observation(question="?", index=0, max_steps=32, score=score, draft="draft", draft_tokens=12)


@pytest.mark.parametrize("kind", ["aggregate", "sequence"])
def test_a_policy_and_its_curves_are_written(kind, train, world, monkeypatch):
    (world / "kept").mkdir()
    result = train(kind, "--lambda", 0, *QUICK, "--rollouts", world / "kept")
    assert result.exit_code == 0, result.stderr
    policy = load_policy(world / f"{kind}-0.json")
    assert policy.decide(draft(0.1)) == "regenerate"
    assert (policy.made["lambda"], policy.made["questions"], policy.made["dataset"]) == (0.0, 12, QUESTIONS)
    curves = json.loads((world / f"{kind}-curves.json").read_text())
    assert policy.made["validation"]["reward"] == pytest.approx(curves[0]["validation"]["reward"], abs=1e-4)
    assert {file.name for file in (world / "kept").iterdir()} == {"training.jsonl", "validation.jsonl"}

    def refuse(*arguments, **settings):
        raise AssertionError("the models were asked again")

    from trim_graph.cli import demo

    parts = demo.load_parts(None)
    monkeypatch.setattr(type(parts.small), "_generate", refuse)
    again = train(kind, "--lambda", 0, *QUICK, "--rollouts", world / "kept")
    assert again.exit_code == 0, again.stderr
    assert load_policy(world / f"{kind}-0.json").logit(draft(0.3)) == policy.logit(draft(0.3))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--lambda", 2], "--lambda is 2.0: choose a cost in right answers"),
        (["--lambda", 0.1, "--lambda", 0.1], "--lambda: give one or more, each once"),
        (["--lambda", 0.1, "-n", 0], "-n is 0"),
        (["--lambda", 0.1, "--seeds", 0], "--seeds is 0"),
        (["--lambda", 0.1, "--rollouts", "nowhere"], "--rollouts nowhere: name a folder that exists"),
        (["--lambda", 0.1, "--steps", 0, "--simulated-steps", 0], "both 0"),
        (["--lambda", 0.1, "--dataset", "few.jsonl", "-n", 1], "few.jsonl has 2 questions; 301 are needed"),
        (["--lambda", 0.1, "--validation-dataset", "arithmetic:standard", "-n", 3, "--validation", 3], "too"),
        (["--lambda", 0.1, "--simulator", "none.json"], "step model none.json does not exist"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(arguments, complaint, world, run, monkeypatch):
    def refuse(config, rated):
        raise AssertionError("models were loaded")

    monkeypatch.setattr("trim_graph.cli.learning.load_parts", refuse)
    rows = [{"question": f"What is {number} + 1?", "answer": str(number + 1)} for number in range(2)]
    (world / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("train", "aggregate", *arguments, "--out", world)
    assert result.exit_code == 2
    assert complaint in result.stderr
