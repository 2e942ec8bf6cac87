"""One process at a time on a thread: two that write to one run would tear it.

LangGraph's checkpointers do not look who else is at a thread. A claim does, for as long as it is held; it
ends with its process, however that ends.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from .checkpoint import CheckpointPlace
from .errors import SettingsError

_CLAIMS = 7_286_118
"""First half of the key of an advisory lock, the same in all processes."""


def claim_thread(place: CheckpointPlace, thread: str) -> AbstractContextManager[None]:
    """Claim a thread while a run writes to it.

    For example::

        opening = open_checkpointer("sqlite:runs.db")
        with claim_thread(opening.place, "1"), opening as checkpointer:
            ...

    Beside a SQLite file the claims are held on ``NAME.claims``, which stays and stays empty (not on Windows,
    where nothing is claimed); in PostgreSQL they are advisory locks. Elsewhere no other process sees the
    thread.

    Args:
        place: `trim_graph.open_checkpointer.place`.
        thread: The ``thread_id``.

    Raises:
        SettingsError: On entering: another process or another run of this one has it, or the place cannot be
            opened.
    """
    ways: dict[str, Callable[[str, int], AbstractContextManager[bool]]] = {
        "sqlite": _beside_file,
        "postgresql": _in_postgres,
    }
    return _claim(ways.get(place.kind), place.place, thread)


@contextmanager
def _claim(
    way: Callable[[str, int], AbstractContextManager[bool]] | None, place: str, thread: str
) -> Iterator[None]:
    if way is None:
        yield
        return
    digest = hashlib.sha256(thread.encode("utf-8", "surrogatepass")).digest()
    with way(place, int.from_bytes(digest[:4], "big") >> 1) as claimed:
        if not claimed:
            raise SettingsError(
                f"somebody else is at work on thread {thread!r}: wait until it has ended, or name another"
            )
        yield


@dataclass
class _Claims:
    """What this process has claimed beside one file. Closing any descriptor of it would end all claims."""

    file: IO[bytes]
    numbers: set[int] = field(default_factory=set)


_HELD: dict[str, _Claims] = {}
_HOLDING = threading.Lock()


@contextmanager
def _beside_file(path: str, number: int) -> Iterator[bool]:
    try:
        import fcntl
    except ImportError:
        yield True
        return
    name = str(Path(f"{path}.claims").resolve())

    def let_go(claims: _Claims) -> None:
        if not claims.numbers:
            _HELD.pop(name).file.close()

    with _HOLDING:
        claims = _HELD.get(name) or _HELD.setdefault(name, _Claims(_opened(name)))
        claimed = number not in claims.numbers
        if claimed:
            try:
                # A byte for each thread. The lock is the process's: the kernel lets go of it when that ends.
                fcntl.lockf(claims.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
                claims.numbers.add(number)
            except (BlockingIOError, PermissionError):
                claimed = False
                let_go(claims)
    try:
        yield claimed
    finally:
        if claimed:
            with _HOLDING:
                fcntl.lockf(claims.file, fcntl.LOCK_UN, 1, number)
                claims.numbers.remove(number)
                let_go(claims)


def _opened(name: str) -> IO[bytes]:
    try:
        return Path(name).open("ab")
    except OSError as error:
        told = f"{name}, which tells who is at a thread, cannot be opened: {error}"
        raise SettingsError(told) from error


@contextmanager
def _in_postgres(url: str, number: int) -> Iterator[bool]:
    from .checkpoint_postgres import connected

    with connected(url) as connection:
        row = connection.execute("SELECT pg_try_advisory_lock(%s, %s) AS got", [_CLAIMS, number]).fetchone()
        yield bool(row and row["got"])
