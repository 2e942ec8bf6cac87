"""Tests of how a shadow sees answers: watched chat models and chains, and a node in a graph."""

import asyncio
from typing import Annotated

import pytest
from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from typing_extensions import TypedDict

from tests.shadow.conftest import LARGE, SMALL, build, only
from trim_graph import Quota, SettingsError, create_trim_chat_model, create_trim_graph
from trim_graph.policies import (
    large_only,
)
from trim_graph.shadow import read_shadow
from trim_graph.testing import ScriptedChatModel, ScriptedToolModel


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch"])
def test_a_watched_chat_model_answers_as_before_and_is_recorded(file, way):
    shadow, own, _ = build(file, text=True)
    model = shadow.watch(own)
    plain = own.invoke("What is 2 + 2?").text

    async def astreamed():
        return "".join([chunk.text async for chunk in model.astream("What is 2 + 2?")])

    with shadow:
        answer = {
            "invoke": lambda: model.invoke("What is 2 + 2?").text,
            "ainvoke": lambda: asyncio.run(model.ainvoke("What is 2 + 2?")).text,
            "stream": lambda: "".join(chunk.text for chunk in model.stream("What is 2 + 2?")),
            "astream": lambda: asyncio.run(astreamed()),
            "batch": lambda: model.batch(["What is 2 + 2?"])[0].text,
        }[way]()
        shadow.drain(10)
    assert answer == plain
    assert type(model) is type(own)
    assert own.callbacks is None
    record = only(file)
    assert record["error"] is None
    assert record["answered"]["answer"]["text"] == plain
    assert record["question"]["text"] == "What is 2 + 2?"
    assert record["answered"]["output_tokens"] == len(plain.split(" ")) + 1
    assert record["answered"]["seconds"] > 0


def test_a_model_watched_twice_has_each_answer_counted_once(file):
    shadow, own, _ = build(file)
    with shadow:
        twice = shadow.watch(shadow.watch(own))
        twice.invoke("What is 2 + 2?")
        shadow.watch(RunnableLambda(lambda question: question) | twice).invoke("What is 2 + 3?")
        asyncio.run(twice.ainvoke("What is 2 + 4?"))
        assert shadow.drain(10)
    assert (shadow.counts.seen, len(list(read_shadow(file)))) == (3, 3)


def test_a_chain_has_its_chat_model_watched(file):
    shadow, own, _ = build(file)
    with shadow:
        shadow.watch(own | (lambda answer: answer.text)).invoke("What is 2 + 2?")
    assert only(file)["error"] is None


def test_a_router_as_chat_model_may_be_the_application(file):
    router = create_trim_chat_model(
        ScriptedChatModel(script=SMALL), ScriptedChatModel(script=LARGE), policy=large_only()
    )
    shadow, _, _ = build(file)
    with shadow:
        shadow.watch(router).invoke("What is 2 + 2?")
    assert only(file)["answered"]["steps"] == 4


def test_answers_with_tools_or_without_text_are_counted_as_unsuitable(file):
    @tool
    def search(what: str) -> str:
        """Search."""
        return what

    shadow, _, _ = build(file)
    own = shadow.watch(ScriptedToolModel(script=["a", "b"]))
    with shadow:
        own.bind_tools([search]).invoke("What is 2 + 2?")
        shadow.watch(ScriptedToolModel(script=[""])).invoke("What is 2 + 2?")
    assert (shadow.counts.seen, shadow.counts.unsuitable) == (2, 2)


def test_a_call_that_fails_is_forgotten(file):
    class Broken(ScriptedChatModel):
        def _generate(self, *args, **kwargs):
            raise RuntimeError("no")

    shadow, _, _ = build(file)
    model = shadow.watch(Broken(script=[]))
    with shadow, pytest.raises(RuntimeError):
        model.invoke("What is 2 + 2?")
    assert shadow.counts.seen == 0
    assert model.callbacks[0]._open == {}


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_node_submits_the_last_answer_and_changes_nothing(file, asynchronously):
    shadow, own, _ = build(file, text=True)
    builder = StateGraph(State)
    builder.add_node("answer", lambda state: {"messages": [own.invoke(state["messages"])]})
    builder.add_node("shadow", shadow.node())
    builder.add_edge(START, "answer")
    builder.add_edge("answer", "shadow")
    graph = builder.compile()
    given = {"messages": [HumanMessage("What is 2 + 2?")]}
    with shadow:
        result = asyncio.run(graph.ainvoke(given)) if asynchronously else graph.invoke(given)
        shadow.drain(10)
    assert len(result["messages"]) == 2
    assert only(file)["question"]["text"] == "What is 2 + 2?"


def test_a_graph_is_watched_by_a_node(file):
    shadow, _, _ = build(file)
    graph = create_trim_graph(
        ScriptedChatModel(script=SMALL), ScriptedChatModel(script=LARGE), policy=large_only()
    )
    with shadow, pytest.raises(SettingsError, match=r"shadow\.node\(\)"):
        shadow.watch(graph)


def test_a_call_of_the_shadow_is_no_call_of_the_application(file):
    """Not even where a watched model is the shadow's own."""
    shadow, own, models = build(file, run_rate=1.0, shadow_budget=Quota(large_tokens=100_000))
    models["large"].callbacks = shadow.watch(own).callbacks
    with shadow:
        models["large"].invoke("What is 2 + 2?")
        shadow.drain(10)
    assert len(models["large"].calls) == 2
    assert shadow.counts.seen == 1
