"""Quotas that several runs share: what one call of the large model sets aside, and what it has used."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from trim_graph.errors import SettingsError

from .ledger import Ledger
from .limits import Budget, Quota, Quotas, RemainingBudget, grant
from .usage import LargeUsage, Prices, Usage, large_usage, zero_usage


def open_accounts(
    quotas: Quotas, *, user: str | None, thread: str | None, ledger: Ledger | None
) -> dict[str, dict[str, Any]]:
    """Name the accounts that a run draws from, for its state.

    Args:
        quotas: Of the run.
        user: As the context names it.
        thread: Id of the thread.
        ledger: The graph's.

    Returns:
        The limits of each account by its name, ``thread:ID`` or ``user:NAME``.

    Raises:
        SettingsError: A name is missing, or the graph has no ledger.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind, name, missing in (
        ("thread", thread, 'give {"configurable": {"thread_id": ...}}'),
        ("user", user, "give TrimContext(user=...)"),
    ):
        quota: Quota | None = getattr(quotas, kind)
        if quota is None:
            continue
        if ledger is None:
            raise SettingsError(
                f"quotas.{kind} is set, but the graph was built without a ledger that counts: pass "
                "ledger=..., of trim_graph.open_ledger"
            )
        if not name:
            raise SettingsError(f"quotas.{kind} is set, but the call does not name its {kind}: {missing}")
        found[f"{kind}:{name}"] = quota.model_dump(exclude_none=True)
    return found


@dataclass(frozen=True, slots=True)
class Grant:
    """What was set aside for a call.

    Attributes:
        tokens: At most what was asked for.
        exhausted_limit: The limit that left nothing useful, and whose it is; None where the call may be made.
    """

    tokens: int
    exhausted_limit: str | None = None


class Reservations:
    """What one run sets aside, and has used, in the accounts that it draws from.

    Args:
        limits: As `open_accounts` returned them.
        ledger: Keeps them.

    Raises:
        SettingsError: The run draws from accounts, and the graph has no ledger.
    """

    def __init__(self, limits: Mapping[str, Mapping[str, Any]] | None, ledger: Ledger | None) -> None:
        self._limits = {name: Quota(**limit) for name, limit in (limits or {}).items()}
        if self._limits and ledger is None:
            raise SettingsError(
                f"this run draws from {', '.join(self._limits)}: build the graph with its ledger to go on"
            )
        self._ledger = ledger

    def __bool__(self) -> bool:
        return bool(self._limits)

    def left(self) -> dict[str, RemainingBudget]:
        """What each account has left now."""
        return {name: limit.left(self._used(name)) for name, limit in self._limits.items()}

    def used(self) -> dict[str, dict[str, float]]:
        """What each account has used, by all its runs, set aside included."""
        return {name: self._used(name)._asdict() for name in self._limits}

    def _used(self, name: str) -> LargeUsage:
        assert self._ledger is not None
        return self._ledger.used(name)

    def reserve(
        self, entry: str, *, wanted: int, prompt_tokens: int, budget: Budget, prices: Prices
    ) -> Grant:
        """Set aside what a large call may use, in every account.

        Args:
            entry: Name of the call.
            wanted: Its ``max_tokens``.
            prompt_tokens: Size of its prompt, or an upper bound.
            budget: Of the run, which says how few tokens are not worth a call.
            prices: For limits on cost.
        """
        with ExitStack() as given_back:
            for name, limit in self._limits.items():
                granted = self._reserve_one(name, limit, entry, wanted, prompt_tokens, budget, prices)
                if granted.exhausted_limit:
                    return granted
                given_back.callback(self._settle_one, name, entry, LargeUsage())
                wanted = granted.tokens
            given_back.pop_all()
        return Grant(wanted)

    def _reserve_one(
        self,
        name: str,
        limit: Quota,
        entry: str,
        wanted: int,
        prompt_tokens: int,
        budget: Budget,
        prices: Prices,
    ) -> Grant:
        exhausted: str | None = None

        def decide_amount(used: LargeUsage) -> LargeUsage | None:
            nonlocal exhausted
            left = limit.left(used)
            tokens, exhausted = grant(budget, left, prices, wanted=wanted, prompt_tokens=prompt_tokens)
            return LargeUsage(tokens, 1, prices.large.cost(prompt_tokens, tokens)) if tokens else None

        assert self._ledger is not None
        aside = self._ledger.reserve(name, entry, decide_amount)
        if aside is None:
            return Grant(0, f"{exhausted} of {name}")
        return Grant(min(wanted, aside.large_tokens))

    def settle(self, entry: str, used: LargeUsage) -> None:
        """Put what a call has used in the place of what was set aside for it."""
        with ExitStack() as all_of_them:  # also where one of them fails
            for name in self._limits:
                all_of_them.callback(self._settle_one, name, entry, used)

    def _settle_one(self, name: str, entry: str, used: LargeUsage) -> None:
        assert self._ledger is not None
        self._ledger.settle(name, entry, used)


_RETURNS: set[asyncio.Future[None]] = set()
"""Tasks that give a reservation back: an event loop itself does not keep them."""


class CallReservation:
    """What one call of the large model sets aside in the accounts of its run; nothing, where there are none.

    Args:
        accounts: Limits of the run's accounts, as `open_accounts` returned them; None: there are none.
        ledger: The graph's.
        entry: Name of the call within its run. Each execution adds a word of its own: branches of one
            checkpoint may make the same call at the same time.
        prompt_tokens: Size of the prompt, or an upper bound.
        budget: Of the run.
        prices: Of the run.

    Raises:
        SettingsError: The run draws from accounts, and the graph has no ledger.
    """

    def __init__(
        self,
        accounts: Mapping[str, Mapping[str, Any]] | None,
        ledger: Ledger | None,
        *,
        entry: str,
        prompt_tokens: int,
        budget: Budget,
        prices: Prices,
    ) -> None:
        self._reservations = Reservations(accounts, ledger)
        self._entry = f"{entry}.{uuid.uuid4().hex}"
        self._prompt_tokens, self._budget, self._prices = prompt_tokens, budget, prices

    def __bool__(self) -> bool:
        return bool(self._reservations)

    def reserve(self, wanted: int) -> Grant:
        """Set aside what the call may use."""
        return self._reservations.reserve(
            self._entry,
            wanted=wanted,
            prompt_tokens=self._prompt_tokens,
            budget=self._budget,
            prices=self._prices,
        )

    async def areserve(self, wanted: int) -> Grant:
        """As `reserve`, without blocking; what is set aside for a run cancelled meanwhile is given back."""
        reserving = asyncio.ensure_future(asyncio.to_thread(self.reserve, wanted))
        try:
            return await asyncio.shield(reserving)
        except asyncio.CancelledError:
            # A task of its own, which goes on where this one is cancelled again.
            returning = asyncio.ensure_future(self._give_back(reserving))
            _RETURNS.add(returning)
            returning.add_done_callback(_RETURNS.discard)
            await asyncio.shield(returning)
            raise

    async def _give_back(self, reserving: asyncio.Future[Grant]) -> None:
        await asyncio.wait([reserving])
        if reserving.exception() is None and reserving.result().exhausted_limit is None:
            nothing = zero_usage()
            await asyncio.to_thread(self.settle, nothing, nothing)

    def settle(self, before: Usage, after: Usage) -> str | None:
        """Report to the ledger what the call has used.

        Returns:
            A note where the ledger does not take it: an answer that was paid for is not thrown away for that.
        """
        used = large_usage(after, self._prices).minus(large_usage(before, self._prices))
        try:
            self._reservations.settle(self._entry, used)
        except Exception as error:
            seen = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            return f"the ledger could not be told what a call used, so all that was set aside counts: {seen}"
        return None

    async def asettle(self, before: Usage, after: Usage) -> str | None:
        """As `settle`, without blocking; done also where the caller is cancelled meanwhile."""
        return await asyncio.shield(asyncio.to_thread(self.settle, before, after))
