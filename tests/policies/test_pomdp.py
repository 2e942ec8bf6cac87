"""The planned policy at run time: its belief, its decisions, its file, and in the graph."""

import dataclasses
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_worlds import world

from trim_graph import Budget, SettingsError
from trim_graph.budget import RemainingBudget
from trim_graph.config import make_config
from trim_graph.policies import load_policy, save_policy
from trim_graph.policies.base import Observation
from trim_graph.policies.pomdp import BELIEFS, pomdp
from trim_graph.training.planner import BatchPomdp, Terms, solve
from trim_graph.training.simulator import Simulator

PLANS = {
    belief: pomdp(solve(world(), Terms(0.3), belief=belief, budget=100, levels=11)) for belief in BELIEFS
}
probability = st.floats(0, 1)


def seen(score, *, scores=(), writers=None, left=None, memory=None, **rest):
    given = {"draft_tokens": 20, "question": "q", "max_steps": 20, "index": len(scores)}
    return Observation(
        **(given | rest),
        scores=tuple(scores),
        writers=tuple(writers or ["small"] * len(scores)),
        score=score,
        budget_left=RemainingBudget(large_tokens=left),
        memory=memory,
    )


@st.composite
def histories(draw):
    count = draw(st.integers(0, 6))
    scores = draw(st.lists(st.none() | probability, min_size=count, max_size=count))
    writers = draw(st.lists(st.sampled_from(["small", "large"]), min_size=count, max_size=count))
    left = draw(st.none() | st.integers(0, 300))
    ends = draw(st.booleans())
    return seen(draw(st.none() | probability), scores=scores, writers=writers, left=left, draft_ends=ends)


@pytest.mark.parametrize("belief", BELIEFS)
@given(history=histories())
@settings(deadline=None)
def test_a_belief_is_a_distribution_whatever_was_seen(belief, history):
    policy = PLANS[belief]
    found = policy.belief(history)
    assert sum(found) == pytest.approx(1)
    assert all(0 <= chance <= 1 for chance in found)
    choice = policy.decide(history)
    assert choice.value in ("accept", "regenerate", "handover")
    assert choice.memory == json.loads(json.dumps(choice.memory))
    again = policy.decide(dataclasses.replace(history, memory=choice.memory))
    assert again == choice  # a decision taken twice is the same decision


@pytest.mark.parametrize("belief", ["carried", "carried_alone", "carried_joint"])
@given(history=histories(), scores=st.lists(probability, min_size=1, max_size=4))
@settings(deadline=None)
def test_remembering_is_as_good_as_looking_at_all_accepted_steps(belief, history, scores):
    policy = PLANS[belief]
    history = dataclasses.replace(history, score=scores[0])
    for score in scores[1:]:
        memory = policy.decide(history).memory
        history = dataclasses.replace(
            history,
            index=history.index + 1,
            scores=(*history.scores, history.score),
            writers=(*history.writers, "small"),
            score=score,
            memory=memory,
        )
    afresh = policy.belief(dataclasses.replace(history, memory=None))
    assert policy.belief(history) == pytest.approx(afresh, abs=1e-9)


def test_a_belief_is_one_step_of_bayes_rule_from_the_tables():
    """One step of Bayes' rule, from the tables."""
    model, policy = world(), PLANS["carried_alone"]
    first, second = 4, 0  # bins of the scores .95 and .05
    table = model.score_alone()
    prior = np.array([0.8, 0, 0.2]) * table[:, first]
    right = prior[0] / prior.sum()
    joint = np.array([0.8 * right, 1 - right, 0.2 * right]) * table[:, second]
    found = policy.belief(seen(0.05, scores=[0.95]))
    assert found == pytest.approx(joint / joint.sum())


def test_the_least_score_is_not_counted_again_and_again():
    """One low score, then high ones: only the joint belief is ever more sure that all is lost."""

    def lost(belief, after):
        return PLANS[belief].belief(seen(0.95, scores=[0.95, 0.3, *[0.95] * after])).lost

    assert lost("carried_joint", 5) > lost("carried_joint", 0)
    assert lost("carried_joint", 5) > 2 * lost("carried", 5)
    assert lost("carried_alone", 5) < lost("carried_alone", 0)
    assert lost("memoryless", 5) == lost("memoryless", 0)


def test_a_regeneration_reports_the_steps_before():
    policy = PLANS["carried"]
    bad = seen(0.05, scores=[0.95])
    memory = policy.decide(bad).memory
    history = {"scores": [0.95, 0.95], "memory": memory}
    regenerated = policy.belief(seen(0.95, writers=["small", "large"], **history))
    accepted = policy.belief(seen(0.95, writers=["small", "small"], **history))
    assert regenerated.right > accepted.right
    # The discarded draft's low score has made it likelier that all was lost before.
    forgotten = policy.belief(seen(0.95, writers=["small", "large"], scores=[0.95, 0.95]))
    assert regenerated.lost > forgotten.lost


def test_it_pays_while_it_can_and_where_it_counts():
    """One plan, the same doubtful draft: with 500 tokens left and with 20."""
    model = world(hazard=np.array([*[0.0] * 9, 1.0]))
    policy = pomdp(solve(model, budget=500, levels=26))
    doubtful = [seen(score, scores=[0.95]) for score in (0.5, 0.7)]
    with_much, with_little = (
        [
            policy.decide(dataclasses.replace(one, budget_left=RemainingBudget(large_tokens=left))).value
            for one in doubtful
        ]
        for left in (500, 20)
    )
    assert with_much == ["regenerate"] * 2
    assert with_little == ["accept"] * 2
    slip = seen(0.05, scores=[0.95], left=20)
    assert policy.decide(slip).value == "regenerate"
    assert (
        policy.decide(dataclasses.replace(slip, budget_left=RemainingBudget(large_tokens=19))).value
        == "accept"
    )
    assert (
        policy.decide(dataclasses.replace(slip, budget_left=RemainingBudget(large_calls=0))).value == "accept"
    )
    # At the end nothing is worth saving for.
    last = seen(0.5, scores=[0.95] * 5, left=20, draft_ends=True)
    assert policy.decide(last).value == "regenerate"


def test_dear_tokens_and_long_drafts_are_accepted():
    policy = pomdp(solve(world(), Terms(cost_per_token=1.0)))
    short, long = (policy.decide(seen(0.3, draft_tokens=tokens)).value for tokens in (5, 60))
    assert (short, long) == ("regenerate", "accept")


def test_it_hands_over_where_drafts_cost_more_than_the_large_model():
    model = world(p_large=0.99)
    policy = pomdp(solve(model, Terms(cost_per_token=0.01, cost_per_draft=6.0)))
    assert policy.decide(seen(0.3)).value == "handover"
    assert policy.decide(seen(0.3, draft_ends=True)).value == "regenerate"
    never = pomdp(solve(model, Terms(cost_per_token=0.01, cost_per_draft=6.0, handover=False)))
    assert never.decide(seen(0.3)).value == "regenerate"


@pytest.mark.parametrize("belief", BELIEFS)
@pytest.mark.parametrize("knows_end", [True, False])
@pytest.mark.parametrize("budget", [None, 60])
def test_batch_and_scalar_pomdp_agree(belief, knows_end, budget):
    """`BatchPomdp` of the planner has the beliefs and decisions of the policy `pomdp`."""
    plan = solve(
        world(), Terms(0.2, cost_per_draft=1.0, knows_end=knows_end), belief=belief, budget=budget, levels=10
    )
    policy, batched, n = pomdp(plan), BatchPomdp(plan), 60
    simulator = Simulator(plan_world := world(), n, seed=3, budget=np.inf if budget is None else budget)
    batched.begin(n)
    scores, writers, memory = ([[] for _ in range(n)] for _ in range(3))
    memory = [None] * n
    compared = set()
    while not simulator.done.all():
        view, decided = simulator.observations, batched.decide(simulator.observations)
        for row in np.flatnonzero(~simulator.done):
            if view.by_large[row]:
                scores[row][-1] = float(view.large_score[row])
            one = seen(
                float(view.score[row]),
                scores=scores[row],
                writers=writers[row],
                left=None if budget is None else int(view.large_left[row]),
                memory=memory[row],
                draft_ends=bool(view.ends[row]),
                draft_tokens=int(view.tokens[row]),
            )
            assert policy.belief(one) == pytest.approx(batched.belief[:, row], abs=1e-9)
            choice = policy.decide(one)
            assert choice.value == ("accept", "regenerate", "handover")[decided[row]]
            compared.add(choice.value)
            memory[row] = choice.memory
            scores[row].append(float(view.score[row]))
            writers[row].append("large" if decided[row] else "small")
        simulator.step(decided)
    assert {"accept", "regenerate"} <= compared
    assert plan_world.steps == 6


@pytest.mark.parametrize("budget", [None, 240])
def test_a_decision_takes_less_than_50_microseconds(budget):
    uniform = np.full((3, 20, 20), 1 / 400)
    model = world(edges=np.linspace(0, 1, 21), tables=uniform, hazard=np.array([0.1] * 29 + [1.0]))
    policy = pomdp(solve(model, Terms(0.1), budget=budget))
    one = seen(0.6, scores=[0.9] * 12, left=budget and 100, memory=[11, 0.8, 0.7, 0.9])
    least = np.inf
    for _ in range(20):
        begun = time.process_time()
        for _ in range(200):
            policy.decide(one)
        least = min(least, (time.process_time() - begun) / 200)
    assert least < 50e-6


class TestFile:
    def test_a_saved_plan_is_loaded_as_it_was(self, tmp_path):
        policy = PLANS["carried"]
        save_policy(policy, tmp_path / "plan.json", data="made up")
        loaded = load_policy(tmp_path / "plan.json")
        assert loaded.plan.settings() == policy.plan.settings()
        for name, array in policy.plan.arrays().items():
            assert np.array_equal(loaded.plan.arrays()[name], array)
        assert json.loads((tmp_path / "plan.json").read_text())["made"] == {"data": "made up"}
        models = {"small": {"type": "example"}, "large": {"type": "example"}, "scorer": {"type": "example"}}
        assert repr(make_config({**models, "policy": "plan.json"}, base=tmp_path).policy.build()) == repr(
            policy
        )

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"belief": "guessed"}, "belief is 'guessed'"),
            ({"belief": "memoryless"}, "do not go with 5 bins"),
            ({"unit": 0.0}, "11 budget levels|12 budget levels"),
            ({"colour": 1}, "colour"),
        ],
    )
    def test_what_does_not_fit_together_is_refused(self, tmp_path, changes, complaint):
        file = tmp_path / "plan.json"
        save_policy(PLANS["carried"], file)
        document = json.loads(file.read_text())
        document["parameters"] |= changes
        file.write_text(json.dumps(document))
        with pytest.raises(SettingsError, match=complaint):
            load_policy(file)


class TestGraph:
    def test_it_regenerates_what_looks_wrong_and_remembers(self, make):
        rig = make(policy=pomdp(solve(world(), Terms(0.1))), scores={"small two": 0.05})
        result = rig.ask()
        assert [step["writer"] for step in rig.steps()] == ["small", "large", "small", "small"]
        assert result["trim"]["steps"]["large"] == 1
        state = rig.graph.invoke({"messages": [("user", "q")]}, output_keys=["memory", "decisions"])
        index, *chances = state["memory"]
        assert index == 3
        assert all(0 <= chance <= 1 for chance in chances)

    def test_it_saves_the_budget_for_where_it_counts(self, make):
        """The first doubtful step is let go, though tokens are left; with more of them it is not."""
        model = world(tokens=np.array([2.0]), hazard=np.array([0.0, 0.0, 0.0, 1.0]))
        policy = pomdp(solve(model, budget=40, levels=21))
        scores = {"small one": 0.7, "small two": 0.7, "small three": 0.05}
        writers = {}
        for tokens in (3, 40):
            rig = make(policy=policy, scores=scores, budget=Budget(large_tokens=tokens, min_tokens=1))
            writers[tokens] = [step["writer"] for step in rig.steps()]
        assert writers == {3: ["small", "small", "large", "small"], 40: ["large", "large", "large", "small"]}

    def test_a_scorer_that_fails_is_lived_with(self, make):
        class Broken:
            def score(self, question, steps):
                raise TimeoutError("no")

            async def ascore(self, question, steps):
                raise TimeoutError("no")

        rig = make(policy=PLANS["carried"], scorer=Broken(), on_scorer_error="accept")
        assert rig.ask()["trim"]["stopped"] == "finished"
