"""`CascadeScorer`: the second scorer is asked where the first is unsure, and the tokens of both count."""

import asyncio

import pytest

from trim_graph import ScorableStep
from trim_graph.adapters import (
    CascadeScorer,
    LLMJudge,
    MinimumScorer,
    ModelServerError,
    Scorer,
    ScorerError,
    ScorerReply,
    TokenProbability,
)
from trim_graph.errors import ContextLengthError, FailedAttempts, SettingsError, is_context_full
from trim_graph.graph import create_trim_graph
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel

from .provider_model import ProviderModel

WAYS = pytest.mark.parametrize("way", ["sync", "async"])


def ask(scorer, *texts, way="sync", question="q"):
    steps = [ScorableStep(text) for text in texts]
    return scorer.score(question, steps) if way == "sync" else asyncio.run(scorer.ascore(question, steps))


class Recorded:
    """Rates a step by its text, and records the steps of each question."""

    def __init__(self, cost, **scores):
        self.cost, self.scores, self.asked = cost, scores, []

    def score(self, question, steps):
        self.asked.append([str(step) for step in steps])
        scores = [self.scores[step] for step in steps]
        return ScorerReply(scores, input_tokens=self.cost, output_tokens=1, failed_attempts=1)

    async def ascore(self, question, steps):
        return self.score(question, steps)


class OneByOne(Recorded):
    """Rates those steps only that it is asked about."""

    rates_some = True

    def score(self, question, steps, *, only=None):
        wanted = range(len(steps)) if only is None else only
        return super().score(question, [steps[index] for index in wanted])

    async def ascore(self, question, steps, *, only=None):
        return self.score(question, steps, only=only)


@WAYS
def test_the_second_is_asked_up_to_the_last_step_that_the_first_is_unsure_of(way):
    first, second = Recorded(10, a=0.95, b=0.5, c=0.05), Recorded(100, a=0.1, b=0.3)
    cascade = CascadeScorer(first, second)
    assert isinstance(cascade, Scorer)
    reply = ask(cascade, "a", "b", "c", way=way)
    assert reply == ScorerReply([0.95, 0.3, 0.05], 110, 2, 2)
    assert second.asked == [["a", "b"]]


@WAYS
def test_one_that_rates_step_by_step_is_asked_about_the_unsure_ones_alone(way):
    first, second = OneByOne(10, a=0.95, b=0.5, c=0.05), OneByOne(100, b=0.3)
    cascade = CascadeScorer(first, second)
    assert ask(cascade, "a", "b", "c", way=way).scores == [0.95, 0.3, 0.05]
    assert (first.asked, second.asked) == ([["a", "b", "c"]], [["b"]])


@WAYS
def test_a_step_is_rated_once_and_the_limits_belong_to_the_second(way):
    first, second = OneByOne(10, a=0.2, b=0.8, c=0.9), OneByOne(100, a=0.6, b=0.7)
    cascade = CascadeScorer(first, second, unsure=(0.2, 0.8))
    assert ask(cascade, "a", "b", way=way).scores == [0.6, 0.7]
    assert ask(cascade, "a", "b", way=way) == ScorerReply([0.6, 0.7])
    assert ask(cascade, "a", "b", "c", way=way) == ScorerReply([0.6, 0.7, 0.9], 10, 1, 1)
    assert first.asked == [["a", "b"], ["c"]]


@WAYS
def test_the_tokens_of_the_first_are_in_the_error_of_the_second(way):
    class Failing(Recorded):
        def score(self, question, steps):
            error = ScorerError("it is down")
            error.attempts = FailedAttempts(count=4, input_tokens=7, output_tokens=2, unknown=1)
            raise error

    with pytest.raises(ScorerError, match="the second scorer of the cascade: it is down") as caught:
        ask(CascadeScorer(Recorded(10, a=0.5), Failing(0)), "a", way=way)
    assert caught.value.attempts == {"count": 5, "input_tokens": 17, "output_tokens": 3, "unknown": 1}


@WAYS
def test_the_cause_of_the_seconds_error_is_kept(way):
    def full(question, steps):
        raise ScorerError("too long") from ContextLengthError("full")

    def wrong(question, steps):
        raise SettingsError("no such model")

    first = Recorded(10, a=0.5)
    with pytest.raises(ScorerError) as caught:
        ask(CascadeScorer(first, full), "a", way=way)
    assert is_context_full(caught.value)
    with pytest.raises(SettingsError, match=r"^no such model"):
        ask(CascadeScorer(first, wrong), "a", way=way)


@pytest.mark.parametrize("scores", [[], [0.5, 0.5], [float("nan")], [1.5]])
def test_a_wrong_answer_of_the_second_is_refused(scores):
    with pytest.raises(ScorerError, match="the second scorer of the cascade"):
        ask(CascadeScorer(Recorded(1, a=0.5), lambda question, steps: scores), "a")


@pytest.mark.parametrize("unsure", [(0.8, 0.2), (0.5,), (-0.1, 0.5), ("0", 1), (0.1, 0.2, 0.3)])
def test_limits_that_are_none_are_refused(unsure):
    with pytest.raises(ValueError, match="no pair of probabilities"):
        CascadeScorer(Recorded(1), Recorded(1), unsure=unsure)


def test_the_small_model_judges_itself_and_a_large_judge_the_doubtful_steps():
    small, large = ProviderModel("no", "yes", "yes"), ProviderModel("2")
    judges = CascadeScorer(LLMJudge(small, scale="yes_no"), LLMJudge(large), unsure=(0.5, 1.0))
    reply = ask(judges, "a", "b")
    assert reply.scores == [0.0, 2 / 9]
    assert len(large.calls) == 1
    assert "Answer with one word only: yes or no." in small.calls[0]["messages"][-1].text
    assert reply.input_tokens == 3 * 20
    assert ask(judges, "a", "b").input_tokens == 0


def test_what_one_of_them_reads_of_the_writers_is_asked_and_checked():
    window = TokenProbability("lowest_window", window=3)
    assert CascadeScorer(window, Recorded(1)).probability_window == 3
    with pytest.raises(ValueError, match="windows of 3 and 4 tokens"):
        CascadeScorer(window, TokenProbability("lowest_window", window=4))
    writer, policy = ScriptedChatModel(script=["one"]), threshold(0.5)
    with pytest.raises(SettingsError, match="probability_window"):
        create_trim_graph(writer, writer, CascadeScorer(window, Recorded(1)), policy=policy)
    with pytest.raises(SettingsError, match="set logprobs=True"):
        create_trim_graph(
            ProviderModel(), writer, CascadeScorer(TokenProbability(), Recorded(1)), policy=policy
        )


def test_a_runs_usage_holds_both_and_a_failure_has_its_way_out():
    writer = ScriptedChatModel(script=["a", "b"])
    scorers = CascadeScorer(Recorded(10, a=0.9, b=0.5), Recorded(100, a=0.9, b=0.7))
    graph = create_trim_graph(writer, writer, scorers, policy=threshold(0.6))
    usage = graph.invoke({"messages": [("user", "q")]})["trim"]["usage"]["scorer"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (10 + 10 + 100, 3)

    def down(question, steps):
        raise ModelServerError("no server")

    failing = CascadeScorer(Recorded(10, a=0.9, b=0.5), down)
    graph = create_trim_graph(writer, writer, failing, policy=threshold(0.6), on_scorer_error="accept")
    usage = graph.invoke({"messages": [("user", "q")]})["trim"]["usage"]["scorer"]
    assert (usage["input_tokens"], usage["failed_calls"]) == (10 + 10, 1)


def test_equal_texts_of_other_writers_and_turns_are_rated_apart():
    cascade = CascadeScorer(TokenProbability(), lambda question, steps: [0.5] * len(steps))
    steps = [
        ScorableStep("x = 4", writer, mean_token_probability=seen)
        for writer, seen in (("small", 0.05), ("large", 0.99), ("human", None))
    ]
    assert [cascade.score("q", [step]).scores[0] for step in steps] == [0.05, 0.99, 1.0]


def test_a_scorer_of_ones_own_may_read_what_writers_report():
    class Own:
        def score(self, question, steps):
            return [step.mean_token_probability for step in steps]

        async def ascore(self, question, steps):
            return self.score(question, steps)

    cascade = CascadeScorer(Own(), lambda question, steps: [0.5] * len(steps))
    seen = [ScorableStep("x = 4", mean_token_probability=probability) for probability in (0.9, 0.1)]
    assert [cascade.score("q", [step]).scores[0] for step in seen] == [0.9, 0.1]


def test_scorers_that_read_texts_alone_rate_equal_texts_once():
    asked = []

    class Reads(TokenProbability):
        reads_reports = False

        def score(self, question, steps):
            asked.append(len(steps))
            return ScorerReply([0.9] * len(steps))

    cascade = CascadeScorer(MinimumScorer(Reads(), Reads()), Reads())
    for probability in (0.9, 0.1):
        cascade.score("q", [ScorableStep("x = 4", mean_token_probability=probability)])
    assert asked == [1, 1]
