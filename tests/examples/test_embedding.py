"""The examples of embedding, conversation and a human: their READMEs' commands run as printed."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from trim_graph.config import TrimConfig
from trim_graph.examples.arithmetic import is_right, problems

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def blocks(name, language):
    readme = (EXAMPLES / name / "README.md").read_text("utf-8")
    return re.findall(rf"```{language}\n(.*?)```", readme, re.DOTALL)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the Python commands of a README, and returns what each printed."""
    monkeypatch.chdir(tmp_path)

    def commands(name):
        printed = []
        for line in "".join(blocks(name, "bash")).splitlines():
            words = shlex.split(line)
            if words[:2] != ["python", "-m"]:
                continue
            monkeypatch.setattr(sys, "argv", words[2:])
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
            printed.append(capsys.readouterr().out)
        return printed

    return commands


def test_an_application_streams_steps_and_solves_a_sheet(run):
    (printed,) = run("subgraph")
    asked = problems("standard", 5)
    assert printed.count("ada asks: ") == 2
    assert re.search(r"solve: large  Step \d", printed)
    assert "solved=True, 2 messages" in printed
    assert "4 messages" in printed
    for problem in asked[2:4]:
        answer = re.search(re.escape(problem.question) + r"\n  (\S+)", printed)[1]
        assert is_right(problem, f"The answer is \\boxed{{{answer}}}.")


def test_users_and_threads_share_their_quotas(run):
    (printed,) = run("conversation")
    lines = [line for line in printed.splitlines() if " turn " in line]
    assert len(lines) == 9
    own = {}
    for line in lines:
        user, spent = line.split()[0], int(re.search(r"(\d+) large tokens", line)[1])
        assert spent <= 40
        own[user] = own.get(user, 0) + spent
    assert own["ada"] <= 90
    assert own["eve"] <= 60
    # Which of ada's threads reserves the rest first is open, and so is what is left for the other.
    refused = r"large_tokens of user:ada (is spent or reserved|leaves \d, and a call needs 8):"
    assert re.search(refused, printed)
    assert "the limit on large_tokens of thread:eve-1 is spent or reserved" in printed


def test_a_run_waits_for_the_answer_of_another_command(run):
    asked, done = run("human_in_the_loop")
    assert "the score of this step is low. Answer with one of:" in asked
    assert "? small  Step 7: 96 mod 9 = 1.   (score 0.00)" in asked
    assert "'human': 1" in done
    assert is_right(problems("hard", 1, seed=20)[0], done)


def test_the_configuration_is_valid():
    (block,) = blocks("conversation", "yaml")
    parts = {part: {"type": "example"} for part in ("small", "large", "scorer")}
    TrimConfig.model_validate(yaml.safe_load(block) | parts | {"policy": "small_only"})


@pytest.mark.parametrize("name", ["subgraph", "conversation", "human_in_the_loop"])
def test_every_file_it_links_to_exists(name):
    for target in re.findall(
        r"\]\((?!https?:)([^)#]+)\)", (EXAMPLES / name / "README.md").read_text("utf-8")
    ):
        assert (EXAMPLES / name / target).exists(), target
