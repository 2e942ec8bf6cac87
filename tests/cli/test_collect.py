import json
import os
import signal
import time

import pytest

from trim_graph.evaluation.traces import read_traces

RANDOM = "{type: random_rate, rate: 0.3}"


def collect(run, *more, n=12, out="t.jsonl", dataset="arithmetic:standard", policy=RANDOM):
    return run("collect", "--dataset", dataset, "--policy", policy, "-n", n, "--out", out, *more)


def by_index(file):
    return {trace["index"]: trace for trace in read_traces(file, errors=True)}


def test_traces_hold_every_step_with_score_label_and_decision(world, run):
    result = collect(run, "--label-steps", "--concurrency", 5, n=40)
    assert result.exit_code == 0, result.output
    assert "40 questions in t.jsonl" in result.stdout
    assert "collecting: 40/40" in result.stderr
    traces = list(read_traces(world / "t.jsonl"))
    assert sorted(trace["index"] for trace in traces) == list(range(40))
    first = traces[0]
    assert (first["dataset"], first["split"], first["seed"]) == ("arithmetic:standard", "train", 0)
    assert first["policy"] == {"type": "random_rate", "rate": 0.3}
    steps = [step for trace in traces for step in trace["steps"]]
    # The random policy never looks at a score; each step has one all the same.
    assert all(step["score"] is not None and step["label"] is not None for step in steps)
    assert {step["decision"] for step in steps} == {"accept", "regenerate"}
    regenerated = [step for step in steps if step["decision"] == "regenerate"]
    assert 0.2 < len(regenerated) / len(steps) < 0.4
    for step in steps:
        assert (
            (step["discarded"] is not None)
            == (step["decision"] == "regenerate")
            == (step["writer"] == "large")
        )
    # The judge of this world gives a wrong step 0.6 at most, a right one 0.4 at least.
    # (Where no right step exists, it takes an answer of 0 for one.)
    rated = [row for row in steps + [s["discarded"] for s in regenerated] if "boxed{0}" not in row["text"]]
    assert all(row["score"] >= 0.4 if row["label"] else row["score"] <= 0.6 for row in rated)
    assert any(not step["discarded"]["label"] and step["label"] for step in regenerated)
    for trace in traces:
        assert trace["correct"] or not all(step["label"] for step in trace["steps"])
        small = sum(step["tokens"] for step in trace["steps"] if step["writer"] == "small")
        assert trace["tokens"]["small"] == small


def test_scores_are_those_the_policy_saw(world, run):
    for policy, out in (("small_only", "a.jsonl"), ("{type: threshold, t: 0.0}", "b.jsonl")):
        assert collect(run, policy=policy, out=out).exit_code == 0
    a, b = by_index(world / "a.jsonl"), by_index(world / "b.jsonl")
    for index in a:
        scores = [[step["score"] for step in traces[index]["steps"]] for traces in (a, b)]
        assert scores[0] == scores[1]


def test_a_larger_n_goes_on_and_repeats_nothing(world, run):
    collect(run, n=5)
    before = (world / "t.jsonl").read_bytes()
    assert collect(run, n=9).exit_code == 0
    after = (world / "t.jsonl").read_bytes()
    assert after.startswith(before)
    assert len(after.splitlines()) == 9
    again = collect(run, n=9)
    assert again.exit_code == 0
    assert "collecting" not in again.stderr
    assert (world / "t.jsonl").read_bytes() == after


def test_holes_below_n_are_filled_whatever_lies_above(world, run):
    collect(run, n=8)
    lines = (world / "t.jsonl").read_text().splitlines(keepends=True)
    left_out = json.loads(lines.pop(2))["index"]
    (world / "t.jsonl").write_text("".join(lines))
    assert collect(run, n=7).exit_code == 0
    indices = [json.loads(line)["index"] for line in (world / "t.jsonl").read_text().splitlines()]
    assert left_out in indices
    assert sorted(indices) == list(range(8))


def test_parquet_is_written_at_the_end_and_taken_up_again(world, run):
    assert collect(run, "--label-steps", n=6, out="t.parquet").exit_code == 0
    assert {p.name for p in world.glob("t.*")} == {"t.parquet", "t.parquet.jsonl.settings.json"}
    first = by_index(world / "t.parquet")
    assert collect(run, "--label-steps", n=8, out="t.parquet").exit_code == 0
    second = by_index(world / "t.parquet")
    assert len(second) == 8
    assert {index: second[index] for index in first} == first


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--policy", "{type: random_rate, rate: 0.4}"], "policy.rate was 0.3, is 0.4"),
        (
            ["--policy", "small_only"],
            'policy was {"type": "random_rate", "rate": 0.3}, is {"type": "small_only"}',
        ),
        (["--seed", "7"], "dataset.seed was 0, is 7; settings.seed was 0, is 7"),
        (["--dataset", "arithmetic:hard"], 'dataset.split was "standard", is "hard"'),
        (["--label-steps"], "label_steps was false, is true"),
    ],
)
def test_settings_are_never_mixed(world, run, more, expected):
    collect(run, n=2)
    before = (world / "t.jsonl").read_bytes()
    result = collect(run, *more, n=4)
    assert result.exit_code == 2
    assert "t.jsonl was begun with other settings" in result.stderr
    assert expected in result.stderr
    assert (world / "t.jsonl").read_bytes() == before


def test_a_changed_file_of_questions_is_another_dataset(world, run):
    (world / "q.jsonl").write_text(json.dumps({"problem": "p", "answer": "1"}) + "\n")
    collect(run, n=1, dataset="q.jsonl")
    (world / "q.jsonl").write_text(json.dumps({"problem": "p", "answer": "2"}) + "\n")
    result = collect(run, n=1, dataset="q.jsonl")
    assert result.exit_code == 2
    assert "q.jsonl has changed" in result.stderr


def test_a_file_of_unknown_origin_is_left_alone(world, run):
    (world / "t.jsonl").write_text("my notes\n")
    result = collect(run)
    assert result.exit_code == 2
    assert "t.jsonl.settings.json, which says what it was made with, does not" in result.stderr
    assert (world / "t.jsonl").read_text() == "my notes\n"
    (world / "t.parquet").write_text("mine")
    assert "was made otherwise" in collect(run, out="t.parquet").stderr


def test_garbage_in_the_middle_is_reported_and_left_alone(world, run):
    collect(run, n=3)
    lines = (world / "t.jsonl").read_bytes().splitlines(keepends=True)
    (world / "t.jsonl").write_bytes(lines[0] + b"\x00\xff\n" + lines[1])
    result = collect(run, n=3)
    assert result.exit_code == 2
    assert "t.jsonl, line 2: not JSON" in result.stderr


class Failing:
    """Wraps the world's small model; some questions fail until it is repaired."""

    def __init__(self, monkeypatch, fails):
        from trim_graph.cli import collect as cli_collect

        load, self.fails = cli_collect.load_parts, fails

        def parts(config, **more):
            made = load(config, **more)
            generate = type(made.small)._generate

            def sometimes(model, messages, *args, **kwargs):
                question = next(m.text for m in messages if m.type == "human")
                if self.fails(question):
                    raise OSError("the server is gone")
                return generate(model, messages, *args, **kwargs)

            monkeypatch.setattr(type(made.small), "_generate", sometimes)
            return made

        monkeypatch.setattr(cli_collect, "load_parts", parts)


def test_errors_are_recorded_and_run_again_when_asked(world, run, monkeypatch):
    broken = Failing(monkeypatch, lambda question: "1" in question[:16])
    result = collect(run, n=12)
    assert result.exit_code == 0, result.output
    failed = [t for t in read_traces(world / "t.jsonl", errors=True) if t["error"]]
    assert 0 < len(failed) < 12
    assert f"{len(failed)} of them failed now" in result.stdout
    assert failed[0]["error"] == "OSError: the server is gone"
    assert (failed[0]["steps"], failed[0]["correct"]) == ([], None)
    broken.fails = lambda question: False
    assert "collecting" not in collect(run, n=12).stderr
    assert collect(run, "--retry-errors", n=12).exit_code == 0
    assert sorted(t["index"] for t in read_traces(world / "t.jsonl")) == list(range(12))
    assert len((world / "t.jsonl").read_text().splitlines()) == 12


def test_when_everything_fails_it_ends(world, run, monkeypatch):
    Failing(monkeypatch, lambda question: True)
    result = collect(run, "--concurrency", 4, n=200)
    assert result.exit_code == 2
    assert "20 questions failed in a row, the last with OSError: the server is gone" in result.stderr
    assert "--retry-errors" in result.stderr
    assert len(list(read_traces(world / "t.jsonl", errors=True))) < 30


def wait_for_lines(file, count, process):
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        if file.exists() and file.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {count} lines: {process.communicate()}")


ARGUMENTS = ("collect", "--dataset", "arithmetic:standard", "--policy", RANDOM, "-n", 30, "--out", "t.jsonl")


def test_a_killed_run_goes_on_where_it_was(world, run, start):
    file = world / "t.jsonl"
    process = start(*ARGUMENTS, "--concurrency", 4, delay=0.01)
    wait_for_lines(file, 8, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole = file.read_bytes()
    kept = whole[: whole.rindex(b"\n") + 1]
    assert 8 <= kept.count(b"\n") < 30
    with file.open("ab") as stream:  # killed in the middle of a line
        stream.write(kept.splitlines()[0][:-40])
    result = collect(run, "--concurrency", 4, n=30)
    assert result.exit_code == 0, result.output
    assert file.read_bytes().startswith(kept)
    traces = list(read_traces(file))
    assert sorted(trace["index"] for trace in traces) == list(range(30))
    collect(run, n=30, out="whole.jsonl")
    assert by_index(file) == by_index(world / "whole.jsonl")  # as if nothing had happened


def test_ctrl_c_says_what_is_there(world, start):
    process = start(*ARGUMENTS, "--concurrency", 2, delay=0.05)
    wait_for_lines(world / "t.jsonl", 2, process)
    process.send_signal(signal.SIGINT)
    _, reported = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "questions in t.jsonl; the same command resumes it" in reported
    assert "Traceback" not in reported
    assert all(trace["error"] is None for trace in read_traces(world / "t.jsonl", errors=True))


def test_two_processes_do_not_share_a_file(world, run, start):
    process = start(*ARGUMENTS, delay=0.1)
    wait_for_lines(world / "t.jsonl", 1, process)
    result = collect(run, n=30)
    assert result.exit_code == 2
    assert "t.jsonl: another process is writing to it" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"n": 0}, "-n is 0: choose 1 or more"),
        ({"dataset": "q.jsonl", "n": 3}, "--dataset q.jsonl has 2 questions; 3 are wanted"),
        ({"out": "t.csv"}, "the name must end in .jsonl or .parquet"),
        ({"out": "no/t.jsonl"}, "/no does not exist"),
        ({"dataset": "no.jsonl"}, "no.jsonl"),
        ({"dataset": "arithmetic:easy"}, "split: is 'easy'; it should be 'standard', 'hard' or 'words'"),
        ({"dataset": "{type: "}, "--dataset '{type: ' is neither a name nor a mapping"),
        ({"policy": "{type: threshold, t: 2}"}, "policy.t"),
    ],
)
def test_what_is_wrong_is_refused_before_a_model_is_loaded(world, run, monkeypatch, arguments, expected):
    monkeypatch.setattr("trim_graph.cli.collect.load_parts", lambda *a, **k: pytest.fail("loaded"))
    (world / "q.jsonl").write_text(2 * (json.dumps({"problem": "p", "answer": "1"}) + "\n"))
    result = collect(run, **arguments)
    assert result.exit_code == 2, result.output
    assert expected in result.stderr
    assert not list(world.glob("t.*"))


def test_traces_of_the_shipped_models_score_right_steps_higher(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert collect(run, "--label-steps", n=20).exit_code == 0
    traces = list(read_traces("t.jsonl"))
    steps = [step for trace in traces for step in trace["steps"]]
    assert len(traces) == 20
    right, wrong = ([s["score"] for s in steps if s["label"] is label] for label in (True, False))
    assert sum(right) / len(right) > 0.8 > 0.5 > sum(wrong) / len(wrong)
    assert os.stat("t.jsonl").st_size > 0
