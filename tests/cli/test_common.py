"""Tests of what commands share: `--workers` and its like, and models that cannot be had."""

import json

import pytest

from tests.adapters.hub_server import serve
from trim_graph.cli.common import open_executor
from trim_graph.config import make_config
from trim_graph.errors import SettingsError
from trim_graph.evaluation.runner import LocalExecutor

ON_SERVERS = {
    "small": {"type": "vllm", "model": "s", "base_url": "http://127.0.0.1:1/v1"},
    "large": {"type": "vllm", "model": "l", "base_url": "http://127.0.0.1:2/v1"},
    "scorer": {"type": "turn_signals"},
    "policy": {"type": "threshold", "t": 0.5},
}


HERE = {"type": "transformers", "model": "somewhere"}


@pytest.mark.parametrize("command", ["eval", "collect", "label"])
def test_models_that_each_process_would_load_are_refused_before_any_is_loaded(run, tmp_path, command):
    result = run(
        command, "--dataset", "arithmetic:standard", "-n", 2, "--out", tmp_path / "o.jsonl", "--workers", 3
    )
    assert result.exit_code == 2
    parts = "small" if command == "label" else "small, large, scorer"
    assert f"--workers 3: each process would load {parts} of its own" in " ".join(result.output.split())
    assert "--load-per-worker" in result.output


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--workers", 0], "--workers is 0: choose 1 or more"),
        (["--workers", 2, "--ray", "auto"], "--ray names a cluster: give --ray-workers instead"),
        (["--load-per-worker"], "--load-per-worker needs --workers"),
        (["--workers", 2, "--ray-workers", 2], "--ray-workers needs --ray"),
    ],
)
def test_options_that_exclude_each_other(run, tmp_path, given, message):
    dataset = ["--dataset", "arithmetic:standard", "-n", 2, "--out", tmp_path / "o.jsonl"]
    result = run("collect", *dataset, *given)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def opened(config, **options):
    with open_executor(config, lambda: None, rated=False, ray=None, count=None, **options) as executor:
        return executor


def test_one_worker_is_this_process():
    assert isinstance(opened(make_config(ON_SERVERS), workers=1), LocalExecutor)


@pytest.mark.parametrize(
    ("changed", "options", "parts"),
    [
        ({}, {}, None),
        ({"large": HERE}, {}, "large"),
        ({"large": HERE}, {"large": False}, None),
        ({"small": {"type": "vllm_engine", "model": "somewhere"}}, {}, "small"),
        ({"small": HERE}, {"load_per_worker": True}, None),
    ],
)
def test_only_models_outside_of_servers_are_in_the_way_of_more_processes(
    monkeypatch, changed, options, parts
):
    started = []

    def begun(count):
        started.append(count)
        raise InterruptedError

    monkeypatch.setattr("trim_graph.distributed.started", begun)
    monkeypatch.setattr("trim_graph.cli.common.need", lambda *wanted: None)
    monkeypatch.setattr("trim_graph.cli.common.need_extras", lambda config: None)
    config = make_config(ON_SERVERS | changed)
    if parts is None:
        with pytest.raises(InterruptedError):
            opened(config, workers=2, **options)
        assert started == [2]
    else:
        with pytest.raises(SettingsError, match=f"would load {parts} of its own"):
            opened(config, workers=2, **options)
        assert not started


# A model that cannot be had is named in one line


PROBLEM = (
    "Start with 34. Step 1: add 12. Step 2: multiply by 7. Step 3: take away 5. "
    "Step 4: take the larger of it and 20. Always keep only the last two digits. What is the final number?"
)


CONFIG = """
small: {type: transformers, model: owner/name}
large: {type: transformers, model: owner/large}
scorer: {type: transformers_prm, model: owner/prm}
policy: {type: threshold, t: 0.5}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trim.yaml").write_text(CONFIG)
    (tmp_path / "cuda.yaml").write_text(
        "small: {type: example}\nlarge: {type: example, device: cuda}\npolicy: small\n"
    )


@pytest.mark.parametrize(
    ("answer", "said"),
    [("unreachable", "cannot be reached"), ("not found", "has no such model"), ("gated", "is gated")],
)
def test_solve_says_so_after_one_request(run, config, monkeypatch, tmp_path, answer, said):
    requests = serve(monkeypatch, answer, token="hf_x", cache=tmp_path)
    done = run("solve", "--config", "trim.yaml", "What is 2 + 2?")
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("trim-graph: small: model='owner/name': ")
    assert said in line
    assert len(requests) == 1


def test_doctor_finds_it_for_each_part(run, config, monkeypatch, tmp_path):
    serve(monkeypatch, "unreachable", cache=tmp_path)
    done = run("doctor", "--config", "trim.yaml", "--json")
    assert done.exit_code == 1
    found = {
        one["part"]: one["found"] for one in json.loads(done.stdout)["checks"] if one["status"] == "error"
    }
    assert found.keys() == {"small", "large", "scorer"}
    assert all(
        "the Hugging Face hub (https://huggingface.co) cannot be reached" in text for text in found.values()
    )


def test_a_gpu_that_is_not_there_is_said_before_the_first_model_loads(run, config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(
        "trim_graph.cli.common.load_chat_model", lambda model: pytest.fail("a model was loaded")
    )
    done = run("solve", "--config", "cuda.yaml", PROBLEM)
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("trim-graph: large: device='cuda', but torch ")


def test_doctor_names_the_gpu(run, config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = run("doctor", "--config", "cuda.yaml", "--json")
    (found,) = [
        one
        for one in json.loads(done.stdout)["checks"]
        if one["part"] == "large" and one["status"] == "error"
    ]
    assert (found["check"], found["fix"]) == ("loading", "")
    assert found["found"].startswith("device='cuda', but torch ")
