"""`trim-graph doctor` on real servers: a good set-up passes, the error of each broken one is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.fault_proxy import FaultProxy
from tests.gateway import Gateway
from trim_graph.adapters.model_source import load_tokenizer
from trim_graph.adapters.prm.scores import serve_options
from trim_graph.cli.app import app
from trim_graph.examples.arithmetic import PRM

from .conftest import KEY, KEY_ENV, need_plugin, start_server, stop_servers, wait_for


@pytest.fixture
def config(servers, monkeypatch) -> dict[str, Any]:
    """The good set-up."""
    monkeypatch.setenv(KEY_ENV, KEY)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    return {
        "small": {"type": "vllm", "model": "small", "base_url": servers["small"].url},
        "large": {"type": "vllm", "model": "large", "base_url": servers["large"].url, "api_key_env": KEY_ENV},
        "scorer": {"type": "vllm_prm", "model": "prm", "base_url": servers["prm"].url},
        "policy": {"type": "threshold", "t": 0.9},
        "settings": {"max_steps": 20, "max_step_tokens": 64},
    }


@pytest.fixture
def doctor(tmp_path):
    """Examine a configuration; gives the exit code and the findings that are not ok, by part and check."""

    def examine(config: dict[str, Any], *options: str) -> tuple[int, dict[tuple[str, str], dict[str, str]]]:
        file = tmp_path / "trim.yaml"
        file.write_text(yaml.safe_dump(config))
        done = CliRunner().invoke(app, ["doctor", "--config", str(file), "--json", *options])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.output
        assert KEY not in done.output
        record = json.loads(done.stdout)
        found = {(one["part"], one["check"]): one for one in record["checks"] if one["status"] != "skipped"}
        errors = {place: one for place, one in found.items() if one["status"] == "error"}
        assert record["errors"] == len(errors)
        assert all(one["found"] and one["fix"] for one in errors.values())
        return done.exit_code, errors if errors else found

    return examine


@pytest.fixture
def behind(config):
    """Puts a gateway before the server of a part."""
    with ExitStack() as stack:

        def put(part: str, **rewrites: Any) -> Gateway:
            gateway = stack.enter_context(Gateway(config[part]["base_url"], **rewrites))
            config[part]["base_url"] = gateway.url
            return gateway

        yield put


def test_a_good_set_up_passes(config, doctor, tmp_path):
    code, found = doctor(config)
    assert code == 0
    assert {one["status"] for one in found.values()} == {"ok"}
    assert "byte for byte" in found["small", "continuation"]["found"]
    assert "/v1/completions" in found["large", "continuation"]["found"]  # its template trims
    assert "6 of 6" in found["scorer", "right and wrong"]["found"]
    assert "token 3" in found["scorer", "step token"]["found"]
    shown = CliRunner().invoke(app, ["doctor", "--config", str(tmp_path / "trim.yaml")])
    assert shown.exit_code == 0
    assert shown.stdout.rstrip().endswith("no error: this set-up does what a run needs")
    assert KEY not in shown.output


def test_every_replica_is_examined(config, servers, doctor, behind):
    gateway = behind("small")
    config["small"]["base_url"] = [servers["small"].url, gateway.url]
    code, found = doctor(config)
    assert code == 0
    for url in config["small"]["base_url"]:
        assert found[f"small at {url.removesuffix('/v1')}", "carrying on"]["status"] == "ok"
    assert "all 2 serve one model alike" in found["small", "replicas"]["found"]
    config["small"]["base_url"] = [servers["small"].url, "http://127.0.0.1:9/v1"]
    code, errors = doctor(config)
    assert (code, list(errors)) == (1, [("small at http://127.0.0.1:9", "server")])


def test_a_gateway_that_passes_everything_on_passes_too(config, doctor, behind):
    for part in ("small", "large", "scorer"):
        behind(part)
    code, found = doctor(config)
    assert code == 0
    assert {one["status"] for one in found.values()} == {"ok"}


def check(outcome: Any, part: str, name: str, *reported: str) -> None:
    """The error is found, and it alone, and its text says what the reader needs."""
    code, errors = outcome
    assert code == 1
    assert set(errors) == {(part, name)}, errors
    text = errors[part, name]["found"] + " FIX " + errors[part, name]["fix"]
    assert all(piece in text for piece in reported), text


def test_a_server_that_is_not_there(config, doctor):
    config["large"]["base_url"] = "http://127.0.0.1:9/v1"
    check(doctor(config), "large", "server", "http://127.0.0.1:9", "trim-graph up", "base_url of large")


def test_a_server_that_hangs(config, doctor):
    with FaultProxy(config["small"]["base_url"], then="stall") as proxy:
        config["small"]["base_url"] = proxy.url
        begun = time.monotonic()
        check(doctor(config, "--timeout", "6"), "small", "generation", "6 s")
        assert time.monotonic() - begun < 90


def test_a_page_instead_of_a_server(config, doctor):
    with FaultProxy(config["small"]["base_url"], then="html") as proxy:
        config["small"]["base_url"] = proxy.url
        check(doctor(config), "small", "generation", "not a JSON object")


def test_a_model_that_is_not_served(config, doctor):
    config["small"]["model"] = "smal"
    check(doctor(config), "small", "model", "serves 'small'", "'smal'", "model: small")


def test_a_key_that_is_missing(config, doctor, monkeypatch):
    monkeypatch.delenv(KEY_ENV)
    check(doctor(config), "large", "key", "401", f"{KEY_ENV} is not set", "FIX put the server's key into")


def test_a_key_that_is_wrong(config, doctor, monkeypatch):
    monkeypatch.setenv(KEY_ENV, "sk-another")
    outcome = doctor(config)
    check(outcome, "large", "key", "401", f"{KEY_ENV} is set, but not right")
    assert "sk-another" not in str(outcome)


def test_continuation_over_a_template_that_trims(config, doctor):
    config["large"]["continuation"] = "chat"
    code, errors = doctor(config)
    assert code == 1
    assert "newlines" in errors["large", "continuation"]["found"]
    assert "continuation: auto" in errors["large", "continuation"]["fix"]
    assert {part for part, _ in errors} == {"large"}


def _without(*names: str):
    def drop(path: str, body: Any) -> Any:
        for choice in body.get("choices", []):
            for name in names:
                choice.pop(name, None)
        return body

    return drop


def test_a_gateway_that_drops_stop_reason(config, doctor, behind):
    behind("small", answered=_without("stop_reason"))
    code, found = doctor(config)
    assert code == 0  # a stop string that is kept in the text shows it as well
    for name in ("stop string", "stop string, streamed"):
        assert found["small", name]["status"] == "warning"
        assert "include_stop_str_in_output" in found["small", name]["found"]
        assert "stop_reason" in found["small", name]["fix"]


def test_a_gateway_that_drops_stop_reason_and_does_not_let_it_be_kept(config, doctor, behind):
    def drop(path: str, body: Any) -> Any:
        return {name: value for name, value in body.items() if name != "include_stop_str_in_output"}

    behind("small", asked=drop, answered=_without("stop_reason"))
    code, errors = doctor(config)
    assert code == 1
    assert all("does not report which stop string" in one["found"] for one in errors.values())
    assert {part for part, _ in errors} == {"small"}


def test_a_gateway_that_ignores_stop(config, doctor, behind):
    behind("large", asked=lambda path, body: {k: v for k, v in body.items() if k != "stop"})
    code, errors = doctor(config)
    assert code == 1
    assert set(errors) == {("large", "stop string"), ("large", "stop string, streamed")}
    assert all("the field stop" in one["fix"] for one in errors.values())


def test_a_gateway_that_forgets_to_carry_on(config, doctor, behind):
    ours = ("continue_final_message", "add_generation_prompt")

    def drop(path: str, body: Any) -> Any:
        return body if "tokenize" in path else {k: v for k, v in body.items() if k not in ours}

    behind("small", asked=drop)
    check(doctor(config), "small", "carrying on", "tokens", "continue_final_message")


def test_a_gateway_that_reports_no_usage(config, doctor, behind):
    def drop(path: str, body: Any) -> Any:
        body.pop("usage", None)
        return body

    behind("small", answered=drop)
    check(doctor(config), "small", "usage", "counts as all its max_tokens", "usage")


def test_a_gateway_without_tokenize(config, doctor, behind):
    behind("small", asked=lambda path, body: None if "tokenize" in path else body)
    code, errors = doctor(config)
    assert code == 1
    assert {part for part, _ in errors} == {"small"}
    assert "/tokenize" in "".join(one["found"] for one in errors.values())


def test_a_gateway_that_answers_with_anything(config, doctor, behind):
    behind("small", answered=lambda path, body: {"hello": ["world"]} if "tokenize" in path else body)
    code, errors = doctor(config)
    assert code == 1
    assert {part for part, _ in errors} == {"small"}
    assert "could not be read" in next(iter(errors.values()))["found"]


def test_a_chat_server_as_scorer(config, doctor):
    config["scorer"] |= {"model": "small", "base_url": config["small"]["base_url"]}
    check(doctor(config), "scorer", "pooling", "writes text, not as a process reward", "--runner pooling")


def test_a_reward_model_as_chat_model(config, doctor):
    config["large"] = {"type": "vllm", "model": "prm", "base_url": config["scorer"]["base_url"]}
    check(doctor(config), "large", "generation", "pooling model", "type: vllm_prm")


def test_a_step_token_that_is_none(config, doctor):
    config["scorer"]["step_token"] = "<extra_1>"
    check(doctor(config), "scorer", "step token", "'<extra_1>'", "<extra_0>")


def test_a_tokenizer_of_another_model(config, doctor, tmp_path):
    from tokenizers import AddedToken

    other = load_tokenizer(str(PRM))
    other.add_tokens([AddedToken("85", normalized=False)])
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text("{}")
    config["scorer"]["tokenizer"] = str(tmp_path / "other")
    check(doctor(config), "scorer", "tokenizer", "another model's", "setting tokenizer")


def test_labels_that_are_swapped(config, doctor, behind):
    def swap(path: str, body: Any) -> Any:
        if path == "/pooling":
            for entry in body["data"]:
                entry["data"] = [pair[::-1] for pair in entry["data"]]
        return body

    behind("scorer", answered=swap)
    check(doctor(config), "scorer", "right and wrong", "the wrong way round", "0 of 6", "label 1 means right")


def test_scores_that_say_nothing(config, doctor, behind):
    def flatten(path: str, body: Any) -> Any:
        if path == "/pooling":
            for entry in body["data"]:
                entry["data"] = [[0.4, 0.6] for _ in entry["data"]]
        return body

    behind("scorer", answered=flatten)
    check(doctor(config), "scorer", "right and wrong", "does not separate right from wrong")


def test_scores_that_are_no_probabilities(config, doctor, behind):
    def raw(path: str, body: Any) -> Any:
        if path == "/pooling":
            for entry in body["data"]:
                entry["data"] = [[-2.5, 3.5] for _ in entry["data"]]
        return body

    behind("scorer", answered=raw)
    check(doctor(config), "scorer", "scores", "3.5", "not a probability")


def test_a_context_too_short_for_a_step(config, doctor):
    config["settings"]["max_step_tokens"] = 2040
    code, errors = doctor(config)
    assert code == 1
    assert {check for _, check in errors} == {"context length"}
    assert {part for part, _ in errors} == {"small", "large", "scorer"}
    for one in errors.values():
        assert "2048 tokens" in one["found"]
        assert "max_step_tokens to" in one["fix"]


def test_a_context_too_short_for_all_steps_is_a_warning(config, doctor):
    config["settings"]["max_steps"] = 200
    code, found = doctor(config)
    assert code == 0
    assert found["small", "context length"]["status"] == "warning"


def test_a_read_timeout_that_would_cut_a_step(config, doctor):
    config["small"]["read_timeout"] = 0.4
    config["settings"] = {"max_steps": 1, "max_step_tokens": 1900}
    check(doctor(config), "small", "time limits", "read_timeout=0.4", "read_timeout of small")


def test_thresholds_and_policies_that_do_nothing(config, doctor):
    config["policy"] = {"type": "any_of", "policies": [{"type": "threshold", "t": 0.0}]}
    code, found = doctor(config)
    assert code == 0
    assert found["set-up", "threshold"]["status"] == "warning"
    del config["scorer"]
    check(doctor(config), "set-up", "graph", "no scorer", "add a scorer")


def check_prefix_cache(outcome: Any, status: str, reported: str) -> None:
    """What is found of the scorer's prefix cache; all else is well."""
    code, found = outcome
    assert code == 0
    cache = found.pop(("scorer", "prefix cache"))
    assert cache["status"] == status
    assert reported in cache["found"]
    assert {one["status"] for one in found.values()} == {"ok"}


def test_a_scorer_that_the_prefix_cache_helps(config, doctor, plugin_server):
    config["scorer"]["base_url"] = plugin_server.url
    check_prefix_cache(doctor(config), "ok", "tokens")


def test_a_scorer_without_the_prefix_cache(config, doctor, vllm_python, tmp_path):
    need_plugin(vllm_python)
    options = serve_options("qwen", tokenizer=load_tokenizer(str(PRM)), plugin=True)
    options.append("--no-enable-prefix-caching")
    server = start_server(vllm_python, "prm", PRM, tuple(options), None, tmp_path / "prm.log")
    try:
        wait_for(server, time.monotonic() + 300)
        config["scorer"]["base_url"] = server.url
        check_prefix_cache(doctor(config), "warning", "none of the")
    finally:
        stop_servers(server)


def test_a_reward_model_served_with_another_step_tag(config, doctor):
    config["scorer"]["step_token"] = "<|endoftext|>"  # token 0; the server scores token 3
    check(doctor(config), "scorer", "scores", "0 scores for", '"step_tag_id": 0')


def test_a_reward_model_served_without_a_step_tag(config, doctor, vllm_python, tmp_path):
    options = ("--runner", "pooling")
    server = start_server(vllm_python, "prm", PRM, options, None, tmp_path / "prm.log")
    try:
        wait_for(server, time.monotonic() + 300)
        config["scorer"]["base_url"] = server.url
        check(doctor(config), "scorer", "scores", "scores for", '"step_tag_id": 3')
    finally:
        stop_servers(server)


def test_ctrl_c_ends_it_cleanly(config, tmp_path):
    with FaultProxy(config["small"]["base_url"], then="stall") as proxy:
        config["small"]["base_url"] = proxy.url
        (tmp_path / "trim.yaml").write_text(yaml.safe_dump(config))
        process = subprocess.Popen(
            [sys.executable, "-m", "trim_graph.cli", "doctor", "--config", "trim.yaml"],
            cwd=tmp_path,
            env={**os.environ, KEY_ENV: KEY},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while not proxy.met and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out) == (130, "")
        assert err.strip().splitlines()[-1] == "trim-graph: interrupted"
