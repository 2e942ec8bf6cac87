"""Requests with tools: one routed turn of an agent, whose tools the client executes."""

import json

import openai
import pytest
from fastapi.testclient import TestClient
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from tests.server.conftest import KEY, QUESTION, Served, config_of
from trim_graph.config import Parts
from trim_graph.server import create_app
from trim_graph.testing import ScriptedScorer, ScriptedToolModel

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            },
        },
    }
]


def call(a, b, text="", name="add"):
    return AIMessage(text, tool_calls=[{"name": name, "args": {"a": a, "b": b}, "id": f"call-{a}-{b}"}])


SMALL = [call(2, 3), "It is 4."]
LARGE = [call(2, 2, "I add."), "It is four."]


def turn_parts(small=SMALL, large=LARGE):
    """The small model's first turn scores 0.1."""
    models = [
        ScriptedToolModel(script=turns, name=name) for turns, name in ((small, "tiny"), (large, "huge"))
    ]
    return Parts(*models, ScriptedScorer({'[tool_call] add {"a": 2, "b": 3}': 0.1}))


@pytest.fixture(scope="module")
def agent_server():
    parts = turn_parts()
    with Served(create_app(config_of(), parts=parts), parts) as running:
        yield running


@pytest.fixture
def client(agent_server):
    for model in agent_server.parts[:2]:
        model.calls.clear()
    with openai.OpenAI(base_url=agent_server.url, api_key="any", max_retries=0) as client:
        yield client


def test_openai_gets_the_tool_calls_of_an_accepted_turn_and_then_the_answer(client, agent_server):
    asked = {"model": "trim", "tools": TOOLS, "tool_choice": "auto"}
    first = client.chat.completions.create(messages=QUESTION, **asked)
    (choice,) = first.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I add.")
    (made,) = choice.message.tool_calls
    assert (made.function.name, json.loads(made.function.arguments)) == ("add", {"a": 2, "b": 2})
    assert (first.trim["steps"], first.trim["decisions"]) == ({"small": 0, "large": 1}, {"regenerate": 1})
    assert first.trim["each_step"][0]["draft_score"] == 0.1
    assert first.usage.completion_tokens == sum(
        first.trim["usage"][writer]["output_tokens"] for writer in ("small", "large")
    )
    result = {"role": "tool", "tool_call_id": made.id, "content": "4"}
    second = client.chat.completions.create(
        messages=[*QUESTION, choice.message.model_dump(exclude_none=True), result], **asked
    )
    assert (second.choices[0].finish_reason, second.choices[0].message.content) == ("stop", "It is 4.")
    assert second.choices[0].message.tool_calls is None
    assert (second.trim["steps"], second.trim["stopped"]) == ({"small": 1, "large": 0}, "finished")
    # The scorer saw the turn before and the result of its tool.
    before, draft = agent_server.parts.scorer.calls[-1]
    assert before == 'I add.\n[tool_call] add {"a": 2, "b": 2}'
    assert draft == '[tool_result] add "4"\nIt is 4.'
    assert agent_server.parts.small.calls[0]["tools"] == ["add"]


def test_openai_gets_a_turn_as_a_stream(client):
    asked = {"model": "trim", "messages": QUESTION, "tools": TOOLS}
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options=options))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "I add."
    ((made,),) = [delta.tool_calls for delta in deltas if delta.tool_calls]
    assert (made.index, made.id, made.function.name) == (0, "call-2-2", "add")
    assert chunks[-2].choices[0].finish_reason == "tool_calls"
    assert chunks[-1].usage == client.chat.completions.create(**asked).usage
    with client.chat.completions.stream(**asked) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls[0].function.name == "add"


@pytest.mark.parametrize(("model", "args"), [("small", (2, 3)), ("large", (2, 2)), ("trim:0.05", (2, 3))])
def test_the_models_name_carries_the_operating_point_of_a_turn(client, model, args):
    answer = client.chat.completions.create(model=model, messages=QUESTION, tools=TOOLS)
    made = answer.choices[0].message.tool_calls[0].function.arguments
    assert json.loads(made) == dict(zip("ab", args, strict=True))


async def test_langchain_binds_tools_and_runs_its_loop(agent_server):
    @tool
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    model = ChatOpenAI(
        model="trim", base_url=agent_server.url, api_key="any", stream_usage=True, max_retries=0
    )
    bound = model.bind_tools([add])
    messages = [HumanMessage("What is 2 + 2?")]
    first = bound.invoke(messages)
    assert first.tool_calls[0]["args"] == {"a": 2, "b": 2}
    result = ToolMessage(str(add.invoke(first.tool_calls[0]["args"])), tool_call_id=first.tool_calls[0]["id"])
    messages += [first, result]
    assert bound.invoke(messages).text == "It is 4."
    assert (await bound.ainvoke(messages)).text == "It is 4."
    whole = None
    async for chunk in bound.astream("What is 2 + 2?"):
        whole = chunk if whole is None else whole + chunk
    assert (whole.text, whole.tool_calls[0]["args"]) == ("I add.", {"a": 2, "b": 2})
    assert whole.usage_metadata["output_tokens"] == first.usage_metadata["output_tokens"]


def test_choice_and_limit_reach_the_models(client, agent_server):
    named = {"type": "function", "function": {"name": "add"}}
    client.chat.completions.create(
        model="small", messages=QUESTION, tools=TOOLS, tool_choice=named, max_tokens=50, temperature=0.5
    )
    (seen,) = agent_server.parts.small.calls
    assert (seen["tool_choice"], seen["max_tokens"]) == ("add", 50)
    answered = [
        *QUESTION,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "x", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "x", "content": "4"},
    ]
    client.chat.completions.create(model="small", messages=answered, tools=TOOLS, tool_choice="none")
    assert agent_server.parts.small.calls[-1]["tools"] == []


def test_half_a_call_is_not_given_away(client):
    answer = client.chat.completions.create(model="large", messages=QUESTION, tools=TOOLS, max_tokens=4)
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == (
        "length",
        "I add.",
        None,
    )


def test_a_schema_and_a_strict_tool_are_refused(client):
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}
    strict = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "strict": True}}]
    for more, param in (
        ({"response_format": schema, "tools": TOOLS}, "response_format"),
        ({"tools": strict}, "tools[0].function.strict"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="trim", messages=QUESTION, **more)
        assert (refused.value.param, refused.value.code) == (param, "unsupported_value")


def test_quotas_hold_for_turns(serve, tmp_path):
    more = {"budget": {"on_exhausted": "stop"}, "quotas": {"user": {"large_calls": 1}}}
    server = serve(turn_parts(), {"ada": KEY}, ledger=f"sqlite:{tmp_path}/spend.db", **more)
    assert server.ask(KEY, tools=TOOLS, model="large").status_code == 200
    refused = server.ask(KEY, tools=TOOLS, model="large")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")


def test_a_turn_that_fails_gets_openais_error(serve):
    def fail(messages):
        raise RuntimeError("http://10.0.0.1 is gone")

    server = serve(turn_parts(fail, fail))
    for stream in (False, True):
        refused = server.ask(tools=TOOLS, stream=stream)
        assert refused.status_code in (500, 502)
        assert "10.0.0.1" not in refused.text


def test_the_configured_limit_of_an_answer_is_that_of_a_turn_too():
    models = [
        ScriptedToolModel(script=lambda messages: "one two three four", name=name) for name in ("a", "b")
    ]
    app = create_app(config_of(settings={"max_tokens": 2}), parts=Parts(*models, ScriptedScorer()))
    body = {"model": "trim", "messages": [{"role": "user", "content": "1 + 1?"}], "tools": TOOLS}
    with TestClient(app) as client:
        for more, words in (({}, 2), ({"max_tokens": 3}, 2), ({"max_tokens": 1}, 1)):
            (choice,) = client.post("/v1/chat/completions", json={**body, **more}).json()["choices"]
            assert (len(choice["message"]["content"].split()), choice["finish_reason"]) == (words, "length")


def test_sampling_stop_and_parallel_calls_reach_both_models():
    given = []

    class Noting(ScriptedToolModel):
        def _generate(self, messages, stop=None, run_manager=None, **settings):
            given.append((self.name, stop, settings.get("temperature"), settings.get("parallel_tool_calls")))
            return super()._generate(messages, stop, run_manager, **settings)

    models = [Noting(script=turns, name=name) for turns, name in ((SMALL, "tiny"), (LARGE, "huge"))]
    app = create_app(config_of(), parts=Parts(*models, turn_parts().scorer))
    more = {"stop": "x", "temperature": 0.5, "parallel_tool_calls": False}
    with TestClient(app) as client:
        body = {"model": "trim", "messages": QUESTION, "tools": TOOLS, **more}
        assert client.post("/v1/chat/completions", json=body).is_success
    assert given == [("tiny", ["x"], 0.5, False), ("huge", ["x"], 0.5, False)]


def test_a_turn_is_no_answer_for_the_shadow(tmp_path):
    shadow = {"answers": "large", "record": str(tmp_path / "s.jsonl")}
    with TestClient(create_app(config_of(shadow=shadow), parts=turn_parts())) as client:
        body = {"model": "trim", "messages": QUESTION, "tools": TOOLS}
        assert client.post("/v1/chat/completions", json=body).is_success
        counts = client.get("/health").json()["shadow"]
    assert (counts["seen"], counts["unsuitable"]) == (1, 1)
