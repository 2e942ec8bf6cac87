"""Scripted runs and commands do what is on record: see `tests.golden.__main__`."""

from __future__ import annotations

import pytest

from tests.golden.__main__ import compared, printed, recorded
from tests.golden.commands import COMMANDS
from tests.golden.scenarios import SCENARIOS


def test_every_scenario_and_command_is_on_record():
    assert list(recorded("graph")) == sorted(SCENARIOS)
    assert list(recorded("commands")) == sorted(COMMANDS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scripted_run_is_as_recorded(name):
    found = [one for one in compared("graph", {}, name.__eq__) if one.counts]
    assert not found, printed(found)


def test_commands_write_what_is_recorded():
    found = [one for one in compared("commands", {}, lambda name: True) if one.counts]
    assert not found, printed(found)
