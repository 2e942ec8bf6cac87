"""Budgets that runs share: per thread and per user, whatever runs at the same time and however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from trim_graph import Quota, Quotas, SettingsError, TrimContext, open_ledger
from trim_graph.budget.ledger import LargeUsage, MemoryLedger
from trim_graph.policies import Policy, large_only
from trim_graph.testing import ScriptedChatModel

ADA = TrimContext(user="ada")


def on(thread):
    return {"configurable": {"thread_id": thread}}


@pytest.fixture
def ledger():
    return MemoryLedger()


class Always(Policy):
    needs_score = False

    def decide(self, observation):
        return "regenerate"


def sharing(make, ledger, *arguments, policy=None, **options):
    """A rig in which every step is regenerated, three tokens each, out of an account of 20 tokens."""
    options = {"quotas": {"user": {"large_tokens": 20}}, "max_step_tokens": 8} | options
    return make(*arguments, policy=policy or Always(), scorer=None, ledger=ledger, **options)


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_the_runs_of_a_user_share_a_quota_on_any_thread(make, ledger, asynchronously):
    rig = sharing(make, ledger, checkpointer=InMemorySaver(), budget={"min_tokens": 2})
    spent = [
        rig.solve(asynchronously=asynchronously, config=on(thread), context=ADA)["trim"]
        for thread in ("1", "2", "3")
    ]
    used = [summary["usage"]["large"]["output_tokens"] for summary in spent]
    assert used[0] > used[1] > used[2] == 0
    assert sum(used) <= 20
    assert ledger.used("user:ada") == LargeUsage(sum(used), sum(s["usage"]["large"]["calls"] for s in spent))
    assert spent[0]["accounts"] == {
        "user:ada": {"large_tokens": used[0], "large_calls": 4, "large_cost": 0.0}
    }
    assert spent[2]["stopped"] == "finished"
    assert spent[2]["notes"] == [
        "the limit on large_tokens of user:ada is spent or reserved: the large model is not called any more"
    ]
    other = rig.ask(config=on("4"), context=TrimContext(user="eve"))["trim"]
    assert other["usage"]["large"]["output_tokens"] == used[0]


def test_the_turns_of_a_thread_share_a_quota(make, ledger):
    rig = sharing(
        make,
        ledger,
        quotas=Quotas(thread=Quota(large_calls=6)),
        checkpointer=InMemorySaver(),
    )
    calls = [rig.ask(config=on("1"))["trim"]["usage"]["large"]["calls"] for _ in range(3)]
    assert calls == [4, 2, 0]
    assert rig.ask(config=on("2"))["trim"]["usage"]["large"]["calls"] == 4
    assert ledger.used("thread:1").large_calls == 6


def test_run_thread_and_user_may_all_be_limited(make, ledger):
    quotas = {"thread": {"large_calls": 3}, "user": {"large_calls": 5}}
    rig = sharing(make, ledger, quotas=quotas, budget={"large_calls": 2})

    def calls(thread):
        return rig.ask(config=on(thread), context=ADA)["trim"]["usage"]["large"]["calls"]

    assert [calls(thread) for thread in "1122"] == [2, 1, 2, 0]
    assert ledger.used("thread:2").large_calls == 2


def test_a_refusal_by_one_account_sets_nothing_aside_in_another(make, ledger):
    ledger.reserve("user:ada", "other run", lambda used: LargeUsage(20, 1))
    quotas = {"thread": {"large_calls": 3}, "user": {"large_tokens": 20}}
    sharing(make, ledger, quotas=quotas).ask(config=on("1"), context=ADA)
    assert ledger.used("thread:1") == LargeUsage()


def test_money_is_shared_too(make, ledger):
    rig = sharing(
        make,
        ledger,
        quotas={"user": {"large_cost": 2e-5}},
        prices={"large": {"output": 1.0}},
    )
    costs = [rig.ask(context=ADA)["trim"]["cost"] for _ in range(3)]
    assert 0 < sum(costs) <= 2e-5
    assert ledger.used("user:ada").large_cost == pytest.approx(sum(costs))


def test_a_call_may_bring_other_quotas(make, ledger):
    rig = sharing(make, ledger)
    generous = TrimContext(user="ada", quotas=Quotas(user=Quota(large_calls=100)))
    assert rig.ask(context=generous)["trim"]["usage"]["large"]["calls"] == 4
    without = TrimContext(quotas=Quotas())
    assert "accounts" not in rig.ask(context=without)["trim"]


def test_what_a_policy_sees_is_what_the_scarcest_account_has_left(make, ledger):
    seen = []

    class Looking(Always):
        def decide(self, observation):
            seen.append(observation.budget_left.large_tokens)
            return "regenerate"

    sharing(make, ledger, policy=Looking(), budget={"large_tokens": 100}).ask(context=ADA)
    assert seen == [20, 17, 14, 11]


# What is refused before any model is called


@pytest.mark.parametrize(
    ("options", "asked", "message"),
    [
        ({}, {}, r"quotas\.user is set, but the call does not name its user: give TrimContext\(user="),
        ({"quotas": {"thread": {"large_calls": 1}}}, {}, r"does not name its thread: give \{\"config"),
        ({}, {"context": TrimContext(user="ada", budget={"large_cost": 1})}, "has no price"),
    ],
)
def test_an_account_without_a_name_is_refused_before_any_model_call(make, ledger, options, asked, message):
    rig = sharing(make, ledger, **options)
    with pytest.raises(SettingsError, match=message):
        rig.ask(**asked)
    assert rig.unasked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ledger": None}, "no ledger that counts: pass ledger="),
        ({"quotas": {"user": {}}}, r"quotas\.user: a quota without a limit: set large_tokens"),
        ({"quotas": {"user": {"large_tokens": -1}}}, r"quotas\.user\.large_tokens: .*got -1"),
        ({"quotas": {"users": {"large_tokens": 1}}}, r"quotas\.users"),
        ({"quotas": {"user": {"large_cost": 1}}}, r"quotas\.user\.large_cost is 1, but .* no price"),
    ],
)
def test_quotas_that_cannot_be_meant_are_refused_when_the_graph_is_built(make, ledger, options, message):
    with pytest.raises(SettingsError, match=message):
        sharing(make, **{"ledger": ledger, **options})


def test_quotas_of_a_call_need_a_ledger_too(make):
    rig = make()
    with pytest.raises(SettingsError, match=r"quotas\.user is set, but the graph was built without"):
        rig.ask(context=TrimContext(user="ada", quotas={"user": {"large_calls": 1}}))
    assert rig.unasked


def test_a_run_cannot_resume_without_its_ledger(make, ledger):
    saver = InMemorySaver()
    rig = sharing(make, ledger, checkpointer=saver)
    rig.ask(config=on("1"), context=ADA, interrupt_before=["generate_step"])
    other = make(policy=Always(), scorer=None, checkpointer=saver)
    with pytest.raises(SettingsError, match="draws from user:ada: build the graph with its ledger"):
        other.graph.invoke(None, on("1"))
    assert rig.unasked


# Runs at the same time


class Watching(MemoryLedger):
    """Remembers the most tokens that an account ever held."""

    most = 0

    def reserve(self, account, entry, ask):
        granted = super().reserve(account, entry, ask)
        self.most = max(self.most, self.used(account).large_tokens)
        return granted


words = st.lists(st.sampled_from(["a", "b c", "d e f g", "h " * 9]), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(large=words, limit=st.integers(1, 60), runs=st.integers(2, 6), seed=st.integers(0, 9))
def test_runs_at_the_same_time_never_pass_the_limit_together(make, large, limit, runs, seed):
    class Fickle(Always):
        def next_writer(self, observation):
            return observation.random().choice(["small", "small", "large", "large_to_end"])

        def decide(self, observation):
            return observation.random().choice(["accept", "regenerate", "regenerate", "handover"])

    ledger = Watching()
    rig = sharing(
        make,
        ledger,
        ["s one", "s two", "s three", "s four"],
        large,
        policy=Fickle(),
        quotas={"user": {"large_tokens": limit}},
        budget={"min_tokens": 1},
        seed=seed,
    )

    async def together():
        return await asyncio.gather(*(rig.aask(f"question {n}", context=ADA) for n in range(runs)))

    summaries = [result["trim"] for result in asyncio.run(together())]
    spent = sum(summary["usage"]["large"]["output_tokens"] for summary in summaries)
    assert ledger.used("user:ada").large_tokens == spent <= limit
    assert ledger.most <= limit
    assert {summary["stopped"] for summary in summaries} <= {"finished", "max_steps", "no_step"}


@pytest.mark.parametrize("place", ["memory", "sqlite"])
def test_threads_that_share_a_ledger_never_pass_the_limit(make, place, tmp_path):
    with open_ledger("memory" if place == "memory" else f"sqlite:{tmp_path / 'spend.db'}") as ledger:
        rig = sharing(
            make,
            ledger,
            quotas={"user": {"large_tokens": 30}},
            budget={"min_tokens": 1},
        )
        with ThreadPoolExecutor(6) as threads:
            results = list(threads.map(lambda n: rig.ask(f"question {n}", context=ADA)["trim"], range(12)))
        spent = sum(result["usage"]["large"]["output_tokens"] for result in results)
        assert ledger.used("user:ada").large_tokens == spent
        assert 25 < spent <= 30


class Late(MemoryLedger):
    """Another run takes all there is between `route`'s look and the call."""

    def reserve(self, account, entry, ask):
        if entry != "other":
            super().reserve(account, "other", lambda used: LargeUsage(20, 1))
        return super().reserve(account, entry, ask)


@pytest.mark.parametrize(
    ("on_exhausted", "stopped", "text"),
    [("small", "finished", "small one\n\nsmall two"), ("stop", "budget", "small one")],
)
def test_a_run_that_comes_too_late_keeps_its_draft(make, on_exhausted, stopped, text):
    budget = {"on_exhausted": on_exhausted}
    rig = sharing(make, Late(), ["small one", "small two"], budget=budget)
    result = rig.ask(context=ADA)
    assert (result["trim"]["stopped"], result["messages"][-1].text) == (stopped, text)
    assert not rig.large.calls
    assert len(rig.small.calls) == (2 if stopped == "finished" else 1), "no draft was written twice"
    assert "the limit on large_tokens of user:ada is spent or reserved" in result["trim"]["notes"][0]
    assert rig.steps(context=TrimContext(user="eve"))[0]["text"] == "small one"


def test_a_run_without_a_draft_that_comes_too_late_goes_on_small(make):
    rig = sharing(make, Late(), policy=large_only())
    assert rig.ask(context=ADA)["trim"]["steps"] == {"small": 4, "large": 0}


def test_what_a_run_that_was_refused_set_aside_elsewhere_comes_back(make):
    quotas = {"thread": {"large_tokens": 100}, "user": {"large_tokens": 20}}
    ledger = Late()
    ledger.reserve("thread:1", "other", lambda used: LargeUsage(0, 0))
    sharing(make, ledger, quotas=quotas).ask(config=on("1"), context=ADA)
    assert ledger.used("thread:1").large_calls == 0


@pytest.mark.parametrize("place", ["memory", "sqlite"])
def test_branches_of_one_checkpoint_never_pass_the_limit_together(make, place, tmp_path):
    together = threading.Barrier(6)

    class Slow(ScriptedChatModel):
        def _generate(self, *arguments, **options):
            with suppress(threading.BrokenBarrierError):
                together.wait(0.2)  # all that were granted a call are in it at the same time
            return super()._generate(*arguments, **options)

    with open_ledger("memory" if place == "memory" else f"sqlite:{tmp_path / 'spend.db'}") as ledger:
        large = Slow(script=["w w w w w w w w w w w w"])
        options = {"checkpointer": InMemorySaver(), "quotas": {"user": {"large_tokens": 30}}}
        rig = sharing(make, ledger, large=large, max_step_tokens=12, **options)
        rig.ask(config=on("1"), context=ADA, interrupt_before=["generate_step"])
        rig.graph.invoke(None, on("1"), interrupt_before=["generate_step"])
        at = rig.graph.get_state(on("1")).config
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(lambda _: rig.graph.invoke(None, at), range(6)))
        written = sum(call["tokens"] for call in large.calls)
        assert ledger.used("user:ada") == LargeUsage(written, len(large.calls))
        assert 12 < written <= 30
        assert ledger.reservations() == []


def test_parallel_branches_of_a_parent_share_the_account(make, ledger):
    rig = sharing(make, ledger, quotas={"thread": {"large_calls": 5}})
    parent = StateGraph(MessagesState)
    for name in ("a", "b", "c"):
        parent.add_node(name, rig.graph)
        parent.add_edge(START, name)
    result = parent.compile(checkpointer=InMemorySaver()).invoke({"messages": "2 + 2?"}, on("1"))
    answers = [m.response_metadata["trim"] for m in result["messages"] if m.type == "ai"]
    assert len(answers) == 3
    assert sum(answer["usage"]["large"]["calls"] for answer in answers) == 5


# Calls that end badly


class Failing(ScriptedChatModel):
    error: Exception = ConnectionError("gone")
    fails: int = 1

    def _generate(self, *args, **kwargs):
        if self.fails:
            self.fails -= 1
            raise self.error
        return super()._generate(*args, **kwargs)


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_a_failed_call_counts_in_full_and_the_run_goes_on(make, ledger, asynchronously):
    large = Failing(script=["LARGE one", "LARGE two"])
    rig = sharing(make, ledger, ["one", "two"], large, on_large_error="accept")
    summary = rig.solve(asynchronously=asynchronously, context=ADA)["trim"]
    assert summary["tokens"]["large_unaccounted"] == 8
    assert ledger.used("user:ada").large_tokens == 8 + 3


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_a_call_that_raised_counts_and_so_does_the_one_that_takes_its_place(make, ledger, asynchronously):
    large = Failing(script=["LARGE one", "LARGE two"])
    rig = sharing(make, ledger, ["one", "two"], large, checkpointer=InMemorySaver())
    with pytest.raises(ConnectionError):
        rig.solve(asynchronously=asynchronously, config=on("1"), context=ADA)
    assert ledger.used("user:ada") == LargeUsage(8, 1)
    rig.graph.invoke(None, on("1"))
    assert ledger.used("user:ada") == LargeUsage(8 + 3 + 3, 3)


async def test_a_cancelled_call_counts_in_full(make, ledger):
    begun = asyncio.Event()

    class Hanging(ScriptedChatModel):
        async def _agenerate(self, *args, **kwargs):
            begun.set()
            await asyncio.Event().wait()

    rig = sharing(make, ledger, large=Hanging(script=[]))
    task = asyncio.create_task(rig.aask(context=ADA))
    await asyncio.wait_for(begun.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ledger.used("user:ada") == LargeUsage(8, 1)


def test_a_model_that_writes_too_much_is_counted_as_it_wrote(make, ledger):
    stubborn = ScriptedChatModel(script=["w " * 30], honours_max_tokens=False)
    rig = sharing(make, ledger, large=stubborn)
    summary = rig.ask(context=ADA)["trim"]
    assert summary["usage"]["overshoot_tokens"] > 0
    assert ledger.used("user:ada").large_tokens == summary["usage"]["large"]["output_tokens"] > 20
    assert len(stubborn.calls) == 1


def test_an_answer_is_not_lost_where_the_ledger_fails_to_settle(make):
    class Deaf(MemoryLedger):
        def settle(self, account, entry, used):
            raise OSError("the database is away")

    ledger = Deaf()
    rig = sharing(make, ledger)
    summary = rig.ask(context=ADA)["trim"]
    assert summary["steps"]["large"] >= 1
    assert "so all that was reserved counts: OSError: the database is away" in summary["notes"][0]
    assert ledger.used("user:ada").large_tokens >= 8


def test_a_fork_is_charged_again(make, ledger):
    plenty = {"user": {"large_tokens": 100}}
    rig = sharing(make, ledger, checkpointer=InMemorySaver(), quotas=plenty)
    rig.ask(config=on("1"), context=ADA)
    spent = ledger.used("user:ada").large_tokens
    history = list(rig.graph.get_state_history(on("1")))
    drafted = next(s for s in reversed(history) if s.next == ("route",) and s.values.get("draft"))
    rig.graph.invoke(None, drafted.config)
    assert ledger.used("user:ada").large_tokens > spent


KILLED = """
import os, signal, sys
from trim_graph import TrimContext, create_trim_graph, open_checkpointer, open_ledger
from trim_graph.testing import ScriptedChatModel
from tests.budget.test_reservations import Always, on

class Deadly(ScriptedChatModel):
    def _generate(self, *args, **kwargs):
        if sys.argv[1] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._generate(*args, **kwargs)

with open_checkpointer("sqlite:runs.db") as saver, open_ledger("sqlite:spend.db") as ledger:
    graph = create_trim_graph(
        ScriptedChatModel(script=["one", "two"]), Deadly(script=["LARGE one", "LARGE two"]),
        policy=Always(),
        checkpointer=saver, ledger=ledger, quotas={"user": {"large_tokens": 100}}, max_step_tokens=8,
    )
    given = {"messages": "2 + 2?"} if sys.argv[1] == "die" else None
    result = graph.invoke(given, on("1"), context=TrimContext(user="ada"), durability="sync")
    print(result["trim"]["tokens"]["large_unaccounted"], result["trim"]["notes"])
"""


def test_what_a_killed_run_had_set_aside_stays_charged(tmp_path, pytestconfig):
    def run(how):
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(KILLED), how],
            env={**os.environ, "PYTHONPATH": str(pytestconfig.rootpath)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    with open_ledger(f"sqlite:{tmp_path / 'spend.db'}") as ledger:
        assert run("die").returncode == -signal.SIGKILL
        assert ledger.used("user:ada") == LargeUsage(8, 1)
        resumed = run("go on")
        assert resumed.stdout.startswith("8 ['a call of the large model was cut off"), resumed.stderr
        assert ledger.used("user:ada") == LargeUsage(8 + 3 + 3, 3)


async def test_what_is_set_aside_for_a_run_that_is_cancelled_twice_is_given_back_too(make):
    class Slow(MemoryLedger):
        def reserve(self, *arguments):
            begun.set()
            time.sleep(0.3)
            return super().reserve(*arguments)

    begun, ledger = threading.Event(), Slow()
    rig = make(policy=large_only(), ledger=ledger, quotas={"user": {"large_calls": 9}})
    task = asyncio.create_task(rig.graph.ainvoke({"messages": "?"}, context=ADA))
    await asyncio.to_thread(begun.wait)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.02)
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.5)
    assert ledger.used("user:ada") == LargeUsage()
    assert not rig.large.calls


def test_an_account_that_cannot_be_asked_leaves_nothing_set_aside_in_another(make):
    class Away(MemoryLedger):
        def reserve(self, account, entry, ask):
            if account.startswith("user"):
                raise OSError("the database is away")
            return super().reserve(account, entry, ask)

    ledger = Away()
    quotas = {"thread": {"large_calls": 9}, "user": {"large_calls": 9}}
    rig = sharing(make, ledger, quotas=quotas)
    with pytest.raises(OSError, match="away"):
        rig.ask(config=on("1"), context=ADA)
    assert ledger.used("thread:1") == LargeUsage()


def test_a_node_that_runs_again_sets_aside_for_each_execution(make):
    entries = []

    class Watched(MemoryLedger):
        def reserve(self, account, entry, ask):
            entries.append(entry)
            return super().reserve(account, entry, ask)

    watched = Watched()
    large = Failing(script=["LARGE one", "LARGE two"])
    rig = sharing(make, watched, ["one", "two"], large, checkpointer=InMemorySaver())
    with pytest.raises(ConnectionError):
        rig.ask(config=on("1"), context=ADA)
    rig.graph.invoke(None, on("1"))
    assert len(set(entries)) == len(entries) == 3
    assert watched.reservations() == []


async def test_what_is_set_aside_for_a_run_that_is_cancelled_meanwhile_is_given_back(make):
    class Slow(MemoryLedger):
        def reserve(self, *arguments):
            begun.set()
            time.sleep(0.2)
            return super().reserve(*arguments)

    begun, ledger = threading.Event(), Slow()
    rig = make(policy=large_only(), ledger=ledger, quotas={"user": {"large_calls": 9}})
    asked = rig.graph.ainvoke({"messages": "?"}, context=TrimContext(user="ada"))
    task = asyncio.create_task(asked)
    await asyncio.to_thread(begun.wait)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not rig.large.calls
    assert ledger.used("user:ada") == LargeUsage()
