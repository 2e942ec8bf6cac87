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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests import tiny_prms

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


def readme_python(ports: list[int]) -> str:
    """What the README of the examples does in Python, for servers at these ports."""
    text = (EXAMPLE.parent / "README.md").read_text("utf-8")
    code = "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    return re.sub(r"127\.0\.0\.1:810(\d)", lambda found: f"127.0.0.1:{ports[int(found[1]) - 1]}", code)


COMMAND = [sys.executable, "-m", "trim_graph.cli"]
KEPT = {n: v for n, v in os.environ.items() if not n.startswith(("VLLM_", "PYTHON"))}
KEPT |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


@contextmanager
def up(vllm_python: str, folder: Path) -> Iterator[str]:
    """Starts the servers of ``trim.yaml`` in a folder, and sees that nothing is left of them.

    Yields:
        A text that is in the environment of all their processes.
    """
    marker = f"trim-graph-test-{os.getpid()}-{time.monotonic_ns()}"
    options = ["--config", "trim.yaml", "--python", vllm_python, "--logs", "logs", "--startup-timeout", "400"]
    process = subprocess.Popen(
        [*COMMAND, "up", *options],
        cwd=folder,
        env={**KEPT, "TRIM_TEST_MARKER": marker},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        reported = []
        for line in process.stderr:  # ends with the process at the latest, within its startup timeout
            reported.append(line)
            if line.startswith("all up"):
                break
        assert reported[-1].startswith("all up"), "".join(reported)
        yield marker
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
        assert process.returncode == 0, rest
        deadline = time.monotonic() + 10
        while processes_of(marker) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert processes_of(marker) == []
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)
        for pid in processes_of(marker):
            os.kill(pid, signal.SIGKILL)


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of ours while the servers run."""
    return subprocess.run(
        [*COMMAND, *words], cwd=folder, env=KEPT, capture_output=True, text=True, check=False
    )


def test_the_arithmetic_servers_start_pass_the_doctor_and_end(vllm_python, tmp_path):
    ports = free_ports(3)
    following = iter(ports)
    text = re.sub(r"127\.0\.0\.1:\d+", lambda _: f"127.0.0.1:{next(following)}", EXAMPLE.read_text("utf-8"))
    (tmp_path / "trim.yaml").write_text(text)
    with up(vllm_python, tmp_path) as marker:
        assert len(processes_of(marker)) >= 1 + 3 * 2  # vLLM works with an engine beside the server
        doctor = command(tmp_path, "doctor", "--config", "trim.yaml", "--json")
        report = json.loads(doctor.stdout)
        assert doctor.returncode == 0, [c for c in report["checks"] if c["status"] != "ok"]
        assert report["errors"] == 0
        assert "6 of 6" in doctor.stdout
        for words in readme_commands():
            done = command(tmp_path, *words)
            assert done.returncode == 0, done.stderr
        assert "\\boxed" in done.stdout
        code = [sys.executable, "-c", readme_python(ports)]
        ran = subprocess.run(code, cwd=tmp_path, env=KEPT, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert "\\boxed" in ran.stdout


def test_a_cascade_of_a_reward_model_and_a_judge_shares_one_server_for_generation(vllm_python, tmp_path):
    tiny_prms.save_math_shepherd(tmp_path / "plus")
    (port,) = free_ports(1)
    served = {"model": "plus", "base_url": f"http://127.0.0.1:{port}/v1"}
    args = ["--enforce-eager", "--max-num-seqs", "8"]
    serve = {"path": "./plus", "cpu": True, "kv_cache_gb": 0.25, "dtype": "float32", "args": args}
    first = {"type": "vllm_generative_prm", "format": "math_shepherd", **served, "serve": serve}
    second = {"type": "llm_judge", "model": {"type": "vllm", **served}}
    config = {
        "small": {"type": "example"},
        "large": {"type": "example"},
        "scorer": {"type": "cascade", "first": first, "second": second},
        "policy": {"type": "threshold", "t": 0.5},
        "settings": {"max_steps": 4, "max_step_tokens": 32},
    }
    (tmp_path / "trim.yaml").write_text(yaml.safe_dump(config))
    with up(vllm_python, tmp_path):
        report = json.loads(command(tmp_path, "doctor", "--config", "trim.yaml", "--json").stdout)
    seen = {(one["part"], one["check"]): one for one in report["checks"]}
    for part, check in [
        *(("scorer-1", check) for check in ("server", "model", "tokenizer", "scores", "prefix cache")),
        *(("scorer-2", check) for check in ("server", "model")),
    ]:
        assert seen[part, check]["status"] == "ok", seen[part, check]
    # Their weights are random: they rate, and rate nothing rightly.
    assert seen["scorer-1", "right and wrong"]["found"]
