"""A large call and the accounts that runs share: set aside before it, settled with what it used."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from trim_graph.accounts import Accounts, Drawn, amount_between
from trim_graph.budget import Spend, nothing_spent
from trim_graph.events import emit
from trim_graph.ledger import Ledger
from trim_graph.settings import settings_of
from trim_graph.state import Order, TrimState

_GIVING_BACK: set[asyncio.Future[None]] = set()
"""Tasks under way: an event loop itself does not keep them."""


class Drawing:
    """What one large call draws from the accounts of its run; nothing, where there are none.

    Args:
        state: Of the run.
        order: Of the call; another writer's draws nothing.
        ledger: The graph's.

    Raises:
        SettingsError: The run draws from accounts, and the graph has no ledger.
    """

    def __init__(self, state: TrimState, order: Order, ledger: Ledger | None) -> None:
        limits = state["run"].get("accounts") if order["writer"] == "large" else None
        self._accounts = Accounts(limits, ledger)
        self._settings = settings_of(state["run"])
        in_flight = state.get("in_flight")
        self._prompt_tokens = in_flight["prompt_tokens"] if in_flight else 0
        # Another one for each execution: branches of one checkpoint may make the same call at the same time.
        self._entry = f"{state['run']['id']}.{state['spend']['large']['calls']}.{uuid.uuid4().hex}"

    def __bool__(self) -> bool:
        return bool(self._accounts)

    def reserve(self, wanted: int) -> Drawn:
        """Set aside what the call may use."""
        if not self._accounts:
            return Drawn(wanted)
        return self._accounts.reserve(
            self._entry,
            wanted=wanted,
            prompt_tokens=self._prompt_tokens,
            budget=self._settings.budget,
            prices=self._settings.prices,
        )

    async def areserve(self, wanted: int) -> Drawn:
        """As `reserve`, without blocking; what is set aside for a run cancelled meanwhile is given back."""
        if not self._accounts:
            return Drawn(wanted)
        reserving = asyncio.ensure_future(asyncio.to_thread(self.reserve, wanted))
        try:
            return await asyncio.shield(reserving)
        except asyncio.CancelledError:
            # A task of its own, which goes on where this one is cancelled again.
            giving_back = asyncio.ensure_future(self._give_back(reserving))
            _GIVING_BACK.add(giving_back)
            giving_back.add_done_callback(_GIVING_BACK.discard)
            await asyncio.shield(giving_back)
            raise

    async def _give_back(self, reserving: asyncio.Future[Drawn]) -> None:
        await asyncio.wait([reserving])
        if reserving.exception() is None and reserving.result().refused is None:
            nothing = nothing_spent()
            await asyncio.to_thread(self.settle, nothing, nothing)

    def settle(self, before: Spend, after: Spend) -> str | None:
        """Tell the ledger what the call has used.

        Returns:
            A note where the ledger cannot be told: an answer that was paid for is not thrown away for that.
        """
        if not self._accounts:
            return None
        try:
            self._accounts.settle(self._entry, amount_between(before, after, self._settings.prices))
        except Exception as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            note = f"the ledger could not be told what a call used, so all that was set aside counts: {told}"
            emit("note", text=note)
            return note
        return None


def noting(update: dict[str, Any], state: TrimState, note: str | None) -> dict[str, Any]:
    """Add a note to a node's update."""
    return update if note is None else update | {"notes": [*update.get("notes", state["notes"]), note]}
