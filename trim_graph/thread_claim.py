"""One process at a time on a thread: two that write to one run would tear it.

LangGraph's checkpointers do not look who else is at a thread. A claim does, for as long as it is held; it
ends with its process, however that ends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

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
        SettingsError: On entering: another process has it, or the place cannot be opened.
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
                f"another process is at work on thread {thread!r}: wait until it has ended, or name another"
            )
        yield


@contextmanager
def _beside_file(path: str, number: int) -> Iterator[bool]:
    try:
        import fcntl
    except ImportError:
        yield True
        return
    try:
        file = Path(f"{path}.claims").open("ab")  # noqa: SIM115
    except OSError as error:
        raise SettingsError(
            f"{path}.claims, which tells who is at a thread, cannot be opened: {error}"
        ) from error
    with file:
        try:
            # A byte for each thread. The lock is the process's: the kernel lets go of it when that ends.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):
            yield False
            return
        yield True


@contextmanager
def _in_postgres(url: str, number: int) -> Iterator[bool]:
    from .checkpoint_postgres import connected

    with connected(url) as connection:
        row = connection.execute("SELECT pg_try_advisory_lock(%s, %s) AS got", [_CLAIMS, number]).fetchone()
        yield bool(row and row["got"])
