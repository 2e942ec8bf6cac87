"""The router as a chat model: one call to whoever uses it, whatever happens inside."""

from __future__ import annotations

import asyncio
import pickle
import re

import pytest
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tracers.base import BaseTracer
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel, ValidationError

from trim_graph import InputError, SettingsError, TrimChatModel, TrimContext, create_trim_chat_model
from trim_graph.policies import large_only, small_only, threshold
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

TEXT = "small one\n\nLARGE two\n\nsmall three\n\nso it is \\boxed{4}"
CHUNKS = ["small one", "\n\nLARGE two", "\n\nsmall three", "\n\nso it is \\boxed{4}"]


@pytest.fixture
def model(rig):
    return TrimChatModel(graph=rig.graph)


class Seen(BaseCallbackHandler):
    def __init__(self):
        self.starts, self.tokens = [], []

    def on_chat_model_start(self, serialized, messages, **kwargs):
        self.starts.append(kwargs.get("name"))

    def on_llm_new_token(self, token, **kwargs):
        self.tokens.append(token)


class Tracer(BaseTracer):
    def __init__(self):
        super().__init__()
        self.roots, self.runs = [], []

    def _on_run_create(self, run):
        self.runs.append(run)

    def _persist_run(self, run):
        self.roots.append(run)


async def test_every_way_to_call_it_gives_the_same(model):
    question = "What is 2 + 2?"
    answers = [
        model.invoke(question),
        await model.ainvoke(question),
        *model.batch([question] * 2),
        *await model.abatch([question] * 2),
    ]
    for answer in answers:
        assert answer.content == TEXT
        assert answer.usage_metadata == answers[0].usage_metadata
        assert answer.response_metadata["trim"]["answer"] == "4"
        assert answer.response_metadata["trim"]["steps"] == {"small": 3, "large": 1}
        first, second, *_ = answer.response_metadata["trim_steps"]
        assert (first["writer"], first["decision"], first["draft_score"]) == ("small", "accept", 1.0)
        assert (second["writer"], second["decision"], second["draft_score"]) == ("large", "regenerate", 0.1)


async def test_drafts_are_streamed_as_they_are_accepted(model):
    whole = model.invoke("?")
    for chunks in (list(model.stream("?")), [chunk async for chunk in model.astream("?")]):
        assert [chunk.content for chunk in chunks if chunk.content] == CHUNKS
        joined = chunks[0]
        for chunk in chunks[1:]:
            joined += chunk
        assert joined.usage_metadata == whole.usage_metadata
        assert joined.response_metadata["trim"]["steps"] == {"small": 3, "large": 1}
        assert isinstance(joined, AIMessageChunk)


async def test_the_first_step_arrives_before_the_last_is_written(rig, model):
    stream = model.astream("?")
    await anext(stream)
    written = len(rig.small.calls)
    await stream.aclose()
    await asyncio.sleep(0)
    assert written < 4


async def test_usage_is_counted_once_with_discarded_drafts(rig, model):
    usage = UsageMetadataCallbackHandler()
    answer = model.invoke("?", {"callbacks": [usage]})
    spent = sum(call["tokens"] for call in rig.small.calls + rig.large.calls)
    assert answer.usage_metadata["output_tokens"] == spent
    (counted,) = usage.usage_metadata.values()
    assert counted["output_tokens"] == spent
    usage = UsageMetadataCallbackHandler()
    await model.ainvoke("?", {"callbacks": [usage]})
    (counted,) = usage.usage_metadata.values()
    assert counted["output_tokens"] == spent


async def test_callbacks_see_one_call_and_tracers_all(model):
    seen, tracer = Seen(), Tracer()
    list(model.stream("?", {"callbacks": [seen, tracer]}))
    assert len(seen.starts) == 1
    assert [token for token in seen.tokens if token] == CHUNKS
    (root,) = tracer.roots
    assert root.name == "TrimChatModel"
    names = [run.name for run in tracer.runs]
    assert (names.count("tiny"), names.count("huge")) == (4, 1)
    (graph,) = [run for run in tracer.runs if run.parent_run_id == root.id]
    assert graph.name == "trim"
    events = [event async for event in model.astream_events("?", version="v2")]
    assert {event["name"] for event in events} == {"TrimChatModel"}


async def test_inside_a_graph_it_keeps_to_itself(rig, model):
    """Neither the parent's recursion limit nor its checkpointer nor its streams reach in."""

    async def solve(state):
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("solve", solve)
    builder.add_edge(START, "solve")
    saver = InMemorySaver()
    graph = builder.compile(checkpointer=saver)
    config = {"configurable": {"thread_id": "1"}, "recursion_limit": 3}
    usage = UsageMetadataCallbackHandler()
    streamed = [
        item
        async for item in graph.astream(
            {"messages": "?"},
            {**config, "callbacks": [usage]},
            stream_mode=["messages", "custom", "values"],
            subgraphs=True,
        )
    ]
    values = [data for _, mode, data in streamed if mode == "values"]
    assert values[-1]["messages"][-1].content == TEXT
    assert not [item for item in streamed if item[1] == "custom"]
    text = "".join(data[0].content for _, mode, data in streamed if mode == "messages")
    assert text == TEXT
    assert len(usage.usage_metadata) == 1
    assert len(list(saver.list(config))) <= 3
    assert {c.config["configurable"]["checkpoint_ns"] for c in saver.list(config)} == {""}


def test_a_chain_takes_it(model):
    chain = ChatPromptTemplate.from_messages([("human", "{question}")]) | model | StrOutputParser()
    assert chain.invoke({"question": "What is 2 + 2?"}) == TEXT
    assert next(iter(chain.stream({"question": "?"}))) == CHUNKS[0]


@pytest.mark.parametrize("given", [{"threshold": 0.0}, TrimContext(threshold=0.0)])
def test_a_call_may_go_by_other_settings(model, given):
    answer = model.invoke("?", trim=given)
    assert answer.response_metadata["trim"]["steps"]["large"] == 0
    assert model.bind(trim=given).invoke("?").content == answer.content


@pytest.mark.parametrize(("policy", "large"), [("small", 0), ("large", 4), (0.05, 0), (0.5, 1)])
def test_a_call_may_name_a_model_or_a_threshold(model, policy, large):
    for bound in (model.bind(trim={"policy": policy}), model.bind(trim=TrimContext(policy=policy))):
        assert bound.invoke("?").response_metadata["trim"]["steps"]["large"] == large


def test_a_call_that_names_no_policy_is_refused_and_the_setting_named(model):
    with pytest.raises(ValidationError, match=r"policy is 1\.5: choose small, large, a threshold"):
        model.invoke("?", trim={"policy": 1.5})
    with pytest.raises(SettingsError, match=r"policy is not valid: .*medium"):
        model.invoke("?", trim={"policy": "medium"})


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ([" two"], "small one\n\nLARGE"),
        (["one\n\nLA"], "small "),
        (["never", "three"], "small one\n\nLARGE two\n\nsmall "),
        (["never"], TEXT),
        (["s"], ""),
    ],
)
async def test_a_text_ends_at_a_stop_string_wherever_it_is(rig, model, stop, text):
    whole = model.invoke("?", stop=stop)
    assert whole.content == text
    assert (whole.response_metadata["stop_reason"] is None) == (text == TEXT)
    assert whole.response_metadata["trim"]["stopped"] == ("finished" if text == TEXT else "stop_string")
    assert whole.usage_metadata["output_tokens"] > 0
    streamed = [chunk.content async for chunk in model.astream("?", stop=stop)]
    assert "".join(streamed) == text
    assert TrimChatModel(graph=rig.graph, stop=stop).invoke("?").content == text


async def test_max_tokens_are_those_of_the_graph(rig, model):
    own = TrimChatModel(graph=rig.graph, max_tokens=4)
    asked = rig.graph.invoke({"messages": [("user", "?")]}, context={"trim": {"max_tokens": 4}})
    given = {"max_tokens": 4}
    for answer in (model.invoke("?", **given), model.invoke("?", trim=given), own.invoke("?")):
        assert answer.content == asked["messages"][-1].text
        assert answer.content.startswith("small one\n\n")
        assert answer.response_metadata["finish_reason"] == "length"
        summary = answer.response_metadata["trim"]
        assert summary["stopped"] == "max_tokens"
        assert summary["tokens"]["small"] + summary["tokens"]["large"] <= 4
    assert "".join([c.content async for c in model.astream("?", max_tokens=1)]) == "small"
    assert own.invoke("?", max_tokens=999).response_metadata["finish_reason"] == "stop"
    with pytest.raises(ValueError, match="max_tokens and that of trim are both given"):
        model.invoke("?", max_tokens=3, trim={"max_tokens": 4})
    with pytest.raises(ValueError, match="max_tokens=0"):
        model.invoke("?", max_tokens=0)


def test_what_it_cannot_do_is_refused(rig, model):
    class Answer(BaseModel):
        value: int

    def lookup(word: str) -> str:
        """Look a word up."""
        return word

    agent = "create_agent(small, tools, middleware=[TrimMiddleware(large, scorer, policy=...)]"
    with pytest.raises(NotImplementedError, match=re.escape(f"middleware: {agent}), with")) as refused:
        create_agent(model, [lookup]).invoke({"messages": [("user", "?")]})
    assert "trim_graph.agents" in str(refused.value)
    with pytest.raises(NotImplementedError, match=re.escape(f"{agent}, response_format=Schema)")):
        model.with_structured_output(Answer)
    with pytest.raises(ValueError, match=r"does not know the call setting.*temperature"):
        model.invoke("?", temperature=1.0)
    with pytest.raises(ValidationError, match="temperature"):
        TrimChatModel(graph=rig.graph, temperature=1.0)
    with pytest.raises(ValidationError, match="create_trim_graph built"):
        TrimChatModel(graph="graph")
    with pytest.raises(InputError, match="question is empty"):
        model.invoke(" ")


def test_a_graph_with_a_checkpointer_is_refused(make):
    with pytest.raises(ValidationError, match="calls have no thread"):
        TrimChatModel(graph=make(checkpointer=InMemorySaver()).graph)


def test_it_is_built_in_one_go():
    small, large = ScriptedChatModel(script=["a", "b"]), ScriptedChatModel(script=["A", "B"])
    model = create_trim_chat_model(small, large, ScriptedScorer({"b": 0.0}), policy=threshold(0.5))
    assert model.invoke("?").content == "a\n\nB"
    assert repr(model).startswith("TrimChatModel(small='ScriptedChatModel', large='ScriptedChatModel', ")
    assert "script=" not in repr(model)
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.dumps(model)


async def test_cancelling_a_call_ends_the_run(make):
    reached = asyncio.Event()

    class Slow(ScriptedChatModel):
        async def _agenerate(self, *args, **kwargs):
            reached.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append(True)
                raise

    ended = []
    rig = make(Slow(script=["a"]))
    task = asyncio.create_task(TrimChatModel(graph=rig.graph).ainvoke("?"))
    await asyncio.wait_for(reached.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


async def test_an_answer_without_a_step_is_asked_again(make):
    def script(prefix):
        return "\n\nfirst\n\nlast" if not prefix else "first\n\nlast" if not prefix.strip() else "last"

    model = TrimChatModel(graph=make(script, policy=small_only()).graph)
    assert model.invoke("?").content == (await model.ainvoke("?")).content == "first\n\nlast"


def test_a_cache_does_not_take_one_router_for_another(make):
    set_llm_cache(InMemoryCache())
    try:
        answers = [
            TrimChatModel(graph=make(policy=policy).graph).invoke("?").content
            for policy in (small_only(), large_only())
        ]
    finally:
        set_llm_cache(None)
    assert answers[0].startswith("small one")
    assert answers[1].startswith("LARGE one")
