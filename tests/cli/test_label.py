"""`trim-graph label`: the labels, the estimate, what is resumed and reused, and what is refused."""

import json
import random
import signal
import time

import pytest

from trim_graph.config import Parts
from trim_graph.evaluation.scorer_metrics import read_labelled
from trim_graph.evaluation.traces import read_traces

FEW = ("--continuations", 4, "--pilot", 2)


def label(run, *more, n=4, out="l.jsonl", dataset="arithmetic:standard"):
    return run("label", "--dataset", dataset, "-n", n, "--out", out, *FEW, *more)


def runs(world, folder="l.runs"):
    file = world / folder / "continuations.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def sampling(world, models, monkeypatch):
    """The world, whose small model errs in half of its calls."""
    draws = random.Random(1)

    class Sampling(models.World):
        def _generate(self, *args, **kwargs):
            model = models.World(errs=draws.random() < 0.5)
            return model._generate(*args, **kwargs)

    parts = Parts(Sampling(errs=True), models.World(errs=False), None)
    monkeypatch.setattr("trim_graph.cli.label.load_parts", lambda config, **_: parts)
    return world


def test_every_step_up_to_the_first_lost_one_has_label_and_target(sampling, run):
    result = label(run, "--target", "soft", n=6)
    assert result.exit_code == 0, result.output
    traces = list(read_traces(sampling / "l.jsonl"))
    assert f"{len(traces)} labelled solutions" in result.stdout
    assert "estimate for 6 questions, from 2: 24 rollouts" in result.stdout
    assert "rollouts: 16/16" in result.stderr
    assert {trace["correct"] for trace in traces} == {True, False}
    for trace in traces:
        labels = [step["label"] for step in trace["steps"]]
        values = [step["value"] for step in trace["steps"]]
        lost = len(labels) if trace["correct"] else labels.index(False)
        assert labels == [True] * lost + [False] * (not trace["correct"]) + [None] * (len(labels) - lost - 1)
        assert all(value > 0 for value in values[:lost])
        assert values[lost:] == [0.0][: len(values) - lost] + [None] * (len(values) - lost - 1)
        assert trace["policy"]["method"] == "monte_carlo"
    assert len(list(read_labelled(sampling / "l.jsonl"))) == len(traces)


def test_the_same_command_makes_no_run_again_and_a_larger_n_goes_on(sampling, run):
    label(run)
    recorded, first = runs(sampling), (sampling / "l.jsonl").read_bytes()
    again = label(run)
    assert "rollouts" not in again.stderr
    assert "estimate" not in again.stdout
    assert (runs(sampling), (sampling / "l.jsonl").read_bytes()) == (recorded, first)
    label(run, n=5)
    assert runs(sampling)[: len(recorded)] == recorded
    assert {record["question"] for record in runs(sampling)[len(recorded) :]} == {4}


def test_methods_share_the_runs_of_a_folder(sampling, run):
    label(run)
    recorded = runs(sampling)
    result = label(run, "--method", "advantage", "--runs", "l.runs", "--places", 2, out="a.jsonl")
    assert result.exit_code == 0, result.output
    more = runs(sampling)[len(recorded) :]
    assert all(record["one_step"] == (record["writer"] == "large") for record in more)
    assert all(record["prefix"] or record["one_step"] for record in more)
    for trace in read_traces(sampling / "a.jsonl"):
        values = [step["value"] for step in trace["steps"]]
        assert sum(value is not None for value in values) == min(2, len(values))
        # The large model is always right here, so that its step is never worth less in truth.
        assert all(0 <= value <= 1 for value in values if value is not None)


def test_targets_are_the_hard_labels_by_default(sampling, run):
    assert label(run).exit_code == 0
    for trace in read_traces(sampling / "l.jsonl"):
        assert [step["value"] for step in trace["steps"]] == [
            None if step["label"] is None else float(step["label"]) for step in trace["steps"]
        ]


def test_labels_of_the_example_models_have_token_probabilities(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(
        "label", "--dataset", "arithmetic:standard", "-n", "3", "--continuations", "2", "--out", "l.jsonl"
    )
    assert result.exit_code == 0, result.output
    steps = [step for trace in read_traces("l.jsonl") for step in trace["steps"]]
    assert steps
    assert all(0 < step["mean_token_probability"] <= 1 for step in steps)


def test_an_estimate_ends_behind_the_pilot(sampling, run):
    result = label(run, "--estimate", n=100)
    assert result.exit_code == 0, result.output
    assert "estimate for 100 questions, from 2: 400 rollouts" in result.stdout
    assert {record["question"] for record in runs(sampling)} == {0, 1}
    assert not (sampling / "l.jsonl").exists()


def test_a_deterministic_model_is_reported(world, run):
    result = label(run)
    assert result.exit_code == 0, result.output
    assert "rollouts of each question are the same text: the small model is deterministic" in result.stdout


def test_parquet_holds_the_same_labels(sampling, run):
    label(run)
    label(run, "--runs", "l.runs", out="l.parquet")
    lines, table = (list(read_traces(sampling / f"l.{kind}")) for kind in ("jsonl", "parquet"))
    assert table == lines


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seed", 3], "dataset.seed was 0, is 3"),
        (["--temperature", 0.5], "small.temperature was 0.7, is 0.5"),
    ],
)
def test_runs_of_other_settings_are_never_mixed(sampling, run, more, message):
    label(run)
    before = runs(sampling)
    result = label(run, *more)
    assert result.exit_code == 2
    assert message in result.stderr
    assert runs(sampling) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "guess"], "method is 'guess': choose monte_carlo, advantage or agreement"),
        (["--generator", "tiny"], "--generator is 'tiny': choose small or large"),
        (["--target", "firm"], "--target is 'firm': choose soft or hard"),
        (["--rollouts", 0], "--rollouts is 0: choose 1 or more"),
        (["--width", 2], "--width is 2.0: choose a share from 0 to 1"),
        (["--tolerance", 1, "--target", "soft"], "tolerance is 1, with target 'soft'"),
        (["--out", "l.txt"], "--out l.txt: the name must end in .jsonl or .parquet"),
        (["--out", "no/l.jsonl"], "does not exist"),
        (["--consensus", "--judge", "nobody"], "--judge nobody: give large, small, or"),
    ],
)
def test_bad_options_are_refused_before_a_model_is_loaded(world, run, monkeypatch, more, message):
    monkeypatch.setattr("trim_graph.cli.label.load_parts", lambda *_, **__: 1 / 0)
    result = label(run, *more)
    assert result.exit_code == 2
    assert message in result.stderr


def test_questions_without_answers_are_refused_before_a_model_is_loaded(world, run, monkeypatch):
    monkeypatch.setattr("trim_graph.cli.label.load_parts", lambda *_, **__: 1 / 0)
    (world / "q.jsonl").write_text('{"question": "Why?"}\n')
    result = run("label", "--dataset", "q.jsonl", "--out", "l.jsonl")
    assert result.exit_code == 2
    assert "method monte_carlo needs a grader, and question 0 has none" in result.stderr


def test_labelled_solutions_need_no_model(world, run, monkeypatch):
    monkeypatch.setattr("trim_graph.cli.label.load_parts", lambda *_, **__: 1 / 0)
    row = {"input": "i", "steps": ["s", "t"], "mistake_index": 1, "target": "(A)", "answer": "(B)"}
    (world / "known.jsonl").write_text(json.dumps(row) + "\n")
    result = run("label", "--method", "labelled", "--dataset", "known.jsonl", "--out", "l.jsonl")
    assert result.exit_code == 0, result.output
    assert "1 labelled solution in l.jsonl" in result.stdout
    (trace,) = read_traces(world / "l.jsonl")
    assert [step["value"] for step in trace["steps"]] == [1.0, 0.0]


def test_the_large_model_is_loaded_only_where_it_is_needed(sampling, run, monkeypatch):
    import trim_graph.cli.label as module

    load, wanted = module.load_parts, list[bool]()

    def noting(config, *, large):
        wanted.append(large)
        return load(config)

    monkeypatch.setattr(module, "load_parts", noting)
    label(run, n=2)
    label(run, "--method", "advantage", "--runs", "l.runs", n=2)
    label(run, "--generator", "large", "--runs", "l.runs", n=2)
    assert wanted == [False, True, True]


def test_ctrl_c_says_what_is_recorded_and_the_same_command_resumes_it(world, run, start):
    arguments = ("label", "--dataset", "arithmetic:standard", "-n", 20, "--out", "l.jsonl", *FEW)
    process = start(*arguments, "--concurrency", 2, delay=0.05)
    file = world / "l.runs" / "continuations.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if file.exists() and file.read_bytes().count(b"\n") >= 6:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    kept = runs(world)
    assert f"interrupted: {len(kept)} runs in l.runs; the same command resumes them" in errors
    assert not (world / "l.jsonl").exists()
    assert label(run, n=20).exit_code == 0
    assert runs(world)[: len(kept)] == kept
