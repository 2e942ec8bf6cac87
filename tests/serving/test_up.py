"""`trim-graph up` in a process of its own, with a program in place of vLLM's Python."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trim_graph.cli.app import app
from trim_graph.config import load_config

from .conftest import alive, free_port

pytestmark = pytest.mark.enable_socket

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "vllm"


@pytest.fixture
def up(write, fake_python, tmp_path):
    """Begins `up` with small and large on free ports; ends everything that is left afterwards."""
    started = []

    def begin(*options, faults=None, ports=None, environment=None, **parts):
        ports = ports or (free_port(), free_port())
        for name, port in zip(("small", "large"), ports, strict=True):
            parts[name] = {"base_url": f"http://127.0.0.1:{port}/v1", **parts.get(name, {})}
        config = write(**parts)
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "trim_graph.cli",
                "up",
                "--config",
                str(config),
                "--python",
                str(fake_python),
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={
                **os.environ,
                "FAKE_LOG": str(tmp_path / "fake.log"),
                "FAKE_FAULTS": json.dumps(faults or {}),
                **(environment or {}),
            },
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
    for entry in events(tmp_path):
        pid = entry.get("pid") or entry.get("worker")
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def events(tmp_path):
    log = tmp_path / "fake.log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def servers(tmp_path):
    return {entry["name"]: entry for entry in events(tmp_path) if "name" in entry}


def until_up(process):
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("all up"):
            return "".join(lines)
    raise AssertionError("".join(lines))


def no_process_is_left(tmp_path):
    pids = [entry.get("pid") or entry.get("worker") for entry in events(tmp_path)]
    assert pids
    deadline = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_servers_live_and_end_together(kind, up, tmp_path):
    process = up(large={"api_key_env": "LARGE_KEY"}, environment={"LARGE_KEY": "sk-secret"})
    reported = until_up(process)
    assert "trim-graph doctor --config" in reported
    running = servers(tmp_path)
    assert running["large"]["key"] == "sk-secret"
    assert running["small"]["key"] == ""
    assert all(alive(server["pid"]) for server in running.values())
    process.send_signal(kind)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert no_process_is_left(tmp_path)
    assert "sk-secret" not in reported + out + err + json.dumps([s["arguments"] for s in running.values()])


@pytest.mark.parametrize(("gpus", "in_turn"), [((0, 0), True), ((0, 1), False)])
def test_servers_on_one_gpu_start_one_after_the_other(gpus, in_turn, up, tmp_path):
    parts = {
        name: {"serve": {"path": "./weights", "gpu": gpu}}
        for name, gpu in zip(("small", "large"), gpus, strict=True)
    }
    until_up(up(**parts))
    running = servers(tmp_path)
    assert [running[name]["gpus"] for name in ("small", "large")] == [str(gpu) for gpu in gpus]
    # The first is healthy half a second after its start.
    assert (running["large"]["at"] - running["small"]["at"] > 0.5) == in_turn


def test_one_that_dies_at_its_start_ends_all(up, tmp_path):
    process = up(faults={"large": "dies"})
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert "large died while it started, with exit code 3" in err
    assert "RuntimeError: no kernel image" in err
    assert "line 90" in err
    assert "line 10\n" not in err  # the last lines only
    assert "large.log" in err
    assert no_process_is_left(tmp_path)


def test_one_that_dies_later_ends_all(up, tmp_path):
    process = up(faults={"small": "later"})
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "small died after it had been up, with exit code 7" in err
    assert no_process_is_left(tmp_path)


def test_one_that_never_gets_healthy(up, tmp_path):
    environment = {"VLLM_API_KEY": "sk-secret"}
    process = up("--startup-timeout", "2", faults={"small": "never"}, environment=environment)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "small was not healthy within 2 s" in err
    assert "hello from small with key ***" in err
    assert "sk-secret" not in err
    assert no_process_is_left(tmp_path)


def test_an_interrupt_while_they_start(up, tmp_path):
    process = up(faults={"small": "never"})
    deadline = time.monotonic() + 20
    while len(events(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "trim-graph: interrupted; all servers that had been started are ended" in err
    assert no_process_is_left(tmp_path)


def test_a_second_interrupt_ends_them_at_once(up, tmp_path):
    process = up(faults={"small": "stubborn"})
    until_up(process)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 0
    assert no_process_is_left(tmp_path)


def test_a_port_taken_by_something_else_is_refused_before_anything_starts(up, tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", port := str(free_port())],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            process = up(ports=(free_port(), int(port)), faults={"small": "never"})
            _, err = process.communicate(timeout=30)
            if process.returncode == 2:
                break
        assert f"large: port {port} is taken by something that is not a vLLM server" in err
        assert "Nothing was started" in err
        assert not events(tmp_path)
    finally:
        other.kill()
        other.wait()


def test_a_server_that_runs_already_is_used_and_left(up, tmp_path):
    ports = free_port(), free_port()
    first = up(ports=ports)
    until_up(first)
    second = up(ports=ports)
    _, err = second.communicate(timeout=20)
    assert second.returncode == 0
    assert "small: runs already" in err
    assert "all servers run already" in err
    assert all(alive(server["pid"]) for server in servers(tmp_path).values())
    (tmp_path / "other").mkdir()
    third = up(ports=ports, large={"serve": {"path": "./other"}})
    _, err = third.communicate(timeout=20)
    assert third.returncode == 2
    assert f"port {ports[1]} is taken by a server of 'large'" in err
    assert "not of 'large' (from" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--startup-timeout", "0"], "--startup-timeout is 0"),
        (["--python", "/no/python"], "--python /no/python: there is no such program"),
        (["--logs", "/proc/none"], "--logs /proc/none cannot be made"),
    ],
)
def test_bad_input(options, message, write, tmp_path, fake_python):
    config = write(
        small={"base_url": f"http://127.0.0.1:{free_port()}"},
        large={"base_url": f"http://127.0.0.1:{free_port()}"},
    )
    options = options if "--python" in options else [*options, "--python", str(fake_python)]
    done = CliRunner().invoke(app, ["up", "--config", str(config), *options])
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_configuration_without_servers_of_its_own(write, fake_python):
    config = write(small={"base_url": "http://a.example"}, large={"base_url": "http://b.example"})
    done = CliRunner().invoke(app, ["up", "--config", str(config), "--python", str(fake_python)])
    assert done.exit_code == 2
    assert "names no vLLM server on this machine" in done.stderr


PRINTED = {
    "arithmetic_cpu": ["--kv-cache-memory-bytes", "weights/prm", '"step_tag_id": 3'],
    "qwen_one_gpu": [
        "Qwen2.5-Math-PRM-7B",
        '"step_tag_id": 151651',
        "CUDA_VISIBLE_DEVICES=0",
        "--max-model-len",
    ],
    "qwen_two_gpus": ["CUDA_VISIBLE_DEVICES=1", "--gpu-memory-utilization 0.9", "Qwen2.5-7B-Instruct"],
    "qwen_large_elsewhere": ["# large: http://large-model.example:8002/v1 is another machine's"],
}


def test_every_example_is_here():
    assert {file.stem for file in EXAMPLES.glob("*.yaml")} == set(PRINTED)


def test_the_python_of_the_readme_has_the_models_of_the_example():
    blocks = re.findall(r"```python\n(.*?)```", (EXAMPLES / "README.md").read_text("utf-8"), re.DOTALL)
    names = {}
    exec(compile(blocks[0], "README.md", "exec"), names)
    config = load_config(EXAMPLES / "arithmetic_cpu.yaml")
    for part in ("small", "large", "scorer"):
        given, told = names[part], getattr(config, part)
        assert (given.model, given.base_url) == (told.model, told.base_url)
    settings = config.settings.model_dump(exclude_unset=True) | {"large_tokens": config.budget.large_tokens}
    assert all(f"{name}={value}" in blocks[0] for name, value in settings.items())


@pytest.mark.parametrize("name", PRINTED)
def test_print_shows_commands_that_a_shell_understands(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "vllm"
    program.write_text('#!/bin/sh\necho "GPU=$CUDA_VISIBLE_DEVICES"\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    done = CliRunner().invoke(app, ["up", "--config", str(EXAMPLES / f"{name}.yaml"), "--print"])
    assert done.exit_code == 0, done.output
    assert all(piece in done.stdout for piece in PRINTED[name]), done.stdout
    lines = [line for line in done.stdout.splitlines() if " serve " in line]
    total = {}
    for line in lines:
        words = shlex.split(line)
        reported = dict(pairwise(words))
        gpu = next((word for word in words if word.startswith("CUDA_VISIBLE")), "")
        total[gpu] = total.get(gpu, 0) + float(reported.get("--gpu-memory-utilization", 0))
    assert max(total.values()) <= 0.9 + 1e-9
    ran = subprocess.run(["sh", "-e"], input=done.stdout, capture_output=True, text=True, check=True)
    said = ran.stdout.splitlines()
    assert said.count("serve") == len(lines)
    for word in shlex.split(lines[-1]):
        assert "=" in word or word == "vllm" or word in said


@pytest.mark.parametrize(("plugin", "pooling"), [("", "STEP"), ("plugin", "LAST")])
def test_print_has_the_flags_that_the_vllm_named_can_take(plugin, pooling, fake_python, monkeypatch):
    monkeypatch.setenv("FAKE_PLUGIN", plugin)
    example = str(EXAMPLES / "arithmetic_cpu.yaml")
    done = CliRunner().invoke(app, ["up", "--config", example, "--print", "--python", str(fake_python)])
    assert done.exit_code == 0, done.output
    assert f'"pooling_type": "{pooling}"' in done.stdout
    assert ("TrimQwen2ForProcessReward" in done.stdout) is bool(plugin)
