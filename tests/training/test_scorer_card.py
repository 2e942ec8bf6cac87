"""Tests of the calibration of a trained scorer, and of the weights of token probabilities beside it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.training.test_scorer_data import labelled
from trim_graph.training.scorer_card import (
    LEAST_QUESTIONS,
    CalibrationSteps,
    calibration_steps,
    fit_platt,
    fit_stacking,
)


class TestCalibration:
    def steps(self, asked, **changes):
        one = labelled("q", True, False, None, targets=(0.9, 0.2, 0.1), **changes)
        return calibration_steps([SimpleNamespace(solution=one)], [np.array([1.0, 2.0, 3.0])], asked)

    def test_labels_unless_the_values_are_no_probability_of_a_right_step(self):
        found = self.steps("auto")
        assert (found.logits.tolist(), found.targets.tolist()) == ([1.0, 2.0], [1.0, 0.0])
        assert found.targets_are == "labels"
        for changes in ({"method": "advantage"}, {"method": "agreement"}, {"hard": False}):
            found = self.steps("auto", **changes)
            assert (found.targets.tolist(), found.targets_are) == ([0.9, 0.2, 0.1], "values")
        assert self.steps("value").targets_are == "values"
        assert self.steps("label", method="advantage").targets_are == "labels"

    def test_token_probabilities_are_those_of_the_small_models_steps(self):
        one = replace(labelled("q", True, True, False), writers=("small", "large", "small"))
        one = replace(one, token_probabilities=(0.8, 0.9, None))
        found = calibration_steps([SimpleNamespace(solution=one)], [np.zeros(3)], "auto")
        assert found.token_probabilities[0] == 0.8
        assert np.isnan(found.token_probabilities[1:]).all()

    def test_platt_finds_the_scale_and_shift_of_miscalibrated_logits(self):
        rng = np.random.default_rng(0)
        true = rng.normal(size=20_000) * 2
        right = (rng.random(20_000) < 1 / (1 + np.exp(-true))).astype(float)
        scale, shift = fit_platt(true * 3 + 1, right)
        assert scale == pytest.approx(1 / 3, rel=0.05)
        assert shift == pytest.approx(-1 / 3, abs=0.05)

    def test_the_order_of_scores_stays_even_where_they_are_worse_than_chance(self):
        logits = np.array([2.0, 1.0, -1.0, -2.0])
        scale, _ = fit_platt(logits, np.array([0.0, 0.0, 1.0, 1.0]))
        assert scale > 0

    def test_a_scorer_without_errors_does_not_become_certain(self):
        scale, shift = fit_platt(np.array([5.0, 5.0, -5.0]), np.array([1.0, 1.0, 0.0]))
        assert 1 / (1 + np.exp(-(5 * scale + shift))) == pytest.approx(3 / 4, abs=1e-3)


class TestStacking:
    def drawn(self, weight, *, n=20_000):
        """Draws steps whose label depends on the head's value and, by a weight, on the token probability."""
        rng = np.random.default_rng(0)
        logits, odds = rng.normal(size=n), rng.normal(size=n)
        right = rng.random(n) < 1 / (1 + np.exp(-(0.5 + logits + weight * odds)))
        questions = [str(at % 50) for at in range(n)]
        return CalibrationSteps(logits, right.astype(float), 1 / (1 + np.exp(-odds)), questions, "labels")

    def test_weights_are_those_that_labels_were_drawn_with(self):
        found = fit_stacking(self.drawn(2.0), 1.0, 0.0)
        assert (found.score, found.token_probability) == (
            pytest.approx(1, rel=0.05),
            pytest.approx(2, rel=0.05),
        )
        assert found.intercept == pytest.approx(0.5, abs=0.05)

    def test_calibrated_logits_are_what_is_weighed(self):
        found = fit_stacking(self.drawn(2.0), 0.5, 0.25)
        assert found.score == pytest.approx(2, rel=0.05)
        assert found.intercept == pytest.approx(0, abs=0.1)

    def test_a_token_probability_that_says_the_opposite_is_left_out(self):
        assert fit_stacking(self.drawn(-1.0), 1.0, 0.0) is None

    def test_token_probabilities_that_say_nothing_are_left_out_but_for_chance(self):
        stacked = 0
        for seed in range(100):
            rng = np.random.default_rng(seed)
            steps = self.drawn(2.0, n=80)._replace(token_probabilities=rng.uniform(0.5, 1, 80))
            stacked += fit_stacking(steps, 1.0, 0.0) is not None
        assert stacked <= 10

    @pytest.mark.parametrize("probability", [0.0, 0.3, 0.7, 0.99, 1.0])
    def test_equal_token_probabilities_give_none(self, probability):
        steps = self.drawn(2.0, n=77)._replace(token_probabilities=np.full(77, probability))
        assert fit_stacking(steps, 1.0, 0.0) is None

    def test_few_questions_give_none(self):
        steps = self.drawn(2.0, n=500)
        few = [str(at % (LEAST_QUESTIONS - 1)) for at in range(500)]
        assert fit_stacking(steps, 1.0, 0.0) is not None
        assert fit_stacking(steps._replace(questions=few), 1.0, 0.0) is None

    def test_unknown_token_probabilities_give_none(self):
        steps = self.drawn(2.0, n=50)
        assert fit_stacking(steps._replace(token_probabilities=np.full(50, np.nan)), 1.0, 0.0) is None

    def test_steps_of_one_kind_give_none(self):
        steps = self.drawn(2.0, n=50)
        assert fit_stacking(steps._replace(targets=np.ones(50)), 1.0, 0.0) is None
