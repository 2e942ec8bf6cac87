"""A journal: a JSONL file with one record for each finished unit of work, so that work can resume."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trim_graph.errors import InputError, SettingsError, shown_url

from .rows import read_rows

VERSION = 1
_SHOWN = 80
ADDRESS = "base_url"
"""Setting of a model that says where it is served, not what it answers: another one is no difference."""


class Finished:
    """Indices of finished units: all below a mark, and the few above it that ended early."""

    def __init__(self) -> None:
        self._below, self._above = 0, set[int]()

    def add(self, index: int) -> None:
        """Adds one index."""
        if index >= self._below:
            self._above.add(index)
            while self._below in self._above:
                self._above.remove(self._below)
                self._below += 1

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and (index < self._below or index in self._above)

    def __len__(self) -> int:
        return self._below + len(self._above)


class Journal:
    """An open journal.

    Args:
        path: Path of the JSONL file, created if it is missing. Its folder must exist.
        settings: Settings of the work, JSON-native.
        keep: Returns whether an existing record is kept; the others' work is repeated.
        unit: Returns the number of a record's unit of work, without gaps; default: its ``index``.

    Raises:
        SettingsError: The file was begun with other settings, or without any, another process writes to it,
            or it cannot be written.
        InputError: A record in the file cannot be read, and is not the torn last line.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: dict[str, Any],
        *,
        keep: Callable[[dict[str, Any]], bool] = lambda record: True,
        unit: Callable[[dict[str, Any]], int] = lambda record: int(record["index"]),
    ) -> None:
        self.path, self._unit = Path(path), unit
        self.beside = settings_beside(self.path)
        self.finished = Finished()
        try:
            self._stream = self.path.open("ab")
        except OSError as error:
            raise SettingsError(f"{self.path} cannot be written: {error.strerror}") from error
        try:
            self._lock()
            self._check(settings)
            self._cut_torn_line()
            self._read_finished(keep)
        except BaseException:
            self._stream.close()
            raise

    def append(self, record: dict[str, Any]) -> None:
        """Appends one record, which has an ``index``, and flushes it to the operating system."""
        self._stream.write(to_line(record))
        self._stream.flush()
        self.finished.add(self._unit(record))

    def close(self) -> None:
        """Syncs the file to the disk and closes it, which releases its lock."""
        if not self._stream.closed:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # not on Windows: there two processes must not share a file
            return
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(f"{self.path}: another process is writing to it") from error

    def _check(self, settings: dict[str, Any]) -> None:
        settings = json.loads(json.dumps(settings))
        if not self.beside.exists():
            if self.path.stat().st_size:
                raise SettingsError(
                    f"{self.path} exists, and {self.beside.name}, which says what it was made with, does "
                    "not: choose another file"
                )
            _write_settings(self.beside, settings)
            return
        try:
            known = json.loads(self.beside.read_text(encoding="utf-8"))["settings"]
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise SettingsError(f"{self.beside} is damaged: choose another file than {self.path}") from error
        different = differences(known, settings)
        if different:
            raise SettingsError(
                f"{self.path} was begun with other settings, and a file holds only one kind: "
                f"{'; '.join(different)}. Choose another file, or give the same settings"
            )

    def _cut_torn_line(self) -> None:
        """Cuts off a last line without a line break."""
        with self.path.open("rb") as stream:
            end = position = stream.seek(0, os.SEEK_END)
            while position > 0:
                start = max(0, position - 65536)
                stream.seek(start)
                cut = stream.read(position - start).rfind(b"\n")
                if cut >= 0:
                    position = start + cut + 1
                    break
                position = start
        if position < end:
            os.truncate(self.path, position)

    def _read_finished(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        dropped = False
        for place, record in read_rows(self.path):
            if not isinstance(record.get("index"), int):
                raise InputError(f"{place}: no record: index is {record.get('index')!r}")
            if keep(record):
                self.finished.add(self._unit(record))
            else:
                dropped = True
        if dropped:
            self._rewrite(keep)

    def _rewrite(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drops records whose work is to be repeated; a complete new file replaces the old one at once."""
        whole = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with whole.open("wb") as stream:
                for _, record in read_rows(self.path):
                    if keep(record):
                        stream.write(to_line(record))
            self._stream.close()
            whole.replace(self.path)
            self._stream = self.path.open("ab")
            self._lock()
        finally:
            whole.unlink(missing_ok=True)


def replace_journal(path: Path, settings: dict[str, Any], records: Iterable[Any]) -> None:
    """Replaces a journal that no process writes to, with its settings.

    An interrupt leaves the older journal, or one without settings, which `Journal` refuses.

    Args:
        path: Of the journal.
        settings: Of the new records, JSON-native.
        records: Taken one by one; they may be read from the older journal.
    """
    beside, whole = settings_beside(path), path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with whole.open("wb") as stream:
            for record in records:
                stream.write(to_line(record))
        beside.unlink(missing_ok=True)
        whole.replace(path)
        _write_settings(beside, settings)
    finally:
        whole.unlink(missing_ok=True)


def _write_settings(beside: Path, settings: dict[str, Any]) -> None:
    whole = beside.with_name(f".{beside.name}.{os.getpid()}")
    text = json.dumps({"version": VERSION, "settings": settings}, indent=1) + "\n"
    whole.write_text(text, encoding="utf-8")
    whole.replace(beside)


def settings_beside(path: Path) -> Path:
    """Returns the path of the file with a journal's settings."""
    return path.with_name(f"{path.name}.settings.json")


def to_line(record: Any) -> bytes:
    """Returns a JSON-native record as one line of JSONL; a lone surrogate becomes a question mark."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace") + b"\n"


def differences(known: Any, given: Any, place: str = "") -> list[str]:
    """Returns the differences of two settings as texts, one per key; addresses of servers are none.

    Args:
        known: The recorded settings.
        given: The new settings.
        place: Path of the keys so far.
    """
    if isinstance(known, dict) and isinstance(given, dict) and known.get("type") == given.get("type"):
        if (
            known != given
            and (file := known.get("file"))
            and known | {"sha256": given.get("sha256")} == given
        ):
            return [f"{file} has changed"]
        return [
            difference
            for key in sorted((known.keys() | given.keys()) - {ADDRESS})
            for difference in differences(known.get(key), given.get(key), f"{place}.{key}" if place else key)
        ]
    if without_addresses(known) == without_addresses(given):
        return []
    return [f"{place} was {_short(known)}, is {_short(given)}"]


def moved(known: Any, given: Any, place: str = "") -> list[str]:
    """Returns the servers that are at another address than recorded, as texts.

    Args:
        known: The recorded settings.
        given: The new settings.
        place: Path of the keys so far.
    """
    if isinstance(known, list) and isinstance(given, list):
        known, given = dict(enumerate(known)), dict(enumerate(given))
    if not (isinstance(known, dict) and isinstance(given, dict)):
        return []
    found = [
        one for key in given for one in moved(known.get(key), given[key], f"{place}.{key}" if place else key)
    ]
    before, now = known.get(ADDRESS), given.get(ADDRESS)
    if before != now:
        was, at = (f" {shown}" if (shown := shown_url(str(url))) else "" for url in (before, now))
        found.append(f"{place} is at another address{at}, and was at{was or ' one not shown'}")
    return found


def without_addresses(settings: Any) -> Any:
    """Returns settings without the addresses of servers, at any depth."""
    if isinstance(settings, list):
        return [without_addresses(one) for one in settings]
    if not isinstance(settings, dict):
        return settings
    return {key: without_addresses(value) for key, value in settings.items() if key != ADDRESS}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
