import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trim_graph import SettingsError
from trim_graph.config import load_config
from trim_graph.config.load import check_place, with_value, write_config

NEW = {"type": "threshold", "t": 0.25}
MODELS = "small: {type: example}\nlarge: {type: example}\nscorer: {type: example}\n"


@pytest.mark.parametrize(
    "policy",
    [
        "policy: small_only",
        "policy: {type: threshold, t: 0.5}  # by hand",
        "policy:\n  type: threshold\n  t: 0.5  # by hand",
        "policy:\n  # by hand\n  type: any_of\n  policies:\n  - type: threshold\n    t: 0.5\n  - small_only",
        "'policy': |-\n  small_only",
        "policy: &p {type: threshold, t: 0.5}",
    ],
)
@pytest.mark.parametrize(
    "after", ["", "\n", "\n\n# the end\n", "\n# prices\n\nprices: {large: {output: 1}}  # p\n"]
)
def test_the_rest_stays_as_it_is(policy, after):
    text = f"# begin\n{MODELS}\n{policy}{after}"
    new = with_value(text, ["policy"], NEW)
    assert yaml.safe_load(new) == {**yaml.safe_load(text), "policy": NEW}
    assert new.startswith(f"# begin\n{MODELS}\n")
    assert new.endswith(after)


@pytest.mark.parametrize("after", ["", "\n", "\n# the end\n", "\n...\n"])
def test_a_key_that_is_missing_is_added_at_the_end(after):
    text = f"{MODELS}policy: small_only  # p{after}"
    new = with_value(text, ["large_alone"], {"length_ratio": 1.1})
    assert new.startswith(f"{MODELS}policy: small_only  # p\n")
    assert new.endswith("\nlarge_alone: {length_ratio: 1.1}\n")
    assert yaml.safe_load(new) == {**yaml.safe_load(text), "large_alone": {"length_ratio": 1.1}}


def test_what_cannot_be_replaced_in_place_is_written_anew():
    text = f"{MODELS}policy: &p {{type: threshold, t: 0.5}}\nother: *p\n"
    new = with_value(text, ["policy"], NEW)
    assert yaml.safe_load(new) == {**yaml.safe_load(text), "policy": NEW}


@pytest.mark.parametrize(
    ("text", "new"),
    [
        (
            "quality:\n  # for the shop\n  high: {max_loss: 0.01}  # one\n  fast: {save: 0.7}\n",
            "quality:\n  # for the shop\n  high: {type: threshold, t: 0.25}  # one\n  fast: {save: 0.7}\n",
        ),
        (
            "quality: {high: {max_loss: 0.01}, b: 1}  # q\n",
            "quality: {high: {type: threshold, t: 0.25}, b: 1}  # q\n",
        ),
        (
            "quality:\n  high:\n    max_loss: 0.01\n  b: 1\n",
            "quality:\n  high: {type: threshold, t: 0.25}\n  b: 1\n",
        ),
    ],
)
def test_a_value_within_a_section_is_replaced_in_place(text, new):
    assert with_value(text, ["quality", "high"], NEW) == new


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(
    before=st.dictionaries(st.text("abc", min_size=1, max_size=3), values, max_size=2),
    policy=values,
    after=st.dictionaries(st.text("xyz", min_size=1, max_size=3), values, max_size=2),
    flow=st.booleans(),
)
def test_any_file_keeps_its_other_keys(before, policy, after, flow):
    data = {**before, "policy": policy, **after}
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=flow, allow_unicode=True)
    assert yaml.safe_load(with_value(text, ["policy"], NEW)) == {**yaml.safe_load(text), "policy": NEW}


def test_of_the_example_models(tmp_path):
    write_config(None, tmp_path / "trim.yaml", {("policy",): NEW})
    assert load_config(tmp_path / "trim.yaml").policy.model_dump() == NEW


def test_a_policy_file_is_named_from_where_the_configuration_stands(tmp_path):
    (tmp_path / "policies").mkdir()
    policy = {"type": "file", "path": str(tmp_path / "policies" / "a.json")}
    write_config(None, tmp_path / "trim.yaml", {("policy",): policy})
    assert "path: policies/a.json" in (tmp_path / "trim.yaml").read_text()


def test_policy_files_within_policies_are_named_from_there_too(tmp_path):
    (tmp_path / "policies").mkdir()
    file = {"type": "file", "path": str(tmp_path / "policies" / "a.json")}
    joined = {"type": "any_of", "policies": [{"type": "threshold", "t": 0.5}, file]}
    policy = {"type": "stay_on_large", "k": 2, "policy": joined}
    write_config(None, tmp_path / "trim.yaml", {("policy",): policy})
    text = (tmp_path / "trim.yaml").read_text()
    assert "path: policies/a.json" in text
    assert str(tmp_path) not in text
    read = load_config(tmp_path / "trim.yaml").policy.model_dump()
    assert read["policy"]["policies"][1] == file


def test_a_place_where_paths_would_lead_elsewhere(tmp_path):
    (tmp_path / "other").mkdir()
    source = tmp_path / "trim.yaml"
    source.write_text(f"{MODELS}policy: small_only\ncheckpoint: sqlite:runs.db\n")
    check_place(source, tmp_path / "new.yaml")
    with pytest.raises(SettingsError, match="lead elsewhere from there"):
        check_place(source, tmp_path / "other" / "new.yaml")
    source.write_text(f"{MODELS}policy: small_only\n")
    check_place(source, tmp_path / "other" / "new.yaml")
    with pytest.raises(SettingsError, match="cannot be written"):
        check_place(source, tmp_path / "other")
