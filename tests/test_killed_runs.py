"""Runs killed anywhere, in the recommended configuration (SQLite, ``durability="sync"``): nothing is lost."""

from __future__ import annotations

import dataclasses
import os

import killed_runs
import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked, to kill many")


def test_a_run_killed_anywhere_loses_doubles_and_overspends_nothing(tmp_path):
    spec = f"sqlite:{tmp_path / 'runs.db'}"
    assert (
        killed_runs.kill_at_random(killed_runs.chance_of_this_run(), spec, tmp_path, killed_runs.POINTS)
        >= killed_runs.POINTS
    )


def test_every_instant_of_one_run(tmp_path):
    world = killed_runs.World(number=5, policy="threshold", steps=3, large_tokens=None, poor=frozenset({1}))
    spec = f"sqlite:{tmp_path / 'runs.db'}"
    whole = killed_runs.run(world, spec, "whole", tmp_path, [])
    assert whole.instants > 40
    for instant in range(1, whole.instants + 1):
        reported = killed_runs.run(world, spec, f"killed-{instant}", tmp_path, [instant])
        assert reported.kills == 1
        killed_runs.check_text(world, reported, whole)
        killed_runs.check_bill(world, reported)


def test_what_is_in_flight_when_a_run_is_killed_is_written_again(tmp_path):
    world = killed_runs.World(
        number=5, policy="threshold", steps=4, large_tokens=None, poor=frozenset({1}), ahead=True
    )
    spec = f"sqlite:{tmp_path / 'runs.db'}"
    plain = killed_runs.run(dataclasses.replace(world, ahead=False), spec, "plain", tmp_path, [])
    whole = killed_runs.run(world, spec, "whole", tmp_path, [])
    assert whole.result["trim"]["usage"]["lookahead"]["taken"] == 2
    assert whole.result["trim"]["usage"]["lookahead"]["discarded"] == 1
    killed_runs.check_text(world, whole, plain)
    for instant in range(1, whole.instants, 11):
        reported = killed_runs.run(world, spec, f"killed-{instant}", tmp_path, [instant])
        assert reported.kills == 1
        killed_runs.check_text(world, reported, plain)
        killed_runs.check_bill(world, reported)
