"""Prometheus metrics of the server; names and labels follow `trim_graph.telemetry`.

With several processes, ``PROMETHEUS_MULTIPROC_DIR`` names a folder in which each keeps its values, and any of
them reports the sum. prometheus_client reads the variable when it is imported.
"""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from trim_graph.state import Summary

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable with the folder that several processes share."""
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)


class Metrics:
    """Metrics of one server.

    ``trim_requests_total`` has the HTTP ``status`` (499: the client left) and the kind of operating
    ``point``; ``trim_runs_total`` ``stopped``; ``trim_tokens_total`` ``part`` (small, large, scorer) and
    ``kind`` (input, output, cached); ``trim_discarded_tokens_total`` and ``trim_steps_total`` the ``writer``;
    ``trim_decisions_total`` the ``decision``. ``trim_cost_total`` is in the currency of the price table.
    Histograms in seconds: ``trim_request_seconds``, and ``trim_first_text_seconds`` until the first accepted
    step. ``trim_questions_under_way`` is a gauge.
    """

    def __init__(self) -> None:
        # A registry of its own, so that two servers in one process do not count for each other.
        self.registry = own = CollectorRegistry()
        self.requests = Counter("trim_requests", "answered requests", ["status", "point"], registry=own)
        self.under_way = Gauge(
            "trim_questions_under_way", "questions under way", registry=own, multiprocess_mode="livesum"
        )
        self.seconds = Histogram(
            "trim_request_seconds", "time of a question", ["point"], registry=own, buckets=_SECONDS
        )
        self.first_text = Histogram(
            "trim_first_text_seconds",
            "time until the first accepted step",
            ["point"],
            registry=own,
            buckets=_SECONDS,
        )
        self._runs = Counter("trim_runs", "runs that have ended", ["stopped"], registry=own)
        self._tokens = Counter("trim_tokens", "tokens used", ["part", "kind"], registry=own)
        self._discarded = Counter(
            "trim_discarded_tokens", "generated tokens in no accepted step", ["writer"], registry=own
        )
        self._steps = Counter("trim_steps", "accepted steps", ["writer"], registry=own)
        self._decisions = Counter("trim_decisions", "decisions on drafts", ["decision"], registry=own)
        self._cost = Counter("trim_cost", "cost by the price table", registry=own)

    def count(self, summary: Summary) -> None:
        """Counts what a run used."""
        self._runs.labels(summary["stopped"]).inc()
        if summary["cost"] is not None:
            self._cost.inc(summary["cost"])
        for writer, steps in summary["steps"].items():
            self._steps.labels(writer).inc(steps)
        for decision, times in summary["decisions"].items():
            self._decisions.labels(decision).inc(times)
        usage = summary["usage"]
        for part, used in (("small", usage["small"]), ("large", usage["large"]), ("scorer", usage["scorer"])):
            for kind in ("input", "output", "cached"):
                tokens = used.get(f"{kind}_tokens", 0)
                assert isinstance(tokens, int)
                self._tokens.labels(part, kind).inc(tokens)
        for writer in ("small", "large"):
            # A model that misreports its tokens can make it negative.
            self._discarded.labels(writer).inc(max(0, summary["tokens"][f"{writer}_discarded"]))

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format, of all processes together."""
        if FOLDER not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)


def forget_dead_processes() -> None:
    """Removes the gauges of processes that have ended, killed ones included, from the shared folder."""
    if (folder := os.environ.get(FOLDER)) is None:
        return
    for file in Path(folder).glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except OSError:  # no such process, or it is another user's now
            mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
