"""Tests of `Shadow`: what its runs record, what is submitted by hand, and that nobody notices failures."""

import json

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from tests.shadow.conftest import LARGE, PRICES, SMALL, build, only, recorded
from trim_graph import Budget, Quota, SettingsError, Shadow, create_trim_graph
from trim_graph.policies import (
    threshold,
)
from trim_graph.shadow.runner import same_answer
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

# What a run records


def test_a_run_routes_the_question_from_its_beginning(file):
    record, models = recorded(file, run_rate=1.0, shadow_budget=Quota(large_tokens=100_000), text=True)
    assert record["kind"] == "run"
    assert record["routed"]["text"] == "small one\n\nLARGE two\n\nsmall three\n\nso it is \\boxed{4}"
    assert record["agree"] is False
    assert len(models["large"].calls) == 1
    assert record["summary"]["steps"] == {"small": 3, "large": 1}
    assert record["would"]["large_tokens"] == record["spent"]["large_tokens"] == 3


def test_the_routed_run_is_that_of_the_graph(file):
    record, _ = recorded(file, run_rate=1.0, shadow_budget=Quota(large_tokens=100_000), prices=PRICES)
    graph = create_trim_graph(
        ScriptedChatModel(script=SMALL),
        ScriptedChatModel(script=LARGE),
        ScriptedScorer({"small two": 0.1}),
        policy=threshold(0.5),
        prices=PRICES,
    )
    summary = graph.invoke({"messages": [("user", "What is 2 + 2?")]})["trim"]
    for name in ("steps", "decisions", "tokens", "scores", "cost"):
        assert record["summary"][name] == summary[name], name


def test_a_judge_may_be_asynchronous_and_grades_are_kept(file):
    async def agree(own, routed):
        return own[-3:] == routed[-3:]

    def grade(question, text):
        return "\\boxed{4}" in text

    record, _ = recorded(
        file, run_rate=1.0, shadow_budget=Quota(large_tokens=100_000), agreement=agree, grade=grade
    )
    assert record["agree"] is False
    assert record["correct"] == {"application": False, "routed": True}


@pytest.mark.parametrize(
    ("own", "routed", "same"),
    [
        ("\\boxed{4}", "\\boxed{4.0}", True),
        ("\\boxed{4}", "\\boxed{5}", False),
        ("\\boxed{x + 1}", "\\boxed{x  + 1}", True),
        ("\\boxed{x}", "none", False),
        ("none", "\\boxed{x}", False),
        ("none", "none either", None),
    ],
)
def test_answers_are_compared_by_what_they_box(own, routed, same):
    assert same_answer(own, routed) is same


def test_an_answer_may_be_submitted_by_hand(file):
    shadow, _, _ = build(file)
    with shadow:
        usage = {"input_tokens": 7, "output_tokens": 20}
        assert shadow.submit("What is 2 + 2?", "LARGE one\n\nSO it is \\boxed{5}", usage=usage, seconds=1.5)
        shadow.drain(10)
    answered = only(file)["answered"]
    assert (answered["input_tokens"], answered["output_tokens"], answered["seconds"]) == (7, 20, 1.5)


def test_the_conversation_is_the_one_at_the_time_of_the_answer(file):
    shadow, _, _ = build(file, text=True)
    messages = [HumanMessage("What is 2 + 2?")]
    with shadow:
        shadow.submit(messages, AIMessage("It is 4."), usage={"input_tokens": 1, "output_tokens": 4})
        messages.append(HumanMessage("And 3 + 3?"))
        shadow.drain(10)
    assert only(file)["question"]["text"] == "What is 2 + 2?"


# What goes wrong is invisible to the application


@pytest.mark.parametrize(
    ("question", "answer", "usage"),
    [
        ("", "text", {"output_tokens": 1}),
        ("What?", "", {"output_tokens": 1}),
        ("What?", "text", None),
        ([object()], "text", None),
        ([("assistant", "x")], "text", {"output_tokens": 1}),
    ],
)
def test_an_answer_that_cannot_be_examined_is_a_failure_in_the_record(file, question, answer, usage):
    shadow, _, _ = build(file)
    with shadow:
        assert shadow.submit(question, answer, usage=usage)
        shadow.drain(10)
    assert shadow.counts.failed == 1
    assert only(file)["error"]
    assert " " not in only(file)["error"]  # the name of its type only


def test_a_scorer_that_fails_is_counted_and_nothing_reaches_the_application(file):
    def scorer(question, steps):
        raise RuntimeError(f"about {question}")

    shadow, own, _ = build(file, scorer=scorer)
    with shadow:
        assert shadow.watch(own).invoke("What is 2 + 2?").text
        shadow.drain(10)
    assert (shadow.counts.failed, shadow.counts.recorded) == (1, 0)
    assert "2 + 2" not in file.read_text()


def test_without_text_no_word_of_the_conversation_is_written(file):
    for answers in ("large", "small"):
        recorded(file.with_name(f"{answers}.jsonl"), answers, "What is the secret word?")
    recorded(file, run_rate=1.0, shadow_budget=Quota(large_tokens=100_000))
    written = "".join(path.read_text() for path in file.parent.glob("*.jsonl"))
    for word in ("secret", "LARGE", "small one", "boxed"):
        assert word not in written


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"answers": "medium"}, "answers is 'medium'"),
        ({"run_rate": 2}, r"run_rate: Input should be less than or equal to 1 \(got 2\)"),
        ({"rate": 1.5}, r"rate: .* less than or equal to 1 \(got 1.5\)"),
        ({"capacity": 0}, r"capacity: .* greater than or equal to 1 \(got 0\)"),
        ({"concurrency": 0}, r"concurrency: .* greater than or equal to 1 \(got 0\)"),
        ({"timeout": 0}, "timeout: Input should be greater than 0"),
        ({"run_rate": 0.5}, "shadow_budget sets no"),
        ({"run_rate": 0.5, "shadow_budget": Quota(large_tokens=9)}, "one run may use 16384"),
        (
            {"run_rate": 0.5, "shadow_budget": Quota(large_cost=9.0), "prices": PRICES},
            "nothing limits the cost",
        ),
        ({"ask_below": 0.5}, "ask_below has a human asked"),
        ({"budget": Budget(on_exhausted="ask")}, "on_exhausted"),
        ({"record": "shadow.txt"}, "must end in"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_a_wrong_setting_is_refused_when_the_shadow_is_built(tmp_path, wrong, complaint):
    given = {"policy": threshold(0.5), "answers": "large", "record": tmp_path / "shadow.jsonl", **wrong}
    with pytest.raises(SettingsError, match=complaint):
        Shadow(ScriptedChatModel(script=SMALL), ScriptedChatModel(script=LARGE), ScriptedScorer(), **given)


def test_a_shadow_of_a_configuration(tmp_path):
    config = tmp_path / "trim.yaml"
    config.write_text(
        "small: {type: example}\nlarge: {type: example}\nscorer: {type: example}\n"
        "policy: {type: threshold, t: 0.5}\nsettings: {max_steps: 7}\n"
    )
    with Shadow.from_config(config, answers="large", record=tmp_path / "shadow.db") as shadow:
        assert shadow.settings.max_steps == 7
        assert not shadow.priced


def test_the_record_is_json(file):
    recorded(file)
    json.loads(file.read_text())
