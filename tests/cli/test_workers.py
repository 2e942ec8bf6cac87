"""`--workers`: which options go together, and models that each process would load for itself."""

import pytest

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
