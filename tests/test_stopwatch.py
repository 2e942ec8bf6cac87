"""The seconds of a run: all that passes while it is at work, nothing that passes while somebody else is."""

import asyncio
import time

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

PAUSE = 0.1
"""Far more than a run of scripted models takes."""


def dawdling(observation):
    time.sleep(PAUSE)
    return "accept"


@pytest.mark.parametrize("asynchronously", [False, True])
def test_what_passes_between_two_calls_is_on_the_bill(make, asynchronously):
    result = make(scores={}, policy=dawdling).solve(asynchronously=asynchronously)
    assert result["trim"]["steps"]["small"] == 4
    assert result["trim"]["seconds"] >= 3 * PAUSE  # nothing is billed behind the last call


@pytest.mark.parametrize("asynchronously", [False, True])
def test_the_deadline_holds_where_the_calls_take_no_time(make, asynchronously):
    rig = make(script_of(50), scores={}, policy=dawdling, max_steps=50, budget={"seconds": 3.5 * PAUSE})
    summary = rig.solve(asynchronously=asynchronously)["trim"]
    assert summary["stopped"] == "deadline"
    assert summary["steps"]["small"] <= 5


def script_of(steps):
    return [f"small {number}" for number in range(steps - 1)] + ["\\boxed{4}"]


async def test_runs_that_wait_for_each_other_all_pay_for_it(make):
    rig = make(scores={}, policy=dawdling)
    results = await asyncio.gather(*(rig.aask() for _ in range(3)))
    assert all(result["trim"]["seconds"] >= 6 * PAUSE for result in results)


def test_whoever_reads_the_stream_may_take_time(make):
    rig, given, parts = make(scores={}), {"messages": [("user", "What is 2 + 2?")]}, []
    for part in rig.graph.stream(given, stream_mode="values"):
        time.sleep(PAUSE)
        parts.append(part)
    assert parts[-1]["trim"]["seconds"] < PAUSE


async def test_whoever_reads_an_asynchronous_stream_may_take_time(make):
    rig, given, parts = make(scores={}), {"messages": [("user", "What is 2 + 2?")]}, []
    async for part in rig.graph.astream(given, stream_mode="values"):
        await asyncio.sleep(PAUSE)
        parts.append(part)
    assert parts[-1]["trim"]["seconds"] < PAUSE


def test_a_human_may_take_time(make):
    thread = {"configurable": {"thread_id": "1"}}
    rig = make(
        scores={"small two": 0.1}, policy=lambda seen: "accept", ask_below=0.5, checkpointer=InMemorySaver()
    )
    assert "__interrupt__" in rig.ask(config=thread)
    time.sleep(3 * PAUSE)
    done = rig.graph.invoke(Command(resume={"decision": "accept"}), thread)
    assert done["trim"]["seconds"] < 2 * PAUSE


def test_a_breakpoint_takes_no_time(make):
    thread = {"configurable": {"thread_id": "1"}}
    rig = make(scores={}, checkpointer=InMemorySaver())
    rig.ask(config=thread, interrupt_before=["score_step"])
    time.sleep(3 * PAUSE)
    assert rig.graph.invoke(None, thread)["trim"]["seconds"] < 2 * PAUSE
