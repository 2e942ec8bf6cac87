"""Training of a scorer on the shipped small model, whose steps an exact checker has labelled."""

import dataclasses
import json
import math
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from trim_graph import ScorableStep
from trim_graph.adapters import TransformersProcessReward
from trim_graph.adapters.base import reads_reports
from trim_graph.adapters.prm.heads import load_base
from trim_graph.adapters.prm.scorer_file import read_scorer_file
from trim_graph.errors import InputError, SettingsError
from trim_graph.evaluation.traces import read_traces, write_traces
from trim_graph.examples.arithmetic import SMALL
from trim_graph.training import scorer as scorer_module
from trim_graph.training.scorer import ScorerTraining, train_scorer
from trim_graph.training.scorer_data import read_label_files, split_by_question

QUESTIONS = 200
TAG = "<extra_0>"


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Solutions of the small model, with exact labels and token probabilities."""
    from trim_graph.cli.collect import run_collect
    from trim_graph.cli.options import CollectOptions

    folder = tmp_path_factory.mktemp("labels")
    config = folder / "trim.yaml"
    config.write_text("small: {type: example, logprobs: true}\nlarge: {type: example}\npolicy: small_only\n")
    file = folder / "labels.jsonl"
    run_collect(
        CollectOptions(dataset="arithmetic:standard", out=file, config=config, n=QUESTIONS, label_steps=True)
    )
    return file


@pytest.fixture(scope="module")
def few(labels):
    """Some of them, for what needs no good scorer."""
    file = labels.with_name("few.jsonl")
    write_traces(file, list(read_traces(labels))[:40])
    return file


@pytest.fixture(scope="module")
def head(labels, tmp_path_factory):
    out = tmp_path_factory.mktemp("scorers") / "head"
    training = ScorerTraining(step_token=TAG, test=0.4)
    return train_scorer([labels], base=str(SMALL), out=out, training=training)


def held_out(file, **shares):
    return split_by_question(
        read_label_files([file]), **{"validation": 0.15, "test": 0.4, "seed": 0} | shares
    )


def scored(folder, solutions):
    prm = TransformersProcessReward(folder)
    return [prm.score(one.question, one.scorable_steps()).scores for one in solutions]


def plain_scores(folder, solution):
    """The head's scores, without token probabilities."""
    texts = [ScorableStep(text) for text in solution.steps]
    return TransformersProcessReward(folder).score(solution.question, texts).scores


def test_a_trained_head_tells_right_from_wrong_where_an_untrained_one_does_not(labels, head):
    found = head.file.metrics["steps"]
    assert found["auc_interval"].low > 0.5
    split = held_out(labels)
    assert head.file.metrics["questions"] == len({one.question for one in split.test})
    torch.manual_seed(0)
    network = load_base(str(SMALL), "float32").eval()
    encoded, _ = scorer_module._encode(
        scorer_module.TrimPRMFormat(scorer_module.load_tokenizer(str(SMALL)), step_token=TAG), split, None
    )
    from trim_graph.evaluation.scorer_metrics import compute_scorer_metrics

    untrained = [
        one.rated(scores)
        for one, scores in scorer_module._scored(
            encoded.test,
            scorer_module._logits(
                network, scorer_module._states(network, encoded.test, "measuring", lambda heading: None)
            ),
            stacking=None,
        )
    ]
    assert found["auc"] > compute_scorer_metrics(untrained, 0.5)["steps"]["auc"] + 0.05


@pytest.mark.parametrize("long", ["question", "step"])
def test_a_long_question_is_read_once_for_all_its_solutions_with_the_same_states(labels, long, monkeypatch):
    network = load_base(str(SMALL), "float32").eval()
    layout = scorer_module.TrimPRMFormat(scorer_module.load_tokenizer(str(SMALL)), step_token=TAG)
    question = "Start with 7. Then add 8. " * (12 if long == "question" else 1)
    step = "Step 1: 7 add 8 = 15. " * (12 if long == "step" else 1)
    some = read_label_files([labels])[0]
    encoded = []
    for asked in (question, question + "Now."):
        for steps in ((step,), (step, "Step 2: 15."), ("Step 1: 9.",), (step, "Step 2: 1.", "Step 3: 2.")):
            found = layout.encode(asked, steps)
            solution = dataclasses.replace(some, question=asked, steps=steps)
            encoded.append(scorer_module.Encoded(solution, found.ids, found.step_positions))
    hidden, read = scorer_module._hidden, []
    monkeypatch.setattr(
        scorer_module, "_hidden", lambda net, batch, shared: read.append(shared) or hidden(net, batch, shared)
    )

    states = scorer_module._states(network, encoded, "reading", lambda heading: None)

    assert [shared > 100 for shared in read] == ([True, True] if long == "question" else [False])
    for one, rows in zip(encoded, states, strict=True):
        alone = hidden(network, [one], 0).numpy()
        assert rows.shape == (len(one.solution.steps), alone.shape[1])
        assert rows == pytest.approx(alone, abs=2e-4)


@pytest.fixture(scope="module")
def cross_validated(labels, tmp_path_factory):
    out = tmp_path_factory.mktemp("scorers") / "cross"
    return train_scorer([labels], base=str(SMALL), out=out, training=ScorerTraining(step_token=TAG, test=0))


def test_without_test_questions_the_metrics_are_cross_validated_over_all(labels, head, cross_validated):
    found = cross_validated.file.metrics
    solutions = read_label_files([labels])
    assert found["measured_on"] == "cross-validated questions"
    assert found["questions"] == len({one.question for one in solutions})
    assert found["steps"]["auc"] == pytest.approx(head.file.metrics["steps"]["auc"], abs=0.08)
    card = (cross_validated.folder / "README.md").read_text()
    assert "Each question is rated by a head that has not learned from it." in card
    assert "| calibration | Platt's, on the labels of cross-validated questions |" in card


def test_cross_validated_metrics_of_labels_that_say_nothing_are_chance(labels, tmp_path):
    """A head that had seen a question's labels would rate its steps far better than chance."""
    draw, shuffled = random.Random(0), list(read_traces(labels))
    for trace in shuffled:
        wrong = draw.randrange(2 * len(trace["steps"]))
        for at, step in enumerate(trace["steps"]):
            step["label"] = True if at < wrong else False if at == wrong else None
    write_traces(tmp_path / "labels.jsonl", shuffled)
    training = ScorerTraining(step_token=TAG, test=0, token_probability=False)
    trained = train_scorer(
        [tmp_path / "labels.jsonl"], base=str(SMALL), out=tmp_path / "scorer", training=training
    )
    metrics = trained.file.metrics
    assert metrics["auc_within_kinds"]["auc"] == pytest.approx(0.5, abs=0.1)
    assert metrics["steps"]["auc_interval"].low < 0.6


def test_the_folder_is_read_as_it_is_with_the_trainers_own_probabilities(labels, head):
    from trim_graph.evaluation.scorer_metrics import compute_scorer_metrics

    split = held_out(labels)
    scores = scored(head.folder, split.test)
    rated = [one.rated(found) for one, found in zip(split.test, scores, strict=True)]
    threshold = head.file.metrics["first_error"]["threshold"]
    again = compute_scorer_metrics(rated, threshold)["steps"]
    assert again["auc"] == pytest.approx(head.file.metrics["steps"]["auc"], abs=1e-3)
    assert again["brier"] == pytest.approx(head.file.metrics["steps"]["brier"], abs=1e-4)
    config = json.loads((head.folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForSequenceClassification"]
    assert config["id2label"] == {"0": "right"}
    assert not list(head.folder.glob("*.bin"))
    whole = "".join(
        file.read_text("utf-8") for file in head.folder.glob("*.[jm][sd]*") if file.suffix != ".safetensors"
    )
    assert str(SMALL) not in whole


def test_transformers_own_class_holds_the_same_backbone_and_weight(head):
    network = AutoModelForSequenceClassification.from_pretrained(head.folder)
    base = load_base(str(SMALL), "float32")
    assert torch.equal(network.model.norm.weight, base.model.norm.weight)
    assert network.score.weight.shape == (1, base.config.hidden_size)


def test_the_card_says_what_it_was_made_of(head):
    card = (head.folder / "README.md").read_text("utf-8")
    for text in (
        "AUC within a kind of step",
        "calibration error",
        "first-error F1",
        "labels.jsonl",
        "80 test",
    ):
        assert text in card
    file = read_scorer_file(str(head.folder))
    assert (file.base, file.tuning, file.step_token, file.method) == ("small", "head", TAG, "labelled")
    json.dumps(file.metrics)


def test_token_probabilities_make_a_scorer_better_than_its_head_and_than_themselves(labels, head):
    assert head.file.stacking is not None
    assert head.file.stacking.token_probability > 0
    found = head.file.metrics
    assert found["steps"]["auc"] > found["head_alone"]["auc"] + 0.05
    assert found["steps"]["auc"] > found["against_token_probability"]["auc_of_other"] - 0.01
    assert "combined with | the mean token probability" in (head.folder / "README.md").read_text("utf-8")
    prm = TransformersProcessReward(head.folder)
    one = held_out(labels).test[0]
    alone = prm.score(one.question, [ScorableStep(text) for text in one.steps]).scores
    assert alone != prm.score(one.question, one.scorable_steps()).scores


def test_a_scorer_can_do_without_token_probabilities(few, tmp_path):
    training = ScorerTraining(validation=0.3, test=0.3, token_probability=False)
    trained = train_scorer([few], base=str(SMALL), out=tmp_path / "head", training=training)
    assert trained.file.stacking is None
    assert trained.file.metrics["head_alone"] is None
    assert not reads_reports(TransformersProcessReward(trained.folder))
    assert "combined with" not in (trained.folder / "README.md").read_text("utf-8")


def test_token_probability_is_compared_on_the_same_steps(head):
    found = head.file.metrics["against_token_probability"]
    assert found["n"] == head.file.metrics["steps"]["n"]
    assert found["difference"] == pytest.approx(found["auc"] - found["auc_of_other"])
    assert found["better"] is (found["difference_interval"].low > 0)


def test_training_ends_early_and_keeps_the_weights_of_the_least_validation_loss(few, tmp_path, monkeypatch):
    losses = []

    class Evaluated(scorer_module._StepTrainer):
        def evaluate(self, *args, **kwargs):
            found = super().evaluate(*args, **kwargs)
            losses.append(found["eval_loss"])
            return found

    monkeypatch.setattr(scorer_module, "_StepTrainer", Evaluated)
    headings = []
    training = ScorerTraining(
        tuning="full", epochs=50, evaluations=1, patience=2, learning_rate=0.03, validation=0.3, test=0.0
    )
    trained = train_scorer(
        [few], base=str(SMALL), out=tmp_path / "full", training=training, on_progress=headings.append
    )
    steps = [heading for heading in headings if heading.phase == "training"]
    assert steps[-1].done < steps[-1].total
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + training.patience
    # The kept weights have the least loss of all, up to the calibration of the head, which lowers it.
    split = held_out(few, validation=0.3, test=0.0)
    values = [
        (target, score)
        for one in split.validation
        for target, score in zip(one.targets, plain_scores(trained.folder, one), strict=True)
        if target is not None
    ]
    targets, scores = np.array(values).T.clip(1e-9, 1 - 1e-9)
    kept = float(-(targets * np.log(scores) + (1 - targets) * np.log(1 - scores)).mean())
    assert kept < losses[best] + 0.01


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_more_than_the_head_is_trained(few, tmp_path, tuning):
    phases = []
    trained = train_scorer(
        [few],
        base=str(SMALL),
        out=tmp_path / tuning,
        training=ScorerTraining(
            tuning=tuning, epochs=1, evaluations=1, learning_rate=1e-3, validation=0.3, test=0.3
        ),
        on_progress=lambda heading: phases.append(heading.phase),
    )
    assert "training" in phases
    assert sorted(file.name for file in trained.folder.iterdir() if file.is_dir()) == []
    network, base = load_base(str(trained.folder), "float32"), load_base(str(SMALL), "float32")
    before = base.model.layers[0].self_attn.q_proj.weight
    assert not torch.equal(network.model.layers[0].self_attn.q_proj.weight, before)
    split = held_out(few, validation=0.3, test=0.3)
    scores = scored(trained.folder, split.test)
    own = trained.file.metrics["steps"]
    from trim_graph.evaluation.scorer_metrics import compute_scorer_metrics

    rated = [one.rated(found) for one, found in zip(split.test, scores, strict=True)]
    assert compute_scorer_metrics(rated, 0.5)["steps"]["brier"] == pytest.approx(own["brier"], abs=1e-4)


@pytest.mark.parametrize("tuning", ["head", "lora", "full"])
def test_in_bfloat16_the_head_stays_in_float32(few, tmp_path, tuning):
    training = ScorerTraining(
        tuning=tuning,
        dtype="bfloat16",
        device="cpu",
        epochs=1,
        evaluations=1,
        validation=0.3,
        test=0.3,
        gradient_checkpointing=tuning == "lora",
    )
    folder = train_scorer([few], base=str(SMALL), out=tmp_path / "s", training=training).folder
    weights = load_file(folder / "model.safetensors")
    assert {name for name, weight in weights.items() if weight.dtype == torch.float32} == {
        "score.weight",
        "score.bias",
    }
    step = [ScorableStep("Step 1: 2 + 2 = 4.")]
    exact, half = (
        TransformersProcessReward(folder, dtype=dtype).score("2 + 2?", step).scores[0]
        for dtype in ("float32", "bfloat16")
    )
    assert half == pytest.approx(exact, abs=0.05)


def test_an_interrupted_training_resumes_with_the_same_settings_only(few, tmp_path, monkeypatch):
    training = ScorerTraining(tuning="full", epochs=2, evaluations=1, validation=0.3, test=0.3)
    seen = []

    def interrupt(heading):
        seen.append(heading)
        # One evaluation has been saved by then.
        if heading.phase == "training" and heading.done == heading.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_scorer([few], base=str(SMALL), out=tmp_path / "s", training=training, on_progress=interrupt)
    steps = [heading.done for heading in seen if heading.phase == "training"]
    with pytest.raises(SettingsError, match="interrupted training with other settings"):
        train_scorer([few], base=str(SMALL), out=tmp_path / "s")
    again = []
    train_scorer([few], base=str(SMALL), out=tmp_path / "s", training=training, on_progress=again.append)
    resumed = [heading.done for heading in again if heading.phase == "training"]
    assert min(resumed) > min(steps)
    assert not (tmp_path / "s" / scorer_module.UNFINISHED).exists()


def test_a_training_interrupted_as_it_writes_its_folder_is_done_again(few, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(scorer_module.ScorerFile, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_scorer([few], base=str(SMALL), out=tmp_path / "s")
    assert not (tmp_path / "s/trim_scorer.json").exists()
    with pytest.raises(SettingsError, match="interrupted training with other settings"):
        train_scorer([few], base=str(SMALL), out=tmp_path / "s", training=ScorerTraining(seed=1))
    train_scorer([few], base=str(SMALL), out=tmp_path / "s")
    TransformersProcessReward(tmp_path / "s")
    assert not (tmp_path / "s" / scorer_module.UNFINISHED).exists()


class TestRefusals:
    def test_a_folder_that_is_not_empty(self, few, tmp_path):
        (tmp_path / "x").write_text("")
        with pytest.raises(SettingsError, match="is not empty"):
            train_scorer([few], base=str(SMALL), out=tmp_path)

    def test_a_base_without_safetensors(self, few, tmp_path):
        base = tmp_path / "base"
        shutil.copytree(SMALL, base, ignore=shutil.ignore_patterns("*.safetensors"))
        with pytest.raises(ValueError, match=r"holds no weights: no \*\.safetensors"):
            train_scorer([few], base=str(base), out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_device_that_is_not_there(self, few, tmp_path):
        if torch.cuda.is_available():
            pytest.skip("there is CUDA")
        with pytest.raises(SettingsError, match="device='cuda', but torch "):
            train_scorer([few], base=str(SMALL), out=tmp_path / "out", training=ScorerTraining(device="cuda"))

    def test_too_long_solutions_are_left_out_and_counted(self, few, tmp_path):
        training = ScorerTraining(validation=0.3, test=0.3, max_tokens=130)
        trained = train_scorer([few], base=str(SMALL), out=tmp_path / "out", training=training)
        lengths = trained.skipped
        assert 0 < lengths < 40
        assert f"| left out as too long | {lengths} solutions |" in (trained.folder / "README.md").read_text()
        with pytest.raises(InputError, match="solutions of the train questions are longer than 5 tokens"):
            train_scorer([few], base=str(SMALL), out=tmp_path / "b", training=ScorerTraining(max_tokens=5))

    @pytest.mark.parametrize(
        ("settings", "complaint"),
        [
            ({"validation": 0.0}, "validation is 0: choose a share"),
            ({"test": 1.0}, "test is 1: choose a share"),
            ({"batch_size": 0}, "batch_size is 0: choose 1 or more"),
            ({"epochs": 0.0}, "epochs is 0"),
            ({"tuning": "qlora"}, "tuning is 'qlora'"),
            ({"dtype": "float16"}, "dtype is 'float16': choose auto, float32 or bfloat16"),
            ({"calibrate_on": "values"}, "calibrate_on is 'values': choose auto, value or label"),
        ],
    )
    def test_settings_out_of_bounds(self, settings, complaint):
        with pytest.raises(SettingsError, match=complaint):
            ScorerTraining(**settings)


def test_the_heads_loss_is_the_cross_entropy_with_soft_targets():
    logits, targets = np.array([0.3, -1.2]), np.array([0.25, 1.0])
    expected = [
        -(t * math.log(1 / (1 + math.exp(-z))) + (1 - t) * math.log(1 - 1 / (1 + math.exp(-z))))
        for z, t in zip(logits, targets, strict=True)
    ]
    assert scorer_module.cross_entropy(logits, targets) == pytest.approx(sum(expected) / 2)
    rows, right, weights = scorer_module._weighted(np.array([[1.0], [2.0]]), targets)
    assert rows[:, 0].tolist() == [1.0, 2.0, 1.0]
    assert (right.tolist(), weights.tolist()) == ([True, True, False], [0.25, 1.0, 0.75])
