"""Which settings may be repeated in a message: none that may hold a password or a key."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

SECRET_NAME = re.compile(r"key|secret|token$|password|credential|headers", re.IGNORECASE)
"""Names of settings whose values are never repeated."""

_ASSIGNED = re.compile(r"(key|secret|token|password|credential)\w*\s*[=:]", re.IGNORECASE)
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|\w(?:[\w.-]*\w)?)"
_URL = re.compile(rf"(?:https?|postgres(?:ql)?)://{_HOST}(?::\d{{1,5}})?(?:/[\w.~!$&'()*+,;=:%/-]*)?")
_ADDRESS = re.compile(rf"{_HOST}:\d{{1,5}}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY_LENGTH = 20
"""A name with lower-case letters and digits or capitals this long is more likely the key itself."""


def shown_url(url: str) -> str | None:
    """Return a URL that may be repeated, or None.

    Only a URL of a known scheme, a host, a port and a path may. A user name, password, query, fragment or
    anything that does not parse may hold a secret, and so may a path with an ``@``: a password that holds a
    slash ends the host.
    """
    return url if _URL.fullmatch(url) else None


def shown_address(address: str) -> str | None:
    """Return a ``HOST:PORT`` that may be repeated, or None."""
    return address if _ADDRESS.fullmatch(address) else None


def may_be_shown(value: Any) -> bool:
    """Tell whether a value of any setting may be repeated: nothing in it looks like a place for a secret."""
    if isinstance(value, str):
        return shown_url(value) is not None or not ("://" in value or "@" in value or _ASSIGNED.search(value))
    if isinstance(value, Mapping):
        named = any(SECRET_NAME.search(str(key)) for key in value)
        return not named and all(map(may_be_shown, [*value, *value.values()]))
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return all(map(may_be_shown, value))
    return not isinstance(value, bytes)


def is_variable_name(name: str) -> bool:
    """Tell whether a text names an environment variable, and is not a key that was given in its place."""
    return bool(_VARIABLE.fullmatch(name)) and (name in os.environ or not _is_like_a_key(name))


def check_variable_name(setting: str, name: str | None) -> str | None:
    """Check a setting that names an environment variable.

    Args:
        setting: Name of the setting.
        name: Its value.

    Raises:
        ValueError: It is no name of a variable. The message does not repeat it, since it may be the key.
    """
    if name is None or is_variable_name(name):
        return name
    raise ValueError(
        f"{setting} is not the name of an environment variable; put the key into a variable such as "
        f"VLLM_API_KEY, and the name of that into {setting}"
    )


def _is_like_a_key(name: str) -> bool:
    varied = any(c.isdigit() for c in name) or name != name.lower()
    return len(name) >= _KEY_LENGTH and name != name.upper() and varied
