"""Tests of the server's metrics: what a run adds to them, and those of processes that have ended."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest

from trim_graph.server import metrics as server_metrics
from trim_graph.server.metrics import FOLDER, Metrics, forget_dead_processes


@pytest.fixture
def summary(make):
    prices = {"small": {"input": 1, "output": 2}, "large": {"input": 10, "output": 20}}
    return make(scores={"small two": 0.1}, prices=prices).ask()["trim"]


def values(metrics):
    """The samples of the text that Prometheus reads, but for buckets and times of creation."""
    found = {}
    for line in metrics.text().decode().splitlines():
        name, _, value = line.rpartition(" ")
        if not line.startswith("#") and "_bucket" not in name and "_created" not in name:
            found[name] = float(value)
    return found


def test_a_run_adds_its_summary(summary):
    metrics = Metrics()
    for times in (1, 2):
        metrics.count(summary)
        found = values(metrics)
        assert found['trim_runs_total{stopped="finished"}'] == times
        assert found['trim_steps_total{writer="small"}'] == 3 * times
        assert found['trim_steps_total{writer="large"}'] == times
        assert found['trim_decisions_total{decision="accept"}'] == 3 * times
        assert found['trim_decisions_total{decision="regenerate"}'] == times
        assert found["trim_cost_total"] == pytest.approx(summary["cost"] * times)
        for part in ("small", "large"):
            for kind in ("input", "output"):
                used = summary["usage"][part][f"{kind}_tokens"]
                assert found[f'trim_tokens_total{{kind="{kind}",part="{part}"}}'] == used * times > 0
        discarded = summary["tokens"]["small_discarded"]
        assert found['trim_discarded_tokens_total{writer="small"}'] == discarded * times > 0


def test_an_unknown_cost_adds_nothing(summary):
    metrics = Metrics()
    metrics.count({**summary, "cost": None})
    assert values(metrics)["trim_cost_total"] == 0


def test_tokens_that_a_model_misreports_lower_no_counter(summary):
    metrics = Metrics()
    metrics.count({**summary, "tokens": {**summary["tokens"], "small_discarded": -5, "large_discarded": 3}})
    found = values(metrics)
    assert found['trim_discarded_tokens_total{writer="small"}'] == 0
    assert found['trim_discarded_tokens_total{writer="large"}'] == 3


def test_two_servers_of_a_process_do_not_count_for_each_other(summary):
    one, other = Metrics(), Metrics()
    one.count(summary)
    one.requests.labels("200", "default").inc()
    assert 'trim_runs_total{stopped="finished"}' not in values(other)
    assert 'trim_requests_total{point="default",status="200"}' not in values(other)


def test_of_ended_processes_the_gauges_alone_are_removed(tmp_path, monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setenv(FOLDER, str(tmp_path))
    names = {pid: [f"gauge_livesum_{pid}.db", f"counter_{pid}.db"] for pid in (ended.pid, os.getpid())}
    for name in itertools.chain(*names.values()):
        (tmp_path / name).touch()
    forget_dead_processes()
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {f"counter_{ended.pid}.db", *names[os.getpid()]}


def test_without_a_shared_folder_nothing_is_removed(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setattr(server_metrics, "mark_process_dead", lambda *given: pytest.fail("removed"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gauge_livesum_1.db").touch()
    forget_dead_processes()
    assert (tmp_path / "gauge_livesum_1.db").exists()
