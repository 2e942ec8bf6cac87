"""The version of this process's code, and its name.

A call in flight under another name was interrupted by a crash.
"""

from __future__ import annotations

import os
import uuid

__version__ = "0.2.0"


def _new_name() -> str:
    return f"{os.getpid()}-{uuid.uuid4().hex}"


NAME = _new_name()
"""A name that no other process has, not even a forked child."""


def _rename() -> None:
    global NAME
    NAME = _new_name()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_rename)
