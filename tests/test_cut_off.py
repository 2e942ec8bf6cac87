"""Large calls that an error or a cancellation cut off: a run that resumes in the same process pays."""

from __future__ import annotations

import asyncio

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel

THREAD = {"configurable": {"thread_id": "1"}}
QUESTION = {"messages": [("user", "?")]}
STEPS = ["one and", "two and", "three and", "\\boxed{4}"]


class Hanging(ScriptedChatModel):
    """Generates, and then never answers; after ``failing`` calls it does."""

    failing: int = 3
    error: str = ""

    def _generate(self, *arguments, **settings):
        result = super()._generate(*arguments, **settings)
        if len(self.calls) <= self.failing and self.error:
            raise RuntimeError(self.error)
        return result

    async def _agenerate(self, *arguments, **settings):
        result = super()._generate(*arguments, **settings)
        if len(self.calls) <= self.failing:
            await asyncio.sleep(60)
        return result


def always(seen):
    return "regenerate"


def billed(model):
    return sum(call["tokens"] for call in model.calls)


def charged(summary):
    return summary["usage"]["large"]["output_tokens"] + summary["usage"]["unaccounted_tokens"]


@pytest.mark.parametrize("limit", [{"large_tokens": 40}, {"large_calls": 2}])
async def test_a_cancelled_call_is_charged_when_the_run_goes_on(make, limit):
    large = Hanging(script=STEPS, failing=5)
    settings = {"budget": limit, "max_step_tokens": 20, "checkpointer": InMemorySaver()}
    rig = make(STEPS, large, policy=always, **settings)
    given = QUESTION
    for _ in range(5):
        task = asyncio.create_task(rig.graph.ainvoke(given, THREAD))
        before = len(large.calls)
        for _ in range(200):
            await asyncio.sleep(0.005)
            if task.done() or len(large.calls) > before:
                break
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        given = None
    result = (await rig.graph.aget_state(THREAD)).values.get("trim")
    result = result or (await rig.graph.ainvoke(None, THREAD))["trim"]
    assert len(large.calls) <= 2
    assert billed(large) <= charged(result)
    assert sum("cut off by an error; 20 tokens" in note for note in result["notes"]) == len(large.calls)
    assert result["usage"]["large"]["calls"] == len(large.calls)


def test_a_call_that_raises_is_charged_when_the_run_goes_on(make):
    large = Hanging(script=STEPS, error="the connection broke")
    settings = {"budget": {"large_tokens": 40}, "max_step_tokens": 20, "checkpointer": InMemorySaver()}
    rig = make(STEPS, large, policy=always, **settings)
    given = QUESTION
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the connection broke"):
            rig.graph.invoke(given, THREAD)
        given = None
    result = rig.graph.invoke(None, THREAD)["trim"]
    assert len(large.calls) == 2
    assert charged(result) == 40
    assert result["stopped"] == "finished"
    assert result["steps"] == {"small": 4, "large": 0}


def test_it_is_charged_once(make):
    large = Hanging(script=STEPS, error="once", failing=1)
    rig = make(STEPS, large, policy=always, max_step_tokens=20, checkpointer=InMemorySaver())
    with pytest.raises(RuntimeError, match="once"):
        rig.graph.invoke(QUESTION, THREAD)
    result = rig.graph.invoke(None, THREAD)["trim"]
    assert result["tokens"]["large_unaccounted"] == 20
    assert [note for note in result["notes"] if "cut off" in note] == [
        "a call of the large model was cut off by an error; 20 tokens were charged for it"
    ]
    second = rig.graph.invoke(QUESTION, THREAD)["trim"]
    assert second["tokens"]["large_unaccounted"] == 0


class Slow(ScriptedChatModel):
    """A client with a time limit of its own, for which it has an error of its own."""

    def _generate(self, *arguments, timeout=None, **settings):
        import time

        if timeout is not None:
            time.sleep(timeout)
            raise ConnectionError("request timed out")
        return super()._generate(*arguments, **settings)


def test_a_client_s_own_error_at_the_deadline_is_the_deadline(make):
    slow = Slow(script=STEPS)
    result = make(slow, slow, policy=threshold(0.5), budget={"seconds": 0.3}).ask()
    assert result["trim"]["stopped"] == "deadline"
    assert any("cut off by the limit on seconds" in note for note in result["trim"]["notes"])
