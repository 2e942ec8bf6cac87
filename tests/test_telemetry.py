"""OpenTelemetry: what an exporter receives, from the SDK's own in-memory one."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from paced_models import PacedModel, PacedScorer, pause

from trim_graph import create_trim_chat_model, create_trim_graph
from trim_graph.adapters import ScorerReply
from trim_graph.policies import random_rate, small_only, threshold
from trim_graph.telemetry import TrimTelemetry
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

NODES = ["route", "generate_step", "score_step", "route", "generate_step", "score_step", "route"]
NODES += ["generate_step", "route", *["generate_step", "score_step", "route"] * 2, "finalize"]


class Backend:
    """Where spans and numbers go."""

    def __init__(self):
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])
        self.telemetry = TrimTelemetry(self.tracers, self.meters)

    @property
    def config(self):
        return {"callbacks": [self.telemetry]}

    def spans(self, prefix=""):
        found = [span for span in self.exporter.get_finished_spans() if span.name.startswith(prefix)]
        return sorted(found, key=lambda span: span.start_time)

    def numbers(self, name):
        """Value by its attributes, in alphabetical order of their names."""
        data = self.reader.get_metrics_data()
        metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics]
        (metric,) = (m for m in metrics if m.name == name)
        return {
            tuple(value for _, value in sorted(point.attributes.items())): getattr(
                point, "value", getattr(point, "count", None)
            )
            for point in metric.data.data_points
        }


@pytest.fixture
def backend():
    return Backend()


def parents(backend):
    names = {span.context.span_id: span.name for span in backend.spans()}
    return {(span.name, names.get(span.parent.span_id) if span.parent else None) for span in backend.spans()}


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_every_run_node_and_call_has_a_span_below_the_callers(rig, backend, asynchronously):
    tracer = backend.tracers.get_tracer("app")
    with tracer.start_as_current_span("request"):
        rig.solve(asynchronously=asynchronously, config=backend.config)
    nodes = [span.name for span in backend.spans("trim.") if span.name != "trim.run"]
    assert nodes == [f"trim.{node}" for node in NODES]
    calls = [span.name.removeprefix("chat ") for span in backend.spans("chat")]
    assert calls == ["tiny", "tiny", "huge", "tiny", "tiny"]
    assert parents(backend) == {
        ("request", None),
        ("trim.run", "request"),
        *((f"trim.{node}", "trim.run") for node in NODES),
        ("chat tiny", "trim.generate_step"),
        ("chat huge", "trim.generate_step"),
    }
    assert len({span.context.trace_id for span in backend.spans()}) == 1


def test_spans_say_what_was_decided_and_used(rig, backend):
    summary = rig.ask(config=backend.config)["trim"]
    (run,) = backend.spans("trim.run")
    assert dict(run.attributes) == {
        "trim.stopped": "finished",
        "trim.steps.small": 3,
        "trim.steps.large": 1,
        **{f"trim.tokens.{kind}": count for kind, count in summary["tokens"].items()},
        # Without a price of the large model nothing is known of money.
        **{f"trim.savings.{kind}": summary["savings"][kind] for kind in ("tokens", "seconds")},
    }
    decisions = [s.attributes for s in backend.spans("trim.route") if "trim.decision" in s.attributes]
    assert [(a["trim.step"], a["trim.decision"], a["trim.score"]) for a in decisions] == [
        (0, "accept", 1.0),
        (1, "regenerate", 0.1),
        (2, "accept", 1.0),
        (3, "accept", 1.0),
    ]
    (large,) = backend.spans("chat huge")
    assert large.attributes["trim.part"] == "large"
    assert large.attributes["gen_ai.operation.name"] == "chat"
    assert large.attributes["gen_ai.usage.output_tokens"] == summary["usage"]["large"]["output_tokens"]
    assert large.attributes["gen_ai.usage.input_tokens"] == summary["usage"]["large"]["input_tokens"]


def test_no_text_of_a_prompt_or_an_answer_enters_a_span(rig, backend):
    rig.ask("What is my secret?", config=backend.config)
    reported = repr([(span.name, dict(span.attributes), span.status.description) for span in backend.spans()])
    for text in ("secret", "small one", "LARGE two"):
        assert text not in reported


def test_what_a_judge_writes_is_counted(make, backend):
    rig = make(scorer=lambda question, steps: ScorerReply([1.0] * len(steps), 50, 0, 300))
    summary = rig.ask(config=backend.config)["trim"]
    assert backend.numbers("trim.tokens")["output", "scorer"] == summary["tokens"]["scorer_output"] == 1200


def test_savings_fall_where_routing_spent_more(make, backend):
    rig = make(policy=random_rate(1.0), prices={"large": {"output": 1}, "small": {"output": 1}})
    savings = [rig.ask(config=backend.config)["trim"]["savings"] for _ in range(2)]
    for kind in ("tokens", "cost", "seconds"):
        (total,) = backend.numbers(f"trim.savings.{kind}").values()
        assert total == pytest.approx(sum(one[kind] for one in savings))
        assert total < 0
    known = {("tokens",): 2, ("cost",): 2, ("seconds",): 2}
    assert backend.numbers("trim.savings.runs") == known
    make(policy=small_only()).ask(config=backend.config)  # no price, and the large model's pace is unknown
    assert backend.numbers("trim.savings.runs") == {**known, ("tokens",): 3}


def test_counters_add_up_to_the_summaries(make, backend):
    rig = make(prices={"large": {"output": 1}})
    summaries = [rig.ask(config=backend.config)["trim"] for _ in range(2)]
    tokens = backend.numbers("trim.tokens")
    for writer in ("small", "large"):
        for kind in ("input", "output"):
            spent = sum(summary["usage"][writer][f"{kind}_tokens"] for summary in summaries)
            assert tokens[kind, writer] == spent
    assert tokens["input", "scorer"] == sum(summary["tokens"]["scorer"] for summary in summaries)
    assert backend.numbers("trim.decisions") == {("policy", "accept"): 6, ("policy", "regenerate"): 2}
    assert backend.numbers("trim.steps") == {("small",): 6, ("large",): 2}
    assert backend.numbers("trim.runs") == {("finished",): 2}
    nodes = {("route", "ok"): 12, ("generate_step", "ok"): 10, ("score_step", "ok"): 8, ("finalize", "ok"): 2}
    assert backend.numbers("trim.nodes") == nodes
    assert backend.numbers("trim.node.duration") == {(node,): count for (node, _), count in nodes.items()}


def test_a_failure_is_an_error_of_its_spans(make, backend):
    def broken(prefix):
        raise ConnectionError("the server is gone")

    with pytest.raises(ConnectionError):
        make(broken).ask(config=backend.config)
    failed = {span.name for span in backend.spans() if not span.status.is_ok}
    assert failed == {"trim.run", "trim.generate_step", "chat tiny"}
    assert {s.attributes["error.type"] for s in backend.spans() if not s.status.is_ok} == {"ConnectionError"}
    assert backend.numbers("trim.nodes")["generate_step", "error"] == 1


def test_tokens_charged_for_lost_calls_are_counted(make, backend):
    def broken(prefix):
        raise ConnectionError("gone")

    rig = make(large=broken, on_large_error="accept", max_step_tokens=50)
    assert rig.ask(config=backend.config)["trim"]["tokens"]["large_unaccounted"] == 50
    assert backend.numbers("trim.tokens")["unaccounted", "large"] == 50
    assert backend.numbers("trim.decisions")["fallback", "accept"] == 1


def test_a_run_that_waits_for_a_human_has_not_failed(make, backend):
    rig = make(ask_below=0.5, checkpointer=InMemorySaver())
    config = backend.config | {"configurable": {"thread_id": "1"}}
    rig.ask(config=config)
    (asked,) = backend.spans("trim.ask_human")
    assert asked.status.is_unset
    assert asked.attributes["trim.interrupted"] is True
    assert all(span.status.is_unset for span in backend.spans())
    assert backend.numbers("trim.nodes")["ask_human", "interrupted"] == 1
    rig.graph.invoke(Command(resume={"decision": "accept"}), config)
    assert backend.numbers("trim.decisions")["human", "accept"] == 1
    assert backend.numbers("trim.runs") == {("finished",): 1}


@pytest.mark.parametrize("way", ["handler of the call", "handler of the graph"])
def test_inside_an_application_only_the_trim_graph_is_traced(rig, backend, way):
    graph = rig.graph if way == "handler of the call" else rig.graph.with_config(backend.config)
    app = StateGraph(MessagesState).add_node("route", lambda state: {}).add_node("solve", graph)
    app.add_edge(START, "route").add_edge("route", "solve")
    given, config = {"messages": "2 + 2?"}, backend.config if way == "handler of the call" else None
    app.compile().invoke(given, config)
    assert [span.name for span in backend.spans("trim.run")] == ["trim.run"]
    assert len(backend.spans("trim.route")) == 6
    assert backend.numbers("trim.runs") == {("finished",): 1}


def test_a_chat_models_runs_are_traced(backend):
    model = ScriptedChatModel(script=["one", "two"], name="tiny")
    router = create_trim_chat_model(model, model, ScriptedScorer(), policy=threshold(0.5))
    router.invoke("2 + 2?", backend.config)
    assert backend.numbers("trim.runs") == {("finished",): 1}
    assert ("chat tiny", "trim.generate_step") in parents(backend)


async def test_runs_at_the_same_time_are_distinguished(rig, backend):
    await asyncio.gather(*(rig.aask(str(n), config=backend.config) for n in range(8)))
    assert len(backend.spans("trim.run")) == 8
    by_trace = {}
    for span in backend.spans():
        by_trace.setdefault(span.context.trace_id, []).append(span.name)
    assert len(by_trace) == 8
    assert {len(names) for names in by_trace.values()} == {1 + len(NODES) + 5}
    assert not backend.telemetry._spans, "nothing is left of runs that have ended"


def test_without_the_extra_the_pip_line_is_printed():
    code = "import sys; sys.modules['opentelemetry'] = None\nfrom trim_graph.telemetry import TrimTelemetry\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "trim-graph[otel]"' in done.stderr


class Endless(ScriptedChatModel):
    async def _agenerate(self, *arguments, **settings):
        self.script.set()
        await asyncio.sleep(60)


async def test_a_cancelled_run_leaves_nothing_open(backend):
    asked = asyncio.Event()
    model = Endless(script=asked)
    graph = create_trim_graph(model, model, ScriptedScorer(), policy=threshold(0.5))
    graph = graph.with_config(**backend.config)
    for _ in range(2):
        task = asyncio.create_task(graph.ainvoke({"messages": "?"}))
        await asked.wait()
        asked.clear()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert len(backend.spans("chat")) == 2
    assert not backend.telemetry.run_map
    assert not backend.telemetry._spans


def test_an_error_s_words_enter_no_span(backend):
    def refuse(prefix):
        raise ValueError("400: the prompt 'SECRET' is against our policy")

    model = ScriptedChatModel(script=refuse)
    graph = create_trim_graph(model, model, ScriptedScorer(), policy=threshold(0.5))
    with pytest.raises(ValueError, match="SECRET"):
        graph.invoke({"messages": "SECRET"}, backend.config)
    reported = [span.to_json() for span in backend.spans()]
    assert any('"description": "ValueError"' in text for text in reported)
    assert not [text for text in reported if "SECRET" in text.split('"events"')[0]]


async def test_a_call_ahead_that_outlives_its_node_is_a_call(backend, caplog):
    class Silent(PacedModel):
        async def _pace(self, prefix, stop_when):
            await pause(400)

    small = Silent(script=["one", "two", "three \\boxed{3}"], name="tiny").with_retry(stop_after_attempt=2)
    model = PacedModel(script=["ONE", "TWO"], name="huge")
    scorer = PacedScorer({"two": 0.1}, turns=20)
    graph = create_trim_graph(small, model, scorer, policy=threshold(0.5), lookahead=True)
    result = await graph.ainvoke({"messages": [("user", "2 + 2?")]}, backend.config)
    ahead = result["trim"]["usage"]["lookahead"]
    assert (ahead["taken"], ahead["discarded"]) == (1, 1)
    chats = [span for span in backend.spans("chat") if "scripted" in span.name or "tiny" in span.name]
    assert len(chats) == result["trim"]["usage"]["small"]["calls"]
    assert sum(backend.numbers("trim.runs").values()) == 1
    assert len(backend.spans("trim.run")) == 1
    assert not caplog.records  # OpenTelemetry's word on a span that is ended twice


@pytest.mark.parametrize("hangs", [False, True])
async def test_tokens_that_warm_a_cache_are_counted_once_and_no_count_falls(backend, caplog, hangs):
    small = PacedModel(script=["one", "two", "three \\boxed{3}"], name="tiny", turns=20)
    large = PacedModel(script=["ONE"], name="huge", hangs={""} if hangs else frozenset())
    graph = create_trim_graph(small, large, PacedScorer(), policy=threshold(0.5), warm_large=True)
    result = await graph.ainvoke({"messages": [("user", "2 + 2?")]}, backend.config)
    usage, counted = result["trim"]["usage"], backend.numbers("trim.tokens")
    assert usage["unaccounted_tokens"] == hangs
    assert counted.get(("unaccounted", "large"), 0) == usage["unaccounted_tokens"]
    assert counted.get(("output", "large"), 0) == usage["large"]["output_tokens"]
    assert usage["large"]["output_tokens"] + usage["unaccounted_tokens"] == usage["warming"]["calls"]
    assert not caplog.records  # OpenTelemetry's word on a count that falls


async def test_a_call_that_warms_a_cache_ends_before_a_run_that_fails(backend, caplog):
    small = PacedModel(script=["one"], name="tiny", turns=20, fails=lambda prefix, call: True)
    large = PacedModel(script=["ONE"], name="huge", hangs={""})
    graph = create_trim_graph(small, large, PacedScorer(), policy=threshold(0.5), warm_large=True)
    with pytest.raises(ConnectionError):
        await graph.ainvoke({"messages": [("user", "2 + 2?")]}, backend.config)
    assert large.cancelled == [""]
    assert len(backend.spans("chat")) == 2
    assert not caplog.records
