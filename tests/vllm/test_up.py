"""`trim-graph up` with real vLLM: the servers of an example start, serve, and end without a trace."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "vllm" / "arithmetic_cpu.yaml"


def processes_of(marker: str) -> list[int]:
    """Processes with this in their command line or environment: workers rename themselves."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            known = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
            state = (place / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if marker.encode() in known and state != "Z" and int(place.name) != os.getpid():
            found.append(int(place.name))
    return found


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def readme_commands() -> list[list[str]]:
    """What the README of the examples says to type while the servers run, for the copy of the file."""
    blocks = re.findall(r"```bash\n(.*?)```", (EXAMPLE.parent / "README.md").read_text("utf-8"), re.DOTALL)
    commands = [shlex.split(line)[1:] for line in blocks[1].splitlines()]
    assert [words[0] for words in commands] == ["doctor", "solve"]
    place = "examples/vllm/arithmetic_cpu.yaml"
    return [["trim.yaml" if word == place else word for word in words] for words in commands]


def test_the_arithmetic_servers_start_pass_the_doctor_and_end(vllm_python, tmp_path):
    ports = iter(free_ports(3))
    text = re.sub(r"127\.0\.0\.1:\d+", lambda _: f"127.0.0.1:{next(ports)}", EXAMPLE.read_text("utf-8"))
    (tmp_path / "trim.yaml").write_text(text)
    marker = f"trim-graph-test-{os.getpid()}-{time.monotonic_ns()}"
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("VLLM_", "PYTHON"))}
    kept |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    command = [sys.executable, "-m", "trim_graph.cli"]
    up = subprocess.Popen(
        [
            *command,
            "up",
            "--config",
            "trim.yaml",
            "--python",
            vllm_python,
            "--logs",
            "logs",
            "--startup-timeout",
            "400",
        ],
        cwd=tmp_path,
        env={**kept, "TRIM_TEST_MARKER": marker},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert up.stderr is not None
        reported = []
        for line in up.stderr:  # ends with the process at the latest, and that within its startup timeout
            reported.append(line)
            if line.startswith("all up"):
                break
        assert reported[-1].startswith("all up"), "".join(reported)
        assert len(processes_of(marker)) >= 1 + 3 * 2  # vLLM works with an engine beside the server
        doctor = subprocess.run(
            [*command, "doctor", "--config", "trim.yaml", "--json"],
            cwd=tmp_path,
            env=kept,
            capture_output=True,
            text=True,
            check=False,
        )
        report = json.loads(doctor.stdout)
        assert doctor.returncode == 0, report
        assert report["errors"] == 0
        assert "6 of 6" in doctor.stdout
        for words in readme_commands():
            done = subprocess.run(
                [*command, *words], cwd=tmp_path, env=kept, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        assert "\\boxed" in done.stdout
        up.send_signal(signal.SIGINT)
        _, rest = up.communicate(timeout=60)
        assert up.returncode == 0, rest
        deadline = time.monotonic() + 10
        while processes_of(marker) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert processes_of(marker) == []
    finally:
        if up.poll() is None:
            up.terminate()
            up.communicate(timeout=60)
        for pid in processes_of(marker):
            os.kill(pid, signal.SIGKILL)
