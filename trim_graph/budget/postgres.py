"""A ledger in PostgreSQL, for processes on many machines. Needs the extra ``postgres``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import Connection
from psycopg_pool import ConnectionPool

from trim_graph.storage.postgres import errors_named, open_pool, refuse_foreign, setup_connection

from .ledger import COLUMNS, LISTED, RESERVATION_S, DecideAmount, Reservation, this_owner
from .usage import LargeUsage

_TABLES = """
CREATE TABLE IF NOT EXISTS trim_accounts (
    account TEXT PRIMARY KEY, large_tokens BIGINT NOT NULL DEFAULT 0, large_calls BIGINT NOT NULL DEFAULT 0,
    large_cost DOUBLE PRECISION NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS trim_reserved (
    account TEXT NOT NULL, entry TEXT NOT NULL, large_tokens BIGINT NOT NULL, large_calls BIGINT NOT NULL,
    large_cost DOUBLE PRECISION NOT NULL, PRIMARY KEY (account, entry));
"""
_ADDED = {"owner": "TEXT", "since": "DOUBLE PRECISION", "expires": "DOUBLE PRECISION"}
"""Columns of ``trim_reserved`` that a ledger of an earlier release lacks."""
_SUM = """
SELECT COALESCE(SUM(large_tokens), 0)::BIGINT AS large_tokens, COALESCE(SUM(large_calls), 0)::BIGINT
    AS large_calls, COALESCE(SUM(large_cost), 0) AS large_cost FROM (
    SELECT large_tokens, large_calls, large_cost FROM trim_accounts WHERE account = %(account)s
    UNION ALL SELECT large_tokens, large_calls, large_cost FROM trim_reserved WHERE account = %(account)s
) AS a
"""


class PostgresLedger:
    """A ledger in a PostgreSQL database, for processes on any number of machines.

    Args:
        pool: Pool of connections to the database.
        url: URL of the database, for error messages.
        reservation_s: Seconds after which a reservation is listed as expired.
    """

    def __init__(
        self,
        pool: ConnectionPool[Connection[dict[str, Any]]],
        url: str,
        reservation_s: float = RESERVATION_S,
    ) -> None:
        self._pool, self._url, self._reservation_s = pool, url, reservation_s

    def reserve(self, account: str, entry: str, decide_amount: DecideAmount) -> LargeUsage | None:
        """Reserves what a call may use; see `trim_graph.budget.ledger.Ledger`."""
        with self._connection() as connection, connection.transaction():
            # The account's row serves as its lock.
            connection.execute(
                "INSERT INTO trim_accounts (account) VALUES (%s) ON CONFLICT DO NOTHING", [account]
            )
            connection.execute("SELECT 1 FROM trim_accounts WHERE account = %s FOR UPDATE", [account])
            row = connection.execute(
                "SELECT large_tokens, large_calls, large_cost FROM trim_reserved "
                "WHERE account = %s AND entry = %s",
                [account, entry],
            ).fetchone()
            if row is not None:
                return LargeUsage(**row)
            wanted = decide_amount(self._sum(connection, account))
            if wanted is not None:
                now = time.time()
                connection.execute(
                    f"INSERT INTO trim_reserved ({LISTED}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
                    [account, entry, *wanted, this_owner(), now, now + self._reservation_s],
                )
            return wanted

    def settle(self, account: str, entry: str, used: LargeUsage) -> None:
        """Replaces the reservation of a call by its usage."""
        with self._connection() as connection, connection.transaction():
            gone = connection.execute(
                "DELETE FROM trim_reserved WHERE account = %s AND entry = %s", [account, entry]
            )
            if gone.rowcount:
                connection.execute(
                    "UPDATE trim_accounts SET large_tokens = large_tokens + %s, "
                    "large_calls = large_calls + %s, large_cost = large_cost + %s WHERE account = %s",
                    [*used, account],
                )

    def used(self, account: str) -> LargeUsage:
        """Returns the used amount of an account, reservations included."""
        with self._connection() as connection:
            return self._sum(connection, account)

    def reservations(self, account: str | None = None) -> list[Reservation]:
        """Returns the open reservations; see `trim_graph.budget.ledger.Ledger`."""
        with self._connection() as connection:
            rows = connection.execute(
                f"SELECT {LISTED} FROM trim_reserved "
                "WHERE %(account)s::TEXT IS NULL OR account = %(account)s "
                "ORDER BY since NULLS FIRST, account, entry",
                {"account": account},
            ).fetchall()
        found = (list(row.values()) for row in rows)
        return [Reservation(row[0], row[1], LargeUsage(*row[2:5]), *row[5:]) for row in found]

    def release(self, account: str, entry: str) -> bool:
        """Removes the reservation of a call; see `trim_graph.budget.ledger.Ledger`."""
        with self._connection() as connection:
            gone = connection.execute(
                "DELETE FROM trim_reserved WHERE account = %s AND entry = %s", [account, entry]
            )
            return bool(gone.rowcount)

    @contextmanager
    def _connection(self) -> Iterator[Connection[dict[str, Any]]]:
        with errors_named(self._url), self._pool.connection() as connection:
            yield connection

    @staticmethod
    def _sum(connection: Connection[dict[str, Any]], account: str) -> LargeUsage:
        row = connection.execute(_SUM, {"account": account}).fetchone()
        return LargeUsage(**row) if row else LargeUsage()


@contextmanager
def open_postgres_ledger(url: str, reservation_s: float = RESERVATION_S) -> Iterator[PostgresLedger]:
    """Opens the ledger of a database; creates its tables, or upgrades those of an earlier release.

    Args:
        url: A libpq connection URL.
        reservation_s: Seconds after which a reservation is listed as expired.

    Raises:
        SettingsError: The database cannot be opened.
        StorageError: The database holds other tables of these names.
    """
    with errors_named(url), setup_connection(url) as connection:
        refuse_foreign(url, connection, COLUMNS)
        connection.execute(_TABLES, prepare=False)
        _bring_up_to_date(connection)
    with open_pool(url) as pool:
        yield PostgresLedger(pool, url, reservation_s)


def _bring_up_to_date(connection: Connection[dict[str, Any]]) -> None:
    """Adds the columns that a ledger of an earlier release lacks."""
    columns = connection.execute("SELECT * FROM trim_reserved LIMIT 0").description or ()
    found = {column.name for column in columns}
    for name, kind in _ADDED.items():
        if name not in found:
            connection.execute(f"ALTER TABLE trim_reserved ADD COLUMN {name} {kind}")
