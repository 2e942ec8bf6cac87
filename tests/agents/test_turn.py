"""Tests of an agent's turns: their hard budget, over crashes too; failures; which tool calls are executed."""

import asyncio
import itertools
import threading
from types import SimpleNamespace

import pytest
from agent_rig import LARGE, SMALL, WRONG, build, calling, multiply, talk, turns
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents.structured_output import ProviderStrategy, StructuredOutputValidationError, ToolStrategy
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.messages.tool import invalid_tool_call
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel, Field

from trim_graph import Budget, ModelPrice, Prices, ScorerError
from trim_graph.adapters import ModelServerError
from trim_graph.budget.ledger import LargeUsage, MemoryLedger
from trim_graph.policies import Policy, large_only, random_rate, small_only
from trim_graph.testing import ScriptedToolModel

UNEXECUTED = "the agent has ended before its last draft was accepted: no tool call of it is executed"


PRICES = Prices(large=ModelPrice(input=1e6, output=2e6))


both_ways = pytest.mark.parametrize("asynchronously", [False, True])


# Limits hold


@settings(max_examples=40, deadline=None)
@given(
    limit=st.integers(8, 60),
    calls=st.none() | st.integers(1, 3),
    per=st.sampled_from(["question", "thread"]),
    words=st.integers(1, 30),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
    min_tokens=st.integers(1, 8),
)
def test_no_question_and_no_thread_spends_more_than_its_limits(limit, calls, per, words, rate, min_tokens):
    budget = Budget(large_tokens=limit, large_calls=calls, min_tokens=min_tokens)
    rig = build(
        talk(2, 3, "s"),
        talk(2, words, "l"),
        policy=random_rate(rate),
        budget=budget,
        budget_per=per,
        agent={"checkpointer": InMemorySaver()},
    )
    thread = {"configurable": {"thread_id": "1"}}
    for _ in range(2):
        before = len(rig.large.calls)
        result = rig.ask(config=thread)
        counted = rig.large.calls if per == "thread" else rig.large.calls[before:]
        assert sum(call["tokens"] for call in counted) <= limit
        assert calls is None or len(counted) <= calls
        assert result["trim"]["stopped"] == "finished"
        spend = result["trim"]["usage"]
        assert spend["large"]["output_tokens"] == sum(call["tokens"] for call in rig.large.calls[before:])
        assert spend["large"]["calls"] == len(rig.large.calls[before:])
        assert all(count >= 0 for count in result["trim"]["tokens"].values())


def test_a_large_calls_tokens_are_cut_to_what_is_left():
    rig = build(talk(1, 3, "s"), talk(1, 3, "l"), policy=large_only(), budget=Budget(large_tokens=25))
    rig.ask()
    assert [call["max_tokens"] for call in rig.large.calls] == [25, 25 - rig.large.calls[0]["tokens"]]


def test_a_models_own_lower_limit_stays():
    class Limited(ScriptedToolModel):
        max_tokens: int = 40

    rig = build(Limited(script=SMALL), Limited(script=LARGE))
    rig.ask()
    assert {call["max_tokens"] for call in (*rig.small.calls, *rig.large.calls)} == {40}


def test_a_large_turn_cut_off_by_the_budget_gives_way_to_the_small_ones():
    rig = build(large=[multiply(12, 12, by="large-" * 20), "x"], budget=Budget(large_tokens=3, min_tokens=1))
    result = rig.ask()
    assert rig.ran == [("multiply", 12, 21)]
    assert turns(result)[0].tool_calls == SMALL[0].tool_calls
    assert result["trim"]["tokens"]["large_discarded"] == 3
    reported = "the large model's turn was cut off at 3 tokens"
    assert reported in result["trim"]["notes"]
    events = rig.agent.stream({"messages": [("user", "12 * 12?")]}, stream_mode="custom")
    decided = [e for e in events if e["event"] == "decision"]
    assert [d["decision"] for d in decided] == ["regenerate", "accept"]
    assert (decided[1]["fallback"], decided[1]["score"]) == (reported, 0.1)


def test_a_large_turn_cut_off_where_there_is_no_draft_is_written_small():
    rig = build(policy=large_only(), budget=Budget(large_tokens=3, min_tokens=1))
    result = rig.ask()
    assert result["trim"]["steps"] == {"small": 2, "large": 0}
    assert rig.ran == [("multiply", 12, 21)]


def test_a_model_that_ignores_its_limit_overshoots_by_one_call_and_is_noted():
    loud = ScriptedToolModel(script=talk(2, 30, "l"), name="huge", honours_max_tokens=False)
    rig = build(talk(2, 3, "s"), loud, policy=random_rate(1.0), budget=Budget(large_tokens=20))
    result = rig.ask()
    (call,) = loud.calls
    assert call["max_tokens"] == 20
    over = call["tokens"] - 20
    assert result["trim"]["usage"]["overshoot_tokens"] == over
    assert f"wrote {over} tokens too many" in result["trim"]["notes"][-1]
    assert result["trim"]["steps"] == {"small": 2, "large": 1}


def test_the_limit_on_cost_counts_the_prompt_with_its_tools():
    dear = Prices(large=ModelPrice(input=1e6, output=1.0))
    conversation = len("What?") + 16
    rig = build(policy=large_only(), prices=dear, budget=Budget(large_cost=conversation + 50.0))
    result = rig.ask("What?")
    assert rig.large.calls == []
    left = conversation + 50.0
    assert f"the limit on large_cost leaves {left:g}, and a call needs " in result["trim"]["notes"][0]
    rig = build(policy=large_only(), prices=dear, budget=Budget(large_cost=conversation + 50.0), tools=False)
    assert turns(rig.ask("What?"))


# What happens then


@both_ways
def test_a_spent_budget_leaves_the_agent_to_the_small_model(asynchronously):
    rig = build(talk(3, 3, "s"), talk(3, 3, "l"), policy=random_rate(1.0), budget=Budget(large_calls=2))
    result = rig.ask(asynchronously=asynchronously)
    assert result["trim"]["steps"] == {"small": 2, "large": 2}
    assert result["trim"]["notes"] == [
        "the limit on large_calls is spent: the large model is not called any more"
    ]


@both_ways
@pytest.mark.parametrize(
    "remainder", [{"large_tokens": 0}, {"large_tokens": -9}, {"large_calls": 0}], ids=str
)
def test_a_remainder_that_is_used_up_leaves_the_agent_to_the_small_model(remainder, asynchronously):
    rig = build(talk(2, 3, "s"), talk(2, 3, "l"), policy=random_rate(1.0), agent={"context_schema": dict})
    result = rig.ask(asynchronously=asynchronously, context={"trim": {"budget": remainder}})
    assert result["trim"]["steps"] == {"small": 3, "large": 0}
    assert result["trim"]["notes"] == [
        f"the limit on {next(iter(remainder))} is spent: the large model is not called any more"
    ]


@both_ways
def test_a_spent_budget_ends_the_agent_where_that_is_set(asynchronously):
    rig = build(
        talk(3, 3, "s"),
        talk(3, 3, "l"),
        policy=large_only(),
        budget=Budget(large_calls=2, on_exhausted="stop"),
    )
    result = rig.ask(asynchronously=asynchronously)
    last = result["messages"][-1]
    why = "the budget leaves no further call of the large model"
    assert last.text == f"Stopped before an answer was found: {why}."
    assert last.response_metadata["trim"] == result["trim"]
    assert result["trim"]["stopped"] == "budget"
    assert (len(rig.ran), rig.small.calls) == (2, [])


def test_the_most_turns_of_a_question_end_the_agent():
    rig = build(talk(9, 1, "s"), policy=small_only(), scorer=None, max_steps=3)
    result = rig.ask()
    assert result["trim"]["stopped"] == "max_steps"
    assert "its limit of 3 turns is reached" in turns(result)[-1].text
    assert len(rig.small.calls) == 3


@both_ways
def test_a_deadline_ends_the_agent_before_the_next_turn(asynchronously, monkeypatch):
    clock = itertools.count(0, 10)
    fake = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("trim_graph.calls.model_call.time", fake)
    rig = build(budget=Budget(seconds=5))
    result = rig.ask(asynchronously=asynchronously)
    assert result["trim"]["stopped"] == "deadline"
    assert "its limit of 5.0 seconds is reached" in turns(result)[-1].text
    # Nobody could decide on the draft, and no turn would follow its tool.
    assert rig.ran == []
    assert [turn.tool_calls for turn in turns(result)] == [[]]
    assert UNEXECUTED in result["trim"]["notes"]
    assert (rig.large.calls, rig.scorer.calls) == ([], [])


@both_ways
def test_an_answer_that_is_there_at_the_deadline_is_the_agents(asynchronously, monkeypatch):
    clock = itertools.count(0, 10)
    fake = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("trim_graph.calls.model_call.time", fake)
    rig = build(["small answer"], budget=Budget(seconds=5))
    result = rig.ask(asynchronously=asynchronously)
    assert (result["messages"][-1].text, result["trim"]["stopped"]) == ("small answer", "finished")
    assert UNEXECUTED not in result["trim"]["notes"]


@both_ways
@pytest.mark.parametrize("on_scorer_error", ["raise", "accept", "regenerate"])
def test_no_tool_call_is_executed_that_a_scorer_did_not_rate_in_time(
    on_scorer_error, asynchronously, monkeypatch
):
    monkeypatch.setattr("trim_graph.nodes.score_step.GRACE", 0.01)
    monkeypatch.setattr("trim_graph.runtime.GRACE", 0.01)
    released = threading.Event()

    class Hanging:
        def score(self, question, steps):
            released.wait()

        async def ascore(self, question, steps):
            await asyncio.Event().wait()

    rig = build(scorer=Hanging(), budget=Budget(seconds=0.2), on_scorer_error=on_scorer_error)
    result = rig.ask(asynchronously=asynchronously)
    released.set()
    assert (rig.ran, result["trim"]["stopped"]) == ([], "deadline")
    assert UNEXECUTED in result["trim"]["notes"]


@both_ways
@pytest.mark.parametrize("small", [SMALL, ["small answer"]], ids=["tool call", "answer"])
def test_a_rejected_tool_call_is_not_executed_where_a_spent_budget_ends_the_agent(small, asynchronously):
    class Contended(MemoryLedger):
        def reserve(self, account, entry, ask):
            super().reserve(account, "another's", lambda used: LargeUsage(95, 1, 0.0))
            return super().reserve(account, entry, ask)

    rig = build(
        small,
        ledger=Contended(),
        quotas={"thread": {"large_tokens": 100}},
        budget=Budget(on_exhausted="stop"),
        scores={WRONG: 0.1, "small answer": 0.1},
    )
    result = rig.ask(config={"configurable": {"thread_id": "1"}}, asynchronously=asynchronously)
    assert (rig.large.calls, rig.ran) == ([], [])
    calls_tools = small is SMALL
    assert result["trim"]["stopped"] == ("budget" if calls_tools else "finished")
    assert (UNEXECUTED in result["trim"]["notes"]) == calls_tools
    assert (result["messages"][-1].text == "small answer") != calls_tools


@pytest.fixture
def hanging():
    released = threading.Event()

    class Hanging(ScriptedToolModel):
        def _generate(self, *given, **options):
            released.wait()
            raise RuntimeError("nobody waits any more")

        async def _agenerate(self, *given, **options):
            await asyncio.Event().wait()

    yield Hanging(script=SMALL)
    released.set()


@both_ways
def test_a_model_that_hangs_is_given_up_at_the_deadline(asynchronously, hanging, monkeypatch):
    monkeypatch.setattr("trim_graph.calls.model_call.GRACE", 0.01)
    monkeypatch.setattr("trim_graph.runtime.GRACE", 0.01)
    rig = build(hanging, budget=Budget(seconds=0.02))
    result = rig.ask(asynchronously=asynchronously)
    assert result["trim"]["stopped"] == "deadline"
    assert "cut off by the limit on seconds" in result["trim"]["notes"][0]


# A question's budget, a thread's budget


def test_a_budget_is_each_questions_or_the_threads():
    thread = {"configurable": {"thread_id": "1"}}
    spent = {}
    for per in ("question", "thread"):
        rig = build(
            policy=random_rate(1.0),
            budget=Budget(large_calls=3),
            budget_per=per,
            agent={"checkpointer": InMemorySaver()},
        )
        results = [rig.ask(config=thread) for _ in range(3)]
        spent[per] = [result["trim"]["usage"]["large"]["calls"] for result in results]
        assert [sum(result["trim"]["steps"].values()) for result in results] == [2, 2, 2]
    assert spent == {"question": [2, 2, 2], "thread": [2, 1, 0]}


def test_threads_do_not_share_a_threads_budget():
    rig = build(
        policy=random_rate(1.0),
        budget=Budget(large_calls=2),
        budget_per="thread",
        agent={"checkpointer": InMemorySaver()},
    )
    for thread in ("1", "2"):
        result = rig.ask(config={"configurable": {"thread_id": thread}})
        assert result["trim"]["usage"]["large"]["calls"] == 2


# Accounts that agents share


@both_ways
@pytest.mark.parametrize("kind", ["user", "thread"])
def test_agents_draw_from_the_accounts_of_users_and_threads(kind, asynchronously):
    ledger = MemoryLedger()
    rig = build(
        policy=random_rate(1.0),
        ledger=ledger,
        quotas={kind: {"large_tokens": 13}},
        agent={"context_schema": dict},
        budget=Budget(min_tokens=1),
    )

    def ask(name):
        config = {"configurable": {"thread_id": name}}
        context = {"trim": {"user": name}}
        return rig.ask(config=config, context=context, asynchronously=asynchronously)["trim"]

    first, second, other = ask("ada"), ask("ada"), ask("grace")
    assert [reported["steps"]["large"] for reported in (first, second, other)] == [2, 0, 2]
    used = sum(call["tokens"] for call in rig.large.calls[:2])
    assert first["accounts"] == {f"{kind}:ada": {"large_tokens": used, "large_calls": 2, "large_cost": 0.0}}
    assert ledger.used(f"{kind}:ada").large_tokens <= 13
    assert f"the limit on large_tokens of {kind}:ada is spent or reserved" in " ".join(second["notes"])
    limits = [call["max_tokens"] for call in rig.large.calls[:2]]
    assert limits == [13, 13 - rig.large.calls[0]["tokens"]]


@both_ways
def test_a_call_that_failed_is_settled_too(asynchronously):
    class Down(ScriptedToolModel):
        def _generate(self, *given, **options):
            raise ValueError("down")

    ledger = MemoryLedger()
    rig = build(
        large=Down(script=[]),
        ledger=ledger,
        quotas={"thread": {"large_tokens": 100}},
        max_step_tokens=30,
    )
    with pytest.raises(ValueError, match="down"):
        rig.ask(config={"configurable": {"thread_id": "1"}}, asynchronously=asynchronously)
    assert ledger.used("thread:1") == LargeUsage(large_tokens=30, large_calls=1)


@both_ways
def test_what_others_take_meanwhile_leaves_the_turn_to_the_small_model(asynchronously):
    class Contended(MemoryLedger):
        def reserve(self, account, entry, ask):
            super().reserve(account, "another's", lambda used: LargeUsage(95, 1, 0.0))
            return super().reserve(account, entry, ask)

    rig = build(ledger=Contended(), quotas={"thread": {"large_tokens": 100}})
    result = rig.ask(config={"configurable": {"thread_id": "1"}}, asynchronously=asynchronously)
    assert rig.large.calls == []
    assert rig.ran == [("multiply", 12, 21)]
    assert result["trim"]["decisions"] == {"regenerate": 1, "accept": 1}


# Crashes


class Crash(BaseException):
    """Ends a process."""


class Crashing(ScriptedToolModel):
    """Dies in its first call."""

    alive: list[bool] = Field(default_factory=list)

    def _generate(self, *given, **options):
        if not self.alive:
            self.alive.append(True)
            raise Crash
        return super()._generate(*given, **options)


@pytest.fixture
def crash(monkeypatch):
    """An agent that dies in a turn, and resumes as another process."""

    def run(writer, resumed_with=None, **options):
        model = Crashing(script={"small": SMALL, "large": LARGE}[writer], name="huge")
        rig = build(**{writer: model}, agent={"checkpointer": InMemorySaver()}, **options)
        thread = {"configurable": {"thread_id": "1"}}
        with pytest.raises(Crash):
            rig.ask(config=thread, durability="sync")
        monkeypatch.setattr("trim_graph.process.NAME", "another")
        return rig, rig.agent.invoke(resumed_with, thread, durability="sync")

    return run


@pytest.mark.parametrize("writer", ["small", "large"])
def test_a_turn_that_a_crash_has_cut_off_is_charged_what_it_may_have_cost(crash, writer):
    rig, result = crash(writer, budget=Budget(large_tokens=100), max_step_tokens=30)
    spend = result["trim"]["usage"]
    assert (spend["unaccounted_tokens"], spend["large"]["calls"]) == (30, 2)
    assert "a call of the large model was cut off by a crash; 30 tokens" in result["trim"]["notes"][0]
    assert result["trim"]["steps"] == {"small": 1, "large": 1}
    assert rig.ran == [("multiply", 12, 12)]


def test_a_crash_that_may_have_used_up_the_budget_leaves_the_turn_to_the_small_model(crash):
    rig, result = crash("large", policy=large_only(), budget=Budget(large_tokens=20))
    assert result["trim"]["usage"]["unaccounted_tokens"] == 20
    assert result["trim"]["steps"] == {"small": 2, "large": 0}
    assert rig.large.calls == []


def test_where_the_large_model_could_not_be_asked_a_crash_costs_nothing(crash):
    _, result = crash("small", policy=small_only(), scorer=None)
    assert result["trim"]["usage"]["unaccounted_tokens"] == 0


def test_a_threads_budget_is_charged_for_a_crash_that_nobody_went_on_from(crash):
    question = {"messages": [("user", "Once more: what is 12 * 12?")]}
    options = {"budget": Budget(large_tokens=40), "max_step_tokens": 30}
    for per, left in (("thread", 10), ("question", 30)):
        rig, result = crash("large", question, budget_per=per, **options)
        assert result["trim"]["usage"]["unaccounted_tokens"] == 0
        assert result["trim"]["steps"] == {"small": 1, "large": 1}
        assert [call["max_tokens"] for call in rig.large.calls] == [left]


# Half a tool call


def cut(args, text=""):
    """A turn at its limit, whose half tool call parses nevertheless."""
    made = calling(("multiply", args), ("query", {"sql": "DELETE FROM city"}), text=text, by="cut-")
    return AIMessage(text, tool_calls=made.tool_calls, response_metadata={"finish_reason": "length"})


@both_ways
def test_a_tool_call_that_was_cut_off_is_not_executed_and_the_model_gets_an_error(asynchronously):
    rig = build([cut({"a": 1, "b": 1}), multiply(12, 12, by="s"), "done"], scores={})
    result = rig.ask(asynchronously=asynchronously)
    assert rig.ran == [("multiply", 12, 12)]
    reported = [m for m in result["messages"] if isinstance(m, ToolMessage)]
    assert [(m.tool_call_id, m.status) for m in reported] == [
        ("cut-0", "error"),
        ("cut-1", "error"),
        ("s0", "success"),
    ]
    assert "cut off" in reported[0].text
    assert "a turn of the small model was cut off at 4096 tokens" in result["trim"]["notes"]


def test_of_two_turns_that_were_cut_off_the_large_ones_stays_and_is_not_executed():
    rig = build(
        [cut({"a": 1, "b": 1}), "done"],
        [cut({"a": 2, "b": 2})],
        policy=lambda seen: "accept" if seen.index else "regenerate",
        scores={},
    )
    result = rig.ask()
    assert rig.ran == []
    assert turns(result)[0].tool_calls[0]["args"] == {"a": 2, "b": 2}


def test_a_structured_answer_that_was_cut_off_is_asked_for_again():
    class Verdict(BaseModel):
        """The verdict."""

        reason: str

    def verdict(reason, **metadata):
        made = calling(("Verdict", {"reason": reason}), by="s")
        return AIMessage("", tool_calls=made.tool_calls, response_metadata=metadata)

    rig = build(
        [verdict("It is ri", finish_reason="length"), verdict("It is right.")],
        scores={},
        agent={"response_format": ToolStrategy(Verdict)},
    )
    result = rig.ask()
    assert result["structured_response"].reason == "It is right."
    assert result["trim"]["steps"]["small"] == 2


def test_a_last_answer_that_was_cut_off_ends_the_agent_as_any_other():
    rig = build(["a long answer " * 9], scores={}, max_step_tokens=8)
    result = rig.ask()
    assert result["trim"]["stopped"] == "finished"
    assert result["trim"]["notes"] == ["a turn of the small model was cut off at 8 tokens"]


CUT = {
    "OpenAI": {"finish_reason": "length"},
    "Anthropic": {"finish_reason": None, "stop_reason": "max_tokens"},
    "Google": {"finish_reason": "MAX_TOKENS"},
    "Mistral": {"finish_reason": "model_length"},
    "Ollama": {"finish_reason": None, "done_reason": "length"},
    "OpenAI's Responses API": {
        "finish_reason": None,
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
    },
}


@both_ways
@pytest.mark.parametrize("writer", ["small", "large"])
@pytest.mark.parametrize("turns_allowed", [1, 9], ids=["the last turn", "a turn"])
@pytest.mark.parametrize("provider", CUT)
def test_no_call_of_a_turn_that_was_cut_off_is_executed_whatever_its_provider_calls_it(
    provider, turns_allowed, writer, asynchronously
):
    half = AIMessage(
        "",
        tool_calls=cut({"a": 6, "b": 6}).tool_calls,
        invalid_tool_calls=[invalid_tool_call(name="query", args='{"sql": "DEL', id="cut-9", error=None)],
        response_metadata=CUT[provider],
    )
    rig = build(
        **{writer: [half, "done"]},
        policy=large_only() if writer == "large" else small_only(),
        scorer=None,
        max_steps=turns_allowed,
    )
    result = rig.ask(asynchronously=asynchronously)
    assert rig.ran == []
    reported = [m for m in result["messages"] if isinstance(m, ToolMessage)]
    assert {m.tool_call_id for m in reported} >= {"cut-0", "cut-1"}
    assert {m.status for m in reported} == {"error"}
    assert result["trim"]["stopped"] == ("max_steps" if turns_allowed == 1 else "finished")


# A structured answer that was cut off


class Verdict(BaseModel):
    """The verdict."""

    reason: str


def verdict(strategy, reason, **metadata):
    """A turn that gives a verdict, whose ``metadata`` may say that it was cut off."""
    if strategy is ProviderStrategy:
        written = f'{{"reason": "{reason}"}}'
        return AIMessage(written[:-5] if metadata else written, response_metadata=metadata)
    made = calling(("Verdict", {} if metadata else {"reason": reason}), by="s")
    return AIMessage("", tool_calls=made.tool_calls, response_metadata=metadata)


both_strategies = pytest.mark.parametrize("strategy", [ProviderStrategy, ToolStrategy])


@both_ways
@both_strategies
@pytest.mark.parametrize("drafted", [True, False])
def test_a_structured_answer_that_the_budget_cuts_off_gives_way_to_the_small_models(
    drafted, strategy, asynchronously
):
    large = verdict(strategy, "because " * 30)
    rig = build(
        [verdict(strategy, "so it is")],
        [large],
        policy=random_rate(1.0) if drafted else large_only(),
        scorer=None,
        budget=Budget(large_tokens=20),
        agent={"response_format": strategy(Verdict)},
    )
    result = rig.ask(asynchronously=asynchronously)
    assert result["structured_response"] == Verdict(reason="so it is")
    assert result["trim"]["tokens"]["large_discarded"] == 20
    assert result["trim"]["notes"][0] == "the large model's turn was cut off at 20 tokens"
    assert (result["trim"]["stopped"], result["trim"]["steps"]["small"]) == ("finished", 1)
    assert result["trim"]["usage"]["large"]["failed_calls"] == 0
    assert len(rig.small.calls) == 1


@both_ways
@pytest.mark.parametrize(
    "strategy", [ProviderStrategy(Verdict), ToolStrategy(Verdict, handle_errors=False)], ids=["own", "tool"]
)
@pytest.mark.parametrize("way", ["raise", "accept"])
def test_half_a_structured_answer_that_nothing_can_replace_is_the_large_models_failure(
    way, strategy, asynchronously
):
    kind = type(strategy)
    rig = build(
        [verdict(kind, "so it is")],
        [verdict(kind, "because", finish_reason="length")],
        policy=large_only(),
        scorer=None,
        on_large_error=way,
        agent={"response_format": strategy},
    )
    if way == "raise":
        with pytest.raises(StructuredOutputValidationError):
            rig.ask(asynchronously=asynchronously)
        return
    result = rig.ask(asynchronously=asynchronously)
    assert result["structured_response"] == Verdict(reason="so it is")
    spend = result["trim"]["usage"]["large"]
    assert (spend["failed_calls"], spend["output_tokens"]) == (1, rig.large.calls[0]["tokens"])
    assert result["trim"]["usage"]["unaccounted_tokens"] == 0


@both_ways
@pytest.mark.parametrize("way", ["raise", "accept"])
@pytest.mark.parametrize("drafted", [True, False])
def test_a_structured_answer_that_does_not_fit_is_the_large_models_failure(drafted, way, asynchronously):
    rig = build(
        [verdict(ProviderStrategy, "so it is")],
        ["not JSON"],
        policy=random_rate(1.0) if drafted else large_only(),
        scorer=None,
        on_large_error=way,
        budget=Budget(large_tokens=20),
        agent={"response_format": ProviderStrategy(Verdict)},
    )
    if way == "raise":
        with pytest.raises(StructuredOutputValidationError):
            rig.ask(asynchronously=asynchronously)
        return
    result = rig.ask(asynchronously=asynchronously)
    assert result["structured_response"] == Verdict(reason="so it is")
    assert result["trim"]["tokens"]["large_discarded"] == 3
    assert "StructuredOutputValidationError" in result["trim"]["notes"][0]


@both_ways
@pytest.mark.parametrize("way", ["raise", "large"])
@pytest.mark.parametrize(
    "wrote", ["not JSON", '{"reason": "and so it went on and on"}'], ids=["unfit", "cut"]
)
def test_a_structured_answer_that_does_not_fit_is_the_small_models_failure(wrote, way, asynchronously):
    rig = build(
        [wrote],
        [verdict(ProviderStrategy, "so")],
        policy=small_only(),
        scorer=None,
        on_small_error=way,
        max_step_tokens=5,
        agent={"response_format": ProviderStrategy(Verdict)},
    )
    if way == "raise":
        with pytest.raises(StructuredOutputValidationError):
            rig.ask(asynchronously=asynchronously)
        return
    result = rig.ask(asynchronously=asynchronously)
    assert result["structured_response"] == Verdict(reason="so")
    assert result["trim"]["usage"]["small"]["failed_calls"] == 1


def test_half_a_structured_answer_after_which_nothing_works_ends_the_agent():
    rig = build(
        ["not JSON"],
        [verdict(ProviderStrategy, "because " * 30)],
        policy=large_only(),
        scorer=None,
        on_small_error="large",
        budget=Budget(large_tokens=20),
        agent={"response_format": ProviderStrategy(Verdict)},
    )
    result = rig.ask()
    assert (result["trim"]["stopped"], result["structured_response"]) == ("failed", None)
    assert result["trim"]["usage"]["large"]["output_tokens"] == 20


@both_ways
def test_a_schema_alone_is_the_models_own_way_where_it_has_one(asynchronously):
    scripts = [verdict(ProviderStrategy, "so it is")], [verdict(ProviderStrategy, "because " * 30)]
    native = {"structured_output": True}
    rig = build(
        *(ScriptedToolModel(script=script, profile=native) for script in scripts),
        policy=large_only(),
        scorer=None,
        budget=Budget(large_tokens=20),
        agent={"response_format": Verdict},
    )
    assert rig.ask(asynchronously=asynchronously)["structured_response"] == Verdict(reason="so it is")


# A model or the scorer fails: the agent does as declared, and every token is counted


class Failing(ScriptedToolModel):
    """Fails in its first calls."""

    failures: int = 99

    def _generate(self, *given, **options):
        if self.failures:
            self.failures -= 1
            self.calls.append(options)
            raise ModelServerError("the server is down", begun=True)
        return super()._generate(*given, **options)


def broken(question, steps):
    raise ScorerError("the scorer is down")


@pytest.mark.parametrize("part", ["small", "large"])
@both_ways
def test_a_failure_is_raised_where_nothing_else_is_declared(part, asynchronously):
    rig = build(**{part: Failing(script=SMALL)})
    with pytest.raises(ModelServerError, match="the server is down"):
        rig.ask(asynchronously=asynchronously)
    assert rig.ran == []


def test_a_failure_of_the_scorer_is_raised_where_nothing_else_is_declared():
    with pytest.raises(ScorerError, match="the scorer is down"):
        build(scorer=broken).ask()


@both_ways
@pytest.mark.parametrize(("way", "b"), [("accept", 21), ("regenerate", 12)])
def test_without_a_score_a_turn_is_accepted_or_written_again(way, b, asynchronously):
    rig = build(scorer=broken, on_scorer_error=way)
    result = rig.ask(asynchronously=asynchronously)
    assert rig.ran == [("multiply", 12, b)]
    assert result["trim"]["decisions"] == {way: 2}
    assert result["trim"]["notes"] == ["the scorer failed: ScorerError: the scorer is down"]


@both_ways
def test_where_the_large_model_fails_the_small_ones_turn_stays(asynchronously):
    rig = build(large=Failing(script=LARGE, name="huge"), on_large_error="accept", max_step_tokens=50)
    result = rig.ask(asynchronously=asynchronously)
    assert rig.ran == [("multiply", 12, 21)]
    assert turns(result)[0].tool_calls == SMALL[0].tool_calls
    assert result["trim"]["usage"]["unaccounted_tokens"] == 50
    assert "the large model failed: ModelServerError: the server is down" in result["trim"]["notes"]


def test_where_the_large_model_was_to_write_the_small_one_does():
    rig = build(large=Failing(script=LARGE), policy=large_only(), on_large_error="accept")
    assert rig.ask()["trim"]["steps"] == {"small": 2, "large": 0}


@pytest.mark.parametrize("per", ["question", "thread"])
def test_a_large_model_that_keeps_failing_is_given_up_but_asked_again_for_the_next_question(per):
    large = Failing(script=talk(5, 1, "l"), failures=3)
    thread = {"configurable": {"thread_id": "1"}}
    rig = build(
        talk(5, 1, "s"),
        large,
        policy=random_rate(1.0),
        on_large_error="accept",
        budget_per=per,
        agent={"checkpointer": InMemorySaver()},
    )
    result = rig.ask(config=thread)
    assert len(large.calls) == 3
    assert "the large model failed 3 times: it is not called any more" in result["trim"]["notes"]
    result = rig.ask(config=thread)
    assert result["trim"]["steps"] == {"small": 0, "large": 6}
    assert result["trim"]["usage"]["large"]["failed_calls"] == 0


@both_ways
def test_where_the_small_model_fails_the_large_one_writes(asynchronously):
    rig = build(small=Failing(script=SMALL, failures=1), on_small_error="large")
    result = rig.ask(asynchronously=asynchronously)
    assert rig.ran == [("multiply", 12, 12)]
    assert result["trim"]["steps"] == {"small": 1, "large": 1}
    assert result["trim"]["usage"]["small"]["failed_calls"] == 1


@both_ways
@pytest.mark.parametrize("part", ["small", "large", "scorer"])
def test_a_conversation_that_has_grown_too_long_is_an_error_that_others_may_act_on(part, asynchronously):
    """LangChain's middleware shortens it then, which an agent that has ended never reaches."""

    class Full(ScriptedToolModel):
        def _generate(self, messages, *given, **options):
            if len(messages) > 3:
                raise ContextOverflowError("too long")
            return super()._generate(messages, *given, **options)

    def judge(question, steps):
        if len(steps) > 1:
            raise ScorerError("no score") from ContextOverflowError("too long")
        return [0.1]

    parts = {
        "small": {"small": Full(script=talk(3, 1, "s")), "scorer": lambda q, steps: [1.0] * len(steps)},
        "large": {"large": Full(script=talk(3, 1, "l")), "policy": large_only()},
        "scorer": {"scorer": judge},
    }[part]
    with pytest.raises((ContextOverflowError, ScorerError)):
        build(**parts).ask(asynchronously=asynchronously)


def test_where_both_fail_the_agent_ends():
    rig = build(Failing(script=[]), Failing(script=[]), on_small_error="large", on_large_error="accept")
    result = rig.ask()
    assert result["trim"]["stopped"] == "failed"
    assert "no model could write the next turn" in turns(result)[-1].text


def test_a_turn_that_a_filter_has_emptied_is_a_failure():
    filtered = AIMessage("", response_metadata={"finish_reason": "content_filter"})
    rig = build([filtered, "done"], [multiply(12, 12, by="l")], on_small_error="large")
    result = rig.ask()
    assert rig.ran == [("multiply", 12, 12)]
    assert "content_filter" in result["trim"]["notes"][0]
    assert result["trim"]["tokens"]["small_discarded"] == 1


# Whatever models, policy, budget and failures do


turn_calls = st.lists(st.integers(0, 99), max_size=2)


scripts = st.lists(st.tuples(turn_calls, st.integers(0, 12), st.booleans()), min_size=5, max_size=5)


decisions = st.lists(st.sampled_from(["accept", "regenerate", "handover"]), min_size=5, max_size=5)


writers = st.lists(st.sampled_from(["small", "small", "large"]), min_size=5, max_size=5)


budgets = st.builds(
    Budget,
    large_tokens=st.none() | st.integers(1, 40),
    large_calls=st.none() | st.integers(1, 3),
    min_tokens=st.just(1),
    on_exhausted=st.sampled_from(["small", "stop"]),
)


class ListedDecisions(Policy):
    """Answers from lists, by the turn."""

    needs_score = False

    def __init__(self, writers, decisions):
        self.writers, self.decisions = writers, decisions

    def next_writer(self, observation):
        return self.writers[observation.index]

    def decide(self, observation):
        return self.decisions[observation.index]


class Unsteady(ScriptedToolModel):
    """Fails where its script says so."""

    failing: tuple[bool, ...]

    def _generate(self, messages, *given, **options):
        done = sum(isinstance(message, AIMessage) for message in messages)
        if self.failing[done]:
            raise ConnectionError("no")
        return super()._generate(messages, *given, **options)


def model(script, name):
    turns = [
        calling(
            *(("multiply", {"a": number, "b": 1}) for number in calls),
            text=" ".join([name] * words),
            by=f"{name}{index}-",
        )
        for index, (calls, words, _) in enumerate(script)
    ]
    # The agent's last turn, if it comes that far.
    return Unsteady(script=[*turns[:-1], "the end"], name=name, failing=tuple(fails for *_, fails in script))


@settings(max_examples=80, deadline=None)
@given(scripts, scripts, writers, decisions, budgets, st.booleans())
def test_only_accepted_calls_run_and_every_token_counts(
    small, large, wanted, decided, budget, asynchronously
):
    rig = build(
        model(small, "tiny"),
        model(large, "huge"),
        scorer=None,
        policy=ListedDecisions(wanted, decided),
        budget=budget,
        max_steps=5,
        on_small_error="large",
        on_large_error="accept",
    )
    given = {"messages": [("user", "Go.")]}
    result = asyncio.run(rig.agent.ainvoke(given)) if asynchronously else rig.agent.invoke(given)
    turns = [message for message in result["messages"] if isinstance(message, AIMessage)]
    answers = {m.tool_call_id: m for m in result["messages"] if isinstance(m, ToolMessage)}
    calls = [call for turn in turns for call in turn.tool_calls]

    assert sorted(call[1] for call in rig.ran) == sorted(
        call["args"]["a"] for call in calls if answers[call["id"]].status != "error"
    )
    assert len(calls) == len(answers)
    reported = result["trim"]
    named = {"tiny": "small", "huge": "large"}
    wrote = [named.get(turn.response_metadata["model_name"]) for turn in turns]
    assert reported["steps"] == {writer: wrote.count(writer) for writer in ("small", "large")}
    assert (wrote[-1] is None) == (reported["stopped"] != "finished")
    for writer, one in (("small", rig.small), ("large", rig.large)):
        spent = reported["usage"][writer]["output_tokens"]
        unreported = reported["usage"][writer].get("unaccounted_tokens", 0)  # of calls that have failed
        assert spent - unreported == sum(call["tokens"] for call in one.calls)
        assert reported["tokens"][writer] + reported["tokens"][f"{writer}_discarded"] == spent
    charged = reported["usage"]["large"]["output_tokens"] + reported["usage"]["unaccounted_tokens"]
    assert budget.large_tokens is None or charged <= budget.large_tokens
    assert budget.large_calls is None or reported["usage"]["large"]["calls"] <= budget.large_calls


@settings(max_examples=60, deadline=None)
@given(
    st.lists(scripts, min_size=2, max_size=3),
    writers,
    budgets,
    st.sampled_from(["small", "large"]),
    st.booleans(),
)
def test_fallbacks_of_a_writer_keep_within_its_budget_too(written, wanted, budget, writer, asynchronously):
    models = [model(script, f"{writer}-{index}") for index, script in enumerate(written)]
    rig = build(
        **{writer: models[0].with_fallbacks(models[1:])},
        scorer=None,
        policy=ListedDecisions(wanted, ["accept"] * 5),
        budget=budget,
        max_steps=5,
        max_step_tokens=12,
        on_small_error="large",
        on_large_error="accept",
    )
    given = {"messages": [("user", "Go.")]}
    result = asyncio.run(rig.agent.ainvoke(given)) if asynchronously else rig.agent.invoke(given)
    reported = result["trim"]
    answered = sum(call["tokens"] for one in models for call in one.calls)
    unreported = reported["usage"][writer].get("unaccounted_tokens", 0)  # of calls that have failed
    assert reported["usage"][writer]["output_tokens"] - unreported == answered
    charged = reported["usage"]["large"]["output_tokens"] + reported["usage"]["unaccounted_tokens"]
    assert budget.large_tokens is None or charged <= budget.large_tokens
    assert budget.large_calls is None or reported["usage"]["large"]["calls"] <= budget.large_calls
    assert reported["usage"][writer]["calls"] >= sum(len(one.calls) for one in models)
