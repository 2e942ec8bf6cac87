"""Shards of a command, joined, are what one run of it writes."""

import json
import shutil
import zlib
from contextlib import suppress
from functools import partial
from typing import ClassVar

import pytest

from trim_graph.config import Parts
from trim_graph.evaluation.run_files import read_run
from trim_graph.examples.arithmetic import problems
from trim_graph.training.traces import read_traces

POLICY = "{type: threshold, t: 0.5}"
OF = 3


def evaluate(run, *more, out="run", n=7, baselines="kind"):
    given = ["eval", "--dataset", "arithmetic:standard", "--out", out, "-n", n, "--validation-n", 5]
    policies = ["--policy", POLICY, "--policy", "{type: threshold, t: 0.95}"]
    return run(*given, *policies, "--baselines", baselines, *more)


TIMED = ("second", "first_step", "verdict")


def untimed(value):
    """What two runs have in common: not how long they took, nor what is said of that."""
    if isinstance(value, dict):
        return {key: untimed(inner) for key, inner in value.items() if not any(word in key for word in TIMED)}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


def merged(run, command, out):
    """Run all shards, one after the other, and merge, as often as merging says so."""
    for turn in range(1, 9):
        for number in range(1, OF + 1):
            result = command("--shard", f"{number}/{OF}")
            assert result.exit_code == 0, result.output
        result = run("merge", out)
        if result.exit_code != 3:
            return result, turn
    raise AssertionError(result.output)


def test_an_evaluation(world, models, run, monkeypatch):
    class Telling(models.World):
        tells_entropy: ClassVar[bool] = True

        def _generate(self, messages, *given, **named):
            result = super()._generate(messages, *given, **named)
            told = result.generations[0].message.response_metadata
            said = "".join(one.text for one in messages)
            told["mean_token_probability"] = 0.4 + len(said) % 7 / 12
            if named.get("first_token_entropy"):
                told["first_token_entropy"] = zlib.crc32(said.encode()) / 2**32
            return result

    parts = Parts(Telling(errs=True), Telling(errs=False), models.Judge())
    monkeypatch.setattr("trim_graph.cli.evaluating.load_parts", lambda config, **_: parts)
    all_of_them = partial(evaluate, run, baselines="prm,cascade,entropy,kind")
    assert all_of_them(out="whole").exit_code == 0
    result, turns = merged(run, all_of_them, "run")
    assert result.exit_code == 0, result.output
    assert turns <= 4  # what hangs on nothing, then a guess and two corrections
    whole, joined = read_run("whole"), read_run("run")
    assert joined.settings == whole.settings
    assert list(joined.settings["arms"]) == list(whole.settings["arms"])
    assert untimed(list(joined.rows())) == untimed(list(whole.rows()))  # in the same order too
    (more,) = joined.summary["warnings"]
    assert "run in 3 shards, each with 32 questions under way" in more
    assert {**untimed(joined.summary), "warnings": []} == untimed(whole.summary)
    names = {path.name for path in (world / "run").iterdir()}
    assert names == {path.name for path in (world / "whole").iterdir()} | {"shards"}
    assert {path.name for path in (world / "run/rows").iterdir()} == {
        path.name for path in (world / "whole/rows").iterdir()
    }

    # Merging again changes nothing, and an unsharded call goes on with it.
    before = (world / "run/rows.parquet").read_bytes()
    assert run("merge", "run").exit_code == 0
    assert (world / "run/rows.parquet").read_bytes() == before
    assert "nothing left" in all_of_them("--shard", "2/3").stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trim_graph.cli.evaluating.load_parts", lambda *a, **k: pytest.fail("loaded"))
        assert all_of_them().exit_code == 0
    # But with more questions than the shards had it is not theirs any more.
    assert all_of_them(n=8).exit_code == 0
    result = run("merge", "run")
    assert result.exit_code == 2
    assert "question 7 of the arm" in result.stderr


def test_what_is_missing_is_named_and_nothing_is_written(world, run):
    assert run("merge", "run").exit_code == 2
    for number in (1, 3):
        assert evaluate(run, "--shard", f"{number}/3").exit_code == 0
    file = world / "run/shards/3-of-3/rows/small.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(line for line in lines if json.loads(line)["index"] != 5))
    result = run("merge", "run")
    assert result.exit_code == 2
    assert "shard 2/3 is not there" in result.stderr
    assert "shard 3/3 lacks rows/small.jsonl: questions 5\n" in result.stderr
    assert not (world / "run/settings.json").exists()
    assert evaluate(run, "--shard", "2/3").exit_code == 0
    assert evaluate(run, "--shard", "3/3").exit_code == 0
    assert run("merge", "run").exit_code == 3  # random routing is next
    shutil.rmtree(world / "run/shards/1-of-3/rows")
    result = run("merge", "run")
    assert result.exit_code == 2
    assert "shard 1/3 lacks" in result.stderr


def asked(world, *answers):
    drawn = problems("standard", len(answers), part="test", seed=0)
    rows = [
        {"problem": one.question, "answer": said or one.answer}
        for one, said in zip(drawn, answers, strict=True)
    ]
    (world / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_other_questions_or_options_do_not_join(world, run):
    asked(world, None, None)
    given = ["eval", "--dataset", "q.jsonl", "--out", "run", "--policy", POLICY, "--baselines", "none"]
    assert run(*given, "--shard", "1/2").exit_code == 0
    assert run(*given, "--shard", "2/2", "--samples", 2).exit_code == 0
    assert "request.samples was 1, is 2" in run("merge", "run").stderr
    shutil.rmtree(world / "run/shards/2-of-2")
    assert run(*given, "--shard", "2/2").exit_code == 0
    asked(world, None, "100")
    result = run("merge", "run")
    assert result.exit_code == 2
    assert "shard 1/2 was begun with other settings than are to be merged" in result.stderr
    assert "dataset.sha256 was" in result.stderr
    # A shard does not go into the folder of a whole run.
    shutil.rmtree(world / "run")
    assert run(*given).exit_code == 0
    assert "was run without --shard" in run(*given, "--shard", "1/2").stderr
    assert "--shard is '3/2'" in run(*given, "--shard", "3/2").stderr


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_collection(world, run, suffix):
    def collect(*more, out=f"t.{suffix}"):
        given = ["collect", "--dataset", "arithmetic:standard", "--policy", "{type: random_rate, rate: 0.3}"]
        return run(*given, "-n", 10, "--label-steps", "--out", out, *more)

    assert collect(out="whole.jsonl").exit_code == 0
    assert collect("--shard", "2/3").exit_code == 0
    result = run("merge", f"t.{suffix}")
    assert "shard 1/3 is not there\n  shard 3/3 is not there" in result.stderr
    result, turns = merged(run, collect, f"t.{suffix}")
    assert result.exit_code == 0, result.output
    assert turns == 1
    assert f"10 questions of 3 shards in t.{suffix}" in result.stdout.replace(f"{world}/", "")
    whole = sorted(read_traces("whole.jsonl"), key=lambda trace: trace["index"])
    assert list(read_traces(f"t.{suffix}")) == whole
    # It is a file that the command without --shard goes on with.
    assert "10 questions" in collect().stdout
    assert run("merge", f"t.{suffix}").exit_code == 0


def test_rollouts_for_training(world, run, monkeypatch):
    from trim_graph.cli import demo

    monkeypatch.setattr("trim_graph.cli.learning.load_parts", lambda config, rated: demo.load_parts(config))

    def train(folder, *more):
        (world / folder).mkdir(exist_ok=True)
        given = ["train", "aggregate", "--lambda", 0.1, "-n", 5, "--validation", 4, "--out", world]
        dataset = "{type: arithmetic, split: standard, part: validation, seed: 0}"
        return run(*given, "--dataset", dataset, "--rollouts", world / folder, *more)

    class Enough(Exception):
        pass

    def enough(*arguments):
        raise Enough

    monkeypatch.setattr("trim_graph.cli.learning._train", enough)
    with suppress(Enough):
        train("whole")
    result, _ = merged(run, lambda *more: train("kept", *more), world / "kept")
    assert result.exit_code == 0, result.output
    assert "5 training questions" in result.stdout
    for name in ("training", "validation"):
        whole, joined = (
            sorted(read_traces(world / folder / f"{name}.jsonl"), key=lambda trace: trace["index"])
            for folder in ("whole", "kept")
        )
        assert joined == whole
        assert len(joined) > 9
    monkeypatch.setattr("trim_graph.cli.learning.load_parts", lambda *a, **k: pytest.fail("loaded"))
    result = train("kept")
    assert isinstance(result.exception, Enough)
    # What was recorded since is not written over.
    before = (world / "kept/training.jsonl").read_bytes()
    more = json.loads(before.splitlines()[-1])
    more["seed"] = 1
    (world / "kept/training.jsonl").write_bytes(before + json.dumps(more).encode() + b"\n")
    result = run("merge", world / "kept")
    assert result.exit_code == 2
    assert "has a run of question 4 of training.jsonl, and its shards" in result.stderr
    (world / "kept/training.jsonl").write_bytes(before)
    assert run("merge", world / "kept").exit_code == 0
    # A question whose ways are not all known is not complete.
    file = world / "kept/shards/2-of-3/training.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:1]))
    result = run("merge", world / "kept")
    assert result.exit_code == 2
    assert "shard 2/3 lacks training.jsonl: questions 1" in result.stderr
