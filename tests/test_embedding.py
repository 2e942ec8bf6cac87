"""The graph as a part of an application: other keys, parallel branches, loops, streams, limits, threads."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphDrained
from langgraph.func import entrypoint
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.runtime import RunControl
from langgraph.types import Command, Send
from pydantic import BaseModel
from typing_extensions import TypedDict

from trim_graph import InputError, SettingsError, TrimContext, trim_node
from trim_graph.policies import small_only
from trim_graph.routing.router import RECURSION_FLOOR
from trim_graph.state import TrimState

TEXT = "small one\n\nLARGE two\n\nsmall three\n\nso it is \\boxed{4}"
THREAD = {"configurable": {"thread_id": "1"}}
PRIVATE = set(TrimState.__annotations__) - {"messages"}


class Desk(TypedDict, total=False):
    """An application's own state: none of its keys is one of ours."""

    question: str
    solution: str
    log: Annotated[list, operator.add]
    bill: dict


def desk(node: Any, context: Any = None, **compiled: Any) -> Any:
    builder = StateGraph(Desk, context)
    builder.add_node("solve", node)
    builder.add_edge(START, "solve")
    return builder.compile(**compiled)


# A wrapper node


@pytest.mark.parametrize(
    ("form", "written"),
    [("text", TEXT), ("answer", "4"), ("message", [TEXT]), ("conversation", ["2 + 2?", TEXT])],
)
@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
async def test_a_parent_with_other_keys_uses_the_wrapper_node(rig, form, written, asynchronously):
    node = trim_node(rig.graph, problem="question", solution="solution", form=form, summary="bill")
    app = desk(node)
    given = {"question": "2 + 2?"}
    result = await app.ainvoke(given) if asynchronously else app.invoke(given)
    found = result["solution"]
    assert ([m.text for m in found] if isinstance(found, list) else found) == written
    assert result["bill"]["steps"] == {"small": 3, "large": 1}
    assert set(result) == {"question", "solution", "bill", "log"}


def test_a_key_that_adds_up_gets_the_new_message_only(rig):
    app = desk(trim_node(rig.graph, problem="log", solution="log"))
    result = app.invoke({"log": [HumanMessage("2 + 2?")]})
    assert [message.text for message in result["log"]] == ["2 + 2?", TEXT]


def test_a_function_may_put_the_problem_together(rig):
    def problem(state):
        return {"messages": [("system", "Be brief."), ("user", state["question"])], "question": "scored"}

    seen = []
    rig.scorer.score, score = (lambda q, s: seen.append(q) or score(q, s)), rig.scorer.score
    node = trim_node(rig.graph, problem=problem, solution="solution", form="answer")
    assert desk(node).invoke({"question": "2 + 2?"})["solution"] == "4"
    assert rig.prompts("small")[0][0].content.startswith("Be brief.")
    assert set(seen) == {"scored"}


def test_a_state_of_pydantic_is_read_too(rig):
    class Ticket(BaseModel):
        question: str
        solution: str = ""

    builder = StateGraph(Ticket)
    builder.add_node("solve", trim_node(rig.graph, problem="question", solution="solution", form="text"))
    builder.add_edge(START, "solve")
    assert builder.compile().invoke({"question": "2 + 2?"})["solution"] == TEXT


@pytest.mark.parametrize(
    ("problem", "given", "message"),
    [
        ("query", {"question": "2 + 2?"}, "state has no 'query': name the key with the problem in it"),
        ("bill", {"bill": {"a": 1}}, r"the parent's 'bill' is \{'a': 1\}: give a text or a list of messages"),
        (lambda state: 7, {"question": "2"}, "what the function `problem` returned is 7"),
        ("question", {"question": " "}, "the question is empty"),
    ],
)
def test_a_problem_that_is_none_is_refused_before_any_model_call(rig, problem, given, message):
    with pytest.raises(InputError, match=message):
        desk(trim_node(rig.graph, problem=problem, solution="solution", form="text")).invoke(given)
    assert rig.unasked


def test_an_unknown_form_is_refused_when_the_node_is_made(rig):
    with pytest.raises(SettingsError, match="form is 'str': choose message, conversation, text, answer"):
        trim_node(rig.graph, form="str")


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("keys", [{"solution": "solutoin"}, {"solution": "solution", "summary": "bil"}])
async def test_a_key_that_the_parent_lacks_is_refused_before_any_model_call(rig, keys, asynchronously):
    name, key = list(keys.items())[-1]
    app, given = desk(trim_node(rig.graph, problem="question", form="text", **keys)), {"question": "2 + 2?"}
    with pytest.raises(SettingsError, match=f"{name} is '{key}', and the parent's state has no such key"):
        await app.ainvoke(given) if asynchronously else app.invoke(given)
    assert rig.unasked


def test_without_a_state_around_it_any_key_will_do(rig):
    node = trim_node(rig.graph, problem="question", solution="anything", form="text")

    @entrypoint()
    def flow(question: str) -> Any:
        return node.invoke({"question": question})

    assert flow.invoke("2 + 2?") == node.invoke({"question": "2 + 2?"}) == {"anything": TEXT}


def test_what_is_no_graph_is_refused_when_the_node_is_made(rig):
    with pytest.raises(
        SettingsError, match="graph is of type ScriptedChatModel: pass what create_trim_graph"
    ):
        trim_node(rig.small)
    with pytest.raises(SettingsError, match="graph is of type StateGraph"):
        trim_node(StateGraph(Desk))


@dataclass
class AppContext:
    user: str = "ada"
    trim: Any = None


@pytest.mark.parametrize("wrapped", [False, True], ids=["shared messages", "wrapper node"])
def test_the_parents_context_reaches_the_run(rig, wrapped):
    context = AppContext(trim=TrimContext(max_steps=1))
    if wrapped:
        app = desk(trim_node(rig.graph, problem="question", solution="solution", form="text"), AppContext)
        assert app.invoke({"question": "2 + 2?"}, context=context)["solution"] == "small one"
    else:
        app = StateGraph(MessagesState, AppContext).add_node("solve", rig.graph).add_edge(START, "solve")
        result = app.compile().invoke({"messages": "2 + 2?"}, context=context)
        assert result["messages"][-1].text == "small one"


def test_a_wrapped_run_inherits_the_checkpointer_and_goes_on_after_a_crash(make):
    gone = [True]

    def broken(prefix):
        if gone:
            gone.clear()
            raise ConnectionError("gone")
        return "LARGE two\n\nand on"

    rig = make(large=broken)
    node = trim_node(rig.graph, problem="question", solution="solution", form="text")
    app = desk(node, checkpointer=InMemorySaver())
    with pytest.raises(ConnectionError):
        app.invoke({"question": "2 + 2?"}, THREAD, durability="sync")
    assert app.invoke(None, THREAD, durability="sync")["solution"] == TEXT
    assert len(rig.small.calls) == 4, "no accepted step was written twice"


@pytest.mark.parametrize("wrapped", [False, True], ids=["shared messages", "wrapper node"])
def test_a_drain_ends_a_run_inside_a_parent_after_the_call_in_progress(make, wrapped):
    """Unlike Ctrl-C, for which LangGraph waits until the node is done."""
    control = RunControl()

    def interrupted(prefix):
        control.request_drain("Ctrl-C")
        return "LARGE two\n\nand on"

    rig = make(large=interrupted)
    if wrapped:
        node = trim_node(rig.graph, problem="question", solution="solution", form="text")
        app, given = desk(node, checkpointer=InMemorySaver()), {"question": "2 + 2?"}
    else:
        builder = StateGraph(MessagesState).add_node("solve", rig.graph).add_edge(START, "solve")
        app, given = builder.compile(checkpointer=InMemorySaver()), {"messages": "2 + 2?"}
    with pytest.raises(GraphDrained):
        list(app.stream(given, THREAD, stream_mode="custom", durability="sync", control=control))
    assert (len(rig.small.calls), len(rig.large.calls)) == (2, 1)
    result = app.invoke(None, THREAD, durability="sync")
    assert (result["solution"] if wrapped else result["messages"][-1].text) == TEXT
    assert (len(rig.small.calls), len(rig.large.calls)) == (4, 1), "no step was written twice"


# Parallel branches, loops, several runs on a thread


def in_parallel(*graphs, **compiled):
    builder = StateGraph(MessagesState)
    for index, graph in enumerate(graphs):
        builder.add_node(f"solver {index}", graph)
        builder.add_edge(START, f"solver {index}")
    return builder.compile(**compiled)


@pytest.mark.parametrize("kept", [False, True], ids=["plain", "checkpointed"])
def test_parallel_branches_do_not_disturb_each_other(make, kept):
    first, second = make(), make(["other one", "other \\boxed{2}"], policy=small_only(), scorer=None)
    app = in_parallel(first.graph, second.graph, checkpointer=InMemorySaver() if kept else None)
    result = app.invoke({"messages": "2 + 2?"}, THREAD)
    answers = [message.text for message in result["messages"] if isinstance(message, AIMessage)]
    assert answers == [TEXT, "other one\n\nother \\boxed{2}"]


def test_one_graph_serves_many_branches_at_once(rig):
    class Many(TypedDict):
        solutions: Annotated[list, operator.add]

    def ask(state):
        return [Send("solve", {"question": f"{n} + {n}?"}) for n in range(5)]

    builder = StateGraph(Many)
    builder.add_node("solve", trim_node(rig.graph, problem="question", solution="solutions"))
    builder.add_conditional_edges(START, ask, ["solve"])
    result = builder.compile(checkpointer=InMemorySaver()).invoke({"solutions": []}, THREAD)
    assert [message.text for message in result["solutions"]] == [TEXT] * 5
    assert len({message.id for message in result["solutions"]}) == 5
    assert len(rig.small.calls) == 4 * 5


@pytest.mark.parametrize("kept", [None, True, False])
def test_in_a_loop_every_round_starts_clean(make, kept):
    rig = make(checkpointer=kept)

    def check(state):
        answers = [message for message in state["messages"] if isinstance(message, AIMessage)]
        if len(answers) == 3:
            return Command(goto=END)
        return Command(update={"messages": [HumanMessage("Once more.")]}, goto="solve")

    builder = StateGraph(MessagesState).add_node("solve", rig.graph)
    builder.add_node("check", check, destinations=("solve", END))
    builder.add_edge(START, "solve").add_edge("solve", "check")
    result = builder.compile(checkpointer=InMemorySaver()).invoke({"messages": "2 + 2?"}, THREAD)
    answers = [message for message in result["messages"] if isinstance(message, AIMessage)]
    assert [answer.text for answer in answers] == [TEXT] * 3
    assert {tuple(a.response_metadata["trim"]["steps"].values()) for a in answers} == {(3, 1)}


def test_two_runs_in_one_node_do_not_mix(rig):
    def both(state):
        texts = [rig.graph.invoke({"messages": q})["messages"][-1].text for q in ("1 + 1?", "2 + 2?")]
        return {"log": texts}

    assert desk(both, checkpointer=InMemorySaver()).invoke({"question": ""}, THREAD)["log"] == [TEXT] * 2


def test_a_second_question_on_the_parents_thread_starts_clean(rig):
    app = desk(
        trim_node(rig.graph, problem="question", solution="solution", form="text", summary="bill"),
        checkpointer=InMemorySaver(),
    )
    first = app.invoke({"question": "1 + 1?"}, THREAD)
    second = app.invoke({"question": "2 + 2?"}, THREAD)
    assert first["solution"] == second["solution"] == TEXT
    assert second["bill"]["steps"] == {"small": 3, "large": 1}
    assert [m.content for m in rig.prompts("small")[-1] if m.type == "human"] == ["2 + 2?"]


# What is streamed, what leaks


def test_subgraphs_true_gives_step_events_and_accepted_text_only(rig):
    app = in_parallel(rig.graph)
    modes = ["custom", "messages"]
    stream = list(app.stream({"messages": "2 + 2?"}, stream_mode=modes, subgraphs=True))
    namespaces = {namespace for namespace, _, _ in stream}
    assert all(len(namespace) == 1 and namespace[0].startswith("solver 0:") for namespace in namespaces)
    events = [item["event"] for _, mode, item in stream if mode == "custom"]
    step = ["draft", "decision", "accepted"]
    assert events == ["started", *step * 4, "finished"]
    chunks = [item[0] for _, mode, item in stream if mode == "messages"]
    assert "".join(chunk.text for chunk in chunks) == TEXT
    assert "small two" not in "".join(chunk.text for chunk in chunks), "the rejected draft"


@pytest.mark.parametrize("wrapped", [False, True], ids=["shared messages", "wrapper node"])
@pytest.mark.parametrize("mode", ["values", "updates", "debug", "tasks"])
def test_no_private_channel_leaks_into_the_parents_stream(rig, wrapped, mode):
    if wrapped:
        node = trim_node(rig.graph, problem="question", solution="solution", form="text")
        app, given = desk(node), {"question": "2 + 2?"}
    else:
        app, given = in_parallel(rig.graph), {"messages": "2 + 2?"}

    def keys(item):
        if isinstance(item, dict):
            return set(item) | {key for value in item.values() for key in keys(value)}
        return {key for value in item for key in keys(value)} if isinstance(item, list | tuple) else set()

    for item in app.stream(given, stream_mode=mode):
        assert not keys(item) & (PRIVATE - {"question"})


# The parent's recursion limit


@pytest.mark.parametrize("wrapped", [False, True], ids=["shared messages", "wrapper node"])
def test_a_parents_low_limit_ends_in_a_partial_answer_or_is_refused(make, wrapped):
    rig = make([f"step {n}" for n in range(40)], scores={})
    node = trim_node(rig.graph, problem="question", solution="solution", form="text", summary="bill")
    app = desk(node) if wrapped else in_parallel(rig.graph)
    given = {"question": "2 + 2?"} if wrapped else {"messages": "2 + 2?"}
    for limit in (RECURSION_FLOOR, 15, 30):
        result = app.invoke(given, {"recursion_limit": limit})
        summary = result["bill"] if wrapped else result["messages"][-1].response_metadata["trim"]
        assert summary["stopped"] == "recursion_limit"
        assert summary["steps"]["small"] >= 1
    asked = len(rig.small.calls)
    with pytest.raises(SettingsError, match=f"recursion_limit={RECURSION_FLOOR - 1} is too low"):
        app.invoke(given, {"recursion_limit": RECURSION_FLOOR - 1})
    assert len(rig.small.calls) == asked


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
async def test_a_wrapper_node_does_not_shorten_a_long_solution(make, asynchronously):
    rig = make([f"step {n}" for n in range(20)], scores={})
    app = desk(trim_node(rig.graph, problem="question", solution="solution", form="text", summary="bill"))
    given = {"question": "2 + 2?"}
    result = await app.ainvoke(given) if asynchronously else app.invoke(given)
    assert result["bill"]["stopped"] == "finished"


class WithQuestion(MessagesState):
    """A state whose key ``question`` the graph shares, whatever it means there."""

    question: str


def with_question(node: Any) -> Any:
    builder = StateGraph(WithQuestion)
    builder.add_node("solve", node)
    builder.add_edge(START, "solve")
    return builder.compile()


@pytest.mark.parametrize("question", ["billing", "Who are you?"])
def test_a_parents_question_that_the_user_has_not_asked_is_refused_before_any_call(make, question):
    rig = make()
    given = {"messages": [("user", "Please say: what is 2 + 2?")], "question": question}
    with pytest.raises(InputError, match=rf"key question holds '{re.escape(question)}', .*trim_node"):
        with_question(rig.graph).invoke(given)
    assert (rig.small.calls, rig.large.calls, rig.scorer.calls) == ([], [], [])


def test_a_parents_question_that_is_in_a_message_is_the_scorers(make):
    asked = []
    rig = make(scorer=lambda question, steps: asked.append(question) or [1.0] * len(steps))
    question = "what is  2 + 2?"
    with_question(rig.graph).invoke({"messages": [("user", f"Please: {question}")], "question": question})
    assert set(asked) == {question}


def test_trim_node_leaves_a_parents_question_alone(make):
    asked = []
    rig = make(scorer=lambda question, steps: asked.append(question) or [1.0] * len(steps))
    with_question(trim_node(rig.graph)).invoke(
        {"messages": [("user", "What is 2 + 2?")], "question": "billing"}
    )
    assert set(asked) == {"What is 2 + 2?"}
