from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from trim_graph.budget import Budget
from trim_graph.context import Settings, TrimContext, overridden
from trim_graph.errors import SettingsError
from trim_graph.policies import small_only

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


@pytest.mark.parametrize(
    ("context", "large"),
    [
        (TrimContext(policy="large_only"), 1),
        ({"trim": {"policy": "small_only"}}, 0),
        (TrimContext(policy={"type": "random_rate", "rate": 1.0}), 4),
        (TrimContext(threshold=0.05), 0),
        (TrimContext(threshold=0.5), 1),
        (None, 1),
    ],
)
def test_a_call_may_go_by_another_policy(make, context: Any, large: int):
    rig = make()
    rig.ask(context=context)
    assert len(rig.large.calls) == large


def test_the_contexts_policy_outlives_an_interruption(make):
    rig = make(checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "a"}}
    rig.ask(config=thread, context=TrimContext(threshold=0.05), interrupt_before=["score_step"])
    assert rig.graph.invoke(None, thread)["trim"]["steps"] == {"small": 4, "large": 0}


@pytest.mark.parametrize(
    ("context", "told"),
    [
        ({"trim": {"policy": "nonsense"}}, "the context's policy is not valid: .*nonsense"),
        ({"trim": {"policy": {"type": "threshold", "t": 7}}}, "less than or equal to 1"),
        ({"trim": {"policy": "small_only", "threshold": 0.5}}, "threshold and policy are both given"),
    ],
)
def test_a_wrong_policy_in_the_context_is_refused_before_any_model_call(rig, context: Any, told: str):
    with pytest.raises(ValueError, match=told):
        rig.ask(context=context)
    assert rig.unasked


def test_a_contexts_policy_cannot_need_scores_that_nobody_gives(make):
    rig = make(scorer=None, policy=small_only())
    with pytest.raises(SettingsError, match="needs scores, but the graph was built without a scorer"):
        rig.ask(context=TrimContext(threshold=0.5))
    assert rig.unasked
