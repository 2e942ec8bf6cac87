"""Tests of the node `route`: in which thread it decides, how often it counts prompts, and what it streams."""

from __future__ import annotations

import asyncio
import threading

import pytest
from langchain_core.messages import AIMessageChunk

from tests.conftest import LARGE
from trim_graph import TrimContext, open_ledger
from trim_graph.testing import ScriptedChatModel


class Counting(ScriptedChatModel):
    """Counts its prompts itself, and notes in which thread."""

    def count_prompt_tokens(self, messages):
        self.__dict__.setdefault("counted", []).append(threading.current_thread())
        return 7


def watching(decided):
    def policy(observation):
        decided.append(threading.current_thread())
        return "regenerate" if observation.index == 1 else "accept"

    return policy


async def decided_in(make, large=LARGE, context=None, **options):
    """Runs a graph and returns the threads in which its policy decided."""
    decided = []
    rig = make(large=large, policy=watching(decided), **options)
    decided.clear()  # a policy is tried on a sample when the graph is built
    await rig.aask(context=context)
    return decided


async def test_a_decision_that_blocks_on_nothing_is_made_in_the_thread_of_the_event_loop(make):
    for large in (LARGE, Counting(script=LARGE)):  # without a price its prompts are not counted
        decided = await decided_in(make, large)
        assert decided == [threading.main_thread()] * 4


async def test_prompts_that_have_a_price_are_counted_outside_of_the_event_loop(make):
    large = Counting(script=LARGE)
    prices = {"large": {"input": 1.0, "output": 1.0}}
    decided = await decided_in(make, large, prices=prices, budget={"large_cost": 1.0})
    assert decided
    assert large.counted
    assert threading.main_thread() not in {*decided, *large.counted}


async def test_accounts_are_read_outside_of_the_event_loop(make, tmp_path):
    with open_ledger(f"sqlite:{tmp_path}/accounts.db") as ledger:
        options = {"ledger": ledger, "quotas": {"user": {"large_tokens": 1000}}}
        decided = await decided_in(make, context=TrimContext(user="ada"), **options)
    assert len(decided) == 4
    assert threading.main_thread() not in decided


async def test_a_run_under_way_keeps_the_event_loop_free(make):
    """A ledger's database, or a model's own counting, may take its time."""
    waits, released = threading.Event(), threading.Event()

    class Slow(Counting):
        def count_prompt_tokens(self, messages):
            waits.set()
            assert released.wait(10)
            return 7

    rig = make(large=Slow(script=LARGE), prices={"large": {"input": 1.0}}, budget={"large_cost": 1.0})
    run = asyncio.create_task(rig.aask())
    assert await asyncio.to_thread(waits.wait, 10)
    released.set()  # by the event loop, which the run does not hold up
    assert (await run)["trim"]["stopped"] == "finished"


STEP = {
    "text": "given one",
    "writer": "small",
    "model": "tiny",
    "tokens": 2,
    "mean_token_probability": None,
    "end": "delimiter",
}


@pytest.mark.parametrize("asynchronously", [False, True])
def test_steps_that_a_run_begins_with_are_streamed_once_before_its_own(make, asynchronously):
    rig = make(small=lambda prefix: "and two \\boxed{2}", scores={})
    given = {"messages": [("user", "?")]}
    options = {"stream_mode": "messages", "context": TrimContext(steps=[STEP])}

    async def astreamed():
        return [part async for part in rig.graph.astream(given, **options)]

    parts = asyncio.run(astreamed()) if asynchronously else list(rig.graph.stream(given, **options))
    chunks = [
        message.text
        for message, metadata in parts
        if isinstance(message, AIMessageChunk) and metadata["langgraph_node"] == "route" and message.text
    ]
    assert chunks[0] == "given one"
    assert "".join(chunks) == "given one\n\nand two \\boxed{2}"
