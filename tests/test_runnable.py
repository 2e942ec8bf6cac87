"""The graph as a LangChain Runnable: batches, configs, tracing, cancellation, events."""

from __future__ import annotations

import asyncio
import threading

import pytest
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.base import BaseTracer
from langgraph.graph import START, MessagesState, StateGraph

from trim_graph import TrimContext
from trim_graph.testing import ScriptedChatModel

QUESTIONS = [{"messages": f"{n} + {n}?"} for n in range(12)]
LONG = [f"step {n}" for n in range(20)]


class Crowded(ScriptedChatModel):
    """Counts how many calls are under way; each waits for others, or for a moment where there are none."""

    counts: dict
    lock: object = None

    def _enter(self):
        with self.lock:
            self.counts["now"] += 1
            self.counts["most"] = max(self.counts["most"], self.counts["now"])

    def _leave(self):
        with self.lock:
            self.counts["now"] -= 1

    def _generate(self, *args, **kwargs):
        self._enter()
        try:
            threading.Event().wait(0.005)
            return super()._generate(*args, **kwargs)
        finally:
            self._leave()

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        self._enter()
        try:
            await asyncio.sleep(0.005)
            return ScriptedChatModel._generate(self, messages, stop, **kwargs)
        finally:
            self._leave()


def crowded(make):
    return make(
        Crowded(script=["one", "two"], counts={"now": 0, "most": 0}, lock=threading.Lock()), scores={}
    )


@pytest.mark.parametrize("asynchronously", [False, True], ids=["batch", "abatch"])
@pytest.mark.parametrize("most", [1, 3])
async def test_a_batch_keeps_to_max_concurrency(make, asynchronously, most):
    rig = crowded(make)
    config = {"max_concurrency": most}
    if asynchronously:
        results = await rig.graph.abatch(QUESTIONS, config)
    else:
        results = rig.graph.batch(QUESTIONS, config)
    assert [result["messages"][0].text for result in results] == [q["messages"] for q in QUESTIONS]
    assert all(result["trim"]["stopped"] == "finished" for result in results)
    assert 1 <= rig.small.counts["most"] <= most
    assert most == 1 or rig.small.counts["most"] > 1


async def test_without_a_limit_all_of_a_batch_are_under_way_at_once(make):
    rig = crowded(make)
    await rig.graph.abatch(QUESTIONS)
    assert rig.small.counts["most"] > 3


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
async def test_a_batch_may_return_what_failed(make, asynchronously):
    rig = make()
    given = [QUESTIONS[0], {"messages": " "}]
    graph = rig.graph
    kwargs = {"return_exceptions": True}
    results = await graph.abatch(given, **kwargs) if asynchronously else graph.batch(given, **kwargs)
    assert results[0]["trim"]["stopped"] == "finished"
    assert "question is empty" in str(results[1])


async def test_no_helper_of_langchain_shortens_a_long_solution(make):
    rig = make(LONG, scores={})
    graph = rig.graph.with_config(tags=["app"])

    def stopped(result):
        return result["trim"]["stopped"]

    found = [stopped(result) for result in graph.batch(QUESTIONS[:2])]
    found += [stopped(result) for result in await graph.abatch(QUESTIONS[:2], [{}, {"tags": ["b"]}])]
    found += [stopped(result) for _, result in graph.batch_as_completed(QUESTIONS[:2])]
    found += [stopped(result) async for _, result in graph.abatch_as_completed(QUESTIONS[:2])]
    async for event in graph.astream_events(QUESTIONS[0], version="v2"):
        if event["event"] == "on_chain_end" and event["name"] == "trim":
            found.append(stopped(event["data"]["output"]))
    assert found == ["finished"] * 9


def test_a_limit_that_is_named_holds_in_a_batch(make):
    rig = make(LONG, scores={})
    bound = rig.graph.with_config(recursion_limit=20)
    (first,) = bound.batch(QUESTIONS[:1])
    assert first["trim"]["stopped"] == "recursion_limit"
    (second,) = bound.batch(QUESTIONS[:1], {"recursion_limit": 200})
    assert second["trim"]["stopped"] == "finished"


def test_a_chain_has_langchains_limit_unless_its_config_names_one(make):
    rig = make(LONG, scores={})
    chain = RunnableLambda(lambda question: {"messages": question}) | rig.graph
    cut = chain.invoke("2 + 2?")["trim"]
    assert cut["stopped"] == "recursion_limit"
    assert "LangChain's 25 unless its config names one" in cut["notes"][0]
    assert chain.with_config(recursion_limit=200).invoke("2 + 2?")["trim"]["stopped"] == "finished"


# Tags, metadata, callbacks


class Listening(BaseCallbackHandler):
    def __init__(self):
        self.models, self.ended, self.nodes = [], 0, []

    def on_chat_model_start(self, serialized, messages, *, tags=None, metadata=None, **kwargs):
        self.models.append((set(tags or ()), metadata or {}))

    def on_llm_end(self, response, **kwargs):
        self.ended += 1

    def on_chain_start(self, serialized, inputs, *, tags=None, name=None, **kwargs):
        if any(tag.startswith("graph:step:") for tag in tags or ()):
            self.nodes.append(name)


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("embedded", [False, True], ids=["alone", "embedded"])
def test_callbacks_hear_of_every_model_call_with_tags_and_metadata(make, asynchronously, embedded):
    rig, heard = make(), Listening()
    graph = rig.graph
    if embedded:
        graph = StateGraph(MessagesState).add_node("solve", graph).add_edge(START, "solve").compile()
    graph = graph.with_config(tags=["app"], metadata={"user": "ada"}, run_name="solver")
    given, config = {"messages": "2 + 2?"}, {"callbacks": [heard]}
    asyncio.run(graph.ainvoke(given, config)) if asynchronously else graph.invoke(given, config)
    calls = len(rig.small.calls) + len(rig.large.calls)
    assert len(heard.models) == heard.ended == calls == 5
    for tags, metadata in heard.models:
        assert {"app", "nostream"} <= tags
        assert metadata["user"] == "ada"
        assert metadata["langgraph_node"] == "generate_step"
        assert len(tags & {"trim:small", "trim:large"}) == 1
    rounds = ["generate_step", "score_step", "route"]
    regenerated = [*rounds, "generate_step", "route"]
    nodes = [name for name in heard.nodes if name not in ("__start__", "solve")]
    assert nodes == ["route", *rounds, *regenerated, *rounds, *rounds, "finalize"]


def test_a_usage_callback_counts_what_the_summary_counts(rig):
    usage = UsageMetadataCallbackHandler()
    summary = rig.ask(config={"callbacks": [usage]})["trim"]
    for writer, model in (("small", "tiny"), ("large", "huge")):
        assert usage.usage_metadata[model]["input_tokens"] == summary["usage"][writer]["input_tokens"]
        assert usage.usage_metadata[model]["output_tokens"] == summary["usage"][writer]["output_tokens"]


def test_a_tracer_sees_one_tree(rig):
    roots = []

    class Tree(BaseTracer):
        def _persist_run(self, run):
            roots.append(run)

    rig.ask(config={"callbacks": [Tree()], "run_name": "solver"})
    (root,) = roots
    assert (root.name, root.error) == ("solver", None)

    def models(run):
        own = [run.name] if run.run_type == "llm" else []
        return own + [name for child in run.child_runs for name in models(child)]

    assert models(root) == ["tiny", "tiny", "huge", "tiny", "tiny"]


async def test_an_llm_judges_calls_are_heard_and_tagged_too(make):
    from trim_graph.adapters import LLMJudge

    heard = Listening()
    judge = ScriptedChatModel(script=lambda prefix: "9", name="judge")
    rig = make(scorer=LLMJudge(judge))
    await rig.aask(config={"callbacks": [heard]})
    scored = [tags for tags, _ in heard.models if "trim:score" in tags]
    assert len(scored) == 4
    assert all("nostream" in tags for tags in scored)


# Cancellation


@pytest.mark.parametrize("part", ["small", "large", "scorer"])
async def test_a_cancelled_run_stops_the_call_that_is_under_way_and_makes_no_other(make, part):
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def hang():
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.set()
            raise

    class Hanging(ScriptedChatModel):
        async def _agenerate(self, *args, **kwargs):
            await hang()

    class HangingScorer:
        def score(self, question, steps):
            raise AssertionError("asynchronous runs use ascore")

        async def ascore(self, question, steps):
            await hang()

    options = {"scorer": HangingScorer()} if part == "scorer" else {part: Hanging(script=[])}
    rig = make(**options)
    task = asyncio.create_task(rig.aask())
    await asyncio.wait_for(begun.wait(), 30)
    calls = len(rig.small.calls) + len(rig.large.calls)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stopped.is_set()
    assert len(rig.small.calls) + len(rig.large.calls) == calls


async def test_leaving_a_stream_stops_the_run(rig):
    stream = rig.graph.astream({"messages": "2 + 2?"}, stream_mode="custom")
    async for event in stream:
        if event["event"] == "accepted":
            break
    await stream.aclose()
    calls = len(rig.small.calls)
    await asyncio.sleep(0)
    assert len(rig.small.calls) == calls < 4


# Events


async def test_astream_events_separates_drafts_from_accepted_text_by_tags(rig):
    events = [event async for event in rig.graph.astream_events({"messages": "2 + 2?"}, version="v2")]
    ended = [event for event in events if event["event"] == "on_chat_model_end"]
    reported = {"trim:draft": [], "trim:accepted": []}
    for event in ended:
        for tag in set(event["tags"]) & set(reported):
            reported[tag].append(event["data"]["output"].text)
    assert reported["trim:accepted"] == ["LARGE two"]
    assert reported["trim:draft"] == ["small one", "small two", "small three", "so it is \\boxed{4}"]


async def test_astream_events_may_carry_the_step_events(rig):
    given = {"messages": "2 + 2?"}
    events = [e async for e in rig.graph.astream_events(given, version="v2", stream_mode="custom")]
    chunks = [e["data"]["chunk"] for e in events if e["event"] == "on_chain_stream" and e["name"] == "trim"]
    steps = [chunk["text"] for chunk in chunks if chunk["event"] == "accepted"]
    assert steps == ["small one", "LARGE two", "small three", "so it is \\boxed{4}"]


def test_a_bound_context_is_the_calls_own(rig):
    results = rig.graph.batch(QUESTIONS[:2], context=TrimContext(max_steps=1))
    assert [result["messages"][-1].text for result in results] == ["small one"] * 2
