"""Real vLLM engines in this process on the example models; only where vLLM is installed: see .ci/run."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_socket

from trim_graph.adapters import (
    ChatTransformers,
    ChatVLLMEngine,
    TransformersProcessReward,
    VLLMEngineProcessReward,
)
from trim_graph.examples.arithmetic import LARGE, PRM, SMALL

HERE = Path(__file__).parent
# vLLM has an environment of its own, where .ci/run runs these tests; elsewhere there is nothing to skip.
_VLLM = importlib.util.find_spec("vllm")
# The folder tests/vllm is found under that name too, but has no file.
collect_ignore_glob = [] if _VLLM is not None and _VLLM.origin else ["test_*.py"]

for _name, _value in (("HF_HUB_OFFLINE", "1"), ("VLLM_NO_USAGE_STATS", "1")):
    os.environ.setdefault(_name, _value)

ENGINE = {
    "dtype": "float32",
    "kv_cache_gib": 0.25,
    "engine_args": {"enforce_eager": True, "max_num_seqs": 64},
}


def pytest_configure(config: pytest.Config) -> None:
    # What vLLM's imports warn of, and the ZeroMQ contexts that its engines leave to be collected.
    for warning in ("ignore:::(vllm|torch)", "ignore:Unclosed context:ResourceWarning"):
        config.addinivalue_line("filterwarnings", warning)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.enable_socket)


def chat(model: Path, **settings) -> ChatVLLMEngine:
    return ChatVLLMEngine(model=model, **{**ENGINE, **settings})


def processes() -> list:
    """Processes below this one that belong to vLLM."""
    import psutil

    below = psutil.Process().children(recursive=True)
    return [process for process in below if process.is_running() and "VLLM" in " ".join(_line(process))]


def _line(process) -> list[str]:
    import psutil

    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="session")
def sockets() -> None:
    pytest_socket.enable_socket()


@pytest.fixture(scope="session")
def small(sockets) -> Iterator[ChatVLLMEngine]:
    model = chat(SMALL)
    yield model
    model.close()


@pytest.fixture(scope="session")
def large(sockets) -> Iterator[ChatVLLMEngine]:
    model = chat(LARGE)
    yield model
    model.close()


@pytest.fixture(scope="session")
def scorer(sockets) -> Iterator[VLLMEngineProcessReward]:
    prm = VLLMEngineProcessReward(PRM, **ENGINE)
    yield prm
    prm.close()


@pytest.fixture(scope="session")
def local_small() -> ChatTransformers:
    return ChatTransformers(model=str(SMALL))


@pytest.fixture(scope="session")
def local_large() -> ChatTransformers:
    return ChatTransformers(model=str(LARGE))


@pytest.fixture(scope="session")
def local_scorer() -> TransformersProcessReward:
    return TransformersProcessReward(PRM)
