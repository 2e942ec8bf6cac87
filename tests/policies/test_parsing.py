"""Tests of policies as mappings: what each builds, what is refused, and that a mapping is written back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from trim_graph.errors import SettingsError
from trim_graph.examples.arithmetic.shipped import POLICIES
from trim_graph.policies.parsing import PolicyConfig, build_policy, invalid_policy

LEARNED = str(POLICIES / "aggregate-0.01.json")
PLANNED = str(POLICIES / "pomdp-4.json")

adapter = TypeAdapter(PolicyConfig)
rates = st.floats(0, 1)
simple = st.one_of(
    st.just({"type": "small_only"}),
    st.just({"type": "large_only"}),
    st.builds(lambda t: {"type": "threshold", "t": t}, rates),
    st.builds(lambda rate: {"type": "random_rate", "rate": rate}, rates),
    st.builds(lambda limit: {"type": "entropy_probe", "limit": limit}, st.floats(0, 9)),
    st.builds(
        lambda minimum, price: {"type": "advantage", "minimum": minimum, "price_per_token": price},
        st.floats(-1, 1),
        st.floats(0, 1),
    ),
    st.builds(
        lambda rates, default: {"type": "by_pattern", "pattern": "a|(b)", "rates": rates, "default": default},
        st.dictionaries(st.sampled_from("ab"), rates),
        rates,
    ),
)
mappings = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.builds(
            lambda policy, k: {"type": "stay_on_large", "policy": policy, "k": k}, inner, st.integers(0, 9)
        ),
        st.builds(
            lambda kind, policies: {"type": kind, "policies": policies},
            st.sampled_from(["any_of", "all_of"]),
            st.lists(inner, min_size=1, max_size=3),
        ),
    ),
    max_leaves=5,
)


@given(mappings)
def test_a_mapping_that_is_written_back_builds_the_same_policy(mapping):
    read = adapter.validate_python(mapping)
    assert read.model_dump(mode="json") == mapping
    assert repr(adapter.validate_json(read.model_dump_json()).build()) == repr(build_policy(mapping))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("small", "small_only()"),
        ("large", "large_only()"),
        ("small_only", "small_only()"),
        (0.3, "threshold(0.3)"),
        (1, "threshold(1.0)"),
        ({"type": "any_of", "policies": [0.3]}, "threshold(0.3)"),
        (
            {"type": "any_of", "policies": [0.3, "large", {"type": "random_rate", "rate": 0.1}]},
            "((threshold(0.3) | large_only()) | random_rate(0.1))",
        ),
        ({"type": "all_of", "policies": [0.3, "small"]}, "(threshold(0.3) & small_only())"),
        ({"type": "stay_on_large", "policy": 0.5, "k": 2}, "stay_on_large(threshold(0.5), k=2)"),
        ({"type": "advantage"}, "advantage(0.0, price_per_token=0.0)"),
    ],
)
def test_short_forms_and_mappings_build_the_policy_that_they_name(given, shown):
    assert repr(build_policy(given)) == shown


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (1.5, "policy is 1.5: choose small, large, a threshold in"),
        (True, "policy is True"),
        ("0.5", "write the number without quotes"),
        ("threshold", r"t: Field required.*give its fields in a mapping such as"),
        ("medium", "medium"),
        ({"type": "threshold", "t": 1.5}, "less than or equal to 1"),
        ({"type": "threshold", "t": float("nan")}, "t"),
        ({"type": "threshold", "t": 0.5, "k": 1}, "k"),
        ({"type": "any_of", "policies": []}, "policies"),
        ({"type": "any_of", "policies": [0.5, 2]}, "policy is 2"),
        ({"type": "stay_on_large", "policy": 0.5, "k": -1}, "k"),
        ({"type": "entropy_probe", "limit": float("inf")}, "limit"),
        ({"type": "by_pattern", "pattern": "a", "rates": {"a": 2}}, "rates"),
        ({"type": "by_pattern", "pattern": "(", "rates": {}}, "cannot be read"),
        ({"t": 0.5}, "type"),
        ({"type": "quality", "name": "frugal"}, "quality 'frugal' has no policy here"),
    ],
)
def test_what_names_no_policy_is_refused_as_a_setting(wrong, said):
    with pytest.raises(SettingsError, match=said):
        build_policy(wrong)


def test_only_a_missing_field_gets_the_hint_that_fields_go_into_a_mapping():
    for mapping, hint in (({"type": "threshold"}, True), ({"type": "threshold", "t": 2}, False)):
        with pytest.raises(ValidationError) as raised:
            adapter.validate_python(mapping)
        error = str(invalid_policy("setting", raised.value))
        assert error.startswith("setting is not valid: ")
        assert ("give its fields in a mapping" in error) is hint


def test_a_file_is_found_beside_the_configuration_and_a_call_names_none(tmp_path):
    read = adapter.validate_python("policies/p.json", context={"base": str(tmp_path)})
    assert read.path == str(tmp_path / "policies" / "p.json")
    with pytest.raises(ValidationError, match="named in a configuration, not in a call"):
        adapter.validate_python("policies/p.json")
    with pytest.raises(ValidationError, match="named in a configuration, not in a call"):
        adapter.validate_python({"type": "any_of", "policies": ["small", "policies/p.json"]})


def test_a_threshold_beside_a_file_replaces_that_of_a_learned_policy():
    own = build_policy(LEARNED)
    moved = build_policy({"type": "file", "path": LEARNED, "threshold": 0.125})
    assert repr(moved) != repr(own)
    assert "0.125" in repr(moved)


def test_a_policy_file_without_a_threshold_takes_none():
    with pytest.raises(SettingsError, match=r"threshold is 0\.5, and .* has none"):
        build_policy({"type": "file", "path": PLANNED, "threshold": 0.5})


def test_a_file_is_written_back_with_its_threshold_only_where_it_has_one():
    context = {"base": "."}
    for mapping in ({"type": "file", "path": LEARNED}, {"type": "file", "path": LEARNED, "threshold": 0.0}):
        assert adapter.validate_python(mapping, context=context).model_dump() == mapping
