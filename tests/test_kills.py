"""Runs killed anywhere, in the recommended configuration (SQLite, ``durability="sync"``): nothing is lost."""

from __future__ import annotations

import dataclasses
import os

import kills
import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked, to kill many")


def test_a_run_killed_anywhere_loses_doubles_and_overspends_nothing(tmp_path):
    spec = f"sqlite:{tmp_path / 'runs.db'}"
    assert kills.kill_at_random(kills.chance_of_this_run(), spec, tmp_path, kills.POINTS) >= kills.POINTS


def test_every_instant_of_one_run(tmp_path):
    world = kills.World(number=5, policy="threshold", steps=3, large_tokens=None, poor=frozenset({1}))
    spec = f"sqlite:{tmp_path / 'runs.db'}"
    whole = kills.run(world, spec, "whole", tmp_path, [])
    assert whole.instants > 40
    for instant in range(1, whole.instants + 1):
        told = kills.run(world, spec, f"killed-{instant}", tmp_path, [instant])
        assert told.kills == 1
        kills.check_text(world, told, whole)
        kills.check_bill(world, told)


def test_what_is_in_flight_when_a_run_is_killed_is_written_again(tmp_path):
    world = kills.World(
        number=5, policy="threshold", steps=4, large_tokens=None, poor=frozenset({1}), ahead=True
    )
    spec = f"sqlite:{tmp_path / 'runs.db'}"
    plain = kills.run(dataclasses.replace(world, ahead=False), spec, "plain", tmp_path, [])
    whole = kills.run(world, spec, "whole", tmp_path, [])
    assert whole.result["trim"]["usage"]["lookahead"]["taken"] == 2
    assert whole.result["trim"]["usage"]["lookahead"]["discarded"] == 1
    kills.check_text(world, whole, plain)
    for instant in range(1, whole.instants, 11):
        told = kills.run(world, spec, f"killed-{instant}", tmp_path, [instant])
        assert told.kills == 1
        kills.check_text(world, told, plain)
        kills.check_bill(world, told)
