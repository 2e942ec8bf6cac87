"""Ledgers: accounts that several runs share, with reservations before calls and settlement after them.

Before a call of the large model a run reserves what the call may use (`Ledger.reserve`). After the call its
usage replaces the reservation (`Ledger.settle`). Reservations count as used, so parallel runs together never
exceed a limit.

The protocol, for one account:

1. Each execution of a call has an entry of its own: the run, the number of the call, and a random suffix.
   Parallel branches of one checkpoint have the same run and number, but not the same entry.
2. ``used`` is the sum of all settled usage and all reservations. ``reserve`` grants within the limit minus
   ``used``, so ``used`` stays within the limit, except for tokens beyond ``max_tokens``.
3. A reservation counts in full until it is settled. The reservation of a process that died is never settled
   and counts in full, since the end of its call is unknown. A node that runs again after a crash reserves
   anew, under another entry. So a crash costs an account at most one call that was not made.
4. After `RESERVATION_S` seconds a reservation is listed as expired: its process is assumed to be dead. That
   changes no sum, and a call that ends even later is settled with its usage.
5. An operator who knows the end of a call releases its reservation (`Ledger.release`), or settles it.
"""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import NamedTuple, Protocol

from trim_graph import process
from trim_graph.errors import SettingsError
from trim_graph.storage.checkpoint import LEDGERS, existing_place
from trim_graph.storage.sqlite_file import BUSY_S, errors_named, open_file

from .usage import LargeUsage

RESERVATION_S = 3600.0
"""Default of the seconds after which a reservation is listed as expired."""


class Reservation(NamedTuple):
    """A reservation for one call.

    Attributes:
        account: Name of the account.
        entry: Name of the execution: run, number of the call in it, and a random suffix.
        amount: Reserved usage, which counts as used.
        owner: Host and process that made the reservation; None in a ledger of an earlier release.
        since: Unix time in seconds when it was made; None as for ``owner``.
        expires: Unix time in seconds after which it is listed as expired; None as for ``owner``.
    """

    account: str
    entry: str
    amount: LargeUsage
    owner: str | None
    since: float | None
    expires: float | None

    def expired(self, now: float | None = None) -> bool:
        """Returns whether the reservation has expired, by ``now`` in Unix time; default: by the clock."""
        return self.expires is None or self.expires <= (time.time() if now is None else now)


def this_owner() -> str:
    """Returns the name of this process as the owner of reservations."""
    return f"{socket.gethostname()}/{process.NAME}"


DecideAmount = Callable[[LargeUsage], LargeUsage | None]
"""Gets the used amount of an account, reservations included; returns the amount to reserve, or None."""


class Ledger(Protocol):
    """Protocol of a ledger. The methods block, so asynchronous callers use a thread.

    An account is any name: of a thread, a user, a user's day. An entry names one execution of a call, and is
    unique within its account. Runs use ``reserve``, ``settle`` and ``used``; operators use the rest.
    """

    def reserve(self, account: str, entry: str, decide_amount: DecideAmount) -> LargeUsage | None:
        """Reserves what a call may use.

        Args:
            account: Name of the account; its first use opens it.
            entry: Name of the execution. For an entry that has a reservation already, the method returns that
                one and does not call ``decide_amount``, since a request to a database may be repeated.
            decide_amount: Decides the amount while the account is locked. It must be quick, and may be called
                more than once.

        Returns:
            The reserved amount; None if ``decide_amount`` returned None.
        """
        ...

    def settle(self, account: str, entry: str, used: LargeUsage) -> None:
        """Replaces the reservation of a call by its usage; an unknown entry changes nothing."""
        ...

    def used(self, account: str) -> LargeUsage:
        """Returns the used amount of an account, reservations included."""
        ...

    def reservations(self, account: str | None = None) -> list[Reservation]:
        """Returns the open reservations, the oldest first.

        Args:
            account: Name of an account; None returns those of all accounts.
        """
        ...

    def release(self, account: str, entry: str) -> bool:
        """Removes the reservation of a call, as if the call had not been made.

        Returns:
            Whether there was such a reservation.
        """
        ...


class MemoryLedger:
    """A ledger in the memory of this process.

    Args:
        reservation_s: Seconds after which a reservation is listed as expired.
    """

    def __init__(self, reservation_s: float = RESERVATION_S) -> None:
        self._lock = threading.Lock()
        self._reservation_s = reservation_s
        self._used: dict[str, LargeUsage] = {}
        self._reserved: dict[str, dict[str, Reservation]] = {}

    def reserve(self, account: str, entry: str, decide_amount: DecideAmount) -> LargeUsage | None:
        """Reserves what a call may use; see `Ledger`."""
        with self._lock:
            reserved = self._reserved.setdefault(account, {})
            if entry not in reserved:
                wanted = decide_amount(self._sum(account))
                if wanted is None:
                    return None
                now = time.time()
                reserved[entry] = Reservation(
                    account, entry, wanted, this_owner(), now, now + self._reservation_s
                )
            return reserved[entry].amount

    def settle(self, account: str, entry: str, used: LargeUsage) -> None:
        """Replaces the reservation of a call by its usage."""
        with self._lock:
            if self._reserved.get(account, {}).pop(entry, None) is not None:
                self._used[account] = self._used.get(account, LargeUsage()).plus(used)

    def used(self, account: str) -> LargeUsage:
        """Returns the used amount of an account, reservations included."""
        with self._lock:
            return self._sum(account)

    def reservations(self, account: str | None = None) -> list[Reservation]:
        """Returns the open reservations; see `Ledger`."""
        with self._lock:
            found = [one for reserved in self._reserved.values() for one in reserved.values()]
        return [one for one in found if account in (None, one.account)]

    def release(self, account: str, entry: str) -> bool:
        """Removes the reservation of a call; see `Ledger`."""
        with self._lock:
            return self._reserved.get(account, {}).pop(entry, None) is not None

    def _sum(self, account: str) -> LargeUsage:
        total = self._used.get(account, LargeUsage())
        for one in self._reserved.get(account, {}).values():
            total = total.plus(one.amount)
        return total


def open_ledger(spec: str, *, reservation_s: float = RESERVATION_S) -> AbstractContextManager[Ledger]:
    """Opens the ledger that a specification names, as a context manager.

    For example::

        with open_ledger("sqlite:spend.db") as ledger:
            print(ledger.used("user-7"))

    Args:
        spec: ``memory``, ``sqlite:PATH``, ``postgresql://USER@HOST/DATABASE`` or ``env:NAME``, as for
            `trim_graph.open_checkpointer`; a ledger and checkpoints may share a file or a database.
        reservation_s: Seconds after which a reservation is listed as expired; more than a call may take.

    Raises:
        SettingsError: The specification is none of these, or the file or database cannot be opened.
    """
    if not 0 < reservation_s < float("inf"):
        raise SettingsError(f"reservation_s is {reservation_s}: choose a number of seconds above 0")
    place = existing_place(spec, "ledger")
    if place.kind == "memory":
        return nullcontext(MemoryLedger(reservation_s))
    if place.kind == "sqlite":
        return nullcontext(SqliteLedger(place.place, reservation_s))
    if place.kind == "postgresql":
        try:
            from .postgres import open_postgres_ledger
        except ImportError as error:
            raise SettingsError(
                'a ledger in PostgreSQL needs an extra: pip install "trim-graph[postgres]"'
            ) from error
        return open_postgres_ledger(place.place, reservation_s)
    raise SettingsError(f"ledger cannot be none: choose {LEDGERS}")


COLUMNS = {
    "trim_accounts": ("account", *LargeUsage._fields),
    "trim_reserved": ("account", "entry", *LargeUsage._fields),
}
"""Columns by table that a ledger in a database has, also one of an earlier release."""
LISTED = ", ".join((*COLUMNS["trim_reserved"], "owner", "since", "expires"))
"""Columns of a reservation, in the order of `Reservation`."""
_SQLITE_TABLES = """
CREATE TABLE IF NOT EXISTS trim_accounts (
    account TEXT PRIMARY KEY, large_tokens INTEGER, large_calls INTEGER, large_cost REAL);
CREATE TABLE IF NOT EXISTS trim_reserved (
    account TEXT, entry TEXT, large_tokens INTEGER, large_calls INTEGER, large_cost REAL,
    owner TEXT, since REAL, expires REAL, PRIMARY KEY (account, entry));
"""
_SQLITE_ADDED = {"owner": "TEXT", "since": "REAL", "expires": "REAL"}
"""Columns of ``trim_reserved`` that a ledger of an earlier release lacks."""
_SQLITE_SUM = """
SELECT COALESCE(SUM(large_tokens), 0), COALESCE(SUM(large_calls), 0), COALESCE(SUM(large_cost), 0.0) FROM (
    SELECT large_tokens, large_calls, large_cost FROM trim_accounts WHERE account = :account
    UNION ALL SELECT large_tokens, large_calls, large_cost FROM trim_reserved WHERE account = :account)
"""


class SqliteLedger:
    """A ledger in a SQLite file, for any number of threads and processes of one machine.

    Args:
        path: Path of the file, created if it is missing.
        reservation_s: Seconds after which a reservation is listed as expired.

    Raises:
        StorageError: The file is damaged or is no ledger; any method raises it if that shows later.
        SettingsError: The file cannot be opened.
    """

    def __init__(self, path: str, reservation_s: float = RESERVATION_S) -> None:
        self._path, self._reservation_s = path, reservation_s
        open_file("ledger", path, COLUMNS, check=_unreadable)
        with errors_named("ledger", path), closing(self._connect()) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(_SQLITE_TABLES)
        with self._transaction() as connection:
            _bring_up_to_date(connection)

    def reserve(self, account: str, entry: str, decide_amount: DecideAmount) -> LargeUsage | None:
        """Reserves what a call may use; see `trim_graph.budget.ledger.Ledger`."""
        with self._transaction() as connection:
            key = {"account": account, "entry": entry}
            query = "SELECT large_tokens, large_calls, large_cost FROM trim_reserved"
            row = connection.execute(f"{query} WHERE account = :account AND entry = :entry", key).fetchone()
            if row is not None:
                return LargeUsage(*row)
            wanted = decide_amount(LargeUsage(*connection.execute(_SQLITE_SUM, key).fetchone()))
            if wanted is not None:
                now = time.time()
                connection.execute(
                    f"INSERT INTO trim_reserved ({LISTED}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (account, entry, *wanted, this_owner(), now, now + self._reservation_s),
                )
            return wanted

    def settle(self, account: str, entry: str, used: LargeUsage) -> None:
        """Replaces the reservation of a call by its usage."""
        with self._transaction() as connection:
            gone = connection.execute(
                "DELETE FROM trim_reserved WHERE account = ? AND entry = ?", (account, entry)
            )
            if gone.rowcount:
                connection.execute(
                    "INSERT INTO trim_accounts VALUES (?, ?, ?, ?) ON CONFLICT (account) DO UPDATE SET "
                    "large_tokens = large_tokens + excluded.large_tokens, "
                    "large_calls = large_calls + excluded.large_calls, "
                    "large_cost = large_cost + excluded.large_cost",
                    (account, *used),
                )

    def used(self, account: str) -> LargeUsage:
        """Returns the used amount of an account, reservations included."""
        with errors_named("ledger", self._path), closing(self._connect()) as connection:
            return LargeUsage(*connection.execute(_SQLITE_SUM, {"account": account}).fetchone())

    def reservations(self, account: str | None = None) -> list[Reservation]:
        """Returns the open reservations; see `trim_graph.budget.ledger.Ledger`."""
        with errors_named("ledger", self._path), closing(self._connect()) as connection:
            rows = connection.execute(
                f"SELECT {LISTED} FROM trim_reserved WHERE ? IS NULL OR account = ? "
                "ORDER BY since, account, entry",
                (account, account),
            )
            return [Reservation(row[0], row[1], LargeUsage(*row[2:5]), *row[5:]) for row in rows]

    def release(self, account: str, entry: str) -> bool:
        """Removes the reservation of a call; see `trim_graph.budget.ledger.Ledger`."""
        with self._transaction() as connection:
            gone = connection.execute(
                "DELETE FROM trim_reserved WHERE account = ? AND entry = ?", (account, entry)
            )
            return bool(gone.rowcount)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with errors_named("ledger", self._path), closing(self._connect()) as connection:
            # The write lock comes first, so that no other process changes the account between read and write.
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Adds the columns that a ledger of an earlier release lacks."""
    found = {name for _, name, *_ in connection.execute("PRAGMA table_info(trim_reserved)")}
    for name, kind in _SQLITE_ADDED.items():
        if name not in found:
            connection.execute(f"ALTER TABLE trim_reserved ADD COLUMN {name} {kind}")


def _unreadable(connection: sqlite3.Connection) -> str:
    """Returns an error for an amount that is no number of at least 0, which SQLite sums as 0; else empty."""
    for table in COLUMNS:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
            continue
        row = connection.execute(
            f"SELECT account, large_tokens, large_calls, large_cost FROM {table} WHERE NOT ("
            "typeof(account) = 'text' AND typeof(large_tokens) = 'integer' AND large_tokens >= 0 "
            "AND typeof(large_calls) = 'integer' AND large_calls >= 0 "
            "AND typeof(large_cost) = 'real' AND large_cost >= 0) LIMIT 1"
        ).fetchone()
        if row is not None:
            account, *amounts = row
            return f"account {account!r} in table {table} has {amounts}, where numbers are wanted; correct it"
    return ""
