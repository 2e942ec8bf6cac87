"""The commands that look after a ledger."""

from __future__ import annotations

from typing import Annotated

import typer

from .reporting import failures_reported

ledger = typer.Typer(name="ledger", rich_markup_mode=None, help="Look after a ledger of shared budgets.")

Place = Annotated[
    str,
    typer.Argument(metavar="PLACE", help="As ledger: in a file: sqlite:PATH, postgresql://..., env:NAME."),
]


@ledger.command("list", short_help="Show what calls have set aside.")
def list_reservations(
    place: Place,
    account: Annotated[str | None, typer.Option(help="Of one account, such as user:ada.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Show what calls of the large model have set aside in a ledger, the oldest first.

    A reservation counts as used in full until its call has ended. One that has expired belongs to a call
    whose end nobody saw, of a process that was killed for instance.
    """
    with failures_reported():
        from .ledgers import run_list

        run_list(place, account, as_json)


@ledger.command(short_help="Give back what a lost call has set aside.")
def release(
    place: Place,
    account: Annotated[str, typer.Option(help="Whose, such as user:ada.")],
    entry: Annotated[str | None, typer.Option(help="One reservation, as list shows it.")] = None,
    expired: Annotated[bool, typer.Option("--expired", help="All that have expired.")] = False,
    charge: Annotated[bool, typer.Option("--charge", help="Charge them in full instead, for good.")] = False,
) -> None:
    """Give reservations back, as if their calls had not been made; with --charge, settle them in full.

    Nobody saw the end of these calls: what is given back may have been generated all the same.
    """
    with failures_reported():
        from .ledgers import run_release

        run_release(place, account, entry, expired=expired, charge=charge)
