"""A lock on a thread: two processes that write to one run would corrupt it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from trim_graph.errors import SettingsError

from .checkpoint import CheckpointPlace, missing_extra

_NAMESPACE = 7_286_118
"""First half of the key of an advisory lock, the same in all processes."""


@contextmanager
def lock_thread(place: CheckpointPlace, thread: str) -> Iterator[None]:
    """Holds the lock on a thread while a run writes to it.

    For example::

        opening = open_checkpointer("sqlite:runs.db")
        with lock_thread(opening.place, "1"), opening as checkpointer:
            ...

    For a SQLite file the locks are files in the folder ``NAME.locks`` beside it, one per thread; they stay
    there, empty. In PostgreSQL they are advisory locks. Other places are seen by this process only, and need
    no lock.

    Args:
        place: `trim_graph.open_checkpointer.place`.
        thread: The ``thread_id``.

    Raises:
        SettingsError: On entering: another process or another run of this process holds the lock, the place
            cannot be opened, or its extra is not installed.
    """
    lock = _LOCKS.get(place.kind)
    if lock is None:
        yield
        return
    with lock(place.place, hashlib.sha256(thread.encode("utf-8", "surrogatepass")).digest()) as locked:
        if not locked:
            raise SettingsError(
                f"somebody else is at work on thread {thread!r}: wait until it has ended, or name another"
            )
        yield


@contextmanager
def _lock_beside_file(path: str, digest: bytes) -> Iterator[bool]:
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise missing_extra("SQLite", "sqlite") from error
    lock = FileLock(f"{path}.locks/{digest.hex()[:32]}", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        raise SettingsError(f"{lock.lock_file}, which locks a thread, cannot be opened: {error}") from error
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def _lock_in_postgres(url: str, digest: bytes) -> Iterator[bool]:
    from .postgres import connected

    number = int.from_bytes(digest[:4], "big") >> 1
    with connected(url) as connection:
        query = "SELECT pg_try_advisory_lock(%s, %s) AS got"
        row = connection.execute(query, [_NAMESPACE, number]).fetchone()
        yield bool(row and row["got"])


_LOCKS: dict[str, Callable[[str, bytes], AbstractContextManager[bool]]] = {
    "sqlite": _lock_beside_file,
    "postgresql": _lock_in_postgres,
}
