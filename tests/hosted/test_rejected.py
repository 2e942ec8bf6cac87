"""Calls that a provider's server rejects or leaves unanswered: what is charged, and what is said of them."""

import json
import os
import subprocess
import sys
import time

import pytest
import yaml

from trim_graph import Budget, ModelPrice, Prices, create_trim_graph
from trim_graph.adapters import LLMJudge
from trim_graph.examples.arithmetic import problems
from trim_graph.examples.hosted.manners import Arithmetic
from trim_graph.examples.hosted.scripted_server import Answer
from trim_graph.policies import threshold

from .conftest import openai

(ASKED,) = problems("standard", 1, seed=3)
PRICE = ModelPrice(input=2, output=8)
PRICES = Prices(small=PRICE, large=PRICE, scorer=PRICE)


def failing(name, status, times=1):
    """A server whose model of that name answers a status at first."""
    script, left = Arithmetic([ASKED]), [times]

    def answer(body):
        if body["model"] == name and left[0]:
            left[0] -= 1
            return Answer("no such luck", status=status)
        return script(body)

    return answer


def ask(server, policy=0.0, **settings):
    models = [openai(server, name) for name in ("small", "large")]
    judge = LLMJudge(openai(server, "judge"))
    graph = create_trim_graph(*models, judge, policy=policy, prices=PRICES, **settings)
    return graph.invoke({"messages": [("user", ASKED.question)]})["trim"]


@pytest.mark.parametrize(("status", "charged"), [(401, False), (404, False), (429, False), (500, True)])
def test_a_rejected_call_of_the_large_model_leaves_its_budget(serve, status, charged):
    server = serve(failing("large", status))
    limits = Budget(large_cost=0.01)
    summary = ask(server, 1.0, budget=limits, on_large_error="accept", max_step_tokens=2000)
    assert (summary["usage"]["unaccounted_tokens"] > 0) == charged
    assert (summary["usage"]["unaccounted_cost"] > 0) == charged
    assert any("charged for it" in note for note in summary["notes"]) == charged
    assert (summary["steps"]["large"] > 0) != charged


@pytest.mark.parametrize(("status", "charged"), [(401, False), (500, True)])
def test_a_rejected_call_of_the_judge_costs_nothing(serve, status, charged):
    summary = ask(serve(failing("judge", status, 99)), on_scorer_error="regenerate")
    scorer = summary["usage"]["scorer"]
    assert scorer["failed_calls"] > 0
    assert (scorer["input_tokens"] > 0, scorer["output_tokens"] > 0) == (charged, charged)
    assert any("broke off unreported" in note for note in summary["notes"]) == charged


@pytest.mark.parametrize("name", ["small", "large"])
def test_a_call_that_times_out_is_charged_in_full_whoever_makes_it(serve, name):
    script, left = Arithmetic([ASKED]), [1]

    def slow(body):
        if body["model"] == name and left[0]:
            left[0] -= 1
            time.sleep(1.0)
        return script(body)

    server = serve(slow)
    models = [openai(server, one, timeout=0.3 if one == name else None) for one in ("small", "large")]
    graph = create_trim_graph(
        *models,
        LLMJudge(openai(server, "judge")),
        policy=threshold(0.0 if name == "small" else 1.0),
        prices=PRICES,
        max_step_tokens=100,
        on_small_error="large",
        on_large_error="accept",
    )
    summary = graph.invoke({"messages": [("user", ASKED.question)]})["trim"]
    assert (
        f"a call of the {name} model did not report all that it had generated; 100 tokens were charged for it"
        in summary["notes"]
    )


def test_an_error_that_is_raised_keeps_its_type_and_says_whose_it_is(serve):
    from openai import NotFoundError

    with pytest.raises(NotFoundError) as raised:
        ask(serve(failing("small", 404)))
    assert "trim-graph: the small model, ChatOpenAI (small), failed in step 1" in raised.value.__notes__
    assert any("the model's name, 'small'," in note for note in raised.value.__notes__)


@pytest.fixture
def command(serve, tmp_path):
    """Runs a command with a configuration whose models have one server."""

    def run(script, *arguments):
        kwargs = {"base_url": serve(script).url, "max_retries": 0}
        small, large, judge = (
            {"type": "langchain", "model": f"openai:{name}", "kwargs": kwargs}
            for name in ("small", "large", "judge")
        )
        config = {
            "small": small,
            "large": large,
            "scorer": {"type": "llm_judge", "model": judge},
            "policy": 1.0,
        }
        (tmp_path / "trim.yaml").write_text(yaml.safe_dump(config))
        return subprocess.run(
            [sys.executable, "-m", "trim_graph.cli", arguments[0], "--config", "trim.yaml", *arguments[1:]],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "OPENAI_API_KEY": "sk-none"},
            check=False,
        )

    return run


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        (
            "small",
            404,
            "the small model, ChatOpenAI (small), failed in step 1: 404, no such luck; check the model's "
            "name, 'small', and the address of its server",
        ),
        (
            "large",
            401,
            "the large model, ChatOpenAI (large), failed in step 1: 401, no such luck; check the key",
        ),
        ("judge", 401, "LLMJudge's ChatOpenAI (judge) did not rate step 1: 401, no such luck; check the key"),
        (
            "small",
            500,
            "the small model, ChatOpenAI (small), failed in step 1: 500, no such luck; the server",
        ),
    ],
)
def test_the_command_says_in_one_line_which_model_failed_and_why(command, name, status, said):
    done = command(failing(name, status, 99), "solve", ASKED.question)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"trim-graph: {said}")


@pytest.mark.parametrize(
    ("status", "fix"), [(401, "check the key in OPENAI_API_KEY"), (404, "check the model's name, 'small',")]
)
def test_the_doctor_names_the_key_or_the_model(command, status, fix):
    done = command(failing("small", status, 99), "doctor", "--json")
    found = {(one["part"], one["check"]): one for one in json.loads(done.stdout)["checks"]}
    assert found["small", "writing"]["found"] == f"{status}, no such luck"
    assert found["small", "writing"]["fix"].startswith(fix)
