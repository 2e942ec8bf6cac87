"""The commands of the guide to a scorer of one's own, run as printed: from a file to a routed answer."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from trim_graph.cli.app import app
from trim_graph.evaluation.traces import read_traces

GUIDE = (Path(__file__).parents[2] / "examples" / "guides" / "scorers.md").read_text("utf-8")


def printed(language):
    """The first block of a language: the commands, or what writes the files that they read."""
    return re.search(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL).group(1)


COMMANDS = [shlex.split(line) for line in printed("bash").splitlines()]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder in which the commands ran, and the result of each."""
    folder = tmp_path_factory.mktemp("guide")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(printed("python"), "scorers.md", "exec"), {})
        results = [CliRunner().invoke(app, words[1:]) for words in COMMANDS]
    return folder, results


def test_there_are_six_commands_of_ours_from_a_file_to_an_answer():
    assert [words[0] for words in COMMANDS] == ["trim-graph"] * 6
    assert [words[1] for words in COMMANDS] == [
        "label",
        "train",
        "label",
        "eval-scorer",
        "calibrate",
        "solve",
    ]


def test_each_command_ends_well(ran):
    _, results = ran
    gate, others = results[3], results[:3] + results[4:]
    assert [result.exit_code for result in others] == [0] * 5, [result.output for result in others]
    verdict = re.search(r"This scorer is (better|no better) than token probability", gate.stdout)
    assert verdict, gate.output
    assert gate.exit_code == int(verdict.group(1) == "no better")


def test_the_scorer_is_made_of_the_labels_and_the_policy_calibrated_with_it(ran):
    folder, results = ran
    traces = list(read_traces(folder / "labels.jsonl"))
    assert {step["label"] for trace in traces for step in trace["steps"]} == {True, False, None}
    card = json.loads((folder / "scorer" / "trim_scorer.json").read_text())
    assert (card["format"], card["method"]) == ("trim", "monte_carlo")
    before, after = [yaml.safe_load((folder / name).read_text()) for name in ("trim.yaml", "routed.yaml")]
    assert after["scorer"] == before["scorer"]
    assert after["policy"]["type"] == "threshold"
    assert after["policy"]["t"] != before["policy"]["t"]
    assert "\\boxed{" in results[-1].stdout
