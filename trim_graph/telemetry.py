"""OpenTelemetry: a span for every run, node and model call, and counters. Needs the extra ``otel``.

`TrimTelemetry` is a LangChain callback handler, so it goes wherever callbacks go::

    graph = create_trim_graph(...).with_config(callbacks=[TrimTelemetry()])

It looks at trim graphs only, also inside an application's graph; that one's spans are its own affair. No text
of a prompt or an answer enters a span.
"""

from __future__ import annotations

from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from langgraph.errors import GraphBubbleUp

from .errors import SettingsError
from .graph import TAG
from .telemetry_numbers import Meters, called, decided, summed

try:
    from opentelemetry import context, metrics, trace
    from opentelemetry.trace import Span, Status, StatusCode
except ImportError as error:
    raise SettingsError('telemetry needs an extra: pip install "trim-graph[otel]"') from error

SCOPE = "trim_graph"


class TrimTelemetry(BaseTracer):
    """Writes spans and counters of trim graphs to OpenTelemetry.

    Spans: ``trim.run`` (its parent is the span that is current when the run begins), below it one for each
    node, ``trim.route`` and its like, and below those ``chat MODEL`` for each call, with OpenTelemetry's
    attributes for generative AI. Counters: ``trim.runs``, ``trim.nodes``, ``trim.tokens``,
    ``trim.decisions``, ``trim.steps``, and the histogram ``trim.node.duration`` in seconds; for their
    attributes see `trim_graph.telemetry_numbers.Meters`.

    Args:
        tracer_provider: Default: the global one.
        meter_provider: Default: the global one.

    Raises:
        SettingsError: OpenTelemetry is not installed.
    """

    run_inline = True
    """In the caller's thread, also in asynchronous runs: there the caller's span is current."""

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        super().__init__()
        self._tracer = trace.get_tracer(SCOPE, tracer_provider=tracer_provider)
        self._meters = Meters(metrics.get_meter(SCOPE, meter_provider=meter_provider))
        self._roots: dict[str, str] = {}
        """Of each run that has not ended, the outermost run that it is part of."""
        self._spans: dict[str, Span] = {}
        """Of the runs that have not ended, by their ids; a run without a span of its own has its parent's."""

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
        within = context.get_current() if above is None else trace.set_span_in_context(above)
        self._spans[str(run.id)] = self._tracer.start_span(
            name, within, kind=trace.SpanKind.CLIENT if run.run_type == "llm" else trace.SpanKind.INTERNAL
        )

    def _on_run_update(self, run: Run) -> None:
        span = self._spans.pop(str(run.id), None)
        outermost = self._roots.pop(str(run.id), None) == str(run.id)
        if outermost:
            self._end_what_is_left(str(run.id))
        # A call of lookahead may outlive the node that it began in: the parent's span tells nothing here.
        if span is None or _name(run, outermost=outermost) is None:
            return
        outcome = self._outcome(span, run)
        if run.run_type == "llm":
            span.set_attributes(called(run))
        elif outermost:
            span.set_attributes(summed(run))
            self._meters.run(run)
        else:
            span.set_attributes(decided(run))
            self._meters.node(run, outcome)
        span.end()

    def _end_what_is_left(self, root: str) -> None:
        """End the spans of calls that were cancelled: LangChain tells of their beginning only."""
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
        # Not its message: a provider's may quote the prompt.
        span.set_status(Status(StatusCode.ERROR, kind))
        return "error"


_BUBBLES: list[type[BaseException]] = [GraphBubbleUp, *GraphBubbleUp.__subclasses__()]
_WAYS_OUT = {kind.__name__ for kind in _BUBBLES}
"""How LangGraph stops a run that has not failed, such as one that waits for a person."""


def _name(run: Run, *, outermost: bool) -> str | None:
    """Of the run's span; None where it has none."""
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
