"""A SQLite file of the chat models' responses, by request: arms of a measurement share equal calls."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.messages import message_to_dict, messages_from_dict
from langchain_core.outputs import ChatGeneration, Generation

from trim_graph.errors import StorageError

from .sqlite_file import BUSY_S, errors_named, open_file

_KIND = "response cache"
_COLUMNS = {"responses": ("key", "response")}
_UNFINISHED = ("timed_out", "failed_attempts")
"""Fields of a response that another call would not have."""


class ResponseCache(BaseCache):
    """A cache of chat models (LangChain's ``cache`` of a model) in a SQLite file.

    An equal request is answered from the file: same model and settings, same messages, same arguments. Of a
    model at temperature 0 an evaluation of many policies then makes each call once, and an interrupted one
    makes no call again. Tokens and prices are counted as if the call had been made; seconds are not.
    Responses that a time limit has cut, or that needed several attempts, are not kept.

    Args:
        path: The file; created where it is missing. Threads and processes may share it.
        scope: Part of the key, of models that do not name themselves in LangChain's key.

    Attributes:
        hits: Requests answered from the file.
        misses: Requests that a model has answered.

    Raises:
        StorageError: The file is damaged or belongs to another program.
        SettingsError: It cannot be created.
    """

    def __init__(self, path: str | Path, *, scope: str = "") -> None:
        self.path, self.scope = str(path), scope
        self.hits = self.misses = 0
        open_file(_KIND, self.path, _COLUMNS)
        self._lock = threading.Lock()
        with errors_named(_KIND, self.path, "opened"):
            self._connection = sqlite3.connect(self.path, timeout=BUSY_S, check_same_thread=False)
            self._connection.execute("PRAGMA synchronous=NORMAL")
            with self._connection:
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS responses (key BLOB PRIMARY KEY, response BLOB) WITHOUT ROWID"
                )

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Returns the response to a request; None where there is none."""
        with self._lock, errors_named(_KIND, self.path):
            query = "SELECT response FROM responses WHERE key = ?"
            found = self._connection.execute(query, (self._key(prompt, llm_string),)).fetchone()
        self.hits, self.misses = self.hits + bool(found), self.misses + (not found)
        return None if found is None else _read(found[0], self.path)

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Keeps a response; the first one to a request stays."""
        if (response := _written(return_val)) is None:
            return
        with self._lock, errors_named(_KIND, self.path), self._connection:
            self._connection.execute(
                "INSERT OR IGNORE INTO responses VALUES (?, ?)", (self._key(prompt, llm_string), response)
            )

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Returns the response to a request: a read of one row, too short for a thread."""
        return self.lookup(prompt, llm_string)

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Keeps a response."""
        self.update(prompt, llm_string, return_val)

    def clear(self, **kwargs: Any) -> None:
        """Removes all responses."""
        with self._lock, errors_named(_KIND, self.path), self._connection:
            self._connection.execute("DELETE FROM responses")

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def _key(self, prompt: str, llm_string: str) -> bytes:
        return hashlib.sha256(json.dumps([self.scope, llm_string, prompt]).encode()).digest()


def _written(generations: Sequence[Generation]) -> bytes | None:
    """Returns a response as it is kept; None of one that is not."""
    kept = []
    for generation in generations:
        message = generation.message if isinstance(generation, ChatGeneration) else None
        if message is None or any(message.response_metadata.get(name) for name in _UNFINISHED):
            return None
        kept.append({"message": message_to_dict(message), "generation_info": generation.generation_info})
    return zlib.compress(json.dumps(kept).encode())


def _read(response: bytes, path: str) -> list[Generation]:
    try:
        return [
            ChatGeneration(
                message=messages_from_dict([kept["message"]])[0], generation_info=kept["generation_info"]
            )
            for kept in json.loads(zlib.decompress(response))
        ]
    except (zlib.error, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"the {_KIND} {path} holds a response that cannot be read: remove the file to begin anew"
        ) from error
