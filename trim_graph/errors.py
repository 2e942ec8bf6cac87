"""Errors raised on purpose, and what their messages may repeat of settings.

Each message names the setting or the input and says what would be right. No message repeats what may
hold a password or a key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired

from langchain_core.exceptions import ContextOverflowError
from typing_extensions import TypedDict


class TrimError(Exception):
    """Base of all errors that trim-graph raises on purpose."""


class InputError(TrimError, ValueError):
    """The conversation cannot be worked on."""


class SettingsError(TrimError, ValueError):
    """A setting is wrong, or does not go with another one."""


class StorageError(SettingsError):
    """A checkpoint or a ledger cannot be read or written: it is damaged, foreign, or not to be reached.

    The message names the file or the database.
    """


class ServerFailed(TrimError):
    """A server died, or did not come up in time; the message ends with the last lines of its log."""


class FailedAttempts(TypedDict):
    """What failed attempts of a call have used; ``response_metadata["failed_attempts"]`` of an answer."""

    count: int
    input_tokens: int
    """As far as the server told; part of the answer's usage."""
    output_tokens: int
    unknown: int
    """Attempts that broke off without a report of their tokens."""
    unknown_tokens: NotRequired[int]
    """Most tokens that those may have generated; without it each may have generated ``max_tokens``."""
    overshoot_tokens: NotRequired[int]
    """Tokens reported beyond what each attempt was granted; without it no attempt was granted less than
    ``max_tokens``."""


class CallTimeoutError(TimeoutError):
    """Nothing of an answer arrived within a call's ``timeout``.

    Attributes:
        attempts: What the attempts of the call have used, the one that was cut off included.
    """

    def __init__(self, message: str, attempts: FailedAttempts) -> None:
        super().__init__(message)
        self.attempts = attempts


class ScorerError(TrimError):
    """A scorer could not give one valid score per step; the message says why.

    Attributes:
        attempts: What the call has used nevertheless; None where nobody counted.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.attempts: FailedAttempts | None = None


class ChatModelContractError(TrimError):
    """A chat model's answer lacks what step-level routing needs; the message says what.

    Attributes:
        attempts: What the attempts of the call have used; None where nobody counted.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.attempts: FailedAttempts | None = None


class ModelServerError(TrimError):
    """A model server cannot be reached, refuses a request, or answers with something unreadable.

    Or an engine in this process did not start, has died, or was closed.

    Attributes:
        status: HTTP status of the answer; None where there was none.
        begun: Whether the server may have worked on the request: then what it used is not known.
        attempts: What the failed attempts of the call have used; None where nobody counted.
    """

    def __init__(self, message: str, status: int | None = None, *, begun: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.begun = begun
        self.attempts: FailedAttempts | None = None


class ContextLengthError(ModelServerError, ContextOverflowError, ValueError):
    """A prompt fills the context of its model: nothing can be written behind it, or it cannot be read whole.

    It is no failure that may pass: nothing was generated, and no attempt more is made.
    """


def is_context_full(error: BaseException) -> bool:
    """Tell whether a call failed because its prompt fills the model's context.

    LangChain's integrations say so by `ContextOverflowError`. A scorer's error may come out of either.
    """
    return any(isinstance(one, ContextOverflowError) for one in (error, error.__cause__))


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
