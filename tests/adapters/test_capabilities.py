"""Tests of which setting a server refuses, by the errors of OpenAI, of gateways and of other servers."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.adapters import ModelServerError
from trim_graph.adapters.capabilities import refused_setting, remedy


class ClientError(Exception):
    """An error in the manner of OpenAI's client."""

    def __init__(self, message, status_code=400, **fields):
        super().__init__(message)
        self.status_code = status_code
        self.__dict__.update(fields)


class HttpError(Exception):
    def __init__(self, message, status):
        super().__init__(message)
        self.response = httpx.Response(status)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ClientError("Unsupported parameter: 'logprobs' is not supported with this model."), "logprobs"),
        (ClientError("You are not allowed to request logprobs from this model.", 403), "logprobs"),
        (ClientError("top_logprobs must be less than or equal to 5"), "top_logprobs"),
        (ClientError("`logprobs` is not supported with this model", 422), "logprobs"),
        (ClientError("no", param="stop", code="unsupported_parameter"), "stop"),
        (
            ClientError("Unsupported value: 'temperature' does not support 0 with this model.", param=None),
            "temperature",
        ),
        (
            ClientError(
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                "'max_completion_tokens' instead.",
                param="max_tokens",
            ),
            "max_tokens",
        ),
        (HttpError('Unknown name "stop": Cannot find field.', 400), "stop"),
        (ModelServerError("400: unexpected field 'stop'", 400), "stop"),
        (TypeError("generate() got an unexpected keyword argument 'timeout'"), "timeout"),
    ],
)
def test_the_setting_is_named_and_what_to_do(error, name):
    assert refused_setting(error) == name
    assert remedy(error).startswith(f"the model refuses the setting {name}: ")


@pytest.mark.parametrize(
    "error",
    [
        ClientError("'max_tokens' is too large: 10000. This model's maximum context length is 8192 tokens."),
        ClientError("Please do not stop: unknown reason."),
        ClientError("Unsupported parameter: 'logprobs'", 429),
        ClientError("Unsupported parameter: 'logprobs'", 503),
        ClientError("Unsupported parameter: 'user' is not supported."),
        ConnectionError("unexpected 'stop'"),
        TypeError("unsupported operand type(s) for +: 'int' and 'str'"),
    ],
)
def test_another_reason_is_not_taken_for_it(error):
    assert refused_setting(error) is None
    assert remedy(error) is None


@given(st.text(), st.integers(0, 999), st.none() | st.text() | st.integers())
def test_whatever_an_error_says_is_read(text, status, name):
    remedy(ClientError(text, status, param=name, code=name))
