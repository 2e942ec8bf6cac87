"""Scripted runs and commands do what is on record: see `tests.golden.__main__`."""

from __future__ import annotations

import pytest

from tests.golden.__main__ import PARTS, compared, printed, recorded
from tests.golden.commands import COMMANDS
from tests.golden.normal import differences, renamed
from tests.golden.scenarios import SCENARIOS


def test_every_scenario_and_command_is_on_record():
    assert list(recorded("graph")) == sorted(SCENARIOS)
    assert list(recorded("commands")) == sorted(COMMANDS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scripted_run_is_as_recorded(name):
    for part in ("graph", "async", "driver"):
        found = [one for one in compared(part, {}, name.__eq__) if one.counts]
        assert not found, f"{part}: {printed(found)}"


def test_commands_write_what_is_recorded():
    found = [one for one in compared("commands", {}, lambda name: True) if one.counts]
    assert not found, printed(found)


def test_the_driver_plays_the_scenarios_that_need_no_loop():
    assert len(PARTS["driver"](lambda name: True)) > 50


def test_a_rename_shows_no_difference_and_a_change_does():
    before = {"scene": {"told": {"kind": "told", "n": 1}, "sizes": [100, 1000]}}
    after = {"scene": {"metadata": {"kind": "metadata", "n": 2}, "sizes": [110, 2000]}}
    found = list(differences(renamed(before, {"told": "metadata"}), after))
    assert [(one.place[1:], one.counts) for one in found] == [
        (("metadata", "n"), True),
        (("sizes", "0"), False),
        (("sizes", "1"), True),
    ]
    assert "metadata / n\n    - 1\n    + 2" in printed(found)
