"""What a user of `create_trim_graph` builds, embeds and gets refused."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.chat_models import init_chat_model
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from typing_extensions import TypedDict

from trim_graph.budget import ModelPrice, Prices
from trim_graph.errors import SettingsError, TrimError
from trim_graph.graph import create_trim_graph
from trim_graph.policies import Policy, large_only, random_rate, small_only, threshold
from trim_graph.settings import TrimContext
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

MODEL = ScriptedChatModel(script=["one"])
THREAD = {"configurable": {"thread_id": "1"}}


# What is refused when the graph is built


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"max_step": 5}, "unknown setting max_step, did you mean max_steps. There are: .*max_steps"),
        ({"max_steps": 0}, "max_steps: .*got 0"),
        ({"max_step_tokens": 0}, "max_step_tokens"),
        ({"delimiter": ""}, "delimiter"),
        ({"budget": {"large_tokens": 1.5}}, r"budget\.large_tokens"),
        ({"budget": {"tokens": 5}}, r"budget\.tokens"),
        ({"prices": {"small": {"input": -1}}}, r"prices\.small\.input"),
        ({"scorer": None}, r"threshold\(0\.5\) needs scores, but scorer is None"),
        ({"scorer": ScriptedScorer}, "class ScriptedScorer"),
        ({"scorer": "prm"}, "scorer is 'prm'"),
        ({"small": "gpt"}, "small is 'gpt'"),
        ({"large": ScriptedChatModel}, "large is .*ScriptedChatModel"),
        ({"policy": threshold}, "class threshold"),
        ({"policy": None}, "policy is None"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(arguments, named):
    given = {"small": MODEL, "large": MODEL, "scorer": ScriptedScorer(), "policy": threshold(0.5)} | arguments
    with pytest.raises(SettingsError, match=named):
        create_trim_graph(**given)


def test_every_error_on_purpose_is_a_trim_error():
    assert issubclass(SettingsError, TrimError)
    assert issubclass(SettingsError, ValueError)


# What is built


def test_the_graph_has_five_nodes_and_names_itself(make):
    graph = make(name="solver").graph
    assert graph.name == "solver"
    nodes = {"route", "generate_step", "score_step", "ask_human", "finalize"}
    assert set(graph.nodes) - {"__start__"} == nodes
    assert "score_step" not in make(policy=small_only(), scorer=None).graph.nodes


def test_route_names_update_and_next_node_in_one_command(rig):
    edges = {(edge.source, edge.target, edge.conditional) for edge in rig.graph.get_graph().edges}
    assert {edge for edge in edges if edge[0] == "route"} == {
        ("route", "generate_step", True),
        ("route", "ask_human", True),
        ("route", "finalize", True),
    }


def test_its_schemas_show_what_goes_in_and_comes_out(rig):
    assert set(rig.graph.get_input_jsonschema()["properties"]) == {"messages", "question"}
    assert set(rig.graph.get_output_jsonschema()["properties"]) == {"messages", "trim"}
    context = rig.graph.get_context_jsonschema()["properties"]
    assert set(context) == {
        "threshold",
        "steps",
        "policy",
        "max_steps",
        "max_step_tokens",
        "seed",
        "budget",
        "quotas",
        "large_alone",
        "ask_below",
        "lookahead",
        "max_tokens",
        "warm_large",
        "user",
        "on_scorer_error",
        "on_large_error",
        "on_small_error",
    }
    assert all("description" in field for field in context.values())


def test_messages_may_be_given_in_every_shape_langgraph_takes(rig):
    for messages in ("2 + 2?", [("user", "2 + 2?")], [{"role": "user", "content": "2 + 2?"}]):
        result = rig.graph.invoke({"messages": messages})
        assert result["messages"][0].content == "2 + 2?"
        assert rig.prompts("small")[-1][1].content == "2 + 2?"


def test_a_wrapped_model_serves_as_well(make):
    bound = ScriptedChatModel(script=["one", "two"]).bind(temperature=0).with_retry()
    assert make(bound, scores={}).ask()["trim"]["steps"]["small"] == 2
    plain = RunnableLambda(lambda messages, **_: MODEL.invoke(messages))
    plain.continues_exactly = True
    assert make(plain, policy=small_only()).ask()["trim"]["stopped"] == "finished"


def answering(text):
    usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    return AIMessage(text, usage_metadata=usage, response_metadata={"finish_reason": "stop"})


def test_a_runnable_that_does_not_say_it_continues_exactly_is_asked_by_prompt(make):
    asked = []

    def answer(messages, **call):
        asked.append(messages)
        return answering("[[STEP]]\nIt is 4.\n[[DONE]]")

    result = make(RunnableLambda(answer), policy=small_only(), scorer=None).ask()
    assert result["messages"][-1].text == "It is 4."
    assert "the small model continues by prompt" in result["trim"]["notes"][0]
    assert "[[DONE]]" in asked[0][-1].text


class Choosable(ScriptedChatModel):
    """A foreign model, one of whose fields is chosen by the call."""

    continues_exactly: ClassVar[bool] = False
    said: str = "[[STEP]]\nby default\n[[DONE]]"

    def _generate(self, messages, *given, **call):
        made = super()._generate([HumanMessage("2 + 2?")], *given, **call)
        made.generations[0].message = answering(self.said)
        return made


@pytest.mark.parametrize("asynchronously", [False, True])
def test_what_a_call_chooses_of_a_configurable_model_reaches_it_when_asked_by_prompt(make, asynchronously):
    model = Choosable(script=["x"]).configurable_fields(said=ConfigurableField("said"))
    rig = make(model, policy=small_only(), scorer=None)
    config = {"configurable": {"said": "[[STEP]]\nas chosen\n[[DONE]]"}}
    for chosen, said in ((None, "by default"), (config, "as chosen")):
        given = {"messages": [("user", "2 + 2?")]}
        run = rig.graph.ainvoke(given, chosen) if asynchronously else None
        result = asyncio.run(run) if run else rig.graph.invoke(given, chosen)
        assert result["messages"][-1].text == said


def test_a_model_whose_alternatives_do_not_all_continue_exactly_is_asked_by_prompt(make):
    exact = ScriptedChatModel(script=["[[STEP]]\nexact\n[[DONE]]"])
    field = ConfigurableField("which")
    for other, noted in ((Choosable(script=["x"]), True), (exact, False), (lambda: exact, True)):
        model = exact.configurable_alternatives(field, other=other)
        notes = make(model, policy=small_only(), scorer=None).ask()["trim"]["notes"]
        assert ("the small model continues by prompt" in " ".join(notes)) is noted


def test_a_model_that_the_call_configures_is_not_made_before(make, monkeypatch):
    made = []
    monkeypatch.setattr(
        "langchain.chat_models.base._init_chat_model_helper",
        lambda *given, **options: made.append(options) or Choosable(script=["x"]),
    )
    model = init_chat_model("openai:m", configurable_fields=("model",))
    prices = Prices(large=ModelPrice(input=1.0, output=1.0))
    rig = make(model, model, policy=large_only(), scorer=None, prices=prices)
    assert made == []
    result = rig.graph.invoke({"messages": [("user", "2 + 2?")]}, {"configurable": {"model": "other"}})
    assert result["messages"][-1].text == "by default"
    assert [options["model"] for options in made] == ["other"]


@pytest.mark.parametrize("part", ["small", "large"])
def test_a_runnable_that_cannot_be_asked_is_refused_when_the_graph_is_built(part):
    prompt = ChatPromptTemplate.from_messages([("placeholder", "{messages}")])
    foreign = Choosable(script=["x"])
    for wrong, message in (
        (prompt | foreign, "max_tokens among them, to its first part only"),
        ((prompt | foreign).with_retry(), "max_tokens among them, to its first part only"),
        (foreign.with_fallbacks([prompt | foreign]), "max_tokens among them, to its first part only"),
        (FakeListLLM(responses=["four"]), "FakeListLLM returns .*str"),
        (create_trim_graph(MODEL, MODEL, policy=small_only()), "TrimGraph returns"),
    ):
        models = {"small": MODEL, "large": MODEL, part: wrong}
        with pytest.raises(SettingsError, match=f"{part} cannot write steps: .*{message}"):
            create_trim_graph(**models, policy=small_only())


def test_a_step_may_have_no_more_than_max_step_tokens(make):
    rig = make(max_step_tokens=77)
    rig.ask()
    assert {call["max_tokens"] for call in rig.small.calls + rig.large.calls} == {77}


def test_a_solution_has_no_more_than_max_steps(make):
    rig = make([f"step {n}" for n in range(50)], max_steps=5)
    summary = rig.ask()["trim"]
    assert (summary["stopped"], summary["steps"]["small"]) == ("max_steps", 5)
    assert len(rig.small.calls) == 5


class Fickle(Policy):
    def next_writer(self, observation):
        return observation.random().choice(["small", "small", "large", "large_to_end"])

    def decide(self, observation):
        return observation.random().choice(["accept", "accept", "regenerate", "handover"])


def without_seconds(value):
    """Returns a summary without what was measured, at any depth."""
    if not isinstance(value, dict):
        return value
    return {key: without_seconds(inner) for key, inner in value.items() if key != "seconds"}


texts = st.lists(st.sampled_from(["a", "b c", "---", "", "d e f g h i j"]), min_size=1, max_size=7)


@settings(max_examples=40, deadline=None)
@given(small=texts, large=texts, seed=st.integers(0, 999), tokens=st.integers(1, 9))
def test_sync_and_async_do_the_same(make, small, large, seed, tokens):
    def outcome(asynchronously):
        rig = make(small, large, policy=Fickle(), seed=seed, max_step_tokens=tokens, max_steps=9)
        result = rig.solve(asynchronously=asynchronously)
        summary = without_seconds(result["trim"])
        asked = [[m.content for m in prompt] for prompt in rig.prompts("small") + rig.prompts("large")]
        return result["messages"][-1].content, summary, asked

    assert outcome(False) == outcome(True)


async def test_runs_at_the_same_time_do_not_disturb_each_other(make):
    rig = make(policy=random_rate(0.5), scorer=None, seed=1)
    alone = {question: (await rig.aask(question))["messages"][-1].content for question in "abcdef"}
    together = await asyncio.gather(*(rig.aask(question) for question in "abcdef"))
    assert [result["messages"][-1].content for result in together] == list(alone.values())


# As part of an application


class AppState(TypedDict, total=False):
    messages: Annotated[list, add_messages]
    steps: str
    draft: str
    memory: str
    checked: bool


def application(graph: Any, context_schema: Any = None, **compiled: Any) -> Any:
    parent = StateGraph(AppState, context_schema)
    parent.add_node("solve", graph)
    parent.add_node("check", lambda state: {"checked": state["messages"][-1].content.startswith("small")})
    parent.add_edge(START, "solve")
    parent.add_edge("solve", "check")
    parent.add_edge("check", END)
    return parent.compile(**compiled)


OWN = {"steps": "of the app", "draft": "of the app", "memory": "of the app"}


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_a_parent_shares_its_messages_and_nothing_else(rig, asynchronously):
    app = application(rig.graph)
    given = {"messages": [("system", "Be brief."), ("user", "2 + 2?")], **OWN}
    result = asyncio.run(app.ainvoke(given)) if asynchronously else app.invoke(given)
    assert set(result) == {"messages", "steps", "draft", "memory", "checked"}
    assert {key: result[key] for key in OWN} == OWN
    assert result["checked"] is True
    assert [message.type for message in result["messages"]] == ["system", "human", "ai"]


def test_a_parents_updates_show_no_private_channel(rig):
    given = {"messages": "2 + 2?", **OWN}
    first, _ = application(rig.graph).stream(given, stream_mode="updates")
    assert set(first["solve"]) == {"messages"}


@dataclass
class AppContext:
    trim: Any = None
    max_steps: int = 1


@pytest.mark.parametrize(
    "context", [AppContext(trim={"max_steps": 2}), AppContext(trim=TrimContext(max_steps=2))]
)
def test_a_parents_context_overrides_under_trim_only(rig, context):
    app = application(rig.graph, AppContext)
    assert app.invoke({"messages": "2 + 2?"}, context=context)["messages"][-1].content.count("\n\n") == 1
    whole = app.invoke({"messages": "2 + 2?"}, context=AppContext())["messages"][-1].content
    assert whole.count("\n\n") == 3


def test_a_parents_dict_context_overrides_under_trim(rig):
    app = application(rig.graph)
    result = app.invoke({"messages": "2 + 2?"}, context={"trim": {"max_steps": 1}, "user": "ada"})
    assert result["messages"][-1].content == "small one"


def test_a_parents_checkpointer_is_inherited(rig):
    app = application(rig.graph, checkpointer=InMemorySaver())
    app.invoke({"messages": "2 + 2?"}, THREAD, interrupt_before=["check"])
    state = app.get_state(THREAD)
    assert state.next == ("check",)
    result = app.invoke(None, THREAD)
    assert result["messages"][-1].content.startswith("small one")
    assert len(rig.small.calls) == 4


def test_a_parent_crashed_in_the_middle_goes_on_where_the_run_was(make):
    class Failing(ScriptedChatModel):
        failed: bool = False

        def _generate(self, *args, **kwargs):
            if not self.failed:
                self.failed = True
                raise ConnectionError("gone")
            return super()._generate(*args, **kwargs)

    rig = make(large=Failing(script=["LARGE one", "LARGE two", "LARGE three"]))
    app = application(rig.graph, checkpointer=InMemorySaver())
    with pytest.raises(ConnectionError):
        app.invoke({"messages": "2 + 2?"}, THREAD, durability="sync")
    result = app.invoke(None, THREAD, durability="sync")
    assert result["messages"][-1].content == "small one\n\nLARGE two\n\nsmall three\n\nso it is \\boxed{4}"
    assert len(rig.small.calls) == 4, "no accepted step was written twice"


@pytest.mark.parametrize("kept", [None, True])
def test_a_subgraph_asked_twice_on_a_thread_starts_clean(make, kept):
    rig = make(checkpointer=kept)
    app = application(rig.graph, checkpointer=InMemorySaver())
    for asked in range(1, 3):
        result = app.invoke({"messages": "2 + 2?"}, THREAD)
        assert len(rig.small.calls) == 4 * asked
    answers = [message for message in result["messages"] if isinstance(message, AIMessage)]
    assert len(answers) == 2
    assert answers[0].id != answers[1].id
    assert [answer.response_metadata["trim"]["steps"]["small"] for answer in answers] == [3, 3]


def test_a_parent_without_durable_state_and_with_plain_messages_works(rig):
    parent = StateGraph(MessagesState)
    parent.add_node("solve", lambda state: {"messages": rig.graph.invoke(state)["messages"][-1:]})
    parent.add_edge(START, "solve")
    result = parent.compile().invoke({"messages": [HumanMessage("2 + 2?")]})
    assert [message.type for message in result["messages"]] == ["human", "ai"]
