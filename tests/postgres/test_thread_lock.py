"""One process at a time on a thread, in PostgreSQL."""

from __future__ import annotations

import test_thread_lock


def test_advisory_locks(database, monkeypatch):
    monkeypatch.setenv("RUNS", database)
    test_thread_lock.check("env:RUNS")
