import json
import re
from pathlib import Path

import pytest

from trim_graph.evaluation.records import TOKENS
from trim_graph.evaluation.traces import read_traces
from trim_graph.testing import ScriptedScorer

DATA = Path(__file__).parents[3] / "shared" / "data" / "processbench_gsm8k.json"
ROWS = [
    {"id": "a", "problem": "p", "steps": ["fine", "wrong", "after"], "label": 1},
    {"id": "b", "problem": "q", "steps": ["fine", "good"], "label": -1},
    {"id": "c", "problem": "r", "steps": ["wrong"], "label": 0},
    {"id": "d", "problem": "s", "steps": ["doubted"], "label": -1},
]


@pytest.fixture
def scorer(tmp_path, monkeypatch):
    """Knows what is wrong; doubts one that is right."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    made = ScriptedScorer({"wrong": 0.2, "doubted": 0.3, "fine": 0.95, "good": 0.9})
    monkeypatch.setattr("trim_graph.cli.eval_scorer.load_scorer", lambda config: made)
    return made


def test_metrics_and_plots_of_a_scorer_are_written(scorer, run, tmp_path):
    result = run("eval-scorer", "bench.jsonl", "--threshold", 0.5, "--out", "new/found")
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "new/found/metrics.json").read_text())
    first = metrics["sets"]["bench"]["first_error"]
    assert (first["accuracy_erroneous"], first["accuracy_correct"]) == (1.0, 0.5)
    assert first["f1"] == metrics["average_f1"] == pytest.approx(2 / 3)
    assert (metrics["threshold"], metrics["threshold_is"]) == (0.5, "as given")
    assert re.search(r"first-error F1 +0\.667", result.stdout)
    assert (tmp_path / "new/found/reliability.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "new/found/reliability.svg").read_bytes()


def test_the_threshold_is_chosen_on_the_first_file(scorer, run, tmp_path):
    other = [{**row, "problem": row["problem"] * 2} for row in ROWS[:3]]
    (tmp_path / "other.json").write_text(json.dumps(other))
    result = run("eval-scorer", "bench.jsonl", "other.json", "--out", ".")
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    # Between the wrong ones' 0.2 and the doubted one's 0.3 nothing is judged wrong.
    assert 0.2 < metrics["threshold"] <= 0.3
    assert metrics["threshold_is"] == "the one of the highest F1 on bench"
    assert [one["first_error"]["f1"] for one in metrics["sets"].values()] == [1, 1]
    assert "average F1: 1.000" in result.stdout


def test_it_goes_on_and_asks_for_nothing_twice(scorer, run, tmp_path):
    assert run("eval-scorer", "bench.jsonl", "--out", ".", "-n", 2).exit_code == 0
    assert len(scorer.calls) == 2
    file = tmp_path / "bench.scores.jsonl"
    with file.open("ab") as stream:
        stream.write(b'{"index": 2, "sco')  # killed while it wrote
    assert run("eval-scorer", "bench.jsonl", "--out", ".").exit_code == 0
    assert [texts[0] for texts in scorer.calls] == ["fine", "fine", "wrong", "doubted"]
    again = run("eval-scorer", "bench.jsonl", "--out", ".", "--threshold", 0.25)
    assert (again.exit_code, len(scorer.calls)) == (0, 4)
    assert "below 0.25, as given" in again.stdout
    (tmp_path / "bench.jsonl").write_text(json.dumps(ROWS[1]))
    changed = run("eval-scorer", "bench.jsonl", "--out", ".")
    assert (changed.exit_code, "begun with other settings" in changed.stderr) == (2, True)


def test_what_the_scorer_fails_on_counts_as_judged_wrong_until_it_is_rated(
    scorer, run, tmp_path, monkeypatch
):
    def broken(question, steps):
        if question == "q":
            raise OSError("gone")
        return scorer.score(question, steps)

    monkeypatch.setattr("trim_graph.cli.eval_scorer.load_scorer", lambda config: broken)
    failed = run("eval-scorer", "bench.jsonl", "--out", ".", "--threshold", 0.25)
    assert failed.exit_code == 0
    assert "the scorer failed on 1 solution" in failed.stdout
    assert json.loads((tmp_path / "metrics.json").read_text())["average_f1"] == pytest.approx(2 / 3)
    monkeypatch.setattr("trim_graph.cli.eval_scorer.load_scorer", lambda config: scorer)
    rated = run("eval-scorer", "bench.jsonl", "--out", ".", "--threshold", 0.25, "--retry-errors")
    assert "failed" not in rated.stdout
    assert json.loads((tmp_path / "metrics.json").read_text())["average_f1"] == 1


def test_a_scorer_that_never_answers_is_given_up(scorer, run, tmp_path, monkeypatch):
    def broken(question, steps):
        raise OSError("gone")

    (tmp_path / "bench.jsonl").write_text("\n".join(json.dumps(ROWS[0]) for _ in range(50)))
    monkeypatch.setattr("trim_graph.cli.eval_scorer.load_scorer", lambda config: broken)
    result = run("eval-scorer", "bench.jsonl", "--out", ".")
    assert result.exit_code == 2
    assert "bench.jsonl: 20 solutions failed in a row, the last with OSError: gone" in result.stderr


def test_an_interrupt_keeps_what_was_scored(scorer, run, tmp_path, monkeypatch):
    async def interrupted(question, steps):
        if question == "r":
            raise KeyboardInterrupt
        return scorer.score(question, steps)

    monkeypatch.setattr("trim_graph.cli.eval_scorer.load_scorer", lambda config: interrupted)
    result = run("eval-scorer", "bench.jsonl", "--out", ".", "--concurrency", 1)
    assert result.exit_code == 130
    assert "what was scored is in .: the same command resumes it" in result.stderr
    assert len((tmp_path / "bench.scores.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("no.jsonl",), "no.jsonl"),
        (("bench.jsonl", "--threshold", 1.5), "--threshold is 1.5: choose a score from 0 to 1"),
        (("bench.jsonl", "-n", 0), "-n is 0"),
        (("bench.jsonl", "--concurrency", 0), "--concurrency is 0"),
        (("bench.jsonl", "bench.jsonl"), "two files of the same name"),
        (("bench.jsonl", "--scorer", "{type: token_probability}"), "rates only what a model writes in a run"),
        (("bench.jsonl", "--scorer", "{type: no_such}"), "no_such"),
        (("bench.jsonl", "--scorer", "{}", "--config", "trim.yaml"), "--config or --scorer, not both"),
        (("empty.jsonl",), "empty.jsonl holds no solution"),
        (("bench.jsonl", "--out", "empty.jsonl"), "--out empty.jsonl: cannot be made a folder"),
        (("unlabelled.jsonl",), "line 1: no labelled solution"),
    ],
)
def test_bad_input_is_refused_before_the_scorer_is_loaded(
    scorer, run, tmp_path, monkeypatch, arguments, complaint
):
    def never(config):
        raise AssertionError("loaded")

    monkeypatch.setattr("trim_graph.cli.eval_scorer.load_scorer", never)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "unlabelled.jsonl").write_text('{"problem": "p", "steps": ["x"]}')
    result = run("eval-scorer", *arguments)
    assert result.exit_code == 2, result.output
    assert complaint in result.stderr


def test_traces_with_labels_are_read_too(world, run, scorer):
    collected = ("collect", "--dataset", "arithmetic:standard", "--policy", "small_only", "-n", 12)
    assert run(*collected, "--out", "labelled.jsonl", "--label-steps").exit_code == 0
    assert run(*collected, "--out", "plain.jsonl").exit_code == 0
    assert run("eval-scorer", "labelled.jsonl").exit_code == 0
    plain = run("eval-scorer", "plain.jsonl")
    assert (plain.exit_code, "this trace says of no step whether it is right" in plain.stderr) == (2, True)


@pytest.mark.skipif(not DATA.exists(), reason="the data folder beside the repository is absent")
def test_processbench_is_rated_by_a_scorer_without_doubts(scorer, run):
    result = run("eval-scorer", DATA, "-n", 300, "--threshold", 0.5)
    assert result.exit_code == 0, result.output
    # This scorer knows none of these texts and doubts nothing.
    assert re.search(r"accuracy on the others +1\.000", result.stdout)
    assert re.search(r"accuracy on those +0\.000", result.stdout)


def labelled(question, *steps):
    """A trace with labels and token probabilities: (text, label, probability) of each step."""
    return {
        "id": question,
        "index": 0,
        "dataset": "d",
        "split": None,
        "question": question,
        "policy": {"type": "labelled", "method": "labelled"},
        "seed": None,
        "correct": None,
        "answer": None,
        "stopped": "finished",
        "steps": [
            {
                "text": text,
                "writer": "small",
                "tokens": 1,
                "score": None,
                "decision": None,
                "mean_token_probability": probability,
                "label": label,
                "discarded": None,
            }
            for text, label, probability in steps
        ],
        "tokens": dict.fromkeys(TOKENS, 0),
        "error": None,
    }


class TestAgainstTokenProbability:
    def write(self, folder, *traces):
        (folder / "traces.jsonl").write_text("\n".join(map(json.dumps, traces)))
        return ("eval-scorer", "traces.jsonl", "--against", "token_probability", "--out", "out")

    def metrics(self, folder):
        return json.loads((folder / "out/metrics.json").read_text())["sets"]["traces"]

    def test_a_better_scorer_passes(self, scorer, run, tmp_path):
        rows = [labelled(f"q{at}", ("fine", True, 0.5), ("wrong", False, 0.5 + at / 100)) for at in range(20)]
        result = run(*self.write(tmp_path, *rows))
        assert result.exit_code == 0, result.output
        assert "This scorer is better than token probability on your 20 questions (40 steps)" in result.stdout
        found = self.metrics(tmp_path)["against_token_probability"]
        assert (found["better"], found["auc"], found["questions"]) == (True, 1.0, 20)
        assert found["auc_of_other"] < 0.5

    def test_one_that_is_no_better_fails(self, scorer, run, tmp_path):
        rows = [labelled(f"q{at}", ("fine", True, 0.9), ("wrong", False, 0.1)) for at in range(20)]
        result = run(*self.write(tmp_path, *rows))
        assert result.exit_code == 1
        assert "This scorer is no better than token probability on your 20 questions" in result.stdout
        assert self.metrics(tmp_path)["against_token_probability"]["difference"] == 0

    def test_steps_of_one_kind_cannot_be_compared(self, scorer, run, tmp_path):
        result = run(*self.write(tmp_path, labelled("q", ("fine", True, 0.9))))
        assert result.exit_code == 1
        assert "all right or all wrong: nothing can be compared" in result.stdout

    def test_steps_without_a_token_probability_are_refused_before_anything_is_scored(
        self, scorer, run, tmp_path
    ):
        result = run(*self.write(tmp_path, labelled("q", ("fine", True, None))))
        assert result.exit_code == 2
        assert "no step in traces.jsonl has a mean token probability" in result.stderr
        assert not scorer.calls


def test_a_scorer_that_weighs_token_probabilities_says_that_a_file_has_none(scorer, run, tmp_path):
    scorer.reads_token_probability = True
    (tmp_path / "traces.jsonl").write_text(
        json.dumps(labelled("q", ("fine", True, None), ("wrong", False, None)))
    )
    result = run("eval-scorer", "traces.jsonl")
    assert result.exit_code == 0, result.output
    assert (
        "traces.jsonl: the scorer weighs token probabilities too, and 2 of 2 steps have none" in result.stderr
    )


def test_windows_of_collected_steps_are_rated(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trim.yaml").write_text(
        "small: {type: example}\nlarge: {type: example}\npolicy: {type: threshold, t: 0.5}\n"
        "scorer: {type: token_probability, statistic: lowest_window, window: 3}\n"
    )
    questions = ("--config", "trim.yaml", "--dataset", "arithmetic:standard", "-n", "6", "--label-steps")
    result = run("collect", *questions, "--policy", "small_only", "--out", "traces.jsonl")
    assert result.exit_code == 0, result.output
    result = run("eval-scorer", "traces.jsonl", "--config", "trim.yaml", "--out", "rated")
    assert result.exit_code == 0, result.output
    seen, rated = (
        [step for trace in read_traces(file) for step in trace["steps"]]
        for file in ("traces.jsonl", "rated/traces.traces.jsonl")
    )
    assert [step["lowest_window_probability"] for step in seen] == [step["score"] for step in rated]


def test_a_window_that_no_step_has_is_refused(run, tmp_path):
    (tmp_path / "traces.jsonl").write_text(json.dumps(labelled("q", ("fine", True, 0.9))))
    window = "{type: token_probability, statistic: lowest_window}"
    result = run("eval-scorer", str(tmp_path / "traces.jsonl"), "--scorer", window)
    assert result.exit_code == 2
    assert (
        "has a lowest window probability; label or collect solutions of a small model with the same scorer"
        in (" ".join(result.stderr.split()))
    )


def test_the_area_within_kinds_is_that_of_pairs_of_one_kind(scorer, run, tmp_path):
    # "wrong" and "fine" are of one kind, "doubted" of its own: between kinds nothing is compared.
    rows = [
        labelled("a", ("fine", True, None), ("wrong", False, None)),
        labelled("b", ("doubted", True, None)),
    ]
    (tmp_path / "traces.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run("eval-scorer", "traces.jsonl", "--pattern", "doubted", "--out", "out")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out/metrics.json").read_text())["sets"]["traces"]["auc_within_kinds"]
    assert found["auc"] == 1.0
    assert {one["kind"]: (one["n"], one["right"], one["auc"]) for one in found["kinds"]} == {
        None: (2, 1, 1.0),
        "doubted": (1, 1, None),
    }
    assert found["auc_of_kind"] == 0.75
    refused = run("eval-scorer", "traces.jsonl", "--pattern", "(")
    assert (refused.exit_code, "the pattern '(' cannot be read" in refused.stderr) == (2, True)


def test_values_without_labels_are_right_from_a_half_on(scorer, run, tmp_path):
    row = labelled("a", ("fine", None, None), ("wrong", None, None), ("after", None, None))
    for step, value in zip(row["steps"], (0.5, 0.3, None), strict=True):
        step["value"] = value
    unknown = labelled("b", ("fine", None, None))
    (tmp_path / "traces.jsonl").write_text("\n".join(map(json.dumps, [row, unknown])))
    result = run("eval-scorer", "traces.jsonl", "--out", "out", "--threshold", 0.5)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out/metrics.json").read_text())["sets"]["traces"]
    assert (found["solutions"], found["steps"]["n"], found["steps"]["right"]) == (1, 2, 1)
