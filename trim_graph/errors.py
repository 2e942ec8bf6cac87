"""Errors raised on purpose; each message names the setting or the input and says what would be right."""

from __future__ import annotations

from typing import NotRequired

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
