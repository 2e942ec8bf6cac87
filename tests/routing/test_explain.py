"""Each way that the router can take a step has a sentence, which names the reason and its numbers."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from tests.routing.test_router import (
    DECIDED,
    LARGE,
    LARGE_FAILED,
    REJECTED,
    SCORER_FAILED,
    SMALL_FAILED,
    TO_THE_END,
    Says,
    draft,
    route,
    step_request,
    used,
    view_of,
)
from trim_graph.budget import Budget
from trim_graph.policies import advantage, entropy_probe, large_only, small_only
from trim_graph.routing import Router, RouterOptions
from trim_graph.routing.explain import STOP_REASONS
from trim_graph.routing.router import MAX_LARGE_FAILURES
from trim_graph.state import Stopped

NO_BUDGET = Budget(large_calls=0)
WANTED = "threshold(0.5) had the large model write the step again (score 0.2)"
PROBED = step_request(max_tokens=1, probe={"entropy": 1.42, "unobserved_probability": 0.0})


def accepted(*arguments: Any, **given: Any) -> str:
    """Returns the explanation of the step that the router accepts."""
    ruling = route(*arguments, **given)
    (first, *_) = ruling.action.update["steps"]
    (event, *_) = ruling.events("accepted")
    assert event["why"] == first["why"]
    return str(first["why"])


def requested(*arguments: Any, **given: Any) -> str:
    """Returns the explanation of the step that the router requests."""
    return str(route(*arguments, **given).request["why"])


# The policy


def test_an_accepted_draft_is_explained_by_policy_and_score():
    assert accepted(draft=draft(0.83)) == "threshold(0.5) accepted the small model's draft (score 0.83)"


def test_a_rewritten_draft_is_explained_by_policy_and_score():
    assert requested(draft=draft(0.2)) == WANTED


def test_a_policy_may_name_numbers_of_its_own():
    why = requested(advantage(0.1, price_per_token=0.01), draft=draft(0.2))
    assert why == (
        "advantage(0.1, price_per_token=0.01) had the large model write the step again "
        "(gain 0.6, more than 0.2 needed)"
    )


def test_a_handover_is_explained_by_the_policys_decision():
    why = requested(Says(decision="handover"), draft=draft(0.2))
    assert why == "Says handed this and all further steps over to the large model (score 0.2)"


def test_a_turn_is_called_a_turn():
    assert requested(unit="turn", draft=draft(0.2)) == WANTED.replace("step", "turn")


def test_a_large_step_that_the_policy_named_is_explained_by_its_entropy():
    why = requested(entropy_probe(1.0), request=PROBED)
    assert why == "entropy_probe(1.0) named the large model (entropy 1.42 nats)"


def test_a_small_step_without_a_decision_is_explained_by_its_entropy():
    why = requested(entropy_probe(2.0), request=PROBED)
    assert why == "entropy_probe(2.0) named the small model and decides on no draft (entropy 1.42 nats)"


def test_the_models_alone_are_explained_by_their_policies():
    assert requested(small_only()) == "small_only() named the small model and decides on no draft"
    assert requested(large_only()) == "large_only() named the large model for this and all further steps"


def test_a_handed_over_turn_is_explained_by_the_handover():
    why = requested(unit="turn", handed_over=True)
    assert why == "the handover named the large model for this and all further turns"


def test_a_request_for_a_draft_to_decide_on_has_no_explanation_yet():
    assert "why" not in route().request
    assert "why" not in route(Says("probe")).request


def test_a_large_models_step_keeps_the_explanation_of_its_request():
    request = step_request("large", why="a reason")
    assert accepted(draft=draft(writer="large"), request=request) == "a reason"


def test_further_steps_of_one_call_say_that_it_went_on():
    whole = draft(text="one\n\ntwo\n\nthree", writer="large", end="eos")
    ruling = route(max_steps=9, draft=whole, request={**TO_THE_END, "why": "a reason"})
    assert [one["why"] for one in ruling.action.update["steps"]] == [
        "a reason",
        *["the large model wrote it in the same call as the step before"] * 2,
    ]


def test_a_step_requested_by_an_earlier_release_has_no_explanation():
    (kept,) = route(draft=draft(writer="large"), request=LARGE).action.update["steps"]
    assert "why" not in kept


# The budget


def test_a_draft_that_the_budget_keeps_says_so_after_the_policys_decision():
    why = accepted(draft=draft(0.2), budget=NO_BUDGET)
    assert why == f"{WANTED}, but the limit on large_calls is spent: the small model's draft stays"


def test_a_small_step_for_which_the_budget_leaves_no_large_one_says_so():
    why = requested(large_only(), budget=NO_BUDGET)
    assert why == (
        "large_only() named the large model for this and all further steps, but the limit on large_calls is "
        "spent: the small model writes"
    )


def test_a_draft_that_nothing_can_rewrite_says_which_limit_is_spent():
    spent = "the limit on large_calls is spent: the small model writes"
    assert requested(budget=NO_BUDGET) == spent
    assert requested(Says("probe"), budget=NO_BUDGET) == spent


def test_a_large_model_that_failed_too_often_explains_the_small_step():
    why = requested(usage=used(failed=MAX_LARGE_FAILURES))
    assert why == "the large model has failed too often to be called again: the small model writes"


def test_a_repeated_call_for_which_the_budget_is_spent_keeps_the_draft():
    request = step_request("large", attempt=1, why=WANTED)
    why = accepted(request=request, decisions=[REJECTED], budget=NO_BUDGET)
    assert why == f"{WANTED}, but the limit on large_calls is spent: the small model's draft stays"


def test_an_account_that_other_runs_exhausted_explains_the_small_step():
    failed = {"part": "large", "error": "", "exhausted_limit": "large_tokens of user:1"}
    request = step_request("large", why="a reason")
    why = requested(request=request, failed=failed, budget=NO_BUDGET)
    assert why == "a reason, but the limit on large_calls is spent: the small model writes"


def test_an_account_with_budget_again_keeps_the_reason_for_the_large_model():
    failed = {"part": "large", "error": "", "exhausted_limit": "large_tokens of user:1"}
    assert requested(request=step_request("large", why="a reason"), failed=failed) == "a reason"


def test_a_turn_for_whose_whole_prompt_the_budget_is_spent_says_so():
    view = view_of(request=step_request("large", why="a reason"), budget=NO_BUDGET)
    request = Router(RouterOptions("turn")).renewed(view).update["request"]
    assert request["why"] == "a reason, but the limit on large_calls is spent: the small model writes"


# Failures


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"on_scorer_error": "accept"},
            "the scorer failed and on_scorer_error is accept: the small model's draft stays",
        ),
        (
            {"on_scorer_error": "regenerate", "budget": NO_BUDGET},
            "the scorer failed and on_scorer_error is regenerate, but the limit on large_calls is spent: the "
            "small model's draft stays",
        ),
    ],
)
def test_a_draft_that_stays_after_the_scorer_failed_names_the_setting(given, expected):
    assert accepted(draft=draft(), request=DECIDED, failed=SCORER_FAILED, **given) == expected


def test_a_step_written_again_after_the_scorer_failed_names_the_setting():
    why = requested(draft=draft(), request=DECIDED, failed=SCORER_FAILED, on_scorer_error="regenerate")
    assert why == "the scorer failed and on_scorer_error is regenerate: the large model writes"


def test_a_failed_rewrite_keeps_the_draft_and_both_reasons():
    request = step_request("large", why=WANTED)
    why = accepted(request=request, decisions=[REJECTED], failed=LARGE_FAILED, on_large_error="accept")
    assert why == (
        f"{WANTED}, but the large model failed and on_large_error is accept: the small model's draft stays"
    )


def test_a_failed_large_step_without_a_draft_is_left_to_the_small_model():
    why = requested(request=step_request("large"), failed=LARGE_FAILED, on_large_error="accept")
    assert why == "the large model failed and on_large_error is accept: the small model writes"


def test_a_failed_draft_is_left_to_the_large_model():
    why = requested(request=DECIDED, failed=SMALL_FAILED, on_small_error="large")
    assert why == "the small model failed and on_small_error is large: the large model writes"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"no_step": True}, "the small model wrote no step and on_small_error is large"),
        ({"context_full": True}, "the context of the small model is full"),
    ],
)
def test_an_answer_without_a_step_and_a_full_context_are_named(more, expected):
    why = requested(request=DECIDED, failed={**SMALL_FAILED, **more}, on_small_error="large")
    assert why == f"{expected}: the large model writes"


def test_a_large_turn_that_was_cut_off_leaves_the_small_models_turn():
    cut = draft(writer="large", end="length")
    why = accepted(unit="turn", draft=cut, request=step_request("large", max_tokens=7), decisions=[REJECTED])
    assert why == "the large model's turn was cut off at 7 tokens: the small model's draft stays"


# No decision where one was asked for


def test_a_draft_without_time_for_a_decision_says_so():
    why = accepted(draft=draft(), request=step_request(), usage=used(seconds=2), budget=Budget(seconds=1))
    assert why == "no time is left for a decision: the small model's draft stays"


def test_a_draft_that_fills_the_scorers_context_says_so():
    full = {**SCORER_FAILED, "context_full": True}
    why = accepted(draft=draft(), request=step_request(), failed=full)
    assert why == "the scorer's context is full: the small model's draft stays without a score"


def test_a_draft_of_a_part_that_is_not_routed_says_so():
    why = accepted(draft=draft(part="answer"), request=step_request(), thinking={"routed": "reasoning"})
    assert why == "the draft is answer, and only reasoning is routed: the small model's draft stays"


# A human


def test_a_humans_decision_is_a_humans():
    answered = {"human_response": {"decision": "regenerate"}, "draft": draft(0.9)}
    assert requested(**answered) == "a human had the large model write the step again"
    answered = {"human_response": {"decision": "accept"}, "draft": draft(0.1)}
    assert accepted(**answered) == "a human accepted the small model's draft"


def test_a_step_by_hand_is_a_humans():
    ruling = route(human_response={"step": "by\n\nhand", "ends": True}, request=DECIDED)
    assert [one["why"] for one in ruling.action.update["steps"]] == ["a human wrote it"] * 2


def test_a_run_that_a_human_continues_with_the_small_model_says_so():
    why = requested(human_response={"continue_with": "small"}, request=LARGE)
    assert why == "a human had the small model continue: the small model writes"


# Everything


def test_the_reasons_to_stop_are_those_of_the_state():
    assert set(STOP_REASONS) == set(get_args(Stopped))


@pytest.mark.parametrize("reason", STOP_REASONS)
def test_every_reason_to_stop_has_a_sentence_for_an_agent(reason):
    settings = {"max_steps": 3, "budget": {"seconds": 1.5}}
    own = {
        "max_steps": "its limit of 3 turns is reached",
        "deadline": "its limit of 1.5 seconds is reached",
        "failed": "no model could write the next turn",
    }
    assert STOP_REASONS[reason].to_agent(settings) == own.get(reason, STOP_REASONS[reason].sentence)


@pytest.mark.parametrize("policy", [None, small_only(), large_only()], ids=["threshold", "small", "large"])
@pytest.mark.parametrize("budget", [Budget(), Budget(large_calls=1), Budget(large_tokens=0)])
def test_every_step_of_a_run_is_explained_in_state_and_events(make, policy, budget):
    rig = make(policy=policy, budget=budget)
    events = rig.steps()
    assert len(events) == 4
    assert all(event["why"] for event in events)
