"""Hard limits on what the large model may spend in a run, prices, and the bill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NotRequired, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator
from typing_extensions import TypedDict

Writer = Literal["small", "large"]
StepWriter = Literal["small", "large", "person"]
"""Who wrote a step: a person may write one by hand."""


class ModelPrice(BaseModel):
    """Prices of one model in one currency per million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    input: float = Field(default=0.0, ge=0, description="per million prompt tokens")
    output: float = Field(default=0.0, ge=0, description="per million generated tokens")
    cached_input: float | None = Field(
        default=None, ge=0, description="per million prompt tokens served from a cache; default: as `input`"
    )

    def cost(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        """Return the price of a call; ``cached_tokens`` are part of ``input_tokens``."""
        cached_price = self.input if self.cached_input is None else self.cached_input
        fresh = input_tokens - cached_tokens
        return (fresh * self.input + cached_tokens * cached_price + output_tokens * self.output) / 1e6


class Prices(BaseModel):
    """Prices of the three models of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    small: ModelPrice = ModelPrice()
    large: ModelPrice = ModelPrice()
    scorer: ModelPrice = ModelPrice()


class Budget(BaseModel):
    """Hard limits of one run. What is not set is not limited.

    Before every call of the large model its ``max_tokens`` is cut to what is left; when nothing useful is
    left, ``on_exhausted`` says how the run goes on.

    A limit may be a remainder that an application has computed: 0, or a remainder below ``min_tokens``, means
    that the limit is used up from the beginning. A negative remainder means the same and is stored as 0:
    a model that ignores ``max_tokens`` passes a limit. No number means "no limit": leave it out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    large_tokens: int | None = Field(default=None, description="tokens the large model may generate")
    large_calls: int | None = Field(default=None, description="calls of the large model")
    large_cost: float | None = Field(
        default=None, description="cost of the large model's calls, prompt included, by the price table"
    )
    seconds: float | None = Field(
        default=None, description="active seconds of the run; then it ends with the steps it has"
    )
    min_tokens: int = Field(default=8, ge=1, description="fewer tokens than this are not worth a large call")
    on_exhausted: Literal["small", "stop", "ask"] = Field(
        default="small",
        description="when the large model may not be called any more: go on small, stop, or ask a person",
    )

    @field_validator("large_tokens", "large_calls", "large_cost", "seconds")
    @classmethod
    def _used_up(cls, limit: float | None) -> float | None:
        return limit if limit is None or limit > 0 else type(limit)(0)


class WriterSpend(TypedDict):
    """What one of the two writers has used."""

    calls: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    failed_attempts: int
    """Attempts that failed, those included that were made good by another one."""
    failed_calls: int
    """Calls that failed with all their attempts."""


class ScorerSpend(TypedDict):
    """What the scorer has used."""

    calls: int
    input_tokens: int
    output_tokens: NotRequired[int]
    """What a judge wrote; a run of an earlier release has not counted it."""
    failed_attempts: int
    failed_calls: int


class LookaheadSpend(TypedDict):
    """What became of the steps that the small model wrote ahead, while the scorer was at work."""

    taken: int
    """Calls that became drafts."""
    discarded: int
    """Calls that were given up."""
    input_tokens: int
    """Of those given up; part of the small model's."""
    output_tokens: int
    """Of those given up, as far as the model told; part of the small model's."""
    unaccounted_tokens: int
    """Charged for those given up, ``max_tokens`` a call, where the model does not tell."""


class Spend(TypedDict):
    """What a run has used so far; a state channel."""

    small: WriterSpend
    large: WriterSpend
    scorer: ScorerSpend
    unaccounted_tokens: int
    """Large tokens charged, ``max_tokens`` a call, where nobody saw the end: a crash, a broken connection."""
    unaccounted_cost: float
    overshoot_tokens: int
    """Large tokens beyond what a call was granted (a model that ignores ``max_tokens``)."""
    seconds: float
    lookahead: NotRequired[LookaheadSpend]
    """Only once a step was written ahead."""


def nothing_spent() -> Spend:
    """Return the spend of a run that has not begun."""
    writer = WriterSpend(
        calls=0, input_tokens=0, output_tokens=0, cached_tokens=0, failed_attempts=0, failed_calls=0
    )
    return Spend(
        small=writer.copy(),
        large=writer.copy(),
        scorer=ScorerSpend(calls=0, input_tokens=0, output_tokens=0, failed_attempts=0, failed_calls=0),
        unaccounted_tokens=0,
        unaccounted_cost=0.0,
        overshoot_tokens=0,
        seconds=0.0,
    )


@dataclass(frozen=True, slots=True)
class BudgetLeft:
    """What is left of each limit; None where there is no limit. Never negative."""

    large_tokens: int | None = None
    large_calls: int | None = None
    large_cost: float | None = None
    seconds: float | None = None


def large_cost(spend: Spend, prices: Prices) -> float:
    """Return what the large model's calls have cost."""
    large = spend["large"]
    known = prices.large.cost(large["input_tokens"], large["output_tokens"], large["cached_tokens"])
    return known + spend["unaccounted_cost"]


def total_cost(spend: Spend, prices: Prices) -> float:
    """Return what all calls of a run have cost."""
    small = spend["small"]
    return (
        prices.small.cost(small["input_tokens"], small["output_tokens"], small["cached_tokens"])
        + large_cost(spend, prices)
        + prices.scorer.cost(spend["scorer"]["input_tokens"], spend["scorer"].get("output_tokens", 0))
        + prices.small.cost(0, lookahead_spend(spend)["unaccounted_tokens"])
    )


def lookahead_spend(spend: Spend) -> LookaheadSpend:
    """Return what became of the steps written ahead, of a run that has written none too."""
    nothing = LookaheadSpend(taken=0, discarded=0, input_tokens=0, output_tokens=0, unaccounted_tokens=0)
    return spend.get("lookahead", nothing)


def spend_since(before: Spend, now: Spend) -> Spend:
    """Subtract what had been spent before from what is spent now."""

    def difference(late: Any, early: Any) -> Any:
        if isinstance(late, dict):
            return {name: difference(late[name], early.get(name, type(late[name])())) for name in late}
        return late - early

    return cast(Spend, difference(now, before))


def spend_plus(spend: Spend, more: Spend) -> Spend:
    """Add what was spent meanwhile, as `spend_since` returned it."""

    def total(one: Any, other: Any) -> Any:
        if isinstance(other, dict):
            return {**one, **{name: total(one.get(name, type(v)()), v) for name, v in other.items()}}
        return one + other

    return cast(Spend, total(spend, more))


def budget_left(budget: Budget, spend: Spend, prices: Prices) -> BudgetLeft:
    """Subtract what was spent from the limits."""
    large = spend["large"]

    def left(limit: Any, used: Any) -> Any:
        return None if limit is None else max(limit - used, type(limit)(0))

    return BudgetLeft(
        large_tokens=left(budget.large_tokens, large["output_tokens"] + spend["unaccounted_tokens"]),
        large_calls=left(budget.large_calls, large["calls"]),
        large_cost=left(budget.large_cost, large_cost(spend, prices)),
        seconds=left(budget.seconds, spend["seconds"]),
    )


def grant(
    budget: Budget, left: BudgetLeft, prices: Prices, *, wanted: int, prompt_tokens: int
) -> tuple[int, str | None]:
    """Say how many tokens the next large call may generate.

    Args:
        budget: The limits.
        left: What is left of them.
        prices: For the limit on cost.
        wanted: Tokens asked for.
        prompt_tokens: Size of the prompt, or an upper bound of it.

    Returns:
        The ``max_tokens`` to pass, at most ``wanted``, and None; or 0 and the name of the spent limit.
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
