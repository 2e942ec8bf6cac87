"""The hosted example: its README runs as printed, its scripts do what they say, its table was measured."""

import json
import re
from pathlib import Path

import pytest

from trim_graph.examples.arithmetic import is_right, problems
from trim_graph.examples.hosted import overhead, solve
from trim_graph.examples.hosted.manners import Arithmetic
from trim_graph.examples.hosted.scripted_server import Answer, pieces

FOLDER = Path(__file__).parent.parent.parent / "examples" / "hosted"
README = (FOLDER / "README.md").read_text("utf-8")
NAMES = {"gpt-4.1-nano": "small", "gpt-4.1": "large", "gpt-4.1-mini": "judge"}


@pytest.fixture
def account(serve, monkeypatch):
    """An OpenAI account whose models do arithmetic."""

    def start(asked):
        script = Arithmetic(asked)
        server = serve(lambda body: script({**body, "model": NAMES[body["model"]]}))
        monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        return server

    return start


def test_the_readme_runs_as_printed(account, capsys):
    problem = problems("standard", 1)[0]
    server = account([problem])
    block, by_names = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    question = re.search(r'"user", "(.*?)"\)', block)[1]
    assert len(block.strip().splitlines()) == 10
    names = {}
    exec(compile(block.replace(question, problem.question), "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert is_right(problem, printed)
    assert "continues by prompt" in printed
    assert {body["model"] for body in server.requests} == set(NAMES)
    names = {}
    exec(compile(by_names, "README.md", "exec"), names)
    capsys.readouterr()
    answer = names["graph"].invoke({"messages": [("user", problem.question)]})["messages"][-1].text
    assert is_right(problem, answer)


def test_the_script_solves_a_question(account, capsys):
    problem = problems("standard", 1)[0]
    account([problem])
    solve.main([problem.question])
    printed = capsys.readouterr().out
    assert is_right(problem, printed)
    assert "note: the small model continues by prompt" in printed


def test_the_measurement_counts_what_the_arms_differ_in(capsys, tmp_path):
    at_once = ["--latency", "0", "--token-latency", "0", "--repeats", "1"]
    overhead.main(["-n", "2", *at_once, "--json", str(tmp_path / "o.json")])
    arms = json.loads((tmp_path / "o.json").read_text())["arms"]
    exact, asked, forgetful, talkative = (arms[name] for name in overhead.ARMS)
    assert exact["steps"] == asked["steps"] == forgetful["steps"] == talkative["steps"]
    assert exact["calls"] == asked["calls"] == talkative["calls"] == forgetful["calls"] - 2
    assert exact["judge_calls"] == asked["judge_calls"] == talkative["judge_calls"]
    assert exact["input"] < asked["input"] == talkative["input"] < forgetful["input"]
    assert exact["output"] < asked["output"] < talkative["output"]
    assert "| exact continuation |" in capsys.readouterr().out


def test_the_readmes_table_is_the_measured_one():
    results = json.loads((FOLDER / "overhead.json").read_text("utf-8"))
    for line in overhead.report(results):
        assert line in README
    assert f"{results['n']} questions" in README
    assert results["date"][:10] in README


def test_the_server_counts_and_cuts_by_pieces(serve):
    reported = "Add| |123|4| to| x|_|1|:| done|!"
    assert pieces("Add 1234 to x_1: done!") == reported.split("|")
    server = serve(lambda body: Answer("one two three four"))
    body = {"model": "m", "messages": [{"role": "user", "content": "Go on"}], "max_tokens": 2}
    status, made = server.answer(body)
    assert (status, made["choices"][0]["message"]["content"]) == (200, "one two")
    assert made["choices"][0]["finish_reason"] == "length"
    assert made["usage"]["prompt_tokens"] == 2 + 4
