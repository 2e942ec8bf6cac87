from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import ValidationError

from trim_graph import SettingsError, TrimContext
from trim_graph.adapters import ContinueByPrompt
from trim_graph.budget import Budget, ModelPrice, Prices, Quota, RemainingBudget
from trim_graph.budget.limits import LargeLimits, grant
from trim_graph.budget.usage import LargeUsage, zero_usage
from trim_graph.errors import counted
from trim_graph.policies import Policy, large_only, small_only
from trim_graph.prompt_size import counts_itself, prompt_bound
from trim_graph.testing import ScriptedChatModel

# The arithmetic

amounts = st.none() | st.integers(0, 2000)
lefts = st.builds(
    RemainingBudget,
    large_tokens=amounts,
    large_calls=st.none() | st.integers(0, 3),
    large_cost=st.none() | st.floats(0, 1e-2),
    seconds=st.none() | st.sampled_from([0.0, 1.0]),
)
price = st.sampled_from([0.0, 1e-9, 0.1, 3.0, 15.0])
prices = st.builds(lambda i, o: Prices(large=ModelPrice(input=i, output=o)), price, price)
budgets = st.builds(Budget, min_tokens=st.integers(1, 600))


@given(budgets, lefts, prices, st.integers(1, 1000), st.integers(0, 3000))
def test_a_grant_never_passes_any_limit(budget, left, prices, wanted, prompt):
    granted, refused = grant(budget, left, prices, wanted=wanted, prompt_tokens=prompt)
    assert 0 <= granted <= wanted
    assert (refused is not None) == (granted == 0)
    if granted:
        assert left.large_calls != 0
        assert left.seconds != 0
        assert left.large_tokens is None or granted <= left.large_tokens
        if left.large_cost is not None:
            assert prices.large.cost(prompt, granted) <= left.large_cost * (1 + 1e-9) + 1e-15
        assert granted >= min(budget.min_tokens, wanted)


@given(budgets, lefts, prices, st.integers(1, 1000), st.integers(0, 3000), st.integers(0, 500))
def test_more_left_never_grants_less(budget, left, prices, wanted, prompt, more):
    richer = replace(
        left,
        large_tokens=None if left.large_tokens is None else left.large_tokens + more,
        large_calls=None if left.large_calls is None else left.large_calls + more,
        large_cost=None if left.large_cost is None else left.large_cost + more / 1e5,
    )

    def granted(left, prompt):
        return grant(budget, left, prices, wanted=wanted, prompt_tokens=prompt)[0]

    assert granted(richer, prompt) >= granted(left, prompt)
    assert granted(left, prompt) >= granted(left, prompt + more)


@pytest.mark.parametrize(
    ("left", "limit"),
    [
        (RemainingBudget(seconds=0), "seconds"),
        (RemainingBudget(large_calls=0), "large_calls"),
        (RemainingBudget(large_tokens=7), "large_tokens"),
        (RemainingBudget(large_cost=1e-9), "large_cost"),
    ],
)
def test_a_refusal_names_the_limit(left, limit):
    paid = Prices(large=ModelPrice(input=1, output=1))
    assert grant(Budget(), left, paid, wanted=100, prompt_tokens=10) == (0, limit)


def test_a_step_shorter_than_min_tokens_may_still_be_asked_for():
    assert grant(
        Budget(min_tokens=64), RemainingBudget(large_tokens=9), Prices(), wanted=5, prompt_tokens=0
    ) == (
        5,
        None,
    )


def test_what_is_free_is_not_limited_by_cost():
    assert grant(Budget(), RemainingBudget(large_cost=0.0), Prices(), wanted=5, prompt_tokens=9) == (5, None)


def test_cached_prompt_tokens_have_a_price_of_their_own():
    assert ModelPrice(input=10, cached_input=1).cost(100, 0, 90) == pytest.approx(190e-6)
    assert ModelPrice(input=10).cost(100, 0, 90) == pytest.approx(1000e-6)


def test_what_is_counted_of_the_large_model_can_be_limited():
    assert tuple(LargeLimits.model_fields) == LargeUsage._fields
    assert RemainingBudget.__slots__ == (*LargeUsage._fields, "seconds")


def test_what_is_left_is_never_negative():
    spend = zero_usage()
    spend["large"]["output_tokens"], spend["large"]["calls"], spend["seconds"] = 50, 9, 9.0
    budget = Budget(large_tokens=40, large_calls=2, seconds=1)
    assert budget.left(spend, Prices()) == RemainingBudget(large_tokens=0, large_calls=0, seconds=0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"large_tokens": 1.5},
        {"large_tokens": "many"},
        {"large_cost": float("inf")},
        {"large_cost": float("-inf")},
        {"seconds": float("nan")},
        {"tokens": 5},
        {"min_tokens": 0},
        {"on_exhausted": "wait"},
    ],
)
def test_a_limit_that_cannot_be_meant_is_refused_by_its_name(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Budget(**wrong)


# A remainder that an application has computed


PRICED = {"large": {"output": 10}}
USED_UP = [
    {"large_tokens": 0},
    {"large_tokens": 7},
    {"large_tokens": -3},
    {"large_calls": 0},
    {"large_calls": -1},
    {"large_cost": 0},
    {"large_cost": -1e-9},
    {"large_cost": 1e-9},
]


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("way", ["graph", "call"])
@pytest.mark.parametrize("remainder", USED_UP, ids=str)
def test_a_remainder_that_is_used_up_is_a_spent_limit(make, remainder, way, asynchronously):
    built = {"budget": remainder} if way == "graph" else {}
    called = {"context": TrimContext(budget=remainder)} if way == "call" else {}
    rig = make(policy=lambda seen: "regenerate", prices=PRICED, **built)
    summary = rig.solve(asynchronously=asynchronously, **called)["trim"]
    assert (summary["stopped"], summary["steps"]) == ("finished", {"small": 4, "large": 0})
    assert not rig.large.calls
    limit = next(iter(remainder))
    said = {  # 8 tokens, at a price of 10 per million
        7: "leaves 7, and a call needs 8",
        1e-9: "leaves 1e-09, and a call needs 8e-05 (for 8 tokens to write)",
    }.get(remainder[limit], "is spent")
    assert summary["notes"] == [f"the limit on {limit} {said}: the large model is not called any more"]


@pytest.mark.parametrize("remainder", [{"large_tokens": 0}, {"large_calls": -2}], ids=str)
def test_on_exhausted_says_what_a_remainder_that_is_used_up_does(make, remainder):
    stopping = make(policy=large_only(), budget={**remainder, "on_exhausted": "stop"})
    assert stopping.ask()["trim"]["stopped"] == "budget"
    assert stopping.unasked
    asking = make(
        policy=large_only(), budget={**remainder, "on_exhausted": "ask"}, checkpointer=InMemorySaver()
    )
    thread = {"configurable": {"thread_id": "1"}}
    question = asking.ask(config=thread)["__interrupt__"][0].value
    limit = next(iter(remainder))
    assert (question["limit"], question["budget"][limit]) == (limit, 0)
    summary = asking.graph.invoke(Command(resume={"more": {limit: 50}}), thread)["trim"]
    assert summary["steps"]["large"] == 4
    assert summary["notes"][0] == f"a human raised the limits: {limit} by 50"


@pytest.mark.parametrize("seconds", [0, 0.0, -4.5])
def test_no_seconds_left_end_a_run_before_any_model_is_called(make, seconds):
    rig = make(budget={"seconds": seconds})
    assert rig.ask()["trim"]["stopped"] == "deadline"
    assert rig.unasked


def test_a_run_whose_time_is_up_at_a_decision_says_that_it_ends(make, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rig = make(policy=lambda seen: "regenerate", budget={"seconds": 30})
    score = rig.scorer.score

    def slow(question, steps):
        now[0] += 60
        return score(question, steps)

    rig.scorer.score = slow
    summary = rig.ask()["trim"]
    assert (summary["stopped"], summary["steps"]) == ("deadline", {"small": 1, "large": 0})
    assert summary["notes"] == ["the limit on seconds is reached: the run ends with the steps it has"]
    assert not rig.large.calls


@given(st.integers(-50, 50), st.integers(1, 20))
def test_any_remainder_makes_a_budget(remainder, min_tokens):
    budget = Budget(large_tokens=remainder, min_tokens=min_tokens)
    assert budget.large_tokens == max(0, remainder)
    left = budget.left(zero_usage(), Prices())
    granted, refused = grant(budget, left, Prices(), wanted=100, prompt_tokens=0)
    assert granted == (remainder if remainder >= min_tokens else 0)
    assert (refused == "large_tokens") == (granted == 0)


# Runs under a budget


class Fickle(Policy):
    """Says anything at all, the same for the same seed."""

    needs_score = False

    def next_writer(self, observation):
        return observation.random().choice(["small", "small", "large", "large_to_end"])

    def decide(self, observation):
        return observation.random().choice(["accept", "regenerate", "handover"])


steps = st.lists(
    st.sampled_from(["a", "b c", "d e f g h i j k l m n o p q r s t", "---", "", "x = 4\ny"]),
    min_size=1,
    max_size=8,
)
limits = st.builds(
    dict,
    min_tokens=st.integers(1, 12),
    large_tokens=st.none() | st.integers(-5, 60),
    large_calls=st.none() | st.integers(-1, 4),
    large_cost=st.none() | st.floats(-1e-6, 3e-3),
    on_exhausted=st.sampled_from(["small", "stop"]),
)
PAID = {"large": {"input": 1, "output": 10}, "small": {"input": 0.1, "output": 1}}


@settings(max_examples=120, deadline=None)
@given(
    small=steps,
    large=steps,
    limit=limits,
    seed=st.integers(0, 999),
    policy=st.sampled_from([Fickle(), large_only(), Fickle() | large_only()]),
    max_step_tokens=st.integers(1, 20),
)
def test_no_run_ever_passes_a_limit(make, small, large, limit, seed, policy, max_step_tokens):
    budget = Budget(**limit)
    rig = make(
        small,
        large,
        scorer=None,
        policy=policy,
        budget=budget,
        prices=PAID,
        seed=seed,
        max_steps=10,
        max_step_tokens=max_step_tokens,
    )
    summary = rig.ask()["trim"]
    calls = rig.large.calls
    billed = sum(call["tokens"] for call in calls)
    cost = sum(call["prompt_tokens"] * 1 + call["tokens"] * 10 for call in calls) / 1e6
    assert budget.large_tokens is None or billed <= budget.large_tokens
    assert budget.large_calls is None or len(calls) <= budget.large_calls
    assert budget.large_cost is None or cost <= budget.large_cost * (1 + 1e-9)
    assert all(call["max_tokens"] >= min(budget.min_tokens, max_step_tokens) for call in calls)
    assert summary["usage"]["large"]["output_tokens"] == billed
    assert summary["usage"]["overshoot_tokens"] == 0
    assert len(summary["notes"]) == len(set(summary["notes"]))
    for writer in ("small", "large"):
        spent = sum(call["tokens"] for call in getattr(rig, writer).calls)
        assert summary["tokens"][writer] + summary["tokens"][f"{writer}_discarded"] == spent
        assert summary["tokens"][f"{writer}_discarded"] >= 0


@settings(max_examples=60, deadline=None)
@given(large=steps, large_tokens=st.integers(8, 40), seed=st.integers(0, 99))
def test_a_model_that_ignores_max_tokens_passes_the_limit_in_its_last_call_only(
    make, large, large_tokens, seed
):
    stubborn = ScriptedChatModel(script=large, honours_max_tokens=False)
    rig = make(
        ["a b", "c d", "e f", "g h"],
        stubborn,
        scorer=None,
        policy=Fickle(),
        budget=Budget(large_tokens=large_tokens),
        seed=seed,
        max_step_tokens=9,
    )
    summary = rig.ask()["trim"]
    *earlier, _ = [call["tokens"] for call in stubborn.calls] or [0]
    assert sum(earlier) < large_tokens
    over = sum(max(0, call["tokens"] - call["max_tokens"]) for call in stubborn.calls)
    assert summary["usage"]["overshoot_tokens"] == over
    assert bool(over) == any(f"{counted(over, 'token')} too many" in note for note in summary["notes"])


def regenerating(make, **budget):
    return make(scores={}, policy=lambda o: "regenerate", budget=budget)


def test_when_the_budget_is_spent_the_small_model_goes_on_unscored(make):
    rig = regenerating(make, large_calls=2)
    summary = rig.ask()["trim"]
    assert summary["stopped"] == "finished"
    assert summary["steps"] == {"small": 2, "large": 2}
    assert len(rig.scorer.calls) == 2
    assert summary["notes"] == ["the limit on large_calls is spent: the large model is not called any more"]


def test_or_the_run_stops_with_the_steps_it_has(make):
    rig = regenerating(make, large_calls=2, on_exhausted="stop")
    result = rig.ask()
    assert result["trim"]["stopped"] == "budget"
    assert result["messages"][-1].content == "LARGE one\n\nLARGE two"
    assert len(rig.small.calls) == 2


def test_the_last_large_call_gets_what_is_left(make):
    rig = regenerating(make, large_tokens=5, min_tokens=2)
    rig.ask()
    assert [call["max_tokens"] for call in rig.large.calls] == [5, 2]


def test_a_step_cut_by_the_budget_is_carried_on_by_the_small_model(make):
    rig = make(
        ["small one", "and a half", "end"],
        ["LARGE one with many words"],
        policy=lambda o: "regenerate",
        budget={"large_tokens": 2, "min_tokens": 2},
    )
    assert rig.ask()["messages"][-1].content.startswith("LARGE oneand a half")
    assert rig.prompts("small")[1][-1].content == "LARGE one"


def test_a_refused_wish_is_in_the_record(make):
    # After a step of 3 tokens, 5 are left: too few for a handover, enough for a step of 4.
    rig = make(
        policy=lambda o: "handover" if o.index else "regenerate",
        budget={"large_tokens": 8},
        max_step_tokens=4,
    )
    stream = rig.graph.stream({"messages": "2 + 2?"}, stream_mode="custom")
    decisions = [event for event in stream if event["event"] == "decision"]
    assert (decisions[0]["decision"], decisions[0]["discarded"]["text"]) == ("regenerate", "small one")
    assert (decisions[1]["decision"], decisions[1]["exhausted_limit"]) == ("accept", "large_tokens")
    assert "discarded" not in decisions[1]


def test_the_price_of_the_prompt_counts(make):
    cheap = make(policy=large_only(), budget={"large_cost": 1e-5}, prices={"large": {"output": 1e-3}})
    assert cheap.ask()["trim"]["steps"]["large"] == 4  # the prompt has no price
    dear = make(policy=large_only(), budget={"large_cost": 1e-5}, prices={"large": {"input": 1}})
    assert dear.ask()["trim"]["steps"]["large"] == 0
    assert not dear.large.calls


def test_an_adapter_that_counts_is_asked_for_the_size_of_the_prompt(make):
    class Counting(ScriptedChatModel):
        def count_prompt_tokens(self, messages):
            return 1

    rig = make(
        large=Counting(script=["one"]),
        policy=large_only(),
        budget={"large_cost": 1e-5},
        prices={"large": {"input": 1}},
    )
    assert rig.ask()["trim"]["steps"]["large"] == 1


def test_the_bound_of_a_model_asked_by_prompt_covers_all_that_is_sent(make):
    class Foreign(ScriptedChatModel):
        continues_exactly = False

        def _rest(self, prefix):
            return "one"

    class Counting(Foreign):
        def count_prompt_tokens(self, messages):
            return len(messages)

    foreign, counting = Foreign(script=[]), Counting(script=[])
    wrapped = ContinueByPrompt(foreign)
    for messages in ([HumanMessage("2 + 2?")], [HumanMessage("2 + 2?"), AIMessage("one\n\n")]):
        for stop in (["\n\n"], None):
            wrapped.invoke(messages, stop=stop)
            sent = sum(len(message.text.encode()) for message in foreign.calls[-1]["messages"])
            assert sent < prompt_bound(wrapped, messages) < sent + 500
    assert prompt_bound(ContinueByPrompt(counting), [HumanMessage("2?"), AIMessage("one")]) == 3
    assert counts_itself(ContinueByPrompt(counting))
    assert counts_itself(counting.bind(seed=1))
    assert not counts_itself(wrapped)
    # The question and the instruction would do; with the request by prompt it is too dear for one call.
    limits = {"policy": large_only(), "budget": {"large_cost": 3e-4}, "prices": {"large": {"input": 1}}}
    assert make(large=ScriptedChatModel(script=["one"]), **limits).ask()["trim"]["steps"]["large"] == 1
    calls = len(foreign.calls)
    assert make(large=foreign, **limits).ask()["trim"]["steps"]["large"] == 0
    assert len(foreign.calls) == calls


async def test_counting_a_prompt_does_not_block_the_event_loop(make):
    class Slow(ScriptedChatModel):
        def count_prompt_tokens(self, messages):
            with pytest.raises(RuntimeError, match="no running event loop"):
                asyncio.get_running_loop()
            return 1

    rig = make(
        large=Slow(script=["one"]),
        policy=large_only(),
        budget={"large_cost": 1e-5},
        prices={"large": {"input": 1}},
    )
    assert (await rig.aask())["trim"]["steps"]["large"] == 1


def test_large_only_asks_a_model_that_does_not_end_once_and_stops(make):
    rig = make(large=lambda prefix: "word " * 10_000, policy=large_only(), max_steps=4, max_step_tokens=16)
    summary = rig.ask()["trim"]
    assert len(rig.large.calls) == 1
    assert summary["usage"]["large"]["output_tokens"] == 64
    assert summary["stopped"] == "max_steps"


def test_large_only_goes_on_small_where_the_budget_cuts_it(make):
    rig = make(policy=large_only(), budget={"large_tokens": 2, "min_tokens": 2}, max_step_tokens=16)
    result = rig.ask()
    assert result["trim"]["usage"]["large"]["output_tokens"] == 2
    assert result["trim"]["stopped"] == "finished"
    assert result["trim"]["steps"]["small"] >= 1


def test_a_budget_does_not_hinder_a_run_that_spends_nothing(make):
    rig = make(policy=small_only(), budget={"large_calls": 1, "on_exhausted": "stop"})
    assert rig.ask()["trim"]["notes"] == []


def test_a_limit_on_money_needs_prices(make):
    with pytest.raises(SettingsError, match=r"budget\.large_cost is 0\.5, but the large model has no price"):
        make(budget={"large_cost": 0.5})
    rig = make()
    with pytest.raises(SettingsError, match="has no price"):
        rig.ask(context={"budget": {"large_cost": 0.5}})
    assert rig.unasked
    make(budget={"large_cost": 0.5}, prices={"large": {"output": 1}}).ask()


def test_a_limit_on_cost_is_refused_where_a_cache_is_dearer_than_what_bounds_a_prompt(make):
    prices = {"large": {"output": 1, "cached_input": 0.1}}
    with pytest.raises(SettingsError, match=r"prices\.large\.cached_input is 0\.1.*budget\.large_cost"):
        make(prices=prices, budget={"large_cost": 0.5})
    make(prices=prices, budget={"large_tokens": 5})


@pytest.mark.parametrize(
    ("make", "reported"),
    [
        (lambda: Budget(large_token=5), r"large_token\n  unknown field, did you mean large_tokens\?"),  # type: ignore[call-arg]
        (lambda: Quota(tokens=5), r"tokens\n  unknown field.* There are: large_tokens"),  # type: ignore[call-arg]
        (lambda: TrimContext(allowances={}), "unknown field, it is called quotas now"),  # type: ignore[call-arg]
        (lambda: TrimContext(budget={"calls": 1}), r"budget\.calls\n  unknown field"),  # type: ignore[typeddict-item]
    ],
)
def test_an_unknown_field_is_refused_with_the_names_that_there_are(make, reported):
    with pytest.raises(ValidationError, match=reported):
        make()
