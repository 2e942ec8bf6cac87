"""Merging once more: after questions were run again, from another folder, over what was gone on with."""

import json
import shutil
from functools import partial
from typing import ClassVar

import pytest

from trim_graph.config import Parts
from trim_graph.distributed.merging import Join
from trim_graph.evaluation.run_files import read_run

POLICY = "{type: threshold, t: 0.5}"
OF = 2


@pytest.fixture
def failing(models, monkeypatch):
    """Questions at which the small model fails, until they are taken out."""
    asked = set()

    class Failing(models.World):
        words: ClassVar[set[str]] = asked

        def _generate(self, messages, *given, **named):
            if any(word in message.text for message in messages for word in self.words):
                raise OSError("the server is gone")
            return super()._generate(messages, *given, **named)

    parts = Parts(Failing(errs=True), models.World(errs=False), models.Judge())
    for command in ("evaluating", "collecting"):
        monkeypatch.setattr(f"trim_graph.cli.{command}.load_parts", lambda config, **_: parts)
    return asked


def evaluate(run, *more, out="run", n=3, baselines="none", policies=(POLICY,)):
    given = ["eval", "--dataset", "arithmetic:standard", "--out", out, "-n", n, "--validation-n", 2]
    named = [part for policy in policies for part in ("--policy", policy)]
    return run(*given, *named, "--baselines", baselines, *more)


def shards(command, *more):
    """Run all shards; return what they print."""
    results = [command("--shard", f"{number}/{OF}", *more) for number in range(1, OF + 1)]
    for result in results:
        assert result.exit_code == 0, result.output
    return results


def errors(out):
    return [(row["arm"], row["index"]) for row in read_run(out).rows() if row["error"]]


def question(index):
    from trim_graph.examples.arithmetic import problems

    return problems("standard", index + 1, part="test", seed=0)[index].question


def test_questions_that_failed_are_run_again_in_their_shard(world, run, failing):
    failing.add(question(1))
    result, _ = merged(run, partial(evaluate, run))
    assert result.exit_code == 0, result.output
    assert ("small", 1) in errors("run")
    failing.clear()
    result, _ = merged(run, lambda *more: evaluate(run, *more, "--retry-errors"))
    assert result.exit_code == 0, result.output
    assert not {arm for arm, _ in errors("run")} & {"small", "large", "threshold-0.5"}
    # An arm at the spend that a policy had before is beside it no more.
    arms = read_run("run").settings["arms"].values()
    (chosen,) = [arm for arm in arms if "threshold-0.5" in arm.get("beside", [])]
    there = {arm["arm"]: arm for arm in read_run("run").summary["arms"]}
    assert chosen["spends"] == {"threshold-0.5": there["threshold-0.5"]["figures"]["large_tokens"]["value"]}


def test_merging_from_another_folder(world, run, monkeypatch):
    shards(lambda *more: evaluate(run, *more))
    (world / "elsewhere").mkdir()
    monkeypatch.chdir(world / "elsewhere")
    result = run("merge", "../run")
    assert result.exit_code == 3, result.output
    assert (world / "run/settings.json").exists()


def collect(run, *more, n=4, out="t.jsonl"):
    given = ["collect", "--dataset", "arithmetic:standard", "--policy", "{type: random_rate, rate: 0.3}"]
    return run(*given, "-n", n, "--out", out, *more)


@pytest.mark.parametrize("out", ["t.jsonl", "t.parquet"])
def test_traces_that_were_gone_on_with_are_not_written_over(world, run, out):
    shards(lambda *more: collect(run, *more, out=out))
    assert run("merge", out).exit_code == 0
    assert collect(run, n=6, out=out).exit_code == 0
    before = (world / out).read_bytes()
    result = run("merge", out)
    assert result.exit_code == 2
    assert f"has question 4 of {out}, and its shards, as they were called last, have not" in result.stderr
    assert (world / out).read_bytes() == before


def test_rows_that_were_run_again_are_not_written_over(world, run, failing):
    failing.add(question(1))
    shards(lambda *more: evaluate(run, *more))
    assert run("merge", "run").exit_code == 3
    failing.clear()
    assert evaluate(run, "--retry-errors").exit_code == 0
    result = run("merge", "run")
    assert result.exit_code == 2
    assert "has question 1 of the arm small, which failed in its shard: it was gone on with" in result.stderr
    assert errors("run") == []


def merged(run, command):
    """Run all shards and merge, as often as merging says so; return what it ends with."""
    for _ in range(6):
        told = shards(command)
        result = run("merge", "run")
        if result.exit_code != 3:
            return result, told
    raise AssertionError(result.output)


def validation_question():
    from trim_graph.examples.arithmetic import problems

    return problems("standard", 1, part="validation", seed=0)[0].question


def test_a_baseline_that_cannot_run_is_left_out_until_it_can(world, run, failing):
    failing.add(validation_question())
    every = partial(evaluate, run, baselines="all")
    result, told = merged(run, every)
    assert result.exit_code == 0, result.output
    assert "warning: baseline kind was not run: a validation question failed: OSError" in told[0].stderr
    assert "baseline kind" not in told[1].stderr
    run_there = read_run("run")
    assert any(
        "baseline kind was not run: shard 1/2: a validation question failed" in warning
        for warning in run_there.summary["warnings"]
    )
    failing.clear()
    result, told = merged(run, every)
    assert result.exit_code == 0, result.output
    run_there = read_run("run")
    assert "kind" in {arm["family"] for arm in run_there.settings["arms"].values()}
    assert not any("baseline kind" in warning for warning in run_there.summary["warnings"])


@pytest.mark.parametrize("whole", [True, False])
def test_arms_of_an_earlier_command_line(world, run, whole):
    both = partial(evaluate, run, policies=(POLICY, "{type: threshold, t: 0.95}"))
    for number in range(1, OF + 1 if whole else OF):
        assert both("--shard", f"{number}/{OF}").exit_code == 0
    result, _ = merged(run, partial(evaluate, run))
    assert result.exit_code == 0, result.output
    there = read_run("run")
    assert there.summary is not None
    left_out = any(
        "threshold-0.95.jsonl of the shards is left out" in one for one in there.summary["warnings"]
    )
    assert left_out != whole
    assert ("threshold-0.95" in there.settings["arms"]) == whole
    assert ({"threshold-0.95"} <= {row["arm"] for row in there.rows()}) == whole
    assert not list((world / "run/rows").glob("*.jsonl"))


def test_a_merge_that_was_killed_is_made_again(world, run, monkeypatch):
    shards(partial(evaluate, run))
    write, written = Join.write, list[str]()

    def killed(join):
        if written:
            raise KeyboardInterrupt
        write(join)
        written.append(join.name)

    with monkeypatch.context() as patch:
        patch.setattr(Join, "write", killed)
        run("merge", "run")
    assert written
    result = run("merge", "run")
    assert result.exit_code == 3, result.output


def test_shards_that_have_recorded_nothing(world, run):
    shards(partial(evaluate, run))
    for number in range(1, OF + 1):
        shutil.rmtree(world / f"run/shards/{number}-of-{OF}/rows")
    result = run("merge", "run")
    assert result.exit_code == 2
    assert "have begun, and recorded nothing yet" in result.stderr


def test_shards_of_another_code_or_without_a_request_are_told(world, run):
    shards(partial(collect, run))
    files = [world / f"t.jsonl.shards/{number}-of-{OF}/shard.json" for number in range(1, OF + 1)]
    told = json.loads(files[0].read_text())
    for changed, complaint in (
        (
            {"code": {**told["code"], "version": "0.0.1"}},
            'by another trim-graph than this one: code.version was "0.0.1"',
        ),
        ({"request": {"n": 4}}, "do not say what was asked for: 'config'"),
        ({"request": {**told["request"], "speed": 9}}, "unexpected keyword argument 'speed'"),
    ):
        for file in files:
            file.write_text(json.dumps({**told, **changed}))
        result = run("merge", "t.jsonl")
        assert result.exit_code == 2, result.output
        assert complaint in result.stderr
    assert not (world / "t.jsonl").exists()
