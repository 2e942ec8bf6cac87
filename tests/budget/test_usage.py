"""What a run has used: sums, differences and charges."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.adapters.responses import Reply
from trim_graph.budget import ModelPrice, Prices
from trim_graph.budget.usage import (
    LargeUsage,
    ScorerUsage,
    Usage,
    WriterUsage,
    add_usage,
    charge_answer,
    charge_attempts,
    charge_failed_call,
    charge_in_full,
    charge_lost,
    charge_scorer,
    large_usage,
    lookahead_usage,
    total_cost,
    unreported_tokens,
    usage_delta,
    warming_usage,
    zero_usage,
)
from trim_graph.errors import FailedAttempts, ModelServerError

PRICES = Prices(
    small=ModelPrice(input=1e6, output=2e6),
    large=ModelPrice(input=4e6, output=8e6, cached_input=1e6),
    scorer=ModelPrice(input=1e6, output=3e6),
)
COUNTS = st.integers(0, 10**6)
QUARTERS = st.integers(0, 4000).map(lambda quarters: quarters / 4)
"""Sums of these are exact, so that a difference is too."""


def _counts(names: Any) -> Any:
    return st.fixed_dictionaries(dict.fromkeys(names, COUNTS))


def _usages() -> Any:
    fresh = zero_usage()
    known = {
        "small": _counts(fresh["small"]),
        "large": _counts(fresh["large"]),
        "scorer": _counts(fresh["scorer"]),
        "unaccounted_tokens": COUNTS,
        "unaccounted_cost": QUARTERS,
        "overshoot_tokens": COUNTS,
        "seconds": QUARTERS,
    }
    ahead, warm = _counts(lookahead_usage(fresh)), _counts(warming_usage(fresh))
    return st.fixed_dictionaries(known, optional={"lookahead": ahead, "warming": warm})


USAGES = _usages()
ATTEMPTS = st.builds(
    FailedAttempts,
    count=st.integers(1, 5),
    input_tokens=COUNTS,
    output_tokens=COUNTS,
    unknown=st.integers(0, 5),
)
REPLY = Reply("so", "eos", "", "a model", 9, 4, 8, None)
WRITERS: Any = pytest.mark.parametrize("writer", ["small", "large"])


def lost(count: int = 1, **more: int) -> FailedAttempts:
    return FailedAttempts(**{"count": count, "input_tokens": 0, "output_tokens": 0, "unknown": 0, **more})  # type: ignore[typeddict-item]


def complete(usage: Usage) -> Usage:
    return Usage(**{**usage, "lookahead": lookahead_usage(usage), "warming": warming_usage(usage)})


@given(USAGES, USAGES)
def test_a_difference_added_to_what_it_was_taken_from_is_the_sum(before, more):
    now = add_usage(before, more)
    assert complete(add_usage(before, usage_delta(before, now))) == complete(now)
    assert complete(usage_delta(before, now)) == complete(more)


@given(USAGES)
def test_nothing_added_or_nothing_used_changes_nothing(usage):
    assert add_usage(usage, zero_usage()) == usage
    assert usage_delta(zero_usage(), usage) == usage
    assert complete(add_usage(zero_usage(), usage)) == complete(usage)


@given(USAGES, USAGES, USAGES)
def test_the_order_of_sums_does_not_matter(one, two, three):
    assert add_usage(add_usage(one, two), three) == add_usage(one, add_usage(two, three))
    assert complete(add_usage(one, two)) == complete(add_usage(two, one))


@given(USAGES, USAGES)
def test_the_large_models_usage_and_the_cost_of_a_sum_are_sums(one, two):
    both = add_usage(one, two)
    assert large_usage(both, PRICES) == pytest.approx(large_usage(one, PRICES).plus(large_usage(two, PRICES)))
    assert total_cost(both, PRICES) == pytest.approx(total_cost(one, PRICES) + total_cost(two, PRICES))


@given(st.builds(LargeUsage, COUNTS, COUNTS, QUARTERS), st.builds(LargeUsage, COUNTS, COUNTS, QUARTERS))
def test_large_usage_that_was_added_is_taken_away_again(one, other):
    assert one.plus(other).minus(other) == one
    assert one.minus(other).large_cost >= 0


def test_large_usage_counts_what_was_charged_without_a_report():
    usage = zero_usage()
    usage["large"] |= {"calls": 2, "input_tokens": 10, "cached_tokens": 4, "output_tokens": 5}  # type: ignore[typeddict-item]
    usage["unaccounted_tokens"], usage["unaccounted_cost"] = 7, 3.0
    assert large_usage(usage, PRICES) == LargeUsage(
        large_tokens=12, large_calls=2, large_cost=24 + 4 + 40 + 3.0
    )


@WRITERS
@given(USAGES, ATTEMPTS, st.integers(1, 500), st.integers(0, 500))
def test_a_charge_changes_no_usage_it_was_given_and_never_takes_away(writer, usage, attempts, tokens, prompt):
    before = add_usage(usage, zero_usage())
    limits: Any = {"max_tokens": tokens, "prompt_tokens": prompt, "prices": PRICES}
    for charged in (
        charge_attempts(usage, writer, attempts, **limits),
        charge_lost(usage, writer, attempts, **limits),
        charge_failed_call(usage, writer, ModelServerError("gone", begun=True), **limits),
        charge_answer(usage, writer, REPLY, 1.5, overshoot=2),
        charge_in_full(usage, **limits),
        charge_scorer(usage, 1.5, attempts, failed=True),
    ):
        assert usage == before
        assert charged.keys() == usage.keys()
        for part, kind in (("small", WriterUsage), ("large", WriterUsage), ("scorer", ScorerUsage)):
            assert set(charged[part]) <= set(kind.__annotations__)  # type: ignore[literal-required]
        assert total_cost(charged, PRICES) >= total_cost(usage, PRICES)
        assert large_usage(charged, PRICES).large_tokens >= large_usage(usage, PRICES).large_tokens


@given(USAGES, ATTEMPTS)
def test_attempts_of_the_small_model_are_counted_and_never_charged_to_the_large_one(usage, attempts):
    charged = charge_attempts(usage, "small", attempts, max_tokens=50, prompt_tokens=10, prices=PRICES)
    assert large_usage(charged, PRICES) == large_usage(usage, PRICES)
    assert charged["small"]["failed_attempts"] == usage["small"]["failed_attempts"] + attempts["count"]


@pytest.mark.parametrize(
    ("attempts", "read", "written"),
    [
        (lost(unknown=0), 0, 0),
        (lost(unknown=1), 10, 50),
        (lost(2, unknown=2), 20, 100),
        (lost(2, unknown=2, unknown_tokens=60), 20, 60),
    ],
)
def test_attempts_of_the_small_model_without_reported_usage_are_charged_in_full(attempts, read, written):
    charged = charge_attempts(zero_usage(), "small", attempts, max_tokens=50, prompt_tokens=10, prices=PRICES)
    assert (charged["small"]["input_tokens"], charged["small"]["output_tokens"]) == (read, written)
    assert unreported_tokens(charged, "small") == written
    assert unreported_tokens(charged, "large") == 0


class ClientError(Exception):
    """An error of a provider's client."""

    def __init__(self, status: int | None) -> None:
        super().__init__("no")
        self.status_code = status


@WRITERS
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422, 429, 408, 424, 500, 502, 503, 504, None])
@pytest.mark.parametrize("form", ["its own", "of its response", "of its cause"])
def test_a_rejected_call_is_not_charged_and_any_other_in_full(writer, status, form):
    error: Exception = ClientError(status)
    if form == "of its response":
        error = Exception("no")
        error.response = ClientError(status)  # type: ignore[attr-defined]
    if form == "of its cause":
        error = Exception("wrapped")
        error.__cause__ = ClientError(status)
    limits: Any = {"max_tokens": 50, "prompt_tokens": 10, "prices": PRICES}
    charged = charge_failed_call(zero_usage(), writer, error, **limits)
    rejected = status in (400, 401, 402, 403, 404, 422, 429)
    assert unreported_tokens(charged, writer) == (0 if rejected else 50)
    assert (total_cost(charged, PRICES) == 0) == rejected
    assert charged[writer]["failed_attempts"] == 1


@pytest.mark.parametrize(
    ("attempts", "tokens", "cost", "overshoot"),
    [
        (lost(unknown=0), 0, 0.0, 0),
        (lost(unknown=1), 50, 440.0, 0),
        (lost(2, unknown=2), 100, 880.0, 0),
        (lost(2, unknown=2, unknown_tokens=60), 60, 560.0, 0),
        (lost(output_tokens=70), 0, 0.0, 20),
        (lost(output_tokens=70, overshoot_tokens=5), 0, 0.0, 5),
    ],
)
def test_attempts_of_the_large_model_without_reported_usage_are_charged_in_full(
    attempts, tokens, cost, overshoot
):
    charged = charge_attempts(zero_usage(), "large", attempts, max_tokens=50, prompt_tokens=10, prices=PRICES)
    assert (charged["unaccounted_tokens"], charged["unaccounted_cost"]) == (tokens, cost)
    assert charged["overshoot_tokens"] == overshoot


def test_lost_attempts_are_charged_what_they_reported():
    limits: Any = {"max_tokens": 50, "prompt_tokens": 10, "prices": PRICES}
    charged = charge_lost(zero_usage(), "large", lost(input_tokens=9, output_tokens=8), **limits)
    assert (charged["large"]["input_tokens"], charged["large"]["output_tokens"]) == (9, 8)


@WRITERS
def test_an_answer_is_one_call_with_its_tokens_and_seconds(writer):
    once = charge_answer(zero_usage(), writer, REPLY, 1.5, overshoot=2)
    twice = charge_answer(once, writer, REPLY, 0.5)
    assert (twice["seconds"], twice["overshoot_tokens"]) == (2.0, 2)
    assert twice[writer] == {
        "calls": 2,
        "input_tokens": 18,
        "output_tokens": 16,
        "cached_tokens": 8,
        "failed_attempts": 0,
        "failed_calls": 0,
        "seconds": 2.0,
    }


def test_a_call_of_which_nothing_is_known_is_charged_in_full():
    charged = charge_in_full(zero_usage(), max_tokens=50, prompt_tokens=10, prices=PRICES)
    assert large_usage(charged, PRICES) == LargeUsage(large_tokens=50, large_calls=1, large_cost=440.0)
    assert (charged["unaccounted_tokens"], charged["large"]["failed_calls"]) == (50, 0)


@WRITERS
@pytest.mark.parametrize("begun", [True, False])
def test_a_failed_call_is_one_call_and_charged_in_full_only_where_it_had_begun(writer, begun):
    error = ModelServerError("gone", begun=begun)
    limits: Any = {"max_tokens": 50, "prompt_tokens": 10, "prices": PRICES}
    charged = charge_failed_call(zero_usage(), writer, error, **limits)
    assert (charged[writer]["calls"], charged[writer]["failed_calls"]) == (1, 1)
    assert charged["unaccounted_tokens"] == (50 if begun and writer == "large" else 0)


@pytest.mark.parametrize("failed", [True, False])
def test_a_pass_of_the_scorer_is_counted_with_its_time_and_tokens(failed):
    charged = charge_scorer(zero_usage(), 1.5, lost(0, input_tokens=9, output_tokens=8), failed=failed)
    assert charged["seconds"] == 1.5
    assert charged["scorer"] == {
        "calls": 1,
        "input_tokens": 9,
        "output_tokens": 8,
        "failed_attempts": 0,
        "failed_calls": int(failed),
        "seconds": 1.5,
    }
