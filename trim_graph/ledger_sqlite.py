"""A ledger in a SQLite file, for processes on one machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from .errors import SettingsError
from .ledger import Amount, Ask

_BUSY_S = 30.0
_TABLES = """
CREATE TABLE IF NOT EXISTS trim_accounts (
    account TEXT PRIMARY KEY, large_tokens INTEGER, large_calls INTEGER, large_cost REAL);
CREATE TABLE IF NOT EXISTS trim_reserved (
    account TEXT, entry TEXT, large_tokens INTEGER, large_calls INTEGER, large_cost REAL,
    PRIMARY KEY (account, entry));
"""
_SUM = """
SELECT COALESCE(SUM(large_tokens), 0), COALESCE(SUM(large_calls), 0), COALESCE(SUM(large_cost), 0.0) FROM (
    SELECT large_tokens, large_calls, large_cost FROM trim_accounts WHERE account = :account
    UNION ALL SELECT large_tokens, large_calls, large_cost FROM trim_reserved WHERE account = :account)
"""


class SqliteLedger:
    """Accounts in a file; any number of threads and processes.

    Args:
        path: Of the file, made where it is missing.

    Raises:
        SettingsError: The file cannot be opened, or is no SQLite file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            with closing(self._connect()) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            raise SettingsError(f"the ledger {path} cannot be opened: {error}") from error

    def reserve(self, account: str, entry: str, ask: Ask) -> Amount | None:
        """Set aside what a call may use; see `trim_graph.ledger.Ledger`."""
        with self._transaction() as connection:
            key = {"account": account, "entry": entry}
            query = "SELECT large_tokens, large_calls, large_cost FROM trim_reserved"
            row = connection.execute(f"{query} WHERE account = :account AND entry = :entry", key).fetchone()
            if row is not None:
                return Amount(*row)
            wanted = ask(Amount(*connection.execute(_SUM, key).fetchone()))
            if wanted is not None:
                connection.execute(
                    "INSERT INTO trim_reserved VALUES (?, ?, ?, ?, ?)", (account, entry, *wanted)
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
        with closing(self._connect()) as connection:
            return Amount(*connection.execute(_SUM, {"account": account}).fetchone())

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with closing(self._connect()) as connection:
            # The lock comes first: what is read then stays true until what is written.
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
