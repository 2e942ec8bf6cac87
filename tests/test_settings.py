from dataclasses import dataclass
from types import SimpleNamespace, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from trim_graph import create_trim_graph
from trim_graph.budget import Budget
from trim_graph.config import make_config
from trim_graph.errors import SettingsError
from trim_graph.policies import small_only, threshold
from trim_graph.settings import (
    ContextSettings,
    RunSettings,
    Settings,
    ShadowKeywords,
    ShadowSettings,
    TrimContext,
    Unset,
    overridden,
)
from trim_graph.testing import ScriptedChatModel

SETTINGS = Settings(max_steps=9)


def kinds(hint: Any) -> set[Any]:
    """Members of a union, as a model's field has them."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return {get_args(one)[0] if get_origin(one) is Annotated else one for one in members} - {Unset}


def test_keywords_are_those_of_the_settings_with_their_types():
    hints = get_type_hints(RunSettings)
    assert set(hints) == set(Settings.model_fields) - {"budget", "prices", "policy"}
    for name in set(hints) - {"segmentation"}:  # a function will do as a keyword
        assert kinds(hints[name]) == kinds(Settings.model_fields[name].annotation), name


def test_the_docstring_of_create_trim_graph_names_every_setting():
    documented = (create_trim_graph.__doc__ or "").partition("**settings:")[2]
    assert {name for name in get_type_hints(RunSettings) if f"``{name}``" not in documented} == set()


def test_keywords_of_a_shadow_are_its_settings_with_their_types():
    hints = get_type_hints(ShadowKeywords)
    fields = {name: field.annotation for name, field in ShadowSettings.model_fields.items()}
    assert hints == fields


def test_a_context_has_the_settings_of_a_call_with_their_bounds_and_descriptions():
    hints = get_type_hints(ContextSettings)
    assert set(TrimContext.model_fields) == set(hints)
    properties = TrimContext.model_json_schema()["properties"]
    whole = Settings.model_json_schema()["properties"]
    assert all(field["default"] is None for field in properties.values())
    for name in set(hints) - {"threshold", "policy", "user", "steps"}:
        assert kinds(hints[name]) - {type(None)} == kinds(Settings.model_fields[name].annotation) - {
            type(None)
        }
        assert properties[name]["description"] == whole[name]["description"]
    assert properties["max_steps"]["anyOf"][0]["minimum"] == whole["max_steps"]["minimum"] == 1
    assert properties["ask_below"]["anyOf"] == whole["ask_below"]["anyOf"]


def test_none_in_a_context_leaves_the_graphs_own():
    nothing = TrimContext(**dict.fromkeys(TrimContext.model_fields))
    assert overridden(SETTINGS, nothing) == SETTINGS


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


@pytest.mark.parametrize("policy", ["small_only", "large_only", {"type": "threshold", "t": 0.5}])
@pytest.mark.parametrize("most", [1, 3, 4, 5])
def test_max_tokens_is_the_limit_of_the_accepted_steps(make, policy: Any, most: int):
    rig = make(scores={}, max_tokens=most)
    result = rig.ask(context=TrimContext(policy=policy))["trim"]
    written = result["tokens"]["small"] + result["tokens"]["large"]
    assert (result["stopped"], written) == ("max_tokens", most)
    assert rig.ask(context=TrimContext(policy=policy, max_tokens=999))["trim"]["stopped"] == "finished"


@pytest.mark.parametrize("policy", ["small_only", {"type": "threshold", "t": 0.5}])
@pytest.mark.parametrize(
    ("most", "steps", "tokens"),
    [(3, 1, 2), (10, 1, 2), (11, 2, 11), (12, 2, 12), (16, 2, 12), (17, 3, 17), (99, 3, 18)],
)
def test_max_tokens_counts_answers_without_a_step_whose_text_is_in_the_solution(
    policy: Any, most: int, steps: int, tokens: int
):
    rule = "--- --- ---"  # four tokens with the blank line behind it
    model = ScriptedChatModel(script=["one", rule, rule, "two", rule, "three"])

    def scorer(question: str, steps: Any) -> list[float]:
        return [0.1] * len(steps)

    graph = create_trim_graph(model, model, scorer, policy=small_only(), max_tokens=most)
    result = graph.invoke({"messages": [("user", "?")]}, context=TrimContext(policy=policy))
    summary, text = result["trim"], result["messages"][-1].text
    assert len(text.split()) == {1: 1, 2: 8, 3: 12}[steps]
    assert sum(summary["steps"].values()) == steps
    assert summary["tokens"]["small"] + summary["tokens"]["large"] == tokens
    assert summary["stopped"] == ("finished" if most == 99 else "max_tokens")


def test_a_policy_object_in_a_context_is_refused_with_what_is_taken():
    for given in (threshold(0.5), lambda seen: "accept"):
        with pytest.raises(ValueError, match=r"a call takes a policy by its name: small, large, a threshold"):
            TrimContext(policy=given)  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match=r"an object is for policy= of create_trim_graph"):
            overridden(SETTINGS, {"trim": {"policy": given}})


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
        (TrimContext(policy="large"), 1),
        (TrimContext(policy="small"), 0),
        ({"trim": {"policy": 0.05}}, 0),
        (TrimContext(policy=0.5), 1),
        (TrimContext(policy=1), 1),
        (None, 1),
    ],
)
def test_a_call_may_go_by_another_policy(make, context: Any, large: int):
    rig = make()
    rig.ask(context=context)
    assert len(rig.large.calls) == large


@pytest.mark.parametrize(
    ("policy", "steps"), [("large", {"small": 0, "large": 4}), (0.05, {"small": 4, "large": 0})]
)
def test_a_calls_config_may_name_a_policy_where_there_is_no_context(make, policy: Any, steps: dict[str, int]):
    config = {"configurable": {"trim": {"policy": policy}}}
    rig = make()
    assert rig.ask(config=config)["trim"]["steps"] == steps
    assert rig.ask(config=config, context=TrimContext(policy="small"))["trim"]["steps"]["large"] == 0
    assert rig.ask()["trim"]["steps"] == {"small": 3, "large": 1}


@pytest.mark.parametrize("policy", [1.5, -0.1, True, float("nan")])
def test_a_number_that_is_no_threshold_is_refused_and_the_setting_named(rig, policy: Any):
    with pytest.raises(ValueError, match=r"policy.* is .*: choose small, large, a threshold in \[0, 1\]"):
        rig.ask(context={"trim": {"policy": policy}})
    with pytest.raises(
        SettingsError, match=r"trim settings are not valid: policy: .*a threshold in \[0, 1\]"
    ):
        rig.ask(config={"configurable": {"trim": {"policy": policy}}})
    assert rig.unasked


def test_a_config_with_an_unknown_override_is_refused(rig):
    with pytest.raises(SettingsError, match="max_step"):
        rig.ask(config={"configurable": {"trim": {"max_step": 2}}})
    assert rig.unasked


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("small", {"type": "small_only"}),
        ("large", {"type": "large_only"}),
        (0.6, {"type": "threshold", "t": 0.6}),
        (0, {"type": "threshold", "t": 0.0}),
    ],
)
def test_a_configuration_names_policies_as_a_call_does(given: Any, meant: dict[str, Any]):
    data = {part: {"type": "example"} for part in ("small", "large", "scorer")}
    assert make_config({**data, "policy": given}).policy.model_dump() == meant
    with pytest.raises(SettingsError, match="policy"):
        make_config({**data, "policy": 1.5})


def test_the_contexts_policy_outlives_an_interruption(make):
    rig = make(checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "a"}}
    rig.ask(config=thread, context=TrimContext(threshold=0.05), interrupt_before=["score_step"])
    assert rig.graph.invoke(None, thread)["trim"]["steps"] == {"small": 4, "large": 0}


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"trim": {"policy": "nonsense"}}, "the context's policy is not valid: .*nonsense"),
        ({"trim": {"policy": {"type": "threshold", "t": 7}}}, "less than or equal to 1"),
        ({"trim": {"policy": "small_only", "threshold": 0.5}}, "threshold and policy are both given"),
    ],
)
def test_a_wrong_policy_in_the_context_is_refused_before_any_model_call(rig, context: Any, message: str):
    with pytest.raises(ValueError, match=message):
        rig.ask(context=context)
    assert rig.unasked


def test_a_contexts_policy_cannot_need_scores_that_nobody_gives(make):
    rig = make(scorer=None, policy=small_only())
    with pytest.raises(SettingsError, match="needs scores, but the graph was built without a scorer"):
        rig.ask(context=TrimContext(threshold=0.5))
    assert rig.unasked
