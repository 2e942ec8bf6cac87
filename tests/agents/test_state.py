"""What a routed agent keeps in its state: over turns, questions, checkpoints and processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from agent_rig import QUESTION, RIGHT, WRONG, build, turns
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, MessagesState, StateGraph

from trim_graph import Budget, SettingsError
from trim_graph.policies import random_rate, stay_on_large, threshold

THREAD = {"configurable": {"thread_id": "1"}}


def kept(agent, config=THREAD):
    values = agent.get_state(config).values
    return {name.removeprefix("trim_"): value for name, value in values.items() if name.startswith("trim")}


def test_the_trace_stands_in_the_state_as_plain_json():
    rig = build(agent={"checkpointer": InMemorySaver()}, budget=Budget(large_tokens=100))
    result = rig.ask(config=THREAD)
    assert set(result) == {"messages", "trim"}
    state = kept(rig.agent)
    assert json.loads(json.dumps(state)) == state
    assert [step["text"] for step in state["steps"]] == [
        RIGHT,
        '[tool_result] multiply "144"\nsmall answer',
    ]
    assert [decision["decision"] for decision in state["decisions"]] == ["regenerate", "accept"]
    assert state["decisions"][0]["discarded"]["text"] == WRONG
    assert state["scores"] == {"0": 1.0, "1": 1.0}
    assert (state["request"], state["in_flight"], state["stopped"]) == (None, None, "finished")
    assert state["trim"] == result["trim"]


def test_a_caller_cannot_set_what_is_the_middlewares():
    rig = build(policy=random_rate(1.0), budget=Budget(large_calls=1), budget_per="thread")
    given = {"messages": [("user", QUESTION)], "trim_handed_over": True, "trim": {"stopped": "x"}}
    result = rig.agent.invoke(given)
    assert result["trim"]["usage"]["large"]["calls"] == 1


def test_a_second_question_begins_anew():
    rig = build(agent={"checkpointer": InMemorySaver()})
    rig.ask(config=THREAD)
    result = rig.ask("And 12 * 12 again?", config=THREAD)
    assert result["trim"]["steps"] == {"small": 1, "large": 1}
    state = kept(rig.agent)
    assert (len(state["steps"]), len(state["decisions"])) == (2, 2)
    assert state["run"]["question"] == "And 12 * 12 again?"
    assert rig.scorer.calls[2] == [WRONG]
    assert len(turns(result)) == 4


def test_an_agent_goes_on_from_sqlite_between_two_turns(tmp_path):
    path = str(tmp_path / "agent.db")
    options = {
        "policy": stay_on_large(threshold(0.5), k=1),
        "budget": Budget(large_calls=2),
        "budget_per": "thread",
    }
    with SqliteSaver.from_conn_string(path) as saver:
        rig = build(agent={"checkpointer": saver, "interrupt_before": ["tools"]}, **options)
        rig.ask(config=THREAD)
        assert (rig.ran, len(rig.small.calls), len(rig.large.calls)) == ([], 1, 1)
    with SqliteSaver.from_conn_string(path) as saver:
        rig = build(agent={"checkpointer": saver}, **options)
        result = rig.agent.invoke(None, THREAD)
        # The policy's memory and the budget are those of the first turn.
        assert rig.ran == [("multiply", 12, 12)]
        assert (rig.small.calls, len(rig.large.calls)) == ([], 1)
        assert turns(result)[-1].text == "LARGE answer"
        assert result["trim"]["steps"] == {"small": 0, "large": 2}
        assert result["trim"]["usage"]["large"]["calls"] == 2
        result = rig.ask("Once more: 12 * 12?", config=THREAD)
        assert result["trim"]["steps"] == {"small": 2, "large": 0}
        assert "the limit on large_calls is spent" in result["trim"]["notes"][0]


async def test_an_agent_goes_on_from_sqlite_asynchronously(tmp_path):
    path = str(tmp_path / "agent.db")
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        rig = build(agent={"checkpointer": saver, "interrupt_before": ["tools"]})
        await rig.agent.ainvoke({"messages": [("user", QUESTION)]}, THREAD)
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        rig = build(agent={"checkpointer": saver})
        result = await rig.agent.ainvoke(None, THREAD)
    assert rig.ran == [("multiply", 12, 12)]
    assert result["trim"]["steps"] == {"small": 1, "large": 1}


KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from agent_rig import LARGE, build
from langgraph.checkpoint.sqlite import SqliteSaver
from trim_graph import Budget
from trim_graph.testing import ScriptedToolModel

class Dying(ScriptedToolModel):
    def _generate(self, *given, **options):
        os._exit(9)

with SqliteSaver.from_conn_string({path!r}) as saver:
    limits = dict(budget=Budget(large_tokens=100), max_step_tokens=30)
    rig = build(large=Dying(script=LARGE), agent=dict(checkpointer=saver), **limits)
    rig.ask(config={thread!r}, durability="sync")
"""


def test_a_killed_agent_goes_on_in_another_process(tmp_path):
    path = str(tmp_path / "agent.db")
    code = KILLED.format(tests=str(Path(__file__).parent.parent), path=path, thread=THREAD)
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == 9, killed.stderr
    with SqliteSaver.from_conn_string(path) as saver:
        rig = build(agent={"checkpointer": saver}, budget=Budget(large_tokens=100), max_step_tokens=30)
        result = rig.agent.invoke(None, THREAD)
    assert rig.ran == [("multiply", 12, 12)]
    assert result["trim"]["steps"] == {"small": 1, "large": 1}
    assert result["trim"]["tokens"]["large_unaccounted"] == 30
    assert "cut off by a crash; 30 tokens were charged" in result["trim"]["notes"][0]


def test_settings_of_a_call_hold_when_it_goes_on_without_a_context():
    rig = build(
        agent={"checkpointer": InMemorySaver(), "interrupt_before": ["tools"], "context_schema": dict}
    )
    rig.ask(config=THREAD, context={"trim": {"policy": "large_only"}})
    result = rig.agent.invoke(None, THREAD)
    assert result["trim"]["steps"] == {"small": 0, "large": 2}


def test_a_thread_begun_without_the_middleware_goes_on_with_it():
    saver, rig = InMemorySaver(), build(scores={})
    tools = rig.agent.nodes["tools"].bound.tools_by_name.values()
    bare = create_agent(rig.small, list(tools), checkpointer=saver, interrupt_before=["tools"])
    bare.invoke({"messages": [("user", QUESTION)]}, THREAD)
    rig = build(scores={}, agent={"checkpointer": saver})
    assert rig.agent.invoke(None, THREAD)["trim"]["steps"] == {"small": 1, "large": 0}
    assert rig.ran == [("multiply", 12, 21)]


def test_a_turn_begun_without_the_middleware_is_not_gone_on_with():
    saver, rig = InMemorySaver(), build()
    bare = create_agent(rig.small, checkpointer=saver, interrupt_before=["model"])
    bare.invoke({"messages": [("user", QUESTION)]}, THREAD)
    rig = build(agent={"checkpointer": saver})
    with pytest.raises(SettingsError, match="without TrimMiddleware"):
        rig.agent.invoke(None, THREAD)
    assert rig.unasked
    assert rig.ask(config=THREAD)["trim"]["steps"] == {"small": 1, "large": 1}


@pytest.mark.parametrize("asynchronously", [False, True])
async def test_an_agent_is_a_subgraph_like_any_other(asynchronously):
    rig = build()
    builder = StateGraph(MessagesState)
    builder.add_node("agent", rig.agent)
    builder.add_edge(START, "agent")
    parent = builder.compile(checkpointer=InMemorySaver())
    given = {"messages": [HumanMessage(QUESTION)]}
    result = await parent.ainvoke(given, THREAD) if asynchronously else parent.invoke(given, THREAD)
    assert result["messages"][-1].text == "small answer"
    assert rig.ran == [("multiply", 12, 12)]
