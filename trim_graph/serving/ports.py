"""What is at a server's port before it is started: nothing, the same server, or something else."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import httpx

from trim_graph.errors import SettingsError

from .plan import ServerPlan

_PATIENCE_S = 3.0


def already_running(servers: Sequence[ServerPlan]) -> list[ServerPlan]:
    """Find the servers that run already: the model is served by its name, from the same weights.

    Returns:
        Those servers; the ports of the others are free.

    Raises:
        SettingsError: A port is taken by anything else.
    """
    running, taken = [], []
    for server in servers:
        if _is_free(server):
            continue
        found, what = _served(server)
        if found:
            running.append(server)
        else:
            taken.append(f"{server.name}: port {server.port} is taken by {what}")
    if taken:
        raise SettingsError("; ".join(taken) + ". Nothing was started: end that, or change base_url")
    return running


def _is_free(server: ServerPlan) -> bool:
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.host, server.port))
        except PermissionError as error:
            raise SettingsError(
                f"{server.name}: port {server.port} is not ours to listen at ({error.strerror}); choose one "
                "above 1023 in base_url"
            ) from error
        except OSError:
            return False
    return True


def _served(server: ServerPlan) -> tuple[bool, str]:
    """Whether the server at the port is the one that is wanted; if not, what it is."""
    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    entries: Any = None
    try:
        with httpx.Client(timeout=_PATIENCE_S, trust_env=False) as client:
            answer = client.get(f"{server.root}/v1/models", headers=headers)
        if answer.status_code in (401, 403):
            return False, "a server that wants another API key"
        with suppress(ValueError, AttributeError):
            entries = answer.json().get("data")
    except httpx.HTTPError:
        pass
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return False, "something that is not a vLLM server"
    if any(entry.get("id") == server.model and entry.get("root") == server.weights for entry in entries):
        return True, ""
    told = ", ".join(f"{entry.get('id')!r} (from {entry.get('root')})" for entry in entries)
    return False, f"a server of {told or 'nothing'}, not of {server.model!r} (from {server.weights})"
