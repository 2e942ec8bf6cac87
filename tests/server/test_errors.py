"""Tests of errors in the shape of OpenAI's API: of requests that are not valid, and of runs that failed."""

from __future__ import annotations

import json
from typing import Literal

import httpx
import pytest
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, field_validator

from trim_graph.errors import (
    CallTimeoutError,
    ChatModelContractError,
    ContextLengthError,
    InputError,
    ModelServerError,
    ScorerError,
    StorageError,
)
from trim_graph.server.errors import ApiError, of_run, of_validation

SECRET = "http://user:hunter2@10.0.0.7:8000"


class Part(BaseModel):
    text: str
    role: Literal["user", "system"] = "user"


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid")

    parts: str | list[Part]
    limit: int | None = None

    @field_validator("limit")
    @classmethod
    def _small(cls, value):
        if value is not None and value > 9:
            raise ValueError("choose 9 or less")
        return value


def refused(body):
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(Request).validate_json(body if isinstance(body, str) else json.dumps(body))
    return of_validation(raised.value.errors())


# Requests that are not valid


@pytest.mark.parametrize(
    ("body", "param", "code", "said"),
    [
        ({}, "parts", "missing_required_parameter", "parts: Field required"),
        ({"parts": "a", "limit": "x"}, "limit", "invalid_value", "limit: Input should be a valid integer"),
        ({"parts": "a", "limit": []}, "limit", "invalid_type", "limit: Input should be a valid integer"),
        ({"parts": "a", "limit": 10}, "limit", "invalid_value", "limit: choose 9 or less"),
        (
            {"parts": "a", "surprise": SECRET},
            "surprise",
            "unknown_parameter",
            "surprise: this server does not know it, and ignores nothing that could change an answer",
        ),
    ],
)
def test_the_first_finding_is_named_with_its_place_and_openais_code(body, param, code, said):
    error = refused(body)
    assert (error.status, error.param, error.code, error.kind) == (400, param, code, "invalid_request_error")
    assert error.message.startswith(said)
    assert SECRET not in json.dumps(error.body)


def test_a_body_that_is_not_json_is_called_so():
    error = refused('{"parts": ')
    assert (error.status, error.code, error.param) == (400, "invalid_json", None)
    assert error.message.startswith("the body of the request is not JSON: ")


@pytest.mark.parametrize(
    ("place", "param"),
    [
        (("messages", 0, "content"), "messages[0].content"),
        (("messages", 2, "content", "list[union]", 1, "text"), "messages[2].content[1].text"),
        ((3, "a"), "[3].a"),
        ((), None),
    ],
)
def test_a_place_is_written_as_a_path_without_pydantics_names_of_types(place, param):
    finding = {"type": "string_type", "loc": place, "msg": "Input should be a valid string", "input": SECRET}
    error = of_validation([finding])
    assert error.param == param
    message = "Input should be a valid string"
    assert error.message == (f"{param}: {message}" if param else message)


def test_a_code_for_what_this_server_does_not_support_stays():
    finding = {"type": "unsupported_value", "loc": ("n",), "msg": "choose 1", "input": 2}
    assert of_validation([finding]).code == "unsupported_value"


# Runs that failed


def of_provider(status):
    response = httpx.Response(status, request=httpx.Request("POST", f"{SECRET}/v1"))
    return httpx.HTTPStatusError(f"{status} of {SECRET}", request=response.request, response=response)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InputError("the question is empty"), 400, "invalid_value"),
        (ContextLengthError(f"{SECRET}: too long"), 400, "context_length_exceeded"),
        (TimeoutError(SECRET), 504, "timeout"),
        (CallTimeoutError(SECRET, ()), 504, "timeout"),
        (StorageError(SECRET), 503, "ledger_unavailable"),
        (of_provider(429), 503, "model_overloaded"),
        (of_provider(500), 502, "model_failed"),
        (of_provider(401), 502, "model_failed"),
        (ModelServerError(SECRET, begun=True), 502, "model_failed"),
        (ChatModelContractError(SECRET), 502, "model_failed"),
        (ScorerError(SECRET), 502, "model_failed"),
        (RuntimeError(SECRET), 500, "internal_error"),
    ],
)
def test_a_failure_of_a_run_has_a_status_of_its_own_and_names_no_address(error, status, code):
    found = of_run(error, "req-1")
    assert (found.status, found.code) == (status, code)
    assert (found.kind == "server_error") == (status >= 500)
    assert "hunter2" not in json.dumps(found.body)
    assert ("request req-1" in found.message) == (status >= 500)
    assert (found.retry_after is not None) == (status == 503)


def test_a_wrong_question_is_explained_to_whoever_asked_it():
    assert of_run(InputError("the question is empty"), "r").message == "the question is empty"


# Answers


@pytest.mark.parametrize(
    ("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (60.0, "60")]
)
def test_whole_seconds_are_named_after_which_a_client_may_ask_again(seconds, header):
    assert ApiError(429, "later", retry_after=seconds).headers == {"retry-after": header}


def test_a_missing_key_is_asked_for_as_a_bearer_token():
    assert ApiError(401, "give a key").headers == {"www-authenticate": "Bearer"}
    assert ApiError(403, "no").headers == {}


def test_the_answer_has_openais_shape():
    answer = ApiError(400, "wrong", code="invalid_value", param="n").response()
    assert answer.status_code == 400
    assert json.loads(answer.body) == {
        "error": {"message": "wrong", "type": "invalid_request_error", "param": "n", "code": "invalid_value"}
    }
