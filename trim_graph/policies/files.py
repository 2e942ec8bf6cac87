"""Policies as files: JSON, and arrays in a safetensors file beside it. Nothing in them is code.

A file says ``format``, ``version``, the ``type`` of policy, its ``parameters``, how it was ``made`` (for
people), and, where there are arrays, the name and SHA-256 of the safetensors file. Arrays need the extra
``policies``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from trim_graph.errors import SettingsError

from .base import Policy

if TYPE_CHECKING:
    import numpy as np

FORMAT = "trim-graph policy"
VERSION = 1

KINDS: dict[str, str] = {
    "aggregate": "trim_graph.policies.learned:aggregate",
    "pomdp": "trim_graph.policies.pomdp:pomdp",
    "query_router": "trim_graph.policies.query_router:query_router",
    "sequence": "trim_graph.policies.learned:sequence",
}
"""Types of policy that a file may hold, and the class of each: ``{"threshold": "module:Class"}``."""


@dataclass(frozen=True, slots=True)
class PolicyContents:
    """Contents of a policy file.

    Attributes:
        type: A key of `KINDS`.
        parameters: JSON-native.
        arrays: By name.
        made: How the policy came about: command, data, metrics. Not read by the policy.
    """

    type: str
    parameters: dict[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class StoredPolicy(Protocol):
    """A policy that can be written to a file. Its class also has ``from_contents(contents)``."""

    def contents(self) -> PolicyContents:
        """Returns what makes this policy again."""
        ...


def save_policy(policy: StoredPolicy, path: str | os.PathLike[str], **made: Any) -> None:
    """Writes a policy; an older file stays whole until the new one is.

    Args:
        policy: One of a type in `KINDS`.
        path: A name that ends in ``.json``.
        **made: Joins what the policy itself says of how it was made.

    Raises:
        SettingsError: The name does not end in ``.json``.
    """
    file, contents = Path(path), policy.contents()
    if file.suffix != ".json":
        raise SettingsError(f"policy file {file}: its name must end in .json")
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "type": contents.type,
        "parameters": contents.parameters,
        "made": {**contents.made, **made},
    }
    if contents.arrays:
        from safetensors.numpy import save

        data = save(dict(contents.arrays))
        beside = file.with_suffix(".safetensors")
        document["arrays"] = {"file": beside.name, "sha256": hashlib.sha256(data).hexdigest()}
        _replace(beside, data)
    _replace(file, (json.dumps(document, indent=1) + "\n").encode())


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """Reads a policy.

    Raises:
        SettingsError: There is no such file, it is cut off, is no policy file, was written by a later
            release, or does not go with the arrays beside it.
        ImportError: A package that this type of policy needs is not installed.
    """
    contents = read_contents(Path(path))
    module, _, name = KINDS[contents.type].partition(":")
    try:
        policy: Policy = getattr(import_module(module), name).from_contents(contents)
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"policy file {path}: not a valid {contents.type} policy: {error}") from error
    return policy


def is_policy_file(file: Path) -> bool:
    """Returns whether a file declares that it holds a policy, whole or not."""
    try:
        document = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("format") == FORMAT


def read_contents(file: Path) -> PolicyContents:
    """Reads and checks a policy file without making the policy."""
    try:
        document = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(f"policy file {file} does not exist") from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"policy file {file} cannot be read: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise SettingsError(f"{file} is no policy file: it does not say format: {FORMAT!r}")
    version = document.get("version")
    if version != VERSION:
        raise SettingsError(
            f"policy file {file} has version {version!r}; this release of trim-graph reads version {VERSION}"
        )
    kind, parameters = document.get("type"), document.get("parameters")
    if kind not in KINDS:
        known = ", ".join(sorted(KINDS))
        raise SettingsError(f"policy file {file} holds a policy of type {kind!r}; there are: {known}")
    if not isinstance(parameters, dict):
        raise SettingsError(f"policy file {file} has no parameters")
    arrays = _arrays(file, document["arrays"]) if document.get("arrays") else {}
    return PolicyContents(kind, parameters, arrays, document.get("made") or {})


def _arrays(file: Path, named: Any) -> dict[str, np.ndarray]:
    name = named.get("file") if isinstance(named, dict) else None
    if not isinstance(name, str) or Path(name).name != name:
        raise SettingsError(f"policy file {file} names its arrays {name!r}; they are beside it")
    try:
        data = (file.parent / name).read_bytes()
    except OSError as error:
        raise SettingsError(f"policy file {file}: its arrays {name} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != named.get("sha256"):
        raise SettingsError(f"policy file {file}: {name} is not the file it was written with")
    try:
        from safetensors.numpy import load
    except ImportError as error:
        raise ImportError(
            f'policies with arrays need numpy and safetensors: pip install "trim-graph[policies]" ({error})'
        ) from error
    return dict(load(data))


def _replace(file: Path, data: bytes) -> None:
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
