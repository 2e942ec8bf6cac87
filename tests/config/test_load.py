"""Tests of configuration files: how they are read, what they build, and how a value is written into one."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.config.conftest import MODELS, refused
from trim_graph import SettingsError, TrimContext, open_ledger
from trim_graph.config import (
    EXAMPLE,
    Parts,
    TrimConfig,
    build_graph,
    build_parts,
    for_measuring,
    load_config,
    make_config,
)
from trim_graph.config.load import check_place, with_value, write_config
from trim_graph.config.schema import FileSettings
from trim_graph.examples.arithmetic.shipped import POLICIES
from trim_graph.settings import ConfigSection, Settings
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

STEPS = ["one is 1", "two is wrong", "the answer is \\boxed{3}"]


RIGHT = ["ONE IS 1", "TWO IS 2", "THE ANSWER IS \\boxed{3}"]


def folder_of_a_model(place: Path) -> Path:
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    return place


def scripted(**scores):
    return Parts(
        ScriptedChatModel(script=STEPS),
        ScriptedChatModel(script=RIGHT),
        ScriptedScorer({"two is wrong": 0.4}),
    )


def test_the_documented_example_is_valid(write, tmp_path):
    folder_of_a_model(tmp_path / "models" / "large")
    config = load_config(write(EXAMPLE))
    assert config.large.model == str(tmp_path / "models" / "large")
    assert config.small.model == "Qwen/Qwen2.5-Math-1.5B-Instruct"
    assert config.checkpoint == f"sqlite:{tmp_path / 'runs.db'}"
    assert config.budget.large_tokens == 2000
    assert config.prices.large.output == 1.5
    parts = build_parts(config)
    assert parts.small.device == "auto"
    assert parts.large.dtype == "bfloat16"
    assert parts.scorer.model == "Qwen/Qwen2.5-Math-PRM-7B"


def test_relative_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    folder_of_a_model(tmp_path / "set-up" / "mine")
    folder_of_a_model(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "set-up" / "trim.yaml"
    file.write_text("small: {type: transformers, model: mine}\nlarge: {type: example}\npolicy: small_only\n")
    assert load_config(file).small.model == str(tmp_path / "set-up" / "mine")
    assert load_config("set-up/trim.yaml").small.model == str(tmp_path / "set-up" / "mine")
    file.write_text(file.read_text().replace("mine", "other"))
    said = refused(file)
    assert "small.model" in said
    assert str(tmp_path / "set-up" / "other") in said


def test_run_settings_are_those_of_the_graph():
    known = set(Settings.model_fields) - {"budget", "quotas", "prices", "large_alone", "policy"}
    assert set(FileSettings.model_fields) == known
    assert FileSettings().model_dump() == Settings().model_dump(include=known)
    assert FileSettings.model_config == ConfigSection.model_config


@pytest.mark.parametrize(
    ("policy", "shown"),
    [
        ("small_only", "small_only()"),
        ("{type: large_only}", "large_only()"),
        ("{type: threshold, t: 0.4}", "threshold(0.4)"),
        ("{type: advantage, minimum: 0.1}", "advantage(0.1, price_per_token=0.0)"),
        (
            "{type: advantage, minimum: -0.2, price_per_token: 0.01}",
            "advantage(-0.2, price_per_token=0.01)",
        ),
        ("{type: random_rate, rate: 0.3}", "random_rate(0.3)"),
        (
            "{type: stay_on_large, k: 2, policy: {type: threshold, t: 1}}",
            "stay_on_large(threshold(1.0), k=2)",
        ),
        (
            "{type: any_of, policies: [small_only, {type: threshold, t: 0.1}, large_only]}",
            "((small_only() | threshold(0.1)) | large_only())",
        ),
        ("{type: all_of, policies: [small_only, large_only]}", "(small_only() & large_only())"),
    ],
)
def test_a_policy_is_built_as_it_is_written(write, policy, shown):
    assert repr(load_config(write(f"{MODELS}policy: {policy}")).policy.build()) == shown


def test_a_learned_policy_takes_another_threshold_in_the_file(write):
    path = POLICIES / "sequence-0.02.json"
    config = load_config(write(f"{MODELS}policy: {{type: file, path: {path}, threshold: 0.3}}"))
    assert config.policy.build().threshold == 0.3
    assert config.policy.model_dump() == {"type": "file", "path": str(path), "threshold": 0.3}
    plain = load_config(write(f"{MODELS}policy: {path}"))
    assert plain.policy.build().threshold == 0.5
    assert plain.policy.model_dump() == {"type": "file", "path": str(path)}


@pytest.mark.parametrize("threshold", ["1.1", "-0.1", ".nan", "high"])
def test_a_threshold_of_a_policy_file_that_is_no_probability_is_refused(write, threshold):
    path = POLICIES / "sequence-0.02.json"
    with pytest.raises(SettingsError, match="threshold"):
        load_config(write(f"{MODELS}policy: {{type: file, path: {path}, threshold: {threshold}}}"))


def test_build_graph_passes_everything_on(write):
    config = load_config(
        write(
            f"{MODELS}policy: {{type: threshold, t: 0.5}}\n"
            "budget: {large_calls: 1}\nprices: {large: {output: 1000000}}\n"
            "settings: {max_steps: 2, instruction: null, seed: 4}\n"
        )
    )
    summary = build_graph(config, parts=scripted()).invoke({"messages": [("user", "count")]})["trim"]
    assert summary["stopped"] == "max_steps"
    assert summary["steps"] == {"small": 1, "large": 1}
    assert summary["cost"] == 4


def test_a_policy_that_needs_scores_needs_a_scorer(write):
    config = load_config(
        write("small: {type: example}\nlarge: {type: example}\npolicy: {type: threshold, t: 1}")
    )
    with pytest.raises(
        SettingsError, match="threshold needs scores, and the configuration names no scorer: add one"
    ):
        build_graph(config, parts=scripted()._replace(scorer=None))


SECRET = "{{type: langchain, model: 'openai:m', kwargs: {{{}}}}}"


def test_overrides_replace_policies_and_join_mappings(write):
    path = write(f"{MODELS}policy: {{type: threshold, t: 0.5}}\nbudget: {{large_tokens: 50, seconds: 9}}")
    config = load_config(path, overrides={"policy": "small_only", "budget": {"large_tokens": 20}})
    assert config.policy.type == "small_only"
    assert (config.budget.large_tokens, config.budget.seconds) == (20, 9)


@pytest.mark.parametrize("remainder", [0, 3, -4])
def test_a_limit_that_is_used_up_is_a_limit(write, remainder):
    path = write(f"{MODELS}policy: small_only\nbudget: {{large_tokens: {remainder}}}")
    assert load_config(path).budget.large_tokens == max(0, remainder)
    overridden = load_config(path, overrides={"budget": {"seconds": remainder}})
    assert overridden.budget.seconds == max(0, remainder)


def test_a_validated_configuration_validates_again(write, tmp_path):
    folder_of_a_model(tmp_path / "models" / "large")
    config = load_config(write(EXAMPLE))
    assert make_config(json.loads(config.model_dump_json())) == config


def test_direct_validation_is_strict_too():
    with pytest.raises(ValidationError):
        TrimConfig.model_validate({"small": {"type": "example"}, "large": {"type": "example"}})


@pytest.mark.parametrize(
    ("added", "reported"),
    [
        (
            "quotas: {user: {large_tokens: 5}}",
            "quotas need a ledger that counts: add for example ledger",
        ),
        ("ledger: none", "ledger: cannot be none: choose memory, sqlite:PATH, postgresql://"),
        ("ledger: redis", "ledger: is not one of the choices: choose memory"),
        ("ledger: postgresql://u:secret@h/d", "ledger: holds a password; set PGPASSWORD"),
        ("ledger: memory\nquotas: {user: {tokens: 5}}", r"quotas\.user\.tokens"),
    ],
)
def test_a_ledger_and_quotas_go_together(write, added, reported):
    said = refused(write(f"{MODELS}policy: small_only\n{added}\n"))
    assert "secret" not in said
    assert re.search(reported, said), said


def test_a_graph_of_a_file_draws_from_its_ledger(write, tmp_path):
    text = f"{MODELS}policy: {{type: threshold, t: 0.5}}\nquotas: {{user: {{large_calls: 1}}}}\n"
    config = load_config(write(f"{text}ledger: sqlite:spend.db\n"))
    assert config.ledger == f"sqlite:{tmp_path / 'spend.db'}"
    with open_ledger(config.ledger) as ledger:
        graph = build_graph(config, parts=scripted(), ledger=ledger)
        graph.invoke({"messages": "count"}, context=TrimContext(user="ada"))
        assert ledger.used("user:ada").large_calls == 1
    with pytest.raises(SettingsError, match="no ledger that counts"):
        build_graph(config, parts=scripted())


def test_runs_that_measure_draw_from_no_account_and_ask_nobody(write):
    text = f"{MODELS}policy: {{type: threshold, t: 0.5}}\nquotas: {{user: {{large_calls: 1}}}}\n"
    asks = "budget: {large_calls: 1, on_exhausted: ask}\nsettings: {ask_below: 0.9}\nledger: memory\n"
    config = load_config(write(text + asks))
    result = build_graph(for_measuring(config), parts=scripted()).invoke({"messages": "count"})
    assert result["trim"]["stopped"] == "finished"
    assert "accounts" not in result["trim"]


# A value is replaced in a file, and the rest of the file stays as it is


NEW = {"type": "threshold", "t": 0.25}


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
