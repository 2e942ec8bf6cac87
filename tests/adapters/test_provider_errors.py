"""Tests of errors of models' clients: whose they are, what the server said, and what to do about them."""

from __future__ import annotations

import httpx
import pytest
from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI

from trim_graph.adapters import ContinueByPrompt, ModelServerError
from trim_graph.adapters.provider_errors import (
    add_origin,
    advice,
    error_line,
    in_one_line,
    is_of_client,
    named_model,
    server_message,
)
from trim_graph.testing import ScriptedChatModel

HOSTED = ChatOpenAI(model="gpt-x", api_key="none")


class ClientError(Exception):
    """As the clients of providers raise it: with the status and the body of the answer."""

    def __init__(self, text="", status=None, body=None, request=None):
        super().__init__(text)
        if status is not None:
            self.status_code = status
        if body is not None:
            self.body = body
        if request is not None:
            self.request = request


class APITimeoutError(ClientError):
    """As OpenAI's client names it."""


def unreached(kind=ClientError, text="Connection error."):
    return kind(text, request=httpx.Request("POST", "http://127.0.0.1:1/v1"))


# What to do


@pytest.mark.parametrize(
    ("error", "way"),
    [
        (ClientError(status=401), "check the key in OPENAI_API_KEY, and that it may use this model"),
        (ClientError(status=403), "check the key in OPENAI_API_KEY, and that it may use this model"),
        (ClientError(status=404), "check the model's name, 'gpt-x', and the address of its server"),
        (ClientError(status=429), "a limit of the provider is reached: ask again later"),
        (ClientError(status=500), "the server failed: ask again later"),
        (ClientError(status=529), "the server failed: ask again later"),
        (unreached(), "check the address of the model's server, and that it can be reached"),
        (unreached(APITimeoutError), "did not answer in its time limit: set a longer timeout"),
    ],
)
def test_the_way_out_is_that_of_the_status(error, way):
    assert way in advice(error, HOSTED)


@pytest.mark.parametrize(
    "error",
    [
        ClientError(status=400),
        ClientError(status=418),
        ValueError("a fault of the program"),
        ClientError("a status below 400", status=302),
        ModelServerError("the server is down", begun=False),
    ],
)
def test_an_error_that_says_all_itself_gets_no_advice(error):
    assert advice(error, HOSTED) is None


def test_a_refused_setting_is_named_before_anything_else():
    error = ClientError("Unsupported parameter: 'stop' is not supported with this model.", 400)
    assert advice(error, HOSTED).startswith("the model refuses the setting stop: ")


def test_a_model_without_a_known_variable_or_name_leaves_both_out():
    model = ScriptedChatModel(script=[])
    assert advice(ClientError(status=401), model) == "check the key, and that it may use this model"
    assert advice(ClientError(status=404), lambda question, steps: [1.0]) == (
        "check the model's name and the address of its server"
    )


# Whose it is


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (HOSTED, "ChatOpenAI (gpt-x)"),
        (HOSTED.bind(temperature=0.5).with_retry(), "ChatOpenAI (gpt-x)"),
        (HOSTED.with_fallbacks([ScriptedChatModel(script=[])]), "ChatOpenAI (gpt-x)"),
        (ContinueByPrompt(model=HOSTED), "ChatOpenAI (gpt-x)"),
        (ChatOpenAI(model="https://user:word@host/m", api_key="none"), "ChatOpenAI"),
        (RunnableLambda(lambda given: given), "RunnableLambda"),
    ],
)
def test_a_model_is_named_by_its_class_and_a_name_that_may_be_shown(model, name):
    assert named_model(model) == name


@pytest.mark.parametrize(
    ("error", "client"),
    [
        (ClientError(status=400), True),
        (ClientError(status=399), False),
        (unreached(), True),
        (httpx.ConnectError("no", request=httpx.Request("GET", "http://127.0.0.1:1")), True),
        (httpx.ConnectError("no"), True),
        (ModelServerError("down", begun=True), False),
        (KeyError("x"), False),
    ],
)
def test_a_client_is_known_by_its_status_or_its_request(error, client):
    assert is_of_client(error) is client


def test_an_error_gets_its_origin_once_however_often_it_is_raised():
    error = ClientError("no", status=404)
    error.add_note("somebody else's note")
    add_origin(error, "the large model", HOSTED, "step 3")
    add_origin(error, "the scorer", ScriptedChatModel(script=[]), "step 4")
    assert error.__notes__ == [
        "somebody else's note",
        "trim-graph: the large model, ChatOpenAI (gpt-x), failed in step 3",
        "trim-graph: check the model's name, 'gpt-x', and the address of its server",
    ]


# What the server said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ClientError("long", 404, {"error": {"message": "no such\n model."}}), "404, no such model"),
        (ClientError("long", 404, {"message": "no such model"}), "404, no such model"),
        (ClientError("long", 404, {"error": "no such model"}), "404, no such model"),
        (ClientError("long", 404, {"error": {"message": None}}), "404, long"),
        (ClientError("Error code: 404 - x", 404), "Error code: 404 - x"),
        (ClientError("4040 models", 404), "404, 4040 models"),
        (ClientError("", 503), "503, ClientError"),
        (ClientError("Connection error."), "ClientError: Connection error"),
        (httpx.ReadTimeout(""), "ReadTimeout"),
    ],
)
def test_the_servers_own_message_is_one_line_with_the_status_once(error, said):
    assert server_message(error) == said


def test_one_line_has_origin_message_and_way_out():
    error = ClientError("gone", status=500)
    assert in_one_line(error) == "a model failed: 500, gone; the server failed: ask again later"
    add_origin(error, "the small model", HOSTED, "step 1")
    assert in_one_line(error) == (
        "the small model, ChatOpenAI (gpt-x), failed in step 1: 500, gone; the server failed: ask again later"
    )


def test_a_record_keeps_the_type_and_text_of_any_other_error():
    error = ValueError("wrong")
    error.add_note("trim-graph: the scorer, X, failed in step 1")
    assert error_line(error) == "ValueError: wrong"
    assert error_line(ClientError("gone", status=500)) == in_one_line(ClientError("gone", status=500))
