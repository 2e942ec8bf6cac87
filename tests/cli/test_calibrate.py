"""Tests of `trim-graph calibrate`, and of the calibration that comes with the example models."""

import asyncio
import json
import re
import signal
import time

import pytest
import yaml

from trim_graph import SettingsError, TrimError
from trim_graph.config import load_config, quality_policy
from trim_graph.evaluation import run_arm, share_of_large_tokens
from trim_graph.evaluation.calibration import RecordFile
from trim_graph.evaluation.datasets import arithmetic_question
from trim_graph.examples.arithmetic import problems
from trim_graph.examples.arithmetic.shipped import load_calibration
from trim_graph.examples.arithmetic.study.calibrate import calibrate, example_calibrator
from trim_graph.graph import create_trim_graph
from trim_graph.policies import large_only

CONFIG = """\
# what we route with
small: {type: example}
large: {type: example}  # the dear one
scorer: {type: example}
policy:
  type: threshold  # chosen by hand
  t: 0.5
# what it costs
prices: {small: {input: 0, output: 0}, large: {input: 0.0, output: 1000.0}, scorer: {input: 0}}
settings: {max_steps: 20}
"""


DATASET = ("--dataset", "arithmetic:standard")


@pytest.fixture
def config(world):
    (world / "trim.yaml").write_text(CONFIG)
    return "trim.yaml"


def test_a_share_is_hit_on_fresh_questions(world, run, config):
    result = run(
        "calibrate", "--config", config, *DATASET, "--large-share", 0.3, "-n", 50, "--json", "r.json"
    )
    assert result.exit_code == 0, result.output
    report = json.loads((world / "r.json").read_text())
    assert report["expected"]["share"]["value"] == pytest.approx(0.3, abs=0.01)
    assert "share of large tokens" in result.stdout
    assert "measured on 50 questions of arithmetic:standard, validation" in result.stdout
    chosen = load_config("trim.calibrated.yaml")
    assert chosen.policy.model_dump() == report["policy"]
    assert 3 <= len(report["points"]) + 1 <= 9

    from trim_graph.cli.calibrate import load_parts

    parts = load_parts(chosen)
    drawn = problems("standard", 50, part="validation", seed=1)
    fresh = [arithmetic_question(problem) for problem in drawn]
    spent = []
    for policy in (chosen.policy.build(), large_only()):
        outcomes = asyncio.run(run_arm(create_trim_graph(*parts, policy=policy), fresh))
        spent.append(sum(outcome["large_tokens"] for outcome in outcomes))
    low, high = report["expected"]["share"]["interval"]
    assert low <= share_of_large_tokens(*spent) <= high


def test_only_the_policy_of_the_file_changes_and_what_is_known_of_the_large_model(world, run, config):
    result = run("calibrate", "--config", config, *DATASET, "--large-share", 0.4, "-n", 20)
    assert result.exit_code == 0
    written = (world / "trim.calibrated.yaml").read_text()
    policy = yaml.safe_load(written)["policy"]
    before, after = CONFIG.split("policy:\n  type: threshold  # chosen by hand\n  t: 0.5\n")
    unchanged = f"{before}policy: {{type: threshold, t: {policy['t']}}}\n{after}"
    assert written.startswith(unchanged)
    assert written.removeprefix(unchanged).startswith("large_alone: {length_ratio: ")
    known = load_config("trim.calibrated.yaml").large_alone
    assert known.length_ratio == pytest.approx(1, abs=0.3)
    assert known.seconds_per_token > 0
    assert f"large_alone: {{length_ratio: {known.length_ratio:g}, seconds_per_token: " in result.stdout
    assert (world / config).read_text() == CONFIG


def test_a_cost_is_a_limit_by_the_price_table(world, run, config):
    result = run("calibrate", "--config", config, *DATASET, "--max-cost", 0.02, "-n", 30, "--json", "r.json")
    assert result.exit_code == 0, result.output
    expected = json.loads((world / "r.json").read_text())["expected"]
    assert 0.015 < expected["cost"]["value"] <= 0.02
    assert "cost a question" in result.stdout
    assert "share of large tokens" not in result.stdout  # the large model alone was not run


def test_a_wanted_pgr_is_reached(world, run, config):
    result = run("calibrate", "--config", config, *DATASET, "--pgr", 0.6, "-n", 25, "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert json.loads((world / "r.json").read_text())["expected"]["pgr"]["value"] >= 0.6


def test_a_loss_is_shown(world, run, config):
    result = run("calibrate", "--config", config, *DATASET, "--max-loss", 0.1, "-n", 30, "--json", "r.json")
    assert result.exit_code == 0, result.output
    report = json.loads((world / "r.json").read_text())
    assert 0.59 < report["policy"]["t"] < 0.65  # the judge wavers below 0.6
    assert report["expected"]["loss"]["bound"] <= 0.1
    assert "loss of accuracy         0 (at most 0.09504; 0 lost, 0 gained" in result.stdout
    assert "The next that would spend less lost" in result.stdout
    assert report["undecided"]["lost"] > 0
    assert load_config("trim.calibrated.yaml").policy.model_dump() == report["policy"]


def test_a_loss_that_is_not_shown_is_undecided_and_says_how_many_more(world, run, config):
    result = run("calibrate", "--config", config, *DATASET, "--max-loss", 0.02, "-n", 20, "--json", "r.json")
    assert result.exit_code == 3, result.output
    assert "without any difference it takes 149" in result.stderr
    further = json.loads((world / "r.json").read_text())["further_questions"]
    assert further > 129
    assert "Undecided: a loss of at most 0.02 is not shown" in result.stdout
    named = r"nearest to it, threshold-1 \([\d.]+ % of the large model's own tokens\), lost 0 of 20 "
    assert re.search(f"{named}questions and gained 0", result.stdout)
    assert f"at most 0.139, with 95 % confidence. Ask {further} more questions (-n {20 + further})" in (
        result.stdout
    )
    assert "nothing written" in result.stdout
    assert not (world / "trim.calibrated.yaml").exists()


def test_a_wanted_saving_of_tokens_is_met(world, run, config):
    result = run("calibrate", "--config", config, *DATASET, "--save", 0.7, "-n", 30, "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert 0.28 <= json.loads((world / "r.json").read_text())["expected"]["share"]["value"] <= 0.3


QUALITY = """\
small: {type: example}
large: {type: example}
scorer: {type: example}
policy: {type: quality, name: high}  # in use
quality:
  high: {max_loss: 0.1}  # ten points
  top: {max_loss: 0.001}
  fast: {save: 0.8}
"""


def test_operating_points_by_name_are_written_into_the_file(world, run):
    (world / "trim.yaml").write_text(QUALITY)
    common = ("--config", "trim.yaml", *DATASET, "-n", 30, "--keep", "kept")
    result = run("calibrate", *common, "--write", "--json", "r.json")
    assert result.exit_code == 3, result.output  # 30 questions do not show a tenth of a point
    assert "high (max_loss 0.1)" in result.stdout
    assert "top (max_loss 0.001)\nUndecided" in result.stdout
    written = (world / "trim.yaml").read_text()
    assert "# in use" in written
    assert "# ten points" in written
    assert "  top: {max_loss: 0.001}\n" in written
    chosen = load_config("trim.yaml")
    high = chosen.quality["high"]
    assert chosen.policy == high.policy == quality_policy(chosen.quality, 0.1)
    assert high.measured.loss_bound <= 0.1
    assert (high.measured.n, high.measured.loss) == (30, 0)
    assert chosen.quality["fast"].measured.saved >= 0.8
    report = json.loads((world / "r.json").read_text())["quality"]
    assert [point["name"] for point in report] == ["high", "top", "fast"]
    # What is calibrated can be calibrated again.
    assert run("calibrate", *common, "--write").exit_code == 3
    assert (world / "trim.yaml").read_text().count("large_alone") == 1
    assert load_config("trim.yaml").quality["high"].policy == high.policy


def test_where_no_answer_is_right_the_grader_is_in_doubt(world, run, config):
    rows = [{"text": p.question, "answer": "x"} for p in problems("standard", 20, part="validation")]
    (world / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = "{type: file, path: q.jsonl, question: text, answer: answer, grader: exact}"
    common = ("calibrate", "--config", config, "--dataset", dataset)
    result = run(*common, "--max-loss", 0.1)
    assert result.exit_code == 2
    assert "check the grader and the prompt" in result.stderr
    result = run(*common, "--large-share", 0.3)  # a spend needs no answers
    assert result.exit_code == 0, result.output
    assert "check the grader and the prompt" in result.stdout


def test_a_spend_needs_only_questions(world, run, config):
    rows = [{"text": problem.question} for problem in problems("standard", 40, part="validation")]
    (world / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = "{type: file, path: q.jsonl, question: text}"
    result = run("calibrate", "--config", config, "--dataset", dataset, "--large-share", 0.3)
    assert result.exit_code == 0, result.output
    assert "accuracy" not in result.stdout
    result = run("calibrate", "--config", config, "--dataset", dataset, "--pgr", 0.9)
    assert result.exit_code == 2
    assert "a PGR needs the right answers, and the dataset has none" in result.stderr


def test_other_families_are_calibrated_by_name_and_by_template(world, run, config):
    common = ("calibrate", "--config", config, *DATASET, "--large-share", 0.3, "-n", 20)
    result = run(*common, "--family", "random_rate")
    assert 0.15 < yaml.safe_load((world / "trim.calibrated.yaml").read_text())["policy"]["rate"] < 0.45, (
        result
    )
    stay = '{type: stay_on_large, k: 1, policy: {type: threshold, t: "?"}}'
    assert run(*common, "--family", stay).exit_code == 0
    policy = yaml.safe_load((world / "trim.calibrated.yaml").read_text())["policy"]
    assert (policy["type"], policy["k"], policy["policy"]["type"]) == ("stay_on_large", 1, "threshold")


def test_what_no_policy_reaches_is_reported(world, run, config):
    rates = '{type: all_of, policies: [{type: random_rate, rate: "?"}, {type: random_rate, rate: 0.1}]}'
    result = run("calibrate", "--config", config, *DATASET, "--large-share", 0.8, "--family", rates, "-n", 20)
    assert result.exit_code == 0, result.output
    assert "No policy of this family comes closer to the large share of 0.8" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "give one of --large-share, --max-cost, --pgr, --max-loss and --save"),
        (["--large-share", 0.2, "--pgr", 0.9], "give one of"),
        (["--max-loss", 1.0], "--max-loss is 1.0: choose a number above 0 and below 1"),
        (["--max-loss", 0.1, "--write"], "--write replaces the file of --config: give that file"),
        (["--large-share", 1.2], "--large-share is 1.2: choose a number above 0 and at most 1"),
        (["--large-share", 0.2, "-n", -1], "-n is -1: choose 1 or more"),
        (["--large-share", 0.2, "--concurrency", 0], "--concurrency is 0"),
        (["--large-share", 0.2, "--family", "thr"], "--family thr: choose threshold"),
        (["--large-share", 0.2, "--out", "no/trim.yaml"], "/no does not exist"),
        (["--large-share", 0.2, "--json", "no/r.json"], "/no does not exist"),
        (["--large-share", 0.2, "--dataset", "no.jsonl"], "no.jsonl does not exist"),
        (["--large-share", 0.2, "--dataset", "q.jsonl", "-n", 3], "q.jsonl has 2 questions; 3 are wanted"),
        (["--large-share", 0.2, "--keep", "q.jsonl"], "--keep q.jsonl cannot be made a folder: File exists"),
    ],
)
def test_what_is_wrong_is_refused_before_a_model_is_loaded(world, run, monkeypatch, arguments, expected):
    monkeypatch.setattr("trim_graph.cli.calibrate.load_parts", lambda *a, **k: pytest.fail("loaded"))
    (world / "q.jsonl").write_text('{"problem": "p", "answer": "1"}\n{"problem": "q", "answer": "2"}\n')
    result = run("calibrate", *arguments)
    assert result.exit_code == 2, result.output
    assert expected in result.stderr


def test_a_configuration_asks_for_its_questions_and_prices(world, run, monkeypatch):
    monkeypatch.setattr("trim_graph.cli.calibrate.load_parts", lambda *a, **k: pytest.fail("loaded"))
    (world / "trim.yaml").write_text("small: {type: example}\nlarge: {type: example}\npolicy: small_only\n")
    common = ("calibrate", "--config", "trim.yaml", "--family", "random_rate")
    assert "--dataset is missing" in run(*common, "--large-share", 0.2).stderr
    assert "--max-cost needs prices" in run(*common, *DATASET, "--max-cost", 0.2).stderr
    assert "trim.yaml has none, such as quality: {high:" in run(*common, *DATASET).stderr
    assert "--family is missing" in run("calibrate", "--config", "trim.yaml", *DATASET, "--pgr", 0.5).stderr


@pytest.mark.parametrize("target", [("--large-share", 0.2), ("--save", 0.7), ("--pgr", 0.9)])
def test_few_questions_choose_no_operating_point(world, run, config, monkeypatch, target):
    monkeypatch.setattr("trim_graph.cli.calibrate.load_parts", lambda *a, **k: pytest.fail("loaded"))
    rows = [{"text": p.question, "answer": p.answer} for p in problems("standard", 19, part="validation")]
    (world / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows]))
    dataset = "{type: file, path: q.jsonl, question: text, answer: answer, grader: exact}"
    result = run("calibrate", "--config", config, "--dataset", dataset, *target)
    assert result.exit_code == 2
    assert "19 of 38 questions have the text of an earlier one, the first of them question 19" in (
        result.stderr
    )
    assert "19 questions are too few to choose an operating point on: give 20 or more" in result.stderr
    assert not (world / "trim.calibrated.yaml").exists()


def test_a_cost_with_an_absent_price_is_unknown(world, run):
    (world / "trim.yaml").write_text(CONFIG.replace(", scorer: {input: 0}", ""))
    common = ("calibrate", "--config", "trim.yaml", *DATASET, "-n", 20, "--json", "r.json")
    assert "--max-cost needs prices, and there is none of scorer" in run(*common, "--max-cost", 1).stderr
    result = run(*common, "--large-share", 0.3)
    assert result.exit_code == 0, result.output
    assert "cost" not in result.output
    report = json.loads((world / "r.json").read_text())
    assert report["expected"]["cost"]["value"] is None
    assert {point["cost"] for point in report["points"]} == {None}


def test_an_interrupted_calibration_goes_on(world, run, start, config):
    arguments = ("calibrate", "--config", config, *DATASET, "--large-share", 0.3, "-n", 20, "--keep", "kept")
    process = start(*arguments, "--concurrency", 2, delay=0.02)
    until = time.monotonic() + 60
    while len(list((world / "kept").glob("*.jsonl"))) < 3 and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, reported = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; what was measured is in kept: the same command resumes it" in reported
    assert not (world / "trim.calibrated.yaml").exists()
    before = {file: file.read_bytes() for file in (world / "kept").glob("*.jsonl")}
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    for file, content in before.items():
        whole = content[: content.rfind(b"\n") + 1]
        assert file.read_bytes().startswith(whole)
        assert len(file.read_bytes().splitlines()) == 20


def test_a_calibration_that_goes_on_tries_what_one_at_a_stretch_does(world, run, config, monkeypatch):
    common = ("calibrate", "--config", config, *DATASET, "--pgr", 0.9, "-n", 20)
    assert run(*common, "--keep", "whole", "--json", "whole.json").exit_code == 0
    points = json.loads((world / "whole.json").read_text())["points"]
    original, done = RecordFile.append, []

    def append(file, outcome):
        original(file, outcome)
        done.append(outcome)
        if len(done) == 90:  # within the third of the points
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RecordFile, "append", append)
        assert run(*common, "--keep", "cut").exit_code == 130
    for folder in ("cut", "whole"):  # resumed, and asked for again
        assert run(*common, "--keep", folder, "--json", "again.json").exit_code == 0
        assert json.loads((world / "again.json").read_text())["points"] == points


def test_the_shipped_models_are_calibrated_to_a_wanted_share(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("calibrate", "--large-share", 0.25, "-n", 40, "--json", "r.json")
    assert result.exit_code == 0, result.output
    expected = json.loads((tmp_path / "r.json").read_text())["expected"]
    assert expected["share"]["value"] == pytest.approx(0.25, abs=0.05)
    assert load_config("trim.calibrated.yaml").policy.model_dump()["type"] == "threshold"


# The study's calibration of the example models, whose file is part of the package


@pytest.fixture
def models(world):
    from trim_graph.cli.solve import load_parts

    return load_parts(None)


@pytest.fixture
def calibrator(models):
    questions = [arithmetic_question(problem) for problem in problems("standard", 40, part="validation")]
    return example_calibrator(*models, questions, concurrency=8)


async def test_a_sweep_chooses_the_threshold_that_reaches_enough(calibrator):
    found = await calibrate(calibrator, split="standard", thresholds=(0.05, 0.5, 0.95))
    assert [row["pgr"] for row in found.curve] == [0, 1, 1]
    assert found.threshold == 0.5
    assert found.curve[2]["share"] > 0.99  # everything is regenerated
    assert found.random["share"] == pytest.approx(found.curve[1]["share"], abs=0.03)
    assert found.random_rate == found.random["setting"]
    assert (found.n, found.split, found.accuracy_large) == (40, "standard", 1)


async def test_failures_are_not_left_out(models):
    def broken(question, steps):
        raise OSError("gone")

    questions = [arithmetic_question(problem) for problem in problems("standard", 3, part="validation")]
    calibrator = example_calibrator(models.small, models.large, broken, questions, concurrency=8)
    with pytest.raises(TrimError, match="cannot leave questions out: OSError: gone"):
        await calibrate(calibrator, split="standard", thresholds=(0.5,))


def test_what_ships_is_what_calibrate_writes():
    shipped = load_calibration()
    chosen = min((row for row in shipped.curve if row["pgr"] >= 0.95), key=lambda row: row["share"])
    assert chosen["setting"] == shipped.threshold
    assert shipped.random["setting"] == shipped.random_rate


def test_a_missing_or_damaged_calibration_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"calibrate makes it$"):
        load_calibration(tmp_path / "nix.json")
    for text in ("{", "[]", json.dumps({"threshold": 0.5})):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(SettingsError, match="is damaged"):
            load_calibration(tmp_path / "a.json")
