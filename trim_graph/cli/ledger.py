"""`trim-graph ledger`: what calls have reserved in a ledger, and how it is released."""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager
from pathlib import Path

from trim_graph.budget.ledger import Ledger, Reservation, open_ledger
from trim_graph.errors import InputError, SettingsError, counted
from trim_graph.storage.checkpoint import existing_place

from .options import LedgerListOptions, LedgerReleaseOptions


def run_list(options: LedgerListOptions) -> None:
    """Prints the reservations of a ledger, the oldest first.

    Raises:
        TrimError: There is no such ledger, or it cannot be opened.
    """
    with _existing(options.place) as ledger:
        found = ledger.reservations(options.account)
    if options.as_json:
        rows = [{**one._asdict(), "amount": one.amount._asdict(), "expired": one.expired()} for one in found]
        print(json.dumps(rows, indent=2))
        return
    for one in found:
        print(_line(one))
    expired = sum(one.expired() for one in found)
    print(
        f"{counted(len(found), 'reservation')}, {expired} of them expired; all of them count as used in full"
    )


def run_release(options: LedgerReleaseOptions) -> None:
    """Gives reservations of an account back, or charges them for good, and prints which.

    Raises:
        TrimError: There is no such ledger or no such reservation, or it is not said which.
    """
    account, entry, expired = options.account, options.entry, options.expired
    if (entry is None) != expired:
        raise InputError("say which reservations: --entry ENTRY, or --expired for all that have expired")
    with _existing(options.place) as ledger:
        found = [one for one in ledger.reservations(account) if entry in (None, one.entry)]
        if expired:
            found = [one for one in found if one.expired()]
        elif not found:
            raise InputError(f"{account} has no reservation {entry}: see trim-graph ledger list")
        for one in found:
            if options.charge:
                ledger.settle(one.account, one.entry, one.amount)
            else:
                ledger.release(one.account, one.entry)
            print(_line(one))
    done = "charged in full" if options.charge else "given back"
    print(f"{counted(len(found), 'reservation')} {done}")


def _existing(place: str) -> AbstractContextManager[Ledger]:
    """Opens a ledger that is there already."""
    where = existing_place(place, "ledger")
    if not where.lasts:
        raise SettingsError(
            f"{place} is no ledger that lasts: give sqlite:PATH, postgresql://... or env:NAME"
        )
    if where.kind == "sqlite" and not Path(where.place).is_file():
        raise InputError(f"{where.place}: no such file")
    return open_ledger(place)


def _line(one: Reservation) -> str:
    amount = one.amount
    parts = [f"{_in_line(one.account)} {_in_line(one.entry)}", counted(amount.large_tokens, "token")]
    if amount.large_cost:
        parts.append(f"cost {amount.large_cost:.6g}")
    parts.append("of an earlier release" if one.since is None else f"{time.time() - one.since:.0f} s old")
    parts.append(one.owner or "owner unknown")
    return ", ".join(parts) + ("; expired" if one.expired() else "")


def _in_line(name: str) -> str:
    """Returns a name on one line: a line break in it would look like another reservation."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)
