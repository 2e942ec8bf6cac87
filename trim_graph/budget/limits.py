"""Limits on the large model, of one run, a thread or a user: budgets, quotas, and what remains of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, field_validator, model_validator

from trim_graph.errors import KnownFields

from .usage import LargeUsage, Prices, Usage, large_usage

Count = TypeVar("Count")
Cost = TypeVar("Cost")


class LargeLimits(KnownFields, Generic[Count, Cost]):
    """Limits on the large model, by the fields of `LargeUsage`; a field that is None sets no limit.

    The types of counts and of cost say which numbers a limit takes.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    large_tokens: Count | None = Field(default=None, description="tokens the large model may generate")
    large_calls: Count | None = Field(default=None, description="calls of the large model")
    large_cost: Cost | None = Field(
        default=None, description="cost of the large model's calls, prompts included, by the price table"
    )


class Budget(LargeLimits[int, float]):
    """Hard limits of one run. A field that is None sets no limit.

    Before every call of the large model its ``max_tokens`` is cut to what is left. When nothing useful is
    left, ``on_exhausted`` says how the run continues.

    A limit may be the remainder of an application's own budget. A remainder of 0, or below ``min_tokens``,
    means that the limit is exhausted from the beginning. A negative remainder, as a model that ignores
    ``max_tokens`` may leave it, is stored as 0. No number means "no limit": leave the field out.
    """

    seconds: float | None = Field(
        default=None,
        description="active seconds of the run; then it ends with the steps it has, also where on_exhausted "
        "is small",
    )
    min_tokens: int = Field(default=8, ge=1, description="fewer tokens than this are not worth a large call")
    on_exhausted: Literal["small", "stop", "ask"] = Field(
        default="small",
        description="when the large model may not be called any more: continue small, stop, or ask a human",
    )

    @field_validator(*LargeUsage._fields, "seconds")
    @classmethod
    def _used_up(cls, limit: float | None) -> float | None:
        return limit if limit is None or limit > 0 else type(limit)(0)

    def left(self, usage: Usage, prices: Prices) -> RemainingBudget:
        """Returns what is left after the usage of a run.

        Args:
            usage: Usage of the run.
            prices: Price table of the run.
        """
        seconds = None if self.seconds is None else max(self.seconds - usage["seconds"], 0.0)
        if self.large_tokens is self.large_calls is self.large_cost is None:
            return RemainingBudget(seconds=seconds)
        return RemainingBudget(**_rest(self, large_usage(usage, prices)), seconds=seconds)


class Quota(LargeLimits[NonNegativeInt, NonNegativeFloat]):
    """Limits of one account over all its runs. A field that is None sets no limit."""

    @model_validator(mode="after")
    def _limits_something(self) -> Quota:
        if all(getattr(self, name) is None for name in LargeUsage._fields):
            raise ValueError("a quota without a limit: set large_tokens, large_calls or large_cost")
        return self

    def left(self, used: LargeUsage) -> RemainingBudget:
        """Returns what is left after the usage of the account."""
        return RemainingBudget(**_rest(self, used))


class Quotas(KnownFields):
    """Quotas of the thread and of the user that a run is charged to."""

    model_config = ConfigDict(frozen=True)

    thread: Quota | None = Field(
        default=None, description="All runs of one thread together; its account is thread:ID"
    )
    user: Quota | None = Field(
        default=None, description="All runs of one user together, whose name the context gives as `user`"
    )

    @property
    def given(self) -> bool:
        """Whether there is a quota."""
        return self.thread is not None or self.user is not None


def cost_limit(budget: Budget, prices: Prices, accounts: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Returns the name of a limit on cost, which depends on the size of prompts; None if there is none.

    Args:
        budget: Budget of the run.
        prices: Price table of the run.
        accounts: Limits of its accounts, as `open_accounts` returns them.
    """
    if not prices.large.input:
        return None
    if budget.large_cost is not None:
        return "budget.large_cost"
    limited = (name for name, limits in accounts.items() if limits.get("large_cost") is not None)
    return next((f"large_cost of {name}" for name in limited), None)


@dataclass(frozen=True, slots=True)
class RemainingBudget:
    """The rest of each limit, never negative; None without a limit. Fields are as in `Budget`."""

    large_tokens: int | None = None
    large_calls: int | None = None
    large_cost: float | None = None
    seconds: float | None = None

    def after(self, used: LargeUsage) -> RemainingBudget:
        """Returns what is left after further usage of the large model."""
        return RemainingBudget(**_rest(self, used), seconds=self.seconds)


def _rest(limits: Budget | Quota | RemainingBudget, used: LargeUsage) -> dict[str, Any]:
    """Returns each limit of the large model minus its usage, at least 0; None without a limit."""
    rest = {}
    for name, amount in zip(LargeUsage._fields, used, strict=True):
        limit = getattr(limits, name)
        rest[name] = None if limit is None else max(limit - amount, type(limit)(0))
    return rest


def grant(
    budget: Budget, left: RemainingBudget, prices: Prices, *, wanted: int, prompt_tokens: int
) -> tuple[int, str | None]:
    """Returns how many tokens the next large call may generate.

    Args:
        budget: The limits; ``min_tokens`` is the smallest useful grant.
        left: What is left of the limits.
        prices: Price table, for the limit on cost.
        wanted: Tokens requested.
        prompt_tokens: Size of the prompt in tokens, or an upper bound.

    Returns:
        The ``max_tokens`` to pass, at most ``wanted``, and None; or 0 and the name of the exhausted limit.
    """
    if left.seconds is not None and left.seconds <= 0:
        return 0, "seconds"
    if left.large_calls is not None and left.large_calls < 1:
        return 0, "large_calls"
    granted, limit = wanted, None
    if left.large_tokens is not None and left.large_tokens < granted:
        granted, limit = left.large_tokens, "large_tokens"
    if left.large_cost is not None:
        after_prompt = left.large_cost - prices.large.cost(prompt_tokens, 0)
        price = prices.large.output / 1e6
        affordable = 0
        if after_prompt >= 0:
            affordable = wanted if wanted * price <= after_prompt else int(after_prompt / price)
        if affordable < granted:
            granted, limit = affordable, "large_cost"
    if granted < min(budget.min_tokens, wanted):
        return 0, limit
    return granted, None


@dataclass(frozen=True, slots=True)
class Shortage:
    """What an exhausted limit left, and what the refused call would have needed of it.

    Attributes:
        left: What is left; 0 where the limit is used up.
        needed: What the smallest useful call reserves.
        prompt_tokens: Size of its prompt in tokens, or an upper bound.
        tokens: Tokens that it may generate.
    """

    left: float
    needed: float
    prompt_tokens: int
    tokens: int


def shortage(limit: str, left: RemainingBudget, prices: Prices, tokens: int, prompt_tokens: int) -> Shortage:
    """Returns what a limit left for which `grant` refused a call, and what the smallest useful one needs.

    Args:
        limit: Name of the limit.
        left: What is left of the limits.
        prices: Price table, for the limit on cost.
        tokens: Tokens of the smallest useful call.
        prompt_tokens: Size of its prompt in tokens, or an upper bound.
    """
    needed = LargeUsage(tokens, 1, prices.large.cost(prompt_tokens, tokens))
    # Of the seconds any rest is enough.
    return Shortage(getattr(left, limit), getattr(needed, limit, 0), prompt_tokens, tokens)


def tightest(own: RemainingBudget, accounts: Mapping[str, RemainingBudget]) -> RemainingBudget:
    """Returns the smallest remainder of each limit, over a run's own budget and its accounts."""

    def least(name: str) -> Any:
        known = [left for one in (own, *accounts.values()) if (left := getattr(one, name)) is not None]
        return min(known, default=None)

    return RemainingBudget(**{name: least(name) for name in RemainingBudget.__slots__})
