"""Tests of large calls whose charge is in no checkpoint: a run pays as it resumes, and its forks do not."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

import pytest
from agent_rig import build as build_agent
from agent_rig import talk
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver

from trim_graph import Budget
from trim_graph.calls import interrupted
from trim_graph.policies import large_only, random_rate, threshold
from trim_graph.testing import ScriptedChatModel, ScriptedToolModel

THREAD = {"configurable": {"thread_id": "1"}}


QUESTION = {"messages": [("user", "?")]}


STEPS = ["one and", "two and more", "three and", "four", "\\boxed{5}"]


class Flaky(InMemorySaver):
    """A database that is away for the writes whose numbers are given, or while ``away`` is set."""

    def __init__(self, outages=()):
        super().__init__()
        # In one place for the copy, too, that LangGraph makes of a saver for its strict reader.
        self.outages, self._now = set(outages), {"written": 0, "away": False}

    @property
    def away(self):
        return self._now["away"]

    @away.setter
    def away(self, value):
        self._now["away"] = value

    def _write(self):
        self._now["written"] += 1
        if self.away or self._now["written"] in self.outages:
            raise OSError("the database is away")

    def put(self, *arguments, **options):
        self._write()
        return super().put(*arguments, **options)

    def put_writes(self, *arguments, **options):
        self._write()
        return super().put_writes(*arguments, **options)


def billed(model):
    return sum(call["tokens"] for call in model.calls)


def charged(summary):
    return summary["usage"]["large"]["output_tokens"] + summary["usage"]["unaccounted_tokens"]


def resume_until_stored(graph, *, asynchronously=False, tries=40, config=lambda: THREAD, **options):
    """Invokes a graph until all of the run is stored, also where the last invocation of it fails."""
    for _ in range(tries):
        state = graph.get_state(THREAD)
        if state.values.get("trim"):
            return state.values
        given = None if state.values else QUESTION
        try:
            if asynchronously:
                asyncio.run(graph.ainvoke(given, config(), **options))
            else:
                graph.invoke(given, config(), **options)
        except OSError:
            continue
    raise AssertionError("the database never came back")


both_ways = pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])


@both_ways
@pytest.mark.parametrize("durability", ["sync", "async"])
@pytest.mark.parametrize("limit", [{"large_tokens": 15}, {"large_calls": 2}, {"large_cost": 15e-6}])
def test_a_call_whose_result_is_lost_again_and_again_stays_within_the_limit(
    make, limit, durability, asynchronously
):
    saver = Flaky()

    class Large(ScriptedChatModel):
        def _generate(self, *arguments, **options):
            saver.away = True  # from the call on, each time
            return super()._generate(*arguments, **options)

    rig = make(
        STEPS,
        Large(script=["w w w w w w"] * 5),
        policy=lambda seen: "regenerate",
        budget=limit,
        prices={"large": {"output": 1}},
        checkpointer=saver,
    )
    given = QUESTION
    for _ in range(30):
        try:
            call = rig.graph.ainvoke if asynchronously else rig.graph.invoke
            result = call(given, THREAD, durability=durability)
            result = asyncio.run(result) if asynchronously else result
            break
        except OSError:
            given, saver.away = None, False
    assert 1 <= len(rig.large.calls) <= 2
    assert charged(result["trim"]) == billed(rig.large) <= 15
    assert result["trim"]["usage"]["large"]["calls"] == len(rig.large.calls)
    lost = (
        "a call of the large model was made, but its result could not be stored; 7 tokens were charged for it"
    )
    assert lost in result["trim"]["notes"]


@settings(max_examples=40, deadline=None)
@given(
    outages=st.sets(st.integers(2, 60), max_size=12),
    durability=st.sampled_from(["sync", "async"]),
    limit=st.integers(8, 60),
    asynchronously=st.booleans(),
    explicit=st.booleans(),
)
def test_a_bill_is_what_was_written_whatever_is_lost(
    make, outages, durability, limit, asynchronously, explicit
):
    # With "async" the first calls may come before the run itself is stored; nobody can resume that one.
    saver = Flaky({write + (8 if durability == "async" else 0) for write in outages})
    rig = make(
        STEPS,
        STEPS,
        scorer=None,
        policy=random_rate(0.7),
        seed=3,
        budget=Budget(large_tokens=limit, min_tokens=2),
        checkpointer=saver,
        max_step_tokens=12,
    )

    def config():
        state = rig.graph.get_state(THREAD)
        return state.config if explicit and state.values else THREAD

    result = resume_until_stored(
        rig.graph, asynchronously=asynchronously, config=config, durability=durability
    )
    assert charged(result["trim"]) == billed(rig.large) <= limit
    assert result["trim"]["usage"]["large"]["calls"] == len(rig.large.calls)


def test_a_run_that_goes_on_by_the_name_of_its_checkpoint_pays_too(make):
    saver = Flaky()

    class Large(ScriptedChatModel):
        def _generate(self, *arguments, **options):
            saver.away = True
            return super()._generate(*arguments, **options)

    limit = {"large_tokens": 24}
    rig = make(STEPS, Large(script=STEPS), policy=lambda seen: "regenerate", budget=limit, checkpointer=saver)
    with pytest.raises(OSError, match="away"):
        rig.graph.invoke(QUESTION, THREAD, durability="sync")
    for _ in range(20):
        saver.away = False
        state = rig.graph.get_state(THREAD)
        if state.values.get("trim"):
            break
        with suppress(OSError):
            rig.graph.invoke(None, state.config, durability="sync")
    assert charged(state.values["trim"]) == billed(rig.large) <= 24
    assert len(rig.large.calls) > 2


# Forks that are meant


def before_large(make, large=STEPS, **options):
    """A rig whose thread waits before a call of the large model, and the checkpoint there."""
    rig = make(STEPS, large, policy=lambda seen: "regenerate", checkpointer=InMemorySaver(), **options)
    rig.graph.invoke(QUESTION, THREAD, interrupt_before=["generate_step"])
    rig.graph.invoke(None, THREAD, interrupt_before=["generate_step"])
    return rig, rig.graph.get_state(THREAD).config


@both_ways
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_a_branch_pays_for_its_own_calls_only(make, durability, asynchronously):
    rig, at = before_large(make)
    spent = []
    for _ in range(3):
        call = rig.graph.ainvoke if asynchronously else rig.graph.invoke
        result = call(None, at, durability=durability)
        result = (asyncio.run(result) if asynchronously else result)["trim"]
        spent.append((charged(result), result["notes"]))
    assert spent == [(billed(rig.large) // 3, [])] * 3


def test_branches_that_resume_at_the_same_time_pay_for_their_own_calls_only(make):
    together = threading.Barrier(4)

    class Large(ScriptedChatModel):
        def _generate(self, *arguments, **options):
            answer = super()._generate(*arguments, **options)
            together.wait(20)
            return answer

    rig, at = before_large(make, Large(script=STEPS))
    results = []

    def branch():
        results.append(rig.graph.invoke(None, at)["trim"])

    threads = [threading.Thread(target=branch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [(charged(one), one["notes"]) for one in results] == [(billed(rig.large) // 4, [])] * 4


def test_a_slow_branch_does_not_pay_for_a_fast_one(make):
    fast_is_done, slow_is_in = threading.Event(), threading.Event()

    class Small(ScriptedChatModel):
        def _generate(self, *arguments, **options):
            if threading.current_thread().name == "slow":
                slow_is_in.set()
                fast_is_done.wait(20)
            return super()._generate(*arguments, **options)

    rig = make(Small(script=STEPS), STEPS, policy=lambda seen: "regenerate", checkpointer=InMemorySaver())
    rig.graph.invoke(QUESTION, THREAD, interrupt_before=["generate_step"])
    at, results = rig.graph.get_state(THREAD).config, {}

    def branch():
        results[threading.current_thread().name] = rig.graph.invoke(None, at)["trim"]

    slow = threading.Thread(target=branch, name="slow")
    slow.start()
    slow_is_in.wait(20)
    rig.graph.invoke(None, at)
    fast_is_done.set()
    slow.join(60)
    assert charged(results["slow"]) == billed(rig.large) // 2
    assert results["slow"]["notes"] == []


def test_a_branch_does_not_pay_for_a_call_of_another_that_is_being_stored(make):
    first, second = threading.Event(), threading.Event()

    class Large(ScriptedChatModel):
        def _generate(self, *arguments, **options):
            answer = super()._generate(*arguments, **options)
            (second if first.is_set() else first).set()
            return answer

    class Slow(InMemorySaver):
        def put(self, config, checkpoint, *arguments):
            if checkpoint["channel_values"].get("charged_call"):
                second.wait(20)
            return super().put(config, checkpoint, *arguments)

    rig = make(STEPS, Large(script=STEPS), policy=lambda seen: "regenerate", checkpointer=Slow(), max_steps=1)
    rig.graph.invoke(QUESTION, THREAD, interrupt_before=["generate_step"])
    rig.graph.invoke(None, THREAD, interrupt_before=["generate_step"])
    at, results = rig.graph.get_state(THREAD).config, []

    def branch():
        results.append(rig.graph.invoke(None, at, durability="sync")["trim"])

    other = threading.Thread(target=branch)
    other.start()
    first.wait(20)
    branch()
    other.join(60)
    assert [(charged(one), one["notes"]) for one in results] == [(billed(rig.large) // 2, [])] * 2


@pytest.mark.parametrize("durability", ["sync", "async"])
def test_a_branch_does_not_pay_for_calls_that_a_run_has_stored_before_it_failed(make, durability):
    class Small(ScriptedChatModel):
        fails: bool = True

        def _generate(self, *arguments, **options):
            if self.fails and len(self.calls) == 2:
                raise ConnectionError("gone")
            return super()._generate(*arguments, **options)

    small = Small(script=STEPS)
    rig = make(small, STEPS, policy=lambda seen: "regenerate", checkpointer=InMemorySaver())
    rig.graph.invoke(QUESTION, THREAD, interrupt_before=["generate_step"])
    at = rig.graph.get_state(THREAD).config
    with pytest.raises(ConnectionError):
        rig.graph.invoke(None, THREAD, durability=durability)
    before, small.fails = len(rig.large.calls), False
    assert before == 2
    result = rig.graph.invoke(None, at)["trim"]
    assert charged(result) == sum(call["tokens"] for call in rig.large.calls[before:])
    assert result["notes"] == []


def test_a_call_that_raised_is_charged_once_and_not_to_a_later_branch(make):
    class Large(ScriptedChatModel):
        fails: int = 1

        def _generate(self, *arguments, **options):
            if self.fails:
                self.fails -= 1
                raise ConnectionError("gone")
            return super()._generate(*arguments, **options)

    rig, at = before_large(make, Large(script=STEPS), max_step_tokens=20)
    with pytest.raises(ConnectionError):
        rig.graph.invoke(None, THREAD)
    assert rig.graph.invoke(None, THREAD)["trim"]["tokens"]["large_unaccounted"] == 20
    assert rig.graph.invoke(None, at)["trim"]["tokens"]["large_unaccounted"] == 0


# What is remembered


def test_runs_that_have_ended_are_forgotten(make):
    rig = make(policy=large_only())
    before = interrupted._aborted_calls._count
    rig.ask()
    asyncio.run(rig.aask())
    assert interrupted._aborted_calls._count == before


def test_calls_beyond_the_number_kept_are_forgotten(monkeypatch):
    calls = interrupted._Calls()
    monkeypatch.setattr(interrupted, "KEPT", 10)
    for number in range(50):
        used = interrupted.LargeCall(str(number), None, {}, (None, ""), raised=True)
        calls.add(f"run {number // 3}", used)
    assert calls._count <= 10
    assert [one.id for one in calls.of("run 16")] == ["48", "49"]
    assert calls.of("run 0") == []


# Agents


@both_ways
@pytest.mark.parametrize("durability", ["sync", "async"])
def test_an_agents_call_whose_result_is_lost_is_charged(asynchronously, durability):
    saver = Flaky()
    turns = talk(3, 5, "l")

    class Large(ScriptedToolModel):
        def _generate(self, *arguments, **options):
            saver.away = True
            return super()._generate(*arguments, **options)

    large = Large(script=turns)
    rig = build_agent(
        talk(3, 5, "s"),
        large,
        policy=random_rate(1.0),
        agent={"checkpointer": saver},
        budget=Budget(large_tokens=60),
        max_step_tokens=20,
    )
    given = {"messages": [("user", "?")]}
    for _ in range(40):
        try:
            call = rig.agent.ainvoke if asynchronously else rig.agent.invoke
            result = call(given, THREAD, durability=durability)
            result = asyncio.run(result) if asynchronously else result
            break
        except OSError:
            given, saver.away = None, False
    assert charged(result["trim"]) == billed(large) <= 60
    assert result["trim"]["usage"]["large"]["calls"] == len(large.calls) > 1
    assert any("could not be stored" in note for note in result["trim"]["notes"])


@both_ways
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_an_agents_branch_pays_for_its_own_calls_only(asynchronously, durability):
    rig = build_agent(
        talk(2, 3, "s"), talk(2, 3, "l"), policy=random_rate(1.0), agent={"checkpointer": InMemorySaver()}
    )
    rig.agent.invoke({"messages": [("user", "?")]}, THREAD, interrupt_before=["model"])
    at = rig.agent.get_state(THREAD).config
    spent = []
    for _ in range(3):
        before = billed(rig.large)
        call = rig.agent.ainvoke if asynchronously else rig.agent.invoke
        result = call(None, at, durability=durability)
        result = (asyncio.run(result) if asynchronously else result)["trim"]
        spent.append((charged(result) - (billed(rig.large) - before), result["notes"]))
    assert spent == [(0, [])] * 3


def test_an_agents_thread_budget_is_charged_for_a_lost_call_of_the_question_before():
    saver = Flaky()

    class Large(ScriptedToolModel):
        def _generate(self, *arguments, **options):
            saver.away = len(self.calls) == 0
            return super()._generate(*arguments, **options)

    large = Large(script=["a b c d", "e f g"])
    rig = build_agent(
        ["s"],
        large,
        policy=large_only(),
        agent={"checkpointer": saver},
        budget=Budget(large_tokens=60),
        budget_per="thread",
    )
    with pytest.raises(OSError, match="away"):
        rig.ask("One?", THREAD, durability="sync")
    saver.away = False
    rig.ask("Two?", THREAD, durability="sync")
    state = rig.agent.get_state(THREAD).values
    assert state["trim_usage"]["large"]["output_tokens"] == billed(large)
    assert state["trim_usage"]["large"]["calls"] == 2


# A call that an error or a cancellation has cut off


FOUR_STEPS = ["one and", "two and", "three and", "\\boxed{4}"]


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


@pytest.mark.parametrize("limit", [{"large_tokens": 40}, {"large_calls": 2}])
async def test_a_cancelled_call_is_charged_when_the_run_goes_on(make, limit):
    large = Hanging(script=FOUR_STEPS, failing=5)
    settings = {"budget": limit, "max_step_tokens": 20, "checkpointer": InMemorySaver()}
    rig = make(FOUR_STEPS, large, policy=always, **settings)
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
    large = Hanging(script=FOUR_STEPS, error="the connection broke")
    settings = {"budget": {"large_tokens": 40}, "max_step_tokens": 20, "checkpointer": InMemorySaver()}
    rig = make(FOUR_STEPS, large, policy=always, **settings)
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
    large = Hanging(script=FOUR_STEPS, error="once", failing=1)
    rig = make(FOUR_STEPS, large, policy=always, max_step_tokens=20, checkpointer=InMemorySaver())
    with pytest.raises(RuntimeError, match="once"):
        rig.graph.invoke(QUESTION, THREAD)
    result = rig.graph.invoke(None, THREAD)["trim"]
    assert result["tokens"]["large_unaccounted"] == 20
    assert [note for note in result["notes"] if "cut off" in note] == [
        "a call of the large model was cut off by an error; 20 tokens were charged for it"
    ]
    second = rig.graph.invoke(QUESTION, THREAD)["trim"]
    assert second["tokens"]["large_unaccounted"] == 0


class SlowToFail(ScriptedChatModel):
    """A client with a time limit of its own, for which it has an error of its own."""

    def _generate(self, *arguments, timeout=None, **settings):
        import time

        if timeout is not None:
            time.sleep(timeout)
            raise ConnectionError("request timed out")
        return super()._generate(*arguments, **settings)


def test_a_client_s_own_error_at_the_deadline_is_the_deadline(make):
    slow = SlowToFail(script=FOUR_STEPS)
    result = make(slow, slow, policy=threshold(0.5), budget={"seconds": 0.3}).ask()
    assert result["trim"]["stopped"] == "deadline"
    assert any("cut off by the limit on seconds" in note for note in result["trim"]["notes"])
