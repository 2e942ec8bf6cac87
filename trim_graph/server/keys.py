"""API keys of clients: where they are read, and whose key a request has."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from trim_graph.errors import SettingsError

VARIABLE = "TRIM_API_KEYS"
"""Environment variable with keys, ``NAME=KEY`` separated by commas or lines."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]*")
_KEY = re.compile(r"[!-+\--~]{16,}")
"""Printable ASCII without spaces and commas; shorter ones could be guessed."""


class ApiKeys:
    """API keys by the name of their owner, whose account a request is charged to.

    Only digests are kept, so that no error, log or dump of memory shows a key.

    Args:
        keys: Keys by name.

    Raises:
        SettingsError: A name or a key is not valid, or two names have one key.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        for name, key in keys.items():
            if not _NAME.fullmatch(name):
                raise SettingsError(f"API keys: {name!r} is no name: use letters, digits and . _ @ -")
            if not _KEY.fullmatch(key):
                raise SettingsError(
                    f"API keys: the key of {name} is not valid: give 16 or more printable characters of "
                    "ASCII without spaces and commas, such as those of: openssl rand -hex 24"
                )
        self._digests = [(name, _digest(key)) for name, key in keys.items()]
        if len({digest for _, digest in self._digests}) < len(self._digests):
            raise SettingsError("API keys: two names have the same key, and their accounts would be one")

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, key: str) -> str | None:
        """Returns the name of a key's owner; None if nobody has it.

        The time does not depend on the key: digests are compared in constant time, and with all of them.
        """
        given, found = _digest(key), None
        for name, digest in self._digests:
            if hmac.compare_digest(given, digest):
                found = name
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def read_keys(file: Path | None, environment: Mapping[str, str] = os.environ) -> ApiKeys:
    """Reads API keys from a file and from the environment variable `VARIABLE`.

    Args:
        file: Lines ``NAME=KEY``; those that are empty or begin with # are comments. None reads no file.
        environment: Where the variable is looked up.

    Raises:
        SettingsError: The file cannot be read, a line is none of these, or a name appears twice. The message
            names the line and never its text, which may be a key.
    """
    found: dict[str, str] = {}
    if file is not None:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not a text in UTF-8"
            raise SettingsError(f"--api-keys {file} cannot be read: {why}") from None
        _take(found, _numbered(lines, f"--api-keys {file}, line"))
    if variable := environment.get(VARIABLE, ""):
        _take(found, _numbered(re.split(r"[,\n]", variable), f"{VARIABLE}, entry"))
    if file is not None and not found:
        raise SettingsError(f"--api-keys {file} holds no key: write lines NAME=KEY")
    return ApiKeys(found)


def _numbered(lines: list[str], place: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, 1):
        if (text := line.strip()) and not text.startswith("#"):
            yield f"{place} {number}", text


def _take(found: dict[str, str], entries: Iterator[tuple[str, str]]) -> None:
    for place, text in entries:
        name, equals, key = (part.strip() for part in text.partition("="))
        if not equals or not _NAME.fullmatch(name):
            raise SettingsError(f"{place} is not NAME=KEY, with a name of letters, digits and . _ @ -")
        if name in found:
            raise SettingsError(f"{place} names {name} a second time: give each key a name of its own")
        found[name] = key
