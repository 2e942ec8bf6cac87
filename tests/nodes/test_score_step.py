from __future__ import annotations

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver

from tests.conftest import SMALL
from trim_graph.adapters.base import ScorerReply
from trim_graph.errors import FailedAttempts, ScorerError, SettingsError
from trim_graph.policies import large_only, random_rate, small_only, stay_on_large, threshold
from trim_graph.testing import ScriptedChatModel


def test_the_scorer_gets_the_question_and_every_step_with_its_writer(make):
    given = []

    def scorer(question, steps):
        given.append((question, steps))
        return [0.1 if step == "small two" else 1.0 for step in steps]

    make(scorer=scorer).ask("What is 2 + 2?")
    question, steps = given[2]
    assert question == "What is 2 + 2?"
    assert steps == ["small one", "LARGE two", "small three"]
    assert [step.writer for step in steps] == ["small", "large", "small"]
    assert [step.mean_token_probability for step in steps] == [None] * 3


def test_a_large_step_is_scored_late_with_the_next_draft(make):
    scores = {"small two": 0.1, "LARGE two": 0.7, "small three": 0.8}
    rig = make(scores=scores)
    accepted = rig.steps()
    assert [event["score"] for event in accepted] == [1.0, None, 0.8, 1.0]
    assert rig.ask()["trim"]["scores"] == [1.0, 0.7, 0.8, 1.0]


def test_a_step_that_was_never_scored_has_none(make):
    rig = make(policy=lambda o: "regenerate" if o.index == 3 else "accept")
    assert rig.ask()["trim"]["scores"] == [1.0, 0.1, 1.0, None]


def test_a_score_once_given_is_not_changed_by_a_later_pass(make):
    passes = []

    def scorer(question, steps):
        passes.append(len(steps))
        return [1 / len(passes)] * len(steps)

    rig = make(scorer=scorer, policy=lambda o: "accept")
    assert rig.ask()["trim"]["scores"] == [1, 1 / 2, 1 / 3, 1 / 4]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda steps: [0.5] * (len(steps) - 1), "returned 0 scores for 1 steps"),
        (lambda steps: [0.5] * (len(steps) + 1), "returned 2 scores for 1 steps"),
        (lambda steps: [float("nan")] * len(steps), "rated step 0 with nan"),
        (lambda steps: [1.2] * len(steps), r"rated step 0 with 1\.2"),
        (lambda steps: None, "did not return numbers"),
    ],
)
@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_an_answer_that_holds_no_valid_scores_stops_the_run_with_the_reason(
    make, answer, reason, asynchronously
):
    rig = make(scorer=lambda question, steps: answer(steps))
    with pytest.raises(ScorerError, match=reason):
        rig.solve(asynchronously=asynchronously)


@pytest.mark.parametrize(
    ("policy", "passes"),
    [
        (small_only(), 0),
        (large_only(), 0),
        (random_rate(0.5), 0),
        (threshold(0.5), 4),
        (stay_on_large(threshold(0.5), 2), 2),
        (threshold(0.5) | random_rate(0.1), 4),
    ],
    ids=repr,
)
def test_the_scorer_is_asked_only_where_a_decision_hangs_on_its_answer(make, policy, passes):
    rig = make(policy=policy, seed=3)
    rig.ask()
    assert len(rig.scorer.calls) == passes


def test_an_async_scorer_needs_an_async_call(make):
    async def scorer(question, steps):
        return [1.0] * len(steps)

    rig = make(scorer=scorer)
    assert rig.solve(asynchronously=True)["trim"]["scores"] == [1.0] * 4
    with pytest.raises(ScorerError, match="ainvoke"):
        rig.ask()


def judge(model):
    """A Runnable that asks a chat model, as an LLM judge does."""

    def rate(given):
        model.invoke([HumanMessage(given["question"])])
        return [1.0] * len(given["steps"])

    async def arate(given):
        await model.ainvoke([HumanMessage(given["question"])])
        return [1.0] * len(given["steps"])

    return RunnableLambda(rate, arate)


class Judge:
    """A scorer of its own that asks a chat model."""

    def __init__(self, model):
        self.model = model

    def score(self, question, steps):
        self.model.invoke([HumanMessage(question)])
        return [1.0] * len(steps)

    async def ascore(self, question, steps):
        await self.model.ainvoke([HumanMessage(question)])
        return [1.0] * len(steps)


@pytest.mark.parametrize("kind", [judge, Judge])
async def test_a_judges_words_are_tagged_and_never_reach_the_messages_stream(make, kind):
    rig = make(scorer=kind(ScriptedChatModel(script=["NINE"], name="judge")))
    given = {"messages": [("user", "2 + 2?")]}
    streamed = "".join(chunk.content for chunk, _ in rig.graph.stream(given, stream_mode="messages"))
    assert "NINE" not in streamed
    async for chunk, _ in rig.graph.astream(given, stream_mode="messages"):
        assert "NINE" not in chunk.content
    tags = [
        event["tags"]
        async for event in rig.graph.astream_events(given, version="v2")
        if event["event"] == "on_chat_model_start" and event["name"] == "judge"
    ]
    assert len(tags) == 4
    assert all({"nostream", "trim:score"} <= set(each) for each in tags)


def test_an_object_that_is_no_scorer_is_refused_when_the_graph_is_built(make):
    with pytest.raises(SettingsError, match="scorer is 5"):
        make(scorer=5)


def _fails(prefix):
    raise RuntimeError("the large model is down")


@pytest.mark.parametrize(
    ("given", "passes"),
    [
        ({"budget": {"large_calls": 1}}, 2),
        ({"budget": {"large_tokens": 10}}, 2),  # less than min_tokens is left after the first large step
        ({"budget": {"large_calls": 1, "on_exhausted": "stop"}}, 2),
        ({"budget": {"seconds": 1e-9}}, 0),
        ({"policy": lambda o: "handover" if o.index == 1 else "accept"}, 2),
        ({"small": ["small one", ""]}, 1),  # ends without a further step
        ({"scores": dict.fromkeys(SMALL, 0.1), "large": _fails, "on_large_error": "accept"}, 3),
        ({"max_steps": 2}, 2),  # the last step that is allowed may be written again
    ],
    ids=[
        "calls spent",
        "tokens spent",
        "stops",
        "no time",
        "handed over",
        "ended",
        "large is down",
        "last step",
    ],
)
def test_a_draft_whose_score_can_change_nothing_is_not_scored(make, given, passes):
    rig = make(**given)
    rig.ask()
    assert len(rig.scorer.calls) == passes


class Judging:
    """A scorer that writes: 40 tokens a call, those of an attempt that broke off included."""

    def score(self, question, steps):
        return ScorerReply([1.0] * len(steps), 100, 2, 40, 1)

    async def ascore(self, question, steps):
        return self.score(question, steps)


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_what_a_scorer_writes_is_on_the_bill(make, asynchronously):
    rig = make(scorer=Judging(), prices={"scorer": {"input": 1, "output": 10}})
    summary = rig.solve(asynchronously=asynchronously)["trim"]
    calls = summary["usage"]["scorer"]["calls"]
    assert calls == 4
    assert summary["usage"]["scorer"]["output_tokens"] == summary["tokens"]["scorer_output"] == 40 * calls
    assert summary["tokens"]["scorer"] == 100 * calls
    assert summary["cost"] == pytest.approx(calls * (100 * 1 + 40 * 10) / 1e6)
    assert summary["notes"] == [
        "attempts of the scorer broke off unreported, so its tokens and cost are not exact"
    ]


def judged(*, read: int = 100, written: int = 1):
    return lambda question, steps: ScorerReply([1.0] * len(steps), read, output_tokens=written)


LARGE_PRICED = {"large": {"input": 2, "output": 8}}


def test_the_cost_of_a_judge_without_a_price_is_unknown_beside_other_prices(make):
    summary = make(scorer=judged(), prices=LARGE_PRICED).solve(asynchronously=False)["trim"]
    assert summary["cost"] is summary["savings"]["cost"] is None
    assert summary["savings"]["spent"]["scorer"]["cost"] is None
    assert summary["notes"] == [
        "the scorer wrote 4 tokens, and prices.scorer is not given, so the cost is unknown: give its input "
        "and output, per million tokens, or 0 for both if it costs nothing"
    ]


@pytest.mark.parametrize(
    ("scorer", "prices"),
    [
        (judged(), {**LARGE_PRICED, "scorer": {"input": 0, "output": 0}}),
        (judged(written=0), LARGE_PRICED),
        (lambda question, steps: [1.0] * len(steps), LARGE_PRICED),
    ],
    ids=["free by its price", "reads only", "reports nothing"],
)
def test_a_scorer_that_is_free_or_writes_nothing_needs_no_price(make, scorer, prices):
    summary = make(scorer=scorer, prices=prices).solve(asynchronously=False)["trim"]
    assert summary["cost"] == 0  # the small model's drafts stay, and it is free
    assert summary["savings"]["cost"] > 0
    assert summary["notes"] == []


def test_the_cost_is_unknown_without_prices(make):
    summary = make(scorer=judged()).solve(asynchronously=False)["trim"]
    assert summary["cost"] is summary["savings"]["cost"] is None
    assert summary["notes"] == []


def test_a_scorer_that_fails_costs_what_it_reported(make):
    def fails(question, steps):
        error = ScorerError("no digit")
        error.attempts = FailedAttempts(count=2, input_tokens=7, output_tokens=9, unknown=1)
        raise error

    rig = make(scorer=fails, on_scorer_error="accept", prices={"scorer": {"input": 1, "output": 10}})
    summary = rig.ask()["trim"]
    assert summary["usage"]["scorer"] == {
        "calls": 4,
        "input_tokens": 28,
        "output_tokens": 36,
        "failed_attempts": 8,
        "failed_calls": 4,
        "seconds": summary["usage"]["scorer"]["seconds"],
    }
    assert summary["usage"]["scorer"]["seconds"] > 0
    assert summary["cost"] == pytest.approx((28 + 360) / 1e6)
    assert any("attempts of the scorer broke off" in note for note in summary["notes"])


def test_a_run_of_a_release_that_did_not_count_it_goes_on(make):
    rig = make(scorer=Judging(), checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    rig.ask(config=thread, interrupt_before=["score_step"])
    spend = rig.graph.get_state(thread).values["usage"]
    spend = {**spend, "scorer": {k: v for k, v in spend["scorer"].items() if k != "output_tokens"}}
    rig.graph.update_state(thread, {"usage": spend}, as_node="generate_step")
    assert rig.graph.invoke(None, thread)["trim"]["tokens"]["scorer_output"] == 40 * 4
