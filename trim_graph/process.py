"""Which process this is: a state in which another one has a call in flight tells of a crash."""

from __future__ import annotations

import os
import uuid

_LOADED = uuid.uuid4().hex


def this_process() -> str:
    """Return a name that no other process has, a forked child included."""
    return f"{os.getpid()}-{_LOADED}"
