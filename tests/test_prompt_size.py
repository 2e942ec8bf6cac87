"""The size of a prompt, which the limit on cost hangs on: counted, bounded, or refused by name."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel, Field

from trim_graph import Budget, InputError, ModelPrice, Prices, TrimContext
from trim_graph.agents import TrimMiddleware
from trim_graph.budget.ledger import MemoryLedger
from trim_graph.policies import large_only, random_rate, small_only
from trim_graph.prompt_size import UnboundedPrompt, prompt_bound, turn_prompt_bound
from trim_graph.testing import ScriptedChatModel, ScriptedToolModel

TEXT = {"type": "text", "text": "What is in it?"}
PNG = "data:image/png;base64,AAAA"
MEDIA = {
    "image, LangChain": {"type": "image", "base64": "AAAA", "mime_type": "image/png"},
    "image, LangChain 0.3": {"type": "image", "source_type": "url", "url": "https://example.org/a.png"},
    "image, OpenAI chat": {"type": "image_url", "image_url": {"url": PNG}},
    "image, OpenAI responses": {"type": "input_image", "image_url": PNG},
    "image, Anthropic": {"type": "image", "source": {"type": "base64", "data": "AAAA"}},
    "image, Bedrock": {"image": {"format": "png", "source": {"bytes": "AAAA"}}},
    "audio, LangChain": {"type": "audio", "base64": "AAAA"},
    "audio, OpenAI": {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    "video, LangChain": {"type": "video", "url": "https://example.org/a.mp4"},
    "video, vLLM": {"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}},
    "file, LangChain": {"type": "file", "file_id": "file-1"},
    "file, OpenAI responses": {"type": "input_file", "file_id": "file-1"},
    "document, Anthropic": {
        "type": "document",
        "source": {"type": "url", "url": "https://example.org/a.pdf"},
    },
    "document, Bedrock": {"document": {"format": "pdf", "source": {"bytes": "AAAA"}}},
    "media, Google": {"type": "media", "mime_type": "audio/mp3", "data": "AAAA"},
    "text elsewhere": {"type": "text-plain", "url": "https://example.org/a.txt"},
    "in a result": {"type": "tool_result", "content": [{"type": "image", "source": {"data": "AAAA"}}]},
    "unheard of": {"type": "hologram", "data": "AAAA"},
    "without a type": {"smell": "AAAA"},
}
any_media = pytest.mark.parametrize("block", MEDIA.values(), ids=MEDIA.keys())


def asked(*blocks):
    return [HumanMessage([TEXT, *blocks])]


@any_media
def test_what_has_no_bound_is_named_with_the_bound_of_the_rest(block):
    with pytest.raises(UnboundedPrompt) as caught:
        prompt_bound(None, asked(block))
    assert caught.value.what == ("image" if "content" in block else block.get("type", next(iter(block))))
    assert caught.value.least >= len(TEXT["text"])
    with pytest.raises(UnboundedPrompt) as with_tools:
        turn_prompt_bound(asked(block), [{"name": "f"}])
    assert with_tools.value.least > caught.value.least


@any_media
@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_a_limit_on_cost_is_refused_by_name_before_any_model_is_called(make, block, asynchronously):
    rig = make(policy=small_only(), budget={"large_cost": 1.0}, prices={"large": {"input": 1, "output": 1}})
    given = {"messages": asked(block)}
    with pytest.raises(InputError, match=r"^budget\.large_cost limits .* of type .*limit large_tokens"):
        asyncio.run(rig.graph.ainvoke(given)) if asynchronously else rig.graph.invoke(given)
    assert rig.unasked


def test_so_is_that_of_an_account(make):
    quotas = {"user": {"large_cost": 1.0}}
    rig = make(prices={"large": {"input": 1}}, ledger=MemoryLedger(), quotas=quotas)
    with pytest.raises(InputError, match=r"^large_cost of user:ada limits"):
        rig.graph.invoke({"messages": asked(MEDIA["audio, OpenAI"])}, context=TrimContext(user="ada"))
    assert rig.unasked


@pytest.mark.parametrize(
    "settings",
    [
        {"budget": {"large_tokens": 40}, "prices": {"large": {"input": 1}}},
        {"budget": {"large_cost": 1.0}, "prices": {"large": {"output": 1}}},
        {},
    ],
    ids=["no limit on cost", "free prompts", "no prices"],
)
def test_other_limits_hold_for_any_prompt(make, settings):
    rig = make(policy=large_only(), **settings)
    result = rig.graph.invoke({"messages": asked(MEDIA["image, OpenAI chat"])})
    assert result["trim"]["steps"]["large"] == 4
    reported = "a content block of type image_url, whose tokens are not known before a call"
    priced = bool(settings.get("prices", {}).get("large", {}).get("input"))
    assert any(reported in note for note in result["trim"]["notes"]) == priced


def test_a_model_that_counts_its_prompts_is_believed(make):
    class Sees(ScriptedChatModel):
        def count_prompt_tokens(self, messages):
            return 1100

    def costs(limit):
        options = {"policy": large_only(), "budget": {"large_cost": limit}}
        rig = make(large=Sees(script=["L L L"]), prices={"large": {"input": 1, "output": 1}}, **options)
        return rig.graph.invoke({"messages": asked(MEDIA["image, LangChain"])})["trim"]["usage"]["large"]

    assert costs(0.0005)["calls"] == 0
    assert costs(0.0016)["calls"] == 1


# What has a bound


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        (HumanMessage("x" * 50), 50),
        (HumanMessage("ä" * 50), 100),
        (HumanMessage(["x" * 50, {"type": "text", "text": "y" * 30}]), 80),
        (HumanMessage("x", name="n" * 40), 41),
        (AIMessage([{"type": "reasoning", "reasoning": "r" * 60}, TEXT]), 74),
        (AIMessage([{"type": "thinking", "thinking": "r" * 60, "signature": "s" * 99}]), 159),
        (AIMessage([{"type": "redacted_thinking", "data": "r" * 60}]), 60),
        (AIMessage("x", additional_kwargs={"reasoning_content": "r" * 70}), 71),
        (AIMessage("x", additional_kwargs={"reasoning": {"summary": [{"type": "summary_text"}]}}), 40),
        (AIMessage("x", additional_kwargs={"function_call": {"name": "f", "arguments": "a" * 90}}), 91),
        (AIMessage("", tool_calls=[{"name": "f", "args": {"type": "image", "q": "q" * 80}, "id": "1"}]), 90),
        (AIMessage([{"type": "tool_use", "id": "1", "name": "f", "input": {"q": "q" * 80}}]), 80),
        (
            AIMessage("", invalid_tool_calls=[{"name": "f", "args": "{" * 80, "id": "1", "error": None}]),
            80,
        ),
        (ToolMessage("r" * 50, tool_call_id="c" * 20), 70),
        (ToolMessage([{"type": "json", "json": {"a": "r" * 50}}], tool_call_id="1"), 50),
        (ChatMessage("x" * 20, role="r" * 30), 50),
        (
            SystemMessage([{"type": "text", "text": "s" * 40, "cache_control": {"type": "ephemeral"}}]),
            40,
        ),
        (HumanMessage([{"type": "text-plain", "text": "t" * 70}]), 70),
        (HumanMessage([{"text": "t" * 70}, {"cachePoint": {}}]), 70),
    ],
)
def test_all_of_a_message_that_is_sent_counts(message, sent):
    assert sent + 8 < prompt_bound(None, [message]) < sent + 400


@given(st.lists(st.text(max_size=40), max_size=5), st.text(max_size=20))
def test_a_bound_covers_the_bytes_of_the_text_however_it_is_given(texts, name):
    sent = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) + len(name.encode())
    plain = [HumanMessage(text) for text in texts]
    blocks = [HumanMessage([{"type": "text", "text": text} for text in texts], name=name)]
    assert prompt_bound(None, [*plain, HumanMessage("", name=name)]) >= sent
    assert prompt_bound(None, blocks) >= sent


def test_schemas_that_a_model_is_bound_to_count(make):
    schema = {"type": "function", "function": {"name": "f", "description": "d" * 500}}
    bare, bound = ScriptedToolModel(script=[]), ScriptedToolModel(script=[]).bind(tools=[schema])
    assert prompt_bound(bound, [HumanMessage("?")]) > prompt_bound(bare, [HumanMessage("?")]) + 500
    formatted = ScriptedToolModel(script=[]).bind(response_format=schema)
    assert prompt_bound(formatted, [HumanMessage("?")]) > 500


# Agents


class Answer(BaseModel):
    """What an agent ends with."""

    value: int = Field(description="d" * 700)


@pytest.mark.parametrize("strategy", [Answer, ToolStrategy(Answer), ProviderStrategy(Answer)])
def test_an_agents_response_format_counts(strategy):
    prices, schema = Prices(large=ModelPrice(input=1e6)), len(json.dumps(Answer.model_json_schema()))
    script = [AIMessage("", tool_calls=[{"name": "Answer", "args": {"value": 1}, "id": "1"}])]
    large = ScriptedToolModel(script=script)
    routing = TrimMiddleware(
        large, policy=large_only(), prices=prices, budget=Budget(large_cost=float(schema))
    )
    small = ScriptedToolModel(script=[AIMessage('{"value": 1}')] if "Provider" in repr(strategy) else script)
    agent = create_agent(small, [], middleware=[routing], response_format=strategy)
    assert agent.invoke({"messages": [("user", "?")]})["trim"]["steps"] == {"small": 1, "large": 0}
    assert large.calls == []


@tool
def look() -> list[dict[str, str]]:
    """Takes a picture."""
    return [{"type": "image", "base64": "AAAA", "mime_type": "image/png"}]


def seeing(**options):
    looks = AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "1"}])
    large = ScriptedToolModel(script=[looks, "a cat"])
    prices = Prices(large=ModelPrice(input=1, output=1))
    routing = TrimMiddleware(large, policy=random_rate(1.0), prices=prices, **options)
    agent = create_agent(
        ScriptedToolModel(script=[looks, "a dog"]), [look], middleware=[routing], checkpointer=InMemorySaver()
    )
    thread = {"configurable": {"thread_id": "1"}}
    return large, agent.invoke({"messages": [("user", "What is there?")]}, thread)["trim"]


@pytest.mark.parametrize("on_exhausted", ["small", "stop"])
def test_a_tools_picture_leaves_the_turns_behind_it_to_the_small_model(on_exhausted):
    large, summary = seeing(budget=Budget(large_cost=1.0, on_exhausted=on_exhausted))
    assert summary["steps"] == {"small": 1, "large": 1}
    assert (len(large.calls), summary["stopped"]) == (1, "finished")
    assert (
        "budget.large_cost cannot be kept for this prompt: the large model is not called for it"
        in (summary["notes"])
    )


def test_without_a_limit_on_cost_it_does_not_matter():
    _, summary = seeing(budget=Budget(large_tokens=100))
    assert summary["steps"] == {"small": 0, "large": 2}


def test_an_agent_that_is_given_a_picture_is_refused_at_once():
    large = ScriptedToolModel(script=["a cat"])
    routing = TrimMiddleware(
        large,
        policy=random_rate(1.0),
        prices=Prices(large=ModelPrice(input=1)),
        budget=Budget(large_cost=1.0),
    )
    small = ScriptedToolModel(script=["a dog"])
    agent = create_agent(small, [], middleware=[routing])
    with pytest.raises(InputError, match="content block of type input_image"):
        agent.invoke({"messages": asked(MEDIA["image, OpenAI responses"])})
    assert [*small.calls, *large.calls] == []
