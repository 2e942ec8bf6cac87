"""Tests of walks: routing along the application's own answer, and what a record says of it."""

import pytest

from tests.shadow.conftest import PRICES, recorded
from trim_graph import Budget
from trim_graph.policies import (
    Choice,
    Policy,
    entropy_probe,
    large_only,
    small_only,
    stay_on_large,
    threshold,
)
from trim_graph.testing import ScriptedScorer


def test_a_walk_along_a_large_answer_asks_the_small_model_at_each_step_and_never_the_large_one(file):
    record, models = recorded(file, text=True)
    assert record["error"] is None
    assert record["kind"] == "walk"
    prefixes = [call["messages"][-1].text for call in models["small"].calls]
    assert prefixes[1:] == [
        "LARGE one\n\n",
        "LARGE one\n\nLARGE two\n\n",
        "LARGE one\n\nLARGE two\n\nLARGE three\n\n",
    ]
    assert models["large"].calls == []
    would = record["would"]
    assert (would["places"], would["first_large"]) == ([1], 1)
    assert would["steps"] == {"small": 3, "large": 1}
    assert would["decisions"] == {"accept": 3, "regenerate": 1}
    assert would["large_tokens"] == 2
    assert would["share"] == 2 / record["answered"]["output_tokens"]
    assert (record["routed"], record["agree"]) == (None, None)
    assert record["spent"]["large_tokens"] == 0


def test_a_walk_in_which_every_draft_is_rejected_is_exactly_a_run(file):
    record, _ = recorded(file, scorer=ScriptedScorer(default=0.0))
    assert record["would"]["share"] == 1
    assert record["agree"] is True


def test_a_walk_along_a_small_answer_ends_where_the_large_model_would_have_been_asked(file):
    scorer = ScriptedScorer({"small two": 0.1})
    record, models = recorded(file, "small", scorer=scorer)
    assert record["would"]["stopped"] == "large_wanted"
    assert record["would"]["first_large"] == 1
    assert record["would"]["large_tokens"] is None
    assert scorer.calls == [["small one"], ["small one", "small two"]]
    assert models["small"].calls == models["large"].calls == []


def test_a_small_answer_without_a_rejected_step_is_what_routing_would_have_given(file):
    record, _ = recorded(file, "small", scorer=ScriptedScorer())
    assert record["would"]["large_tokens"] == 0
    assert record["would"]["first_large"] is None
    assert record["agree"] is True


def test_a_draft_that_ends_the_solution_ends_the_walk(file):
    record, _ = recorded(file, small=["It is \\boxed{5}"], scorer=ScriptedScorer())
    assert record["would"]["stopped"] == "finished"
    assert record["would"]["large_tokens"] == 0


def test_a_handover_gives_the_rest_to_the_large_model(file):
    def policy(observation):
        return "handover" if observation.index == 2 else "accept"

    record, _ = recorded(file, policy=policy)
    assert record["would"]["places"] == [2, 3]
    assert record["would"]["steps"] == {"small": 2, "large": 2}


def test_a_policy_keeps_its_memory_along_a_walk(file):
    record, _ = recorded(file, policy=stay_on_large(threshold(0.5), 1))
    assert record["would"]["places"] == [1, 2]


def test_a_policy_sees_the_scores_of_accepted_drafts_and_of_large_steps(file):
    seen = []

    class Watching(Policy):
        def decide(self, observation):
            seen.append((observation.scores, observation.writers, observation.score))
            return Choice("regenerate" if observation.index == 1 else "accept")

    recorded(
        file, policy=Watching(), scorer=ScriptedScorer({"small two": 0.1, "LARGE two": 0.7}, default=0.9)
    )
    assert seen[-1] == ((0.9, 0.7, 0.9), ("small", "large", "small"), 0.9)


def test_a_walk_keeps_the_budget_of_the_run(file):
    record, _ = recorded(file, scorer=ScriptedScorer(default=0.0), budget=Budget(large_calls=2))
    assert record["would"]["places"] == [0, 1]
    assert record["would"]["steps"] == {"small": 2, "large": 2}


def test_a_policy_without_scores_needs_no_scorer(file):
    record, _ = recorded(file, policy=small_only())
    assert record["would"]["large_tokens"] == 0
    record, _ = recorded(file.with_name("other.jsonl"), policy=large_only())
    assert record["would"]["share"] == 1


def test_a_probe_in_a_walk_is_an_error_that_names_the_remedy(file):
    record, _ = recorded(file, policy=entropy_probe(0.5), text=True)
    assert "set run_rate to 1" in record["error"]


def test_costs_are_those_of_the_price_table(file):
    record, models = recorded(file, prices=PRICES)
    answered, would = record["answered"], record["would"]
    assert answered["cost"] == (10 * answered["input_tokens"] + 20 * answered["output_tokens"]) / 1e6
    read = sum(call["prompt_tokens"] for call in models["small"].calls)
    large = 10 * (answered["input_tokens"] + 1) + 20 * 2  # one of its tokens is in the step before
    assert would["cost"] == pytest.approx(
        (read + 2 * would["small_tokens"] + would["scorer_tokens"] + large) / 1e6
    )
