"""Executes a query that a model wrote, read-only and within limits, in a process of its own.

A process of its own, because two limits cannot be held in this one. SQLite limits its memory for a whole
process only, and it can be interrupted while it executes a statement, but not while it compiles one: thirty
common table expressions that name the one before twice are a few hundred bytes and compile to 2^30 scans.

The process runs this file as a script and stays for the next query. It imports nothing of the project.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

NOW = "2024-08-14 12:00:00"
"""Time of every query and of the data: when questions and dumps were last changed together. Dumps date their
rows by the day on which they are loaded, and queries ask for the last seven days."""

Value = str | int | float | None


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one query.

    Attributes:
        seconds: Of processor time, so that a verdict does not depend on the load of the machine.
        wall_seconds: Until the process is killed; for what `seconds` does not see.
        rows: Most rows of a result.
        bytes: Most bytes of a result, and of one text or blob within the query.
        memory: Most bytes that SQLite may hold.
        query: Most characters of a query.
    """

    seconds: float = 2.0
    wall_seconds: float = 20.0
    rows: int = 10_000
    bytes: int = 1_000_000
    memory: int = 64_000_000
    query: int = 20_000


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Result:
    """Rows of a query, or why there are none.

    Attributes:
        columns: Names of the columns.
        rows: Values as SQLite gives them; a blob as its literal.
        error: Why the query was refused, failed or was ended; None where it ran.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Value, ...], ...] = ()
    error: str | None = None


@lru_cache(maxsize=4096)
def execute(database: str, query: str, limits: Limits = LIMITS) -> Result:
    """Executes one SELECT; results are remembered.

    Args:
        database: Path of a SQLite file; it is opened read-only and must not change while this process runs.
        query: One statement. All but reading is refused: writes, ATTACH, PRAGMA, extensions.
        limits: Of the query.

    Raises:
        FileNotFoundError: There is no such database.
    """
    if not os.path.isfile(database):
        raise FileNotFoundError(f"database {database} does not exist: prepare the data again")
    if len(query) > limits.query:
        return Result(error=f"the query has more than {limits.query} characters")
    return _SANDBOX.execute(database, query, limits)


class _Sandbox:
    """The process, started at the first query and again where it was killed or this process was forked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def forget(self) -> None:
        """Leaves the process to the one that this process was forked from."""
        if self._process is not None:
            self._process.returncode = 0  # else its object warns that it still runs
        self._lock, self._process = threading.Lock(), None

    def execute(self, database: str, query: str, limits: Limits) -> Result:
        with self._lock:
            process = self._started()
            timer = threading.Timer(limits.wall_seconds, process.kill)
            timer.start()
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                request = {"database": database, "query": query, "limits": asdict(limits)}
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except OSError:  # it has ended
                answer = ""
            except BaseException:  # Ctrl-C: its answer would be taken for that of the next query
                self._end()
                raise
            finally:
                timer.cancel()
            if not answer.endswith("\n"):
                self._end()
                return Result(error="the query ended the process that executed it, or ran for too long")
        found = json.loads(answer)
        return Result(tuple(found["columns"]), tuple(map(tuple, found["rows"])), found["error"])

    def close(self) -> None:
        """Ends the process; the next query starts another."""
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="ascii",
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # of what was not yet written to it
                    stream.close()


_SANDBOX = _Sandbox()
close = _SANDBOX.close
atexit.register(close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_SANDBOX.forget)

# What follows runs in the process.

_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_REFUSED_FUNCTIONS = {"load_extension", "fts3_tokenizer"}
_STEPS = 1000
"""Instructions of SQLite's virtual machine between two looks at the clock."""


def _authorize(action: int, first: str | None, second: str | None, *_: Any) -> int:
    if action not in _READS or (action == sqlite3.SQLITE_FUNCTION and second in _REFUSED_FUNCTIONS):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def freeze_clock(connection: sqlite3.Connection) -> None:
    """Has ``date('now')``, ``CURRENT_DATE`` and the like of a connection give the time `NOW`."""
    builtin = sqlite3.connect(":memory:")

    def frozen(name: str, place: int) -> Callable[..., Value]:
        def function(*given: Value) -> Value:
            values = list(given)
            if len(values) == place or str(values[place]).lower() in ("subsec", "subsecond"):
                values.insert(place, NOW)
            elif str(values[place]).lower() == "now":
                values[place] = NOW
            marks = ", ".join("?" * len(values))
            found: Value = builtin.execute(f"SELECT {name}({marks})", values).fetchone()[0]
            return found

        return function

    for name, place in {
        "date": 0,
        "time": 0,
        "datetime": 0,
        "julianday": 0,
        "unixepoch": 0,
        "strftime": 1,
    }.items():
        connection.create_function(name, -1, frozen(name, place))
    for name in ("date", "time", "timestamp"):
        kind = name.replace("timestamp", "datetime")
        connection.create_function(f"current_{name}", 0, lambda kind=kind: frozen(kind, 0)())


def _run(database: str, query: str, limits: Limits) -> Result:
    connection = sqlite3.connect(f"{Path(database).absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        # On disk nothing would limit what a sort or a distinct holds.
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA hard_heap_limit = {limits.memory}")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.bytes)
        connection.text_factory = lambda text: text.decode("utf-8", "replace")
        freeze_clock(connection)
        connection.set_authorizer(_authorize)
        end = time.process_time() + limits.seconds
        connection.set_progress_handler(lambda: time.process_time() > end, _STEPS)
        cursor = connection.execute(query)
        rows, size = [], 0
        for row in cursor:
            rows.append(tuple(map(_plain, row)))
            size += sum(len(value) if isinstance(value, str) else 8 for value in rows[-1])
            if len(rows) > limits.rows or size > limits.bytes:
                return Result(error=f"more than {limits.rows} rows or {limits.bytes} bytes")
        if cursor.description is None:
            return Result(error="the query gives no columns")
        return Result(tuple(name for name, *_ in cursor.description), tuple(rows))
    finally:
        connection.close()


def _plain(value: Any) -> Value:
    """Returns a value as JSON has it."""
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value  # type: ignore[no-any-return]


def _serve(requests: IO[str], answers: IO[str]) -> None:
    for line in requests:
        request = json.loads(line)
        try:
            result = _run(request["database"], request["query"], Limits(**request["limits"]))
        except MemoryError:
            result = Result(error="the query needs too much memory")
        except (sqlite3.Error, sqlite3.Warning, ValueError, UnicodeError) as error:
            result = Result(error=f"{type(error).__name__}: {error}"[:500])
        answers.write(json.dumps(asdict(result)) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
