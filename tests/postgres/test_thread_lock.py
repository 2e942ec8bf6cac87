"""One process at a time on a thread, in PostgreSQL."""

from __future__ import annotations

from tests.storage.test_thread_lock import check


def test_a_thread_is_locked_by_an_advisory_lock(database, monkeypatch):
    monkeypatch.setenv("RUNS", database)
    check("env:RUNS")
