"""A human in the loop: what one is asked, what may be answered, and that the run waits and resumes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import is_invalid_resume
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command
from pydantic import ValidationError

from trim_graph import (
    Budget,
    ScorableStep,
    SettingsError,
    TrimContext,
    create_trim_chat_model,
    open_checkpointer,
)
from trim_graph.budget.ledger import LargeUsage, MemoryLedger
from trim_graph.policies import large_only, small_only, stay_on_large
from trim_graph.routing.router import RECURSION_FLOOR
from trim_graph.segmentation import delimiter, pattern
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

THREAD = {"configurable": {"thread_id": "1"}}
ASKING = {"large_calls": 1, "on_exhausted": "ask"}


def always(observation):
    return "regenerate"


def asking(make, *arguments, saver=None, **options):
    """A rig in which every step is regenerated, and a human is asked after the first."""
    options = {"policy": always, "budget": ASKING, "scores": {}} | options
    return make(*arguments, checkpointer=saver or InMemorySaver(), **options)


def asked(result):
    (interrupt,) = result["__interrupt__"]
    return interrupt.value


def answer(rig, answer, **options):
    return rig.graph.invoke(Command(resume=answer), THREAD, **options)


def test_a_spent_budget_shows_a_human_what_the_run_knows(make):
    rig = asking(make)
    question = asked(rig.ask(config=THREAD))
    assert json.loads(json.dumps(question)) == question
    assert (question["reason"], question["limit"]) == ("budget", "large_calls")
    assert question["question"] == "What is 2 + 2?"
    assert question["steps"] == [{"text": "LARGE one", "writer": "large", "score": 1.0, "end": "delimiter"}]
    assert question["draft"] == {"text": "small two", "writer": "small", "score": 1.0, "end": "delimiter"}
    assert question["score"] == 1.0
    assert question["usage"]["large"]["calls"] == 1
    assert question["budget"] == {"large_calls": 1, "min_tokens": 8, "on_exhausted": "ask"}
    assert set(question["answers"]) == {"more", "continue_with", "step", "decision"}


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_more_budget_lets_the_large_model_continue(make, asynchronously):
    rig = asking(make)
    rig.solve(asynchronously=asynchronously, config=THREAD)
    resume = Command(resume={"more": {"large_calls": 2}})
    if asynchronously:
        second = asyncio.run(rig.graph.ainvoke(resume, THREAD))
    else:
        second = rig.graph.invoke(resume, THREAD)
    assert [step["writer"] for step in asked(second)["steps"]] == ["large"] * 3
    assert len(rig.small.calls) == 4, "no draft was written twice"
    done = answer(rig, {"more": {"large_calls": 1, "large_tokens": 50}})["trim"]
    assert done["steps"] == {"small": 0, "large": 4}
    assert done["decisions"] == {"regenerate": 4}
    assert done["notes"] == [
        "a human raised the limits: large_calls by 2",
        "a human raised the limits: large_calls by 1",
    ], "large_tokens had no limit, and has none now"


def test_a_run_that_goes_on_small_asks_no_more_and_calls_the_large_model_no_more(make):
    rig = asking(make, ask_below=0.5)
    rig.ask(config=THREAD)
    done = answer(rig, {"continue_with": "small"})
    assert done["trim"]["steps"] == {"small": 3, "large": 1}
    assert done["trim"]["notes"] == ["a human had the small model continue alone"]
    assert len(rig.small.calls) == 4
    assert len(rig.large.calls) == 1


def test_stop_ends_the_run_with_the_steps_so_far(make):
    rig = asking(make)
    rig.ask(config=THREAD)
    done = answer(rig, {"continue_with": "stop"})
    assert (done["trim"]["stopped"], done["messages"][-1].text) == ("human", "LARGE one")


def test_a_step_by_hand_takes_the_drafts_place(make):
    rig = asking(make, ["small one", "small two", "small three"], scores={})
    rig.ask(config=THREAD)
    again = asked(answer(rig, {"step": " by hand\n"}))
    assert [(s["writer"], s["text"]) for s in again["steps"]] == [
        ("large", "LARGE one"),
        ("human", "by hand"),
    ]
    assert rig.prompts("small")[-1][-1].content == "LARGE one\n\nby hand\n\n"
    done = answer(rig, {"step": "first\n\nso \\boxed{7}.", "ends": True})
    assert done["messages"][-1].text == "LARGE one\n\nby hand\n\nfirst\n\nso \\boxed{7}."
    summary = done["trim"]
    assert (summary["stopped"], summary["answer"]) == ("finished", "7")
    assert summary["steps"] == {"small": 0, "large": 1, "human": 3}
    assert summary["decisions"] == {"regenerate": 1, "by_hand": 2}
    assert summary["tokens"]["small_discarded"] == summary["usage"]["small"]["output_tokens"]
    record = rig.graph.get_state(THREAD).values["decisions"][1]
    assert (record["decision"], record["by"], record["score"]) == ("by_hand", "human", 1.0)
    assert record["discarded"]["text"] == "small two"


def test_a_step_by_hand_is_scored_with_the_next_draft(make):
    rig = asking(make, scores={"by hand": 0.25})
    rig.ask(config=THREAD)
    answer(rig, {"step": "by hand"})
    assert rig.graph.get_state(THREAD).values["scores"]["1"] == 0.25


def test_a_step_by_hand_belongs_to_the_reasoning_it_continues(make):
    rig = asking(make, ["<think>small one", "two"], ["<think>LARGE one", "two"])
    rig.ask(config=THREAD)
    done = answer(rig, {"step": "that is it</think>\n\nso \\boxed{1}", "ends": True})["trim"]
    assert done["parts"] == {
        "reasoning": {"small": 0, "large": 1, "human": 1},
        "answer": {"small": 0, "large": 0, "human": 1},
    }
    assert done["answer"] == "1"


def test_a_step_by_hand_behind_the_reasoning_does_not_close_it_again(make):
    text = "<think>one</think>It is one."

    def script(prefix):
        return text[len(prefix) :] if text.startswith(prefix) else "two"

    rig = asking(make, script, script)
    rig.ask(config=THREAD)
    done = answer(rig, {"step": "by hand"})
    while "__interrupt__" in done:
        done = answer(rig, {"continue_with": "small"})
    assert done["messages"][-1].text == "<think>one</think>by hand\n\ntwo"


@pytest.mark.parametrize("way", [delimiter("\n"), pattern(r"\n(?=[sl])")], ids=["delimiter", "pattern"])
def test_a_step_by_hand_is_separated_as_the_others_are(make, way):
    lines = "\n".join(["small one", "small two", "so it is \\boxed{4}"])

    def script(prefix):
        return lines[len(prefix) :] if lines.startswith(prefix) else "\nso it is \\boxed{4}"[1:]

    models = [ScriptedChatModel(script=script, delimiter="\n") for _ in range(2)]
    saver = InMemorySaver()
    rig = make(
        *models, {"small one": 1.0}, segmentation=way, ask_below=0.5, checkpointer=saver, policy=small_only()
    )
    rig.scorer.default = 0.0
    rig.ask(config=THREAD)
    result = answer(rig, {"step": "by hand"})
    text = asked(result)["steps"] if "__interrupt__" in result else None
    assert [step["text"] for step in text] == ["small one", "by hand"]
    done = answer(rig, {"continue_with": "small"})
    assert done["messages"][-1].text == "small one\nby hand\nso it is \\boxed{4}"


@pytest.mark.parametrize("failing", [False, True])
def test_a_run_that_goes_on_small_does_not_finish_the_large_models_step(make, failing):
    """Also where there is some budget again when the answer comes."""
    ledger, calls = MemoryLedger(), []

    def grab(prefix):
        calls.append(prefix)
        return "LARGE"

    rig = asking(
        make,
        large=ScriptedChatModel(script=grab),
        budget={"on_exhausted": "ask"},
        ledger=ledger,
        quotas={"user": {"large_calls": 1}},
    )
    ledger.reserve("user:ada", "another's", lambda used: LargeUsage(0, 1, 0.0))
    rig.graph.invoke({"messages": [("user", "?")]}, THREAD, context=TrimContext(user="ada"))
    if failing:  # there is some again, when the answer comes
        ledger.settle("user:ada", "another's", LargeUsage(0, 0, 0.0))
    done = answer(rig, {"continue_with": "small"})
    assert not calls
    assert done["trim"]["steps"] == {"small": 4, "large": 0}


def test_token_probabilities_know_no_doubt_of_a_human():
    from trim_graph.adapters import TokenProbability

    steps = [ScorableStep("by hand", "human"), ScorableStep("a", mean_token_probability=0.5)]
    assert TokenProbability().score("q", steps).scores == [1.0, 0.5]


# A low score


@pytest.mark.parametrize(
    ("resume", "text", "calls"),
    [
        ({"decision": "accept"}, "small one\n\nsmall two\n\nsmall three", 0),
        ({"decision": "regenerate"}, "small one\n\nLARGE two\n\nsmall three", 1),
        ({"decision": "handover"}, "small one\n\nLARGE two\n\nLARGE three", 1),
        ({"continue_with": "small"}, "small one\n\nsmall two\n\nsmall three", 0),
        ({"step": "by hand"}, "small one\n\nby hand\n\nsmall three", 0),
        ({"more": {"large_tokens": 5}}, "small one\n\nLARGE two\n\nsmall three", 1),
    ],
)
def test_a_low_score_shows_the_draft_before_anything_is_decided(make, resume, text, calls):
    script = [f"{size} {n}" for size in ("small", "LARGE") for n in ("one", "two", "three")]
    rig = make(script[:3], script[3:], ask_below=0.3, checkpointer=InMemorySaver())
    question = asked(rig.ask(config=THREAD))
    assert (question["reason"], question["limit"], question["score"]) == ("score", None, 0.1)
    assert question["draft"]["text"] == "small two"
    assert not rig.large.calls
    done = answer(rig, resume)
    assert done["messages"][-1].text == text
    assert len(rig.large.calls) == calls


def test_a_humans_decision_is_on_record(make):
    rig = make(ask_below=0.3, checkpointer=InMemorySaver())
    rig.ask(config=THREAD)
    answer(rig, {"decision": "accept"})
    records = rig.graph.get_state(THREAD).values["decisions"]
    assert records[1] == {"step": 1, "decision": "accept", "score": 0.1, "by": "human"}
    assert "by" not in records[0]


def test_a_policy_that_looks_at_no_score_may_ask_below_one(make):
    rig = make(policy=small_only(), ask_below=0.3, checkpointer=InMemorySaver())
    assert asked(rig.ask(config=THREAD))["draft"]["text"] == "small two"
    assert answer(rig, {"decision": "regenerate"})["trim"]["steps"] == {"small": 3, "large": 1}


def test_a_humans_wish_needs_the_budget_too(make):
    rig = make(
        scores={"small one": 0.1, "small two": 0.1},
        ask_below=0.3,
        budget=ASKING,
        checkpointer=InMemorySaver(),
    )
    rig.ask(config=THREAD)
    assert asked(answer(rig, {"decision": "regenerate"}))["reason"] == "score"
    question = asked(answer(rig, {"decision": "handover"}))
    assert (question["reason"], question["limit"]) == ("budget", "large_calls")
    assert answer(rig, {"more": {"large_calls": 1}})["trim"]["steps"] == {"small": 2, "large": 2}


def test_a_decision_that_needs_the_large_model_is_offered_only_where_it_may_be_called(make):
    question = asked(asking(make).ask(config=THREAD))
    said = question["answers"]["decision"]
    assert (question["reason"], said.startswith('"accept" the draft; ')) == ("budget", True)
    assert "regenerate" not in said
    question = asked(make(ask_below=0.3, checkpointer=InMemorySaver()).ask(config=THREAD))
    assert (question["reason"], '"regenerate"' in question["answers"]["decision"]) == ("score", True)


# What is refused


@pytest.mark.parametrize("how", [{"budget": ASKING}, {"ask_below": 0.5}], ids=["budget", "score"])
@pytest.mark.parametrize("way", ["built", "context", "embedded"])
def test_without_a_checkpointer_nobody_is_asked_and_no_model_called(make, how, way):
    rig = make(**({} if way == "context" else how))
    graph = rig.graph
    if way == "embedded":
        graph = StateGraph(MessagesState).add_node("solve", graph).add_edge(START, "solve").compile()
    context = TrimContext(**how) if way == "context" else None
    with pytest.raises(SettingsError, match="stops a run to ask a human, but no checkpointer keeps the run"):
        graph.invoke({"messages": "2 + 2?"}, THREAD, context=context)
    assert rig.unasked


def test_a_chat_model_asks_nobody(make):
    model = ScriptedChatModel(script=["one"])
    router = create_trim_chat_model(model, model, ScriptedScorer(), policy=always, ask_below=0.5)
    with pytest.raises(SettingsError, match="no checkpointer keeps the run"):
        router.invoke("2 + 2?")
    assert not model.calls


def test_a_score_to_ask_below_needs_a_scorer(make):
    rig = make(policy=small_only(), scorer=None, checkpointer=InMemorySaver())
    with pytest.raises(SettingsError, match=r"ask_below is 0\.5, but the graph was built without a scorer"):
        rig.ask(config=THREAD, context=TrimContext(ask_below=0.5))
    assert rig.unasked


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"mor": {"large_tokens": 5}},
            r"mor\n.*unknown field, did you mean more\? There are: more, continue",
        ),
        ({"more": {"large_token": 5}}, r"more.large_token\n.*unknown field, did you mean large_tokens\?"),
        ({"more": {}}, "more of what"),
        ({"more": {"large_tokens": -5}}, "greater than or equal to 1"),
        ({"continue_with": "large"}, "'small' or 'stop'"),
        ({"step": " -- "}, "step is ' -- ': write at least one word or number"),
        (
            {"step": "a", "continue_with": "small"},
            "exactly one of more, continue_with, step, decision; there is continue_with and step",
        ),
        ({"ends": True}, "there is none"),
        ({"continue_with": "stop", "ends": True}, "give the step too"),
        ({"decision": "discard"}, "'accept', 'regenerate' or 'handover'"),
        (
            "yes",
            "the answer is 'yes': give a mapping with exactly one of more, continue_with, step, decision",
        ),
    ],
)
def test_a_wrong_answer_says_what_would_be_right_and_the_question_stays(make, wrong, message):
    rig = asking(make)
    question = asked(rig.ask(config=THREAD))
    with pytest.raises(ValidationError, match=message) as caught:
        answer(rig, wrong)
    assert is_invalid_resume(caught.value)
    (task,) = rig.graph.get_state(THREAD).tasks
    assert task.interrupts[0].value == question
    assert answer(rig, {"continue_with": "small"})["trim"]["stopped"] == "finished"


def test_there_is_no_decision_on_a_draft_that_is_not_there(make):
    rig = asking(
        make, policy=large_only(), budget={"large_tokens": 3, "min_tokens": 3, "on_exhausted": "ask"}
    )
    question = asked(rig.ask(config=THREAD))
    assert question["draft"] is None
    assert "decision" not in question["answers"]
    with pytest.raises(
        ValidationError, match=r"decision\n.*unknown field\. There are: more, continue_with, step, ends "
    ):
        answer(rig, {"decision": "accept"})
    assert answer(rig, {"more": {"large_tokens": 90}})["trim"]["stopped"] == "finished"


def test_the_form_of_an_answer_comes_with_the_question(make):
    (interrupt,) = asking(make).ask(config=THREAD)["__interrupt__"]
    assert set(interrupt.response_schema["properties"]) == {
        "more",
        "continue_with",
        "step",
        "ends",
        "decision",
    }


# The run while it waits, and afterwards


def test_a_human_may_think_without_using_up_the_seconds(make, monkeypatch):
    import time

    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rig = asking(make, budget=ASKING | {"seconds": 10})
    asked(rig.ask(config=THREAD))
    now[0] += 3600
    done = answer(rig, {"more": {"large_calls": 9}})["trim"]
    assert done["stopped"] == "finished"
    assert done["seconds"] < 10


def test_what_a_policy_remembers_is_as_if_nobody_had_been_asked(make):
    policy = stay_on_large(lambda o: "regenerate" if o.index == 0 else "accept", 2)
    whole = asking(make, policy=policy, budget=None).ask(config=THREAD)
    rig = asking(make, policy=policy)
    rig.ask(config=THREAD)
    asked(answer(rig, {"more": {"large_calls": 1}}))
    done = answer(rig, {"more": {"large_calls": 1}})
    assert done["messages"][-1].text == whole["messages"][-1].text
    assert done["trim"]["steps"] == whole["trim"]["steps"] == {"small": 1, "large": 3}


def test_events_report_every_step_once(make):
    rig = asking(make)
    events = list(rig.graph.stream({"messages": "2 + 2?"}, THREAD, stream_mode="custom"))
    assert events[-1] == {
        "type": "trim",
        "event": "asked",
        "step": 1,
        "reason": "budget",
        "limit": "large_calls",
    }
    resume = Command(resume={"step": "by hand"})
    events += list(rig.graph.stream(resume, THREAD, stream_mode="custom"))
    events += list(rig.graph.stream(Command(resume={"continue_with": "small"}), THREAD, stream_mode="custom"))
    accepted = [(e["step"], e["writer"]) for e in events if e["event"] == "accepted"]
    assert accepted == [(0, "large"), (1, "human"), (2, "small"), (3, "small")]
    kinds = [event["event"] for event in events]
    assert kinds.count("started") == kinds.count("finished") == 1
    (reported,) = (e["answer"] for e in events if e["event"] == "answered" and e["step"] == 1)
    assert reported == {"step": "by hand", "ends": False}


def test_the_messages_stream_goes_on_where_it_stopped(make):
    rig = asking(make)
    chunks = [c for c, _ in rig.graph.stream({"messages": "2 + 2?"}, THREAD, stream_mode="messages")]
    resume = Command(resume={"step": "by hand", "ends": True})
    chunks += [c for c, _ in rig.graph.stream(resume, THREAD, stream_mode="messages")]
    assert "".join(chunk.content for chunk in chunks) == "LARGE one\n\nby hand"
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_second_question_after_a_human_was_asked_starts_clean(make):
    rig = asking(make)
    rig.ask(config=THREAD)
    asked(rig.ask("And 3 + 3?", THREAD))
    values = rig.graph.get_state(THREAD).values
    assert values["run"]["question"] == "And 3 + 3?"
    assert len(values["steps"]) == 1
    answer(rig, {"more": {"large_calls": 50}})
    question = asked(rig.ask("And 4 + 4?", THREAD))
    assert question["budget"]["large_calls"] == 1, "more was for the one run"


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_every_durability_keeps_a_run_that_waits(make, durability, tmp_path):
    with open_checkpointer(f"sqlite:{tmp_path / 'runs.db'}") as saver:
        rig = asking(make, saver=saver)
        rig.ask(config=THREAD, durability=durability)
    with open_checkpointer(f"sqlite:{tmp_path / 'runs.db'}") as saver:
        rig = asking(make, saver=saver)
        done = answer(rig, {"more": {"large_calls": 3}}, durability=durability)
        assert done["trim"]["steps"] == {"small": 0, "large": 4}
        assert len(rig.small.calls) == 2, "those of the steps that were still missing"


def test_the_lowest_recursion_limit_is_enough_to_ask_and_to_resume(make):
    rig = asking(
        make, budget={"large_calls": 1, "on_exhausted": "ask"}, ask_below=1.0, scores={}, max_steps=9
    )
    limited = THREAD | {"recursion_limit": RECURSION_FLOOR}
    result = rig.ask(config=limited)
    for _ in range(40):
        if "__interrupt__" not in result:
            break
        result = rig.graph.invoke(Command(resume={"more": {"large_calls": 1}}), limited)
    assert result["trim"]["stopped"] in ("finished", "recursion_limit")


# As part of an application


@pytest.mark.parametrize("wrapped", [False, True], ids=["subgraph", "called by a node"])
def test_a_parent_is_stopped_and_goes_on(make, wrapped):
    rig = make(policy=always, budget=ASKING, scores={})
    node = (lambda s: {"messages": rig.graph.invoke(s)["messages"][-1:]}) if wrapped else rig.graph
    parent = StateGraph(MessagesState).add_node("solve", node).add_edge(START, "solve")
    app = parent.compile(checkpointer=InMemorySaver())
    question = asked(app.invoke({"messages": "2 + 2?"}, THREAD))
    assert question["limit"] == "large_calls"
    done = app.invoke(Command(resume={"more": {"large_calls": 3}}), THREAD)
    assert done["messages"][-1].response_metadata["trim"]["steps"] == {"small": 0, "large": 4}
    assert len(rig.small.calls) == 4


def test_parallel_runs_ask_each_for_itself(make):
    rig = make(policy=always, budget=ASKING, scores={})
    parent = StateGraph(MessagesState)
    for name in ("a", "b"):
        parent.add_node(name, rig.graph).add_edge(START, name)
    app = parent.compile(checkpointer=InMemorySaver())
    first, second = app.invoke({"messages": "2 + 2?"}, THREAD)["__interrupt__"]
    assert first.value["run"] != second.value["run"]
    done = app.invoke(
        Command(
            resume={first.id: {"continue_with": "small"}, second.id: {"step": "so \\boxed{9}", "ends": True}}
        ),
        THREAD,
    )
    answers = [m.response_metadata["trim"] for m in done["messages"] if m.type == "ai"]
    assert sorted(answer["answer"] for answer in answers) == ["4", "9"]


def test_a_spent_account_asks_and_a_human_may_raise_it_for_this_run(make):
    ledger = MemoryLedger()
    rig = asking(
        make,
        budget=Budget(on_exhausted="ask"),
        ledger=ledger,
        quotas={"user": {"large_calls": 1}},
    )
    question = asked(rig.ask(config=THREAD, context=TrimContext(user="ada")))
    assert question["limit"] == "large_calls of user:ada"
    assert question["accounts"] == {"user:ada": {"large_calls": 1}}
    done = answer(rig, {"more": {"large_calls": 3}})
    assert done["trim"]["steps"] == {"small": 0, "large": 4}
    assert ledger.used("user:ada").large_calls == 4
    other = rig.ask(config={"configurable": {"thread_id": "2"}}, context=TrimContext(user="ada"))
    assert asked(other)["accounts"] == {"user:ada": {"large_calls": 1}}


def test_a_large_step_cut_by_the_budget_is_gone_on_with(make):
    rig = asking(
        make,
        ["small one", "end"],
        ["-- -- -- LARGE one", "end"],
        policy=large_only(),
        budget={"large_tokens": 3, "min_tokens": 2, "on_exhausted": "ask"},
        max_steps=2,
    )
    question = asked(rig.ask(config=THREAD))
    assert (question["limit"], question["draft"]) == ("large_tokens", None)
    assert answer(rig, {"more": {"large_tokens": 100}})["messages"][-1].text == "-- -- -- LARGE one\n\nend"


@pytest.mark.parametrize("failing", ["small", "scorer"])
def test_a_fallback_that_the_budget_refuses_asks_too(make, failing):
    def broken(*arguments):
        raise ConnectionError("gone")

    small = ScriptedChatModel(script=broken) if failing == "small" else ["small one", "small two"]
    rig = asking(
        make,
        small,
        scorer=broken if failing == "scorer" else "scripted",
        on_small_error="large",
        on_scorer_error="regenerate",
    )
    assert asked(rig.ask(config=THREAD))["limit"] == "large_calls"
    done = answer(rig, {"more": {"large_calls": 9}})["trim"]
    assert done["stopped"] == "finished"
    assert done["steps"]["large"] >= 2


def test_a_run_that_comes_too_late_for_its_account_asks(make):
    class Late(MemoryLedger):
        def reserve(self, account, entry, ask):
            from trim_graph.budget.ledger import LargeUsage

            if entry != "other":
                super().reserve(account, "other", lambda used: LargeUsage(20, 1))
            return super().reserve(account, entry, ask)

    rig = asking(
        make,
        ["small one", "small two"],
        budget=Budget(on_exhausted="ask"),
        ledger=Late(),
        quotas={"user": {"large_tokens": 20}},
    )
    question = asked(rig.ask(config=THREAD, context=TrimContext(user="ada")))
    assert question["limit"] == "large_tokens of user:ada"
    done = answer(rig, {"more": {"large_tokens": 90}})["trim"]
    assert done["steps"]["large"] == 2
    assert len(rig.small.calls) >= 2


answers = st.sampled_from(
    [
        {"more": {"large_calls": 1}},
        {"more": {"large_tokens": 9}},
        {"continue_with": "small"},
        {"step": "by hand"},
        {"step": "by\n\nhand"},
        {"step": "by hand \\boxed{1}", "ends": True},
        {"continue_with": "stop"},
    ]
)


@settings(max_examples=40, deadline=None)
@given(
    given=st.lists(answers, max_size=12),
    calls=st.integers(1, 3),
    ask_below=st.sampled_from([None, 0.5]),
    seed=st.integers(0, 99),
    script=st.lists(st.sampled_from(["a", "b c", "---", "", "d e f"]), min_size=1, max_size=6),
)
def test_whatever_is_answered_every_step_is_streamed_once_and_the_budget_holds(
    make, given, calls, ask_below, seed, script
):
    def fickle(observation):
        return observation.random().choice(["accept", "regenerate", "handover"])

    rig = asking(
        make,
        script,
        policy=fickle,
        budget={"large_calls": calls, "large_tokens": 30, "min_tokens": 2, "on_exhausted": "ask"},
        ask_below=ask_below,
        scores={"b c": 0.1},
        seed=seed,
        max_step_tokens=9,
        max_steps=8,
    )
    chunks, extra = [], {"large_calls": calls, "large_tokens": 30}
    resume = {"messages": "2 + 2?"}
    for reply in [*given, {"continue_with": "stop"}]:
        chunks += [c.content for c, _ in rig.graph.stream(resume, THREAD, stream_mode="messages")]
        if not rig.graph.get_state(THREAD).next:
            break
        for name, more in reply.get("more", {}).items():
            extra[name] += more
        resume = Command(resume=reply)
    else:
        chunks += [c.content for c, _ in rig.graph.stream(resume, THREAD, stream_mode="messages")]
    values = rig.graph.get_state(THREAD).values
    assert "".join(chunks) == values["messages"][-1].text
    large = values["usage"]["large"]
    assert large["calls"] <= extra["large_calls"]
    assert large["output_tokens"] <= extra["large_tokens"]


RESTARTED = """
import sys
from langgraph.types import Command
from tests.conftest import build
from tests.routing.test_human import ASKING, THREAD, always
from trim_graph import open_checkpointer

with open_checkpointer("sqlite:runs.db") as saver:
    rig = build(policy=always, budget=ASKING, scores={}, checkpointer=saver)
    given = {"messages": "2 + 2?"} if sys.argv[1] == "ask" else Command(resume={"more": {"large_calls": 3}})
    result = rig.graph.invoke(given, THREAD, durability="sync")
    print("waits" if "__interrupt__" in result else result["messages"][-1].text)
"""


def test_another_process_takes_the_answer(tmp_path, pytestconfig):
    def run(how):
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(RESTARTED), how],
            env={**os.environ, "PYTHONPATH": str(pytestconfig.rootpath)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    assert run("ask") == "waits"
    assert run("go on") == "LARGE one\n\nLARGE two\n\nLARGE three\n\nSO it is \\boxed{5}"
