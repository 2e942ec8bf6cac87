"""Shadow mode: an application answers as before, and what routing would have done is recorded beside it.

`Shadow` watches chat models, nodes and plain calls, `ShadowProcess` does so from a process of its own, and
`ShadowMiddleware` (extra ``agents``) watches an agent's turns.
What a record can and cannot say is in `trim_graph.shadow.walk` and ``examples/guides/shadow.md``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agents import ShadowMiddleware
    from .process import ShadowProcess
    from .records import ShadowRecord, read_shadow
    from .runner import Shadow
    from .worker import Counts

__all__ = ["Counts", "Shadow", "ShadowMiddleware", "ShadowProcess", "ShadowRecord", "read_shadow"]

_HOMES = {
    "Counts": "worker",
    "Shadow": "runner",
    "ShadowMiddleware": "agents",
    "ShadowProcess": "process",
    "ShadowRecord": "records",
    "read_shadow": "records",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
