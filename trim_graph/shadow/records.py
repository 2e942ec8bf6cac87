"""Records of a shadow: what one holds, and the JSONL or SQLite file that they are written to and read from.

Without ``text`` a record holds no word of the conversation: questions and answers are SHA-256 digests, notes
are counted, errors are named by their type. A digest hides a text only from who cannot guess it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, cast

from trim_graph.errors import InputError, SettingsError
from trim_graph.storage.journal import to_line
from trim_graph.storage.rows import read_rows
from trim_graph.storage.sqlite_file import make_file

VERSION = 1
DATABASES = (".db", ".sqlite", ".sqlite3")
_TABLE = "shadow_records"

Application = Literal["large", "small"]
"""Model that the application answers with."""
Kind = Literal["run", "walk", "turn"]
"""``run``: the question was routed from its beginning; ``walk``: a policy was asked along the application's
own answer; ``turn``: the same for one turn of an agent."""


class Text(TypedDict):
    """A text of the conversation, or its digest only."""

    sha256: str
    text: str | None


class AnswerRecord(TypedDict):
    """The application's own answer."""

    answer: Text
    model: str
    input_tokens: int | None
    """None where neither the answer nor the application reported usage."""
    output_tokens: int | None
    seconds: float | None
    cost: float | None
    """By the price table of the model that answered; None without usage."""
    steps: int


class WouldBe(TypedDict):
    """What routing would have done; a field is None where this kind of record cannot say."""

    stopped: str
    """As in a summary; ``forced``: a walk read the whole answer of the application; ``large_wanted``: a walk
    along a small answer ended at the step that the large model would have written."""
    steps: dict[str, int]
    large_tokens: int | None
    small_tokens: int | None
    scorer_tokens: int | None
    share: float | None
    """Large tokens as a share of those of the application's answer, if the large model wrote it."""
    cost: float | None
    seconds: float | None
    first_large: int | None
    """Index of the first step that the large model would have been asked for; None if none."""
    decisions: dict[str, int]
    scores: list[float | None]
    places: list[int]
    """Indices of the steps that the large model would have written."""


class ShadowUsage(TypedDict):
    """What the shadow itself spent on the record."""

    large_tokens: int
    small_tokens: int
    scorer_tokens: int
    large_cost: float
    seconds: float


class ShadowRecord(TypedDict):
    """One answer of the application, and what routing would have done."""

    version: int
    id: str
    at: str
    """Time in UTC, ISO 8601."""
    session: str
    """Names the process's shadow that wrote it, whose ``counts`` grow from record to record."""
    counts: dict[str, int]
    application: Application
    kind: Kind
    refused: str | None
    """Why a walk was made where a run was drawn: ``budget``."""
    question: Text
    turn: int | None
    """Index of the turn, from 0, in a record of an agent."""
    priced: bool
    """Whether prices were given, so that costs mean something."""
    answered: AnswerRecord | None
    would: WouldBe | None
    routed: Text | None
    """The answer that routing gave."""
    agree: bool | None
    """Whether both final answers are the same; None where there is but one, or nothing to compare."""
    correct: dict[str, bool | None] | None
    """Whether the answers of ``application`` and ``routed`` are right, where a grader says."""
    spent: ShadowUsage | None
    summary: dict[str, Any] | None
    """Summary of the routed run."""
    error: str | None


class RecordSink(Protocol):
    """Where records go. Only the shadow's thread writes."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes one record."""
        ...

    def close(self) -> None:
        """Closes it; may be called again."""
        ...


def text_of(text: str, *, kept: bool) -> Text:
    """Returns a text as a record holds it.

    Args:
        text: The text.
        kept: Whether the record holds it, beside its digest.
    """
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Text(sha256=digest, text=text if kept else None)


def error_of(error: Exception, *, kept: bool) -> str:
    """Returns an error as a record holds it: its message may repeat a text, and goes with the texts."""
    return f"{type(error).__name__}: {error}" if kept else type(error).__name__


def summary_record(summary: Mapping[str, Any], *, text: bool) -> dict[str, Any]:
    """Returns a summary as a record holds it; without ``text`` its answer and notes are left out."""
    kept = dict(summary)
    if not text:
        kept["answer"] = None
        kept["notes"] = [f"{len(summary['notes'])} left out"] if summary["notes"] else []
    return kept


def open_sink(path: str | Path) -> RecordSink:
    """Opens a file for records, and creates it if it is missing.

    Args:
        path: Ends in ``.jsonl``, or in ``.db``, ``.sqlite`` or ``.sqlite3`` for SQLite. Several processes
            may write to one file.

    Raises:
        SettingsError: The name ends otherwise, or the file cannot be written.
    """
    file = Path(path)
    if file.suffix == ".jsonl":
        return JsonLines(file)
    if file.suffix in DATABASES:
        return Database(file)
    raise SettingsError(
        f"record is {str(path)!r}: its name must end in .jsonl, or in {', '.join(DATABASES)} for SQLite"
    )


class JsonLines:
    """Records as lines of JSON, each written by one call, so that processes do not mix their lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._stream = path.open("ab", buffering=0)
        except OSError as error:
            raise SettingsError(f"record {path} cannot be written: {error.strerror}") from error

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes one record."""
        self._stream.write(to_line(record))

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()


class Database:
    """Records in a table of a SQLite file, with the columns that a query selects by."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            if not path.exists():
                make_file(path)  # two writers that switch a new file to WAL at once refuse each other
        except (OSError, sqlite3.Error) as error:
            raise SettingsError(f"record {path} cannot be opened as SQLite: {error}") from error
        self._connect()
        try:
            with self._connection:
                self._connection.execute("PRAGMA journal_mode=WAL")  # where the file could not be made so
                self._connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {_TABLE} "
                    "(id TEXT PRIMARY KEY, at TEXT, application TEXT, kind TEXT, record TEXT)"
                )
        except sqlite3.Error as error:
            raise SettingsError(f"record {path} cannot be opened as SQLite: {error}") from error

    def _connect(self) -> None:
        try:
            self._connection = sqlite3.connect(self.path, timeout=30.0, check_same_thread=False)
        except sqlite3.Error as error:
            raise SettingsError(f"record {self.path} cannot be opened as SQLite: {error}") from error
        self._pid = os.getpid()

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes one record."""
        values = (*(record[name] for name in ("id", "at", "application", "kind")), to_line(record).decode())
        with self._lock:
            if self._pid != os.getpid():  # SQLite's connections do not survive a fork
                self._connect()
            with self._connection:
                self._connection.execute(f"INSERT INTO {_TABLE} VALUES (?, ?, ?, ?, ?)", values)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()


def is_shadow(path: Path) -> bool:
    """Returns whether a path is a file of the names that records have."""
    return path.is_file() and path.suffix in (".jsonl", *DATABASES)


def read_shadow(path: str | Path) -> Iterator[ShadowRecord]:
    """Reads the records of a file, in the order in which they were written.

    Args:
        path: As in `open_sink`; an application may be writing to it.

    Raises:
        InputError: The file does not exist, or holds something that is no record of this release.
    """
    file = Path(path)
    if file.suffix in DATABASES:
        found = _of_database(file)
    else:
        found = ((row.place, row.values) for row in read_rows(file, torn=True))
    for place, values in found:
        yield _checked(values, place)


def _of_database(file: Path) -> Iterator[tuple[str, Any]]:
    if not file.exists():
        raise InputError(f"{file} does not exist (looked for {file.absolute()})")
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            rows = connection.execute(f"SELECT record FROM {_TABLE} ORDER BY rowid")
            for number, (text,) in enumerate(rows, 1):
                try:
                    yield f"{file}, record {number}", json.loads(text)
                except (ValueError, TypeError, RecursionError) as error:
                    raise InputError(f"{file}, record {number}: not JSON") from error
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no file of shadow records: {error}") from error


_OPTIONAL = {"would", "answered", "routed", "correct", "spent", "summary"}
_NUMBERS = {
    "answered": ("input_tokens", "output_tokens", "seconds", "cost"),
    "would": ("large_tokens", "small_tokens", "scorer_tokens", "share", "cost", "seconds", "first_large"),
}


def _checked(values: Any, place: str) -> ShadowRecord:
    """Returns a record whose keys and numbers are what a report computes with.

    Raises:
        InputError: It is none.
    """
    wrong = _wrong(values)
    if wrong:
        raise InputError(f"{place}: no shadow record of this release: {wrong}")
    return cast(ShadowRecord, values)


def _wrong(values: Any) -> str:
    if not isinstance(values, dict):
        return "it is no object"
    if values.get("version") != VERSION:
        return f"its version is {values.get('version')!r}, not {VERSION}"
    if missing := ShadowRecord.__required_keys__ - values.keys():
        return f"{', '.join(sorted(missing))} missing"
    if values["application"] not in ("large", "small"):
        return f"application is {values['application']!r}"
    if values["kind"] not in ("run", "walk", "turn"):
        return f"kind is {values['kind']!r}"
    counts = values["counts"]
    if not isinstance(counts, dict) or not all(isinstance(n, int) for n in counts.values()):
        return "counts is no mapping of whole numbers"
    if not isinstance(values["question"], dict) or not isinstance(values["question"].get("sha256"), str):
        return "question has no digest"
    for name in _OPTIONAL:
        if values[name] is not None and not isinstance(values[name], dict):
            return f"{name} is no object"
    for part, names in _NUMBERS.items():
        for name in names if values[part] is not None else ():
            number = values[part].get(name)
            if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
                return f"{part}.{name} is {number!r}"
    return ""
