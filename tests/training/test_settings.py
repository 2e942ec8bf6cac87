"""Tests of settings of labels, trainings and plans: what is refused before any work, and what follows."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trim_graph.errors import SettingsError, TrimError
from trim_graph.training.settings import LabelSettings, ScorerTraining, Terms, Training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "labelled"}, "method is 'labelled': choose monte_carlo"),
        ({"rollouts": 0}, "rollouts is 0: choose 1 or more"),
        ({"width": 1.5}, "width is 1.5: choose a share from 0 to 1"),
        ({"target": "firm"}, "target is 'firm': choose soft or hard"),
        ({"generators": ("small", "tiny")}, "generators is 'tiny': choose small or large"),
        ({"tolerance": 1, "target": "soft"}, "tolerance is 1, with target 'soft'"),
        ({"min_confidence": -0.1}, "min_confidence is -0.1: choose a share from 0 to 1"),
        ({"tolerance": -1}, "tolerance is -1: choose 0 or more"),
        ({"method": "agreement", "consensus": True}, "consensus compares another method"),
    ],
)
def test_wrong_settings_of_labels_are_refused_with_what_to_choose(settings, message):
    with pytest.raises(SettingsError) as error:
        LabelSettings(**settings)
    assert str(error.value).startswith(message)


def test_labels_name_the_models_that_they_take():
    assert (LabelSettings().continued, LabelSettings().judged) == (True, False)
    assert (LabelSettings(consensus=True).continued, LabelSettings(consensus=True).judged) == (True, True)
    agreement = LabelSettings(method="agreement")
    assert (agreement.continued, agreement.judged) == (False, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tuning": "some"}, "tuning is 'some': choose head, lora or full"),
        ({"validation": 0}, "validation is 0: choose a share of the questions below 1, such as 0.15"),
        ({"validation": 1.0}, "validation is 1: choose a share of the questions below 1"),
        ({"test": 1.0}, "test is 1: choose a share of the questions below 1"),
        ({"test": -0.5}, "test is -0.5: choose a share of the questions below 1"),
        ({"epochs": 0.0}, "epochs is 0: choose a number above 0"),
        ({"max_tokens": 0}, "max_tokens is 0: choose 1 or more"),
        ({"dtype": "float16"}, "dtype is 'float16': choose auto, float32 or bfloat16"),
        ({"calibrate_on": "scores"}, "calibrate_on is 'scores': choose auto, value or label"),
    ],
)
def test_wrong_settings_of_a_scorers_training_are_refused_with_what_to_choose(settings, message):
    with pytest.raises(SettingsError) as error:
        ScorerTraining(**settings)
    assert str(error.value).startswith(message)


def test_a_scorer_may_be_trained_without_held_out_questions_and_for_part_of_an_epoch():
    training = ScorerTraining(test=0, epochs=0.5, max_tokens=None)
    assert (training.test, training.epochs, training.max_tokens) == (0, 0.5, None)


def test_a_pattern_that_cannot_be_compiled_is_refused():
    with pytest.raises(TrimError, match=r"\("):
        ScorerTraining(pattern="(")
    assert ScorerTraining(pattern=r"\d (\+|\*)").pattern == r"\d (\+|\*)"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 0}, "rows is 0: choose 1 or more"),
        ({"patience": 0}, "patience is 0: choose 1 or more"),
        ({"steps": 0, "simulated_steps": 0}, "training: steps and simulated_steps are both 0"),
        ({"steps": -1}, "steps is -1: choose 0 or more"),
        ({"learning_rate": float("nan")}, "learning_rate is nan: choose 0 or more"),
    ],
)
def test_wrong_settings_of_a_policys_training_are_refused(settings, message):
    with pytest.raises(SettingsError) as error:
        Training(**settings)
    assert str(error.value).startswith(message)


def test_a_policy_may_be_trained_on_rollouts_alone_or_on_the_simulator_alone():
    assert Training(simulated_steps=0).steps > 0
    assert Training(steps=0).simulated_steps > 0


@pytest.mark.parametrize("name", ["cost_per_token", "cost_per_call", "cost_per_draft"])
@pytest.mark.parametrize("cost", [-0.1, float("nan"), float("inf")])
def test_a_cost_of_a_decision_is_a_number_from_0_on(name, cost):
    with pytest.raises(SettingsError, match=f"{name} is {cost}: choose 0 or more"):
        Terms(**{name: cost})


def test_the_settings_load_nothing_heavy():
    heavy = "{'torch', 'numpy', 'langchain_core', 'transformers'}"
    code = f"import sys, trim_graph.training.settings; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
