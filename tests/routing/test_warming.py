"""When the router has the large model's cache warmed: beside which drafts, and within which limits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.routing.test_router import (
    MAX_STEPS,
    ONE_A_TOKEN,
    STEP_TOKENS,
    STEPS,
    Says,
    draft,
    route,
    step,
    step_request,
    used,
    view_of,
)
from trim_graph.budget import Budget, RemainingBudget
from trim_graph.budget.usage import WarmingUsage, large_usage
from trim_graph.policies import small_only
from trim_graph.routing import Generate, Router
from trim_graph.routing.router import MAX_LARGE_FAILURES, WARM_TOKENS, WarmRequest


def warm(policy: Any = None, **given: Any) -> WarmRequest | None:
    action = route(policy, **{"warm_large": True, **given}).action
    return action.warm if isinstance(action, Generate) else None


def texts(request: WarmRequest | None) -> list[str]:
    return [] if request is None else [one["text"] for one in request.steps]


# Beside which drafts?


def test_the_steps_so_far_are_read_beside_a_draft_that_may_be_rewritten():
    assert texts(warm()) == ["first", "second"]
    assert texts(warm(steps=[])) == []
    assert warm(steps=[]) == WarmRequest((), 0)


def test_a_step_that_was_just_accepted_is_among_them():
    assert texts(warm(draft=draft(0.9))) == ["first", "second", "a draft"]


def test_nothing_is_read_unless_the_setting_asks_for_it():
    assert warm(warm_large=False) is None


@pytest.mark.parametrize("writer", ["large", "large_to_end"])
def test_nothing_is_read_while_the_large_model_writes(writer):
    assert warm(Says(writer)) is None


def test_nothing_is_read_for_a_draft_that_nobody_rewrites():
    assert warm(small_only()) is None
    assert warm(small_only(), ask_below=0.3) is not None  # a human may have it rewritten
    assert warm(Says("probe")) is not None


def test_what_the_large_model_wrote_last_is_in_its_cache():
    assert warm(steps=[step("first"), step("second", writer="large")]) is None
    assert warm(steps=[step("first"), step("second", writer="human")]) is not None


def test_a_further_attempt_at_a_step_has_the_same_prompt_and_is_read_no_more():
    assert warm(request=step_request(attempt=1, needs_decision=True, partial_text="---")) is None


def test_a_turn_of_an_agent_is_not_read():
    assert route(unit="turn", warm_large=True).action.warm is None  # type: ignore[attr-defined]


def test_a_draft_that_lookahead_foresees_is_not_read():
    action = Router().if_kept(view_of(warm_large=True, draft=draft()))
    assert isinstance(action, Generate)
    assert action.warm is None


def test_nothing_is_read_by_a_large_model_that_has_been_given_up():
    assert warm(usage=used(failed=MAX_LARGE_FAILURES - 1)) is not None
    assert warm(usage=used(failed=MAX_LARGE_FAILURES)) is None


@pytest.mark.parametrize("failed", range(5))
def test_after_three_failures_of_its_own_nothing_is_read(failed):
    counts = dict.fromkeys(WarmingUsage.__annotations__, 0) | {"failed_calls": failed}
    assert (warm(usage={**used(), "warming": counts}) is None) == (failed >= MAX_LARGE_FAILURES)


# Within which limits?

LIMITS = st.one_of(st.none(), st.integers(0, 4 * STEP_TOKENS))
CALLS = st.one_of(st.none(), st.integers(0, 8))


@given(LIMITS, CALLS, LIMITS, LIMITS, CALLS, LIMITS, st.integers(0, 50))
def test_what_is_left_after_it_allows_a_whole_rewrite_in_every_account(
    tokens, calls, cost, account_tokens, account_calls, account_cost, prompt
):
    own = Budget(large_tokens=tokens, large_calls=calls, large_cost=cost)
    account = RemainingBudget(large_tokens=account_tokens, large_calls=account_calls, large_cost=account_cost)
    request = warm(
        Says("small"),
        budget=own,
        prices=ONE_A_TOKEN,
        accounts_left={"user:ada": account},
        count_prompt=lambda steps, written: prompt,
    )
    step_costs = prompt + STEP_TOKENS
    left = MAX_STEPS - len(STEPS)
    allowed = all(
        (of_tokens is None or of_tokens - WARM_TOKENS >= STEP_TOKENS)
        and (of_calls is None or of_calls - 1 >= left)
        and (of_cost is None or of_cost - prompt - WARM_TOKENS >= step_costs)
        for of_tokens, of_calls, of_cost in (
            (tokens, calls, cost),
            (account_tokens, account_calls, account_cost),
        )
    )
    assert (request is not None) == allowed
    assert request is None or request.prompt_tokens == prompt


def test_no_time_is_left_for_it_where_none_is_left_for_a_rewrite():
    assert warm(budget=Budget(seconds=10.0), usage=used(seconds=1.0)) is not None
    assert warm(budget=Budget(seconds=10.0), usage=used(seconds=10.0)) is None


def test_a_prompt_that_cannot_be_bounded_is_not_read_under_a_limit_on_cost():
    from trim_graph.prompt_size import UnboundedPrompt

    def unbounded(steps: Any, written: str) -> int:
        raise UnboundedPrompt("image", 7)

    assert warm(prices=ONE_A_TOKEN, count_prompt=unbounded) == WarmRequest(tuple(STEPS), 7)  # type: ignore[arg-type]
    budget = Budget(large_cost=1000.0)
    assert warm(prices=ONE_A_TOKEN, count_prompt=unbounded, budget=budget) is None


def test_the_router_charges_nothing_itself():
    ruling = route(warm_large=True)
    assert large_usage(ruling.state["usage"], ONE_A_TOKEN) == (0, 0, 0)
    assert "usage" not in ruling.action.update
    assert ruling.request["writer"] == "small"
