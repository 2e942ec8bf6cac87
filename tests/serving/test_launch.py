"""Processes of servers: `trim-graph up` in a process of its own, with a program in place of vLLM's Python."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from trim_graph.cli.app import app

from .conftest import alive, free_port

pytestmark = pytest.mark.enable_socket


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


def test_one_that_is_not_healthy_in_time_ends_all(up, tmp_path):
    environment = {"VLLM_API_KEY": "sk-secret"}
    process = up("--startup-timeout", "2", faults={"small": "never"}, environment=environment)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "small was not healthy within 2 s" in err
    assert "hello from small with key ***" in err
    assert "sk-secret" not in err
    assert no_process_is_left(tmp_path)


def test_an_interrupt_while_servers_start_ends_all(up, tmp_path):
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
def test_a_wrong_option_or_python_is_refused_before_any_start(options, message, write, tmp_path, fake_python):
    config = write(
        small={"base_url": f"http://127.0.0.1:{free_port()}"},
        large={"base_url": f"http://127.0.0.1:{free_port()}"},
    )
    options = options if "--python" in options else [*options, "--python", str(fake_python)]
    done = CliRunner().invoke(app, ["up", "--config", str(config), *options])
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_configuration_without_servers_of_its_own_is_refused(write, fake_python):
    config = write(small={"base_url": "http://a.example"}, large={"base_url": "http://b.example"})
    done = CliRunner().invoke(app, ["up", "--config", str(config), "--python", str(fake_python)])
    assert done.exit_code == 2
    assert "names no vLLM server on this machine" in done.stderr
