"""A policy of any kind has the same results on rollout trees as in the graph."""

import asyncio

import pytest
import toy
from toy import questions

from trim_graph.evaluation import run_arm
from trim_graph.policies import (
    Choice,
    Policy,
    entropy_probe,
    large_only,
    random_rate,
    small_only,
    stay_on_large,
    threshold,
)
from trim_graph.training.rollouts import RolloutError, Rollouts, evaluate_offline

N, SEED = 12, 5


def build(policy):
    return toy.build(policy, settings={"seed": SEED})


@pytest.fixture(scope="module")
def rollouts():
    found = Rollouts(questions(N), build)
    assert asyncio.run(found.explore(40)) == 0
    return found


class Curious(Policy):
    """Shows whatever it sees to a list, and asks everybody by turns."""

    def __init__(self, scored=True):
        self.seen, self.needs_score = [], scored

    def next_writer(self, observation):
        self.seen.append(observation)
        return Choice("large" if observation.index % 3 == 1 else "small", observation.index)

    def decide(self, observation):
        self.seen.append(observation)
        low = observation.score is not None and observation.score < 0.7
        return "regenerate" if low or observation.random().random() < 0.2 else "accept"


@pytest.mark.parametrize(
    "policy",
    [
        small_only(),
        threshold(0.7),
        random_rate(0.4),
        stay_on_large(threshold(0.5), k=2),
        threshold(0.3) | random_rate(0.2),
        lambda seen: "regenerate" if seen.draft_ends else "accept",
    ],
    ids=lambda policy: repr(policy) if isinstance(policy, Policy) else "function",
)
def test_tokens_and_answers_are_those_of_the_graph(policy, rollouts):
    runs = rollouts.runs
    policy = policy if isinstance(policy, Policy) else threshold(0) | policy
    ended = evaluate_offline(rollouts, policy, seed=SEED)
    outcomes = asyncio.run(run_arm(build(policy), questions(N)))
    assert [(o["correct"], o["large_tokens"]) for o in outcomes] == [
        (r.correct, r.large_tokens) for r in ended
    ]
    assert rollouts.runs == runs


@pytest.mark.parametrize("policy", [large_only(), lambda seen: "handover" if seen.score < 0.5 else "accept"])
def test_the_large_model_goes_on_to_the_end(policy, rollouts):
    policy = policy if isinstance(policy, Policy) else threshold(0) | policy
    ended = evaluate_offline(rollouts, policy)
    outcomes = asyncio.run(run_arm(build(policy), questions(N)))
    assert [o["correct"] for o in outcomes] == [r.correct for r in ended]
    # The toy counts a separator for a token where it is cut: the graph's calls are fewer.
    for outcome, rollout in zip(outcomes, ended, strict=True):
        assert outcome["tokens"]["large"] <= rollout.large_tokens
        written = "".join("l" if writer == "large" else "s" for writer in rollout.writers)
        assert "ls" not in written


@pytest.mark.parametrize("scored", [True, False])
def test_a_policy_sees_what_it_sees_in_the_graph(scored, rollouts):
    there, here = Curious(scored), Curious(scored)
    evaluate_offline(rollouts, here, seed=SEED)
    asyncio.run(run_arm(build(there), questions(N), concurrency=1))
    assert len(here.seen) > 3 * N
    assert here.seen == there.seen


def test_another_seed_draws_otherwise(rollouts):
    spent = [
        [one.large_tokens for one in evaluate_offline(rollouts, random_rate(0.4), seed=seed)]
        for seed in (5, 6)
    ]
    assert spent[0] != spent[1]


def test_a_probe_needs_entropies(rollouts):
    with pytest.raises(RolloutError, match="no entropy was recorded"):
        evaluate_offline(rollouts, entropy_probe(0.1))
