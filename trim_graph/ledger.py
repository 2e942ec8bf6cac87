"""Accounts that several runs spend from: what is left is asked and set aside in one step.

A run that wants to call the large model sets aside what the call may use (`Ledger.reserve`); when the call
has ended, what it did use takes the place of that (`Ledger.settle`). In between nobody else can have it, so
runs at the same time never spend more than the limit together. What a lost process had set aside stays set
aside.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

from .checkpoint import LEDGERS, existing_place
from .errors import SettingsError


class Amount(NamedTuple):
    """What calls of the large model use.

    Attributes:
        large_tokens: Tokens generated.
        large_calls: How many calls.
        large_cost: Their cost by the price table, prompts included.
    """

    large_tokens: int = 0
    large_calls: int = 0
    large_cost: float = 0.0

    def plus(self, other: Amount) -> Amount:
        """Add, field by field."""
        return Amount(
            self.large_tokens + other.large_tokens,
            self.large_calls + other.large_calls,
            self.large_cost + other.large_cost,
        )


Ask = Callable[[Amount], Amount | None]
"""Gets what an account has used, set aside included; says what to set aside, or None for nothing."""


class Ledger(Protocol):
    """Keeps accounts. The methods block: asynchronous callers use a thread.

    An account is any name: of a thread, a user, a user's day. An entry is the name of one call, unique
    within its account.
    """

    def reserve(self, account: str, entry: str, ask: Ask) -> Amount | None:
        """Set aside what a call may use.

        Args:
            account: Opened by its first use.
            entry: Asked for again, what it set aside before is returned and ``ask`` not called: a node that
                runs a second time after a crash sets nothing aside twice.
            ask: Called while nobody else can change the account; must be quick and may be called again.

        Returns:
            What was set aside; None where ``ask`` said so.
        """
        ...

    def settle(self, account: str, entry: str, used: Amount) -> None:
        """Put what a call has used in the place of what it set aside; an unknown entry changes nothing."""
        ...

    def used(self, account: str) -> Amount:
        """What an account has used, set aside included."""
        ...


class MemoryLedger:
    """Accounts in this process, gone with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: dict[str, Amount] = {}
        self._entries: dict[str, dict[str, Amount]] = {}

    def reserve(self, account: str, entry: str, ask: Ask) -> Amount | None:
        """Set aside what a call may use; see `Ledger`."""
        with self._lock:
            entries = self._entries.setdefault(account, {})
            if entry not in entries:
                wanted = ask(self._sum(account))
                if wanted is None:
                    return None
                entries[entry] = wanted
            return entries[entry]

    def settle(self, account: str, entry: str, used: Amount) -> None:
        """Put what a call has used in the place of what it had set aside."""
        with self._lock:
            if self._entries.get(account, {}).pop(entry, None) is not None:
                self._used[account] = self._used.get(account, Amount()).plus(used)

    def used(self, account: str) -> Amount:
        """What an account has used, set aside included."""
        with self._lock:
            return self._sum(account)

    def _sum(self, account: str) -> Amount:
        total = self._used.get(account, Amount())
        for aside in self._entries.get(account, {}).values():
            total = total.plus(aside)
        return total


def open_ledger(spec: str) -> AbstractContextManager[Ledger]:
    """Open the ledger that a specification names.

    For example::

        with open_ledger("sqlite:spend.db") as ledger:
            print(ledger.used("user-7"))

    Args:
        spec: ``memory``, ``sqlite:PATH``, ``postgresql://USER@HOST/DATABASE`` or ``env:NAME``, as for
            `trim_graph.open_checkpointer`; a ledger and checkpoints may share a file or a database.

    Raises:
        SettingsError: The specification is none of these, or the place cannot be opened.
    """
    place = existing_place(spec, "ledger")
    if place.kind == "memory":
        return nullcontext(MemoryLedger())
    if place.kind == "sqlite":
        from .ledger_sqlite import SqliteLedger

        return nullcontext(SqliteLedger(place.place))
    if place.kind == "postgresql":
        try:
            from .ledger_postgres import open_postgres_ledger
        except ImportError as error:
            raise SettingsError(
                'a ledger in PostgreSQL needs an extra: pip install "trim-graph[postgres]"'
            ) from error
        return open_postgres_ledger(place.place)
    raise SettingsError(f"ledger cannot be none: choose {LEDGERS}")
