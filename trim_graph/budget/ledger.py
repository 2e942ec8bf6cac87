"""Accounts that several runs spend from: what is left is asked and set aside in one step.

A run that wants to call the large model sets aside what the call may use (`Ledger.reserve`); when the call
has ended, what it did use takes the place of that (`Ledger.settle`). In between nobody else can have it, so
runs at the same time never spend more than the limit together.

The protocol, for one account:

1. Each execution that may call the model has an entry of its own: the run, the number of the call, and a word
   that no other execution has. Branches of one checkpoint that go on at the same time have the same run and
   number, and share nothing.
2. ``used`` is the sum of what was settled and of all reservations. ``reserve`` grants within the limit minus
   that, so ``used`` stays within the limit, except for what a model writes beyond ``max_tokens``.
3. A reservation counts in full until it is settled. One whose owner has died is never settled: nobody saw
   the end of its call, so it goes on counting in full, as used. A node that runs again after a crash
   reserves anew, under another entry. So a crash costs an account at most one call that was not made.
4. After `RESERVATION_S` seconds nobody is believed to be at a call any more, and its reservation is listed
   as expired. That changes no sum: a call that ends later still is settled with what it used.
5. A person who knows the end of a call gives its reservation back (`Ledger.release`), or settles it.
"""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import NamedTuple, Protocol

from trim_graph.errors import SettingsError
from trim_graph.process import this_process
from trim_graph.storage.checkpoint import LEDGERS, existing_place
from trim_graph.storage.sqlite_file import BUSY_S, errors_named, open_file

from .usage import LargeUsage

RESERVATION_S = 3600.0
"""Seconds after which a reservation is listed as expired, unless `open_ledger` is given others."""


class Reservation(NamedTuple):
    """What is set aside for one call.

    Attributes:
        account: Of which it is a part.
        entry: Name of the call: run, number of the call in it, and a word that no other execution has.
        amount: Counts as used.
        owner: Host and process that reserved it; None in a ledger that an earlier release wrote.
        since: When, in seconds of Unix time; None as above.
        expires: When nobody is believed to be at the call any more; None as above.
    """

    account: str
    entry: str
    amount: LargeUsage
    owner: str | None
    since: float | None
    expires: float | None

    def expired(self, now: float | None = None) -> bool:
        """Tell whether nobody is believed to be at the call any more."""
        return self.expires is None or self.expires <= (time.time() if now is None else now)


def this_owner() -> str:
    """Return the name that this process has in ledgers."""
    return f"{socket.gethostname()}/{this_process()}"


Ask = Callable[[LargeUsage], LargeUsage | None]
"""Gets what an account has used, set aside included; says what to set aside, or None for nothing."""


class Ledger(Protocol):
    """Keeps accounts. The methods block: asynchronous callers use a thread.

    An account is any name: of a thread, a user, a user's day. An entry is the name of one execution of a
    call, unique within its account. Runs need ``reserve``, ``settle`` and ``used``; the rest is for whoever
    looks after the ledger.
    """

    def reserve(self, account: str, entry: str, ask: Ask) -> LargeUsage | None:
        """Set aside what a call may use.

        Args:
            account: Opened by its first use.
            entry: Asked for again, what it set aside before is returned and ``ask`` not called: a request
                to a database may be repeated.
            ask: Called while nobody else can change the account; must be quick and may be called again.

        Returns:
            What was set aside; None where ``ask`` said so.
        """
        ...

    def settle(self, account: str, entry: str, used: LargeUsage) -> None:
        """Put what a call has used in the place of what it set aside; an unknown entry changes nothing."""
        ...

    def used(self, account: str) -> LargeUsage:
        """What an account has used, set aside included."""
        ...

    def reservations(self, account: str | None = None) -> list[Reservation]:
        """List what is set aside, the oldest first.

        Args:
            account: Of one account; None: of all.
        """
        ...

    def release(self, account: str, entry: str) -> bool:
        """Give back what a call set aside, as if it had not been made.

        Returns:
            Whether there was such a reservation.
        """
        ...


class MemoryLedger:
    """Accounts in this process, gone with it.

    Args:
        reservation_s: Seconds after which a reservation is listed as expired.
    """

    def __init__(self, reservation_s: float = RESERVATION_S) -> None:
        self._lock = threading.Lock()
        self._reservation_s = reservation_s
        self._used: dict[str, LargeUsage] = {}
        self._aside: dict[str, dict[str, Reservation]] = {}

    def reserve(self, account: str, entry: str, ask: Ask) -> LargeUsage | None:
        """Set aside what a call may use; see `Ledger`."""
        with self._lock:
            aside = self._aside.setdefault(account, {})
            if entry not in aside:
                wanted = ask(self._sum(account))
                if wanted is None:
                    return None
                now = time.time()
                aside[entry] = Reservation(
                    account, entry, wanted, this_owner(), now, now + self._reservation_s
                )
            return aside[entry].amount

    def settle(self, account: str, entry: str, used: LargeUsage) -> None:
        """Put what a call has used in the place of what it had set aside."""
        with self._lock:
            if self._aside.get(account, {}).pop(entry, None) is not None:
                self._used[account] = self._used.get(account, LargeUsage()).plus(used)

    def used(self, account: str) -> LargeUsage:
        """What an account has used, set aside included."""
        with self._lock:
            return self._sum(account)

    def reservations(self, account: str | None = None) -> list[Reservation]:
        """List what is set aside; see `Ledger`."""
        with self._lock:
            found = [one for aside in self._aside.values() for one in aside.values()]
        return [one for one in found if account in (None, one.account)]

    def release(self, account: str, entry: str) -> bool:
        """Give back what a call set aside; see `Ledger`."""
        with self._lock:
            return self._aside.get(account, {}).pop(entry, None) is not None

    def _sum(self, account: str) -> LargeUsage:
        total = self._used.get(account, LargeUsage())
        for one in self._aside.get(account, {}).values():
            total = total.plus(one.amount)
        return total


def open_ledger(spec: str, *, reservation_s: float = RESERVATION_S) -> AbstractContextManager[Ledger]:
    """Open the ledger that a specification names.

    For example::

        with open_ledger("sqlite:spend.db") as ledger:
            print(ledger.used("user-7"))

    Args:
        spec: ``memory``, ``sqlite:PATH``, ``postgresql://USER@HOST/DATABASE`` or ``env:NAME``, as for
            `trim_graph.open_checkpointer`; a ledger and checkpoints may share a file or a database.
        reservation_s: Seconds after which a reservation is listed as expired: more than a call may take.

    Raises:
        SettingsError: The specification is none of these, or the place cannot be opened.
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
            from .ledger_postgres import open_postgres_ledger
        except ImportError as error:
            raise SettingsError(
                'a ledger in PostgreSQL needs an extra: pip install "trim-graph[postgres]"'
            ) from error
        return open_postgres_ledger(place.place, reservation_s)
    raise SettingsError(f"ledger cannot be none: choose {LEDGERS}")


_SQLITE_SPENT = ("large_tokens", "large_calls", "large_cost")
_SQLITE_COLUMNS = {
    "trim_accounts": ("account", *_SQLITE_SPENT),
    "trim_reserved": ("account", "entry", *_SQLITE_SPENT),
}
_SQLITE_TABLES = """
CREATE TABLE IF NOT EXISTS trim_accounts (
    account TEXT PRIMARY KEY, large_tokens INTEGER, large_calls INTEGER, large_cost REAL);
CREATE TABLE IF NOT EXISTS trim_reserved (
    account TEXT, entry TEXT, large_tokens INTEGER, large_calls INTEGER, large_cost REAL,
    owner TEXT, since REAL, expires REAL, PRIMARY KEY (account, entry));
"""
_SQLITE_ADDED = {"owner": "TEXT", "since": "REAL", "expires": "REAL"}
"""Columns of ``trim_reserved`` that a ledger of an earlier release lacks."""
_SQLITE_LISTED = "account, entry, large_tokens, large_calls, large_cost, owner, since, expires"
_SQLITE_SUM = """
SELECT COALESCE(SUM(large_tokens), 0), COALESCE(SUM(large_calls), 0), COALESCE(SUM(large_cost), 0.0) FROM (
    SELECT large_tokens, large_calls, large_cost FROM trim_accounts WHERE account = :account
    UNION ALL SELECT large_tokens, large_calls, large_cost FROM trim_reserved WHERE account = :account)
"""


class SqliteLedger:
    """Accounts in a file; any number of threads and processes.

    Args:
        path: Of the file, made where it is missing.
        reservation_s: Seconds after which a reservation is listed as expired.

    Raises:
        StorageError: The file is damaged or no ledger; by each method, where that shows later.
        SettingsError: It cannot be opened.
    """

    def __init__(self, path: str, reservation_s: float = RESERVATION_S) -> None:
        self._path, self._reservation_s = path, reservation_s
        open_file("ledger", path, _SQLITE_COLUMNS, check=_unreadable)
        with errors_named("ledger", path), closing(self._connect()) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(_SQLITE_TABLES)
        with self._transaction() as connection:
            _bring_up_to_date(connection)

    def reserve(self, account: str, entry: str, ask: Ask) -> LargeUsage | None:
        """Set aside what a call may use; see `trim_graph.budget.ledger.Ledger`."""
        with self._transaction() as connection:
            key = {"account": account, "entry": entry}
            query = "SELECT large_tokens, large_calls, large_cost FROM trim_reserved"
            row = connection.execute(f"{query} WHERE account = :account AND entry = :entry", key).fetchone()
            if row is not None:
                return LargeUsage(*row)
            wanted = ask(LargeUsage(*connection.execute(_SQLITE_SUM, key).fetchone()))
            if wanted is not None:
                now = time.time()
                connection.execute(
                    f"INSERT INTO trim_reserved ({_SQLITE_LISTED}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (account, entry, *wanted, this_owner(), now, now + self._reservation_s),
                )
            return wanted

    def settle(self, account: str, entry: str, used: LargeUsage) -> None:
        """Put what a call has used in the place of what it had set aside."""
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
        """What an account has used, set aside included."""
        with errors_named("ledger", self._path), closing(self._connect()) as connection:
            return LargeUsage(*connection.execute(_SQLITE_SUM, {"account": account}).fetchone())

    def reservations(self, account: str | None = None) -> list[Reservation]:
        """List what is set aside; see `trim_graph.budget.ledger.Ledger`."""
        with errors_named("ledger", self._path), closing(self._connect()) as connection:
            rows = connection.execute(
                f"SELECT {_SQLITE_LISTED} FROM trim_reserved WHERE ? IS NULL OR account = ? "
                "ORDER BY since, account, entry",
                (account, account),
            )
            return [Reservation(row[0], row[1], LargeUsage(*row[2:5]), *row[5:]) for row in rows]

    def release(self, account: str, entry: str) -> bool:
        """Give back what a call set aside; see `trim_graph.budget.ledger.Ledger`."""
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
            # The lock comes first: what is read then stays true until what is written.
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Add the columns that an earlier release did not write."""
    found = {name for _, name, *_ in connection.execute("PRAGMA table_info(trim_reserved)")}
    for name, kind in _SQLITE_ADDED.items():
        if name not in found:
            connection.execute(f"ALTER TABLE trim_reserved ADD COLUMN {name} {kind}")


def _unreadable(connection: sqlite3.Connection) -> str:
    """Find an amount that is no number, or below 0: SQLite would count it as nothing."""
    for table in _SQLITE_COLUMNS:
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
