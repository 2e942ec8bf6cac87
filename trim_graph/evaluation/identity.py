"""What decides over outcomes: of a configuration, where two that agree may share a file; and the code."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import trim_graph
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
    folder = Path(str(trim_graph.__file__)).parent
    # In the repository, nodes, adapters and examples are links.
    walked = os.walk(folder, followlinks=True)
    files = {Path(at, name).relative_to(folder).as_posix() for at, _, names in walked for name in names}
    for name in sorted(name for name in files if name.endswith(".py")):
        digest.update(f"{name}\n".encode())
        digest.update((folder / name).read_bytes())
    return {"version": trim_graph.__version__, "sha256": digest.hexdigest()}
