"""Runs killed anywhere, their checkpoints in PostgreSQL: nothing is lost."""

from __future__ import annotations

import killed_runs


def test_a_run_killed_anywhere_loses_doubles_and_overspends_nothing(database, monkeypatch, tmp_path):
    monkeypatch.setenv("RUNS", database)
    points = max(killed_runs.POINTS // 4, 1)  # a process takes longer to begin; SQLite's tests kill the most
    assert (
        killed_runs.kill_at_random(killed_runs.chance_of_this_run(), "env:RUNS", tmp_path, points) >= points
    )
