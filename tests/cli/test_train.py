"""`trim-graph train aggregate` and `sequence`: from questions to policy files and learning curves."""

import json

import pytest

from trim_graph import SettingsError
from trim_graph.policies import Observation, load_policy

QUESTIONS = "{type: arithmetic, split: standard, part: validation, seed: 0}"
QUICK = ["--dataset", QUESTIONS, "-n", 12, "--validation", 8, "--steps", 2048, "--simulated-steps", 0]


@pytest.fixture
def train(world, run, monkeypatch):
    from trim_graph.cli import demo

    monkeypatch.setattr("trim_graph.cli.train.load_parts", lambda config, rated: demo.load_parts(config))
    return lambda *arguments: run("train", *arguments, "--out", world)


def draft(score):
    return Observation(question="?", index=0, max_steps=32, score=score, draft="draft", draft_tokens=12)


@pytest.mark.parametrize("kind", ["aggregate", "sequence"])
def test_a_policy_and_its_curves_are_written(kind, train, world, monkeypatch):
    result = train(kind, "--lambda", 0, *QUICK, "--rollouts", world / "kept")
    assert result.exit_code == 0, result.stderr
    policy = load_policy(world / f"{kind}-0.json")
    assert policy.decide(draft(0.1)) == "regenerate"
    assert (policy.made["lambda"], policy.made["questions"], policy.made["dataset"]) == (0.0, 12, QUESTIONS)
    curves = json.loads((world / f"{kind}-curves.json").read_text())
    assert policy.made["validation"]["reward"] == pytest.approx(curves[0]["validation"]["reward"], abs=1e-4)
    kept = {f"{name}.jsonl{more}" for name in ("training", "validation") for more in ("", ".settings.json")}
    assert {file.name for file in (world / "kept").iterdir()} == kept

    def refuse(*arguments, **settings):
        raise AssertionError("the models were asked again")

    from trim_graph.cli import demo

    parts = demo.load_parts(None)
    monkeypatch.setattr(type(parts.small), "_generate", refuse)
    again = train(kind, "--lambda", 0, *QUICK, "--rollouts", world / "kept")
    assert again.exit_code == 0, again.stderr
    assert load_policy(world / f"{kind}-0.json").logit(draft(0.3)) == policy.logit(draft(0.3))


MODELS = "small: {type: example%s}\nlarge: {type: example}\nscorer: {type: example}\npolicy: %s\n"


def test_rollouts_of_other_models_settings_or_questions_are_refused(train, world, monkeypatch):

    def far_enough(*arguments):
        raise SettingsError("it would train now")

    monkeypatch.setattr("trim_graph.cli.train._train", far_enough)

    def again(*changed, logprobs="", policy="small_only", settings=""):
        (world / "trim.yaml").write_text(MODELS % (logprobs, policy) + settings)
        options = ["aggregate", "--lambda", 0, *QUICK, "--rollouts", world / "kept"]
        return train(*options, "--config", world / "trim.yaml", *changed)

    assert "it would train now" in again().stderr
    before = (world / "kept" / "training.jsonl").read_bytes()
    for result, complaint in (
        (again(logprobs=", logprobs: true"), "small.logprobs was false, is true"),
        (again(settings="settings: {max_steps: 9}\n"), "settings.max_steps was 32, is 9"),
        (again("--dataset", QUESTIONS.replace("seed: 0", "seed: 1")), "dataset.seed was 0, is 1"),
    ):
        assert result.exit_code == 2
        assert "training.jsonl was begun with other settings" in result.stderr
        assert complaint in result.stderr
    assert (world / "kept" / "training.jsonl").read_bytes() == before
    # Rollouts have no policy of their own and no budget.
    result = again(policy="large_only", settings="budget: {large_tokens: 9}\n")
    assert "it would train now" in result.stderr


def test_rollouts_that_do_not_say_what_made_them_are_refused(train, world):
    (world / "kept").mkdir()
    (world / "kept" / "training.jsonl").write_text("{}\n")
    result = train("aggregate", "--lambda", 0, *QUICK, "--rollouts", world / "kept")
    assert result.exit_code == 2
    assert "training.jsonl.settings.json, which says what it was made with, does not" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--lambda", 2], "--lambda is 2.0: choose a cost in right answers"),
        (["--lambda", 0.1, "--lambda", 0.1], "--lambda: give one or more, each once"),
        (["--lambda", 0.1, "-n", 0], "-n is 0"),
        (["--lambda", 0.1, "--seeds", 0], "--seeds is 0"),
        (
            ["--lambda", 0.1, "--rollouts", "few.jsonl"],
            "--rollouts few.jsonl: cannot be made a folder: File exi",
        ),
        (["--lambda", 0.1, "--steps", 0, "--simulated-steps", 0], "both 0"),
        (["--lambda", 0.1, "--dataset", "few.jsonl", "-n", 1], "few.jsonl has 2 questions; 301 are needed"),
        (["--lambda", 0.1, "--validation-dataset", "arithmetic:standard", "-n", 3, "--validation", 3], "too"),
        (["--lambda", 0.1, "--simulator", "none.json"], "step model none.json does not exist"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(arguments, complaint, world, run, monkeypatch):
    def refuse(config, rated):
        raise AssertionError("models were loaded")

    monkeypatch.setattr("trim_graph.cli.train.load_parts", refuse)
    rows = [{"question": f"What is {number} + 1?", "answer": str(number + 1)} for number in range(2)]
    (world / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("train", "aggregate", *arguments, "--out", world)
    assert result.exit_code == 2
    assert complaint in result.stderr
