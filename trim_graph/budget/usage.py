"""Usage of a run: tokens, calls, seconds, their cost by the price table, and how calls are charged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, NotRequired, cast

from langchain_core.messages import AIMessage
from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from trim_graph.adapters.responses import Reply
from trim_graph.errors import FailedAttempts, KnownFields, may_have_generated

Writer = Literal["small", "large"]
StepWriter = Literal["small", "large", "human"]
"""Author of a step: a model, or a human in response to an interrupt."""


class ModelPrice(KnownFields):
    """Prices of one model in one currency per million tokens."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    input: float = Field(default=0.0, ge=0, description="per million prompt tokens")
    output: float = Field(default=0.0, ge=0, description="per million generated tokens")
    cached_input: float | None = Field(
        default=None, ge=0, description="per million prompt tokens served from a cache; default: as `input`"
    )

    def cost(self, input_tokens: int, output_tokens: float, cached_tokens: int = 0) -> float:
        """Returns the cost of a call in the currency used; ``cached_tokens`` are part of ``input_tokens``."""
        cached_price = self.input if self.cached_input is None else self.cached_input
        fresh = input_tokens - cached_tokens
        return (fresh * self.input + cached_tokens * cached_price + output_tokens * self.output) / 1e6


class Prices(KnownFields):
    """Prices of the three models of a run."""

    model_config = ConfigDict(frozen=True)

    small: ModelPrice = ModelPrice()
    """Of the small model."""
    large: ModelPrice = ModelPrice()
    """Of the large model."""
    scorer: ModelPrice | None = None
    """Of the scorer; None: it is not given. Then a reward model, which only reads, costs nothing. The cost of
    a run with an LLM judge, a chat model that writes tokens, is unknown."""

    @property
    def given(self) -> bool:
        """Whether any price is above 0."""
        return any(price is not None and (price.input or price.output) for _, price in self)

    def scorer_cost(self, input_tokens: int, output_tokens: int) -> float | None:
        """Returns the cost of the scorer; None where it has written tokens whose price is not given."""
        if self.scorer is None:
            return None if output_tokens else 0.0
        return self.scorer.cost(input_tokens, output_tokens)

    def lacking(self, read: Mapping[str, float], written: Mapping[str, float]) -> list[str]:
        """Names the prices that nobody stated of tokens that there are: ``small``, ``scorer.output``.

        A price that is stated as 0 is one; a price that is absent is unknown.

        Args:
            read: Prompt tokens by model: ``small``, ``large``, ``scorer``.
            written: Generated tokens by model.
        """
        found = []
        for model, price in self:
            tokens = {"input": read.get(model, 0), "output": written.get(model, 0)}
            stated = price.model_fields_set if price is not None else set[str]()
            missing = [kind for kind, count in tokens.items() if count and kind not in stated]
            found += [f"{model}.{kind}" if stated else model for kind in missing]
        return list(dict.fromkeys(found))


class LargeUsage(NamedTuple):
    """Usage of the large model by any number of calls: what limits, quotas and ledgers count.

    Attributes:
        large_tokens: Tokens generated, with those charged for calls that reported no usage.
        large_calls: Number of calls.
        large_cost: Cost of the calls by the price table, prompts included.
    """

    large_tokens: int = 0
    large_calls: int = 0
    large_cost: float = 0.0

    def plus(self, other: LargeUsage) -> LargeUsage:
        """Returns the sum, field by field."""
        return LargeUsage(
            self.large_tokens + other.large_tokens,
            self.large_calls + other.large_calls,
            self.large_cost + other.large_cost,
        )

    def minus(self, other: LargeUsage) -> LargeUsage:
        """Returns the difference, field by field; rounding never makes the cost negative."""
        return LargeUsage(
            self.large_tokens - other.large_tokens,
            self.large_calls - other.large_calls,
            max(0.0, self.large_cost - other.large_cost),
        )


class WriterUsage(TypedDict):
    """Usage of one of the two writers."""

    calls: int
    """Calls, failed ones included."""
    input_tokens: int
    """Prompt tokens, failed attempts included."""
    output_tokens: int
    """Generated tokens, failed attempts included."""
    cached_tokens: int
    """Those of the prompt tokens that the server reported as cached."""
    failed_attempts: int
    """Failed attempts, also of calls that a later attempt completed."""
    failed_calls: int
    """Calls whose attempts all failed."""
    seconds: NotRequired[float]
    """Duration of the answered calls; absent before the first, and in a run of an earlier release."""
    unaccounted_tokens: NotRequired[int]
    """Those of the small model's generated tokens that were charged for attempts without a report,
    ``max_tokens`` each; absent before the first. Those of the large model are in `Usage`."""


class ScorerUsage(TypedDict):
    """Usage of the scorer."""

    calls: int
    """Calls, failed ones included: one a draft that is scored. In one an LLM judge asks its model about each
    step whose score it does not have, so about several steps, or about none."""
    input_tokens: int
    """Tokens that it read, failed attempts included."""
    output_tokens: NotRequired[int]
    """Tokens that an LLM judge wrote; absent in a run of an earlier release."""
    failed_attempts: int
    """Failed attempts, also of calls that a later attempt completed."""
    failed_calls: int
    """Calls whose attempts all failed."""
    seconds: NotRequired[float]
    """Duration of its calls; absent before the first, and in a run of an earlier release."""


class PromptUsage(TypedDict):
    """Prompts of the run without any step, each counted once: the estimate of the large model alone."""

    input_tokens: int
    """Prompt tokens of the question; in an agent, of each turn. As the large model counts them where it read
    the same prompt, else as the small one does."""
    cached_tokens: int
    """Those of them that the large model reported as cached."""
    small_tokens: int
    """Those of the last prompt as the small model counts them; 0 if the large one has read it."""
    step: int
    """Index of the turn whose prompt was counted last; 0 for a solution."""


class LookaheadUsage(TypedDict):
    """Usage of speculative calls, which the small model makes while the scorer works (lookahead)."""

    taken: int
    """Calls that became drafts."""
    discarded: int
    """Calls that were dropped."""
    input_tokens: int
    """Tokens of dropped calls' prompts; part of the small model's."""
    output_tokens: int
    """Tokens that dropped calls reported; part of the small model's."""
    unaccounted_tokens: int
    """Tokens charged for dropped calls without a report, ``max_tokens`` each."""


class WarmingUsage(TypedDict):
    """Usage of the calls that warm the large model's prefix cache; all of it is part of the large model's."""

    calls: int
    """Calls, also those still running."""
    failed_calls: int
    """Calls without an answer; none of them is a failure of the run."""
    input_tokens: int
    """Tokens of their prompts."""
    cached_tokens: int
    """Those of the prompt tokens that the cache held already."""
    output_tokens: int
    """Tokens that they wrote, which are thrown away."""
    unaccounted_tokens: int
    """Tokens charged for calls that reported none, among them those cut off at the end of the run."""


class Usage(TypedDict):
    """Usage of a run so far; a state channel."""

    small: WriterUsage
    """Of the small model."""
    large: WriterUsage
    """Of the large model."""
    scorer: ScorerUsage
    """Of the scorer."""
    unaccounted_tokens: int
    """Large tokens charged for calls without a report (a crash, a broken connection), ``max_tokens`` each."""
    unaccounted_cost: float
    """Cost of such calls, an upper bound."""
    overshoot_tokens: int
    """Large tokens beyond the grant of a call, by a model that ignores ``max_tokens``."""
    seconds: float
    """Active seconds of the run."""
    lookahead: NotRequired[LookaheadUsage]
    """Present once there was a speculative call."""
    warming: NotRequired[WarmingUsage]
    """Present once a call has warmed the large model's cache."""
    prompt: NotRequired[PromptUsage]
    """Present once a call has been answered; absent in a run of an earlier release."""


def zero_usage() -> Usage:
    """Returns the usage of a run that has not begun."""
    writer = WriterUsage(
        calls=0, input_tokens=0, output_tokens=0, cached_tokens=0, failed_attempts=0, failed_calls=0
    )
    return Usage(
        small=writer.copy(),
        large=writer.copy(),
        scorer=ScorerUsage(calls=0, input_tokens=0, output_tokens=0, failed_attempts=0, failed_calls=0),
        unaccounted_tokens=0,
        unaccounted_cost=0.0,
        overshoot_tokens=0,
        seconds=0.0,
    )


def unpriced_scorer(what: str) -> str:
    """Returns the sentence on a scorer that writes tokens, as an LLM judge does, without a price.

    Args:
        what: What it has done or will do.
    """
    return (
        f"{what}, and prices.scorer is not given, so the cost is unknown: give its input and output, per "
        "million tokens, or 0 for both if it costs nothing"
    )


def large_tokens(usage: Usage) -> int:
    """Returns the tokens of the large model: generated, and charged for calls that reported no usage."""
    return usage["large"]["output_tokens"] + usage["unaccounted_tokens"]


def large_usage(usage: Usage, prices: Prices) -> LargeUsage:
    """Returns the usage of the large model, as limits count it."""
    large = usage["large"]
    known = prices.large.cost(large["input_tokens"], large["output_tokens"], large["cached_tokens"])
    return LargeUsage(
        large_tokens=large_tokens(usage),
        large_calls=large["calls"],
        large_cost=known + usage["unaccounted_cost"],
    )


def total_cost(usage: Usage, prices: Prices) -> float | None:
    """Returns the cost of all calls of a run in the price table's currency.

    None without prices, and where the scorer has written tokens whose price is not given.
    """
    small, scorer = usage["small"], usage["scorer"]
    scored = prices.scorer_cost(scorer["input_tokens"], scorer.get("output_tokens", 0))
    if not prices.given or scored is None:
        return None
    return (
        prices.small.cost(small["input_tokens"], small["output_tokens"], small["cached_tokens"])
        + large_usage(usage, prices).large_cost
        + scored
        + prices.small.cost(0, lookahead_usage(usage)["unaccounted_tokens"])
    )


def unreported_tokens(usage: Usage, writer: Writer) -> int:
    """Returns the tokens charged for attempts of a writer that reported none."""
    return usage["unaccounted_tokens"] if writer == "large" else usage["small"].get("unaccounted_tokens", 0)


def lookahead_usage(usage: Usage) -> LookaheadUsage:
    """Returns the usage of speculative calls; zeros for a run without one."""
    nothing = LookaheadUsage(taken=0, discarded=0, input_tokens=0, output_tokens=0, unaccounted_tokens=0)
    return usage.get("lookahead", nothing)


def warming_usage(usage: Usage) -> WarmingUsage:
    """Returns the usage of calls that warm the large model's cache; zeros for a run without one."""
    nothing = WarmingUsage(
        calls=0, failed_calls=0, input_tokens=0, cached_tokens=0, output_tokens=0, unaccounted_tokens=0
    )
    return usage.get("warming", nothing)


def count_prompt_once(
    prompt: PromptUsage | None, writer: Writer, step: int, *, input_tokens: int, cached_tokens: int
) -> PromptUsage:
    """Returns the prompts counted once, with that of a call that no accepted step precedes.

    Args:
        prompt: Counted so far; None before the first call.
        writer: The model that was called. The large model's count replaces the small one's.
        step: Index of the turn; 0 for a solution.
        input_tokens: Prompt tokens of the call, without those of failed attempts.
        cached_tokens: Those of them served from a cache.
    """
    before = prompt or PromptUsage(input_tokens=0, cached_tokens=0, small_tokens=0, step=-1)
    replaced = 0
    if before["step"] == step:
        if writer == "small" or not before["small_tokens"]:
            return before
        replaced = before["small_tokens"]
    return PromptUsage(
        input_tokens=before["input_tokens"] - replaced + input_tokens,
        # The small model's cache says nothing of the large one's.
        cached_tokens=before["cached_tokens"] + (cached_tokens if writer == "large" else 0),
        small_tokens=input_tokens if writer == "small" else 0,
        step=step,
    )


def usage_delta(before: Usage, now: Usage) -> Usage:
    """Returns the difference of two usages of one run, field by field."""
    delta: dict[str, Any] = {}
    for name, late in now.items():
        early: Any = before.get(name, {})
        if isinstance(late, dict):
            delta[name] = {key: amount - early.get(key, 0) for key, amount in late.items()}
        else:
            delta[name] = late - (early or 0)  # type: ignore[operator]
    return cast(Usage, delta)


def add_usage(usage: Usage, more: Mapping[str, Any]) -> Usage:
    """Returns the sum of a usage and a difference, field by field; an absent field counts as 0.

    Args:
        usage: A usage; not changed.
        more: What `usage_delta` returned, or only some fields: ``{"large": {"calls": 1}, "seconds": 0.5}``.
    """
    total: Any = dict(usage)
    for name in more:
        amount = more[name]
        if type(amount) is dict:
            total[name] = add_usage(total.get(name, {}), amount)
        else:
            total[name] = total[name] + amount if name in total else amount
    added: Usage = total
    return added


def read_attempts(metadata: dict[str, Any]) -> FailedAttempts | None:
    """Returns the failed attempts that an answer's ``response_metadata`` reports; None if there were none."""
    reported = metadata.get("failed_attempts")
    if not reported:
        return None
    found = FailedAttempts(
        count=int(reported["count"]),
        input_tokens=int(reported["input_tokens"]),
        output_tokens=int(reported["output_tokens"]),
        unknown=int(reported.get("unknown", 0)),
    )
    if "unknown_tokens" in reported:
        found["unknown_tokens"] = int(reported["unknown_tokens"])
    if "overshoot_tokens" in reported:
        found["overshoot_tokens"] = int(reported["overshoot_tokens"])
    return found


def attempts_of(error: BaseException) -> FailedAttempts:
    """Returns the usage of a failed call's attempts, as far as the error reports it."""
    # An adapter's error may be raised from a server's, as a scorer's is.
    for one in (error, error.__cause__):
        if isinstance(attempts := getattr(one, "attempts", None), dict):
            return cast(FailedAttempts, attempts)
    # LangChain's errors of structured output hold the answer.
    answer = getattr(error, "ai_message", None)
    if isinstance(answer, AIMessage) and answer.usage_metadata is not None:
        return attempts_of_answer(answer)
    unknown = int(may_have_generated(error))
    return FailedAttempts(count=1, input_tokens=0, output_tokens=0, unknown=unknown)


def attempts_of_answer(answer: AIMessage) -> FailedAttempts:
    """Returns the usage of an answer that counts as a failed attempt, with the failed attempts before it."""
    before = read_attempts(answer.response_metadata)
    usage = answer.usage_metadata
    return FailedAttempts(
        count=1 + (before["count"] if before else 0),
        input_tokens=usage["input_tokens"] if usage else 0,
        output_tokens=usage["output_tokens"] if usage else 0,
        unknown=int(usage is None) + (before["unknown"] if before else 0),
    )


def charge_answer(usage: Usage, writer: Writer, reply: Reply, seconds: float, *, overshoot: int = 0) -> Usage:
    """Returns the usage with an answered call, the reported tokens of failed attempts before it included.

    Args:
        usage: Usage before the call.
        writer: The model that was called.
        reply: The answer.
        seconds: Duration of the call.
        overshoot: Tokens of the large model beyond its grant.
    """
    called = {
        "calls": 1,
        "input_tokens": reply.input_tokens,
        "output_tokens": reply.output_tokens,
        "cached_tokens": reply.cached_tokens,
        "seconds": seconds,
    }
    return add_usage(usage, {writer: called, "overshoot_tokens": overshoot, "seconds": seconds})


def charge_in_full(usage: Usage, *, max_tokens: int, prompt_tokens: int, prices: Prices) -> Usage:
    """Returns the usage with a call of the large model about which nothing is known but its limits.

    Args:
        usage: Usage before the call.
        max_tokens: Tokens that the call was granted.
        prompt_tokens: Size of its prompt in tokens, or an upper bound.
        prices: Price table of the run.
    """
    cost = prices.large.cost(prompt_tokens, max_tokens)
    return add_usage(
        usage, {"large": {"calls": 1}, "unaccounted_tokens": max_tokens, "unaccounted_cost": cost}
    )


def charge_failed_call(
    usage: Usage, writer: Writer, error: BaseException, *, max_tokens: int, prompt_tokens: int, prices: Prices
) -> Usage:
    """Returns the usage with a call whose attempts all failed."""
    failed = add_usage(usage, {writer: {"calls": 1, "failed_calls": 1}})
    lost = attempts_of(error)
    return charge_lost(
        failed, writer, lost, max_tokens=max_tokens, prompt_tokens=prompt_tokens, prices=prices
    )


def charge_lost(
    usage: Usage,
    writer: Writer,
    lost: FailedAttempts,
    *,
    max_tokens: int,
    prompt_tokens: int,
    prices: Prices,
) -> Usage:
    """Returns the usage with failed attempts that no answer followed, their reported tokens included."""
    reported = {"input_tokens": lost["input_tokens"], "output_tokens": lost["output_tokens"]}
    return charge_attempts(
        add_usage(usage, {writer: reported}),
        writer,
        lost,
        max_tokens=max_tokens,
        prompt_tokens=prompt_tokens,
        prices=prices,
    )


def charge_attempts(
    usage: Usage,
    writer: Writer,
    lost: FailedAttempts,
    *,
    max_tokens: int,
    prompt_tokens: int,
    prices: Prices,
) -> Usage:
    """Returns the usage with failed attempts; unreported ones are charged in full.

    Args:
        usage: Usage before the attempts.
        writer: The model that was called.
        lost: The failed attempts.
        max_tokens: Tokens that each attempt was granted.
        prompt_tokens: Size of the prompt in tokens, or an upper bound.
        prices: Price table of the run.
    """
    tokens, read = lost.get("unknown_tokens", lost["unknown"] * max_tokens), lost["unknown"] * prompt_tokens
    more: dict[str, Any] = {writer: {"failed_attempts": lost["count"]}}
    if writer == "small" and lost["unknown"]:
        more["small"] |= {"input_tokens": read, "output_tokens": tokens, "unaccounted_tokens": tokens}
    if writer == "large":
        beyond = max(0, lost["output_tokens"] - lost["count"] * max_tokens)
        more["overshoot_tokens"] = lost.get("overshoot_tokens", beyond)
        more["unaccounted_tokens"] = tokens
        more["unaccounted_cost"] = prices.large.cost(read, tokens)
    return add_usage(usage, more)


def charge_scorer(usage: Usage, seconds: float, used: FailedAttempts, *, failed: bool) -> Usage:
    """Returns the usage with a call of the scorer.

    Args:
        usage: Usage before the call.
        seconds: Duration of the call.
        used: Tokens of the call, and its failed attempts.
        failed: Whether all attempts of the call failed.
    """
    scored = ScorerUsage(
        calls=1,
        input_tokens=used["input_tokens"],
        output_tokens=used["output_tokens"],
        failed_attempts=used["count"],
        failed_calls=int(failed),
        seconds=seconds,
    )
    return add_usage(usage, {"scorer": scored, "seconds": seconds})
