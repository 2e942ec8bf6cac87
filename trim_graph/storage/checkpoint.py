"""Checkpointers by configuration: none, memory, a SQLite file, or a PostgreSQL database.

Every checkpointer names its file or database in errors, and rejects data that none can have written.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    closing,
    contextmanager,
)
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import unquote

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple, DeltaChannelHistory
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from trim_graph.errors import (
    SECRET_NAME,
    SettingsError,
    StorageError,
    closest,
    is_variable_name,
    may_be_shown,
)

from .sqlite_file import errors_named, open_file

Saver = BaseCheckpointSaver[Any] | None

CHOICES = "none, memory, sqlite:PATH, postgresql://USER@HOST/DATABASE, or env:NAME"
LEDGERS = CHOICES.removeprefix("none, ")
_KINDS_OF_PLACE = ("sqlite", "postgresql", "env")
_DATABASE_FILE = re.compile(r"[\w./~\\ -]+\.(?:db|sqlite3?)")
"""Name of a file, which has no room for a password as a URL has."""
_HOST_AND_PORT = r"(\[[0-9A-Fa-f:.]+\]|[\w.%-]*)(:\d*)?"


@dataclass(frozen=True, slots=True)
class CheckpointPlace:
    """A parsed specification of a checkpointer or ledger.

    Attributes:
        kind: ``none``, ``memory``, ``sqlite``, ``postgresql`` or ``env``.
        place: File, URL, or name of the environment variable; empty for the first two. The repr omits it,
            since a URL from the environment may hold a password.
    """

    kind: str
    place: str = field(default="", repr=False)

    @property
    def lasts(self) -> bool:
        """Whether stored runs outlive the process."""
        return self.kind not in ("none", "memory")

    @property
    def spec(self) -> str:
        """Specification of this place, a password included."""
        return (
            self.place if self.kind == "postgresql" else self.kind + (f":{self.place}" if self.place else "")
        )


def checkpoint_place(spec: str | None, setting: str = "checkpoint") -> CheckpointPlace:
    """Parses a specification, without checking that the file or database exists.

    Args:
        spec: Specification, as for `open_checkpointer`.
        setting: Name of the setting, for messages.

    Raises:
        ValueError: The specification is not valid, or may hold a password. The message names the setting and
            does not repeat the specification, unless it is the bare name of a file.
    """
    kind, _, place = (spec or "none").partition(":")
    if kind in ("postgres", "postgresql") and place.startswith("//"):
        if wrong := _url_fault(f"postgresql:{place}"):
            raise ValueError(f"{setting} {wrong}")
        return CheckpointPlace("postgresql", f"postgresql:{place}")
    if kind == "env" and place:
        if not is_variable_name(place):
            raise ValueError(f"{setting} has something after env: that is no name of an environment variable")
    elif kind not in ("none", "memory", "sqlite") or bool(place) != (kind == "sqlite"):
        choices = LEDGERS if setting.startswith("ledger") else CHOICES
        if not place and _DATABASE_FILE.fullmatch(kind):
            raise ValueError(f"{setting} is {kind!r}, without its kind: write sqlite:{kind}")
        meant = closest(kind.lower(), _KINDS_OF_PLACE) if place and kind not in _KINDS_OF_PLACE else None
        hint = f" (did you mean {meant}:?)" if meant else ""
        raise ValueError(f"{setting} is not one of the choices{hint}: choose {choices}")
    if kind == "sqlite" and re.match(r"//[^/]", place):
        raise ValueError(f"{setting} is a URL where a file is wanted: write sqlite:PATH, without //")
    return CheckpointPlace(kind, place)


def _url_fault(url: str) -> str:
    """Returns what is wrong with a libpq URL in a plain setting, such as a password; else empty."""
    bare, _, query = url.partition("?")
    user, at, rest = bare.removeprefix("postgresql://").rpartition("@")
    names = {unquote(pair.partition("=")[0]) for pair in query.split("&")}
    # libpq's `sslkey` names a file.
    if ":" in user or any(SECRET_NAME.search(name) for name in names - {"sslkey"}):
        return (
            "holds a password; set PGPASSWORD, keep it in ~/.pgpass, or put the whole URL "
            "into an environment variable and write env:NAME"
        )
    # A password with an unescaped slash, question mark or hash would have ended the host.
    plain = not at or re.fullmatch(r"[\w.~%-]+", user)
    if "@" in query or not plain or not re.fullmatch(r"[^\s#@]*", rest) or not _is_host(rest):
        return (
            "is not a URL that can be read: write postgresql://USER@HOST/DATABASE, with any other "
            "character of a name percent-encoded"
        )
    return ""


def _is_host(rest: str) -> bool:
    hosts = rest.partition("/")[0]
    return not hosts or all(re.fullmatch(_HOST_AND_PORT, host) for host in hosts.split(","))


class open_checkpointer:
    """Opens the checkpointer that a specification names, as a context manager.

    Works with ``with`` (for ``invoke``) and ``async with`` (for ``ainvoke``)::

        with open_checkpointer("sqlite:runs.db") as checkpointer:
            graph = create_trim_graph(small, large, scorer, policy=policy, checkpointer=checkpointer)
            graph.invoke(question, {"configurable": {"thread_id": "1"}}, durability="sync")

    For PostgreSQL, opening creates or upgrades the tables, and a pool of connections serves any number of
    runs. ``sqlite`` and ``postgres`` need the extra of that name.

    Args:
        spec: ``none`` (the value is None), ``memory`` (lost with the process), ``sqlite:PATH``,
            ``postgresql://USER@HOST/DATABASE`` (a libpq URL without a password), or ``env:NAME``, an
            environment variable with any of these, a password included; None is ``none``.

    Attributes:
        place: The parsed specification, with ``env:`` resolved.

    Raises:
        SettingsError: The specification is none of these, the folder of the file does not exist, the
            variable is not set, the extra is not installed, or the database cannot be opened.
        StorageError: A file is empty, damaged or another program's; a run raises it too if it reads damage.
    """

    def __init__(self, spec: str | None) -> None:
        self.place = existing_place(spec)
        self._stack: ExitStack | None = None
        self._async_stack: AsyncExitStack | None = None

    def __enter__(self) -> Saver:
        """Opens for synchronous use."""
        self._stack = ExitStack()
        return self._stack.enter_context(_SYNC[self.place.kind](self.place.place))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes."""
        if self._stack is not None:
            self._stack.__exit__(kind, error, trace)
            self._stack = None

    async def __aenter__(self) -> Saver:
        """Opens for asynchronous use."""
        self._async_stack = AsyncExitStack()
        return await self._async_stack.enter_async_context(_ASYNC[self.place.kind](self.place.place))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes."""
        if self._async_stack is not None:
            await self._async_stack.__aexit__(kind, error, trace)
            self._async_stack = None


def existing_place(spec: str | None, setting: str = "checkpoint") -> CheckpointPlace:
    """Parses a specification, resolves ``env:``, and checks that the folder of a file exists.

    Args:
        spec: Specification, as for `open_checkpointer`.
        setting: Name of the setting, for messages.

    Raises:
        SettingsError: See `open_checkpointer`.
    """
    place = _parsed(spec, setting)
    named = setting
    if place.kind == "env":
        named = f"{setting}, from the environment variable {place.place},"
        place = _from_environment(place.place, setting, named)
    if place.kind == "sqlite":
        place = CheckpointPlace("sqlite", str(Path(place.place).expanduser()))
        folder = Path(place.place).resolve().parent
        if not folder.is_dir():
            where = f": the folder {folder}" if may_be_shown(place.place) else " in a folder that"
            raise SettingsError(f"{named} is a SQLite file{where} does not exist")
    return place


def _parsed(spec: str | None, setting: str) -> CheckpointPlace:
    try:
        return checkpoint_place(spec, setting)
    except ValueError as error:
        wrong = str(error)
    raise SettingsError(wrong)


def _from_environment(name: str, setting: str, named: str) -> CheckpointPlace:
    spec = os.environ.get(name, "").strip()
    if not spec:
        raise SettingsError(f"{setting} is env:{name}, but the environment variable {name} is not set")
    kind, _, place = spec.partition(":")
    if kind in ("postgres", "postgresql") and place.startswith("//"):
        return CheckpointPlace("postgresql", f"postgresql:{place}")
    if kind == "env":
        raise SettingsError(f"{named} is another env:...; put the place itself into the variable")
    return _parsed(spec, named)


@contextmanager
def _nothing(place: str) -> Iterator[Saver]:
    yield None


@asynccontextmanager
async def _anothing(place: str) -> AsyncIterator[Saver]:
    yield None


@contextmanager
def _memory(place: str) -> Iterator[Saver]:
    yield InMemorySaver()


@asynccontextmanager
async def _amemory(place: str) -> AsyncIterator[Saver]:
    yield InMemorySaver()


_SQLITE_KEY = ("thread_id", "checkpoint_ns", "checkpoint_id")
_SQLITE_COLUMNS = {
    "checkpoints": (*_SQLITE_KEY, "parent_checkpoint_id", "type", "checkpoint", "metadata"),
    "writes": (*_SQLITE_KEY, "task_id", "idx", "channel", "type", "value"),
}


def _named(place: str) -> tuple[str, Callable[[], AbstractContextManager[None]]]:
    return f"the checkpoint {place}", partial(errors_named, "checkpoint", place)


@contextmanager
def _sqlite(place: str) -> Iterator[Saver]:
    try:
        import sqlite3

        from langgraph.checkpoint.sqlite import SqliteSaver
    except ImportError as error:
        raise missing_extra("SQLite", "sqlite") from error

    class NamedSaver(NamingSaver, SqliteSaver):
        pass

    open_file("checkpoint", place, _SQLITE_COLUMNS)
    with closing(sqlite3.connect(place, check_same_thread=False)) as connection:
        yield NamedSaver(connection).name_place(
            f"the checkpoint {place}", partial(errors_named, "checkpoint", place)
        )


@asynccontextmanager
async def _asqlite(place: str) -> AsyncIterator[Saver]:
    try:
        import aiosqlite
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
    except ImportError as error:
        raise missing_extra("SQLite", "sqlite") from error

    class NamedSaver(NamingSaver, AsyncSqliteSaver):
        pass

    await asyncio.to_thread(open_file, "checkpoint", place, _SQLITE_COLUMNS)
    async with aiosqlite.connect(place) as connection:
        yield NamedSaver(connection).name_place(
            f"the checkpoint {place}", partial(errors_named, "checkpoint", place)
        )


@contextmanager
def _postgres(place: str) -> Iterator[Saver]:
    try:
        from .postgres import open_postgres
    except ImportError as error:
        raise missing_extra("PostgreSQL", "postgres") from error
    with open_postgres(place) as saver:
        yield saver


@asynccontextmanager
async def _apostgres(place: str) -> AsyncIterator[Saver]:
    try:
        from .postgres import aopen_postgres
    except ImportError as error:
        raise missing_extra("PostgreSQL", "postgres") from error
    async with aopen_postgres(place) as saver:
        yield saver


_SYNC: dict[str, Callable[[str], AbstractContextManager[Saver]]] = {
    "none": _nothing,
    "memory": _memory,
    "sqlite": _sqlite,
    "postgresql": _postgres,
}
_ASYNC: dict[str, Callable[[str], AbstractAsyncContextManager[Saver]]] = {
    "none": _anothing,
    "memory": _amemory,
    "sqlite": _asqlite,
    "postgresql": _apostgres,
}


def missing_extra(name: str, extra: str) -> SettingsError:
    """Returns the error for a kind of checkpointer whose packages are not installed."""
    return SettingsError(f'{name} checkpoints need an extra: pip install "trim-graph[{extra}]"')


if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver

    SaverBase = BaseCheckpointSaver[Any]
else:
    SaverBase = object

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
    """LangGraph's serializer, which raises `StorageError` for a value that it cannot read.

    Args:
        shown: Name of the file or database, for messages.
    """

    def __init__(self, shown: str) -> None:
        super().__init__()
        self._shown = shown

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Reads a value."""
        try:
            return super().loads_typed(data)
        except Exception as error:  # damaged data may raise anything
            raise unreadable(self._shown, f"{type(error).__name__}: {error}") from error


def unreadable(shown: str, why: str) -> StorageError:
    """Returns the error for a value that cannot be read."""
    return StorageError(f"{shown} holds a value that cannot be read ({why[:200]}); {_UNREADABLE}")


class NamingSaver(SaverBase):
    """Mixin before a checkpointer class: its errors name the file or database.

    It checks each checkpoint read for what LangGraph relies on. So damage that still decodes raises an error
    here that names it, not another kind of error later.
    """

    _shown: str
    _errors_named: Callable[[], AbstractContextManager[None]]

    def name_place(self, shown: str, errors_named: Callable[[], AbstractContextManager[None]]) -> Self:
        """Sets the name of the file or database, and returns the checkpointer.

        Args:
            shown: Name for messages.
            errors_named: Converts the database's own errors to `StorageError`.
        """
        self._shown, self._errors_named = shown, errors_named
        self.serde = NamingSerializer(shown)
        return self

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Gets a checkpoint."""
        with self._reading():
            return self._checked(super().get_tuple(config))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Gets a checkpoint."""
        with self._reading():
            return self._checked(await super().aget_tuple(config))

    def list(self, config: RunnableConfig | None, **options: Any) -> Iterator[CheckpointTuple]:
        """Lists checkpoints."""
        with self._reading():
            for found in super().list(config, **options):
                yield self._checked(found)

    async def alist(self, config: RunnableConfig | None, **options: Any) -> AsyncIterator[CheckpointTuple]:
        """Lists checkpoints."""
        with self._reading():
            async for found in super().alist(config, **options):
                yield self._checked(found)

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Gets the writes to channels since each was last stored as a whole."""
        with self._reading():
            return super().get_delta_channel_history(config=config, channels=channels)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Gets the writes to channels since each was last stored as a whole."""
        with self._reading():
            return await super().aget_delta_channel_history(config=config, channels=channels)

    def put(self, *args: Any, **options: Any) -> RunnableConfig:
        """Stores a checkpoint."""
        with self._errors_named():
            return super().put(*args, **options)

    async def aput(self, *args: Any, **options: Any) -> RunnableConfig:
        """Stores a checkpoint."""
        with self._errors_named():
            return await super().aput(*args, **options)

    def put_writes(self, *args: Any, **options: Any) -> None:
        """Stores what a node wrote."""
        with self._errors_named():
            super().put_writes(*args, **options)

    async def aput_writes(self, *args: Any, **options: Any) -> None:
        """Stores what a node wrote."""
        with self._errors_named():
            await super().aput_writes(*args, **options)

    def delete_thread(self, thread_id: str) -> None:
        """Deletes a thread."""
        with self._errors_named():
            super().delete_thread(thread_id)

    async def adelete_thread(self, thread_id: str) -> None:
        """Deletes a thread."""
        with self._errors_named():
            await super().adelete_thread(thread_id)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with self._errors_named():
                yield
        except (UnicodeDecodeError, json.JSONDecodeError) as error:  # of metadata, past the serializer
            raise unreadable(self._shown, str(error)) from error
        except NotImplementedError as error:
            raise SettingsError(
                f"{self._shown} is open for invoke and stream, by with: open it for ainvoke and astream, by "
                "async with open_checkpointer(...) as checkpointer: ..."
            ) from error

    def _checked(self, found: FoundT) -> FoundT:
        if found is not None and (why := _fault(found)):
            raise unreadable(self._shown, why)
        return found


def _fault(found: CheckpointTuple) -> str:
    """Returns what no checkpointer can have written; empty if the checkpoint is in order."""
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
