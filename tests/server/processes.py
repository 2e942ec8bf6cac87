"""`trim-graph serve` in processes of its own, in front of a scripted model server."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from trim_graph.examples.hosted.scripted_server import Answer
from trim_graph.server.keys import VARIABLE

SMALL = ["small one", "small two", "small three", "so it is \\boxed{4}"]
LARGE = ["LARGE one", "LARGE two", "LARGE three", "SO it is \\boxed{5}"]
STEPS = {"small": SMALL, "large": LARGE}


def script(body: dict[str, Any]) -> Answer:
    """Continues as a vLLM server does."""
    last = body["messages"][-1]
    done = last["content"].count("\n\n") if last["role"] == "assistant" else 0
    steps = STEPS[body["model"]][done:]
    if body.get("stop") and len(steps) > 1:
        return Answer(steps[0], stop_reason=body["stop"][0])
    return Answer("\n\n".join(steps))


CONFIG = """
small: {{type: vllm, model: small, base_url: "{small}", continuation: chat, api_key_env: null{more}}}
large: {{type: vllm, model: large, base_url: "{large}", continuation: chat, api_key_env: null{more}}}
policy: {{type: random_rate, rate: 0.0}}
settings: {{on_large_error: accept}}
"""


def config(url: str, more: str = "") -> str:
    """Returns a configuration with both models behind a server; ``more`` are settings of both."""
    return CONFIG.format(small=url, large=url, more=more)


def wait_until(holds: Callable[[], Any], seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return found


class Process:
    """`trim-graph serve` in a process of its own."""

    def __init__(self, arguments: list[str], folder: Path, port: int, environment: dict[str, str]) -> None:
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/v1"
        self.log = folder / "serve.log"
        self._file = self.log.open("w")
        command = [sys.executable, "-m", "trim_graph.cli", "serve", "--port", str(port), *arguments]
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=self._file, stderr=subprocess.STDOUT
        )

    def wait_until_up(self) -> None:
        def up() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(f"{self.root}/health", timeout=1).status_code == 200
            return False

        wait_until(up, 120)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(120)
        self._file.close()


def start(folder: Path, config: str, *arguments: str, **environment: str) -> Process:
    """Starts it with a configuration on a free port."""
    (folder / "trim.yaml").write_text(config)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return Process(["--config", "trim.yaml", *arguments], folder, port, own | environment)
