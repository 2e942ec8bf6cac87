"""Cache warming: the large model reads the steps so far in the background, and a run shows nothing of it."""

from __future__ import annotations

import asyncio
import gc
import warnings
from typing import Any, ClassVar

import pytest
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from paced_models import PacedModel, PacedScorer, pause, written_before

from trim_graph import (
    Budget,
    ModelPrice,
    Prices,
    Quota,
    Quotas,
    SettingsError,
    TrimContext,
    create_trim_graph,
    process,
)
from trim_graph.budget.ledger import MemoryLedger
from trim_graph.budget.usage import large_usage
from trim_graph.calls import warming
from trim_graph.policies import Policy, entropy_probe, small_only, threshold
from trim_graph.testing import ScriptedChatModel

SMALL = ["one", "two", "three", "four \\boxed{4}"]
LARGE = ["ONE", "TWO", "THREE", "FOUR \\boxed{5}"]
GIVEN = {"messages": [("user", "2 + 2?")]}
WHOLE = {"max_steps": 8, "max_step_tokens": 50}


class Large(PacedModel):
    """A large model whose calls of one token are counted apart: those that warm its cache."""

    warm_turns: int = 0
    warm_hangs: Any = frozenset()
    warm_fails: Any = frozenset()
    at_once: int = 0
    most_at_once: int = 0

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Any:
        if kwargs.get("max_tokens") != 1:
            return await super()._agenerate(messages, stop, run_manager, **kwargs)
        prefix = written_before(messages)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await pause(self.warm_turns)
            if prefix in self.warm_hangs:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(prefix)
            raise
        finally:
            self.at_once -= 1
        if prefix in self.warm_fails:
            raise ConnectionError("the test asked for it")
        return self._generate(messages, stop, **kwargs)

    @property
    def warm(self) -> list[dict[str, Any]]:
        return [call for call in self.calls if call["max_tokens"] == 1]

    @property
    def written(self) -> list[dict[str, Any]]:
        return [call for call in self.calls if call["max_tokens"] != 1]


class Rig:
    """A graph with its parts; the small model gives others 20 turns, ``poor`` steps score 0.1."""

    def __init__(self, poor: Any = (), *, policy: Any = None, **options: Any) -> None:
        self.small = options.pop("small", None) or PacedModel(script=SMALL, name="tiny", turns=20)
        self.large = options.pop("large", None) or Large(
            script=LARGE, name="huge", **options.pop("model", {})
        )
        self.scorer = PacedScorer(dict.fromkeys(poor, 0.1))
        options = {"warm_large": True, **WHOLE, **options}
        self.graph = create_trim_graph(
            self.small, self.large, self.scorer, policy=policy or threshold(0.5), **options
        )

    async def ask(self, config: Any = None, **options: Any) -> dict[str, Any]:
        result: dict[str, Any] = await self.graph.ainvoke(GIVEN, config, **options)
        await nothing_left()
        return result

    def warmed(self) -> list[str]:
        return [written_before(call["messages"]) for call in self.large.warm]


async def nothing_left() -> None:
    assert not [task for task in asyncio.all_tasks() if task.get_name() == warming.TASK]


def bill(result: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = result["trim"]["usage"]["warming"]
    return found


# What it does


async def test_the_prompt_of_each_rewrite_is_read_while_the_small_model_drafts():
    rig = Rig(poor=["three"])
    result = await rig.ask()
    assert rig.warmed() == ["", "one\n\n", "one\n\ntwo\n\n"]
    rewrite = rig.large.written[0]
    assert rig.large.warm[2]["messages"] == rewrite["messages"]
    assert rig.large.warm[2]["stop"] == rewrite["stop"]
    assert result["messages"][-1].text == "one\n\ntwo\n\nTHREE\n\n" + SMALL[3]


async def test_what_the_large_model_wrote_itself_is_not_read_again():
    rig = Rig(poor=["one", "three"])
    await rig.ask()
    assert rig.warmed() == ["", "ONE\n\ntwo\n\n"]


async def test_warming_is_off_unless_asked_for():
    rig = Rig(poor=["two"], warm_large=False)
    result = await rig.ask()
    assert not rig.large.warm
    assert "warming" not in result["trim"]["usage"]
    assert "warming" not in result["trim"]["tokens"]


async def test_a_context_turns_it_on_for_one_call():
    rig = Rig(poor=["two"], warm_large=False)
    result = await rig.ask(context=TrimContext(warm_large=True))
    assert bill(result)["calls"] == 3


async def test_the_solution_is_the_one_without():
    def shown(result: dict[str, Any]) -> Any:
        trim = result["trim"]
        return result["messages"][-1].text, trim["decisions"], trim["steps"], trim["notes"], trim["stopped"]

    assert shown(await Rig(poor=["two"]).ask()) == shown(await Rig(poor=["two"], warm_large=False).ask())


async def test_it_goes_with_lookahead():
    rig = Rig(poor=["two"], lookahead=True)
    rig.scorer.turns = 20
    result = await rig.ask()
    usage, calls = result["trim"]["usage"], rig.large.calls
    assert rig.warmed() == ["", "one\n\n", "one\n\nTWO\n\nthree\n\n"]
    assert (usage["lookahead"]["taken"], usage["lookahead"]["discarded"]) == (2, 1)
    assert usage["large"]["output_tokens"] == sum(call["tokens"] for call in calls)
    assert result["messages"][-1].text == "one\n\nTWO\n\nthree\n\n" + SMALL[3]


async def test_nothing_is_read_for_a_policy_that_never_has_a_draft_rewritten():
    rig = Rig(policy=small_only())
    await rig.ask()
    assert not rig.large.calls


async def test_the_prompt_is_read_while_a_probe_is_out():
    rig = Rig(policy=entropy_probe(0.5))
    rig.small.entropies = [0.0, 0.9, 0.0, 0.0]
    await rig.ask()
    assert rig.warmed() == ["", "one\n\n", "one\n\nTWO\n\nthree\n\n"]


# What it costs


async def test_every_token_is_counted_with_the_large_models():
    prices = Prices(large=ModelPrice(input=1e6, output=2e6))
    rig = Rig(poor=["two"], prices=prices)
    callback = UsageMetadataCallbackHandler()
    result = await rig.ask({"callbacks": [callback]})
    trim, calls, warm = result["trim"], rig.large.calls, rig.large.warm
    assert bill(result) == {
        "calls": 3,
        "failed_calls": 0,
        "input_tokens": sum(call["prompt_tokens"] for call in warm),
        "cached_tokens": 0,
        "output_tokens": 3,
        "unaccounted_tokens": 0,
    }
    large = trim["usage"]["large"]
    assert (large["calls"], large["failed_calls"]) == (4, 0)
    assert large["input_tokens"] == sum(call["prompt_tokens"] for call in calls)
    assert large["output_tokens"] == sum(call["tokens"] for call in calls)
    assert trim["usage"]["unaccounted_tokens"] == 0
    assert trim["usage"]["unaccounted_cost"] == 0
    assert trim["cost"] == large["input_tokens"] + 2 * large["output_tokens"]
    assert trim["tokens"]["warming"] == 3
    assert trim["tokens"]["large_discarded"] == 3
    assert callback.usage_metadata["huge"]["output_tokens"] == large["output_tokens"]


async def test_the_estimate_of_the_large_model_alone_reads_the_question_once():
    prices = Prices(large=ModelPrice(input=1e6, output=2e6))
    rig = Rig(poor=["two"], prices=prices)
    result = await rig.ask()
    alone = result["trim"]["savings"]["large_alone"]
    assert alone["read"] == rig.large.warm[0]["prompt_tokens"]
    seconds = result["trim"]["usage"]["large"]["seconds"]
    written = result["trim"]["tokens"]["large"]
    assert alone["seconds"] == pytest.approx(seconds / written * alone["written"])


async def test_the_stream_shows_each_prompt_that_was_read():
    rig = Rig(poor=["two"])
    events = [event async for event in rig.graph.astream(GIVEN, stream_mode="custom")]
    assert [event for event in events if event["event"] == "warmed"] == [
        {
            "type": "trim",
            "event": "warmed",
            "step": step,
            "input_tokens": call["prompt_tokens"],
            "cached_tokens": 0,
            "tokens": 1,
        }
        for step, call in zip([0, 1, 3], rig.large.warm, strict=True)
    ]


async def test_no_token_of_it_enters_the_streamed_message():
    rig = Rig(poor=["two"])
    chunks = [chunk async for chunk, _ in rig.graph.astream(GIVEN, stream_mode="messages")]
    assert "".join(str(chunk.text) for chunk in chunks) == "one\n\nTWO\n\nthree\n\n" + SMALL[3]


async def test_a_model_that_writes_more_than_its_token_is_an_overshoot():
    rig = Rig(poor=["two"], model={"honours_max_tokens": False})
    result = await rig.ask()
    beyond = sum(call["tokens"] - 1 for call in rig.large.warm)
    assert beyond > 0
    assert result["trim"]["usage"]["overshoot_tokens"] == beyond
    assert bill(result)["output_tokens"] == sum(call["tokens"] for call in rig.large.warm)


# It never delays a run nor fails it


async def test_a_call_that_hangs_delays_nothing_and_is_cancelled_and_charged_at_the_end():
    prices = Prices(large=ModelPrice(input=1e6, output=2e6))
    rig = Rig(poor=["two"], model={"warm_hangs": {""}}, prices=prices)
    result = await asyncio.wait_for(rig.ask(), 5)
    assert rig.large.cancelled == [""]
    assert result["messages"][-1].text == "one\n\nTWO\n\nthree\n\n" + SMALL[3]
    assert bill(result) == {
        "calls": 1,
        "failed_calls": 0,
        "input_tokens": 0,
        "cached_tokens": 0,
        "output_tokens": 0,
        "unaccounted_tokens": 1,
    }
    assert result["trim"]["tokens"]["large_unaccounted"] == 1
    assert result["trim"]["usage"]["unaccounted_cost"] > 2  # the token, and the prompt's upper bound
    assert result["trim"]["notes"] == []


async def test_one_call_at_a_time_runs():
    rig = Rig(model={"warm_turns": 100})
    await rig.ask()
    assert rig.large.most_at_once == 1
    assert rig.warmed()[0] == ""


async def test_failures_are_counted_and_show_nowhere_else():
    broken = {"", "one\n\n", "one\n\ntwo\n\n"}
    rig = Rig(poor=[SMALL[3]], model={"warm_fails": broken})
    events = [event async for event in rig.graph.astream(GIVEN, stream_mode=["custom", "values"])]
    result = events[-1][1]
    assert "FOUR" in result["messages"][-1].text  # three failures do not count against a rewrite
    assert bill(result)["failed_calls"] == 3
    assert result["trim"]["usage"]["large"]["failed_calls"] == 0
    assert result["trim"]["notes"] == []
    shown = [event["event"] for mode, event in events if mode == "custom"]
    assert not {"failed", "warmed", "retried"} & set(shown)
    assert rig.large.warm == []  # after three failures no more is read
    await nothing_left()


async def test_no_call_outlives_a_run_that_breaks_off():
    rig = Rig(model={"warm_hangs": {""}})
    rig.small.fails = lambda prefix, call: prefix == "one\n\n"
    with pytest.raises(ConnectionError):
        await rig.graph.ainvoke(GIVEN)
    await nothing_left()
    assert rig.large.cancelled == [""]


async def test_no_call_outlives_a_run_that_is_cancelled():
    drafting = asyncio.Event()

    class Hanging(PacedModel):
        async def _pace(self, prefix: str, stop_when: Any) -> None:
            await pause(20)
            if prefix:
                drafting.set()
                await asyncio.Event().wait()

    rig = Rig(small=Hanging(script=SMALL), model={"warm_hangs": {""}})
    run = asyncio.ensure_future(rig.graph.ainvoke(GIVEN))
    await asyncio.wait_for(drafting.wait(), 5)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await nothing_left()
    assert rig.large.cancelled == [""]


async def test_a_run_that_is_resumed_keeps_the_charge_of_a_call_cut_off():
    rig = Rig(model={"warm_hangs": {""}}, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    rig.small.fails = lambda prefix, call: prefix == "one\n\n"
    with pytest.raises(ConnectionError):
        await rig.graph.ainvoke(GIVEN, config)
    rig.small.fails = lambda prefix, call: False
    result = await rig.graph.ainvoke(None, config)
    await nothing_left()
    assert bill(result)["unaccounted_tokens"] == 1
    assert bill(result)["calls"] == 1 + len(rig.large.warm)


async def test_no_call_outlives_the_question_to_a_human():
    rig = Rig(poor=["one"], model={"warm_hangs": {""}}, ask_below=0.3, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    result = await rig.ask(config)
    assert "__interrupt__" in result
    assert rig.large.cancelled == [""]
    answered = await rig.graph.ainvoke(Command(resume={"decision": "accept"}), config)
    await nothing_left()
    assert bill(answered)["unaccounted_tokens"] == 1
    assert answered["messages"][-1].text == "\n\n".join(SMALL)


async def test_no_task_is_left_that_nobody_has_awaited():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in ({"warm_hangs": {""}}, {"warm_fails": {"", "one\n\n"}}, {}):
            await Rig(poor=["two"], model=model).ask()
        gc.collect()


# Limits


@pytest.mark.parametrize("tokens", [0, 1, 30, 50, 51, 52, 60, 200])
async def test_a_rewrite_gets_a_whole_step_whatever_was_read_before(tokens):
    rig = Rig(poor=["three"], budget=Budget(large_tokens=tokens))
    result = await rig.ask()
    used = large_usage(result["trim"]["usage"], Prices())
    assert used.large_tokens <= tokens
    if tokens > 50:
        assert rig.large.written[0]["max_tokens"] == 50
        assert len(rig.large.warm) >= 1
    else:
        assert not rig.large.warm


@pytest.mark.parametrize("calls", range(13))
async def test_calls_that_rewrites_may_need_are_not_taken(calls):
    rig = Rig(poor=SMALL, budget=Budget(large_calls=calls), max_steps=4)
    result = await rig.ask()
    assert result["trim"]["usage"]["large"]["calls"] <= calls
    assert len(rig.large.written) == min(calls, 4)
    assert bool(rig.large.warm) == (calls > 4)


@pytest.mark.parametrize("cost", range(0, 1500, 125))
async def test_a_limit_on_cost_holds_and_leaves_a_whole_rewrite(cost):
    prices = Prices(large=ModelPrice(input=1e6, output=2e6))
    rig = Rig(poor=["three"], budget=Budget(large_cost=cost), prices=prices)
    result = await rig.ask()
    assert large_usage(result["trim"]["usage"], prices).large_cost <= cost
    if rig.large.warm:
        assert rig.large.written[0]["max_tokens"] == 50


async def test_the_token_of_a_call_that_still_runs_is_not_granted_to_a_rewrite():
    rig = Rig(poor=["one"], model={"warm_hangs": {""}}, budget=Budget(large_tokens=51), max_steps=1)
    await rig.ask()
    assert rig.large.written[0]["max_tokens"] == 50


async def test_shared_accounts_are_charged_for_each_call():
    ledger = MemoryLedger()
    quotas = Quotas(user=Quota(large_tokens=1000, large_calls=100))
    rig = Rig(poor=["two"], ledger=ledger, quotas=quotas)
    result = await rig.ask(context=TrimContext(user="ada"))
    used, counted = ledger.used("user:ada"), large_usage(result["trim"]["usage"], Prices())
    assert (used.large_tokens, used.large_calls) == (counted.large_tokens, counted.large_calls)
    assert used.large_calls == bill(result)["calls"] + 1


async def test_an_account_that_is_nearly_spent_is_left_to_rewrites():
    ledger = MemoryLedger()
    rig = Rig(poor=["two"], ledger=ledger, quotas=Quotas(user=Quota(large_tokens=50)))
    await rig.ask(context=TrimContext(user="ada"))
    assert not rig.large.warm
    assert rig.large.written[0]["max_tokens"] == 50


async def test_a_call_that_other_runs_leave_nothing_for_is_not_charged():
    class Emptied(MemoryLedger):
        """Has an account in which other runs have just reserved all there is."""

        def reserve(self, *arguments: Any, **options: Any) -> Any:
            return None

    rig = Rig(ledger=Emptied(), quotas=Quotas(user=Quota(large_tokens=1000)))
    result = await rig.ask(context=TrimContext(user="ada"))
    assert not rig.large.calls
    assert result["trim"]["usage"]["large"]["calls"] == 0
    assert result["trim"]["usage"]["unaccounted_tokens"] == 0
    assert set(bill(result).values()) == {0}


async def test_a_call_that_is_cut_off_is_settled_in_its_accounts():
    ledger = MemoryLedger()
    rig = Rig(model={"warm_hangs": {""}}, ledger=ledger, quotas=Quotas(user=Quota(large_tokens=1000)))
    result = await rig.ask(context=TrimContext(user="ada"))
    assert ledger.used("user:ada").large_tokens == 1
    assert result["trim"]["usage"]["unaccounted_tokens"] == 1


# Runs that are interrupted


class Outage(InMemorySaver):
    """A slow database that refuses the first `route` or the second, once for each item of ``down``.

    A list, since LangGraph may run on a copy of a checkpointer.
    """

    first = True
    down: Any = ()

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, *arguments: Any) -> Any:
        await asyncio.sleep(0.005)
        self._refuse(metadata["step"] == (1 if self.first else 4))
        return await super().aput(config, checkpoint, metadata, *arguments)

    async def aput_writes(self, config: Any, writes: Any, *arguments: Any) -> Any:
        await asyncio.sleep(0.005)
        channels = {channel for channel, _ in writes}
        self._refuse("decisions" in channels and ("question" in channels) == self.first)
        return await super().aput_writes(config, writes, *arguments)

    def _refuse(self, matches: bool) -> None:
        if self.down and matches:
            raise OSError(f"the database is {self.down.pop()}")


THREAD: Any = {"configurable": {"thread_id": "1"}}
SHORT: Any = {"max_steps": 2, "max_step_tokens": 8, "budget": Budget(large_calls=5)}


# Not the first with "async": a run of which nothing was stored begins anew, with a charge of its own.
@pytest.mark.parametrize(("first", "durability"), [(True, "sync"), (False, "sync"), (False, "async")])
async def test_a_call_is_charged_however_often_the_database_refuses_its_charge(first, durability):
    saver = Outage()
    saver.first, saver.down = first, ["away"] * 20
    rig = Rig(poor=["two"], checkpointer=saver, **SHORT)
    given: Any = GIVEN
    while True:
        try:
            result = await rig.graph.ainvoke(given, THREAD, durability=durability)
            break
        except OSError:
            given = None
    await nothing_left()
    assert not saver.down
    assert len(rig.large.calls) <= result["trim"]["usage"]["large"]["calls"] <= 5
    assert rig.warmed() == ["", "one\n\n"]


async def test_no_call_is_free_in_a_run_that_is_cancelled_again_and_again():
    rig = Rig(poor=["two"], checkpointer=Outage(), **SHORT)
    given: Any = GIVEN
    for _ in range(20):
        made = len(rig.large.calls)
        run = asyncio.create_task(rig.graph.ainvoke(given, THREAD, durability="sync"))
        while len(rig.large.calls) == made and not run.done():
            await pause(1)
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        given = None
    result = await rig.graph.ainvoke(None, THREAD, durability="sync")
    await nothing_left()
    assert len(rig.large.calls) <= result["trim"]["usage"]["large"]["calls"] <= 5
    assert len(rig.large.warm) == len(set(rig.warmed()))


async def test_a_charge_is_stored_before_its_call_is_made():
    rig = Rig(checkpointer=InMemorySaver())
    await rig.graph.ainvoke(GIVEN, THREAD, durability="sync", interrupt_before=["generate_step"])
    assert not rig.large.calls
    stored = await rig.graph.aget_state(THREAD)
    assert stored.values["usage"]["warming"]["calls"] == 1
    await rig.graph.ainvoke(None, THREAD, durability="sync", interrupt_before=["generate_step"])
    assert rig.warmed() == [""]


async def test_a_call_that_another_process_has_charged_is_not_made(monkeypatch):
    rig = Rig(checkpointer=InMemorySaver())
    await rig.graph.ainvoke(GIVEN, THREAD, durability="sync", interrupt_before=["generate_step"])
    monkeypatch.setattr(process, "NAME", "another")
    result = await rig.graph.ainvoke(None, THREAD, durability="sync")
    await nothing_left()
    assert rig.warmed() == ["one\n\n", "one\n\ntwo\n\n", "one\n\ntwo\n\nthree\n\n"]
    assert bill(result)["calls"] == 4
    assert bill(result)["unaccounted_tokens"] == 1


async def test_a_branch_of_a_run_is_charged_for_its_own_calls():
    rig = Rig(poor=["two"], checkpointer=InMemorySaver())
    first = await rig.ask(THREAD, durability="sync")
    history = [one async for one in rig.graph.aget_state_history(THREAD)]
    for begun in [one for one in history if one.next and one.next != ("__start__",)]:
        made = len(rig.large.warm)
        result = await rig.graph.ainvoke(None, begun.config, durability="sync")
        await nothing_left()
        assert bill(result)["calls"] == bill(first)["calls"] == 3
        own = bill(result)["calls"] - begun.values.get("usage", {}).get("warming", {}).get("calls", 0)
        assert len(rig.large.warm) - made >= own


async def test_another_attempt_at_a_step_carries_no_mark():
    rig = Rig(small=PacedModel(script=["\n\n", *SMALL], turns=20), checkpointer=InMemorySaver())
    await rig.ask(THREAD, durability="sync")
    marked = [
        (one.values["request"]["attempt"], "warm" in one.values["request"])
        async for one in rig.graph.aget_state_history(THREAD)
        if one.next == ("generate_step",)
    ]
    assert {(0, True), (1, False)} <= set(marked)
    assert (1, True) not in marked


# Where it makes no sense


class WithoutCache(ScriptedChatModel):
    caches_prefixes: ClassVar[bool] = False


def test_a_model_without_a_cache_of_prefixes_is_refused():
    small, large = ScriptedChatModel(script=SMALL), WithoutCache(script=LARGE)
    for one in (large, large.with_retry(), large.bind(temperature=0)):
        with pytest.raises(SettingsError, match="WithoutCache, reads each prompt anew"):
            create_trim_graph(small, one, PacedScorer(), policy=threshold(0.5), warm_large=True)


async def test_it_is_refused_in_a_context_too():
    rig = Rig(large=WithoutCache(script=LARGE), warm_large=False)
    with pytest.raises(SettingsError, match="has no cache of prefixes"):
        await rig.ask(context=TrimContext(warm_large=True))


def test_the_models_of_this_process_are_refused():
    from trim_graph.adapters import ChatTransformers
    from trim_graph.examples.arithmetic import LARGE as WEIGHTS

    small, large = ScriptedChatModel(script=SMALL), ChatTransformers(model=str(WEIGHTS))
    with pytest.raises(SettingsError, match="ChatTransformers, reads each prompt anew"):
        create_trim_graph(small, large, PacedScorer(), policy=threshold(0.5), warm_large=True)


def test_a_synchronous_call_warns_and_goes_without():
    rig = Rig(poor=["two"])
    with pytest.warns(
        RuntimeWarning, match="warm_large=True has no effect: the graph is called synchronously"
    ):
        result = rig.graph.invoke(GIVEN)
    assert not rig.large.warm
    assert "warming" not in result["trim"]["usage"]


def test_a_model_without_asynchronous_calls_warns():
    class Synchronous(ScriptedChatModel):
        _agenerate = ScriptedChatModel.__mro__[1]._agenerate

    with pytest.warns(RuntimeWarning, match="Synchronous, has no asynchronous calls of its own"):
        Rig(large=Synchronous(script=LARGE))


class NamesTheLarge(Policy):
    """Has the large model write all by itself."""

    def next_writer(self, observation: Any) -> str:
        return "large"

    def decide(self, observation: Any) -> str:
        return "accept"


async def test_nothing_is_read_while_the_large_model_writes():
    rig = Rig(policy=NamesTheLarge())
    await rig.ask()
    assert not rig.large.warm
