"""Errors that trim-graph raises on purpose, and rules for what their messages may repeat of settings.

Each message names the setting or the input and says what would be right. No message repeats a value that may
hold a password or a key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from inspect import get_annotations
from typing import Any, NotRequired, Self

from langchain_core.exceptions import ContextOverflowError
from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError
from typing_extensions import TypedDict


class TrimError(Exception):
    """Base of all errors that trim-graph raises on purpose."""


class InputError(TrimError, ValueError):
    """The input of a run, or of a file, is not valid."""


class SettingsError(TrimError, ValueError):
    """A setting is wrong, or conflicts with another one."""


class GraderError(SettingsError):
    """A grader raised, or returned neither True nor False."""


class StorageError(SettingsError):
    """A checkpoint or a ledger cannot be read or written: it is damaged, another program's, or unreachable.

    The message names the file or the database.
    """


class ServerFailed(TrimError):
    """A server died, or did not start in time; the message ends with the last lines of its log."""


class FailedAttempts(TypedDict):
    """Usage of a call's failed attempts, as in ``response_metadata["failed_attempts"]`` of an answer."""

    count: int
    input_tokens: int
    """Tokens that the server reported; part of the answer's usage, as are ``output_tokens``."""
    output_tokens: int
    unknown: int
    """Number of attempts that ended without a report of their tokens."""
    unknown_tokens: NotRequired[int]
    """Upper bound of the tokens that those generated; without it ``max_tokens`` each."""
    overshoot_tokens: NotRequired[int]
    """Tokens reported beyond the grants of the attempts; without it each was granted ``max_tokens``."""


class CallTimeoutError(TimeoutError):
    """Nothing of an answer arrived within a call's ``timeout``.

    Attributes:
        attempts: Usage of the call's attempts, with the one that was cut off.
    """

    def __init__(self, message: str, attempts: FailedAttempts) -> None:
        super().__init__(message)
        self.attempts = attempts


class ScorerError(TrimError):
    """A scorer could not give one valid score per step; the message says why.

    Attributes:
        attempts: Usage of the call's attempts; None if it is not known.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.attempts: FailedAttempts | None = None


class ChatModelContractError(TrimError):
    """A chat model's answer lacks what step-level routing needs; the message says what.

    Attributes:
        attempts: Usage of the call's attempts; None if it is not known.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.attempts: FailedAttempts | None = None


class ModelServerError(TrimError):
    """A model server cannot be reached, refuses a request, or answers with something unreadable.

    Or an engine in this process did not start, has died, or was closed.

    Attributes:
        status: HTTP status of the answer; None where there was none.
        begun: Whether the server may have processed the request, whose usage is then unknown.
        attempts: Usage of the call's failed attempts; None if it is not known.
    """

    def __init__(self, message: str, status: int | None = None, *, begun: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.begun = begun
        self.attempts: FailedAttempts | None = None


class ContextLengthError(ModelServerError, ContextOverflowError, ValueError):
    """A prompt fills the context of its model: no room is left to generate, or the prompt exceeds it.

    The error is permanent: nothing was generated, and the adapters make no further attempt.
    """


def is_context_full(error: BaseException) -> bool:
    """Returns whether a call failed because its prompt fills the model's context.

    LangChain's integrations raise `ContextOverflowError`; a scorer's error may have one as its cause.
    """
    return any(isinstance(one, ContextOverflowError) for one in (error, error.__cause__))


REJECTED = frozenset({400, 401, 402, 403, 404, 405, 413, 415, 422, 429})
"""HTTP statuses of a request that a server has turned down: it generated nothing, and bills nothing.

Others, such as 408 and 5xx, may come while a model is at work.
"""


def http_status(error: BaseException) -> int | None:
    """Returns the HTTP status that an error of a model's client reports; None where it reports none.

    SDKs have it on the error or on its response. An error that wraps another one may have it as its cause.
    """
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        own = (getattr(one, "status_code", None), getattr(one, "status", None))
        for value in (*own, getattr(response, "status_code", None)):
            if isinstance(value, int) and 100 <= value < 600:
                return value
    return None


def may_have_generated(error: BaseException) -> bool:
    """Returns whether a failed call may have generated tokens that nobody reported."""
    server = next((one for one in (error, error.__cause__) if isinstance(one, ModelServerError)), None)
    if server is not None:
        return server.begun
    return not is_context_full(error) and http_status(error) not in REJECTED


SECRET_NAME = re.compile(r"key|secret|token$|password|credential|headers", re.IGNORECASE)
"""Name of settings whose values are never repeated."""

_ASSIGNED = re.compile(r"(key|secret|token|password|credential)\w*\s*[=:]", re.IGNORECASE)
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|\w(?:[\w.-]*\w)?)"
_URL = re.compile(rf"(?:https?|postgres(?:ql)?)://{_HOST}(?::\d{{1,5}})?(?:/[\w.~!$&'()*+,;=:%/-]*)?")
_ADDRESS = re.compile(rf"{_HOST}:\d{{1,5}}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY_LENGTH = 20
"""A name with lower-case letters and digits or capitals this long is more likely the key itself."""


def shown_url(url: str) -> str | None:
    """Returns a URL if messages may repeat it, else None.

    They may if it has only a known scheme, a host, a port and a path. A user name, password, query, fragment
    or an unparsable URL may hold a secret, and so may a path with an ``@``: a slash in a password ends the
    host.
    """
    return url if _URL.fullmatch(url) else None


def shown_address(address: str) -> str | None:
    """Returns a ``HOST:PORT`` if messages may repeat it, else None."""
    return address if _ADDRESS.fullmatch(address) else None


def may_be_shown(value: Any) -> bool:
    """Returns whether messages may repeat the value of a setting: no part of it looks like a secret."""
    if isinstance(value, str):
        return shown_url(value) is not None or not ("://" in value or "@" in value or _ASSIGNED.search(value))
    if isinstance(value, Mapping):
        secret = any(SECRET_NAME.search(str(key)) for key in value)
        return not secret and all(map(may_be_shown, [*value, *value.values()]))
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return all(map(may_be_shown, value))
    return not isinstance(value, bytes)


def is_variable_name(name: str) -> bool:
    """Returns whether a text is the name of an environment variable, and not a key given by mistake."""
    return bool(_VARIABLE.fullmatch(name)) and (name in os.environ or not _is_like_a_key(name))


def check_variable_name(setting: str, name: str | None) -> str | None:
    """Checks a setting that names an environment variable.

    Args:
        setting: Name of the setting.
        name: Its value.

    Raises:
        ValueError: The value is not a variable's name. The message does not repeat it, as it may be the key.
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


RENAMED = {"allowances": "quotas", "batch_patience": "batch_wait_factor", "go_on": "continue_with"}
"""Names of settings that release 0.1.0 had, and those of today."""


def closest(given: str, known: Sequence[str]) -> str | None:
    """Returns the known name that may be meant; None if none is near."""
    return next(iter(get_close_matches(given, known, n=1, cutoff=0.5)), None)


def nearest(given: str, known: Sequence[str]) -> str:
    """Returns the end of an error about an unknown name: what may be meant, and what there is."""
    new = RENAMED.get(given)
    close = closest(given, known)
    hint = f", did you mean {close}?" if close else "."
    if new in known:
        hint = f", it is called {new} now."
    return f"{hint} There are: {', '.join(known)}" if known else hint


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Returns a number with its noun, as in ``1 question`` and ``2 questions``.

    Args:
        number: The number.
        noun: In the singular; a verb may follow, as in ``question is``.
        plural: Default: the noun with an s.
    """
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


class KnownFields(BaseModel):
    """Base of settings that users write: an error about an unknown field says which there are."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _name_unknown(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(given)
        except ValidationError as error:
            found = error.errors(include_url=False)
        problems = [
            InitErrorDetails(
                type=PydanticCustomError(item["type"], cls._message(item), item.get("ctx")),
                loc=item["loc"],
                input=item["input"],
            )
            for item in found
        ]
        raise ValidationError.from_exception_data(cls.__name__, problems)

    @classmethod
    def _message(cls, found: ErrorDetails) -> str:
        message = found["msg"]
        if found["type"] == "extra_forbidden" and len(found["loc"]) == 1:
            # A chat model has fields of LangChain's too, which nobody means.
            theirs = [base for base in cls.__mro__ if base.__module__.startswith("langchain_core.")]
            inherited = {name for base in theirs for name in get_annotations(base)}
            known = [name for name in cls.model_fields if name not in inherited]
            message = f"unknown field{nearest(str(found['loc'][0]), known)}"
        return message
