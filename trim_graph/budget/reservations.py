"""Reservations: how one call of the large model draws on the quotas that several runs share."""

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
    """Returns the accounts that a run is charged to, for its state.

    Args:
        quotas: Quotas of the run.
        user: Name of the user, from the context; None if there is none.
        thread: Id of the thread; None if there is none.
        ledger: The graph's ledger.

    Returns:
        The limits of each account by its name, ``thread:ID`` or ``user:NAME``.

    Raises:
        SettingsError: The user or the thread has no name, or the graph has no ledger.
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
    """The grant of a reservation.

    Attributes:
        tokens: Tokens that the call may generate, at most those requested.
        exhausted_limit: Limit and account that left nothing useful, such as ``large_tokens of user:42``; None
            if the call may be made.
    """

    tokens: int
    exhausted_limit: str | None = None


class Reservations:
    """Reservations and usage of one run in the accounts that it is charged to.

    Args:
        limits: Limits by account, as `open_accounts` returns them.
        ledger: Holds the accounts.

    Raises:
        SettingsError: The run has accounts, but the graph has no ledger.
    """

    def __init__(self, limits: Mapping[str, Mapping[str, Any]] | None, ledger: Ledger | None) -> None:
        self._limits = {name: Quota(**limit) for name, limit in (limits or {}).items()}
        if self._limits and ledger is None:
            raise SettingsError(
                f"this run draws from {', '.join(self._limits)}: build the graph with its ledger to resume it"
            )
        self._ledger = ledger

    def __bool__(self) -> bool:
        return bool(self._limits)

    def left(self) -> dict[str, RemainingBudget]:
        """Returns what each account has left now."""
        return {name: limit.left(self._used(name)) for name, limit in self._limits.items()}

    def used(self) -> dict[str, dict[str, float]]:
        """Returns the used amount of each account, over all its runs, reservations included."""
        return {name: self._used(name)._asdict() for name in self._limits}

    def _used(self, name: str) -> LargeUsage:
        assert self._ledger is not None
        return self._ledger.used(name)

    def reserve(
        self, entry: str, *, wanted: int, prompt_tokens: int, budget: Budget, prices: Prices
    ) -> Grant:
        """Reserves what a large call may use, in every account; in none if one of them is exhausted.

        Args:
            entry: Name of the execution.
            wanted: Tokens requested.
            prompt_tokens: Size of the prompt in tokens, or an upper bound.
            budget: Budget of the run; ``min_tokens`` is the smallest useful grant.
            prices: Price table, for limits on cost.
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
        reserved = self._ledger.reserve(name, entry, decide_amount)
        if reserved is None:
            return Grant(0, f"{exhausted} of {name}")
        return Grant(min(wanted, reserved.large_tokens))

    def settle(self, entry: str, used: LargeUsage) -> None:
        """Replaces the reservation of a call by its usage, in every account."""
        with ExitStack() as settling:  # settles the others if one of them fails
            for name in self._limits:
                settling.callback(self._settle_one, name, entry, used)

    def _settle_one(self, name: str, entry: str, used: LargeUsage) -> None:
        assert self._ledger is not None
        self._ledger.settle(name, entry, used)


_RELEASES: set[asyncio.Future[None]] = set()
"""Tasks that release a reservation; an event loop holds only weak references to its tasks."""


class CallReservation:
    """The reservation of one call of the large model, in all accounts of its run.

    Args:
        accounts: Limits of the run's accounts, as `open_accounts` returns them.
        ledger: Holds the accounts.
        entry: Name of the call within its run. Each execution adds a random suffix, since branches of one
            checkpoint may make the same call at the same time.
        prompt_tokens: Size of the prompt in tokens, or an upper bound.
        budget: Budget of the run.
        prices: Price table of the run.

    Raises:
        SettingsError: The run has accounts, but the graph has no ledger.
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

    def reserve(self, wanted: int) -> Grant:
        """Reserves what the call may use."""
        return self._reservations.reserve(
            self._entry,
            wanted=wanted,
            prompt_tokens=self._prompt_tokens,
            budget=self._budget,
            prices=self._prices,
        )

    async def areserve(self, wanted: int) -> Grant:
        """Does the same as `reserve`, without blocking; a cancelled task releases its reservation."""
        reserving = asyncio.ensure_future(asyncio.to_thread(self.reserve, wanted))
        try:
            return await asyncio.shield(reserving)
        except asyncio.CancelledError:
            # A task of its own, which survives another cancellation of this one.
            releasing = asyncio.ensure_future(self._release(reserving))
            _RELEASES.add(releasing)
            releasing.add_done_callback(_RELEASES.discard)
            await asyncio.shield(releasing)
            raise

    async def _release(self, reserving: asyncio.Future[Grant]) -> None:
        await asyncio.wait([reserving])
        if reserving.exception() is None and reserving.result().exhausted_limit is None:
            nothing = zero_usage()
            await asyncio.to_thread(self.settle, nothing, nothing)

    def settle(self, before: Usage, after: Usage) -> str | None:
        """Settles the reservation with the usage of the call.

        Args:
            before: Usage of the run before the call.
            after: Usage of the run after it.

        Returns:
            None, or a note if the ledger failed: that is no reason to lose an answer that was paid for.
        """
        used = large_usage(after, self._prices).minus(large_usage(before, self._prices))
        try:
            self._reservations.settle(self._entry, used)
        except Exception as error:
            seen = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            return f"the ledger did not record what a call used, so all that was reserved counts: {seen}"
        return None

    async def asettle(self, before: Usage, after: Usage) -> str | None:
        """Does the same as `settle`, without blocking; it completes even if the caller is cancelled."""
        return await asyncio.shield(asyncio.to_thread(self.settle, before, after))
