"""Tests of settings of chat models and scorers: what an adapter and a configuration refuse alike."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trim_graph.adapters.settings import (
    EngineSettings,
    JudgeSettings,
    PRMSettings,
    SamplingSettings,
    ServedPRMSettings,
    TransformersSettings,
    TurnSignalsSettings,
    VLLMGenerativePRMSettings,
    VLLMServerPRMSettings,
    VLLMServerSettings,
)


@pytest.mark.parametrize(
    ("kind", "wrong", "place"),
    [
        (SamplingSettings, {"temperature": -0.1}, "temperature"),
        (SamplingSettings, {"temperature": float("inf")}, "temperature"),
        (SamplingSettings, {"temperature": float("nan")}, "temperature"),
        (SamplingSettings, {"top_p": 0}, "top_p"),
        (SamplingSettings, {"top_p": 1.01}, "top_p"),
        (SamplingSettings, {"seed": 0.5}, "seed"),
        (TransformersSettings, {"model": "gpt2", "max_batch_size": 0}, "max_batch_size"),
        (TransformersSettings, {"model": "gpt2", "dtype": "float64"}, "dtype"),
        (TransformersSettings, {"model": "./missing"}, "model"),
        (VLLMServerSettings, {"model": ""}, "model"),
        (VLLMServerSettings, {"model": "m", "read_timeout": 0}, "read_timeout"),
        (VLLMServerSettings, {"model": "m", "max_retries": -1}, "max_retries"),
        (VLLMServerSettings, {"model": "m", "continuation": "exact"}, "continuation"),
        (VLLMServerSettings, {"model": "m", "batch_wait_factor": float("inf")}, "batch_wait_factor"),
        (VLLMServerSettings, {"model": "m", "min_answer_tokens": 0}, "min_answer_tokens"),
        (EngineSettings, {"model": "gpt2", "gpu_memory_utilization": 0}, "gpu_memory_utilization"),
        (EngineSettings, {"model": "gpt2", "kv_cache_gib": float("inf")}, "kv_cache_gib"),
        (VLLMServerPRMSettings, {"model": "m", "cache_size": -1}, "cache_size"),
        (VLLMServerPRMSettings, {"model": "m", "max_requests": 0}, "max_requests"),
        (JudgeSettings, {"top_logprobs": 21}, "top_logprobs"),
        (JudgeSettings, {"max_tokens": True}, "max_tokens"),
        (JudgeSettings, {"scale": "stars"}, "scale"),
        (TurnSignalsSettings, {"tool_error": 1.5}, "tool_error"),
        (TurnSignalsSettings, {"otherwise": None}, "otherwise"),
    ],
)
def test_a_setting_out_of_its_bounds_is_refused_by_its_name(kind, wrong, place):
    with pytest.raises(ValidationError) as raised:
        kind(**wrong)
    assert raised.value.errors()[0]["loc"][0] == place


# Addresses of servers


def test_one_address_and_several_of_replicas_stay_as_they_are_written():
    for urls in ("http://a:8000/v1", ["http://a:8000", "http://b:8000/v1"]):
        assert VLLMServerSettings(model="m", base_url=urls).base_url == urls


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        ([], "base_url is an empty list"),
        (["http://a:1", "http://a:1/v1"], "http://a:1 more than once"),
        ("a:8000", "base_url"),
        (["http://a:1", "ftp://b:1"], r"base_url\[1\]"),
        (8000, "base_url should be an address or a list of addresses"),
        (["http://a:1", 8000], "base_url should be an address or a list of addresses"),
        ({"url": "http://a:1"}, "base_url should be an address or a list of addresses"),
        (None, "base_url should be an address or a list of addresses"),
    ],
)
@pytest.mark.parametrize("kind", [VLLMServerSettings, ServedPRMSettings])
def test_what_is_no_address_of_one_server_each_is_refused(kind, urls, said):
    with pytest.raises(ValidationError, match=said):
        kind(model="m", base_url=urls)


@pytest.mark.parametrize("kind", [VLLMServerSettings, ServedPRMSettings])
def test_a_key_in_place_of_the_name_of_its_variable_is_refused_and_not_repeated(kind):
    assert kind(model="m", api_key_env="MY_KEY").api_key_env == "MY_KEY"
    assert kind(model="m", api_key_env=None).api_key_env is None
    with pytest.raises(ValidationError, match="not the name of an environment variable") as raised:
        kind(model="m", api_key_env="sk-hunter2-0123456789")
    assert "hunter2" not in raised.value.errors(include_input=False, include_url=False)[0]["msg"]


# Weights


def test_weights_are_named_by_a_path_or_a_text(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for model in (tmp_path, str(tmp_path)):
        assert TransformersSettings(model=model).model == EngineSettings(model=model).model == str(tmp_path)


# Formats of process reward models


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"format": "unknown"}, "format='unknown' is not known; choose one of "),
        ({"format": 3}, "format=3 is not known"),
        (
            {"format": "skywork", "step_token": "x"},
            "the format skywork has none to choose, a line break ends",
        ),
        ({"format": "rlhflow", "step_token": "x"}, "has none to choose, turns of the chat template end"),
        ({"format": "qwen", "step_token": " "}, "is nothing but white space"),
        ({"step_token": ""}, "is nothing but white space"),
        ({"format": "skywork", "system_prompt": "Hello."}, "the format skywork is no chat"),
        ({"format": "math_shepherd", "system_prompt": "Hello."}, "the format math_shepherd is no chat"),
    ],
)
def test_a_format_refuses_settings_that_it_does_not_have(settings, said):
    with pytest.raises(ValidationError, match=said):
        PRMSettings(**settings)


@given(
    st.sampled_from(["auto", "qwen", "math_shepherd", "skywork", "rlhflow", "trim"]),
    st.sampled_from([None, "auto"]),
)
def test_every_format_takes_its_own_step_token_and_system_prompt(name, prompt):
    settings = PRMSettings(format=name, system_prompt=prompt)
    assert (settings.format, settings.step_token, settings.system_prompt) == (name, None, prompt)


@pytest.mark.parametrize("name", ["auto", "qwen", "skywork", "trim"])
def test_a_server_for_generation_refuses_a_format_with_a_head_of_its_own(name):
    with pytest.raises(ValidationError, match=r"choose math_shepherd or rlhflow, or the scorer .*vllm_prm"):
        VLLMGenerativePRMSettings(model="m", format=name)


def test_settings_load_nothing_that_an_adapter_needs_to_run():
    heavy = "{'torch', 'transformers', 'vllm', 'numpy'}"
    code = f"import sys, trim_graph.adapters.settings; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
