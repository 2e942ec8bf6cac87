"""What several runs may spend together: limits per thread and per user, kept in a `Ledger`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .budget import Budget, BudgetLeft, Prices, Spend, grant, large_cost
from .errors import SettingsError
from .ledger import Amount, Ledger


class Allowance(BaseModel):
    """What one account may spend, over all its runs. What is not set is not limited."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    large_tokens: int | None = Field(default=None, ge=0, description="tokens the large model may generate")
    large_calls: int | None = Field(default=None, ge=0, description="calls of the large model")
    large_cost: float | None = Field(
        default=None, ge=0, description="cost of the large model's calls, prompts included"
    )

    @model_validator(mode="after")
    def _limits_something(self) -> Allowance:
        if all(getattr(self, name) is None for name in Amount._fields):
            raise ValueError("an allowance without a limit: set large_tokens, large_calls or large_cost")
        return self

    def left(self, used: Amount) -> BudgetLeft:
        """Subtract what the account has used."""

        def rest(name: str) -> Any:
            limit = getattr(self, name)
            return None if limit is None else max(limit - getattr(used, name), type(limit)(0))

        return BudgetLeft(**{name: rest(name) for name in Amount._fields})


class Allowances(BaseModel):
    """Whose accounts a run draws from, and what each may spend."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    thread: Allowance | None = Field(
        default=None, description="All runs of one thread together; its account is thread:ID"
    )
    user: Allowance | None = Field(
        default=None, description="All runs of one user together, whose name the context gives as `user`"
    )


def cost_limit(budget: Budget, prices: Prices, accounts: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Name a limit of a run under which the size of the large model's prompts counts; None: there is none.

    Args:
        budget: Of the run.
        prices: Of the run.
        accounts: As `open_accounts` returned them.
    """
    if not prices.large.input:
        return None
    if budget.large_cost is not None:
        return "budget.large_cost"
    limited = (name for name, limits in accounts.items() if limits.get("large_cost") is not None)
    return next((f"large_cost of {name}" for name in limited), None)


def open_accounts(
    allowances: Allowances, *, user: str | None, thread: str | None, ledger: Ledger | None
) -> dict[str, dict[str, Any]]:
    """Name the accounts that a run draws from, for its state.

    Args:
        allowances: Of the run.
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
        allowance: Allowance | None = getattr(allowances, kind)
        if allowance is None:
            continue
        if ledger is None:
            raise SettingsError(
                f"allowances.{kind} is set, but the graph was built without a ledger that counts: pass "
                "ledger=..., of trim_graph.open_ledger"
            )
        if not name:
            raise SettingsError(f"allowances.{kind} is set, but the call does not name its {kind}: {missing}")
        found[f"{kind}:{name}"] = allowance.model_dump(exclude_none=True)
    return found


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was set aside for a call.

    Attributes:
        tokens: Granted; at most what was asked for.
        refused: The limit that granted nothing useful, and whose it is; None where the call may go ahead.
    """

    tokens: int
    refused: str | None = None


class Accounts:
    """The accounts of one run.

    Args:
        limits: As `open_accounts` returned them.
        ledger: Keeps them.

    Raises:
        SettingsError: The run draws from accounts, and the graph has no ledger.
    """

    def __init__(self, limits: Mapping[str, Mapping[str, Any]] | None, ledger: Ledger | None) -> None:
        self._limits = {name: Allowance(**limit) for name, limit in (limits or {}).items()}
        if self._limits and ledger is None:
            raise SettingsError(
                f"this run draws from {', '.join(self._limits)}: build the graph with its ledger to go on"
            )
        self._ledger = ledger

    def __bool__(self) -> bool:
        return bool(self._limits)

    def left(self) -> dict[str, BudgetLeft]:
        """What each account has left now."""
        return {name: limit.left(self._used(name)) for name, limit in self._limits.items()}

    def used(self) -> dict[str, dict[str, float]]:
        """What each account has used, by all its runs, set aside included."""
        return {name: self._used(name)._asdict() for name in self._limits}

    def _used(self, name: str) -> Amount:
        assert self._ledger is not None
        return self._ledger.used(name)

    def reserve(
        self, entry: str, *, wanted: int, prompt_tokens: int, budget: Budget, prices: Prices
    ) -> Drawn:
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
                drawn = self._reserve_one(name, limit, entry, wanted, prompt_tokens, budget, prices)
                if drawn.refused:
                    return drawn
                given_back.callback(self._settle_one, name, entry, Amount())
                wanted = drawn.tokens
            given_back.pop_all()
        return Drawn(wanted)

    def _reserve_one(
        self,
        name: str,
        limit: Allowance,
        entry: str,
        wanted: int,
        prompt_tokens: int,
        budget: Budget,
        prices: Prices,
    ) -> Drawn:
        refused: str | None = None

        def ask(used: Amount) -> Amount | None:
            nonlocal refused
            left = limit.left(used)
            tokens, refused = grant(budget, left, prices, wanted=wanted, prompt_tokens=prompt_tokens)
            return Amount(tokens, 1, prices.large.cost(prompt_tokens, tokens)) if tokens else None

        assert self._ledger is not None
        aside = self._ledger.reserve(name, entry, ask)
        if aside is None:
            return Drawn(0, f"{refused} of {name}")
        return Drawn(min(wanted, aside.large_tokens))

    def settle(self, entry: str, used: Amount) -> None:
        """Put what a call has used in the place of what was set aside for it."""
        with ExitStack() as all_of_them:  # also where one of them fails
            for name in self._limits:
                all_of_them.callback(self._settle_one, name, entry, used)

    def _settle_one(self, name: str, entry: str, used: Amount) -> None:
        assert self._ledger is not None
        self._ledger.settle(name, entry, used)


def amount_between(before: Spend, after: Spend, prices: Prices) -> Amount:
    """What the large model has used from one state of a run's spend to a later one."""

    def tokens(spend: Spend) -> int:
        return spend["large"]["output_tokens"] + spend["unaccounted_tokens"]

    return Amount(
        large_tokens=tokens(after) - tokens(before),
        large_calls=after["large"]["calls"] - before["large"]["calls"],
        large_cost=max(0.0, large_cost(after, prices) - large_cost(before, prices)),
    )


def scarcest(own: BudgetLeft, others: Sequence[BudgetLeft]) -> BudgetLeft:
    """What is left of every limit where several apply."""
    if not others:
        return own

    def least(name: str) -> Any:
        known = [left for one in (own, *others) if (left := getattr(one, name)) is not None]
        return min(known, default=None)

    return BudgetLeft(**{name: least(name) for name in BudgetLeft.__slots__})
