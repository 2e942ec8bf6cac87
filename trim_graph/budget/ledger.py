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
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

from trim_graph.checkpoint import LEDGERS, existing_place
from trim_graph.errors import SettingsError
from trim_graph.process import this_process

from .usage import Amount

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
    amount: Amount
    owner: str | None
    since: float | None
    expires: float | None

    def expired(self, now: float | None = None) -> bool:
        """Tell whether nobody is believed to be at the call any more."""
        return self.expires is None or self.expires <= (time.time() if now is None else now)


def this_owner() -> str:
    """Return the name that this process has in ledgers."""
    return f"{socket.gethostname()}/{this_process()}"


Ask = Callable[[Amount], Amount | None]
"""Gets what an account has used, set aside included; says what to set aside, or None for nothing."""


class Ledger(Protocol):
    """Keeps accounts. The methods block: asynchronous callers use a thread.

    An account is any name: of a thread, a user, a user's day. An entry is the name of one execution of a
    call, unique within its account. Runs need ``reserve``, ``settle`` and ``used``; the rest is for whoever
    looks after the ledger.
    """

    def reserve(self, account: str, entry: str, ask: Ask) -> Amount | None:
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

    def settle(self, account: str, entry: str, used: Amount) -> None:
        """Put what a call has used in the place of what it set aside; an unknown entry changes nothing."""
        ...

    def used(self, account: str) -> Amount:
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
        self._used: dict[str, Amount] = {}
        self._aside: dict[str, dict[str, Reservation]] = {}

    def reserve(self, account: str, entry: str, ask: Ask) -> Amount | None:
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

    def settle(self, account: str, entry: str, used: Amount) -> None:
        """Put what a call has used in the place of what it had set aside."""
        with self._lock:
            if self._aside.get(account, {}).pop(entry, None) is not None:
                self._used[account] = self._used.get(account, Amount()).plus(used)

    def used(self, account: str) -> Amount:
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

    def _sum(self, account: str) -> Amount:
        total = self._used.get(account, Amount())
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
        from trim_graph.ledger_sqlite import SqliteLedger

        return nullcontext(SqliteLedger(place.place, reservation_s))
    if place.kind == "postgresql":
        try:
            from trim_graph.ledger_postgres import open_postgres_ledger
        except ImportError as error:
            raise SettingsError(
                'a ledger in PostgreSQL needs an extra: pip install "trim-graph[postgres]"'
            ) from error
        return open_postgres_ledger(place.place, reservation_s)
    raise SettingsError(f"ledger cannot be none: choose {LEDGERS}")
