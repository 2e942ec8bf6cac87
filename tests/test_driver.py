"""Runs without LangGraph's loop: the same as with it, and with it where something asks for it."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections import deque
from contextvars import ContextVar
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.callbacks import BaseCallbackHandler
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from test_run import POLICIES, texts

from trim_graph import Budget, Quota, Quotas, TrimChatModel, TrimContext, open_ledger
from trim_graph.adapters import ModelServerError
from trim_graph.driver import adrive, config_without_loop, drive, final_state
from trim_graph.evaluation import Question
from trim_graph.evaluation.records import WorkItem
from trim_graph.evaluation.runner import run_question
from trim_graph.policies import threshold
from trim_graph.run import TrimGraph
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

ASKED = [("user", "2 + 2?")]
VOLATILE = ("seconds", "id", "message_id", "run", "savings", "charged_call")


def plain(value: Any) -> Any:
    """The value without times, and without ids that each run draws anew."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if hasattr(value, "response_metadata"):
        return [value.type, value.content, plain(value.response_metadata)]
    return value


class Played:
    """What a run shows: its updates, its events, its last state or its error."""

    def __init__(self) -> None:
        self.updates: list[Any] = []
        self.events: list[Any] = []
        self.state: Any = None
        self.error: str | None = None

    def take(self, progress: Any) -> None:
        self.updates.append(plain(progress.update))
        self.state = plain(dict(progress.state))

    def on_event(self, event: dict[str, Any]) -> None:
        self.events.append(plain(event))

    def failed(self, error: Exception) -> None:
        self.error = f"{type(error).__name__}: {error}"

    @property
    def shown(self) -> dict[str, Any]:
        return {**vars(self), "state": {**(self.state or {}), "remaining_steps": None}}


def play(graph: Any, config: Any = None, context: Any = None) -> dict[str, Any]:
    played = Played()
    try:
        for progress in drive(graph, ASKED, config, context=context, on_event=played.on_event):
            played.take(progress)
    except Exception as error:
        played.failed(error)
    return played.shown


async def aplay(graph: Any, config: Any = None, context: Any = None) -> dict[str, Any]:
    played = Played()
    try:
        async for progress in adrive(graph, ASKED, config, context=context, on_event=played.on_event):
            played.take(progress)
    except Exception as error:
        played.failed(error)
    return played.shown


class Silent(BaseCallbackHandler):
    """A handler, which only LangGraph's loop reports to."""


THROUGH_LANGGRAPH = {"callbacks": [Silent()]}


def needs_langgraph(graph: Any, config: Any) -> bool:
    return config_without_loop(graph, config) is None


def check_equal(build: Any, config: Any = None, context: Any = None) -> dict[str, Any]:
    """Plays a graph both ways, synchronously and asynchronously; returns what it shows."""
    config = config or {}
    assert not needs_langgraph(build().graph, config)
    expected = play(build().graph, {**config, **THROUGH_LANGGRAPH}, context)
    assert play(build().graph, config, context) == expected
    assert asyncio.run(aplay(build().graph, config, context)) == expected
    assert asyncio.run(aplay(build().graph, {**config, **THROUGH_LANGGRAPH}, context)) == expected
    return expected


@settings(max_examples=60, deadline=None)
@given(
    limit=st.none() | st.integers(1, 40),
    small=texts,
    large=texts,
    policy=st.sampled_from([*POLICIES, threshold(0.5)]),
    entropies=st.lists(st.sampled_from([0.0, 0.5, 1.5]), max_size=25),
    scores=st.dictionaries(texts.flatmap(st.sampled_from), st.sampled_from([0.1, 0.9])),
    budget=st.sampled_from([Budget(), Budget(large_tokens=7), Budget(large_calls=1, on_exhausted="stop")]),
    max_step_tokens=st.integers(1, 9),
    begun=st.booleans(),
    has_scorer=st.booleans(),
)
def test_it_does_what_langgraph_does(
    make, limit, small, large, policy, entropies, scores, budget, max_step_tokens, begun, has_scorer
):
    def build():
        model = ScriptedChatModel(script=small, entropies=entropies)
        rater = {"scores": scores} if has_scorer or policy.needs_score else {"scorer": None}
        options = {"max_step_tokens": max_step_tokens, "seed": 3, "budget": budget}
        return make(model, large, policy=policy, **rater, **options)

    given_step = {"text": "a step", "writer": "small", "model": "tiny", "tokens": 2}
    step = {**given_step, "mean_token_probability": None, "end": "delimiter"}
    context = TrimContext(steps=[step]) if begun else None
    check_equal(build, None if limit is None else {"recursion_limit": limit}, context)


@pytest.mark.parametrize("limit", [7, 25, 26])
def test_every_recursion_limit_is_taken_as_named(make, limit):
    def build():
        return make([f"step {number}" for number in range(40)])

    check_equal(build, {"recursion_limit": limit})


@pytest.mark.parametrize(
    ("options", "context", "error"),
    [
        ({"ask_below": 0.5}, None, "SettingsError: ask_below stops a run to ask a human"),
        ({}, {"trim": {"treshold": 0.5}}, "ValidationError: "),
        ({}, {"trim": {"policy": "large"}}, None),
        ({}, TrimContext(threshold=0.05), None),
    ],
)
def test_settings_and_their_errors_are_the_same(make, options, context, error):
    shown = check_equal(lambda: make(**options), context=context)
    assert (shown["error"] or "").startswith(error or "")
    assert error is not None or shown["error"] is None


async def test_steps_are_written_ahead_as_with_langgraph(make):
    class Rating(ScriptedScorer):
        async def ascore(self, question: str, steps: Any) -> Any:
            await asyncio.sleep(0.02)
            return self.score(question, steps)

    def build():
        return make(scorer=Rating({"small two": 0.1}), lookahead=True).graph

    shown = await aplay(build())
    assert shown == await aplay(build(), THROUGH_LANGGRAPH)
    assert shown["state"]["trim"]["tokens"]["lookahead_discarded"] > 0


def test_failing_models_fail_alike(make):
    class Gone(ScriptedChatModel):
        def _generate(self, *given: Any, **options: Any) -> Any:
            raise ModelServerError("gone")

    def build():
        return make(large=Gone(script=["never"]))

    assert check_equal(build)["error"] == "ModelServerError: gone"
    shown = check_equal(lambda: make(large=Gone(script=["never"]), on_large_error="accept"))
    assert shown["state"]["trim"]["stopped"] == "finished"


def test_callers_that_want_more_than_the_nodes_get_langgraph(make):
    rig = make()
    assert not needs_langgraph(rig.graph, None)
    assert needs_langgraph(rig.graph, THROUGH_LANGGRAPH)
    assert needs_langgraph(rig.graph.with_config(callbacks=[Silent()]), None)
    assert needs_langgraph(make(checkpointer=InMemorySaver()).graph, None)
    found = []

    def node(state: MessagesState) -> dict[str, Any]:
        found.append(needs_langgraph(rig.graph, None))
        return {}

    parent = StateGraph(MessagesState)
    parent.add_node("node", node)
    parent.add_edge(START, "node")
    parent.compile().invoke({"messages": ASKED})
    assert found == [True]


def test_tracing_by_the_environment_gets_langgraph(make, monkeypatch):
    from langsmith.utils import get_env_var

    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    monkeypatch.setenv("LANGSMITH_ENDPOINT", "http://localhost:9")
    get_env_var.cache_clear()
    try:
        assert needs_langgraph(make().graph, None)
    finally:
        monkeypatch.undo()
        get_env_var.cache_clear()


async def test_questions_are_run_without_the_loop(make, monkeypatch):
    def looped(*given: Any, **options: Any) -> Any:
        pytest.fail("LangGraph's loop runs")

    monkeypatch.setattr(TrimGraph, "stream", looped)
    monkeypatch.setattr(TrimGraph, "astream", looped)
    graph = make().graph
    record = await run_question(graph, WorkItem(0, 0, Question("2 + 2?")))
    model = TrimChatModel(graph=graph)
    answers = [record["solution"], model.invoke("2 + 2?").text, (await model.ainvoke("2 + 2?")).text]
    answers.append("".join([str(chunk.text) async for chunk in model.astream("2 + 2?")]))
    assert record["error"] is None
    assert len(set(answers)) == 1


def test_a_run_that_is_left_stops_its_calls(make):
    rig = make()
    nodes = drive(rig.graph, ASKED)
    for _ in range(3):
        next(nodes)
    nodes.close()
    asked = len(rig.small.calls)
    assert list(nodes) == []
    assert len(rig.small.calls) == asked < 4


async def test_being_cancelled_reaches_the_model(make):
    begun, cancelled = asyncio.Event(), asyncio.Event()

    class Slow(ScriptedChatModel):
        async def _agenerate(self, *given: Any, **options: Any) -> Any:
            begun.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise

    task = asyncio.create_task(final_state(make(Slow(script=["never"])).graph, ASKED))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled.is_set()


def test_time_of_whoever_takes_events_is_not_the_runs(make):
    def take(event: dict[str, Any]) -> None:
        time.sleep(0.02)

    (*_, last) = drive(make().graph, ASKED, on_event=take)
    assert last.state["trim"]["seconds"] < 0.1


async def test_events_come_in_the_callers_thread(make, tmp_path):
    threads = set()
    quotas = Quotas(user=Quota(large_tokens=100))

    def take(event: dict[str, Any]) -> None:
        threads.add(threading.get_ident())

    with open_ledger(f"sqlite:{tmp_path / 'ledger.db'}") as ledger:
        graph = make(ledger=ledger, quotas=quotas).graph
        await final_state(graph, ASKED, context=TrimContext(user="me"), on_event=take)
    assert threads == {threading.get_ident()}


def test_what_a_model_sets_in_its_context_stays_there(make):
    seen = ContextVar("seen", default="nothing")

    class Setting(ScriptedChatModel):
        def _generate(self, *given: Any, **options: Any) -> Any:
            assert seen.get() == "nothing"
            seen.set("something")
            return super()._generate(*given, **options)

    assert len(list(drive(make(Setting(script=["a", "b", "c \\boxed{1}"])).graph, ASKED))) > 3
    assert seen.get() == "nothing"


def test_a_reader_cannot_change_the_run(make):
    for progress in drive(make().graph, ASKED):
        last = progress.state.copy()
        progress.state["steps"] = []
    assert last["trim"]["steps"] == {"small": 3, "large": 1}


def test_calls_have_names_and_ids_of_their_own(make):
    class Seen(BaseCallbackHandler):
        def __init__(self) -> None:
            self.runs: list[Any] = []

        def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: Any, **options: Any) -> None:
            self.runs.append((run_id, options.get("name")))

    handler = Seen()
    model = ScriptedChatModel(script=["a", "b \\boxed{1}"], callbacks=[handler])
    own = uuid.uuid4()
    deque(drive(make(model).graph, ASKED, {"run_id": own, "run_name": "mine"}), maxlen=0)
    assert len({run_id for run_id, _ in handler.runs}) == len(handler.runs) == 2
    assert own not in {run_id for run_id, _ in handler.runs}
    assert "mine" not in {name for _, name in handler.runs}


async def test_runs_at_once_do_not_mix(make):
    graph = make().graph
    states = await asyncio.gather(*(final_state(graph, [("user", f"question {n}")]) for n in range(20)))
    assert [state["messages"][0].text for state in states] == [f"question {n}" for n in range(20)]
    assert len({state["run"]["id"] for state in states}) == 20
