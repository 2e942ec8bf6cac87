"""Tests of entropies of which only the likeliest tokens are observed, and of `TokenProbability`."""

from __future__ import annotations

import asyncio
import math
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph import ScorableStep
from trim_graph.adapters import ChatTransformers, ChatVLLM, Scorer, ScorerError, TokenProbability
from trim_graph.adapters.token_confidence import entropy_of_likeliest, lowest_window_mean
from trim_graph.errors import SettingsError
from trim_graph.evaluation import Question
from trim_graph.evaluation.calibration import CachedScorer
from trim_graph.evaluation.records import WorkItem
from trim_graph.evaluation.runner import run_question
from trim_graph.graph import create_trim_graph
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel

from .provider_model import ProviderModel

weights = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=200)


def exact(p):
    return -math.fsum(x * math.log(x) for x in p if x)


@given(weights, st.integers(1, 30), st.data())
def test_it_is_a_lower_bound_and_exact_where_all_are_observed(weights, k, data):
    total = math.fsum(weights)
    p = sorted((w / total for w in weights), reverse=True)
    chosen = math.log(data.draw(st.sampled_from(p)))
    # What a server reports: the k likeliest, and the token generated even if it is none of them.
    observed = [math.log(x) for x in p[:k]]
    if chosen < observed[-1]:
        observed[data.draw(st.sampled_from([len(observed) - 1, len(observed)])) :] = [chosen]
    found = entropy_of_likeliest(observed, chosen)
    assert found.nats <= exact(p) + 1e-9
    assert found.unobserved_probability == pytest.approx(
        max(0.0, 1 - math.fsum(map(math.exp, observed))), abs=1e-9
    )
    if len(p) <= k:
        assert found.nats == pytest.approx(exact(p), abs=1e-6)


@given(weights, st.integers(1, 30))
def test_it_is_no_worse_a_bound_than_renormalising(weights, k):
    total = math.fsum(weights)
    observed = sorted((w / total for w in weights), reverse=True)[:k]
    renormalised = exact([x / math.fsum(observed) for x in observed])
    assert entropy_of_likeliest([math.log(x) for x in observed]).nats >= renormalised - 1e-9


def test_the_flattest_distributions_are_distinguished():
    found = [entropy_of_likeliest([-math.log(size)] * 20).nats for size in (20, 1000, 100_000)]
    assert found == [pytest.approx(math.log(size)) for size in (20, 1000, 100_000)]


def test_a_certain_token_has_none_and_minus_infinity_is_no_obstacle():
    assert entropy_of_likeliest([0.0, -9999.0, -math.inf]).nats == 0.0
    assert entropy_of_likeliest([-1e-9]).nats == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("wrong", [[], [math.nan], [0.0, 0.5]])
def test_what_are_no_log_probabilities_is_refused(wrong):
    with pytest.raises(ValueError, match="not log-probabilities"):
        entropy_of_likeliest(wrong)


probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=40)


@given(probabilities, st.integers(1, 50))
def test_the_lowest_window_is_the_least_mean_of_neighbours(probabilities, window):
    found = lowest_window_mean(probabilities, window)
    mean = math.fsum(probabilities) / len(probabilities)
    assert min(probabilities) - 1e-9 <= found
    assert lowest_window_mean(probabilities, 1) == min(probabilities)
    assert lowest_window_mean(probabilities, len(probabilities)) == pytest.approx(mean)
    if window < len(probabilities):
        whole = [probabilities[i : i + window] for i in range(0, len(probabilities) - window + 1)]
        assert found == pytest.approx(min(math.fsum(part) / window for part in whole))


def test_the_lowest_window_of_no_token_is_unknown():
    assert lowest_window_mean([], 4) is None


# `TokenProbability`: the writer's own probabilities as scores, or an error that says what to set


def step(probability, writer="small"):
    return ScorableStep("one", writer, mean_token_probability=probability)


async def test_scores_are_the_probabilities():
    scorer = TokenProbability()
    assert isinstance(scorer, Scorer)
    assert scorer.score("q", [step(0.5), step(0.25)]).scores == [0.5, 0.25]
    assert (await scorer.ascore("q", [step(0.5)])).scores == [0.5]
    assert scorer.score("q", [step(0.5)]).input_tokens == 0


@pytest.mark.parametrize("missing", [step(None, "large"), ScorableStep("one", "large")])
def test_a_writer_that_reports_none_is_named(missing):
    with pytest.raises(ScorerError, match=r"step 1, by the large model, .* set logprobs=True"):
        TokenProbability().score("q", [step(0.5), missing])


def test_a_model_set_not_to_report_is_refused_before_any_call():
    on, off = ChatVLLM(model="m", logprobs=True), ChatVLLM(model="m")
    scorer, policy = TokenProbability(), threshold(0.5)
    create_trim_graph(on, on, scorer, policy=policy)
    create_trim_graph(on, off.bind(logprobs=True).with_retry(), scorer, policy=policy)
    create_trim_graph(ScriptedChatModel(script=["one"]), on, scorer, policy=policy)  # has no such setting
    for small, large, named in (
        (off, on, "small"),
        (on, off, "large"),
        (on, ChatTransformers(model="org/m"), "large"),
        (on, on.bind(logprobs=False), "large"),
        (on, ProviderModel(), "large"),
    ):
        with pytest.raises(SettingsError, match=rf"set logprobs=True .*; {named} has not"):
            create_trim_graph(small, large, scorer, policy=policy)


def test_the_lowest_window_is_a_statistic_of_its_own():
    scorer = TokenProbability("lowest_window", window=4)
    assert repr(scorer) == "TokenProbability('lowest_window', window=4)"
    steps = [ScorableStep("one", lowest_window_probability=0.5), step(None, "human")]
    assert scorer.score("q", steps).scores == [0.5, 1.0]
    with pytest.raises(ScorerError, match=r"step 0, by the small model, .* lowest_window_probability"):
        scorer.score("q", [step(0.9)])


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"statistic": "least"}, "statistic='least'"),
        ({"window": 4}, "only statistic='lowest_window' has a window"),
        ({"statistic": "lowest_window", "window": 0}, "window=0"),
        ({"statistic": "lowest_window", "window": True}, "window=True"),
    ],
)
def test_a_wrong_setting_is_named(settings, wrong):
    with pytest.raises(ValueError, match=wrong):
        TokenProbability(**settings)


class Reporting(ScriptedChatModel):
    """Reports the window that it was asked for, as a probability."""

    reports_window: ClassVar[bool] = True

    def _generate(self, *args, probability_window=None, **kwargs):
        result = super()._generate(*args, **kwargs)
        metadata = result.generations[0].message.response_metadata
        metadata["lowest_window_probability"] = probability_window / 100
        return result


def test_writers_are_asked_for_the_window_of_the_scorer_and_it_is_recorded():
    small, large = Reporting(script=["one", "two"]), Reporting(script=["ONE", "TWO"])
    scorer = CachedScorer(TokenProbability("lowest_window", window=7))
    graph = create_trim_graph(small, large, scorer, policy=threshold(0.5))
    recorded = asyncio.run(run_question(graph, WorkItem(0, 0, Question("q"))))
    assert [one["text"] for one in recorded["steps"]] == ["ONE", "TWO"]
    for one in recorded["steps"]:
        assert one["lowest_window_probability"] == one["discarded"]["lowest_window_probability"] == 0.07


def test_a_writer_that_cannot_report_the_window_is_refused_before_any_call():
    able, scorer = ChatVLLM(model="m"), TokenProbability("lowest_window")
    create_trim_graph(able, able, scorer, policy=threshold(0.5))  # asked with each call: no logprobs=True
    with pytest.raises(SettingsError, match=r"probability_window .*; large, ScriptedChatModel, does not"):
        create_trim_graph(able, ScriptedChatModel(script=["one"]), scorer, policy=threshold(0.5))
    with pytest.raises(SettingsError, match=r"set logprobs=True .*; small has not"):
        create_trim_graph(ProviderModel(), able, scorer, policy=threshold(0.5))
