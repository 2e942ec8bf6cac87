import importlib
import json
import math
import os
import re
import shutil
import signal
import sys
import time
import zlib
from collections import Counter
from typing import ClassVar

import pytest

from trim_graph.cli.eval import chosen_rates
from trim_graph.config import Parts
from trim_graph.evaluation.arms import RANDOM_RATES
from trim_graph.evaluation.records import read_run
from trim_graph.examples.arithmetic import problems

PRICES = "{small: {input: 0.1, output: 0.1}, large: {input: 1, output: 9}, scorer: {input: 0.1}}"
POLICY = "{type: threshold, t: 0.5}"


def evaluate(run, *more, n=30, out="run", dataset="arithmetic:standard", policy=POLICY, baselines="none"):
    given = ["eval", "--dataset", dataset, "--out", out, "-n", n, "--baselines", baselines]
    return run(*given, *(["--policy", policy] if policy else []), "--seed", 0, *more)


def rows_of(folder, arm):
    return sorted(read_run(folder).rows(arm), key=lambda row: (row["index"], row["sample"]))


def metrics_of(folder, arm):
    return {one["arm"]: one for one in read_run(folder).summary["arms"]}[arm]["metrics"]


def test_a_run_from_end_to_end(world, run):
    terms = ("--prices", PRICES, "--max-loss", 0.15, "--random-rates", "usual")
    result = evaluate(run, *terms, "--validation-n", 20, baselines="kind", n=20)
    assert result.exit_code == 0, result.output
    done = read_run("run")
    arms = {arm["arm"]: arm for arm in done.summary["arms"]}
    assert list(arms)[:2] == ["small", "large"]
    counts = Counter(row["arm"] for row in done.rows())
    assert counts.keys() == done.settings["arms"].keys() == arms.keys()
    assert set(counts.values()) == {20}

    # The judge of this world knows every wrong step.
    assert arms["large"]["metrics"]["accuracy"]["value"] == 1
    assert arms["threshold-0.5"]["metrics"]["pgr"]["value"] == 1
    assert arms["small"]["metrics"]["accuracy"]["value"] < 0.9
    for name, arm in arms.items():  # metrics are those of the rows
        rows = rows_of("run", name)
        metrics = {key: metric["value"] for key, metric in arm["metrics"].items()}
        assert metrics["accuracy"] == pytest.approx(sum(row["correct"] for row in rows) / 20)
        assert metrics["large_tokens"] == pytest.approx(sum(row["large_tokens"] for row in rows) / 20)
        assert metrics["cost"] == pytest.approx(sum(row["cost"] for row in rows) / 20)
        whole = sum(row["large_tokens"] for row in rows_of("run", "large"))
        assert metrics["share"] == pytest.approx(sum(row["large_tokens"] for row in rows) / whole)
        assert metrics["seconds_median"] == sorted(row["seconds"] for row in rows)[9]

    # Random routing at five rates; with as many large tokens as the policy it is worse.
    policy = arms["threshold-0.5"]
    random = [arm["arm"] for arm in arms.values() if arm["kind"] == "random"]
    assert random == ["random-0.1", "random-0.25", "random-0.5", "random-0.75", "random-0.9"]
    assert set(policy["matched_budget"]) == {"random", "kind"}
    beside = policy["matched_budget"]["random"]
    assert beside["difference"]["value"] > 0
    assert beside["accuracy"]["value"] + beside["difference"]["value"] == pytest.approx(1)
    # The small model always errs in the same kinds of steps: who knows the kind needs no judge here.
    assert list(arms)[-3:] == ["kind-0.25", "kind-0.5", "kind-0.75"]
    assert policy["matched_budget"]["kind"]["accuracy"]["value"] > beside["accuracy"]["value"]
    assert set(arms["kind-0.5"]["matched_budget"]) == {"random"}

    curve = next(curve for curve in done.summary["curves"] if curve["family"] == "threshold-0.5")
    share = policy["metrics"]["share"]["value"]
    assert curve["cpt"]["50"]["value"] == pytest.approx(share / 2)
    assert curve["mean_ibc"]["value"] > 1
    assert done.summary["verdict"].startswith("Use it here, with threshold-0.5: It saves")
    assert " ".join(done.summary["verdict"].split()) in " ".join(result.stdout.split())
    lines = result.stdout.splitlines()
    assert lines[0] == done.summary["headline"]["text"]
    assert lines[0].startswith("Use it: score < 0.5 saves ")
    assert max(map(len, lines)) <= 80
    for shown in ("random 25 % of steps", "kind 25 % of tokens", "performance gap recovered", "CPT", "IBC"):
        assert shown in result.stdout
    assert done.summary["command"].startswith("trim-graph eval --dataset arithmetic:standard --out run")
    assert "--max-loss 0.15" in done.summary["command"]
    assert "threshold-0.5: 20/20" in result.stderr


def test_what_a_row_says(world, run):
    assert evaluate(run, "--prices", PRICES, n=5).exit_code == 0
    for row in rows_of("run", "threshold-0.5"):
        steps = row["steps"]
        assert row["correct"] is (row["answer"] == row["expected"]) is True
        assert row["solution"] == "\n\n".join(step["text"] for step in steps)
        large = [step for step in steps if step["writer"] == "large"]
        assert row["large_tokens"] == sum(step["tokens"] for step in large)
        assert row["calls"]["large"] == len(large)
        assert all(step["label"] for step in steps)
        assert [step["discarded"]["label"] for step in large] == [False] * len(large)
        assert row["tokens"]["small_discarded"] == sum(step["discarded"]["tokens"] for step in large)
        assert row["cost"] == pytest.approx(
            (
                0.1 * (row["prefill"]["small"] + row["tokens"]["small"] + row["tokens"]["small_discarded"])
                + row["prefill"]["large"]
                + 9 * row["large_tokens"]
                + 0.1 * row["tokens"]["scorer"]
            )
            / 1e6
        )
        assert 0 < row["first_step_seconds"] <= row["seconds"]
    assert not any(row["calls"]["scorer"] for row in rows_of("run", "large"))


def test_a_killed_run_repeats_no_finished_question(world, models, run, start):
    command = ("eval", "--dataset", "arithmetic:standard", "--out", "run", "-n", 10, "--policy", POLICY,
               "--baselines", "none", "--concurrency", 2, "--prices", PRICES)  # fmt: skip
    process = start(*command, delay=0.02)
    journal = world / "run/rows/threshold-0.5.jsonl"
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {
        (row["arm"], row["index"]): row for row in read_run("run").rows()
    }  # small and large are whole, the third arm is not
    assert {arm for arm, _ in before} == {"small", "large", "threshold-0.5"}
    assert 20 < len(before) < 30
    assert read_run("run").summary is None

    asked = Counter()

    class Counting(models.World):
        def _generate(self, messages, *given, **named):
            if len(messages) == 2:  # the first step of a run
                asked[messages[-1].text] += 1
            return super()._generate(messages, *given, **named)

    parts = Parts(Counting(errs=True), Counting(errs=False), models.Judge())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trim_graph.cli.eval.load_parts", lambda config, **_: parts)
        result = run(*command)
    assert result.exit_code == 0, result.output
    after = {(row["arm"], row["index"]): row for row in read_run("run").rows()}
    assert {key: after[key] for key in before} == before  # to the microsecond: they were not run again
    new = [row for key, row in after.items() if key not in before]
    regenerated_first = sum(row["steps"][0]["decision"] == "regenerate" for row in new)
    assert sum(asked.values()) == len(new) + regenerated_first
    again = run(*command)
    assert again.exit_code == 0
    assert {(row["arm"], row["index"]): row for row in read_run("run").rows()} == after


def test_the_same_command_again_runs_nothing(world, run, monkeypatch):
    evaluate(run, n=6)
    before, rows = read_run("run").summary, list(read_run("run").rows())
    dead = Parts(None, None, None)
    monkeypatch.setattr("trim_graph.cli.eval.load_parts", lambda config, **_: dead)
    monkeypatch.setattr("trim_graph.evaluation.runner.build_graph", lambda *a, **k: pytest.fail("ran"))
    assert evaluate(run, n=6).exit_code == 0
    after = read_run("run").summary
    assert {one["arm"]: one for one in after["arms"]} == {one["arm"]: one for one in before["arms"]}
    assert after["verdicts"] == before["verdicts"]
    assert list(read_run("run").rows()) == rows


def test_an_interrupt_says_how_to_resume(world, run, start):
    process = start("eval", "--dataset", "arithmetic:standard", "--out", "run", "-n", 50, delay=0.05)
    while not (world / "started").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, reported = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command resumes run" in reported
    assert "Traceback" not in reported


def test_more_questions_and_other_policies_join_a_run(world, run):
    evaluate(run, n=6)
    six = {(row["arm"], row["index"]): row for row in read_run("run").rows()}
    assert evaluate(run, n=9).exit_code == 0
    nine = {(row["arm"], row["index"]): row for row in read_run("run").rows()}
    assert {key: nine[key] for key in six} == six
    assert Counter(arm for arm, _ in nine)["threshold-0.5"] == 9
    assert evaluate(run, n=9, policy="mine={type: threshold, t: 0.95}").exit_code == 0
    names = [arm["arm"] for arm in read_run("run").summary["arms"]]
    assert {"threshold-0.5", "mine"} <= set(names)
    assert Counter(row["arm"] for row in read_run("run").rows())["threshold-0.5"] == 9
    result = evaluate(run, n=9, policy="mine={type: threshold, t: 0.2}")
    assert result.exit_code == 2
    assert "the arm mine was another policy: policy.t was 0.95, is 0.2" in result.stderr


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--seed", 1], "settings.seed was 0, is 1"),
        (["--prices", PRICES], "prices.large.input was 0.0, is 1.0"),
        (["--samples", 2], "samples was 1, is 2"),
        (["--dataset", "arithmetic:hard"], 'dataset.split was "standard", is "hard"'),
    ],
)
def test_a_folder_never_mixes_settings(world, run, monkeypatch, more, expected):
    evaluate(run, n=2)
    before = (world / "run/rows.parquet").read_bytes()
    monkeypatch.setattr("trim_graph.cli.eval.load_parts", lambda *a, **k: pytest.fail("loaded"))
    result = evaluate(run, *more, n=2)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert "Choose another --out" in result.stderr
    assert (world / "run/rows.parquet").read_bytes() == before


def test_samples_have_seeds_of_their_own(world, run):
    result = evaluate(run, "--samples", 3, n=6, policy="{type: random_rate, rate: 0.5}")
    assert result.exit_code == 0, result.output
    rows = rows_of("run", "random_rate-0.5")
    assert [(row["index"], row["sample"], row["seed"]) for row in rows] == [
        (index, sample, sample) for index in range(6) for sample in range(3)
    ]
    drawn = {
        tuple(step["decision"] for step in row["steps"]) for row in rows if row["index"] == rows[0]["index"]
    }
    assert len(drawn) > 1
    assert metrics_of("run", "random_rate-0.5")["accuracy"]["value"] == pytest.approx(
        sum(row["correct"] for row in rows) / 18
    )
    assert read_run("run").summary["n"] == 6


def test_a_sweep_is_one_curve(world, run):
    swept = ("--sweep", "threshold:0.05,0.5,0.95", "--random-rates", "usual")
    result = evaluate(run, *swept, policy=None, n=6)
    assert result.exit_code == 0, result.output
    curves = {curve["family"]: curve for curve in read_run("run").summary["curves"]}
    assert [point["arm"] for point in curves["threshold"]["points"]] == [
        "threshold-0.05",  # regenerates nothing: it is the small model alone
        "threshold-0.5",
        "threshold-0.95",
    ]
    arms = {arm["arm"]: arm for arm in read_run("run").summary["arms"]}
    assert arms["threshold-0.05"]["matched_budget"]["random"]["difference"]["value"] == 0
    assert arms["threshold-0.95"]["metrics"]["share"]["value"] > 0.9


def test_rates_of_random_routing(world, run):
    result = evaluate(run, "--random-rates", "0.6,0.2", n=4)
    assert result.exit_code == 0, result.output
    arms = read_run("run").summary["arms"]
    assert [arm["arm"] for arm in arms if arm["kind"] == "random"] == ["random-0.2", "random-0.6"]
    assert chosen_rates("usual") == list(RANDOM_RATES)


def test_nothing_that_calls_a_model_is_run_beside_policies_and_models_alone(world, run):
    result = run("eval", "--dataset", "arithmetic:standard", "--out", "run", "-n", 2, "--policy", POLICY)
    assert result.exit_code == 0, result.output
    assert [arm["arm"] for arm in read_run("run").summary["arms"]] == ["small", "large", "threshold-0.5"]
    # This small model reports no probabilities, or the cascade would be there as well.
    assert "baseline cascade was not run" in result.stdout


def test_the_summary_as_json(world, run):
    result = evaluate(run, "--json", n=4)
    assert json.loads(result.stdout) == read_run("run").summary
    json.loads(result.stdout, parse_constant=lambda name: pytest.fail(name))  # no NaN


def test_do_not_use_it_here(world, run):
    dear = "{small: {input: 9, output: 9}, large: {input: 1, output: 9}, scorer: {input: 5}}"
    evaluate(run, "--prices", dear, n=20)
    verdict = read_run("run").summary["verdict"]
    assert verdict.startswith("Do not use it here.")
    assert "It costs no less than the large model alone." in verdict
    # Waiting may cost more than is saved.
    evaluate(run, "--prices", PRICES, "--cost-per-second", 1e6, n=3, out="slow")
    found = read_run("slow").summary["verdicts"][0]
    assert math.isclose(
        found["net"]["value"],
        found["saved"]["value"] - found["added"]["value"] - 1e6 * found["seconds"]["value"],
    )


def estimated(run, *more, n=30, **options):
    result = evaluate(run, "--estimate", "--json", *more, n=n, **options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_estimate_names_all_runs_and_calls_no_model(world, run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("trim_graph.cli.eval.load_parts", lambda *a, **k: pytest.fail("loaded"))
        more = ("--validation-n", 40, "--random-rates", "0.2,0.5", "--prices", PRICES)
        found = estimated(run, *more, baselines="all")
        text = evaluate(run, "--estimate", *more, baselines="all").stdout
    assert not (world / "run").exists()
    groups = found["groups"]
    assert {name: group["runs"] for name, group in groups.items()} == {
        "models alone": 60,
        "policies": 30,
        "random routing": 60,
        "validation": 80,
        "baselines": 30 * 7 + 30,  # prm, three of kind and of entropy; a pilot of entropies
        "in all": 60 + 30 + 60 + 80 + 240,
    }
    assert found["cost"] > 0
    assert not found["measured"]
    assert "Cost at the prices given" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_estimate_is_measured_on_the_runs_that_are_there_and_an_upper_end(world, run):
    assert evaluate(run, n=5).exit_code == 0
    found = estimated(run, n=12)
    assert found["measured"]
    assert found["groups"]["in all"]["runs"] == 3 * 7
    result = evaluate(run, n=12)
    spent = Counter()
    for row in read_run("run").rows():
        if row["index"] >= 5:
            spent.update(row["calls"])
    for model, calls in found["groups"]["in all"]["calls"].items():
        assert calls == pytest.approx(spent[model], rel=0.35)
    assert "To spend" in result.stderr
    assert "at most" not in result.stderr
    assert estimated(run, n=12)["groups"]["in all"]["runs"] == 0
    assert "To spend" not in evaluate(run, n=12).stderr
    assert "Nothing is left to spend: all runs are in --out." in evaluate(run, "--estimate", n=12).stdout


def test_a_person_at_a_terminal_is_asked_before_much_is_spent(world, run, monkeypatch):
    asked = []

    def confirm(text, err):
        asked.append(text)
        return False

    monkeypatch.setattr("trim_graph.cli.eval.ASK_CALLS", 5)
    monkeypatch.setattr("typer.confirm", confirm)
    monkeypatch.setattr("trim_graph.cli.eval.at_terminal", lambda: True)
    result = evaluate(run, n=2)
    assert result.exit_code == 130
    assert "nothing was run; --yes starts without asking" in result.stderr
    assert not (world / "run/rows").exists()
    assert evaluate(run, "--yes", n=2).exit_code == 0
    assert asked == ["Start?"]


def test_one_question_decides_nothing_and_has_wide_intervals(world, run):
    result = evaluate(run, "--prices", PRICES, n=1)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Undecided on 1 of 20 questions or more: score < 0.5 ")
    assert "1 question is too few to decide: take 20 or more." in " ".join(result.stdout.split())
    low, high = metrics_of("run", "large")["accuracy"]["interval"]
    assert (low, high) == pytest.approx((0.025, 1))
    assert metrics_of("run", "large")["cost"]["interval"] is None
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("option", ["--dataset", "--validation"])
def test_questions_that_the_example_models_cannot_read_are_refused(world, run, monkeypatch, option):
    monkeypatch.setattr("trim_graph.cli.eval.load_parts", lambda *a, **k: pytest.fail("loaded"))
    known = problems("standard", 1)[0]
    short = "Start with 34. Step 1: add 1. Always keep only the last two digits. What is the result?"
    rows = [{"problem": known.question, "answer": known.answer}, {"problem": short, "answer": "35"}]
    (world / "short.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = evaluate(run, option, "short.jsonl", n=2)
    assert result.exit_code == 2
    reported = result.stderr.replace("\n", " ")
    assert (
        f"{option} short.jsonl, question 1: the example models cannot read this problem: it has 1 step"
        in reported
    )
    assert "trained on chains of 4 to 12 steps" in reported


def test_scores_that_say_nothing_are_reported(world, models, run, monkeypatch):
    class Guessing(models.Judge):
        def rate(self, question, texts):
            return (len(question) * 31 + sum(map(len, texts)) * 17) % 97 / 97

    parts = Parts(models.World(errs=True), models.World(errs=False), Guessing())
    monkeypatch.setattr("trim_graph.cli.eval.load_parts", lambda config, **_: parts)
    assert evaluate(run, "--prices", PRICES, n=12, policy="{type: threshold, t: 0.3}").exit_code == 0
    assert not read_run("run").summary["verdict"].startswith("Use it here")


def test_without_prices_nobody_knows(world, run):
    result = evaluate(run, n=4)
    assert "Undecided." in result.stdout
    assert "That pays where a large token costs more than" in result.stdout.replace("\n", " ")


def test_a_price_that_is_absent_is_not_zero(world, run):
    given = "{large: {input: 1, output: 9}"
    terms = ("--max-loss", 0.15)
    lacking = "small and scorer have no price"
    before = evaluate(run, *terms, "--prices", f"{given}}}", "--estimate", n=20)
    assert lacking in " ".join(before.stdout.split())
    assert "no prompt cached: at least" in before.stdout
    assert estimated(run, "--prices", f"{given}}}", n=20)["unpriced"] == ["small", "scorer"]
    result = evaluate(run, *terms, "--prices", f"{given}}}", n=20)
    assert result.exit_code == 0, result.output
    summary = read_run("run").summary
    assert (summary["headline"]["use"], summary["priced"]) == ("undecided", False)
    assert summary["headline"]["text"].endswith("of large tokens, accuracy +0.0 points.")
    # The judge of this world reports no tokens.
    assert "Without a price of small nobody can say whether that pays." in summary["verdict"]
    assert summary["warnings"][0].startswith("small has no price, and what has none is not free")
    (arm,) = (one for one in summary["arms"] if one["arm"] == "threshold-0.5")
    assert arm["metrics"]["cost"]["value"] is None
    assert arm["savings"]["cost"]["value"] is None
    # A price of 0 is a statement, of the same run; a part of it is none.
    partly = f"{given}, small: {{input: 0}}, scorer: {{input: 0}}}}"
    assert evaluate(run, *terms, "--prices", partly, n=20).exit_code == 0
    assert "Without a price of small.output nobody" in read_run("run").summary["verdict"]
    free = f"{given}, small: {{input: 0, output: 0}}, scorer: {{input: 0}}}}"
    assert evaluate(run, *terms, "--prices", free, n=20).exit_code == 0
    summary = read_run("run").summary
    assert (summary["headline"]["use"], summary["warnings"]) == ("yes", [])
    assert not estimated(run, "--prices", free, n=20, out="other")["unpriced"]


def test_a_scorer_that_calls_no_model_needs_no_price(world, run):
    parts = "small: {type: example, logprobs: true}\nlarge: {type: example}\n"
    (world / "trim.yaml").write_text(
        f"{parts}scorer: {{type: token_probability}}\npolicy: {{type: threshold, t: 0.5}}\n"
    )
    prices = "{small: {input: 0, output: 0}, large: {input: 1, output: 9}}"
    assert not estimated(run, "--config", "trim.yaml", "--prices", prices)["unpriced"]


MINE = """
def grade(solution, row):
    with open("calls.txt", "a") as calls:
        calls.write("x")
    return {verdict}
"""


@pytest.fixture
def own(world, run, monkeypatch):
    """Evaluates questions in a file with a grader of their own, whose verdict is an expression."""
    monkeypatch.syspath_prepend(str(world))
    found = problems("standard", 24)
    rows = [{"problem": one.question, "right": one.answer} for one in found]
    (world / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = "{type: file, path: q.jsonl, answer: right, grader: 'mine:grade'}"

    def evaluated(verdict, *more, **named):
        (world / "mine.py").write_text(MINE.replace("{verdict}", verdict))
        sys.modules.pop("mine", None)
        importlib.invalidate_caches()
        shutil.rmtree(world / "__pycache__", ignore_errors=True)
        return evaluate(run, *more, **{"dataset": given, "n": 24, **named})

    return evaluated


RIGHT = "row['right'] in solution.split('boxed{')[-1].split('}')[0]"


def test_what_is_no_verdict_stops_before_further_models_are_asked(world, own):
    result = own("'right'", "--concurrency", 2)
    assert result.exit_code == 2
    assert "arm small: grader mine:grade, question 0: it returned 'right' (str)" in result.stderr
    assert "--regrade" in result.stderr
    assert (world / "calls.txt").read_text() == "xx"  # those under way are kept
    rows = rows_of("run", "small")
    assert len(rows) == 2
    assert all(row["solution"] and row["tokens"]["small"] and not row["correct"] for row in rows)
    # Neither resuming nor running again what failed asks a model for them.
    again = own("'right'", "--retry-errors", "--concurrency", 2)
    assert again.exit_code == 2
    assert "grader mine:grade, question" in again.stderr
    assert rows_of("run", "small") == rows


def test_solutions_are_graded_again_by_a_grader_that_was_put_right(world, own):
    assert own("1 / 0").exit_code == 2
    kept = [row["solution"] for row in rows_of("run", "small")]
    refused = own(RIGHT)
    assert refused.exit_code == 2
    assert "was graded by another grader" in refused.stderr
    assert "--regrade grades its solutions again" in refused.stderr
    result = own(RIGHT, "--regrade")
    assert result.exit_code == 0, result.output
    rows = rows_of("run", "small")
    assert [row["solution"] for row in rows][: len(kept)] == kept
    assert not any(row["error"] for row in rows)
    assert metrics_of("run", "large")["accuracy"]["value"] == 1


def test_all_arms_are_graded_again_and_no_model_is_asked(world, own, monkeypatch):
    more = ("--config", "trim.yaml")
    parts = "small: {type: example}\nlarge: {type: example}\nscorer: {type: example}\n"
    (world / "trim.yaml").write_text(f"{parts}policy: {{type: threshold, t: 0.5}}\n")
    baselines = {"baselines": "score_cascade"}
    assert own(RIGHT, *more, **baselines).exit_code == 0
    before = list(read_run("run").rows())
    assert {row["arm"] for row in before} > {"threshold-0.5", "score_cascade-0.5"}
    refused = own("False", *more, **baselines)
    assert refused.exit_code == 2
    monkeypatch.setattr("trim_graph.cli.eval.load_parts", lambda *a, **k: pytest.fail("loaded"))
    failed = own("1 / 0", "--regrade", *more, **baselines)
    assert failed.exit_code == 2
    assert "grader mine:grade, question 0: ZeroDivisionError" in failed.stderr
    assert list(read_run("run").rows()) == before
    for verdict, options in (("False", baselines), ("not True", {})):
        result = own(verdict, "--regrade", *more, **options)
        assert result.exit_code == 0, result.output
        assert list(read_run("run").rows()) == [{**row, "correct": False} for row in before]
    assert own("not True", *more, **baselines).exit_code == 0  # the folder is of this grader now


def test_nothing_can_be_graded_again_where_nothing_is(world, own):
    result = own(RIGHT, "--regrade")
    assert result.exit_code == 2
    assert "--regrade: run holds no solutions yet" in result.stderr


def test_a_question_counts_once(world, own):
    lines = (world / "q.jsonl").read_text().splitlines(keepends=True)[:6]
    (world / "q.jsonl").write_text("".join(lines * 4))
    result = own(RIGHT, "--prices", PRICES)
    assert result.exit_code == 0, result.output
    summary = read_run("run").summary
    assert summary["n"] == 6
    assert len(rows_of("run", "threshold-0.5")) == 6
    assert "6 questions are too few to decide" in summary["verdict"]
    assert summary["warnings"][0].startswith("18 of 24 questions have the text of an earlier one")
    assert estimated_runs(own) == 0


def estimated_runs(own):
    result = own(RIGHT, "--prices", PRICES, "--estimate", "--json")
    return json.loads(result.stdout)["groups"]["in all"]["runs"]


def test_an_evaluation_asks_nobody_and_draws_from_no_account(world, run):
    parts = "".join(f"{part}: {{type: example}}\n" for part in ("small", "large", "scorer"))
    (world / "trim.yaml").write_text(
        f"{parts}policy: {{type: threshold, t: 0.5}}\n"
        "budget: {large_tokens: 20, on_exhausted: ask}\n"
        "settings: {ask_below: 0.5}\n"
        "quotas: {user: {large_tokens: 8}}\nledger: sqlite:spend.db\n"
    )
    result = evaluate(run, "--config", "trim.yaml", n=3)
    assert result.exit_code == 0, result.output
    assert not any(row["error"] for row in read_run("run").rows())
    assert max(row["large_tokens"] for row in rows_of("run", "threshold-0.5")) > 8
    assert not (world / "spend.db").exists()


class Failing:
    """Wraps a model; calls for some questions fail until it is repaired."""

    def __init__(self, models, fails):
        self.models, self.fails, self.repaired = models, fails, False

    def parts(self):
        outer, models = self, self.models

        class Broken(models.World):
            def _generate(self, messages, *given, **named):
                asked = next(message.text for message in messages if message.type == "human")
                if not outer.repaired and outer.fails(asked):
                    raise OSError("the server is gone")
                return super()._generate(messages, *given, **named)

        return Parts(Broken(errs=True), models.World(errs=False), models.Judge())


def test_what_fails_is_reported_counts_as_wrong_and_is_run_again(world, models, run, monkeypatch):
    failing = Failing(models, lambda asked: len(asked) % 3 == 0)
    parts = failing.parts()
    monkeypatch.setattr("trim_graph.cli.eval.load_parts", lambda config, **_: parts)
    result = evaluate(run, n=8)
    assert result.exit_code == 0, result.output
    rows = rows_of("run", "small")
    failed = [row for row in rows if row["error"]]
    assert 0 < len(failed) < 8
    assert failed[0]["error"] == "OSError: the server is gone"
    (failed_text,) = re.findall(
        r"\d+ runs? of small failed: (?:it counts|they count) as wrong, and as free; the first with "
        "OSError: the server is gone",
        " ".join(result.stdout.split()),
    )
    assert int(failed_text.split()[0]) == len(failed)
    whole = {row["index"]: row for row in rows if not row["error"]}
    again = estimated(run, "--retry-errors", n=8)["groups"]["models alone"]["runs"]
    assert again == len(failed)
    assert estimated(run, n=8)["groups"]["models alone"]["runs"] == 0
    failing.repaired = True
    assert evaluate(run, n=8).exit_code == 0
    assert [row["error"] for row in rows_of("run", "small")] == [row["error"] for row in rows]
    assert evaluate(run, "--retry-errors", n=8).exit_code == 0
    repaired = rows_of("run", "small")
    assert not any(row["error"] for row in repaired)
    assert {row["index"]: row for row in repaired if row["index"] in whole} == whole


def test_a_dead_server_ends_the_run(world, models, run, monkeypatch):
    parts = Failing(models, lambda asked: True).parts()
    monkeypatch.setattr("trim_graph.cli.eval.load_parts", lambda config, **_: parts)
    result = evaluate(run, n=22)
    assert result.exit_code == 2
    assert "arm small: 20 runs failed in a row, the last with OSError: the server is gone" in result.stderr
    assert evaluate(run, n=4, out="few").exit_code == 2  # fewer than that, and all of them


def test_baselines_that_cannot_be_run_are_reported(world, run):
    result = evaluate(run, "--validation-n", 12, n=4, baselines="all")
    assert result.exit_code == 0, result.output
    reported = " ".join(read_run("run").summary["warnings"])
    assert "baseline cascade was not run: the small model does not report the probabilities" in reported
    assert "baseline judge was not run: it needs a judge" in reported
    assert "baseline entropy was not run: the small model must report the entropy" in reported
    families = {arm["family"] for arm in read_run("run").summary["arms"]}
    assert "baseline router was not run: of 12 questions" in reported
    assert {"prm", "kind"} <= families
    assert evaluate(run, n=10, baselines="cascade").exit_code == 2


def test_a_named_router_that_outcomes_cannot_train_costs_no_results(world, run):
    result = evaluate(run, "--validation-n", 12, n=4, baselines="router,score_cascade")
    assert result.exit_code == 0, result.output
    assert "baseline router was not run: of 12 questions" in result.stdout
    assert "score_cascade" in {arm["family"] for arm in read_run("run").summary["arms"]}


@pytest.fixture
def patchy(world, models, monkeypatch):
    """A world whose small model errs where the first number is even."""

    class Patchy(models.World):
        def _generate(self, messages, *given, **named):
            asked = next(message.text for message in messages if message.type == "human")
            even = int(re.search(r"\d+", asked)[0]) % 2 == 0
            return models.World(errs=even)._generate(messages, *given, **named)

    parts = Parts(Patchy(errs=True), models.World(errs=False), models.Judge())
    monkeypatch.setattr("trim_graph.cli.eval.load_parts", lambda config, **_: parts)
    return world


def test_a_router_is_trained_on_other_questions(patchy, run):
    result = evaluate(run, "--validation-n", 45, n=12, baselines="router")
    assert result.exit_code == 0, result.output
    arms = {arm["arm"]: arm for arm in read_run("run").summary["arms"]}
    routed = [arm for arm in arms.values() if arm["family"] == "router"]
    assert [arm["arm"] for arm in routed] == ["router-0.25", "router-0.5", "router-0.75"]
    for arm in routed:
        small, large, own = (rows_of("run", name) for name in ("small", "large", arm["arm"]))
        asked_large = [row["large_tokens"] > 0 for row in own]
        assert sum(asked_large) / 12 == pytest.approx(arm["policy"]["questions"], abs=1e-4)
        for one, other, row, to_large in zip(small, large, own, asked_large, strict=True):
            assert row == {**(other if to_large else one), "arm": arm["arm"]}
    lines = (patchy / "run/validation/small.jsonl").read_text().splitlines()
    validated = {json.loads(line)["question"] for line in lines}
    assert not validated & {row["question"] for row in read_run("run").rows("small")}


def test_validation_questions_are_scored_for_kind_alone(patchy, run):
    """The router reads no scores. A dataset of the user's own has no labels of steps in their place."""
    for name, part, count in (("q", "test", 3), ("v", "train", 45)):
        rows = [
            {"problem": one.question, "answer": one.answer} for one in problems("standard", count, part=part)
        ]
        (patchy / f"{name}.jsonl").write_text("".join(map("{}\n".format, map(json.dumps, rows))))
    known = {"n": 3, "dataset": "q.jsonl"}

    def scores(baselines):
        result = evaluate(run, "--validation", "v.jsonl", **known, baselines=baselines)
        assert result.exit_code == 0, result.output
        lines = (patchy / "run/validation/small.jsonl").read_text().splitlines()
        return [step["score"] for line in lines for step in json.loads(line)["steps"]]

    for baselines, scored in (("router", False), ("kind", True)):
        found = estimated(run, "--validation", "v.jsonl", **known, baselines=baselines)
        assert bool(found["groups"]["validation"]["calls"]["scorer"]) is scored
    unscored = scores("router")
    assert set(unscored) == {None}
    scored = scores("kind")  # those of before are run again
    assert None not in scored
    assert len(scored) == len(unscored)


def test_validation_questions_among_those_of_the_evaluation_are_reported(world, run):
    drawn = [*problems("standard", 4, part="test", seed=0), *problems("standard", 8, part="train", seed=0)]
    rows = [{"problem": problem.question, "answer": problem.answer} for problem in drawn]
    (world / "other.jsonl").write_text("".join(map("{}\n".format, map(json.dumps, rows))))
    result = evaluate(run, "--validation", "other.jsonl", n=3, baselines="kind")
    assert result.exit_code == 0, result.output
    reported = "3 of the 12 questions of --validation are among those of --dataset"
    assert any(reported in warning for warning in read_run("run").summary["warnings"])
    assert reported in result.stderr


def test_all_baselines_of_models_that_report_all(world, models, run, monkeypatch):
    class Reporting(models.World):
        reports_entropy: ClassVar[bool] = True

        def _generate(self, messages, *given, **named):
            result = super()._generate(messages, *given, **named)
            message = result.generations[0].message
            wrong = message.text.endswith(" 1.")
            message.response_metadata["mean_token_probability"] = 0.4 if wrong else 0.9
            if named.get("first_token_entropy"):
                said = "".join(one.text for one in messages)
                message.response_metadata["first_token_entropy"] = zlib.crc32(said.encode()) / 2**32
            return result

    parts = Parts(Reporting(errs=True), Reporting(errs=False), models.Judge())
    monkeypatch.setattr("trim_graph.cli.eval.load_parts", lambda config, **_: parts)
    result = evaluate(run, "--prices", PRICES, n=12, baselines="cascade,score_cascade,entropy")
    assert result.exit_code == 0, result.output
    arms = {arm["arm"]: arm for arm in read_run("run").summary["arms"]}
    for family in ("cascade", "score_cascade", "entropy"):
        shares = [arms[f"{family}-{share}"]["metrics"]["share"]["value"] for share in ("0.25", "0.5", "0.75")]
        assert shares == sorted(shares)
        assert 0 < shares[1] < 1
        assert family in arms["threshold-0.5"]["matched_budget"]
    # A cascade pays for both answers, one after the other.
    small, large, own = (rows_of("run", arm) for arm in ("small", "large", "cascade-0.5"))
    for one, other, row in zip(small, large, own, strict=True):
        if row["large_tokens"]:
            assert row["solution"] == other["solution"]
            assert row["seconds"] == one["seconds"] + other["seconds"]
            assert row["cost"] == pytest.approx(one["cost"] + other["cost"])
            assert row["tokens"]["small_discarded"] == one["tokens"]["small"]
        else:
            assert {**row, "arm": "small"} == one
    # That by scores asks the scorer for each question, and the large model where a step is low.
    own = rows_of("run", "score_cascade-0.5")
    assert all(row["calls"]["scorer"] == 1 for row in own)
    scored = [json.loads(line) for line in (world / "run/scores.jsonl").read_text().splitlines()]
    least = {one["index"]: min(one["scores"]) for one in scored}
    asked = {bool(row["large_tokens"]): [] for row in own}
    for row in own:
        asked[bool(row["large_tokens"])].append(least[row["index"]])
    assert max(asked[True]) < min(asked[False])
    curves = {curve["family"]: curve for curve in read_run("run").summary["curves"]}
    beside = curves["threshold-0.5"]["over_query_level"]
    assert beside["family"] in ("cascade", "score_cascade")
    assert curves["cascade"]["over_query_level"] is None


CACHED = """\
small: {type: example}
large: {type: example}
scorer: {type: example}
policy: {type: small_only}
response_cache: calls.db
"""


def test_seconds_of_cached_responses_are_nowhere(world, run):
    (world / "cached.yaml").write_text(CACHED)
    result = evaluate(run, "--config", "cached.yaml", n=4)
    assert result.exit_code == 0, result.output
    summary = read_run("run").summary
    assert "no seconds were measured" in summary["warnings"][0]
    assert {arm["metrics"]["seconds"]["value"] for arm in summary["arms"]} == {None}
    assert "Wall clock" not in result.output
    result = evaluate(run, "--config", "cached.yaml", "--cost-per-second", 1, n=4)
    assert result.exit_code == 2
    assert "--cost-per-second 1: response_cache answers known calls at once" in result.stderr


def test_scores_of_whole_solutions_are_kept_for_the_next_run(world, models, run, monkeypatch):
    parts = Parts(models.World(errs=True), models.World(errs=False), models.Judge())
    monkeypatch.setattr("trim_graph.cli.eval.load_parts", lambda config, **_: parts)
    assert evaluate(run, n=6, baselines="score_cascade").exit_code == 0
    first = (world / "run/scores.jsonl").read_text()

    assert evaluate(run, n=6, baselines="score_cascade").exit_code == 0

    assert (world / "run/scores.jsonl").read_text() == first
    assert len(first.splitlines()) == 6


@pytest.mark.parametrize(
    ("arguments", "more", "reported"),
    [
        ({"n": 0}, [], "-n is 0: choose 1 or more"),
        ({}, ["--samples", 0], "--samples is 0"),
        ({}, ["--concurrency", 0], "--concurrency is 0"),
        ({}, ["--cost-per-second", -1], "--cost-per-second is -1"),
        ({"dataset": "no.jsonl"}, [], "no.jsonl does not exist"),
        ({"dataset": "q.jsonl", "n": 5}, [], "has 1 question; 5 are wanted"),
        ({"policy": "{type: threshold, t: 2}"}, [], "less than or equal to 1"),
        ({"policy": "no.json"}, [], "no.json"),
        ({"policy": "small={type: threshold, t: 0.2}"}, [], "that is the model alone"),
        ({}, ["--policy", POLICY], "two arms are named 'threshold-0.5'"),
        ({}, ["--sweep", "threshold"], "give a family and its numbers"),
        ({}, ["--sweep", "treshold:0.1"], "there is no family 'treshold'"),
        ({}, ["--sweep", "threshold:a"], "'a' is no number"),
        ({}, ["--random-rates", "0.5,1"], "--random-rates 0.5,1: give rates between 0 and 1"),
        ({}, ["--random-rates", "half"], "--random-rates half: give rates between 0 and 1"),
        ({}, ["--prices", "{large: {input: -1}}"], "prices.large.input"),
        ({}, ["--judge", "medium"], "--judge medium: give large, small, or"),
        ({}, ["--validation", "arithmetic:standard:test"], "are the questions of --dataset"),
        ({"baselines": "rooter"}, [], "there is no 'rooter'; choose all, none, or of router"),
        ({}, ["--max-loss", 0], "--max-loss is 0: choose a share of the questions between 0 and 1"),
        ({"dataset": "torn.jsonl", "n": 2}, [], "torn.jsonl, line 2: not JSON: Expecting property name"),
        ({"dataset": "torn.jsonl", "n": 2}, [], "in double quotes at column 2"),
        ({"dataset": "holes.jsonl", "n": 2}, [], "holes.jsonl, line 2 has no field answer; it has problem"),
        ({}, ["--validation", "holes.jsonl"], "holes.jsonl, line 2 has no field answer; it has problem"),
        ({"dataset": "{type: file, pth: q.jsonl}"}, [], "pth: unknown key, did you mean path?"),
        (
            {"dataset": "said.jsonl"},
            [],
            "said.jsonl, line 1: answer is 'The result is 48.', a sentence around",
        ),
        (
            {"policy": "threshold:0.5"},
            [],
            "give --sweep threshold:0.5, or --policy '{type: threshold, t: 0.5}'",
        ),
        ({"policy": "treshold"}, [], "unknown type 'treshold', did you mean threshold?"),
        ({}, ["--sweep", "threshold:1.5"], "t: is 1.5; it should be less than or equal to 1"),
        (
            {"dataset": "odd.jsonl", "n": 2},
            [],
            "odd.jsonl, line 2: answer: expected answer '3, 4' is no number",
        ),
        ({"out": "mine"}, [], "mine holds files, and no settings.json"),
    ],
)
def test_what_is_wrong_is_refused_before_a_model_is_loaded(
    world, run, monkeypatch, arguments, more, reported
):
    monkeypatch.setattr("trim_graph.cli.eval.load_parts", lambda *a, **k: pytest.fail("loaded"))
    (world / "q.jsonl").write_text(json.dumps({"problem": "p", "answer": "1"}))
    (world / "torn.jsonl").write_text(json.dumps({"problem": "p", "answer": "1"}) + "\n{bad\n")
    (world / "holes.jsonl").write_text('{"problem": "p", "answer": "1"}\n{"problem": "q"}\n')
    (world / "said.jsonl").write_text(json.dumps({"problem": "p", "answer": "The result is 48."}))
    golds = [{"question": f"p{gold}", "answer": f"so\n#### {gold}"} for gold in ("3", "3, 4")]
    (world / "odd.jsonl").write_text("\n".join(map(json.dumps, golds)))
    (world / "mine").mkdir()
    (world / "mine/letter.txt").write_text("dear")
    result = evaluate(run, *more, **arguments)
    assert result.exit_code == 2, result.output
    assert reported in result.stderr.replace("\n", " ")
    assert not (world / "run/rows").exists()


def test_a_judge_that_is_the_large_model(world, models, run, monkeypatch):
    """It says 9 of right steps and 0 of wrong ones, and is paid like the large model."""
    from langchain_core.messages import AIMessage
    from langchain_core.outputs import ChatGeneration, ChatResult

    judge = models.Judge()

    class Judging(models.World):
        def _generate(self, messages, *given, **named):
            text = messages[-1].text
            if "Rate the next step" not in text:
                return super()._generate(messages, *given, **named)
            fence = re.search(r"Problem:\n(.+)\n", text)[1]
            question, before, step = (part.strip() for part in text.split(f"\n{fence}\n")[1::2])
            texts = [*(piece for piece in before.split("\n\n") if piece.startswith("Step")), step]
            digit = 9 if judge.rate(question, texts) > 0.5 else 0
            usage = {"input_tokens": 50, "output_tokens": 1, "total_tokens": 51}
            message = AIMessage(str(digit), usage_metadata=usage)
            return ChatResult(generations=[ChatGeneration(message=message)])

    parts = Parts(models.World(errs=True), Judging(errs=False), models.Judge())
    monkeypatch.setattr("trim_graph.cli.eval.load_parts", lambda config, **_: parts)
    result = evaluate(run, "--judge", "large", "--prices", PRICES, n=8, baselines="judge")
    assert result.exit_code == 0, result.output
    own, usual = rows_of("run", "judge-7of9"), rows_of("run", "threshold-0.5")
    assert [row["solution"] for row in own] == [row["solution"] for row in usual]
    for row, other in zip(own, usual, strict=True):
        read, written = row["tokens"]["scorer"], row["tokens"]["scorer_output"]
        assert read > 0
        assert written > 0
        judging = (read + 9 * written) / 1e6
        assert row["cost"] - judging == pytest.approx(other["cost"] - other["tokens"]["scorer"] / 1e7)
    policy = read_run("run").settings["arms"]["judge-7of9"]["policy"]
    assert policy == {"type": "threshold", "t": 7 / 9, "scorer": {"type": "llm_judge", "model": "large"}}


def test_a_judge_without_a_price_beside_others_is_refused(run):
    judge = "{type: llm_judge, model: {type: example}}"
    result = evaluate(run, "--judge", judge, "--prices", "{large: {input: 1, output: 9}}", n=2)
    assert result.exit_code == 2
    assert "prices.scorer is not given, so the cost is unknown" in " ".join(result.output.split())
    assert "run" not in os.listdir()


def test_the_shipped_models_are_evaluated_with_baselines_and_prices(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trim.yaml").write_text(
        "small: {type: example, logprobs: true}\nlarge: {type: example, logprobs: true}\n"
        "scorer: {type: example}\npolicy: {type: threshold, t: 0.9}\n"
    )
    given = ("--config", "trim.yaml", "--prices", PRICES, "--random-rates", "usual")
    result = evaluate(run, *given, n=8, policy=None, baselines="free")
    assert result.exit_code == 0, result.output
    done = read_run("run")
    arms = {arm["arm"]: arm for arm in done.summary["arms"]}
    assert arms["large"]["metrics"]["accuracy"]["value"] > arms["small"]["metrics"]["accuracy"]["value"]
    assert arms["threshold-0.9"]["metrics"]["share"]["value"] < 1
    families = {arm["family"] for arm in arms.values()}
    assert families == {"small", "large", "threshold-0.9", "random", "cascade"}
    assert os.stat("run/rows.parquet").st_size > 0


def test_the_fields_that_are_read_are_said_first_and_a_pair_of_answers_where_none_is_right(world, run):
    drawn = enumerate(problems("standard", 2))
    rows = [{"problem": one.question, "answer": f"none of {number}"} for number, one in drawn]
    (world / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = evaluate(run, dataset="{type: file, path: q.jsonl, grader: exact}", n=2)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("q.jsonl: question=problem, answer=answer, grader=exact\n")
    said = " ".join(result.stdout.split())
    assert "2 questions of q.jsonl, 32 at a time." in said
    right = rows_of("run", "large")[0]["answer"]
    assert (
        "warning: no arm has any question right. Question 0, large alone: expected 'none of 0', got" in said
    )
    assert f"answer '{right}' (question=problem, answer=answer, grader=exact)" in said

    again = evaluate(run, dataset="{type: file, path: q.jsonl, grader: exact}", n=2)
    assert "large: 2/2, nothing left to run" in again.stderr
    (world / "q.jsonl").write_text("\n".join(map(json.dumps, reversed(rows))))
    changed = evaluate(run, dataset="{type: file, path: q.jsonl, grader: exact}", n=2)
    assert changed.exit_code == 2
    assert "q.jsonl has changed" in changed.stderr
