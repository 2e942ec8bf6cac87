"""A real Ray cluster of two nodes, each a process of its own on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_socket

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and "ray" in item.path.stem:
            item.add_marker(pytest.mark.enable_socket)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """Address of the cluster's head."""
    pytest_socket.enable_socket()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # a token in the home of whoever tests changes nothing
        cluster_utils = pytest.importorskip("ray.cluster_utils")
        node = {"num_cpus": 2, "num_gpus": 0, "object_store_memory": 80 * 2**20}
        started = cluster_utils.Cluster(
            initialize_head=True, head_node_args={**node, "include_dashboard": False}
        )
        try:
            started.add_node(**node)
            started.wait_for_nodes()
            yield str(started.address)
        finally:
            started.shutdown()


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Of a command that is called."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200", "RAY_AUTH_MODE": "disabled"}
