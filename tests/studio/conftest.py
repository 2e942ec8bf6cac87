"""A real `langgraph dev` server, started from the repository as a user would."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import pytest_socket
from langgraph_sdk import get_sync_client
from langgraph_sdk.client import SyncLangGraphClient

HERE = Path(__file__).parent
STARTED_WITHIN = 120.0
"""Seconds; an idle machine needs about 8."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.enable_socket)


@pytest.fixture(scope="session")
def server(tmp_path_factory, pytestconfig) -> Iterator[str]:
    """Its address."""
    pytest_socket.enable_socket()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("studio") / "langgraph.log"
    command = [str(Path(sys.executable).with_name("langgraph")), "dev", "--no-browser", "--no-reload"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LANG")}
    environment |= {"LANGGRAPH_DISABLE_FILE_PERSISTENCE": "true", "LANGSMITH_TRACING": "false"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=out,
            stderr=out,
            cwd=pytestconfig.rootpath,
            env=environment,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url, log)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + STARTED_WITHIN
    while True:
        try:
            if httpx.get(f"{url}/ok", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"langgraph dev did not start:\n{log.read_text('utf-8', 'replace')[-3000:]}")
        time.sleep(0.3)


@pytest.fixture
def client(server) -> Iterator[SyncLangGraphClient]:
    with get_sync_client(url=server) as client:
        yield client
