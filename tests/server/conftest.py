"""Real servers on scripted models: the application in a thread, and `trim-graph serve` as processes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from tests.server.processes import LARGE, SMALL, Process, start, wait_until
from trim_graph.config import Parts, make_config
from trim_graph.server import ApiKeys, create_app
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

HERE = Path(__file__).parent
KEY = "key-of-ada-0123456789"
TEXT = "small one\n\nLARGE two\n\nsmall three\n\nso it is \\boxed{4}"
QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    unit = (
        "test_protocol.py",
        "test_operating_points.py",
        "test_keys.py",
        "test_admission.py",
        "test_errors.py",
        "test_metrics.py",
    )
    for item in items:
        if HERE in item.path.parents and item.path.name not in unit:
            item.add_marker(pytest.mark.enable_socket)


class Paced(ScriptedChatModel):
    """Takes its time for each step, and notes how its calls ended."""

    pace: float = 0.0
    ends: Any = None

    async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
        try:
            await asyncio.sleep(self.pace)
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise
        self.ends.append("finished")
        return await super()._agenerate(*args, **kwargs)


def parts_of(
    small: Any = SMALL, large: Any = LARGE, *, pace: float = 0.0, scores: dict[str, float] | None = None
) -> Parts:
    """Scripted models; ``small two`` scores 0.1 and everything else 1."""
    models = (
        Paced(script=script, name=name, pace=pace, ends=[])
        for script, name in ((small, "tiny"), (large, "huge"))
    )
    return Parts(*models, ScriptedScorer({"small two": 0.1} if scores is None else scores))


def config_of(**more: Any) -> Any:
    models = {part: {"type": "example"} for part in ("small", "large", "scorer")}
    return make_config({**models, "policy": {"type": "threshold", "t": 0.5}, **more})


class Served:
    """An application that answers on a free local port, in a thread."""

    def __init__(self, app: Any, parts: Any, **settings: Any) -> None:
        self.parts, self.app = parts, app
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(app, port=0, log_config=None, lifespan="on", **settings)
        )
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self._thread = threading.Thread(target=self._uvicorn.run, args=([self._socket],), daemon=True)
        self.root = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.url = f"{self.root}/v1"

    def __enter__(self) -> Served:
        self._thread.start()
        wait_until(lambda: self._uvicorn.started)
        return self

    def __exit__(self, *_: object) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(20)
        self._socket.close()
        assert not self._thread.is_alive()

    @property
    def metrics(self) -> dict[str, float]:
        lines = httpx.get(f"{self.root}/metrics").text.splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    @property
    def under_way(self) -> int:
        return int(httpx.get(f"{self.root}/health").json()["questions_under_way"])

    def ask(self, key: str | None = None, **body: Any) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        body = {"model": "trim", "messages": QUESTION, **body}
        return httpx.post(f"{self.url}/chat/completions", json=body, headers=headers, timeout=30)


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Serves a configuration with scripted models."""
    with contextlib.ExitStack() as running:

        def start(parts: Parts | None = None, keys: dict[str, str] | None = None, **more: Any) -> Served:
            own = {name: more.pop(name) for name in ("model_name", "max_questions") if name in more}
            parts = parts or parts_of()
            app = create_app(config_of(**more), parts=parts, keys=ApiKeys(keys or {}), **own)
            return running.enter_context(Served(app, parts))

        yield start


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """One server for tests that only ask."""
    parts = parts_of()
    with Served(create_app(config_of(), parts=parts), parts) as running:
        yield running


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts `trim-graph serve` with a configuration file."""
    running: list[Process] = []

    def begin(config: str, *arguments: str, up: bool = True, **environment: str) -> Process:
        running.append(start(tmp_path, config, *arguments, **environment))
        if up:
            running[-1].wait_until_up()
        return running[-1]

    yield begin
    for process in running:
        process.end()
