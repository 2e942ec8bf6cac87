"""Checkpointers that name their file or database in every error, and refuse what they cannot have written."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple, DeltaChannelHistory
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from .errors import StorageError

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver

    Saver = BaseCheckpointSaver[Any]
else:
    Saver = object

FoundT = TypeVar("FoundT", CheckpointTuple, CheckpointTuple | None)
_UNREADABLE = (
    "it is damaged, or another program has written to it: restore it from a copy, or name another place"
)
_KINDS: dict[str, type | tuple[type, ...]] = {
    "v": int,
    "id": str,
    "channel_values": dict,
    "channel_versions": dict,
    "versions_seen": dict,
}


class NamingSerializer(JsonPlusSerializer):
    """LangGraph's serializer; a value that it cannot read is a `StorageError`.

    Args:
        shown: What messages call the place.
    """

    def __init__(self, shown: str) -> None:
        super().__init__()
        self._shown = shown

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Read a value."""
        try:
            return super().loads_typed(data)
        except Exception as error:  # garbage may fail in any way
            raise unreadable(self._shown, f"{type(error).__name__}: {error}") from error


def unreadable(shown: str, why: str) -> StorageError:
    """Say that a value cannot be read."""
    return StorageError(f"{shown} holds a value that cannot be read ({why[:200]}); {_UNREADABLE}")


class NamingSaver(Saver):
    """The first base of a saver whose errors name its place; the second is the saver.

    A checkpoint that is read is checked for what LangGraph relies on, so that damage that can still be
    decoded is named here, and is no error of some other kind later.
    """

    _shown: str
    _errors_named: Callable[[], AbstractContextManager[None]]

    def name_place(self, shown: str, errors_named: Callable[[], AbstractContextManager[None]]) -> Self:
        """Say which place it is.

        Args:
            shown: What messages call it.
            errors_named: Turns the database's own errors into a `StorageError`.
        """
        self._shown, self._errors_named = shown, errors_named
        self.serde = NamingSerializer(shown)
        return self

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Get a checkpoint."""
        with self._reading():
            return self._checked(super().get_tuple(config))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Get a checkpoint."""
        with self._reading():
            return self._checked(await super().aget_tuple(config))

    def list(self, config: RunnableConfig | None, **options: Any) -> Iterator[CheckpointTuple]:
        """List checkpoints."""
        with self._reading():
            for found in super().list(config, **options):
                yield self._checked(found)

    async def alist(self, config: RunnableConfig | None, **options: Any) -> AsyncIterator[CheckpointTuple]:
        """List checkpoints."""
        with self._reading():
            async for found in super().alist(config, **options):
                yield self._checked(found)

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Get what channels were written to since they were last stored as a whole."""
        with self._reading():
            return super().get_delta_channel_history(config=config, channels=channels)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Get what channels were written to since they were last stored as a whole."""
        with self._reading():
            return await super().aget_delta_channel_history(config=config, channels=channels)

    def put(self, *args: Any, **options: Any) -> RunnableConfig:
        """Store a checkpoint."""
        with self._errors_named():
            return super().put(*args, **options)

    async def aput(self, *args: Any, **options: Any) -> RunnableConfig:
        """Store a checkpoint."""
        with self._errors_named():
            return await super().aput(*args, **options)

    def put_writes(self, *args: Any, **options: Any) -> None:
        """Store what a node wrote."""
        with self._errors_named():
            super().put_writes(*args, **options)

    async def aput_writes(self, *args: Any, **options: Any) -> None:
        """Store what a node wrote."""
        with self._errors_named():
            await super().aput_writes(*args, **options)

    def delete_thread(self, thread_id: str) -> None:
        """Delete a thread."""
        with self._errors_named():
            super().delete_thread(thread_id)

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete a thread."""
        with self._errors_named():
            await super().adelete_thread(thread_id)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with self._errors_named():
                yield
        except (UnicodeDecodeError, json.JSONDecodeError) as error:  # of metadata, past the serializer
            raise unreadable(self._shown, str(error)) from error

    def _checked(self, found: FoundT) -> FoundT:
        if found is not None and (why := _fault(found)):
            raise unreadable(self._shown, why)
        return found


def _fault(found: CheckpointTuple) -> str:
    """Say what no saver can have written; empty where all is in order."""
    checkpoint: Any = found.checkpoint
    if not isinstance(checkpoint, dict):
        return "a checkpoint is no mapping"
    for key, kind in _KINDS.items():
        if not isinstance(checkpoint.get(key), kind):
            return f"the key {key} of a checkpoint is missing or of another kind"
    if checkpoint["id"] != found.config["configurable"]["checkpoint_id"]:
        return "a checkpoint has another id than its row"
    seen = checkpoint["versions_seen"].values()
    versions = [checkpoint["channel_versions"], *seen]
    if not all(isinstance(one, dict) for one in versions):
        return "the versions of a checkpoint's channels are no mapping"
    if not all(_is_version(version) for one in versions for version in one.values()):
        return "the version of a channel is no number"
    return "" if isinstance(found.metadata, dict) else "the metadata of a checkpoint are no mapping"


def _is_version(version: Any) -> bool:
    return isinstance(version, int | float) or (
        isinstance(version, str) and version.partition(".")[0].isdecimal()
    )
