"""Merging once more: after questions were run again, from another folder, over what was gone on with."""

from typing import ClassVar

import pytest

from trim_graph.config import Parts
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
    shards(lambda *more: evaluate(run, *more))
    assert run("merge", "run").exit_code == 3
    assert ("small", 1) in errors("run")
    failing.clear()
    shards(lambda *more: evaluate(run, *more), "--retry-errors")
    assert run("merge", "run").exit_code in (0, 3)
    assert errors("run") == []


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
