"""A run under an application's recursion limit: refused at entry, or a finished answer, never a crash."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from trim_graph import TrimContext, create_trim_graph
from trim_graph.errors import InputError, SettingsError
from trim_graph.policies import (
    FunctionPolicy,
    Policy,
    entropy_probe,
    large_only,
    small_only,
    stay_on_large,
    threshold,
)
from trim_graph.routing.router import RECURSION_FLOOR
from trim_graph.testing import ScriptedChatModel

LIMITS = range(1, 61)


class Fickle(Policy):
    def next_writer(self, observation):
        if observation.probe_entropy is None and observation.random().random() < 0.5:
            return "probe"
        return observation.random().choice(["small", "small", "large", "large_to_end"])

    def decide(self, observation):
        return observation.random().choice(["accept", "regenerate", "handover"])


def embedded(graph):
    """The graph as a node of an application's, which counts its own supersteps."""
    parent = StateGraph(MessagesState)
    parent.add_node("solve", graph)
    parent.add_edge(START, "solve")
    return parent.compile()


def check(rig, graph, limit: int, *, asynchronously: bool = False) -> None:
    given, config = {"messages": [("user", "2 + 2?")]}, {"recursion_limit": limit}

    def ask():
        return asyncio.run(graph.ainvoke(given, config)) if asynchronously else graph.invoke(given, config)

    if limit < RECURSION_FLOOR:
        with pytest.raises(SettingsError, match=f"recursion_limit={limit} .* at least {RECURSION_FLOOR}"):
            ask()
        assert rig.unasked
    else:
        answer = ask()["messages"][-1]
        summary = answer.response_metadata["trim"]
        assert summary["stopped"] in ("finished", "max_steps", "recursion_limit", "no_step")
        assert sum(summary["steps"].values()) >= 1 or summary["stopped"] != "recursion_limit"
        assert bool(answer.content) == bool(sum(summary["steps"].values()))


@pytest.mark.parametrize("wrap", [lambda graph: graph, embedded], ids=["alone", "embedded"])
@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_every_limit_is_refused_or_kept_when_every_step_is_regenerated(make, wrap, asynchronously):
    numbers = [f"step {n}" for n in range(40)]
    rig = make(numbers, numbers, policy=lambda o: "regenerate")
    graph = wrap(rig.graph)
    for limit in LIMITS if not asynchronously else (8, 9, 10, 11, 12, 13, 14, 26, 60):
        check(rig, graph, limit, asynchronously=asynchronously)


@pytest.mark.parametrize("entropy", [0.1, 9.0])
@pytest.mark.parametrize(
    "policy",
    [entropy_probe(1.0), entropy_probe(1.0) | threshold(0.5), entropy_probe(1.0) | (lambda o: "regenerate")],
    ids=repr,
)
def test_every_limit_is_refused_or_kept_when_every_step_is_probed(make, policy, entropy):
    numbers = [f"step {n}" for n in range(40)]
    small = ScriptedChatModel(script=numbers, entropies=lambda prefix: entropy)
    rig = make(small, numbers, scores={}, policy=policy)
    for limit in LIMITS:
        check(rig, rig.graph, limit)


POLICIES = [
    Fickle(),
    small_only(),
    large_only(),
    stay_on_large(Fickle(), 2),
    Fickle() & large_only(),
    entropy_probe(1.0),
    entropy_probe(1.0) | Fickle(),
    entropy_probe(1.0) & Fickle(),
    stay_on_large(Fickle() | entropy_probe(0.0), 1),
]
texts = st.lists(st.sampled_from(["a", "b c", "---", "", " ", "d e f g h"]), min_size=1, max_size=25)


@settings(max_examples=100, deadline=None)
@given(
    limit=st.integers(1, 60),
    small=texts,
    large=texts,
    policy=st.sampled_from(POLICIES),
    entropies=st.lists(st.sampled_from([0.0, 0.5, 1.5]), max_size=25),
    max_step_tokens=st.integers(1, 9),
    seed=st.integers(0, 99),
    inside=st.booleans(),
)
def test_every_limit_is_refused_or_kept_whatever_is_said_and_decided(
    make, limit, small, large, policy, entropies, max_step_tokens, seed, inside
):
    small = ScriptedChatModel(script=small, entropies=entropies)
    rig = make(small, large, policy=policy, max_step_tokens=max_step_tokens, seed=seed)
    given, config = {"messages": [("user", "2 + 2?")]}, {"recursion_limit": limit}
    graph = embedded(rig.graph) if inside else rig.graph
    if limit < RECURSION_FLOOR:
        with pytest.raises(SettingsError, match="recursion_limit"):
            graph.invoke(given, config)
        assert rig.unasked
    else:
        summary = graph.invoke(given, config)["messages"][-1].response_metadata["trim"]
        assert summary["stopped"] in ("finished", "max_steps", "recursion_limit", "no_step")


def test_a_higher_limit_never_gives_fewer_steps(make):
    numbers = [f"step {n}" for n in range(40)]
    rig = make(numbers, numbers, scores={"step 1": 0.1})
    counts = [
        sum(rig.ask(config={"recursion_limit": limit})["trim"]["steps"].values())
        for limit in range(RECURSION_FLOOR, 61, 2)
    ]
    assert counts == sorted(counts)
    assert counts[-1] >= 16


def test_the_second_question_on_a_thread_gets_the_whole_limit_again(make):
    rig = make(checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}, "recursion_limit": 25}
    first = rig.ask(config=config)["trim"]
    second = rig.ask(config=config)["trim"]
    assert first["stopped"] == second["stopped"] == "finished"


@pytest.mark.parametrize("probing", [False, True], ids=["plain", "probing"])
@pytest.mark.parametrize("node", ["generate_step", "score_step", "route", "finalize"])
def test_a_run_stopped_before_every_node_goes_on_under_the_lowest_limit(make, node, probing):
    numbers = [f"step {n}" for n in range(5)]
    small = ScriptedChatModel(script=numbers, entropies=[])
    always = FunctionPolicy(lambda o: "regenerate")
    policy = entropy_probe(1.0) | always if probing else always
    rig = make(small, numbers, policy=policy, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}, "recursion_limit": RECURSION_FLOOR}
    result = rig.ask(config=config, interrupt_before=[node])
    for _ in range(60):
        if result.get("trim"):
            break
        result = rig.graph.invoke(None, config, interrupt_before=[node])
    assert result["trim"]["stopped"] in ("finished", "recursion_limit")


def given_step(text, **changed):
    """A step of another run."""
    step = {"text": text, "writer": "small", "model": "m", "tokens": 7, "mean_token_probability": None}
    return {**step, "end": "delimiter", **changed}


@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_run_begins_with_the_steps_of_its_context_and_pays_for_its_own_only(asynchronously):
    small = ScriptedChatModel(script=["one.", "two.", "three."])
    graph = create_trim_graph(small, small, policy=small_only(), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}

    def ask(context=None):
        question = {"messages": [("user", "?")]}
        if asynchronously:
            return asyncio.run(graph.ainvoke(question, config, context=context))
        return graph.invoke(question, config, context=context)

    answer = ask(TrimContext(steps=[given_step("other.", separator="\n\n\n")]))
    assert answer["messages"][-1].text == "other.\n\n\ntwo.\n\nthree."
    assert small.calls[0]["messages"][-1].text == "other.\n\n\n"
    assert answer["trim"]["steps"] == {"small": 3, "large": 0}
    tokens = answer["trim"]["tokens"]
    assert (tokens["small"], tokens["small_discarded"]) == (
        answer["trim"]["usage"]["small"]["output_tokens"],
        0,
    )
    # The next question of the thread begins with none.
    assert ask()["messages"][-1].text == "one.\n\ntwo.\n\nthree."


def test_given_steps_are_streamed_as_the_beginning_of_the_message():
    small = ScriptedChatModel(script=["one.", "two."])
    graph = create_trim_graph(small, small, policy=small_only())
    context = TrimContext(steps=[given_step("one.")])
    streamed = graph.stream({"messages": [("user", "?")]}, context=context, stream_mode="messages")
    assert "".join(chunk.text for chunk, _ in streamed) == "one.\n\ntwo."


def test_given_steps_count_towards_the_limit():
    small = ScriptedChatModel(script=["one.", "two.", "three."])
    graph = create_trim_graph(small, small, policy=small_only(), max_steps=2)
    answer = graph.invoke({"messages": [("user", "?")]}, context=TrimContext(steps=[given_step("one.")]))
    assert (answer["messages"][-1].text, answer["trim"]["stopped"]) == ("one.\n\ntwo.", "max_steps")


def test_given_steps_that_end_the_solution_are_refused():
    small = ScriptedChatModel(script=["one."])
    graph = create_trim_graph(small, small, policy=small_only())
    with pytest.raises(InputError, match="step 0 has end eos, so nothing follows it"):
        graph.invoke({"messages": [("user", "?")]}, context=TrimContext(steps=[given_step("a", end="eos")]))
    assert not small.calls
