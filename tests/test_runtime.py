"""A node runs its functions as they are: on the event loop, with LangGraph's config and context."""

from __future__ import annotations

import threading

from langgraph.config import get_config, get_stream_writer
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from trim_graph.runtime import Branch, Node, tagged


class State(TypedDict):
    seen: list[str]


def run(state, config):
    assert get_config()["metadata"]["langgraph_node"] == config["metadata"]["langgraph_node"] == "look"
    get_stream_writer()(threading.current_thread().name)
    return {"seen": [*state["seen"], "look"]}


async def arun(state, config):
    return run(state, config)


def build():
    way = Branch(lambda state: "end" if state["seen"][1:] else "again", name="more")
    builder = StateGraph(State).add_node("look", Node(run, arun, name="look")).add_edge(START, "look")
    return builder.add_conditional_edges("look", way, {"again": "look", "end": "__end__"}).compile()


def test_a_synchronous_run_loops_until_its_branch_ends():
    assert build().invoke({"seen": []}) == {"seen": ["look", "look"]}


async def test_asynchronously_on_the_event_loops_thread():
    own = threading.current_thread().name
    assert [said async for said in build().astream({"seen": []}, stream_mode="custom")] == [own, own]


async def test_a_node_is_traced_once():
    events = [event async for event in build().astream_events({"seen": []}, version="v2")]
    started = [event["name"] for event in events if event["event"] == "on_chain_start"]
    assert started == ["LangGraph", "look", "look"]


async def test_tags_join_those_of_the_call():
    config = {"tags": ["a"], "metadata": {"x": 1}}
    assert tagged(config, "b", "c") == {"tags": ["a", "b", "c"], "metadata": {"x": 1}}
    assert config == {"tags": ["a"], "metadata": {"x": 1}}
    assert tagged({}, "b") == {"tags": ["b"]}
