"""Errors raised on purpose; each message names the setting or the input and says what would be right."""

from __future__ import annotations

from .adapters.protocols import (
    ChatModelContractError,
    ContextLengthError,
    ModelServerError,
    ScorerError,
    TrimError,
)

__all__ = [
    "ChatModelContractError",
    "ContextLengthError",
    "InputError",
    "ModelServerError",
    "ScorerError",
    "SettingsError",
    "StorageError",
    "TrimError",
]


class InputError(TrimError, ValueError):
    """The conversation cannot be worked on."""


class SettingsError(TrimError, ValueError):
    """A setting is wrong, or does not go with another one."""


class StorageError(SettingsError):
    """A checkpoint or a ledger cannot be read or written: it is damaged, foreign, or not to be reached.

    The message names the file or the database.
    """
