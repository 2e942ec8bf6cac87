"""Three real vLLM servers on the example models, started once. They need TRIM_VLLM_PYTHON: see .ci/run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_socket

from trim_graph.adapters import (
    ChatTransformers,
    ChatVLLM,
    TransformersProcessReward,
    VLLMProcessReward,
    serve_options,
)
from trim_graph.examples.arithmetic import LARGE, PRM, SMALL

os.environ.setdefault("HF_HUB_OFFLINE", "1")

HERE = Path(__file__).parent
KEY = "sk-of-the-large-model"
KEY_ENV = "TRIM_TEST_LARGE_KEY"
STARTED_WITHIN = 300.0
"""Seconds. On two idle cores the three need about 60."""

_PYTHON = os.environ.get("TRIM_VLLM_PYTHON", "")
IN_ENGINE = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""Runs the model in the engine's own process. The default on CPUs, a process more, spends most of its time on
looking for work."""
_ON_CPUS = (
    *("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "64", "--enable-prompt-tokens-details"),
    *("--distributed-executor-backend", IN_ENGINE),
)
_REASONING = ("--reasoning-config", '{"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}')
EXAMPLES = {"small": SMALL, "large": LARGE, "prm": PRM}


@dataclass(frozen=True)
class Server:
    """One running server."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    log: Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.enable_socket)


@pytest.fixture(scope="session")
def vllm_python() -> str:
    if not Path(_PYTHON).is_file():
        pytest.skip(
            f"TRIM_VLLM_PYTHON={_PYTHON!r} is not the python of an environment with vLLM; .ci/run makes one"
        )
    return _PYTHON


def need_plugin(python: str) -> None:
    """Skip where the plugin is not installed beside vLLM."""
    from trim_graph.serving.plan import find_launcher

    if not find_launcher(python).plugin:
        pytest.skip(f"trim-graph as it is here is not installed beside the vLLM of {python}: see .ci/vllm")


@pytest.fixture(scope="session")
def servers(vllm_python) -> Iterator[dict[str, Server]]:
    """The three servers."""
    pytest_socket.enable_socket()
    with running_servers() as running:
        yield running


@pytest.fixture(scope="session")
def plugin_server(vllm_python, tmp_path_factory) -> Iterator[Server]:
    """The process reward model as this package's plugin of vLLM serves it, with the prefix cache."""
    from trim_graph.adapters.model_source import load_tokenizer

    need_plugin(vllm_python)
    pytest_socket.enable_socket()
    options = tuple(serve_options("qwen", tokenizer=load_tokenizer(str(PRM)), plugin=True))
    server = start_server(vllm_python, "prm", PRM, options, None, tmp_path_factory.mktemp("plugin") / "log")
    try:
        wait_for(server, time.monotonic() + STARTED_WITHIN)
        yield server
    finally:
        stop_servers(server)


@contextmanager
def running_servers(
    weights: Mapping[str, Path] = EXAMPLES, common: Callable[[str], Sequence[str]] = lambda name: _ON_CPUS
) -> Iterator[dict[str, Server]]:
    """Starts three servers. The large model's wants a key, and its chat template trims what it renders.

    The small model's server ends reasoning at a number of tokens.

    Args:
        weights: Folders by the names of the servers.
        common: What a server is reported about its engine.
    """
    from trim_graph.adapters.model_source import load_tokenizer

    pooling = tuple(serve_options("qwen", tokenizer=load_tokenizer(str(PRM))))
    wanted = {
        "small": (_REASONING, None),
        "large": (("--chat-template", str(HERE / "trimming.jinja")), KEY),
        "prm": (pooling, None),
    }
    running: dict[str, Server] = {}
    with tempfile.TemporaryDirectory(prefix="trim-vllm-") as logs:
        try:
            for name, (own, key) in wanted.items():
                log = Path(logs) / f"{name}.log"
                running[name] = start_server(_PYTHON, name, weights[name], own, key, log, common=common(name))
            deadline = time.monotonic() + STARTED_WITHIN
            for server in running.values():
                wait_for(server, deadline)
            yield running
        finally:
            stop_servers(*running.values())


def start_server(
    python: str,
    name: str,
    weights: Path,
    options: tuple[str, ...],
    key: str | None,
    log: Path,
    *,
    common: Sequence[str] = _ON_CPUS,
) -> Server:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("VLLM_", "PYTHON"))}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    # One thread an engine: several on few cores wait for each other by spinning, and starve the server.
    environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    environment |= {"VLLM_API_KEY": key} if key else {}
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(weights), "--served-model-name", name, *common, *options]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=environment, cwd=log.parent, start_new_session=True
        )
    return Server(name, f"http://127.0.0.1:{port}/v1", process, log)


def stop_servers(*servers: Server) -> None:
    """End servers, and the engines of those that do not end in time: they outlive a killed server."""
    for server in servers:
        server.process.terminate()
    for server in servers:
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()


def wait_for(server: Server, deadline: float) -> None:
    while True:
        try:
            if httpx.get(server.url.replace("/v1", "/health"), timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if server.process.poll() is not None or time.monotonic() > deadline:
            tail = server.log.read_text("utf-8", "replace")[-3000:]
            pytest.fail(f"the {server.name} server did not start within {STARTED_WITHIN} s:\n{tail}")
        time.sleep(0.5)


@pytest.fixture
def small(servers) -> ChatVLLM:
    return ChatVLLM(model="small", base_url=servers["small"].url)


@pytest.fixture
def large(servers, monkeypatch) -> ChatVLLM:
    monkeypatch.setenv(KEY_ENV, KEY)
    return ChatVLLM(model="large", base_url=servers["large"].url, api_key_env=KEY_ENV)


@pytest.fixture
def scorer(servers) -> VLLMProcessReward:
    return VLLMProcessReward("prm", base_url=servers["prm"].url)


@pytest.fixture(scope="session")
def local_small() -> ChatTransformers:
    return ChatTransformers(model=str(SMALL))


@pytest.fixture(scope="session")
def local_large() -> ChatTransformers:
    return ChatTransformers(model=str(LARGE))


@pytest.fixture(scope="session")
def local_scorer() -> TransformersProcessReward:
    return TransformersProcessReward(PRM)
