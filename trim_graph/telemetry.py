"""OpenTelemetry: spans of runs, nodes and model calls, and counters. Needs the extra ``otel``."""

from __future__ import annotations

from .errors import SettingsError

try:
    from opentelemetry import context, metrics, propagate, trace
    from opentelemetry.trace import Span, Status, StatusCode
except ImportError as error:
    raise SettingsError('telemetry needs an extra: pip install "trim-graph[otel]"') from error

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command, Overwrite

from .budget.usage import Usage, warming_usage
from .graph import TAG

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter

SCOPE = "trim_graph"


class TrimTelemetry(BaseTracer):
    """LangChain tracer that writes spans and counters of trim graphs to OpenTelemetry.

    Spans: ``trim.run``, whose parent is the span that is current when the run begins; its children, one for
    each node such as ``trim.route``; and theirs, ``chat MODEL`` for each call, with OpenTelemetry's
    attributes for generative AI. Counters: ``trim.runs``, ``trim.nodes``, ``trim.tokens``,
    ``trim.decisions``, ``trim.steps``, ``trim.savings.tokens`` (``cost``, ``seconds``, ``runs``), and the
    histogram ``trim.node.duration`` in seconds;
    `trim_graph.telemetry.Meters` lists their attributes.

    Args:
        tracer_provider: OpenTelemetry's tracer provider; default: the global one.
        meter_provider: OpenTelemetry's meter provider; default: the global one.

    Raises:
        SettingsError: OpenTelemetry is not installed.
    """

    run_inline = True
    """LangChain calls the tracer in the caller's thread, where the caller's span is current."""

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        super().__init__()
        self._tracer = trace.get_tracer(SCOPE, tracer_provider=tracer_provider)
        self._meters = Meters(metrics.get_meter(SCOPE, meter_provider=meter_provider))
        self._roots: dict[str, str] = {}
        """Id of the outermost run of each open run, by id."""
        self._spans: dict[str, Span] = {}
        """Span of each open run, by id; a run without a span of its own has its parent's."""
        self._outside: context.Context | None = None
        """Context of the outermost runs' spans; None: the one that is current when they begin."""
        self._attributes: Mapping[str, str] = {}
        """Attributes of each span."""

    def request(self, name: str, request_id: str, headers: Mapping[str, str]) -> RequestSpan:
        """Begins the span of a request to a server.

        Args:
            name: Of the span, such as ``POST /v1/chat/completions``.
            request_id: The attribute ``trim.request.id`` of this span and of all below it.
            headers: Of the request; a ``traceparent`` in them makes the span part of the client's trace.
        """
        attributes = {"trim.request.id": request_id}
        span = self._tracer.start_span(
            name, propagate.extract(headers), kind=trace.SpanKind.SERVER, attributes=attributes
        )
        # Of this request alone: LangChain reports no end of some cancelled runs, and they end with it.
        tracer = copy.copy(self)
        BaseTracer.__init__(tracer)
        tracer._roots, tracer._spans = {}, {}
        tracer._outside, tracer._attributes = trace.set_span_in_context(span), attributes
        return RequestSpan(span, tracer)

    def _persist_run(self, run: Run) -> None:
        pass

    def _on_run_create(self, run: Run) -> None:
        above = self._spans.get(str(run.parent_run_id))
        name = _name(run, outermost=above is None)
        if above is not None or name is not None:
            self._roots[str(run.id)] = self._roots.get(str(run.parent_run_id), str(run.id))
        if name is None:
            if above is not None:
                self._spans[str(run.id)] = above
            return
        outside = context.get_current() if self._outside is None else self._outside
        self._spans[str(run.id)] = self._tracer.start_span(
            name,
            outside if above is None else trace.set_span_in_context(above),
            kind=trace.SpanKind.CLIENT if run.run_type == "llm" else trace.SpanKind.INTERNAL,
            attributes=dict(self._attributes),
        )

    def _on_run_update(self, run: Run) -> None:
        span = self._spans.pop(str(run.id), None)
        outermost = self._roots.pop(str(run.id), None) == str(run.id)
        if outermost:
            self._end_cancelled(str(run.id))
        # A speculative call may outlive its node, so its parent's span proves nothing here.
        if span is None or _name(run, outermost=outermost) is None:
            return
        outcome = self._outcome(span, run)
        if run.run_type == "llm":
            span.set_attributes(call_attributes(run))
        elif outermost:
            span.set_attributes(run_attributes(run))
            self._meters.run(run)
        else:
            span.set_attributes(node_attributes(run))
            self._meters.node(run, outcome)
        span.end()

    def _end_cancelled(self, root: str) -> None:
        """Ends the spans of cancelled calls, for which LangChain reports no end."""
        for run_id in [one for one, of in self._roots.items() if of == root]:
            del self._roots[run_id]
            span = self._spans.pop(run_id, None)
            cancelled = self.run_map.pop(run_id, None)
            if span is not None and cancelled is not None and cancelled.run_type == "llm":
                span.set_attribute("error.type", "cancelled")
                span.set_status(Status(StatusCode.ERROR, "cancelled"))
                span.end()

    @staticmethod
    def _outcome(span: Span, run: Run) -> str:
        if run.error is None:
            return "ok"
        kind = run.error.partition("(")[0]
        if kind in _WAYS_OUT:
            span.set_attribute("trim.interrupted", True)
            return "interrupted"
        span.set_attribute("error.type", kind)
        # Without its message, which may quote the prompt.
        span.set_status(Status(StatusCode.ERROR, kind))
        return "error"


class RequestSpan:
    """Span of a request.

    Args:
        span: The span.
        tracer: Writes the spans of the request's runs below it; for their ``callbacks``.
    """

    def __init__(self, span: Span, tracer: TrimTelemetry) -> None:
        self._span, self.tracer = span, tracer

    def end(self, status: int, attributes: Mapping[str, str]) -> None:
        """Ends the span.

        Args:
            status: HTTP status of the answer.
            attributes: What else is known by then.
        """
        self._span.set_attributes({"http.response.status_code": status, **attributes})
        if status >= 500:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


_BUBBLES: list[type[BaseException]] = [GraphBubbleUp, *GraphBubbleUp.__subclasses__()]
_WAYS_OUT = {kind.__name__ for kind in _BUBBLES}
"""Errors by which LangGraph stops a run that has not failed, such as an interrupt."""


def _name(run: Run, *, outermost: bool) -> str | None:
    """Returns the name of a run's span; None if it has no span."""
    tags = run.tags or []
    if TAG not in tags:
        return None
    if outermost:
        return "trim.run"
    if run.run_type == "llm":
        model = (run.extra or {}).get("metadata", {}).get("ls_model_name") or run.name
        return f"chat {model}"
    # LangGraph tags a node's run; what runs inside it has another name or not this tag.
    is_node = any(tag.startswith("graph:step:") for tag in tags) and run.name != "__start__"
    return f"trim.{run.name}" if is_node else None


SAVINGS = {"tokens": "{token}", "cost": "1", "seconds": "s"}
"""Units of net savings; the cost is in the currency of the price table."""
KINDS = ("input_tokens", "output_tokens", "cached_tokens")


class Meters:
    """OpenTelemetry's instruments for trim graphs.

    Attributes by instrument: ``trim.runs`` ``stopped``; ``trim.nodes`` ``node`` and ``outcome``
    (ok, interrupted, error); ``trim.tokens`` ``part`` (small, large, scorer) and ``kind`` (input, output,
    cached, unaccounted); ``trim.decisions`` ``decision`` and ``by`` (policy, human, fallback);
    ``trim.steps`` ``writer``. ``trim.node.duration`` has the ``node``.

    ``trim.savings.tokens``, ``trim.savings.cost`` and ``trim.savings.seconds`` are net savings against the
    large model alone (`trim_graph.savings.net_savings`). They fall where routing spent more, so they are
    up-down counters. ``trim.savings.runs`` counts the runs whose savings are known, by ``of`` (tokens, cost,
    seconds).

    Args:
        meter: Creates the instruments.
    """

    def __init__(self, meter: Meter) -> None:
        self._runs = meter.create_counter("trim.runs", "{run}", "runs that have ended")
        self._nodes = meter.create_counter("trim.nodes", "{node}", "executions of nodes")
        self._tokens = meter.create_counter("trim.tokens", "{token}", "tokens used, discarded ones included")
        self._decisions = meter.create_counter("trim.decisions", "{decision}", "decisions on drafts")
        self._steps = meter.create_counter("trim.steps", "{step}", "accepted steps")
        self._savings = {
            kind: meter.create_up_down_counter(
                f"trim.savings.{kind}", unit, f"net {kind} saved against the large model alone"
            )
            for kind, unit in SAVINGS.items()
        }
        self._saving_runs = meter.create_counter("trim.savings.runs", "{run}", "runs with known savings")
        self._duration = meter.create_histogram("trim.node.duration", "s", "time of one node")

    def run(self, run: Run) -> None:
        """Counts a run that has ended, which an interrupted one has not."""
        if (summary := summary_of(run)) is not None:
            self._runs.add(1, {"stopped": summary["stopped"]})
            if lost := warming_usage(summary["usage"])["unaccounted_tokens"]:
                self._tokens.add(lost, {"part": "large", "kind": "unaccounted"})
            for kind, saved in _savings(summary).items():
                self._savings[kind].add(saved)
                self._saving_runs.add(1, {"of": kind})

    def node(self, run: Run, outcome: str) -> None:
        """Counts an execution of a node, with its decisions, steps and tokens."""
        self._nodes.add(1, {"node": run.name, "outcome": outcome})
        if run.end_time is not None:
            self._duration.record((run.end_time - run.start_time).total_seconds(), {"node": run.name})
        update = _update(run)
        for record in _added(update, "decisions"):
            by = "fallback" if "fallback" in record else record.get("by", "policy")
            self._decisions.add(1, {"decision": record["decision"], "by": by})
        for step in _added(update, "steps"):
            self._steps.add(1, {"writer": step["writer"]})
        if (after := update.get("usage")) is not None and (before := run.inputs.get("usage")) is not None:
            self._count_tokens(before, after)

    def _count_tokens(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        for part in ("small", "large", "scorer"):
            for kind in KINDS:
                used = after[part].get(kind, 0) - before[part].get(kind, 0)
                if used:
                    self._tokens.add(used, {"part": part, "kind": kind.removesuffix("_tokens")})
        if lost := _unaccounted(after) - _unaccounted(before):
            self._tokens.add(lost, {"part": "large", "kind": "unaccounted"})


def _unaccounted(usage: Mapping[str, Any]) -> int:
    """Returns tokens charged without a report, without those of warm calls, whose charge may be undone."""
    charged: int = usage["unaccounted_tokens"]
    return charged - warming_usage(cast(Usage, usage))["unaccounted_tokens"]


def call_attributes(run: Run) -> dict[str, Any]:
    """Returns the attributes of a model call, by OpenTelemetry's conventions for generative AI."""
    metadata = (run.extra or {}).get("metadata", {})
    writers = [tag for tag in run.tags or [] if tag in ("trim:small", "trim:large")]
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": metadata.get("ls_provider"),
        "gen_ai.request.model": metadata.get("ls_model_name") or run.name,
        "trim.part": writers[0].removeprefix("trim:") if writers else "scorer",
    }
    message = _message(run)
    usage = message.get("usage_metadata") or {}
    attributes["gen_ai.usage.input_tokens"] = usage.get("input_tokens")
    attributes["gen_ai.usage.output_tokens"] = usage.get("output_tokens")
    attributes["gen_ai.response.model"] = (message.get("response_metadata") or {}).get("model_name")
    return _known(attributes)


def node_attributes(run: Run) -> dict[str, Any]:
    """Returns the attributes of a node."""
    update, state = _update(run), run.inputs
    attributes: dict[str, Any] = {"trim.step": len(state.get("steps") or ())}
    request = update.get("request") or state.get("request") or {}
    attributes["trim.writer"] = request.get("writer")
    attributes["trim.max_tokens"] = request.get("max_tokens")
    if draft := update.get("draft"):
        attributes["trim.score"], attributes["trim.draft_tokens"] = draft.get("score"), draft.get("tokens")
    for record in _added(update, "decisions"):
        attributes["trim.decision"], attributes["trim.score"] = record["decision"], record["score"]
    attributes["trim.stopped"] = update.get("stopped") or None
    return _known(attributes)


def run_attributes(run: Run) -> dict[str, Any]:
    """Returns the attributes of a whole run."""
    summary = summary_of(run)
    if summary is None:
        return {}
    attributes: dict[str, Any] = {"trim.stopped": summary["stopped"]}
    if summary["cost"] is not None:
        attributes["trim.cost"] = summary["cost"]
    for writer, count in summary["steps"].items():
        attributes[f"trim.steps.{writer}"] = count
    for kind, count in summary["tokens"].items():
        attributes[f"trim.tokens.{kind}"] = count
    return attributes | {f"trim.savings.{kind}": saved for kind, saved in _savings(summary).items()}


def _savings(summary: Mapping[str, Any]) -> dict[str, float]:
    """Returns the known net savings of a run by the keys of `SAVINGS`."""
    savings = summary.get("savings") or {}
    return {kind: saved for kind in SAVINGS if (saved := savings.get(kind)) is not None}


def summary_of(run: Run) -> dict[str, Any] | None:
    """Returns the summary of a run that has ended; None of one that has not."""
    outputs = run.outputs or {}
    if isinstance(found := outputs.get("trim"), dict):
        return found
    messages = outputs.get("messages") or []
    metadata = getattr(messages[-1], "response_metadata", {}) if messages else {}
    found = metadata.get("trim")
    return found if isinstance(found, dict) else None


def _update(run: Run) -> dict[str, Any]:
    """Returns the update that a node wrote."""
    outputs = run.outputs or {}
    inner = outputs.get("output")
    if isinstance(inner, Command):
        return inner.update if isinstance(inner.update, dict) else {}
    return outputs


def _added(update: Mapping[str, Any], channel: str) -> list[Any]:
    written = update.get(channel) or []
    return [] if isinstance(written, Overwrite) else list(written)


def _message(run: Run) -> dict[str, Any]:
    generations = (run.outputs or {}).get("generations") or [[]]
    message = generations[0][0].get("message") if generations[0] else None
    return (message or {}).get("kwargs", {}) if isinstance(message, dict) else {}


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
