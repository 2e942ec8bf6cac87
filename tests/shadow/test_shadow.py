"""A shadow beside chat models, nodes and plain calls: what it records, and that nobody notices it."""

import asyncio
import json
from typing import Annotated

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from typing_extensions import TypedDict

from trim_graph import Budget, Prices, Quota, SettingsError, Shadow, create_trim_chat_model, create_trim_graph
from trim_graph.policies import (
    Choice,
    Policy,
    entropy_probe,
    large_only,
    small_only,
    stay_on_large,
    threshold,
)
from trim_graph.shadow import read_shadow
from trim_graph.shadow.runner import same_answer
from trim_graph.testing import ScriptedChatModel, ScriptedScorer, ScriptedToolModel

SMALL = ["small one", "small two", "small three", "so it is \\boxed{4}"]
LARGE = ["LARGE one", "LARGE two", "LARGE three", "SO it is \\boxed{5}"]
PRICES = Prices.model_validate(
    {"small": {"input": 1, "output": 2}, "large": {"input": 10, "output": 20}, "scorer": {"input": 1}}
)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "shadow.jsonl"


def build(file, answers="large", *, small=SMALL, large=LARGE, scorer=None, policy=None, **options):
    """A shadow and the application's model; ``small two`` scores 0.1, under ``threshold(0.5)``."""
    models = {
        "small": ScriptedChatModel(script=small, name="tiny"),
        "large": ScriptedChatModel(script=large, name="huge"),
    }
    own = models[answers].model_copy(update={"calls": []})  # the application's own calls
    scorer = ScriptedScorer({"small two": 0.1}) if scorer is None else scorer
    shadow = Shadow(
        models["small"],
        models["large"],
        scorer,
        policy=policy or threshold(0.5),
        answers=answers,
        record=file,
        **options,
    )
    return shadow, own, models


def only(file):
    (record,) = read_shadow(file)
    return record


def recorded(file, answers="large", question="What is 2 + 2?", **options):
    shadow, own, models = build(file, answers, **options)
    with shadow:
        shadow.watch(own).invoke(question)
        assert shadow.drain(10)
    return only(file), models


# What a walk records


def test_a_walk_along_a_large_answer_asks_the_small_model_at_each_step_and_never_the_large_one(file):
    record, models = recorded(file, text=True)
    assert record["error"] is None
    assert record["kind"] == "walk"
    prefixes = [call["messages"][-1].text for call in models["small"].calls]
    assert prefixes[1:] == [
        "LARGE one\n\n",
        "LARGE one\n\nLARGE two\n\n",
        "LARGE one\n\nLARGE two\n\nLARGE three\n\n",
    ]
    assert models["large"].calls == []
    would = record["would"]
    assert (would["places"], would["first_large"]) == ([1], 1)
    assert would["steps"] == {"small": 3, "large": 1}
    assert would["decisions"] == {"accept": 3, "regenerate": 1}
    assert would["large_tokens"] == 2
    assert would["share"] == 2 / record["answered"]["output_tokens"]
    assert (record["routed"], record["agree"]) == (None, None)
    assert record["spent"]["large_tokens"] == 0


def test_a_walk_in_which_every_draft_is_rejected_is_exactly_a_run(file):
    record, _ = recorded(file, scorer=ScriptedScorer(default=0.0))
    assert record["would"]["share"] == 1
    assert record["agree"] is True


def test_a_walk_along_a_small_answer_ends_where_the_large_model_would_have_been_asked(file):
    scorer = ScriptedScorer({"small two": 0.1})
    record, models = recorded(file, "small", scorer=scorer)
    assert record["would"]["stopped"] == "large_wanted"
    assert record["would"]["first_large"] == 1
    assert record["would"]["large_tokens"] is None
    assert scorer.calls == [["small one"], ["small one", "small two"]]
    assert models["small"].calls == models["large"].calls == []


def test_a_small_answer_without_a_rejected_step_is_what_routing_would_have_given(file):
    record, _ = recorded(file, "small", scorer=ScriptedScorer())
    assert record["would"]["large_tokens"] == 0
    assert record["would"]["first_large"] is None
    assert record["agree"] is True


def test_a_draft_that_ends_the_solution_ends_the_walk(file):
    record, _ = recorded(file, small=["It is \\boxed{5}"], scorer=ScriptedScorer())
    assert record["would"]["stopped"] == "finished"
    assert record["would"]["large_tokens"] == 0


def test_a_handover_gives_the_rest_to_the_large_model(file):
    def policy(observation):
        return "handover" if observation.index == 2 else "accept"

    record, _ = recorded(file, policy=policy)
    assert record["would"]["places"] == [2, 3]
    assert record["would"]["steps"] == {"small": 2, "large": 2}


def test_a_policy_keeps_its_memory_along_a_walk(file):
    record, _ = recorded(file, policy=stay_on_large(threshold(0.5), 1))
    assert record["would"]["places"] == [1, 2]


def test_a_policy_sees_the_scores_of_accepted_drafts_and_of_large_steps(file):
    seen = []

    class Watching(Policy):
        def decide(self, observation):
            seen.append((observation.scores, observation.writers, observation.score))
            return Choice("regenerate" if observation.index == 1 else "accept")

    recorded(
        file, policy=Watching(), scorer=ScriptedScorer({"small two": 0.1, "LARGE two": 0.7}, default=0.9)
    )
    assert seen[-1] == ((0.9, 0.7, 0.9), ("small", "large", "small"), 0.9)


def test_a_walk_keeps_the_budget_of_the_run(file):
    record, _ = recorded(file, scorer=ScriptedScorer(default=0.0), budget=Budget(large_calls=2))
    assert record["would"]["places"] == [0, 1]
    assert record["would"]["steps"] == {"small": 2, "large": 2}


def test_a_policy_without_scores_needs_no_scorer(file):
    record, _ = recorded(file, policy=small_only())
    assert record["would"]["large_tokens"] == 0
    record, _ = recorded(file.with_name("other.jsonl"), policy=large_only())
    assert record["would"]["share"] == 1


def test_a_probe_in_a_walk_is_an_error_that_names_the_remedy(file):
    record, _ = recorded(file, policy=entropy_probe(0.5), text=True)
    assert "set run_rate to 1" in record["error"]


def test_costs_are_those_of_the_price_table(file):
    record, models = recorded(file, prices=PRICES)
    answered, would = record["answered"], record["would"]
    assert answered["cost"] == (10 * answered["input_tokens"] + 20 * answered["output_tokens"]) / 1e6
    read = sum(call["prompt_tokens"] for call in models["small"].calls)
    large = 10 * (answered["input_tokens"] + 1) + 20 * 2  # one of its tokens is in the step before
    assert would["cost"] == pytest.approx(
        (read + 2 * would["small_tokens"] + would["scorer_tokens"] + large) / 1e6
    )


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


def test_a_run_that_may_exceed_the_shadows_budget_is_not_begun_but_walked(file):
    shadow, own, _ = build(
        file, run_rate=1.0, shadow_budget=Quota(large_tokens=70), max_steps=8, max_step_tokens=8
    )
    with shadow:
        model = shadow.watch(own)
        for _ in range(9):
            model.invoke("What is 2 + 2?")
            shadow.drain(10)
    records = list(read_shadow(file))
    kinds = [record["kind"] for record in records]
    spent = sum(record["spent"]["large_tokens"] for record in records)
    assert kinds == ["run"] * 3 + ["walk"] * 6  # 64 are reserved, 3 are used: the fourth would reach 73
    assert spent == 9
    assert {record["refused"] for record in records} == {None, "budget"}


def test_a_ledger_keeps_the_budget_over_restarts(file, tmp_path):
    from trim_graph import open_ledger

    kinds = []
    for _ in range(2):
        with open_ledger(f"sqlite:{tmp_path}/spend.db") as ledger:
            options = {"max_steps": 8, "max_step_tokens": 8, "ledger": ledger}
            shadow, own, _ = build(file, run_rate=1.0, shadow_budget=Quota(large_tokens=66), **options)
            with shadow:
                shadow.watch(own).invoke("What is 2 + 2?")
                shadow.drain(10)
    kinds = [record["kind"] for record in read_shadow(file)]
    assert kinds == ["run", "walk"]


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


# Beside which applications


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch"])
def test_a_watched_chat_model_answers_as_before_and_is_recorded(file, way):
    shadow, own, _ = build(file, text=True)
    model = shadow.watch(own)
    plain = own.invoke("What is 2 + 2?").text

    async def astreamed():
        return "".join([chunk.text async for chunk in model.astream("What is 2 + 2?")])

    with shadow:
        answer = {
            "invoke": lambda: model.invoke("What is 2 + 2?").text,
            "ainvoke": lambda: asyncio.run(model.ainvoke("What is 2 + 2?")).text,
            "stream": lambda: "".join(chunk.text for chunk in model.stream("What is 2 + 2?")),
            "astream": lambda: asyncio.run(astreamed()),
            "batch": lambda: model.batch(["What is 2 + 2?"])[0].text,
        }[way]()
        shadow.drain(10)
    assert answer == plain
    assert type(model) is type(own)
    assert own.callbacks is None
    record = only(file)
    assert record["error"] is None
    assert record["answered"]["answer"]["text"] == plain
    assert record["question"]["text"] == "What is 2 + 2?"
    assert record["answered"]["output_tokens"] == len(plain.split(" ")) + 1
    assert record["answered"]["seconds"] > 0


def test_a_model_watched_twice_has_each_answer_counted_once(file):
    shadow, own, _ = build(file)
    with shadow:
        twice = shadow.watch(shadow.watch(own))
        twice.invoke("What is 2 + 2?")
        shadow.watch(RunnableLambda(lambda question: question) | twice).invoke("What is 2 + 3?")
        asyncio.run(twice.ainvoke("What is 2 + 4?"))
        assert shadow.drain(10)
    assert (shadow.counts.seen, len(list(read_shadow(file)))) == (3, 3)


def test_a_chain_has_its_chat_model_watched(file):
    shadow, own, _ = build(file)
    with shadow:
        shadow.watch(own | (lambda answer: answer.text)).invoke("What is 2 + 2?")
    assert only(file)["error"] is None


def test_a_router_as_chat_model_may_be_the_application(file):
    router = create_trim_chat_model(
        ScriptedChatModel(script=SMALL), ScriptedChatModel(script=LARGE), policy=large_only()
    )
    shadow, _, _ = build(file)
    with shadow:
        shadow.watch(router).invoke("What is 2 + 2?")
    assert only(file)["answered"]["steps"] == 4


def test_answers_with_tools_or_without_text_are_counted_as_unsuitable(file):
    @tool
    def search(what: str) -> str:
        """Search."""
        return what

    shadow, _, _ = build(file)
    own = shadow.watch(ScriptedToolModel(script=["a", "b"]))
    with shadow:
        own.bind_tools([search]).invoke("What is 2 + 2?")
        shadow.watch(ScriptedToolModel(script=[""])).invoke("What is 2 + 2?")
    assert (shadow.counts.seen, shadow.counts.unsuitable) == (2, 2)


def test_a_call_that_fails_is_forgotten(file):
    class Broken(ScriptedChatModel):
        def _generate(self, *args, **kwargs):
            raise RuntimeError("no")

    shadow, _, _ = build(file)
    model = shadow.watch(Broken(script=[]))
    with shadow, pytest.raises(RuntimeError):
        model.invoke("What is 2 + 2?")
    assert shadow.counts.seen == 0
    assert model.callbacks[0]._open == {}


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_node_submits_the_last_answer_and_changes_nothing(file, asynchronously):
    shadow, own, _ = build(file, text=True)
    builder = StateGraph(State)
    builder.add_node("answer", lambda state: {"messages": [own.invoke(state["messages"])]})
    builder.add_node("shadow", shadow.node())
    builder.add_edge(START, "answer")
    builder.add_edge("answer", "shadow")
    graph = builder.compile()
    given = {"messages": [HumanMessage("What is 2 + 2?")]}
    with shadow:
        result = asyncio.run(graph.ainvoke(given)) if asynchronously else graph.invoke(given)
        shadow.drain(10)
    assert len(result["messages"]) == 2
    assert only(file)["question"]["text"] == "What is 2 + 2?"


def test_a_graph_is_watched_by_a_node(file):
    shadow, _, _ = build(file)
    graph = create_trim_graph(
        ScriptedChatModel(script=SMALL), ScriptedChatModel(script=LARGE), policy=large_only()
    )
    with shadow, pytest.raises(SettingsError, match=r"shadow\.node\(\)"):
        shadow.watch(graph)


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


def test_a_call_of_the_shadow_is_no_call_of_the_application(file):
    """Not even where a watched model is the shadow's own."""
    shadow, own, models = build(file, run_rate=1.0, shadow_budget=Quota(large_tokens=100_000))
    models["large"].callbacks = shadow.watch(own).callbacks
    with shadow:
        models["large"].invoke("What is 2 + 2?")
        shadow.drain(10)
    assert len(models["large"].calls) == 2
    assert shadow.counts.seen == 1


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
