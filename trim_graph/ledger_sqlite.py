"""A ledger in a SQLite file, for processes on one machine."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from .budget.ledger import RESERVATION_S, Ask, Reservation, this_owner
from .budget.usage import Amount
from .sqlite_file import BUSY_S, errors_named, open_file

_SPENT = ("large_tokens", "large_calls", "large_cost")
_COLUMNS = {"trim_accounts": ("account", *_SPENT), "trim_reserved": ("account", "entry", *_SPENT)}
_TABLES = """
CREATE TABLE IF NOT EXISTS trim_accounts (
    account TEXT PRIMARY KEY, large_tokens INTEGER, large_calls INTEGER, large_cost REAL);
CREATE TABLE IF NOT EXISTS trim_reserved (
    account TEXT, entry TEXT, large_tokens INTEGER, large_calls INTEGER, large_cost REAL,
    owner TEXT, since REAL, expires REAL, PRIMARY KEY (account, entry));
"""
_ADDED = {"owner": "TEXT", "since": "REAL", "expires": "REAL"}
"""Columns of ``trim_reserved`` that a ledger of an earlier release lacks."""
_LISTED = "account, entry, large_tokens, large_calls, large_cost, owner, since, expires"
_SUM = """
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
        open_file("ledger", path, _COLUMNS, check=_unreadable)
        with errors_named("ledger", path), closing(self._connect()) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(_TABLES)
        with self._transaction() as connection:
            _bring_up_to_date(connection)

    def reserve(self, account: str, entry: str, ask: Ask) -> Amount | None:
        """Set aside what a call may use; see `trim_graph.budget.ledger.Ledger`."""
        with self._transaction() as connection:
            key = {"account": account, "entry": entry}
            query = "SELECT large_tokens, large_calls, large_cost FROM trim_reserved"
            row = connection.execute(f"{query} WHERE account = :account AND entry = :entry", key).fetchone()
            if row is not None:
                return Amount(*row)
            wanted = ask(Amount(*connection.execute(_SUM, key).fetchone()))
            if wanted is not None:
                now = time.time()
                connection.execute(
                    f"INSERT INTO trim_reserved ({_LISTED}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (account, entry, *wanted, this_owner(), now, now + self._reservation_s),
                )
            return wanted

    def settle(self, account: str, entry: str, used: Amount) -> None:
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

    def used(self, account: str) -> Amount:
        """What an account has used, set aside included."""
        with errors_named("ledger", self._path), closing(self._connect()) as connection:
            return Amount(*connection.execute(_SUM, {"account": account}).fetchone())

    def reservations(self, account: str | None = None) -> list[Reservation]:
        """List what is set aside; see `trim_graph.budget.ledger.Ledger`."""
        with errors_named("ledger", self._path), closing(self._connect()) as connection:
            rows = connection.execute(
                f"SELECT {_LISTED} FROM trim_reserved WHERE ? IS NULL OR account = ? "
                "ORDER BY since, account, entry",
                (account, account),
            )
            return [Reservation(row[0], row[1], Amount(*row[2:5]), *row[5:]) for row in rows]

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
    for name, kind in _ADDED.items():
        if name not in found:
            connection.execute(f"ALTER TABLE trim_reserved ADD COLUMN {name} {kind}")


def _unreadable(connection: sqlite3.Connection) -> str:
    """Find an amount that is no number, or below 0: SQLite would count it as nothing."""
    for table in _COLUMNS:
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
