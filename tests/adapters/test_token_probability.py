"""`TokenProbability`: the writer's own probabilities as scores, or word of what to set."""

import asyncio
from typing import ClassVar

import pytest

from trim_graph import ScorableStep
from trim_graph.adapters import ChatTransformers, ChatVLLM, Scorer, ScorerError, TokenProbability
from trim_graph.errors import SettingsError
from trim_graph.evaluation import Question
from trim_graph.evaluation.calibration import CachedScorer
from trim_graph.evaluation.records import WorkItem
from trim_graph.evaluation.runner import run_question
from trim_graph.graph import create_trim_graph
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel

from .provider_model import ProviderModel


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
