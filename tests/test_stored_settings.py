"""Every node reads the settings that are stored in the state; what was read before is not read again."""

from __future__ import annotations

import pytest

from trim_graph.errors import SettingsError
from trim_graph.routing.router import settings_of
from trim_graph.settings import make_settings
from trim_graph.state import SCHEMA_VERSION, Run


def a_run(stored) -> Run:
    return Run(schema=SCHEMA_VERSION, id="r", message_id="m", seed="s", question="q", settings=stored)


def stored(**settings):
    return make_settings(None, None, settings).model_dump(mode="json")


def test_equal_settings_are_read_once():
    assert settings_of(a_run(stored(max_steps=7))) is settings_of(a_run(stored(max_steps=7)))


def test_many_different_ones_stay_apart():
    given = [stored(max_steps=steps) for steps in range(1, 40)]
    assert [settings_of(a_run(one)).max_steps for one in [*given, *given]] == [*range(1, 40)] * 2


def test_what_is_changed_in_place_is_seen():
    mine = stored(max_steps=7)
    before = settings_of(a_run(mine))
    mine["max_steps"] = 8
    assert (before.max_steps, settings_of(a_run(mine)).max_steps) == (7, 8)
    mine["budget"]["large_tokens"] = 90
    assert settings_of(a_run(mine)).budget.large_tokens == 90


def test_wrong_ones_are_wrong_each_time():
    wrong = stored() | {"max_steps": 0}
    for _ in range(2):
        with pytest.raises(SettingsError, match="max_steps"):
            settings_of(a_run(wrong))
