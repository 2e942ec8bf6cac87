"""`trim-graph doctor` as a command; against real servers it is tested in tests/vllm."""

import json
import os
import subprocess
import sys

import pytest
import yaml


@pytest.fixture
def example(run):
    return run("doctor", "--json")


def test_the_example_models_pass(example):
    assert example.exit_code == 0, example.output
    record = json.loads(example.stdout)
    assert record["errors"] == 0
    found = {(one["part"], one["check"]): one for one in record["checks"]}
    assert "6 of 6" in found["scorer", "right and wrong"]["found"]
    assert found["small", "continuation"]["status"] == "ok"
    assert found["large", "carrying on"]["status"] == "ok"
    # The settings' defaults are meant for longer contexts.
    assert found["small", "context length"]["status"] == "warning"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--timeout", "0"], "--timeout is 0"),
        (["--config", "none.yaml"], "configuration file none.yaml does not exist"),
    ],
)
def test_a_wrong_option_or_configuration_ends_with_code_2(options, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("doctor", *options)
    assert done.exit_code == 2
    assert message in done.stderr


def test_weights_that_cannot_be_loaded_are_an_error(run, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    config = {
        "small": {"type": "transformers", "model": "./broken"},
        "large": {"type": "example"},
        "policy": "small_only",
    }
    (tmp_path / "trim.yaml").write_text(yaml.safe_dump(config))
    done = run("doctor", "--config", tmp_path / "trim.yaml", "--json")
    assert done.exit_code == 1
    record = json.loads(done.stdout)
    (error,) = [one for one in record["checks"] if one["status"] == "error"]
    assert (error["part"], error["check"]) == ("small", "loading")
    assert "broken" in error["found"]
    assert any(one["part"] == "large" and one["check"] == "usage" for one in record["checks"])


def test_servers_that_are_not_there(tmp_path):
    config = {
        name: {"type": "vllm", "model": name, "base_url": "http://127.0.0.1:9", "api_key_env": "SOME_KEY"}
        for name in ("small", "large")
    }
    (tmp_path / "trim.yaml").write_text(yaml.safe_dump({**config, "policy": "small_only"}))
    done = subprocess.run(
        [sys.executable, "-m", "trim_graph.cli", "doctor", "--config", "trim.yaml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "SOME_KEY": "sk-secret"},
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "small, server: what is wrong: no server answers at http://127.0.0.1:9; fix it: " in done.stdout
    assert "all further checks" in done.stdout
    assert done.stdout.rstrip().endswith("2 errors (small, large), 1 warning: fix them before a run")
    assert "sk-secret" not in done.stdout + done.stderr
