"""A ledger in PostgreSQL, for processes on many machines. Needs the extra ``postgres``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import Connection
from psycopg_pool import ConnectionPool

from .checkpoint_postgres import open_pool, taking_turns
from .ledger import Amount, Ask

_TABLES = """
CREATE TABLE IF NOT EXISTS trim_accounts (
    account TEXT PRIMARY KEY, large_tokens BIGINT NOT NULL DEFAULT 0, large_calls BIGINT NOT NULL DEFAULT 0,
    large_cost DOUBLE PRECISION NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS trim_reserved (
    account TEXT NOT NULL, entry TEXT NOT NULL, large_tokens BIGINT NOT NULL, large_calls BIGINT NOT NULL,
    large_cost DOUBLE PRECISION NOT NULL, PRIMARY KEY (account, entry));
"""
_SUM = """
SELECT COALESCE(SUM(large_tokens), 0)::BIGINT AS large_tokens, COALESCE(SUM(large_calls), 0)::BIGINT
    AS large_calls, COALESCE(SUM(large_cost), 0) AS large_cost FROM (
    SELECT large_tokens, large_calls, large_cost FROM trim_accounts WHERE account = %(account)s
    UNION ALL SELECT large_tokens, large_calls, large_cost FROM trim_reserved WHERE account = %(account)s
) AS a
"""


class PostgresLedger:
    """Accounts in a database.

    Args:
        pool: Connections to it.
    """

    def __init__(self, pool: ConnectionPool[Connection[dict[str, Any]]]) -> None:
        self._pool = pool

    def reserve(self, account: str, entry: str, ask: Ask) -> Amount | None:
        """Set aside what a call may use; see `trim_graph.ledger.Ledger`."""
        with self._pool.connection() as connection, connection.transaction():
            # The row of the account is its lock.
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
                return Amount(**row)
            wanted = ask(self._sum(connection, account))
            if wanted is not None:
                connection.execute(
                    "INSERT INTO trim_reserved VALUES (%s, %s, %s, %s, %s)", [account, entry, *wanted]
                )
            return wanted

    def settle(self, account: str, entry: str, used: Amount) -> None:
        """Put what a call has used in the place of what it had set aside."""
        with self._pool.connection() as connection, connection.transaction():
            gone = connection.execute(
                "DELETE FROM trim_reserved WHERE account = %s AND entry = %s", [account, entry]
            )
            if gone.rowcount:
                connection.execute(
                    "UPDATE trim_accounts SET large_tokens = large_tokens + %s, "
                    "large_calls = large_calls + %s, large_cost = large_cost + %s WHERE account = %s",
                    [*used, account],
                )

    def used(self, account: str) -> Amount:
        """What an account has used, set aside included."""
        with self._pool.connection() as connection:
            return self._sum(connection, account)

    @staticmethod
    def _sum(connection: Connection[dict[str, Any]], account: str) -> Amount:
        row = connection.execute(_SUM, {"account": account}).fetchone()
        return Amount(**row) if row else Amount()


@contextmanager
def open_postgres_ledger(url: str) -> Iterator[PostgresLedger]:
    """Make the tables where they are missing, and open.

    Args:
        url: A libpq connection URL.

    Raises:
        SettingsError: The database cannot be opened.
    """
    with taking_turns(url) as connection:
        connection.execute(_TABLES, prepare=False)
    with open_pool(url) as pool:
        yield PostgresLedger(pool)
