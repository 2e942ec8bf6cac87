"""The specification of routing: a state goes in, one action comes out; no graph, no model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trim_graph import process
from trim_graph.agents.state import AgentRouting
from trim_graph.budget import Budget, ModelPrice, Prices, RemainingBudget
from trim_graph.budget.limits import cost_limit
from trim_graph.budget.usage import large_usage, zero_usage
from trim_graph.errors import InputError, SettingsError
from trim_graph.policies import Choice, Observation, Policy, entropy_probe, large_only, small_only, threshold
from trim_graph.prompt_size import UnboundedPrompt
from trim_graph.routing import (
    AcceptedText,
    Action,
    AskHuman,
    Finish,
    Generate,
    Router,
    RouterOptions,
    RunView,
)
from trim_graph.routing.human import DraftAnswer, HumanAnswer, apply_response
from trim_graph.routing.router import (
    LIMIT_REACHED,
    MAX_LARGE_FAILURES,
    PLAIN_ROUND,
    PROBE,
    RECURSION_FLOOR,
    SCORED_ROUND,
    Event,
    way_out,
)
from trim_graph.settings import Settings
from trim_graph.state import SCHEMA_VERSION, Draft, StepRequest, TrimState, reduce_state

STEP_TOKENS = 100
MAX_STEPS = 4
ONE_A_TOKEN = Prices(large=ModelPrice(input=1e6, output=1e6))
"""A token costs 1, so that a cost can be read as tokens."""


# The builder: a run with two steps of the small model, unless a test says otherwise.


class Says(Policy):
    """Answers what it is given; keeps what it was shown."""

    def __init__(
        self,
        writer: Any = "small",
        decision: Any = "accept",
        *,
        needs_score: bool = True,
        decides: bool = True,
    ) -> None:
        self.writer, self.decision = writer, decision
        self.needs_score, self.decides = needs_score, decides
        self.shown: list[Observation] = []

    def next_writer(self, observation: Observation) -> Any:
        self.shown.append(observation)
        return self.writer

    def decide(self, observation: Observation) -> Any:
        self.shown.append(observation)
        return self.decision


def step(text: str = "a step", writer: str = "small", end: str = "delimiter", **more: Any) -> Any:
    return {
        "text": text,
        "writer": writer,
        "model": writer,
        "tokens": 10,
        "mean_token_probability": None,
        "end": end,
        **more,
    }


def draft(score: float | None = None, text: str = "a draft", **more: Any) -> Any:
    return {**step(text, **more), "score": score}


def step_request(writer: str = "small", **more: Any) -> StepRequest:
    request: dict[str, Any] = {
        "writer": writer,
        "until_eos": False,
        "max_tokens": STEP_TOKENS,
        "needs_score": False,
        "needs_decision": False,
        "partial_text": "",
        "attempt": 0,
    }
    return StepRequest(**{**request, **more})  # type: ignore[typeddict-item]


DECIDED = step_request(needs_decision=True, needs_score=True)
LARGE = step_request("large")
TO_THE_END = step_request("large", until_eos=True, max_tokens=2 * STEP_TOKENS)
STEPS = (step("first"), step("second"))
REJECTED = {"step": 2, "decision": "regenerate", "score": 0.2, "discarded": step("a rejected draft")}
"""The decision by which the large model is to write the third step again."""
SMALL_FAILED = {"part": "small", "error": "gone"}
LARGE_FAILED = {"part": "large", "error": "gone"}
SCORER_FAILED = {"part": "scorer", "error": "gone"}


def used(*, failed: int = 0, unaccounted: int = 0, seconds: float = 0.0, **large: int) -> Any:
    usage = zero_usage()
    usage["large"] |= {"failed_calls": failed, **large}  # type: ignore[typeddict-item]
    return {**usage, "unaccounted_tokens": unaccounted, "seconds": seconds}


def view_of(
    policy: Policy | None = None,
    *,
    accounts: dict[str, dict[str, Any]] | None = None,
    accounts_left: dict[str, RemainingBudget] | None = None,
    count_prompt: Callable[..., int] = lambda steps, written: 0,
    **given: Any,
) -> RunView:
    """Returns the view of a run; what is given are settings or channels, by their names."""
    named = {name: given.pop(name) for name in Settings.model_fields if name in given}
    named = {"max_steps": MAX_STEPS, "max_step_tokens": STEP_TOKENS, "instruction": None} | named
    run: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "id": "r",
        "message_id": "trim-r",
        "seed": "s",
        "question": "How many?",
        "settings": Settings(**named).model_dump(mode="json"),
    }
    if accounts or accounts_left:
        run["accounts"] = accounts or {}
    channels: dict[str, Any] = {
        "messages": [],
        "run": run,
        "steps": list(STEPS),
        "scores": {},
        "decisions": [],
        "draft": None,
        "request": None,
        "in_flight": None,
        "failed": None,
        "pending_interrupt": None,
        "human_response": None,
        "memory": None,
        "usage": zero_usage(),
        "charged_call": None,
        "stopped": "",
        "notes": [],
        "remaining_steps": 1000,
        **given,
    }
    if channels["draft"] is not None and channels["request"] is None:
        channels["request"] = DECIDED if channels["draft"]["writer"] == "small" else LARGE
    return RunView(
        cast(TrimState, channels),
        policy or threshold(0.5),
        accounts_left=accounts_left,
        count_prompt=count_prompt,
    )


@dataclass
class Ruling:
    """An action and the state as it leaves it."""

    action: Action
    before: TrimState
    state: Any = field(init=False)

    def __post_init__(self) -> None:
        self.state = reduce_state(self.before, self.action.update)

    def __str__(self) -> str:
        if isinstance(self.action, Generate):
            request = self.request
            what = "probe" if "probe" in request else "draft" if request["needs_decision"] else "step"
            return f"{request['writer']} {'to the end' if request['until_eos'] else what}"
        if isinstance(self.action, AskHuman):
            pending = self.state["pending_interrupt"]
            return f"ask about {pending['limit'] or 'the score'}"
        return f"end: {self.state['stopped']}"

    @property
    def request(self) -> Any:
        return self.state["request"]

    @property
    def notes(self) -> str:
        return "; ".join(self.state["notes"])

    @property
    def texts(self) -> list[str]:
        """Of the steps that this action accepts."""
        return [one["text"] for one in self.action.update.get("steps", [])]

    @property
    def decision(self) -> dict[str, Any] | None:
        """What this action puts on record, without the step's number and the score."""
        records = self.action.update.get("decisions", [])
        kept = [{k: v for k, v in one.items() if k not in ("step", "score")} for one in records]
        return kept[-1] if kept else None

    def events(self, name: str) -> list[Any]:
        return [e.content for e in self.action.events if isinstance(e, Event) and e.name == name]


def route(policy: Policy | None = None, unit: Literal["step", "turn"] = "step", **given: Any) -> Ruling:
    view = view_of(policy, **given)
    return Ruling(Router(RouterOptions(unit)).next(view), view.state)


# Who writes the next step?


@pytest.mark.parametrize(
    ("writer", "expected"),
    [
        ("small", "small draft"),
        ("large", "large step"),
        ("large_to_end", "large to the end"),
        ("probe", "small probe"),
    ],
)
def test_the_writer_that_the_policy_names_is_asked(writer, expected):
    assert str(route(Says(writer))) == expected


def test_a_step_of_either_writer_may_take_the_tokens_of_one_step():
    assert route(Says("small")).request["max_tokens"] == STEP_TOKENS
    assert route(Says("large")).request["max_tokens"] == STEP_TOKENS


def test_a_writer_to_the_end_may_take_the_tokens_of_all_steps_that_remain():
    assert route(Says("large_to_end")).request["max_tokens"] == (MAX_STEPS - 2) * STEP_TOKENS


def test_a_segmentation_with_a_lower_cap_lowers_the_tokens_of_a_step():
    assert route(segmentation={"type": "tokens", "tokens": 7}).request["max_tokens"] == 7


def test_a_probe_is_one_token_on_which_no_decision_hangs():
    request = route(Says("probe")).request
    assert request == step_request(max_tokens=1, probe={"entropy": None, "unobserved_probability": None})


@pytest.mark.parametrize(
    ("entropy", "expected"), [(0.5, "small step"), (1.0, "small step"), (1.5, "large step")]
)
def test_a_probe_that_has_found_an_entropy_lets_the_policy_choose_the_writer(entropy, expected):
    probed = step_request(max_tokens=1, probe={"entropy": entropy, "unobserved_probability": 0.0})
    ruling = route(entropy_probe(1.0), request=probed)
    assert str(ruling) == expected
    assert ruling.request["max_tokens"] == STEP_TOKENS


def test_a_second_probe_of_one_step_is_an_error_of_the_policy():
    probed = step_request(max_tokens=1, probe={"entropy": 0.5, "unobserved_probability": 0.0})
    with pytest.raises(SettingsError, match="answered 'probe'; expected one of small, large, large_to_end"):
        route(Says("probe"), request=probed)


@pytest.mark.parametrize(
    ("on_exhausted", "expected"),
    [("small", "small step"), ("stop", "end: budget"), ("ask", "small probe")],
)
def test_a_probe_without_budget_for_the_large_model_is_asked_only_where_a_human_may_give_more(
    on_exhausted, expected
):
    assert str(route(Says("probe"), budget=Budget(large_calls=0, on_exhausted=on_exhausted))) == expected


def test_a_probe_without_a_usable_large_model_is_not_asked_and_the_small_model_writes():
    assert str(route(Says("probe"), usage=used(failed=MAX_LARGE_FAILURES))) == "small step"


def test_a_memory_that_comes_with_a_probe_is_dropped_and_one_with_a_writer_is_kept():
    assert route(Says(Choice("probe", "new")), memory="old").state["memory"] == "old"
    assert route(Says(Choice("large", "new")), memory="old").state["memory"] == "new"
    assert route(Says("large"), memory="old").state["memory"] == "old"


def test_an_answer_that_names_no_writer_is_an_error_of_the_policy():
    with pytest.raises(SettingsError, match="answered 'medium'"):
        route(Says("medium"))


def test_the_policy_sees_the_steps_their_scores_and_what_is_left():
    policy = Says()
    route(
        policy,
        steps=[step("one"), step("two", "large")],
        scores={"0": 0.7},
        memory={"n": 1},
        budget=Budget(large_tokens=30),
        usage=used(output_tokens=10),
        accounts_left={"user:1": RemainingBudget(large_tokens=5, large_calls=2)},
    )
    assert policy.shown == [
        Observation(
            question="How many?",
            index=2,
            max_steps=MAX_STEPS,
            scores=(0.7, None),
            tokens=(10, 10),
            writers=("small", "large"),
            budget_left=RemainingBudget(large_tokens=5, large_calls=2),
            memory={"n": 1},
            seed="s:2:next_writer",
        )
    ]


def test_a_handed_over_run_asks_the_policy_no_more():
    policy = Says("small")
    assert str(route(policy, unit="turn", handed_over=True)) == "large to the end"
    assert not policy.shown


# Is a decision needed?


ASKS = Budget(large_calls=9, on_exhausted="ask")


@pytest.mark.parametrize(
    ("policy", "options", "needs_decision", "needs_score"),
    [
        (threshold(0.5), {}, True, True),
        (small_only(), {}, False, False),
        (Says(needs_score=False), {}, True, False),
        (Says(decides=False), {}, False, False),
        (small_only(), {"ask_below": 0.3}, True, True),
        (Says(needs_score=False), {"ask_below": 0.3}, True, True),
        (threshold(0.5), {"budget": Budget(large_calls=0)}, False, False),
        (threshold(0.5), {"budget": Budget(large_calls=0, on_exhausted="ask")}, True, True),
        (threshold(0.5), {"budget": Budget(large_calls=0), "ask_below": 0.3}, True, True),
        (threshold(0.5), {"usage": used(failed=MAX_LARGE_FAILURES)}, False, False),
        (threshold(0.5), {"budget": ASKS, "usage": used(failed=MAX_LARGE_FAILURES)}, False, False),
        (threshold(0.5), {"budget": ASKS, "ask_below": 0.3, "usage": used(failed=9)}, True, True),
    ],
)
def test_a_draft_is_decided_on_where_the_policy_or_a_human_can_act_and_scored_where_one_looks(
    policy, options, needs_decision, needs_score
):
    request = route(policy, **options).request
    assert (request["needs_decision"], request["needs_score"]) == (needs_decision, needs_score)


def test_a_draft_on_which_no_decision_hangs_is_kept_unasked():
    policy = Says(decision="regenerate")
    ruling = route(policy, draft=draft(0.0), request=step_request())
    assert (ruling.texts, ruling.decision) == (["a draft"], None)
    assert [shown.draft for shown in policy.shown] == [None]


# Does the draft stay?


@pytest.mark.parametrize("score", [0.5, 0.9, 1.0, None])
def test_a_draft_above_the_threshold_is_kept_and_the_small_model_writes_on(score):
    ruling = route(threshold(0.5), draft=draft(score))
    assert (str(ruling), ruling.texts, ruling.decision) == (
        "small draft",
        ["a draft"],
        {"decision": "accept"},
    )
    assert ruling.state["draft"] is None
    assert ruling.state["scores"] == ({} if score is None else {"2": score})


def test_a_draft_below_the_threshold_is_discarded_and_the_large_model_writes_the_step():
    ruling = route(threshold(0.5), draft=draft(0.4))
    assert (str(ruling), ruling.texts) == ("large step", [])
    assert ruling.decision == {"decision": "regenerate", "discarded": step("a draft")}
    assert ruling.request == {**LARGE, "why": ruling.request["why"]}
    assert ruling.state["draft"] is None
    assert ruling.state["scores"] == {}


def test_a_draft_that_is_handed_over_is_discarded_and_the_large_model_writes_to_the_end():
    ruling = route(Says(decision="handover"), draft=draft(0.4))
    assert (str(ruling), ruling.texts) == ("large to the end", [])
    assert ruling.decision == {"decision": "handover", "discarded": step("a draft")}
    assert ruling.request["max_tokens"] == (MAX_STEPS - 2) * STEP_TOKENS


def test_a_decision_is_on_record_with_the_step_its_score_and_its_part():
    ruling = route(threshold(0.5), draft=draft(0.4, part="reasoning"))
    assert ruling.state["decisions"] == [
        {
            "step": 2,
            "decision": "regenerate",
            "score": 0.4,
            "part": "reasoning",
            "discarded": step("a draft", part="reasoning"),
        }
    ]
    assert ruling.events("decision") == ruling.state["decisions"]


def test_an_answer_that_is_no_decision_is_an_error_of_the_policy():
    with pytest.raises(SettingsError, match="answered 'keep'; expected one of accept, regenerate, handover"):
        route(Says(decision="keep"), draft=draft(0.4))


def test_a_decision_may_be_remembered():
    assert route(Says(decision=Choice("regenerate", 3)), draft=draft(0.4)).state["memory"] == 3


def test_the_policy_sees_the_draft_it_decides_on():
    policy = Says(decision="regenerate")
    route(policy, draft=draft(0.4, end="eos", part="answer", mean_token_probability=0.8))
    (shown,) = policy.shown
    assert (shown.score, shown.draft, shown.draft_tokens, shown.draft_probability) == (
        0.4,
        "a draft",
        10,
        0.8,
    )
    assert (shown.draft_ends, shown.part, shown.seed) == (True, "answer", "s:2:decide")


LIMITS: list[tuple[dict[str, Any], str]] = [
    ({"budget": Budget(large_tokens=7)}, "large_tokens"),
    ({"budget": Budget(large_calls=1), "usage": used(calls=1)}, "large_calls"),
    ({"budget": Budget(large_cost=7.5), "prices": ONE_A_TOKEN}, "large_cost"),
    ({"budget": Budget(seconds=5), "usage": used(seconds=5.0)}, "seconds"),
    ({"accounts_left": {"user:1": RemainingBudget(large_tokens=7)}}, "large_tokens of user:1"),
    ({"accounts_left": {"user:1": RemainingBudget(large_calls=0)}}, "large_calls of user:1"),
    ({"usage": used(failed=MAX_LARGE_FAILURES)}, "large_failures"),
]
"""Ways to refuse the large model, and the name of what refuses."""
SPENT = {name: f"the limit on {name} is spent" for _, name in LIMITS} | {
    "large_tokens": "the limit on large_tokens leaves 7, and a call needs 8",
    "large_cost": "the limit on large_cost leaves 7.5, and a call needs 8 (for 8 tokens to write)",
    "large_tokens of user:1": "the limit on large_tokens of user:1 leaves 7, and a call needs 8",
    "large_calls of user:1": "the limit on large_calls of user:1 is spent or reserved",
    "seconds": "the limit on seconds is reached: the run",
}
"""What is said of the limit: nothing is left, or less than a call needs."""


@pytest.mark.parametrize("decision", ["regenerate", "handover"])
@pytest.mark.parametrize(("limit", "name"), LIMITS)
def test_a_draft_whose_replacement_a_limit_refuses_is_kept_and_the_limit_named(limit, name, decision):
    ruling = route(Says(decision=decision), draft=draft(0.4), **limit)
    assert ruling.texts == ["a draft"]
    assert ruling.decision == {"decision": "accept", "exhausted_limit": name}
    assert str(ruling) == ("end: deadline" if name == "seconds" else "small step")
    assert (SPENT[name] in ruling.notes) == (name != "large_failures")


def test_a_note_is_made_once():
    spent = {"budget": Budget(large_calls=0)}
    first = route(Says(decision="regenerate"), draft=draft(0.4), **spent)
    again = route(Says(decision="regenerate"), draft=draft(0.4), notes=first.state["notes"], **spent)
    assert len(again.state["notes"]) == 1
    assert (len(first.events("note")), len(again.events("note"))) == (1, 0)


# What follows an accepted draft?


def test_a_draft_that_ends_the_solution_finishes_the_run():
    ruling = route(draft=draft(0.9, end="eos"))
    assert (str(ruling), ruling.texts) == ("end: finished", ["a draft"])


def test_a_draft_that_is_the_last_step_allowed_ends_the_run():
    assert str(route(draft=draft(0.9), max_steps=3)) == "end: max_steps"
    assert str(route(draft=draft(0.9), max_steps=4)) == "small draft"


def test_a_draft_that_is_the_last_step_allowed_and_ends_the_solution_has_finished_it():
    assert str(route(draft=draft(0.9, end="eos"), max_steps=3)) == "end: finished"


def test_a_run_without_time_ends_at_its_deadline_with_the_draft():
    ruling = route(draft=draft(0.9), budget=Budget(seconds=5), usage=used(seconds=6.0))
    assert (str(ruling), ruling.texts) == ("end: deadline", ["a draft"])


def test_a_run_whose_scorer_fails_at_its_deadline_ends_with_the_draft():
    late = {"budget": Budget(seconds=5), "usage": used(seconds=6.0)}
    ruling = route(draft=draft(), failed=SCORER_FAILED, on_scorer_error="regenerate", **late)
    assert (str(ruling), ruling.texts, ruling.decision) == ("end: deadline", ["a draft"], None)


def test_a_run_whose_call_the_limit_on_seconds_cut_off_ends_at_its_deadline():
    late = {"failed": {**SMALL_FAILED, "timed_out": True}, "request": step_request()}
    assert str(route(on_small_error="large", **late)) == "end: deadline"


def test_a_run_whose_scorer_the_limit_on_seconds_cut_off_ends_with_the_draft():
    late = {"failed": {**SCORER_FAILED, "timed_out": True}, "request": step_request()}
    ruling = route(draft=draft(), on_scorer_error="regenerate", **late)
    assert (str(ruling), ruling.texts, ruling.decision) == ("end: deadline", ["a draft"], None)
    assert str(route(draft=draft(end="eos"), **late)) == "end: finished"


def test_a_solution_that_fills_the_small_models_context_ends_with_its_steps():
    full = {"failed": {**SMALL_FAILED, "context_full": True}, "request": step_request()}
    ruling = route(**full)
    assert (str(ruling), ruling.texts) == ("end: length", [])
    assert ruling.notes == "the context of the small model is full: the solution ends here"
    assert str(route(on_small_error="large", **full)) == "large step"


def test_a_solution_that_fills_the_scorers_context_ends_with_the_draft():
    full = {"failed": {**SCORER_FAILED, "context_full": True}, "request": step_request()}
    ruling = route(draft=draft(), **full)
    assert (str(ruling), ruling.texts) == ("end: length", ["a draft"])
    assert str(route(draft=draft(end="eos"), **full)) == "end: finished"


@pytest.mark.parametrize("failed", [SMALL_FAILED, SCORER_FAILED])
def test_a_context_that_fills_when_the_time_is_up_is_named_as_the_reason(failed):
    late = {"budget": Budget(seconds=5), "usage": used(seconds=6.0), "request": step_request()}
    rated = {"draft": draft()} if failed["part"] == "scorer" else {}
    ruling = route(failed={**failed, "context_full": True}, **rated, **late)
    assert (str(ruling), len(ruling.state["notes"])) == ("end: length", 1)


def test_a_solution_that_its_writer_ends_in_place_of_a_step_is_finished():
    for attempt in (0, 1):
        ended = {**step_request(), "attempt": attempt, "ended": True}
        assert str(route(request=StepRequest(**ended))) == "end: finished"


WAYS_OUT = [
    ({"part": "small"}, {}, None),
    ({"part": "small"}, {"on_small_error": "large"}, "continue"),
    ({"part": "large"}, {"on_large_error": "raise"}, None),
    ({"part": "large", "context_full": True}, {"on_large_error": "raise"}, "continue"),
    ({"part": "large", "exhausted_limit": "large_calls"}, {"on_large_error": "raise"}, "continue"),
    ({"part": "small", "context_full": True}, {}, "end"),
    ({"part": "scorer", "context_full": True}, {"on_scorer_error": "raise"}, "end"),
    ({"part": "scorer", "context_full": True}, {"on_scorer_error": "accept"}, "continue"),
]


@pytest.mark.parametrize(("failed", "settings", "way"), WAYS_OUT)
def test_a_failure_has_the_way_out_that_settings_and_steps_leave(failed, settings, way):
    failure, chosen = {"error": "E", **failed}, Settings(**settings)
    assert way_out(failure, chosen, [step()]) == way
    assert way_out(failure, chosen, []) == (None if way == "end" else way)
    if failed.get("context_full") and failed["part"] == "large":
        way = None  # an agent's turn does not end for a full context: its conversation may be shortened
    assert way_out(failure, chosen, [step()], solution=False) == (None if way == "end" else way)


SAME = "The very same long words again."


@pytest.mark.parametrize(
    ("max_repeats", "expected"), [(3, "end: loop"), (4, "small draft"), (None, "small draft")]
)
def test_a_step_that_comes_again_too_often_ends_the_run_in_a_loop(max_repeats, expected):
    repeated = [step(SAME)] * 3
    ruling = route(draft=draft(0.9, SAME), steps=repeated, max_repeats=max_repeats, max_steps=9)
    assert str(ruling) == expected
    assert ruling.texts == [SAME]


def test_a_text_to_the_end_is_cut_into_steps_and_its_tokens_shared_out():
    whole = draft(text="one\n\ntwo\n\nthree", writer="large", end="eos", tokens=31)
    ruling = route(draft=whole, request=TO_THE_END)
    assert ruling.texts == ["one", "two", "three"]
    assert sum(one["tokens"] for one in ruling.action.update["steps"]) == 31
    assert str(ruling) == "end: finished"


@pytest.mark.parametrize(
    ("tokens", "seconds", "expected"),
    [
        (2 * STEP_TOKENS, 0.0, "end: max_steps"),
        (2 * STEP_TOKENS - 1, 0.0, "small draft"),
        (200, 9.0, "end: deadline"),
    ],
)
def test_a_text_to_the_end_that_was_cut_ends_the_run_if_it_has_used_all_that_remained(
    tokens, seconds, expected
):
    ruling = route(
        draft=draft(writer="large", end="length"),
        request={**TO_THE_END, "max_tokens": tokens},
        budget=Budget(seconds=8),
        usage=used(seconds=seconds),
    )
    assert str(ruling) == expected


def test_an_accepted_step_is_reported_once_and_streamed_with_its_separator():
    ruling = route(draft=draft(0.9))
    (reported,) = ruling.events("accepted")
    why = "threshold(0.5) accepted the small model's draft (score 0.9)"
    step_event = {"step": 2, "writer": "small", "text": "a draft", "score": 0.9, "tokens": 10}
    assert reported == {**step_event, "why": why}
    assert [e.text for e in ruling.action.events if isinstance(e, AcceptedText)] == ["\n\na draft"]


def test_a_run_that_ends_without_a_new_step_still_begins_the_streamed_message():
    assert [e.text for e in route(max_steps=2).action.events if isinstance(e, AcceptedText)] == [""]


def test_what_the_last_nodes_left_is_done_with():
    ruling = route(
        draft=draft(0.9), in_flight={"writer": "large", "max_tokens": 1, "prompt_tokens": 0, "process": "x"}
    )
    kept = ("draft", "in_flight", "failed", "pending_interrupt", "human_response")
    assert [ruling.state[name] for name in kept] == [None] * 5


# Limits on the large model


@pytest.mark.parametrize(
    ("options", "granted"),
    [
        ({"budget": Budget(large_tokens=30)}, 30),
        ({"budget": Budget(large_tokens=300)}, STEP_TOKENS),
        ({"budget": Budget(large_tokens=30), "usage": used(output_tokens=10)}, 20),
        ({"budget": Budget(large_tokens=30), "usage": used(unaccounted=10)}, 20),
        ({"budget": Budget(large_cost=30), "prices": ONE_A_TOKEN}, 30),
        ({"budget": Budget(large_cost=30), "prices": ONE_A_TOKEN, "count_prompt": lambda *_: 12}, 18),
        ({"accounts_left": {"thread:1": RemainingBudget(large_tokens=30)}}, 30),
        (
            {
                "budget": Budget(large_tokens=40),
                "accounts_left": {
                    "user:1": RemainingBudget(large_tokens=20),
                    "thread:1": RemainingBudget(large_tokens=30),
                },
            },
            20,
        ),
        ({"budget": Budget(large_tokens=8)}, 8),
        ({"budget": Budget(large_tokens=7)}, None),
        ({"budget": Budget(large_tokens=7, min_tokens=7)}, 7),
        ({"budget": Budget(large_tokens=2), "max_step_tokens": 2}, 2),
        ({"budget": Budget(large_cost=30), "prices": ONE_A_TOKEN, "count_prompt": lambda *_: 23}, None),
        ({"budget": Budget(large_calls=1)}, STEP_TOKENS),
        ({"budget": Budget(large_calls=1), "usage": used(calls=1)}, None),
        ({"usage": used(failed=MAX_LARGE_FAILURES - 1)}, STEP_TOKENS),
        ({"usage": used(failed=MAX_LARGE_FAILURES)}, None),
    ],
)
def test_a_large_step_is_granted_what_the_tightest_limit_leaves_or_is_refused(options, granted):
    ruling = route(Says("large"), **options)
    assert str(ruling) == ("small step" if granted is None else "large step")
    assert ruling.request["max_tokens"] == (granted or STEP_TOKENS)


def test_the_prompt_is_counted_with_the_steps_and_what_is_already_written():
    counted = []

    def count(steps: Sequence[Any], written: str) -> int:
        counted.append((len(steps), written))
        return 12

    priced = {"prices": ONE_A_TOKEN, "count_prompt": count}
    route(Says("large"), **priced)
    route(Says("large"), request=step_request("large", partial_text="- ", attempt=1), **priced)
    assert counted == [(2, ""), (2, "- ")]


def test_the_prompt_is_not_counted_where_it_has_no_price():
    def count(steps: Sequence[Any], written: str) -> int:
        raise AssertionError("counted for nothing")

    assert str(route(Says("large"), count_prompt=count)) == "large step"


def unbounded(steps: Sequence[Any], written: str) -> int:
    raise UnboundedPrompt("image", least=5)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, "large step"),
        ({"budget": Budget(large_tokens=50)}, "large step"),
        ({"budget": Budget(large_cost=1000)}, "small step"),
        ({"accounts": {"user:1": {"large_cost": 1000.0}}}, "small step"),
        ({"accounts": {"user:1": {"large_tokens": 50}}}, "large step"),
        ({"budget": Budget(large_cost=1000, on_exhausted="stop")}, "small step"),
        ({"budget": Budget(large_cost=1000, on_exhausted="ask")}, "small step"),
    ],
)
def test_a_prompt_whose_size_is_unbounded_is_refused_only_where_a_limit_counts_its_cost(limits, expected):
    ruling = route(Says("large"), prices=ONE_A_TOKEN, count_prompt=unbounded, **limits)
    assert str(ruling) == expected
    assert "content block of type image" in ruling.notes


def test_a_call_of_the_large_model_is_noted_before_it_begins_and_a_small_one_is_not():
    ruling = route(Says("large"), prices=ONE_A_TOKEN, count_prompt=lambda *_: 12)
    assert ruling.state["in_flight"] == {
        "writer": "large",
        "max_tokens": STEP_TOKENS,
        "prompt_tokens": 12,
        "process": process.NAME,
    }
    assert route(Says("small")).state["in_flight"] is None


# on_exhausted


@pytest.mark.parametrize("writer", ["large", "large_to_end"])
@pytest.mark.parametrize(
    ("limit", "name"), [one for one in LIMITS if one[1] not in ("seconds", "large_failures")]
)
@pytest.mark.parametrize("on_exhausted", ["small", "stop", "ask"])
def test_a_writer_that_a_limit_refuses_is_replaced_ends_the_run_or_is_asked_about(
    writer, limit, name, on_exhausted
):
    budget = limit.get("budget", Budget()).model_copy(update={"on_exhausted": on_exhausted})
    ruling = route(Says(writer), **{**limit, "budget": budget})
    expected = {"small": "small step", "stop": "end: budget", "ask": f"ask about {name}"}
    assert str(ruling) == expected[on_exhausted]
    assert (f"{SPENT[name]}: the large" in ruling.notes) == (on_exhausted != "ask")


@pytest.mark.parametrize("on_exhausted", ["small", "stop", "ask"])
def test_a_large_model_that_failed_too_often_neither_ends_the_run_nor_is_asked_about(on_exhausted):
    budget = Budget(on_exhausted=on_exhausted)
    ruling = route(Says("large"), budget=budget, usage=used(failed=MAX_LARGE_FAILURES))
    assert str(ruling) == "small step"


@pytest.mark.parametrize(
    ("on_exhausted", "expected"),
    [("small", "small step"), ("stop", "end: budget"), ("ask", "ask about large_calls")],
)
def test_a_draft_whose_replacement_is_refused_waits_where_a_human_may_give_more(on_exhausted, expected):
    budget = Budget(large_calls=0, on_exhausted=on_exhausted)
    ruling = route(Says(decision=Choice("regenerate", 1)), draft=draft(0.4), budget=budget)
    assert str(ruling) == expected
    assert ruling.texts == ([] if on_exhausted == "ask" else ["a draft"])
    assert ruling.state["memory"] == (None if on_exhausted == "ask" else 1)
    assert (ruling.state["draft"] is not None) == (on_exhausted == "ask")


def test_a_policy_that_would_decide_ends_the_run_at_a_spent_limit_before_another_draft():
    assert str(route(threshold(0.5), budget=Budget(large_calls=0, on_exhausted="stop"))) == "end: budget"
    assert str(route(small_only(), budget=Budget(large_calls=0, on_exhausted="stop"))) == "small step"


# The recursion limit


@pytest.mark.parametrize(
    ("policy", "needed"),
    [
        (Says("small"), SCORED_ROUND),
        (Says("small", decides=False), PLAIN_ROUND),
        (Says("large"), PLAIN_ROUND),
        (Says("large_to_end"), PLAIN_ROUND),
        (Says("probe"), PROBE + SCORED_ROUND),
        (Says("probe", decides=False), PROBE + PLAIN_ROUND),
    ],
)
def test_a_round_begins_only_where_the_recursion_limit_has_room_for_all_of_it(policy, needed):
    assert isinstance(route(policy, remaining_steps=needed + 1).action, Generate)
    ruling = route(policy, remaining_steps=needed)
    assert (str(ruling), ruling.notes) == ("end: recursion_limit", LIMIT_REACHED)


def test_the_lowest_recursion_limit_has_room_for_the_longest_round():
    assert isinstance(route(Says("probe"), steps=[], remaining_steps=RECURSION_FLOOR - 1).action, Generate)


# A human


@pytest.mark.parametrize(
    ("score", "bar", "expected"),
    [
        (0.2, 0.3, "ask about the score"),
        (0.3, 0.3, "large step"),
        (None, 0.3, "small draft"),
        (0.2, None, "large step"),
    ],
)
def test_a_draft_that_scores_below_the_bar_is_shown_to_a_human_first(score, bar, expected):
    assert str(route(draft=draft(score), ask_below=bar)) == expected


def test_a_draft_that_is_shown_waits_with_what_it_was_written_for():
    ruling = route(draft=draft(0.2), ask_below=0.3)
    assert (ruling.state["draft"], ruling.request) == (draft(0.2), DECIDED)
    assert ruling.state["pending_interrupt"] == {"reason": "score", "limit": None}
    assert ruling.events("asked") == [{"step": 2, "reason": "score", "limit": None}]
    assert (ruling.texts, ruling.decision) == ([], None)


def test_a_draft_on_which_no_decision_hangs_is_not_shown():
    assert str(route(draft=draft(0.2), request=step_request(), ask_below=0.3)) == "small draft"


@pytest.mark.parametrize(
    ("decision", "expected"),
    [("accept", "small draft"), ("regenerate", "large step"), ("handover", "large to the end")],
)
def test_a_humans_decision_on_a_draft_counts_in_place_of_the_policys(decision, expected):
    policy = Says(decision="handover" if decision == "accept" else "accept")
    ruling = route(policy, draft=draft(0.2), ask_below=0.3, human_response={"decision": decision})
    assert str(ruling) == expected
    assert ruling.decision is not None
    assert (ruling.decision["decision"], ruling.decision["by"]) == (decision, "human")
    assert ruling.events("answered") == [{"step": 2, "answer": {"decision": decision}}]
    assert ruling.state["human_response"] is None


def test_a_humans_wish_for_the_large_model_needs_the_budget_too():
    spent = {"draft": draft(0.2), "human_response": {"decision": "regenerate"}}
    ruling = route(budget=Budget(large_calls=0), **spent)
    assert ruling.decision == {"decision": "accept", "exhausted_limit": "large_calls", "by": "human"}
    assert str(route(budget=Budget(large_calls=0, on_exhausted="ask"), **spent)) == "ask about large_calls"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"draft": draft(0.4)}, "large step"),
        ({"draft": draft(0.4), "ask_below": 0.45}, "large step"),
        ({}, "small draft"),
        ({"request": step_request("large", partial_text="- ", attempt=1)}, "large step"),
        (
            {"request": LARGE, "failed": {**LARGE_FAILED, "exhausted_limit": "large_tokens of user:1"}},
            "large step",
        ),
        ({"request": step_request(), "failed": SMALL_FAILED}, "large step"),
    ],
)
def test_a_larger_budget_has_the_same_things_decided_again_without_another_question(options, expected):
    ruling = route(human_response={"more": {"large_tokens": 20}}, on_small_error="large", **options)
    assert str(ruling) == expected
    assert "a human raised the limits: large_tokens by 20" in ruling.notes


def test_a_larger_budget_that_fits_no_limit_is_said():
    assert "none of those that are set" in route(human_response={"more": {}}).notes


@pytest.mark.parametrize(
    "waiting", [{"draft": draft(0.2)}, {"request": step_request("large", attempt=1)}, {}]
)
def test_a_human_who_stops_ends_the_run_with_the_steps_so_far(waiting):
    ruling = route(human_response={"continue_with": "stop"}, **waiting)
    assert (str(ruling), ruling.texts) == ("end: human", [])


@pytest.mark.parametrize(
    ("waiting", "texts", "decision"),
    [
        ({}, [], None),
        ({"draft": draft(0.2)}, ["a draft"], {"decision": "accept"}),
        ({"request": step_request("large", attempt=1)}, [], None),
        (
            {"request": step_request("large", attempt=1), "decisions": [REJECTED]},
            ["a rejected draft"],
            {"decision": "accept", "by": "human"},
        ),
        ({"request": step_request(), "failed": SMALL_FAILED}, [], None),
    ],
)
def test_a_human_who_has_the_small_model_continue_leaves_the_large_one_out(waiting, texts, decision):
    ruling = route(small_only(), human_response={"continue_with": "small"}, **waiting)
    assert (str(ruling), ruling.texts, ruling.decision) == ("small step", texts, decision)
    assert "a human had the small model continue alone" in ruling.notes


@pytest.mark.parametrize(("ends", "expected"), [(False, "small draft"), (True, "end: finished")])
def test_a_step_by_hand_takes_the_drafts_place(ends, expected):
    ruling = route(draft=draft(0.2), human_response={"step": " by hand ", "ends": ends})
    assert (str(ruling), ruling.texts) == (expected, ["by hand"])
    assert ruling.decision == {"decision": "by_hand", "by": "human", "discarded": step("a draft")}
    (written,) = ruling.action.update["steps"]
    assert (written["writer"], written["tokens"]) == ("human", 0)


def test_a_step_by_hand_without_a_draft_discards_nothing():
    ruling = route(human_response={"step": "by hand", "ends": False})
    assert (ruling.texts, ruling.decision) == (["by hand"], {"decision": "by_hand", "by": "human"})


def test_a_step_by_hand_may_be_several():
    assert route(human_response={"step": "one\n\ntwo", "ends": True}).texts == ["one", "two"]


@pytest.mark.parametrize(
    ("waiting", "separator"),
    [
        ({"draft": draft(separator="\n---\n")}, "\n---\n"),
        ({"steps": [step(separator="\n* ")]}, "\n* "),
        ({"steps": [step(separator="\n* "), step(separator="</think>")]}, "\n* "),
        ({"steps": [step(separator="\n* "), step(end="length")]}, "\n* "),
        ({}, None),
    ],
)
def test_a_step_by_hand_is_separated_as_the_steps_before_it(waiting, separator):
    ruling = route(human_response={"step": "by hand", "ends": False}, **waiting)
    assert ruling.action.update["steps"][-1].get("separator") == separator


def test_a_step_by_hand_within_the_reasoning_belongs_to_it():
    thought = [step("<think>hm", part="reasoning")]
    ruling = route(steps=thought, human_response={"step": "by hand", "ends": False})
    assert ruling.action.update["steps"][0]["part"] == "reasoning"


# Failures, and the declared way out of each


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "large step"),
        ({"budget": Budget(large_calls=0)}, "end: failed"),
        ({"budget": Budget(large_calls=0, on_exhausted="stop")}, "end: failed"),
        ({"budget": Budget(large_calls=0, on_exhausted="ask")}, "ask about large_calls"),
        ({"usage": used(failed=MAX_LARGE_FAILURES)}, "end: failed"),
        ({"budget": Budget(seconds=1), "usage": used(seconds=1.0)}, "end: deadline"),
        ({"budget": Budget(large_tokens=30)}, "large step"),
    ],
)
def test_a_small_model_that_failed_has_the_large_one_write_if_any_is_left(options, expected):
    ruling = route(failed=SMALL_FAILED, request=step_request(), on_small_error="large", **options)
    assert str(ruling) == expected
    if expected != "end: deadline":
        assert "the small model failed: gone" in ruling.notes


def test_a_failure_that_a_human_is_asked_about_waits_with_the_question():
    budget = Budget(large_calls=0, on_exhausted="ask")
    ruling = route(failed=SMALL_FAILED, request=step_request(), on_small_error="large", budget=budget)
    assert (ruling.state["failed"], ruling.request) == (SMALL_FAILED, step_request())


def test_a_large_model_that_failed_leaves_the_draft_it_was_to_replace():
    ruling = route(failed=LARGE_FAILED, request=LARGE, decisions=[REJECTED], on_large_error="accept")
    assert (str(ruling), ruling.texts) == ("small draft", ["a rejected draft"])
    assert ruling.decision == {"decision": "accept", "fallback": "the large model failed"}
    assert ruling.state["scores"] == {"2": 0.2}
    assert ruling.state["decisions"][-1]["score"] == 0.2


def test_a_large_model_that_failed_without_a_draft_to_replace_has_the_small_one_write():
    ruling = route(failed=LARGE_FAILED, request=LARGE, on_large_error="accept")
    assert (str(ruling), ruling.texts, ruling.decision) == ("small step", [], None)


def test_a_draft_rejected_at_an_earlier_step_is_not_kept_at_this_one():
    earlier = {**REJECTED, "step": 1}
    assert route(failed=LARGE_FAILED, request=LARGE, decisions=[earlier], on_large_error="accept").texts == []


@pytest.mark.parametrize("failures", [MAX_LARGE_FAILURES - 1, MAX_LARGE_FAILURES])
def test_a_large_model_that_failed_too_often_is_given_up_and_that_is_said(failures):
    ruling = route(failed=LARGE_FAILED, request=LARGE, usage=used(failed=failures), on_large_error="accept")
    assert ("it is not called any more" in ruling.notes) == (failures == MAX_LARGE_FAILURES)


@pytest.mark.parametrize(
    ("options", "expected", "decision"),
    [
        ({"on_scorer_error": "accept"}, "small draft", {"decision": "accept"}),
        (
            {"on_scorer_error": "regenerate"},
            "large step",
            {"decision": "regenerate", "discarded": step("a draft")},
        ),
        (
            {"on_scorer_error": "regenerate", "budget": Budget(large_calls=0)},
            "small step",
            {"decision": "accept", "exhausted_limit": "large_calls"},
        ),
        (
            {"on_scorer_error": "regenerate", "budget": Budget(large_calls=0, on_exhausted="stop")},
            "end: budget",
            {"decision": "accept", "exhausted_limit": "large_calls"},
        ),
        (
            {"on_scorer_error": "regenerate", "budget": Budget(large_calls=0, on_exhausted="ask")},
            "ask about large_calls",
            None,
        ),
    ],
)
def test_a_scorer_that_failed_leaves_the_draft_unrated_and_the_settings_decide(options, expected, decision):
    ruling = route(failed=SCORER_FAILED, draft=draft(), **options)
    assert str(ruling) == expected
    assert ruling.decision == (decision and decision | {"fallback": "the scorer failed"})
    assert ruling.texts == (["a draft"] if decision and decision["decision"] == "accept" else [])
    assert "the scorer failed: gone" in ruling.notes


@pytest.mark.parametrize("part", ["small", "large"])
def test_a_writer_that_wrote_no_step_ends_the_run_unless_a_way_out_is_declared(part):
    failed = {"part": part, "error": "its answer was empty", "no_step": True}
    ruling = route(failed=failed, request=step_request(part))
    assert str(ruling) == "end: no_step"
    assert f"the {part} model wrote no step: its answer was empty" in ruling.notes
    declared = {"on_small_error": "large", "on_large_error": "accept"}
    other = {"small": "large step", "large": "small step"}
    assert str(route(failed=failed, request=step_request(part), **declared)) == other[part]


@pytest.mark.parametrize(
    ("failed", "options", "expected"),
    [
        (SMALL_FAILED, {}, "large step"),
        (SMALL_FAILED, {"budget": Budget(large_calls=0)}, "end: length"),
        (LARGE_FAILED, {}, "small step"),
        (LARGE_FAILED, {"decisions": [REJECTED]}, "small draft"),
        (SCORER_FAILED, {"draft": draft()}, "small draft"),
    ],
)
def test_a_full_context_takes_the_declared_way_and_without_one_ends_the_run_with_its_length(
    failed, options, expected
):
    declared: Any = {"on_small_error": "large", "on_large_error": "accept", "on_scorer_error": "accept"}
    request = step_request() if failed["part"] == "small" else LARGE
    ruling = route(failed={**failed, "context_full": True}, request=request, **declared, **options)
    assert str(ruling) == expected
    assert "is full" in ruling.notes


def test_a_conversation_for_which_no_model_has_room_is_an_error_of_the_input():
    full = {**SMALL_FAILED, "context_full": True}
    with pytest.raises(InputError, match="no model has room for this conversation: gone"):
        route(
            failed=full,
            request=step_request(),
            steps=[],
            on_small_error="large",
            budget=Budget(large_calls=0),
        )


EMPTY_ACCOUNT = {"accounts_left": {"user:1": RemainingBudget(large_calls=0)}}
CAME_LATE = {"part": "large", "error": "", "exhausted_limit": "large_calls of user:1"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "large step"),
        (EMPTY_ACCOUNT, "small step"),
        ({**EMPTY_ACCOUNT, "budget": Budget(on_exhausted="stop")}, "end: budget"),
        ({**EMPTY_ACCOUNT, "budget": Budget(on_exhausted="ask")}, "ask about large_calls of user:1"),
    ],
)
def test_a_call_that_other_runs_left_no_account_for_is_granted_anew_or_follows_on_exhausted(
    options, expected
):
    assert str(route(failed=CAME_LATE, request=LARGE, **options)) == expected


@pytest.mark.parametrize("on_exhausted", ["small", "stop"])
def test_a_call_that_other_runs_left_no_account_for_leaves_the_draft_it_was_to_replace(on_exhausted):
    budget = Budget(on_exhausted=on_exhausted)
    ruling = route(failed=CAME_LATE, request=LARGE, decisions=[REJECTED], budget=budget, **EMPTY_ACCOUNT)
    assert ruling.texts == ["a rejected draft"]
    assert ruling.decision == {"decision": "accept", "exhausted_limit": "large_calls of user:1"}


def test_a_call_to_the_end_that_is_granted_anew_still_goes_to_the_end():
    assert str(route(failed=CAME_LATE, request=TO_THE_END)) == "large to the end"


# Calls that are interrupted, or repeated


@pytest.mark.parametrize("writer", ["small", "large"])
@pytest.mark.parametrize("how", [{"attempt": 1}, {"interrupted": True}])
def test_a_call_that_is_to_be_repeated_is_given_again_without_asking_the_policy(writer, how):
    policy = Says()
    ruling = route(policy, request=step_request(writer, partial_text="- ", **how))
    assert str(ruling) == f"{writer} step"
    assert ruling.request["partial_text"] == "- "
    assert not policy.shown


def test_a_large_call_that_is_repeated_is_granted_what_is_left_now():
    again = step_request("large", interrupted=True)
    ruling = route(request=again, budget=Budget(large_tokens=50), usage=used(unaccounted=20))
    assert ruling.request == step_request("large", max_tokens=30)
    assert ruling.state["in_flight"]["max_tokens"] == 30


@pytest.mark.parametrize(
    ("on_exhausted", "decisions", "expected", "texts"),
    [
        ("small", [], "small step", []),
        ("small", [REJECTED], "small step", ["a rejected draft"]),
        ("stop", [], "end: budget", []),
        ("stop", [REJECTED], "end: budget", ["a rejected draft"]),
        ("ask", [REJECTED], "ask about large_tokens", []),
    ],
)
def test_a_large_call_whose_repetition_is_refused_follows_on_exhausted(
    on_exhausted, decisions, expected, texts
):
    again = step_request("large", partial_text="- ", attempt=1)
    ruling = route(
        request=again, decisions=decisions, budget=Budget(large_tokens=0, on_exhausted=on_exhausted)
    )
    assert (str(ruling), ruling.texts) == (expected, texts)
    if on_exhausted == "ask":
        assert ruling.request == again


def test_a_call_that_is_to_be_repeated_without_time_ends_the_run():
    late = {"budget": Budget(seconds=1), "usage": used(seconds=1.0)}
    assert str(route(request=step_request(attempt=1), **late)) == "end: deadline"


def test_a_request_that_was_carried_out_is_not_made_again():
    assert str(route(request=LARGE)) == "small draft"


# What a step written ahead is written for


def ahead(policy: Policy, **given: Any) -> Any:
    view = view_of(policy, **given)
    action = Router().if_kept(view)
    return None if action is None else str(Ruling(action, view.state))


def test_a_step_is_written_ahead_as_if_the_draft_stayed():
    assert ahead(threshold(0.5), draft=draft()) == "small draft"


@pytest.mark.parametrize(
    ("policy", "options"),
    [(large_only(), {"draft": draft()}), (Says(), {"draft": draft()}), (threshold(0.5), {})],
)
def test_no_step_is_written_ahead_where_another_writer_may_follow_or_no_draft_waits(policy, options):
    assert ahead(policy, **options) is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"draft": draft(end="eos")}, "end: finished"),
        ({"draft": draft(), "max_steps": 3}, "end: max_steps"),
        ({"draft": draft(), "max_tokens": 30}, "end: max_tokens"),
        ({"draft": draft(), "remaining_steps": SCORED_ROUND + 1}, "end: recursion_limit"),
        ({"draft": draft(), "remaining_steps": SCORED_ROUND + 2}, "small draft"),
        ({"draft": draft(), "budget": Budget(large_calls=0, on_exhausted="stop")}, "small draft"),
    ],
)
def test_no_step_follows_ahead_where_the_run_would_end_whatever_is_decided(options, expected):
    assert ahead(threshold(0.5), **options) == expected


# A turn of an agent


def turn(policy: Policy | None = None, **given: Any) -> Ruling:
    return route(policy, unit="turn", **given)


@pytest.mark.parametrize(("end", "stopped"), [("eos", "finished"), ("delimiter", ""), ("length", "")])
def test_a_turn_that_is_kept_ends_and_the_run_only_with_the_agents_last(end, stopped):
    ruling = turn(draft=draft(0.9, end=end))
    assert (str(ruling), ruling.texts, ruling.request) == (f"end: {stopped}", ["a draft"], None)
    assert ("a turn of the small model was cut off at 100 tokens" in ruling.notes) == (end == "length")


def test_a_turn_is_not_streamed_by_the_router():
    events = turn(draft=draft(0.9)).action.events
    assert not [event for event in events if isinstance(event, AcceptedText)]


def test_a_turn_below_the_threshold_is_written_by_the_large_model():
    assert str(turn(draft=draft(0.4))) == "large step"


def test_a_turn_to_the_end_may_take_the_tokens_of_one_turn():
    assert turn(Says("large_to_end")).request["max_tokens"] == STEP_TOKENS


def test_a_turn_of_a_writer_to_the_end_hands_the_run_over():
    ruling = turn(draft=draft(writer="large"), request=step_request("large", until_eos=True))
    assert ruling.state["handed_over"] is True
    assert "handed_over" not in turn(draft=draft(0.9)).state


LATE: dict[str, Any] = {"budget": Budget(seconds=1), "usage": used(seconds=1.0)}
NOTHING_LEFT: dict[str, Any] = {"budget": Budget(large_calls=0, on_exhausted="stop")}
UNRATED: dict[str, Any] = {"failed": SCORER_FAILED, "on_scorer_error": "regenerate"}
HALF = {"draft": draft(writer="large", end="length"), "request": LARGE, "decisions": [REJECTED]}
OTHERS_SPENT = {"failed": {**LARGE_FAILED, "exhausted_limit": "large_calls of user:1"}, "request": LARGE}
GIVEN_UP: dict[str, Any] = {
    "failed": LARGE_FAILED,
    "request": LARGE,
    "decisions": [REJECTED],
    "on_large_error": "accept",
}


@pytest.mark.parametrize(
    ("given", "expected", "recorded"),
    [
        ({"draft": draft(), "request": step_request(), **LATE}, "end: deadline", None),
        ({"draft": draft(), **UNRATED, **LATE}, "end: deadline", None),
        ({"draft": draft(0.4), **LATE}, "end: deadline", "seconds"),
        ({"draft": draft(0.4), **NOTHING_LEFT}, "end: budget", "large_calls"),
        ({"draft": draft(), **UNRATED, **NOTHING_LEFT}, "end: budget", "large_calls"),
        ({**OTHERS_SPENT, "decisions": [REJECTED], **NOTHING_LEFT}, "end: budget", None),
        ({**GIVEN_UP, **NOTHING_LEFT}, "end: budget", None),
        ({**HALF, **NOTHING_LEFT}, "end: budget", None),
    ],
)
def test_a_limit_that_ends_an_agent_leaves_no_rejected_or_undecided_tool_call(given, expected, recorded):
    ruling = turn(**given)
    assert (str(ruling), ruling.texts) == (expected, [])
    assert "no tool call of it is executed" in ruling.notes
    decision = ruling.decision
    assert (decision and decision["exhausted_limit"]) == recorded
    if decision:
        assert (decision["decision"], decision["discarded"]["text"]) == ("regenerate", "a draft")


@pytest.mark.parametrize(
    "given",
    [
        {"draft": draft(end="eos"), "request": step_request(), **LATE},
        {"draft": draft(end="eos"), **UNRATED, **LATE},
        {"draft": draft(0.4, end="eos"), **LATE},
        {"draft": draft(0.4, end="eos"), **NOTHING_LEFT},
        {"draft": draft(end="eos"), **UNRATED, **NOTHING_LEFT},
    ],
)
def test_an_answer_of_an_agent_stays_where_a_limit_leaves_no_decision_on_it(given):
    ruling = turn(**given)
    assert (str(ruling), ruling.texts) == ("end: finished", ["a draft"])
    assert "no tool call" not in ruling.notes


@pytest.mark.parametrize(
    "given",
    [
        {"draft": draft(0.9), **LATE},
        {"draft": draft(), "request": step_request(why="small_only"), **LATE},
        {"draft": draft(0.4), "budget": Budget(large_calls=0)},
        GIVEN_UP,
    ],
    ids=["accepted", "no decision wanted", "on_exhausted small", "on_large_error accept"],
)
def test_a_tool_call_that_the_policy_or_a_setting_accepts_is_executed(given):
    assert len(turn(**given).texts) == 1


def test_a_probe_of_a_turn_is_refused():
    with pytest.raises(SettingsError, match=r"wants a probe.*choose a policy that decides on drafts"):
        turn(Says("probe"))


@pytest.mark.parametrize(
    ("max_tokens", "decisions", "expected", "texts"),
    [
        (50, [], "small step", []),
        (STEP_TOKENS, [], "end: ", ["a draft"]),
        (50, [REJECTED], "end: ", ["a rejected draft"]),
        (STEP_TOKENS, [REJECTED], "end: ", ["a rejected draft"]),
        (50, [{**REJECTED, "discarded": step("cut too", end="length")}], "end: ", ["a draft"]),
    ],
)
def test_a_large_turn_that_was_cut_is_replaced_where_the_small_model_has_a_whole_one(
    max_tokens, decisions, expected, texts
):
    cut = draft(writer="large", end="length")
    ruling = turn(draft=cut, request=step_request("large", max_tokens=max_tokens), decisions=decisions)
    assert (str(ruling), ruling.texts) == (expected, texts)
    assert f"cut off at {max_tokens} tokens" in ruling.notes
    view = view_of(draft=cut, decisions=decisions)
    replaced = Router(RouterOptions("turn")).replaces_cut_turn(
        view, step_request("large", max_tokens=max_tokens)
    )
    assert replaced == (texts != ["a draft"])


@pytest.mark.parametrize(
    ("policy", "options", "in_flight"),
    [
        (Says("large"), {}, STEP_TOKENS),
        (Says("small"), {}, STEP_TOKENS),
        (small_only(), {}, None),
        (small_only(), {"on_small_error": "large"}, STEP_TOKENS),
        (Says("small"), {"budget": Budget(large_tokens=30)}, 30),
        (small_only(), {"on_small_error": "large", "budget": Budget(large_tokens=0)}, None),
    ],
)
def test_a_turn_notes_before_it_what_a_large_call_in_it_may_use(policy, options, in_flight):
    noted = turn(policy, **options).state["in_flight"]
    assert (noted and noted["max_tokens"]) == in_flight


def test_a_turn_needs_no_supersteps():
    assert str(turn(Says("small"), remaining_steps=0)) == "small draft"


def renewed(request: StepRequest | None, **given: Any) -> Ruling:
    view = view_of(request=request, **given)
    return Ruling(Router(RouterOptions("turn")).renewed(view), view.state)


@pytest.mark.parametrize(
    ("request_", "options", "expected", "granted"),
    [
        (None, {}, "small draft", STEP_TOKENS),
        (DECIDED, {}, "small draft", STEP_TOKENS),
        (LARGE, {}, "large step", STEP_TOKENS),
        (LARGE, {"budget": Budget(large_tokens=30)}, "large step", 30),
        (step_request("large", max_tokens=20), {"budget": Budget(large_tokens=30)}, "large step", 20),
        (LARGE, {"budget": Budget(large_tokens=0)}, "small step", STEP_TOKENS),
        (LARGE, {"budget": Budget(large_tokens=0, on_exhausted="stop")}, "end: budget", None),
    ],
)
def test_the_request_of_a_turn_is_renewed_within_what_the_whole_prompt_leaves(
    request_, options, expected, granted
):
    ruling = renewed(request_, **options)
    assert str(ruling) == expected
    if granted is not None:
        assert ruling.request["max_tokens"] == granted


@pytest.mark.parametrize(
    ("options", "expected", "decides"),
    [
        ({"budget": Budget(large_cost=20)}, "small draft", True),
        ({"budget": Budget(large_cost=19)}, "small step", False),
        ({"budget": Budget(large_cost=19, on_exhausted="stop")}, "end: budget", None),
        ({"budget": Budget(large_cost=19, on_exhausted="ask")}, "small draft", True),
        ({"budget": Budget(large_cost=19), "ask_below": 0.5}, "small draft", True),
    ],
)
def test_a_draft_of_a_turn_is_not_scored_where_the_whole_prompt_leaves_no_large_call(
    options, expected, decides
):
    ruling = renewed(DECIDED, prices=ONE_A_TOKEN, count_prompt=lambda *_: 12, **options)
    assert str(ruling) == expected
    if decides is not None:
        assert ruling.request["needs_decision"] is ruling.request["needs_score"] is decides
    if decides is False:
        said = "leaves 19, and a call needs 20 (for a prompt of up to 12 tokens and 8 tokens to write)"
        assert ruling.request["why"] == f"the limit on large_cost {said}: the small model writes"


@pytest.mark.parametrize(
    ("request_", "budget", "granted"),
    [
        (step_request(), Budget(large_calls=0), STEP_TOKENS),
        (LARGE, Budget(), STEP_TOKENS),
        (LARGE, Budget(large_tokens=30), 30),
        (LARGE, Budget(large_tokens=0), None),
    ],
)
def test_a_fallback_of_a_writer_is_requested_within_what_is_left(request_, budget, granted):
    found = Router(RouterOptions("turn")).for_fallback(view_of(budget=budget), request_)
    assert (found and found["max_tokens"]) == granted


# Of any state


REASONS = set(get_args(get_type_hints(TrimState)["stopped"]))
CHANNELS = set(get_type_hints(AgentRouting))
TEXTS = st.sampled_from(["one", "two", SAME, "so \\boxed{4}", "<think>hm"])
ENDS = st.sampled_from(["delimiter", "delimiter", "delimiter", "length", "eos"])
WRITERS = st.sampled_from(["small", "large"])
SCORES = st.none() | st.sampled_from([0.1, 0.4, 0.6, 0.9])
AMOUNTS = st.none() | st.integers(0, 250)
PARTS = st.sampled_from([{}, {}, {"part": "reasoning"}, {"part": "answer"}])
LEFT = st.builds(RemainingBudget, AMOUNTS, st.none() | st.integers(0, 3), AMOUNTS)
ON_EXHAUSTED = st.sampled_from(["small", "stop", "ask"])
USAGE = st.builds(
    used,
    failed=st.integers(0, MAX_LARGE_FAILURES),
    unaccounted=st.integers(0, 50),
    seconds=st.sampled_from([0.0, 4.0, 9.0]),
    calls=st.integers(0, 3),
    input_tokens=st.integers(0, 100),
    output_tokens=st.integers(0, 200),
)
BUDGETS = st.builds(
    Budget,
    large_tokens=AMOUNTS,
    large_calls=st.none() | st.integers(0, 5),
    large_cost=AMOUNTS,
    seconds=st.sampled_from([None, 5, 20]),
    min_tokens=st.sampled_from([1, 8, 120]),
    on_exhausted=ON_EXHAUSTED,
)
ANSWERS = [
    {"more": {"large_tokens": 40}},
    {"more": {"large_calls": 1, "seconds": 3}},
    {"continue_with": "small"},
    {"continue_with": "stop"},
    {"step": "by hand"},
    {"step": "by hand\n\nand more", "ends": True},
]
DECISIONS = [{"decision": value} for value in ("accept", "regenerate", "handover")]
POLICIES: list[Policy] = [
    threshold(0.5),
    small_only(),
    large_only(),
    Says("large"),
    Says("small", "handover"),
    Says(Choice("small", {"n": 1}), Choice("regenerate", {"n": 2}), needs_score=False),
]
PROBES: list[Policy] = [entropy_probe(1.0), entropy_probe(1.0) | threshold(0.5)]


def unbounded_or(tokens: int | None) -> Callable[..., int]:
    return unbounded if tokens is None else lambda steps, written: tokens


CAUSES = st.sampled_from([{}, {}, {"timed_out": True}, {"context_full": True}])


@st.composite
def views(draw: Any, unit: str = "step") -> RunView:
    """Returns a view of a run as the nodes of a graph, or an agent, may leave it."""
    steps = [
        step(draw(TEXTS), draw(WRITERS), draw(ENDS.filter(lambda end: end != "eos")), **draw(PARTS))
        for _ in range(draw(st.integers(0, 5)))
    ]
    given: dict[str, Any] = {
        "steps": steps,
        "scores": {str(i): 0.7 for i in range(len(steps)) if draw(st.booleans())},
        "usage": draw(USAGE),
        "budget": draw(BUDGETS),
        "prices": draw(st.sampled_from([Prices(), ONE_A_TOKEN])),
        "max_steps": draw(st.integers(1, 6)),
        "remaining_steps": draw(st.integers(1, 15)),
        "ask_below": draw(st.sampled_from([None, None, 0.3])),
        "on_small_error": draw(st.sampled_from(["large", "raise"])),
        "on_large_error": draw(st.sampled_from(["accept", "raise"])),
        "on_scorer_error": draw(st.sampled_from(["accept", "regenerate"])),
        "memory": draw(st.sampled_from([None, {"n": 0}])),
        "accounts_left": draw(st.dictionaries(st.sampled_from(["user:1", "thread:1"]), LEFT)),
        "count_prompt": unbounded_or(draw(st.sampled_from([0, 0, 10, 90, None]))),
    }
    given["accounts"] = {
        name: {"large_cost": 500.0 if left.large_cost is not None else None}
        for name, left in given["accounts_left"].items()
    }
    if steps and draw(st.booleans()):
        rejected = step(draw(TEXTS), "small", draw(ENDS))
        given["decisions"] = [{**REJECTED, "step": len(steps), "discarded": rejected}]
    policies = POLICIES
    left = draw(st.sampled_from(["nothing", "draft", "request", "failure", "probe"]))
    if left != "nothing":  # no step is asked for beyond the last
        given["max_steps"] = max(given["max_steps"], len(steps) + 1)
    if left == "draft":
        writer = draw(WRITERS)
        given["draft"] = draft(draw(SCORES), draw(TEXTS), writer=writer, end=draw(ENDS), **draw(PARTS))
        given["request"] = step_request(
            writer,
            needs_decision=writer == "small" and draw(st.booleans()),
            until_eos=writer == "large" and draw(st.booleans()),
            max_tokens=draw(st.sampled_from([50, 100, 400])),
        )
    if left == "request" and unit == "step":
        how = draw(st.sampled_from([{"attempt": 2}, {"interrupted": True}, {"ended": True}]))
        given["request"] = step_request(draw(WRITERS), partial_text="- ", **how)
    if left == "failure":
        failed = draw(st.sampled_from([SMALL_FAILED, LARGE_FAILED, SCORER_FAILED, CAME_LATE]))
        if failed != CAME_LATE:
            failed = failed | draw(CAUSES)
        if failed in (SMALL_FAILED, LARGE_FAILED) and draw(st.booleans()):
            failed = failed | {"no_step": True}
        given |= {
            "failed": failed,
            "request": step_request("large" if failed["part"] == "large" else "small"),
        }
        if failed["part"] == "scorer":
            given |= {"draft": draft(), "request": DECIDED}
    if left == "probe" and unit == "step":
        policies, given["memory"] = PROBES, None  # a combined policy's is its own
        found = {"entropy": draw(st.sampled_from([0.5, 1.5])), "unobserved_probability": 0.0}
        given["request"] = step_request(max_tokens=1, probe=found)
    if unit == "turn":
        given["handed_over"] = draw(st.booleans())
    view = view_of(draw(st.sampled_from(policies)), **given)
    if left != "nothing" and unit == "step" and draw(st.booleans()):
        _answer(view, draw(st.sampled_from(ANSWERS + (DECISIONS if view.draft else []))))
        return RunView(
            view.state, view.policy, accounts_left=view.accounts_left, count_prompt=view.count_prompt
        )
    return view


def _answer(view: RunView, said: dict[str, Any]) -> None:
    kind = HumanAnswer if view.draft is None else DraftAnswer
    view.state["run"], view.state["human_response"] = apply_response(view.run, kind.model_validate(said))


def decide(view: RunView, unit: Literal["step", "turn"]) -> Action | None:
    """Returns the action; None where the conversation has no room, which is an error by the rules."""
    try:
        return Router(RouterOptions(unit)).next(view)
    except InputError:
        assert not view.steps
        return None


def _again(view: RunView) -> RunView:
    return RunView(view.state, view.policy, accounts_left=view.accounts_left, count_prompt=view.count_prompt)


UNITS: Any = pytest.mark.parametrize("unit", ["step", "turn"])


@UNITS
@given(st.data())
def test_a_decision_changes_nothing_it_looks_at_and_is_the_same_when_taken_again(unit, data):
    view = data.draw(views(unit))
    before = copy.deepcopy(view.state)
    action = decide(view, unit)
    assert view.state == before
    again = decide(_again(view), unit)
    assert (type(action), action) == (type(again), again)


@UNITS
@given(st.data())
def test_a_call_of_the_large_model_is_granted_no_more_than_any_limit_leaves(unit, data):
    view = data.draw(views(unit))
    action = decide(view, unit)
    if not isinstance(action, Generate):
        return
    request = reduce_state(view.state, action.update)["request"]
    assert request is not None
    if request["writer"] == "small":
        return
    granted, bound = request["max_tokens"], 0
    if view.prices.large.input:
        try:
            bound = view.count_prompt(view.steps, request["partial_text"])
        except UnboundedPrompt:
            assert cost_limit(view.budget, view.prices, view.accounts) is None
    assert granted >= 1
    assert view.seconds_left is None or view.seconds_left > 0
    assert view.usage["large"]["failed_calls"] < MAX_LARGE_FAILURES
    used_already = large_usage(view.usage, view.prices)
    for limits in (view.left, *view.accounts_left.values()):
        assert limits.large_tokens is None or granted <= limits.large_tokens
        assert limits.large_calls is None or limits.large_calls >= 1
        cost = view.prices.large.cost(bound, granted)
        assert limits.large_cost is None or cost <= limits.large_cost + 1e-9
    most = view.budget.large_tokens
    assert most is None or used_already.large_tokens + granted <= most


@UNITS
@given(st.data())
def test_an_action_holds_known_channels_of_plain_json_and_an_end_its_reason(unit, data):
    view = data.draw(views(unit))
    action = decide(view, unit)
    if action is None:
        return
    assert action.update.keys() <= CHANNELS
    assert json.loads(json.dumps(action.update)) == action.update
    after = reduce_state(view.state, action.update)
    if isinstance(action, Finish):
        assert after["stopped"] in REASONS - ({""} if unit == "step" else set())
        assert after["request"] is None
    if isinstance(action, Generate):
        assert after["request"] is not None
        assert after["draft"] is None
    if isinstance(action, AskHuman):
        assert after["pending_interrupt"] is not None
    assert all(json.dumps(event.content) for event in action.events if isinstance(event, Event))


@UNITS
@given(st.data())
def test_an_accepted_step_is_reported_by_exactly_one_event(unit, data):
    view = data.draw(views(unit))
    action = decide(view, unit)
    if action is None:
        return
    reported = [e.content["text"] for e in action.events if isinstance(e, Event) and e.name == "accepted"]
    assert reported == [one["text"] for one in action.update.get("steps", [])]


def _after_generate(data: Any, state: TrimState) -> dict[str, Any]:
    """Returns what the writer's node may leave: a draft, less than a step, a failure, the end."""
    request = state["request"]
    assert request is not None
    writer, usage = request["writer"], copy.deepcopy(state["usage"])
    usage[writer]["calls"] += 1
    usage["seconds"] += data.draw(st.sampled_from([0.0, 0.0, 1.0]))
    done: dict[str, Any] = {"in_flight": None, "usage": usage}
    if "probe" in request:
        found = {"entropy": data.draw(st.sampled_from([0.5, 1.5])), "unobserved_probability": 0.0}
        return {**done, "request": {**request, "probe": found}}
    outcome = data.draw(st.sampled_from(["draft"] * 5 + ["nothing", "crash", "failure", "silence"]))
    if outcome == "nothing" and request["attempt"] < 3:
        return {**done, "request": {**request, "attempt": request["attempt"] + 1}}
    if outcome == "crash":
        return {**done, "request": {**request, "interrupted": True}}
    if outcome == "failure":
        usage[writer]["failed_calls"] += 1
        return {**done, "failed": {"part": writer, "error": "gone", **data.draw(CAUSES)}}
    if outcome == "silence" and state["steps"]:
        return {**done, "request": {**request, "ended": True}}
    tokens = data.draw(st.integers(1, request["max_tokens"]))
    usage[writer]["output_tokens"] += tokens
    text = data.draw(TEXTS) + ("\n\nand more" if request["until_eos"] else "")
    written = draft(None, text, writer=writer, end=data.draw(ENDS), tokens=tokens)
    return {**done, "draft": written}


def _after_score(data: Any, state: TrimState) -> dict[str, Any]:
    if data.draw(st.integers(0, 5)) == 0:
        return {"failed": {**SCORER_FAILED, **data.draw(CAUSES)}}
    assert state["draft"] is not None
    return {"draft": Draft(**{**state["draft"], "score": data.draw(st.floats(0, 1))})}  # type: ignore[typeddict-item]


@settings(max_examples=200)
@given(
    st.data(),
    st.sampled_from([*POLICIES, *PROBES]),
    st.integers(1, 5),
    st.integers(RECURSION_FLOOR, 40),
    BUDGETS.filter(lambda budget: budget.on_exhausted != "ask"),
)
def test_a_run_that_the_router_plays_ends_within_its_steps_its_supersteps_and_its_budget(
    data, policy, max_steps, limit, budget
):
    state = view_of(
        steps=[],
        max_steps=max_steps,
        budget=budget,
        prices=ONE_A_TOKEN,
        remaining_steps=limit - 1,
        on_small_error="large",
        on_large_error="accept",
        on_scorer_error="regenerate",
    ).state

    def after(update: dict[str, Any]) -> TrimState:
        return reduce_state(state, {**update, "remaining_steps": state["remaining_steps"] - 1})

    while True:
        action = decide(RunView(state, policy, count_prompt=lambda steps, written: 5), "step")
        if action is None:
            return
        state = after(action.update)
        assert state["remaining_steps"] >= 1, "no superstep is left to finalize"
        if isinstance(action, Finish):
            break
        assert isinstance(action, Generate)
        assert len(state["steps"]) < max_steps
        state = after(_after_generate(data, state))
        request, draft_ = state["request"], state["draft"]
        assert request is not None
        if draft_ is not None and request["needs_score"]:
            state = after(_after_score(data, state))
    assert state["stopped"] in REASONS - {""}
    spent = large_usage(state["usage"], ONE_A_TOKEN)
    assert budget.large_tokens is None or spent.large_tokens <= budget.large_tokens
    assert budget.large_calls is None or spent.large_calls <= budget.large_calls
