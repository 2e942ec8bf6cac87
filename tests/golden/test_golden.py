"""Scripted runs do what is on record: see `tests.golden.__main__`."""

from __future__ import annotations

import pytest

from tests.golden.__main__ import compared, printed, recorded
from tests.golden.scenarios import SCENARIOS


def test_every_scenario_is_on_record():
    assert list(recorded("graph")) == sorted(SCENARIOS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scripted_run_is_as_recorded(name):
    found = [one for one in compared("graph", {}, name.__eq__) if one.counts]
    assert not found, printed(found)
