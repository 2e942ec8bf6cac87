"""A real local server that speaks OpenAI's chat protocol, and plain `ChatOpenAI` in front of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_openai import ChatOpenAI

from trim_graph.examples.hosted.scripted_server import ScriptedServer

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.enable_socket)


@pytest.fixture
def serve() -> Iterator[Callable[..., ScriptedServer]]:
    """A function that starts a server from a script."""
    running: list[ScriptedServer] = []

    def start(script: Any, **settings: Any) -> ScriptedServer:
        server = ScriptedServer(script, **settings).__enter__()
        running.append(server)
        return server

    yield start
    for server in running:
        server.__exit__()


def openai(server: ScriptedServer, name: str, **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model=name, base_url=server.url, api_key="none", temperature=0, max_retries=0, **settings
    )
