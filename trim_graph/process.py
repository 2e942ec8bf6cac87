"""The name of this process: a call in flight under another name was interrupted by a crash."""

from __future__ import annotations

import os
import uuid

_LOADED = uuid.uuid4().hex


def this_process() -> str:
    """Returns a name that no other process has, not even a forked child."""
    return f"{os.getpid()}-{_LOADED}"
