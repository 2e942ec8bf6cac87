from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from trim_graph.budget import Budget
from trim_graph.context import Settings, TrimContext, overridden
from trim_graph.errors import SettingsError

SETTINGS = Settings(max_steps=9)


@pytest.mark.parametrize(
    "context",
    [
        TrimContext(max_steps=2),
        {"trim": {"max_steps": 2}},
        {"trim": TrimContext(max_steps=2), "user": "ada"},
        SimpleNamespace(trim={"max_steps": 2}),
        SimpleNamespace(trim=TrimContext(max_steps=2)),
    ],
)
def test_overrides_come_from_a_trim_context_or_from_under_trim(context: Any):
    assert overridden(SETTINGS, context) == Settings(max_steps=2)


@pytest.mark.parametrize(
    "context", [None, {}, {"max_steps": 2}, SimpleNamespace(max_steps=2), "max_steps", {"trim": None}]
)
def test_anything_else_in_a_context_changes_nothing(context: Any):
    assert overridden(SETTINGS, context) is SETTINGS


@pytest.mark.parametrize("wrong", [{"max_step": 2}, {"max_steps": 0}, {"delimiter": "##"}, 7])
def test_a_wrong_override_is_refused_by_its_name(wrong: Any):
    named = next(iter(wrong)) if isinstance(wrong, dict) else "7"
    with pytest.raises(SettingsError, match=named):
        overridden(SETTINGS, {"trim": wrong})


@dataclass
class AppContext:
    max_steps: int = 1
    trim: Any = None


@pytest.mark.parametrize(
    ("context", "steps"),
    [
        (TrimContext(max_steps=2), 2),
        ({"max_steps": 2}, 2),
        ({"trim": {"max_steps": 2}}, 2),
        ({"trim": TrimContext(max_steps=2)}, 2),
        ({"trim": None}, 4),
        (AppContext(trim={"max_steps": 2}), 2),
        (AppContext(), 4),
        (None, 4),
    ],
)
def test_a_call_is_overridden_through_its_context(rig, context: Any, steps: int):
    assert sum(rig.ask(context=context)["trim"]["steps"].values()) == steps


def test_a_wrong_key_is_refused_before_any_model_call(rig):
    with pytest.raises(ValueError, match="max_step"):
        rig.ask(context={"max_step": 2})
    with pytest.raises(SettingsError, match="max_step"):
        rig.ask(context=AppContext(trim={"max_step": 2}))
    assert rig.unasked


def test_an_overridden_budget_replaces_the_graphs_own(make):
    rig = make(budget=Budget(large_calls=1), scores={}, policy=lambda o: "regenerate")
    assert rig.ask()["trim"]["steps"]["large"] == 1
    assert rig.ask(context=TrimContext(budget=Budget(large_calls=2)))["trim"]["steps"]["large"] == 2
    assert rig.ask()["trim"]["steps"]["large"] == 1


def test_one_runs_overrides_are_not_the_next_runs(rig):
    assert rig.ask(context=TrimContext(max_steps=1))["trim"]["stopped"] == "max_steps"
    assert rig.ask()["trim"]["stopped"] == "finished"
