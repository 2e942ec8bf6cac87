"""What of a configuration decides over outcomes: two that agree in it may share a file of outcomes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

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
