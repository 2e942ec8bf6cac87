"""A program in place of a Python with vLLM, in subprocesses of real commands."""

from __future__ import annotations

import os
import socket
import stat
import sys
from pathlib import Path

import pytest
import yaml

FAKE = f"""#!{sys.executable}
import http.server, json, os, subprocess, sys, time

arguments = sys.argv[1:]
if "-c" in arguments:  # asked whether it has vLLM
    print(os.environ.get("FAKE_PLUGIN", ""), end="")
    sys.exit(0 if os.environ.get("FAKE_HAS_VLLM", "yes") == "yes" else 1)
given = dict(zip(arguments, arguments[1:]))
name, port = given["--served-model-name"], int(given["--port"])
with open(os.environ["FAKE_LOG"], "a") as log:
    record = {{"name": name, "pid": os.getpid(), "at": time.monotonic(), "arguments": arguments}}
    record |= {{"key": os.environ["VLLM_API_KEY"], "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}}
    log.write(json.dumps(record) + "\\n")
# As vLLM does, a process that works beside the server.
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(json.dumps({{"worker": worker.pid}}) + "\\n")
fault = json.loads(os.environ.get("FAKE_FAULTS", "{{}}")).get(name)
print("hello from", name, "with key", os.environ["VLLM_API_KEY"], flush=True)
if fault == "dies":
    print("\\n".join(f"line {{n}}" for n in range(100)) + "\\nRuntimeError: no kernel image", flush=True)
    sys.exit(3)
if fault == "never":
    time.sleep(600)
if fault == "stubborn":
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(0.5)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b""
        if self.path == "/v1/models":
            body = json.dumps({{"data": [{{"id": name, "root": given["--model"]}}]}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
if fault == "later":
    import threading
    threading.Timer(1.5, lambda: os._exit(7)).start()
server.serve_forever()
"""


@pytest.fixture
def fake_python(tmp_path) -> Path:
    place = tmp_path / "fake-python"
    place.write_text(FAKE)
    place.chmod(place.stat().st_mode | stat.S_IXUSR)
    return place


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("VLLM_API_KEY", "VLLM_PLUGINS", "TRIM_VLLM_PYTHON", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def write(tmp_path):
    """Writes a configuration; models on ports of their own unless given."""

    def make(name: str = "trim.yaml", **parts) -> Path:
        (tmp_path / "weights").mkdir(exist_ok=True)
        serve = {"path": "./weights", "gpu": 0}
        config = {
            part: {"type": "vllm", "model": part, "base_url": f"http://127.0.0.1:{port}/v1", "serve": serve}
            for part, port in (("small", 8001), ("large", 8002))
        }
        config |= {"policy": "small_only"}
        for part, changes in parts.items():
            merged = {**config.get(part, {}), **changes} if isinstance(changes, dict) else changes
            config[part] = merged
        file = tmp_path / name
        file.write_text(yaml.safe_dump(config))
        return file

    return make


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        try:
            os.kill(pid, 0)
        except OSError:
            return False
        return not Path("/proc").is_dir()
    return state != "Z"
