"""Tests of simulated solutions: their scores, ends, budgets and accuracy."""

import numpy as np
import pytest
from goodness import batch_threshold, least_distance
from step_worlds import world

from trim_graph import SettingsError
from trim_graph.training.fitting import ending_chances
from trim_graph.training.planner import BatchPomdp, Terms, solve
from trim_graph.training.simulator import SCORES, Simulator, StatelessBatchPolicy, simulate

NEVER = StatelessBatchPolicy(lambda seen: 0 * seen.index)


class TestSimulator:
    @pytest.mark.parametrize("scores", SCORES)
    def test_scores_are_the_models(self, scores):
        model = world()
        counts = np.zeros((3, 5, 5))
        simulator = Simulator(model, 40_000, scores=scores)
        while not simulator.done.all():
            rows = ~simulator.done
            where = (simulator.state, model.bin_of(simulator.least), model.bin_of(simulator.score))
            np.add.at(counts, tuple(part[rows] for part in where), 1)
            simulator.step(NEVER.decide(simulator.observations))
        alone = counts.sum(1) / counts.sum((1, 2))[:, None]
        assert np.abs(alone - model.score_alone()).max() < 0.02
        if scores == "published":
            assert np.abs(counts / counts.sum((1, 2), keepdims=True) - model.tables).max() < 0.01

    def test_the_least_score_is_the_least_of_its_own(self):
        simulator = Simulator(world(), 500, seed=1)
        least = np.ones(500)
        while not simulator.done.all():
            seen, under_way = simulator.observations, ~simulator.done
            assert np.array_equal(seen.least[under_way], least[under_way])
            decisions = (np.arange(500) % 3 == 0).astype(int)
            score = seen.score
            simulator.step(decisions)
            own = np.where(simulator.by_large, simulator.large_score, score)
            least = np.minimum(least, own)

    def test_the_accuracy_of_one_decision_is_as_computed(self):
        model, alive = world(), ending_chances(world())
        steps = np.arange(1, model.steps + 1)
        for decision, chance in ((0, model.p_small), (1, model.p_large), (2, model.p_large)):
            always = StatelessBatchPolicy(lambda seen, decision=decision: decision + 0 * seen.index)
            played = simulate(model, always, 40_000)
            assert played.right.mean() == pytest.approx((alive * chance**steps).sum(), abs=0.01)
            large = 0 if decision == 0 else 20 * (alive * steps).sum()
            assert played.large_tokens.mean() == pytest.approx(large, abs=1)

    @pytest.mark.parametrize("decision", [1, 2])
    def test_a_budget_is_kept(self, decision):
        model = world(tokens=np.array([15.0, 20.0]))
        always = StatelessBatchPolicy(lambda seen: decision + 0 * seen.index)
        played = simulate(model, always, 4000, budget=50)
        assert 30 <= played.large_tokens.max() <= 50
        assert simulate(model, NEVER, 4000).right.mean() < played.right.mean()

    def test_a_row_that_is_done_stays_until_it_is_reset(self):
        simulator = Simulator(world(), 50, seed=2)
        while not simulator.done.all():
            simulator.step(np.ones(50, int))
        right, spent = simulator.right.copy(), simulator.large_tokens.copy()
        assert not simulator.step(np.ones(50, int)).any()
        assert np.array_equal(simulator.right, right)
        some = np.arange(50) < 5
        seen = simulator.reset(some)
        assert not simulator.done[some].any()
        assert (seen.index[some] == 0).all()
        assert np.array_equal(simulator.large_tokens[~some], spent[~some])

    def test_one_round_gives_the_same_as_several(self, monkeypatch):
        """A row's next solution knows nothing of the one before."""
        router = BatchPomdp(solve(world(), Terms(0.5)))
        for one in (router, batch_threshold(0.5)):
            again = simulate(world(), one, 24_000, seed=4)
            with monkeypatch.context() as patch:
                patch.setattr("trim_graph.training.simulator.ROUNDS", 1)
                once = simulate(world(), one, 24_000, seed=4)
            assert once.right.mean() == pytest.approx(again.right.mean(), abs=0.015)
            assert once.large_tokens.mean() == pytest.approx(again.large_tokens.mean(), rel=0.05)

    def test_the_derived_least_scores_are_compared_with_the_tables(self):
        assert set(least_distance(world(), 500)) == {"right so far", "lost before", "first wrong step"}
        with pytest.raises(SettingsError, match="scores='guessed'"):
            Simulator(world(), 1, scores="guessed")
