"""Plans: against enumeration of every history, against closed forms, and against simulation."""

import time

import numpy as np
import pytest
from enumeration import Enumeration
from goodness import CutOff
from step_worlds import PUBLISHED, dependent, tables_from, world

from trim_graph import SettingsError
from trim_graph.policies.pomdp import BELIEFS, step_tables
from trim_graph.training.fitting import ending_chances
from trim_graph.training.planner import BatchPomdp, Terms, solve
from trim_graph.training.simulator import StatelessBatchPolicy, simulate
from trim_graph.training.step_model import load_published

FAMILY = {"carried": "given_min", "carried_alone": "alone", "carried_joint": "published"}
published = pytest.mark.skipif(not PUBLISHED.exists(), reason="the published parameters are not here")


def small_world(seed=0, **changes):
    short = {"hazard": np.array([0.2, 0.4, 1.0]), "edges": np.linspace(0, 1, 4), "tables": dependent(seed)}
    return world(**(short | changes))


def exact(model, belief, **terms):
    given = step_tables(model.tables, belief, model.shrink)
    return Enumeration(
        model, given, late=belief in ("carried", "carried_alone"), context_moves=belief == "carried", **terms
    )


@pytest.mark.parametrize("belief", ["carried", "carried_alone", "carried_joint"])
@pytest.mark.parametrize(("cost", "seed"), [(0.0, 0), (0.4, 1), (1.5, 2)])
def test_it_is_worth_what_enumeration_says(belief, cost, seed):
    model = small_world(seed)
    terms = Terms(cost_per_token=cost, cost_per_call=1.0, cost_per_draft=0.5, handover=False)
    right = exact(model, belief, cost=cost, call=1.0, draft=0.5).value()
    off = [
        solve(model, terms, belief=belief, belief_step=step).start() - right for step in (0.1, 0.02, 0.001)
    ]
    assert -1e-4 < off[2] < 1e-2
    assert off[2] - 1e-4 <= off[1] <= off[0] + 1e-4


@pytest.mark.parametrize("belief", ["carried", "carried_joint"])
def test_so_it_is_under_a_budget_and_with_several_token_counts(belief):
    model = small_world(3, tokens=np.array([10.0, 20.0, 20.0]))
    plan = solve(model, Terms(0.2), belief=belief, budget=50, levels=8, belief_step=0.002)
    assert plan.unit == 10 or 10 % plan.unit == pytest.approx(0)
    enumerated = exact(model, belief, cost=0.2)
    for left in (0, 10, 20, 30, 50):
        assert plan.start(left) == pytest.approx(enumerated.value(left), abs=0.02)
    assert plan.start() == pytest.approx(enumerated.value(), abs=0.02)
    assert plan.start(0) < plan.start(10) < plan.start(20) < plan.start(30)


def test_a_scorer_that_says_nothing():
    """All by the large model where tokens are free, all by the small one where they are dear."""
    model = world(tables=tables_from(np.ones((3, 5))))
    alive = ending_chances(model)
    steps = np.arange(1, model.steps + 1)
    free = solve(model, Terms(), belief_step=0.001).start()
    assert free == pytest.approx(100 * (alive * model.p_large**steps).sum(), abs=1e-3)
    dear = solve(model, Terms(cost_per_token=50.0), belief_step=0.001).start()
    assert dear == pytest.approx(100 * (alive * model.p_small**steps).sum(), abs=1e-3)


@pytest.mark.parametrize("cost", [0.0, 1.0, 2.5, 4.0])
def test_a_scorer_that_knows_everything(cost):
    """Regenerate slips, where the large model's step is worth its tokens."""
    scores = np.eye(3)[[2, 0, 1]]
    model = world(tables=tables_from(scores), edges=np.linspace(0, 1, 4))
    plan = solve(model, Terms(cost_per_token=cost, handover=False), budget=80, levels=5)
    assert plan.unit == 20
    following = np.zeros(6)  # by regenerations left; the last: any number
    for hazard in model.hazard[::-1]:
        before = np.empty(6)
        for left in range(6):
            spent = left if left == 5 else max(left - 1, 0)

            def repaired(good, left=left):
                return max(0.0, model.p_large * good - 20 * cost) if left else 0.0

            ending = model.p_small * 100 + (1 - model.p_small) * repaired(100)
            going = model.p_small * following[left] + (1 - model.p_small) * repaired(following[spent])
            before[left] = hazard * ending + (1 - hazard) * going
        following = before
    assert [plan.start(20 * left) for left in range(5)] == pytest.approx(following[:5], abs=1e-3)
    assert plan.start() == pytest.approx(following[5], abs=1e-3)


def test_handing_over_pays_where_drafts_cost():
    model = world(tables=tables_from(np.ones((3, 5))), p_large=0.99)
    terms = {"cost_per_token": 0.01, "cost_per_draft": 4.0}
    steps, alive = np.arange(1, model.steps + 1), ending_chances(model)
    closed = 100 * (alive * 0.99**steps).sum() - 0.2 * (alive * steps).sum() - 4.0
    assert solve(model, Terms(**terms), belief_step=0.001).start() == pytest.approx(closed, abs=1e-2)
    without = solve(model, Terms(**terms, handover=False)).start()
    assert without < closed - 4


def test_handing_over_never_pays_where_only_tokens_cost():
    model = world()
    with_it, without = (solve(model, Terms(0.3, handover=handover)) for handover in (True, False))
    assert with_it.start() == pytest.approx(without.start(), abs=1e-4)


@pytest.mark.parametrize("belief", FAMILY)
@pytest.mark.parametrize("knows_end", [True, False])
def test_it_is_worth_what_simulation_says(belief, knows_end):
    model = world(tokens=np.array([10.0, 20.0, 30.0]))
    plan = solve(model, Terms(0.5, knows_end=knows_end, handover=False), belief=belief, belief_step=0.005)
    result = simulate(model, BatchPomdp(plan), 40_000, scores=FAMILY[belief], seed=5)
    reward = 100 * result.right - 0.5 * result.large_tokens
    assert reward.mean() == pytest.approx(plan.start(), abs=4 * reward.std() / 200)


def test_one_plan_for_every_budget_is_worth_what_simulation_says():
    model = world()
    plan = solve(model, budget=80, levels=9, belief_step=0.005)
    for budget in (20, 40, 80):
        right = simulate(model, BatchPomdp(plan), 40_000, budget=budget, seed=6).right
        assert 100 * right.mean() == pytest.approx(plan.start(budget), abs=400 * right.std() / 200)


def test_what_it_is_worth_rises_with_the_belief_and_the_budget_and_falls_with_the_price():
    plan = solve(world(), Terms(0.1), budget=100, levels=11)
    assert (np.diff(plan.values, axis=1) >= -1e-4).all()
    assert (np.diff(plan.values, axis=3) >= -1e-4).all()
    worth = [solve(world(), Terms(cost)).start() for cost in (0, 0.1, 0.5, 2)]
    assert worth == sorted(worth, reverse=True)
    assert worth[0] > worth[-1]


def test_knowing_the_end_is_worth_something():
    for budget in (None, 20, 60):
        knowing, not_knowing = (
            solve(world(), Terms(0.2, knows_end=knows), budget=60, levels=7).start(budget)
            for knows in (True, False)
        )
        assert knowing > not_knowing


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"belief": "guessed"}, "belief='guessed'; choose one of carried, "),
        ({"belief_step": 0.3}, "belief_step is 0.3"),
        ({"belief_step": 0}, "belief_step is 0"),
        ({"budget": 0}, "budget=0"),
        ({"budget": 10, "levels": 2}, "in 2 levels"),
    ],
)
def test_a_wrong_setting_is_named(settings, complaint):
    with pytest.raises(SettingsError, match=complaint):
        solve(world(), **settings)
    with pytest.raises(SettingsError, match="cost_per_token is -1"):
        Terms(cost_per_token=-1)


@published
class TestPublished:
    def test_the_published_small_model_alone_is_as_accurate_as_reported(self):
        model = load_published(PUBLISHED)
        right = simulate(
            model, StatelessBatchPolicy(lambda seen: 0 * seen.index), 100_000, seed=1
        ).right.mean()
        assert right == pytest.approx(0.3669, abs=0.006)
        assert (model.steps, model.bins) == (30, 20)
        assert (model.p_small, model.p_large) == pytest.approx((0.86595, 0.97043), abs=1e-5)

    @pytest.mark.parametrize("belief", BELIEFS)
    def test_the_published_model_is_solved_within_seconds(self, belief):
        model = load_published(PUBLISHED)
        begun = time.process_time()
        solve(model, Terms(0.05), belief=belief)
        assert time.process_time() - begun < 3
        begun = time.process_time()
        plan = solve(model, belief=belief, budget=31 * 8, levels=32)
        assert time.process_time() - begun < 30
        assert plan.values.shape[3] <= 33

    def test_one_plan_that_knows_the_budget_is_as_good_as_the_best_of_four_that_do_not(self):
        model = load_published(PUBLISHED)
        aware = BatchPomdp(solve(model, budget=240))
        others = [CutOff(BatchPomdp(solve(model, Terms(cost)))) for cost in (0.02, 0.05, 0.1, 0.2)]
        for budget in (60, 120, 240):
            own, *rest = (
                simulate(model, policy, 20_000, budget=budget, seed=3).right.mean()
                for policy in (aware, *others)
            )
            assert own >= max(rest) - 0.006
