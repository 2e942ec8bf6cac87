"""A shadow beside an agent: each turn is routed virtually, and no tool runs for the shadow."""

import asyncio

import pytest
from agent_rig import LARGE, QUESTION, SMALL, WRONG, multiply
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from trim_graph import Quota, SettingsError
from trim_graph.policies import Choice, Policy, stay_on_large, threshold
from trim_graph.shadow import ShadowMiddleware, read_shadow
from trim_graph.testing import ScriptedScorer, ScriptedToolModel


class Beside:
    """An agent that answers with one model, and the shadow beside it."""

    def __init__(
        self, file, answers="large", *, small=SMALL, large=LARGE, scorer=None, policy=None, **options
    ):
        self.models = {
            "small": ScriptedToolModel(script=small, name="tiny"),
            "large": ScriptedToolModel(script=large, name="huge"),
        }
        self.ran = []
        self.file = file
        other = "small" if answers == "large" else "large"
        self.other = self.models[other]
        self.shadow = ShadowMiddleware(
            self.other,
            ScriptedScorer({WRONG: 0.1}) if scorer is None else scorer,
            policy=policy or threshold(0.5),
            answers=answers,
            record=file,
            **options,
        )

        @tool("multiply")
        def multiplying(a: int, b: int) -> int:
            """Multiply."""
            self.ran.append((a, b))
            return a * b

        self.agent = create_agent(self.models[answers], tools=[multiplying], middleware=[self.shadow])

    def ask(self, *, asynchronously=False, question=QUESTION):
        given = {"messages": [("user", question)]}
        with self.shadow:
            result = asyncio.run(self.agent.ainvoke(given)) if asynchronously else self.agent.invoke(given)
            assert self.shadow.drain(20)
        return result, sorted(read_shadow(self.file), key=lambda record: record["turn"])


@pytest.mark.parametrize("asynchronously", [False, True])
def test_beside_a_large_model_the_small_one_drafts_each_turn_and_no_tool_runs_twice(file, asynchronously):
    beside = Beside(file, text=True)
    result, records = beside.ask(asynchronously=asynchronously)
    assert beside.ran == [(12, 12)]
    assert result["messages"][-1].text == "LARGE answer"
    assert "trim" not in result
    assert [record["error"] for record in records] == [None, None]
    assert [record["kind"] for record in records] == ["turn", "turn"]
    first, second = (record["would"] for record in records)
    assert (first["share"], first["decisions"], first["places"]) == (1.0, {"regenerate": 1}, [0])
    assert (second["share"], second["decisions"], second["places"]) == (0.0, {"accept": 1}, [])
    # The second draft follows what the agent's own tool call has answered.
    assert beside.other.calls[1]["messages"][-1].text == "144"
    assert len(beside.models["large"].calls) == 2
    assert {record["question"]["text"] for record in records} == {QUESTION}


@pytest.mark.parametrize("asynchronously", [False, True])
def test_beside_a_small_model_its_own_turns_are_the_drafts(file, asynchronously):
    beside = Beside(file, "small")
    _, records = beside.ask(asynchronously=asynchronously)
    assert beside.ran == [(12, 21)]
    assert beside.other.calls == []
    assert [record["would"]["first_large"] for record in records] == [0, None]
    assert [record["would"]["large_tokens"] for record in records] == [None, 0]
    assert [record["agree"] for record in records] == [None, True]
    assert all(record["spent"]["small_tokens"] == record["spent"]["large_tokens"] == 0 for record in records)


@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_rejected_turn_may_be_written_by_the_large_model_within_a_budget(file, asynchronously):
    beside = Beside(file, "small", run_rate=1.0, shadow_budget=Quota(large_tokens=5000))
    _, records = beside.ask(asynchronously=asynchronously)
    assert beside.ran == [(12, 21)]
    assert len(beside.other.calls) == 1
    assert [record["agree"] for record in records] == [False, True]
    assert records[0]["spent"]["large_tokens"] == records[0]["would"]["large_tokens"] > 0


def test_turns_agree_if_they_call_the_same_tools_alike(file):
    _, records = Beside(file, small=[multiply(12, 12), "LARGE answer"]).ask()
    assert [record["agree"] for record in records] == [True, None]  # no boxes to compare in the second


def test_a_policy_keeps_its_memory_from_turn_to_turn(file):
    large = [multiply(1, 1), multiply(2, 2), multiply(3, 3), "LARGE answer"]
    small = [multiply(12, 21), multiply(2, 2), multiply(3, 3), "small answer"]
    _, records = Beside(file, small=small, large=large, policy=stay_on_large(threshold(0.5), 1)).ask()
    assert [record["would"]["places"] for record in records] == [[0], [0], [], []]


def test_a_handover_gives_all_further_turns_to_the_large_model(file):
    class HandsOver(Policy):
        def decide(self, observation):
            return Choice("handover")

    _, records = Beside(file, policy=HandsOver()).ask()
    assert [record["would"]["share"] for record in records] == [1.0, 1.0]


def test_usage_is_that_of_the_turn(file):
    _, records = Beside(file).ask()
    assert [record["would"]["small_tokens"] for record in records] == [6, 3]


def test_a_failing_scorer_is_counted_and_the_agent_goes_on(file):
    def scorer(question, steps):
        raise RuntimeError("no")

    beside = Beside(file, scorer=scorer)
    result, records = beside.ask()
    assert result["messages"][-1].text == "LARGE answer"
    assert [record["error"] for record in records] == ["RuntimeError", "RuntimeError"]
    assert beside.shadow.counts.failed == 2


def test_all_turns_of_a_question_are_drawn_or_none(file):
    beside = Beside(file, rate=0.5, sampling_seed=3, capacity=1000)
    given = {"messages": [("user", QUESTION)]}
    with beside.shadow:
        for _ in range(20):
            beside.agent.invoke(given)
            beside.shadow.drain(20)
    turns = [record["turn"] for record in read_shadow(file)]
    assert turns.count(0) == turns.count(1)
    assert 0 < len(turns) < 40


def test_the_agents_own_message_stays_as_it_was(file):
    result, _ = Beside(file).ask()
    own = [message for message in result["messages"] if isinstance(message, AIMessage)]
    assert [message.response_metadata["model_name"] for message in own] == ["huge", "huge"]
    assert all("trim" not in message.response_metadata for message in own)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"answers": "medium"}, "answers is 'medium'"),
        ({"run_rate": 0.5}, "writes every turn already"),
        ({"answers": "small", "run_rate": 0.5}, "shadow_budget sets no limit"),
        ({"answers": "small", "run_rate": 2.0}, "run_rate: Input should be less than or equal to 1"),
        ({"max_step": 2}, "unknown setting max_step"),
    ],
)
def test_a_wrong_setting_is_refused_when_the_middleware_is_built(file, wrong, complaint):
    given = {"policy": threshold(0.5), "answers": "large", "record": file, **wrong}
    with pytest.raises((SettingsError, TypeError), match=complaint):
        ShadowMiddleware(ScriptedToolModel(script=SMALL), ScriptedScorer(), **given)
