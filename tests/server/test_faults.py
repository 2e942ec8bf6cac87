"""Faults between the server and its models, and between a client and the server."""

import asyncio
import random

import openai
import pytest
import yaml

from tests.fault_proxy import FaultProxy
from tests.server.conftest import QUESTION, Served
from tests.server.processes import SMALL, config, script, wait_until
from trim_graph.config import make_config
from trim_graph.examples.hosted.scripted_server import ScriptedServer
from trim_graph.server import create_app

ANSWER = "\n\n".join(SMALL)


@pytest.fixture
def models():
    with ScriptedServer(script) as server:
        yield server


def served(url, retries=2):
    settings = yaml.safe_load(config(url, f", read_timeout: 5.0, max_retries: {retries}"))
    return Served(create_app(make_config(settings)), None)


@pytest.mark.parametrize(
    "fault", ["delay", "drop", "drop_answer", "drop_midway", "truncate", "429", "500", "503", "garbage"]
)
def test_one_fault_behind_the_server_does_not_reach_the_client(models, fault):
    with FaultProxy(models.url, [fault]) as proxy, served(proxy.url) as server:
        answer = server.ask()
        assert answer.json()["choices"][0]["message"]["content"] == ANSWER, answer.text
        assert proxy.met == [fault]


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("500", 502, "model_failed"),
        ("429", 503, "model_overloaded"),
        ("html", 502, "model_failed"),
        ("wrong_json", 502, "model_failed"),
        ("drop", 502, "model_failed"),
    ],
)
def test_models_that_stay_away_are_openais_error_without_their_address(models, caplog, fault, status, code):
    with FaultProxy(models.url, then=fault) as proxy, served(proxy.url, retries=1) as server:
        for stream in (False, True):
            answer = server.ask(stream=stream)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
            assert "127.0.0.1" not in answer.text
            assert answer.headers["x-request-id"] in caplog.text
        with (
            openai.OpenAI(base_url=server.url, api_key="any", max_retries=0) as client,
            pytest.raises(openai.InternalServerError),
        ):
            client.chat.completions.create(model="trim", messages=QUESTION, stream=True)
        assert server.under_way == 0


@pytest.mark.parametrize("fault", ["drop", "drop_answer", "drop_midway", "500", "503", "429_wait", "delay"])
def test_a_fault_before_the_server_is_retried_by_the_client(models, fault):
    with served(models.url) as server, FaultProxy(server.url, [fault]) as proxy:
        with openai.OpenAI(base_url=proxy.url, api_key="any") as client:
            answer = client.chat.completions.create(model="trim", messages=QUESTION)
        assert answer.choices[0].message.content == ANSWER
        assert proxy.met == [fault]
        wait_until(lambda: server.under_way == 0)


async def test_no_question_is_lost_while_one_request_in_ten_meets_a_fault_on_both_sides(models):
    chance = random.Random(7)
    faults = ["delay", "drop", "drop_answer", "429", "500", "503"]

    def plan():
        while True:
            yield chance.choice(faults) if chance.random() < 0.1 else None

    with FaultProxy(models.url, plan()) as behind, served(behind.url, retries=4) as server:
        with FaultProxy(server.url, plan()) as before:
            async with openai.AsyncOpenAI(base_url=before.url, api_key="any", max_retries=6) as client:
                asked = [client.chat.completions.create(model="trim", messages=QUESTION) for _ in range(40)]
                answers = await asyncio.gather(*asked)
            assert before.met
        assert behind.met
        wait_until(lambda: server.under_way == 0)
    assert {answer.choices[0].message.content for answer in answers} == {ANSWER}
