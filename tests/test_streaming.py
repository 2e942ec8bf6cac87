"""What the stream modes show: step events, and accepted text exactly once."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessageChunk
from langgraph.graph import START, MessagesState, StateGraph

from trim_graph.policies import Policy, large_only

GIVEN = {"messages": [("user", "2 + 2?")]}


def embedded(graph):
    parent = StateGraph(MessagesState)
    parent.add_node("solve", graph)
    parent.add_edge(START, "solve")
    return parent.compile()


async def acollect(stream):
    return [item async for item in stream]


def test_custom_events_report_the_whole_run_in_order(rig):
    events = list(rig.graph.stream(GIVEN, stream_mode="custom"))
    assert {event["type"] for event in events} == {"trim"}
    step = ["draft", "decision", "accepted"]
    assert [event["event"] for event in events] == [
        "started",
        *step,
        *["draft", "decision", "accepted"],
        *step,
        *step,
        "finished",
    ]
    decision = events[5]
    assert (decision["step"], decision["decision"], decision["score"]) == (1, "regenerate", 0.1)
    assert decision["discarded"]["text"] == "small two"
    accepted = events[6]
    assert {key: accepted[key] for key in ("step", "writer", "text", "score", "tokens")} == {
        "step": 1,
        "writer": "large",
        "text": "LARGE two",
        "score": None,
        "tokens": 3,
    }
    assert events[-1]["summary"]["stopped"] == "finished"
    assert json.loads(json.dumps(events)) == events


def test_the_events_of_a_handover_are_one_per_step(make):
    events = list(make(policy=large_only()).graph.stream(GIVEN, stream_mode="custom"))
    assert [event["event"] for event in events] == ["started", *["accepted"] * 4, "finished"]
    assert [event["step"] for event in events[1:-1]] == [0, 1, 2, 3]


async def test_sync_and_async_report_the_same(make):
    def reported(events):
        return [
            {key: value for key, value in event.items() if key not in ("run", "summary")} for event in events
        ]

    given_async = await acollect(make().graph.astream(GIVEN, stream_mode="custom"))
    assert reported(given_async) == reported(make().graph.stream(GIVEN, stream_mode="custom"))


def test_a_parent_gets_the_events_too(rig):
    events = [event for _, event in embedded(rig.graph).stream(GIVEN, stream_mode="custom", subgraphs=True)]
    assert [event["event"] for event in events][::13] == ["started", "finished"]


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_accepted_steps_arrive_once_as_chunks_of_the_final_message(rig, mode):
    modes = ["messages", "values"]
    if mode == "sync":
        stream = list(rig.graph.stream(GIVEN, stream_mode=modes))
    else:
        stream = await acollect(rig.graph.astream(GIVEN, stream_mode=modes))
    chunks = [item[0] for kind, item in stream if kind == "messages"]
    final = [item for kind, item in stream if kind == "values"][-1]["messages"][-1]
    assert [chunk.content for chunk in chunks] == [
        "small one",
        "\n\nLARGE two",
        "\n\nsmall three",
        "\n\nso it is \\boxed{4}",
    ]
    assert {chunk.id for chunk in chunks} == {final.id}
    assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
    assert "".join(chunk.content for chunk in chunks) == final.content


class Fickle(Policy):
    def next_writer(self, observation):
        return observation.random().choice(["small", "small", "large", "large_to_end"])

    def decide(self, observation):
        return observation.random().choice(["accept", "accept", "regenerate", "handover"])


texts = st.lists(st.sampled_from(["a", "b c", "---", "", "d e f\ng"]), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(small=texts, large=texts, seed=st.integers(0, 999), tokens=st.integers(1, 9), steps=st.integers(1, 9))
def test_the_chunks_always_make_the_final_message(make, small, large, seed, tokens, steps):
    rig = make(small, large, policy=Fickle(), seed=seed, max_step_tokens=tokens, max_steps=steps)
    stream = list(rig.graph.stream(GIVEN, stream_mode=["messages", "values"]))
    final = [item for kind, item in stream if kind == "values"][-1]["messages"][-1]
    chunks = [item[0] for kind, item in stream if kind == "messages" and item[0].id == final.id]
    assert "".join(chunk.content for chunk in chunks) == final.content


def test_a_parent_that_streams_messages_sees_the_answer_once(rig):
    graph = embedded(rig.graph)
    deep = [item[0].content for _, item in graph.stream(GIVEN, stream_mode="messages", subgraphs=True)]
    assert "".join(deep) == "small one\n\nLARGE two\n\nsmall three\n\nso it is \\boxed{4}"
    flat = [item[0].content for item in graph.stream(GIVEN, stream_mode="messages")]
    assert "".join(flat) == "".join(deep)


async def test_every_inner_call_is_tagged(rig):
    calls = [
        event
        for event in await acollect(rig.graph.astream_events(GIVEN, version="v2"))
        if event["event"] == "on_chat_model_start"
    ]
    assert len(calls) == 5
    assert all("nostream" in call["tags"] for call in calls)
    kinds = [
        (call["name"], sorted(t for t in call["tags"] if t in ("trim:draft", "trim:accepted")))
        for call in calls
    ]
    assert kinds == [
        ("tiny", ["trim:draft"]),
        ("tiny", ["trim:draft"]),
        ("huge", ["trim:accepted"]),
        ("tiny", ["trim:draft"]),
        ("tiny", ["trim:draft"]),
    ]


def test_a_run_that_ends_at_its_beginning_streams_its_message_whole(make):
    limits = {"large_tokens": 0, "on_exhausted": "stop"}
    graph = make(policy=large_only(), budget=limits).graph
    ((message, _),) = graph.stream(GIVEN, stream_mode="messages")
    assert (message.content, message.response_metadata["trim"]["stopped"]) == ("", "budget")
