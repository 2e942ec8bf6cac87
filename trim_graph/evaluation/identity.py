"""What decides over outcomes: of a configuration, where two that agree may share a file; and the code."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import trim_graph
import trim_graph.adapters
import trim_graph.examples
import trim_graph.nodes
from trim_graph.config import TrimConfig

_INCIDENTAL = (
    "device",
    "max_batch_size",
    "batch_patience",
    "max_requests",
    "max_connections",
    "read_timeout",
    "max_retries",
    "api_key_env",
)
"""Settings of models that change how fast an answer comes, not which."""
_MAPPED = ("nodes", "adapters", "examples")
_PARTS = ("small", "large", "scorer", "policy", "budget", "settings")


def identity_of(config: TrimConfig) -> dict[str, Any]:
    """Return models, policy, budget and settings, JSON-native; policy files by their content."""
    whole = config.model_dump(mode="json", include=set(_PARTS))
    for part in ("small", "large", "scorer"):
        if whole[part] is not None:
            whole[part] = {key: value for key, value in whole[part].items() if key not in _INCIDENTAL}
    whole["policy"] = by_content(whole["policy"])
    return whole


def by_content(policy: Any) -> Any:
    """Replace the path of a policy file, at any depth, by what is in the file.

    Args:
        policy: As a configuration names it.
    """
    if isinstance(policy, list):
        return [by_content(inner) for inner in policy]
    if not isinstance(policy, dict):
        return policy
    if policy.get("type") == "file":
        # The JSON names the digest of the arrays beside it.
        content = Path(policy["path"]).read_bytes()
        return {"type": "file", "sha256": hashlib.sha256(content).hexdigest()}
    return {key: by_content(value) for key, value in policy.items()}


@cache
def code_identity() -> dict[str, str]:
    """Return the version of trim-graph and a digest of its code, the same wherever it is installed."""
    digest = hashlib.sha256()
    for package in (trim_graph, trim_graph.nodes, trim_graph.adapters, trim_graph.examples):
        folder = Path(str(package.__file__)).parent
        for file in sorted(folder.rglob("*.py"), key=lambda file: file.relative_to(folder).as_posix()):
            name = file.relative_to(folder).as_posix()
            if package is trim_graph and name.split("/")[0] in _MAPPED:
                continue  # lie inside where it is installed, and beside it in the repository
            digest.update(f"{package.__name__}/{name}\n".encode())
            digest.update(file.read_bytes())
    return {"version": trim_graph.__version__, "sha256": digest.hexdigest()}
