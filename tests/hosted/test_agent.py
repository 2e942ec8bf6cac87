"""A routed agent over plain `ChatOpenAI` and a server that speaks OpenAI's protocol, tool calls included."""

import json

import pytest
import yaml
from langchain.agents import create_agent
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.messages import AIMessage, convert_to_messages

from trim_graph import Budget
from trim_graph.adapters import LLMJudge, TokenProbability
from trim_graph.agents import TrimMiddleware
from trim_graph.examples.agent import QUESTION, calculator, create_shop, query_tool, scripted
from trim_graph.examples.agent.__main__ import main
from trim_graph.examples.hosted.scripted_server import Answer
from trim_graph.policies import threshold

from .conftest import openai


def shop(body):
    """What the models of the example's script would answer."""
    messages = convert_to_messages(body["messages"])
    if body["model"] == "judge":
        return scripted.rating(messages)
    turn = {"small": scripted.small_turn, "large": scripted.large_turn}[body["model"]](messages)
    calls = [
        {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["args"])},
        }
        for call in turn.tool_calls
    ]
    return Answer(turn.text, "tool_calls" if calls else "stop", tool_calls=calls)


@pytest.fixture
def tools(tmp_path):
    return [calculator, query_tool(create_shop(tmp_path / "shop.db"))]


@pytest.mark.parametrize("asynchronously", [False, True])
async def test_turns_are_routed_between_hosted_models(serve, tools, asynchronously):
    server = serve(shop)
    small, large = openai(server, "small", max_tokens=300), openai(server, "large")
    routing = TrimMiddleware(
        large,
        LLMJudge(openai(server, "judge")),
        policy=threshold(7 / 9),
        budget=Budget(large_tokens=500, seconds=600),
    )
    agent = create_agent(small, tools, middleware=[routing])
    given = {"messages": [("user", QUESTION)]}
    with get_usage_metadata_callback() as usage:
        result = await agent.ainvoke(given) if asynchronously else agent.invoke(given)
    assert result["messages"][-1].text == "With tax they came to 71.76."
    assert result["trim"]["steps"] == {"small": 2, "large": 1}
    first = next(message for message in result["messages"] if isinstance(message, AIMessage))
    assert first.tool_calls[0]["id"] == "large-query"
    asked = {name: [b for b in server.requests if b["model"] == name] for name in ("small", "large")}
    assert {len(body["tools"]) for bodies in asked.values() for body in bodies} == {2}
    assert asked["small"][0]["messages"] == asked["large"][0]["messages"]
    # A model's own limit stays where it is the lower one.
    assert {body["max_completion_tokens"] for body in asked["small"]} == {300}
    assert [body["max_completion_tokens"] for body in asked["large"]] == [500]
    spend = result["trim"]["usage"]
    for writer in ("small", "large"):
        assert usage.usage_metadata[writer]["output_tokens"] == spend[writer]["output_tokens"]


async def test_usage_is_reported_too_where_messages_are_streamed(serve, tools):
    server = serve(shop)
    routing = TrimMiddleware(
        openai(server, "large"), LLMJudge(openai(server, "judge")), policy=threshold(7 / 9)
    )
    agent = create_agent(openai(server, "small"), tools, middleware=[routing])
    given = {"messages": [("user", QUESTION)]}
    reported = [message async for message, _ in agent.astream(given, stream_mode="messages")]
    assert [message.type for message in reported] == ["ai", "tool", "ai", "tool", "ai"]
    assert reported[-1].text == "With tax they came to 71.76."


def test_token_probabilities_of_hosted_models_are_scores(serve, tools):
    def unsure(body):
        answer = shop(body)
        logprob = -3.0 if body["model"] == "small" and answer.tool_calls else -0.01
        answer.logprobs = {"content": [{"token": "x", "logprob": logprob, "top_logprobs": []}]}
        return answer

    server = serve(unsure)
    small, large = (openai(server, name, logprobs=True) for name in ("small", "large"))
    routing = TrimMiddleware(large, TokenProbability(), policy=threshold(0.5))
    result = create_agent(small, tools, middleware=[routing]).invoke({"messages": [("user", QUESTION)]})
    assert result["trim"]["steps"] == {"small": 1, "large": 2}
    assert result["trim"]["scores"][0] == pytest.approx(0.990, abs=1e-3)


def test_the_example_runs_on_configured_models(serve, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    server = serve(shop)

    def model(name):
        kwargs = {"base_url": server.url, "temperature": 0, "max_retries": 0}
        return {"type": "langchain", "model": f"openai:{name}", "kwargs": kwargs}

    config = {
        "small": model("small"),
        "large": model("large"),
        "scorer": {"type": "llm_judge", "model": model("judge")},
        "policy": {"type": "threshold", "t": 0.77},
        "budget": {"large_tokens": 800},
        "settings": {"max_step_tokens": 700},
    }
    (tmp_path / "agent.yaml").write_text(yaml.safe_dump(config))
    main(["--config", str(tmp_path / "agent.yaml")])
    printed = capsys.readouterr().out
    assert " 1 large 0.11 regenerate [tool_call] query" in printed
    assert "With tax they came to 71.76." in printed
    limits = [b.get("max_completion_tokens") for b in server.requests if b["model"] != "judge"]
    assert limits == [700, 700, 700, 700]
