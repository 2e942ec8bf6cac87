"""Bodies of requests: what is taken, what is refused and by which error; anything else is refused too."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from trim_graph.server.errors import ApiError
from trim_graph.server.protocol import ChatCompletionRequest, read_request

ASKED = {"model": "trim", "messages": [{"role": "user", "content": "2 + 2?"}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def read(**more):
    return read_request(json.dumps({**ASKED, **more}).encode())


def refusal(data):
    with pytest.raises(ApiError) as raised:
        read_request(data if isinstance(data, bytes) else json.dumps(data).encode())
    assert raised.value.status == 400
    return raised.value


def test_a_plain_request_is_read():
    request = read(max_tokens=7, stop="END", temperature=0, seed=3, stream=True)
    assert (request.limit, request.stop, request.seed, request.stream) == (7, ["END"], 3, True)
    assert request.sampling == {"temperature": 0.0}
    assert request.conversation() == [HumanMessage("2 + 2?")]
    assert read(max_completion_tokens=9, top_p=0.5).sampling == {"top_p": 0.5}


def test_a_conversation_with_parts_names_and_an_answer_sent_back_is_read():
    answer = {"role": "assistant", "content": "4", "refusal": None, "tool_calls": None, "annotations": []}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}, image], "name": "ada"},
        answer,
        {"role": "user", "content": "Sure?"},
    ]
    system, first, second, _ = read(messages=messages).conversation()
    assert isinstance(system, SystemMessage)
    assert first.name == "ada"
    assert first.content[0]["text"] == "2 + 2?"
    assert first.content[1]["image_url"]["url"] == image["image_url"]["url"]
    assert second.content == AIMessage("4").content


@pytest.mark.parametrize(
    "neutral",
    [
        {"n": 1},
        {"n": None},
        {"tools": []},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"logprobs": False},
        {"logit_bias": {}},
        {"frequency_penalty": 0.0, "presence_penalty": 0},
        {"modalities": ["text"]},
        {"store": False, "user": "u", "metadata": {"a": "b"}, "service_tier": "auto"},
        {"parallel_tool_calls": True},
        {"stream": True, "stream_options": {"include_usage": True}},
    ],
)
def test_settings_that_ask_for_nothing_are_taken(neutral):
    assert read(**neutral)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("n", True),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("logit_bias", {"5": 100}),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -0.5),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("prediction", {"type": "content"}),
        ("reasoning_effort", "low"),
        ("verbosity", "low"),
        ("web_search_options", {}),
        ("store", True),
    ],
)
def test_settings_that_cannot_be_kept_are_refused_by_name(name, value):
    error = refusal({**ASKED, name: value})
    assert (error.param, error.kind) == (name, "invalid_request_error")
    assert error.code in ("unsupported_value", "unsupported_parameter")
    assert error.message.startswith(f"{name}: it is not supported")


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"", None, "invalid_json"),
        (b"[" * 100_000, None, "invalid_json"),
        (b"\xff", None, "invalid_json"),
        ([], None, "invalid_json"),
        ({"model": "trim"}, "messages", "missing_required_parameter"),
        ({"messages": ASKED["messages"]}, "model", "missing_required_parameter"),
        ({**ASKED, "messages": []}, "messages", "invalid_value"),
        ({**ASKED, "messages": "hi"}, "messages", "invalid_type"),
        ({**ASKED, "messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_type"),
        ({**ASKED, "messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({**ASKED, "messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({**ASKED, "messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "invalid_value"),
        (
            {**ASKED, "messages": [{"role": "function", "content": "x"}]},
            "messages[0].role",
            "unsupported_value",
        ),
        (
            {**ASKED, "messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
            "messages[0].tool_calls[0].id",
            "missing_required_parameter",
        ),
        (
            {**ASKED, "messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]},
            None,
            "invalid_value",
        ),
        ({**ASKED, "tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        (
            {**ASKED, "tools": [{"type": "function", "function": {"name": "f", "strict": True}}]},
            "tools[0].function.strict",
            "unsupported_value",
        ),
        ({**ASKED, "tools": [TOOL, TOOL]}, None, "invalid_value"),
        ({**ASKED, "tool_choice": "required"}, None, "invalid_value"),
        (
            {**ASKED, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            None,
            "invalid_value",
        ),
        (
            {**ASKED, "messages": [{"role": "user", "content": "x", "mood": 1}]},
            "messages[0].mood",
            "unknown_parameter",
        ),
        ({**ASKED, "top_k": 5}, "top_k", "unknown_parameter"),
        ({**ASKED, "temperature": 3}, "temperature", "invalid_value"),
        ({**ASKED, "temperature": "hot"}, "temperature", "invalid_value"),
        ({**ASKED, "max_tokens": 0}, "max_tokens", "invalid_value"),
        ({**ASKED, "max_tokens": 5, "max_completion_tokens": 5}, None, "invalid_value"),
        ({**ASKED, "stop": ["a", ""]}, "stop[1]", "invalid_value"),
        ({**ASKED, "stream_options": {"include_usage": True}}, None, "invalid_value"),
        ({**ASKED, "trim": {"threshold": 2}}, "trim.threshold", "invalid_value"),
        ({**ASKED, "trim": {"threshold": 0.2, "model": "large"}}, "trim", "invalid_value"),
        ({**ASKED, "trim": {"user": "bob"}}, "trim.user", "unknown_parameter"),
        (
            {**ASKED, "trim": {"policy": {"type": "file", "path": "/etc/passwd"}}},
            "trim.policy",
            "unknown_parameter",
        ),
        ({**ASKED, "trim": {"budget": {"large_tokens": -1}}}, "trim.budget.large_tokens", "invalid_value"),
    ],
)
def test_a_mistake_is_named_by_its_place(body, param, code):
    error = refusal(body)
    assert (error.param, error.code) == (param, code)
    assert set(error.body["error"]) == {"message", "type", "param", "code"}


def test_a_mistake_is_not_repeated():
    secret = "sk-very-secret-key"
    assert secret not in refusal({**ASKED, "temperature": secret}).message
    assert secret not in refusal({**ASKED, "messages": [{"role": secret, "content": "x"}]}).message


def test_the_field_trim_may_be_short():
    assert read(trim=0.6).trim.as_point() == "0.6"
    assert read(trim="quality=0.02").trim.as_point() == "quality=0.02"
    assert read(trim={"threshold": 0.6}).trim.as_point() == "0.6"
    assert read(trim={"quality": 0.02}).trim.as_point() == "quality=0.02"
    assert read(trim={"model": "large"}).trim.as_point() == "large"
    assert read(trim={"budget": {"large_tokens": 5}}).trim.as_point() is None


CALL = {"id": "call-1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def test_tools_their_calls_and_their_results_are_read():
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "call-1", "content": "4"}
    request = read(
        messages=[*ASKED["messages"], called, result], tools=[TOOL], parallel_tool_calls=False, stop="x"
    )
    assert (request.is_turn, request.offered_tools, request.langchain_tool_choice) == (True, [TOOL], None)
    assert request.turn_settings == {"stop": ["x"], "parallel_tool_calls": False}
    _, turn, answer = request.conversation()
    assert (turn.content, turn.tool_calls[0]["args"]) == ("", {"x": 1})
    assert (answer.tool_call_id, answer.name, answer.content) == ("call-1", "f", "4")
    broken = {**CALL, "function": {"name": "f", "arguments": '{"x": '}}
    sent_back = {**called, "tool_calls": [broken], "content": "I call"}
    _, turn, _ = read(messages=[*ASKED["messages"], sent_back, result]).conversation()
    assert (turn.text, turn.invalid_tool_calls[0]["args"]) == ("I call", '{"x": ')


def test_the_choice_of_a_tool_is_kept():
    named = {"type": "function", "function": {"name": "f"}}
    assert read(tools=[TOOL], tool_choice=named).langchain_tool_choice == "f"
    assert read(tools=[TOOL], tool_choice="required").langchain_tool_choice == "any"
    nothing = read(tools=[TOOL], tool_choice="none", parallel_tool_calls=False)
    assert (nothing.is_turn, nothing.offered_tools, nothing.turn_settings) == (False, [], {})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
FIELD = st.sampled_from([*ChatCompletionRequest.model_fields, "n", "tools", "response_format", "user", "x"])


@given(st.dictionaries(FIELD, JSON, max_size=6))
def test_any_other_body_is_read_or_refused(fields):
    try:
        result = read_request(json.dumps({**ASKED, **fields}).encode()).conversation()
    except ApiError as error:
        result = error.status == 400 and json.dumps(error.body)
    assert result


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    with pytest.raises(ApiError):
        read_request(data)
