"""`TokenProbability`: the writer's own probabilities as scores, or word of what to set."""

import pytest

from trim_graph.adapters import ChatTransformers, ChatVLLM, Scorer, ScorerError, TokenProbability
from trim_graph.errors import SettingsError
from trim_graph.graph import create_trim_graph
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel

from .provider_model import ProviderModel


def step(probability, writer="small"):
    return {"text": "one", "writer": writer, "mean_token_probability": probability}


async def test_scores_are_the_probabilities():
    scorer = TokenProbability()
    assert isinstance(scorer, Scorer)
    assert scorer.score("q", [step(0.5), step(0.25)]).scores == [0.5, 0.25]
    assert (await scorer.ascore("q", [step(0.5)])).scores == [0.5]
    assert scorer.score("q", [step(0.5)]).input_tokens == 0


@pytest.mark.parametrize("missing", [step(None, "large"), {"text": "one", "writer": "large"}])
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
