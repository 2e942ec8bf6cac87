"""What a run does when a model or the scorer fails, as ``on_small_error`` and its like declare."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.exceptions import ContextOverflowError
from langgraph.checkpoint.memory import InMemorySaver

from trim_graph import Budget, TrimContext, create_trim_graph
from trim_graph.adapters.prm.formats import check_length
from trim_graph.errors import (
    ChatModelContractError,
    ContextLengthError,
    FailedAttempts,
    ModelServerError,
    ScorerError,
)
from trim_graph.policies import large_only, small_only, threshold
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

STEPS = ["one.", "two.", "three.", "The answer is 4."]
SMALL_STEPS = [f"small {step}" for step in STEPS]
QUESTION = {"messages": [("user", "How many?")]}
GO_ON = {"on_small_error": "large", "on_large_error": "accept", "on_scorer_error": "accept"}


class Failing(ScriptedChatModel):
    """Fails at the calls that are named; counted from 0."""

    fails_at: Any = ()
    begun: bool = False
    reported: Any = None
    error: Any = None
    asked: int = 0

    def _generate(self, *arguments: Any, **named: Any) -> Any:
        number, self.asked = self.asked, self.asked + 1
        if self.fails_at == "always" or number in self.fails_at:
            error = self.error or ModelServerError("the server is gone", begun=self.begun)
            if isinstance(error, ModelServerError):
                error.attempts = self.reported
            raise error
        return super()._generate(*arguments, **named)


class FailingScorer(ScriptedScorer):
    """Fails at the calls that are named; counted from 0."""

    def __init__(self, fails_at: Any, default: float = 1.0) -> None:
        super().__init__(default=default)
        self.fails_at, self.asked = fails_at, 0

    def score(self, question: str, steps: Any) -> Any:
        number, self.asked = self.asked, self.asked + 1
        if self.fails_at == "always" or number in self.fails_at:
            raise ScorerError("no scores")
        return super().score(question, steps)


def graph_of(
    small: Any = (),
    large: Any = (),
    scorer: Any = (),
    *,
    score: float = 1.0,
    policy: Any = None,
    **given: Any,
) -> Any:
    return create_trim_graph(
        small if isinstance(small, ScriptedChatModel) else Failing(script=SMALL_STEPS, fails_at=small),
        large if isinstance(large, ScriptedChatModel) else Failing(script=STEPS, fails_at=large),
        FailingScorer(scorer, default=score),
        policy=policy or threshold(0.5),
        checkpointer=InMemorySaver(),
        **given,
    )


def run(graph: Any, how: str = "sync", **named: Any) -> Any:
    """Runs, and returns the state that it leaves."""
    thread = {"configurable": {"thread_id": "1"}}
    if how == "async":
        asyncio.run(graph.ainvoke(QUESTION, thread, **named))
    else:
        graph.invoke(QUESTION, thread, **named)
    return graph.get_state(thread).values


def writers(result: Any) -> list[str]:
    return [step["writer"] for step in result["steps"]]


def fallbacks(result: Any) -> list[tuple[int, str, str]]:
    found = [(d["step"], d["decision"], d["fallback"]) for d in result["decisions"] if d.get("fallback")]
    return found


# By default nothing is papered over


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        ({"small": [1]}, ModelServerError),
        ({"large": [0], "score": 0.0}, ModelServerError),
        ({"scorer": [1]}, ScorerError),
    ],
)
@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_failure_raises_by_default(failing, error, how):
    with pytest.raises(error):
        run(graph_of(**failing), how)


@pytest.mark.parametrize(
    ("failing", "kind", "origin"),
    [
        ({"small": [1]}, ModelServerError, "the small model, Failing, failed in step 2"),
        ({"large": [0], "score": 0.0}, ModelServerError, "the large model, Failing, failed in step 1"),
        ({"scorer": [1]}, ScorerError, "the scorer, "),
    ],
)
@pytest.mark.parametrize("how", ["sync", "async"])
def test_an_error_that_is_raised_says_once_whose_it_is(failing, kind, origin, how):
    with pytest.raises(kind) as raised:
        run(graph_of(**failing), how)
    ours = [note for note in raised.value.__notes__ if note.startswith("trim-graph: ")]
    assert len(ours) == 1
    assert ours[0].startswith(f"trim-graph: {origin}")


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_run_that_raised_goes_on_from_its_checkpoint(how):
    graph = graph_of(small=[2])
    with pytest.raises(ModelServerError):
        run(graph, how)
    thread = {"configurable": {"thread_id": "1"}}
    graph.invoke(None, thread)
    assert [step["text"] for step in graph.get_state(thread).values["steps"]] == SMALL_STEPS


# The declared outcomes


@pytest.mark.parametrize("how", ["sync", "async"])
def test_the_large_model_steps_in_for_the_small_one(how):
    result = run(graph_of(small=[1], on_small_error="large"), how)
    assert writers(result) == ["small", "large", "small", "small"]
    assert result["usage"]["small"]["failed_calls"] == 1
    assert result["usage"]["large"]["calls"] == 1
    assert any("the small model failed: ModelServerError: the server is gone" in n for n in result["notes"])


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_run_that_neither_model_can_continue_ends_with_its_steps(how):
    result = run(graph_of(small=[2], on_small_error="large", budget=Budget(large_calls=1), score=1.0), how)
    assert result["stopped"] == "finished"
    gone = graph_of(small=[1, 2, 3], on_small_error="large", budget=Budget(large_calls=1))
    result = run(gone, how)
    assert result["stopped"] == "failed"
    assert writers(result) == ["small", "large"]


@pytest.mark.parametrize("how", ["sync", "async"])
def test_the_draft_stays_where_the_large_model_fails(how):
    result = run(graph_of(large=[0], score=0.0, on_large_error="accept"), how)
    assert writers(result) == ["small", "large", "large", "large"]
    assert fallbacks(result) == [(0, "accept", "the large model failed")]
    # It is the very draft, with its score, and nothing was written or scored anew.
    assert result["steps"][0]["text"] == SMALL_STEPS[0]
    assert result["scores"]["0"] == 0.0
    assert result["usage"]["small"]["calls"] == 4


def test_a_large_step_asked_for_at_once_falls_to_the_small_model():
    result = run(graph_of(large=[0], policy=large_only(), on_large_error="accept"))
    assert writers(result) == ["small", "large", "large", "large"]
    assert result["stopped"] == "finished"


def test_a_dead_large_model_is_not_asked_for_ever():
    large = Failing(script=STEPS * 3, fails_at="always")
    small = Failing(script=[f"step {n}." for n in range(10)])
    result = run(graph_of(small, large, score=0.0, on_large_error="accept"))
    assert large.asked == 3
    assert len(result["steps"]) == 10
    assert "the large model failed 3 times: it is not called any more" in result["notes"]
    # This is no spent budget: on_exhausted has no say.
    large = Failing(script=STEPS * 3, fails_at="always")
    small = Failing(script=[f"step {n}." for n in range(10)])
    stops = Budget(large_tokens=10_000, on_exhausted="stop")
    assert (
        run(graph_of(small, large, score=0.0, on_large_error="accept", budget=stops))["stopped"] == "finished"
    )


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize(("outcome", "writer"), [("accept", "small"), ("regenerate", "large")])
def test_a_draft_that_cannot_be_scored_becomes_what_the_setting_says(outcome, writer, how):
    result = run(graph_of(scorer=[1], on_scorer_error=outcome), how)
    assert writers(result) == ["small", writer, "small", "small"]
    assert fallbacks(result) == [(1, outcome, "the scorer failed")]
    assert result["usage"]["scorer"]["failed_calls"] == 1


def test_an_unscored_draft_stays_where_the_budget_refuses():
    result = run(graph_of(scorer="always", on_scorer_error="regenerate", budget=Budget(large_calls=1)))
    assert writers(result) == ["large", "small", "small", "small"]
    assert any("the limit on large_calls is spent" in note for note in result["notes"])


def test_the_outcome_is_a_setting_of_a_call():
    assert run(graph_of(small=[1]), context=TrimContext(on_small_error="large"))["stopped"] == "finished"
    with pytest.raises(ModelServerError):
        run(graph_of(small=[1], on_small_error="large"), context=TrimContext(on_small_error="raise"))


def test_a_mistake_in_the_set_up_has_no_fallback():
    wrong = Failing(script=STEPS, fails_at=[0], error=ChatModelContractError("no usage"))
    with pytest.raises(ChatModelContractError):
        run(graph_of(wrong, **GO_ON))


class Refused(Exception):
    """What a client raises for a setting that its server does not take."""

    status_code = 400


def test_a_setting_that_a_server_refuses_is_named_with_its_remedy():
    error = Refused("Unsupported value: 'temperature' does not support 0 with this model.")
    reported = "the model refuses the setting temperature: build the model without temperature"
    with pytest.raises(Refused) as raised:
        run(graph_of(Failing(script=STEPS, fails_at=[0], error=error)))
    assert f"trim-graph: {reported}" in raised.value.__notes__
    result = run(graph_of(Failing(script=STEPS, fails_at=[0], error=error), **GO_ON))
    assert any(note.endswith(reported) for note in result["notes"])


def test_a_failure_is_an_event_of_the_stream():
    events = list(
        graph_of(scorer=[1], **GO_ON).stream(
            QUESTION, {"configurable": {"thread_id": "1"}}, stream_mode="custom"
        )
    )
    assert [e["part"] for e in events if e["event"] == "failed"] == ["scorer"]
    assert any(e.get("fallback") == "the scorer failed" for e in events if e["event"] == "decision")


# A full context is an end, not a failure


FULL = ContextLengthError("the prompt has 4096 tokens; m takes 4095 at most", 400)


def full_from(call: int, script: Any = SMALL_STEPS, error: Exception = FULL) -> Failing:
    """A model without room from this call on; by default it has written nothing for the ones refused."""
    return Failing(script=script, fails_at=range(call, 100), error=error)


class FullScorer(ScriptedScorer):
    """Has no room for so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(default=1.0)
        self.steps = steps

    def score(self, question: str, steps: Any) -> Any:
        check_length(range(100 if len(steps) >= self.steps else 1), steps, 99)
        return super().score(question, steps)


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("error", [FULL, ContextOverflowError("a hosted model says so")])
def test_a_full_context_ends_the_run_with_its_steps(how, error):
    result = run(graph_of(full_from(2, error=error)), how)
    assert [step["text"] for step in result["steps"]] == SMALL_STEPS[:2]
    assert result["messages"][-1].text == "\n\n".join(SMALL_STEPS[:2])
    assert result["messages"][-1].response_metadata["finish_reason"] == "length"
    assert result["trim"]["stopped"] == "length"
    assert "the context of the small model is full: the solution ends here" in result["trim"]["notes"]
    assert result["usage"]["small"]["calls"] == 2
    assert result["usage"]["unaccounted_tokens"] == 0


@pytest.mark.parametrize("declared", [{}, GO_ON])
@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_question_too_long_for_a_first_step_is_an_error(how, declared):
    full = [full_from(0), full_from(0)]
    with pytest.raises(ValueError, match="the prompt has 4096 tokens"):
        run(graph_of(*full, **declared), how)


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("error", [FULL, ContextOverflowError("a hosted model says so")])
def test_a_full_context_of_the_large_model_alone_leaves_the_run_to_the_small_one(how, error):
    result = run(graph_of(large=full_from(1, script=STEPS, error=error), score=0.0), how)
    assert writers(result) == ["large", "small", "small", "small"]
    assert result["stopped"] == "finished"
    assert "the context of the large model is full" in result["notes"]
    assert result["usage"]["large"]["output_tokens"] == result["steps"][0]["tokens"]
    assert result["usage"]["unaccounted_tokens"] == 0
    handed = run(graph_of(large=full_from(0), policy=lambda seen: "handover"), how)
    assert writers(handed) == ["small"] * 4


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_full_context_of_the_small_model_alone_takes_the_declared_way(how):
    small, large = full_from(2), Failing(script=STEPS)
    result = run(graph_of(small, large, on_small_error="large"), how)
    assert writers(result) == ["small", "small", "large", "large"]
    both = run(graph_of(full_from(2), full_from(1, script=STEPS), on_small_error="large"), how)
    assert (both["stopped"], writers(both)) == ("length", ["small", "small", "large"])


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_scorer_without_room_ends_the_run_with_the_draft_unrated(how):
    graph = create_trim_graph(
        Failing(script=SMALL_STEPS),
        Failing(script=STEPS),
        FullScorer(3),
        policy=threshold(0.5),
        checkpointer=InMemorySaver(),
    )
    result = run(graph, how)
    assert [step["text"] for step in result["steps"]] == SMALL_STEPS[:3]
    assert (result["stopped"], result["scores"]) == ("length", {"0": 1.0, "1": 1.0})
    assert "the context of the scorer is full: the solution ends here" in result["notes"]


def test_a_scorer_without_room_for_a_first_step_is_an_error():
    with pytest.raises(ScorerError, match="100 tokens; the PRM takes 99"):
        run(create_trim_graph(*[Failing(script=STEPS)] * 2, FullScorer(1), policy=threshold(0.5)))


def test_a_scorer_without_room_goes_the_declared_way():
    graph = create_trim_graph(
        *[Failing(script=SMALL_STEPS), Failing(script=STEPS), FullScorer(3)],
        policy=threshold(0.5),
        on_scorer_error="accept",
        checkpointer=InMemorySaver(),
    )
    result = run(graph)
    assert (result["stopped"], len(result["steps"])) == ("finished", 4)


@given(
    small=st.integers(1, 6),
    large=st.integers(0, 6),
    score=st.sampled_from([0.0, 1.0]),
    declared=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_contexts_that_fill_at_any_time_leave_a_solution(small, large, score, declared):
    models = full_from(small), full_from(large, script=STEPS)
    result = run(graph_of(*models, score=score, **(GO_ON if declared else {})))
    assert result["stopped"] in ("finished", "length")
    assert result["steps"]
    assert result["usage"]["unaccounted_tokens"] == 0


# What failed attempts cost


def test_tokens_of_a_failed_call_that_nobody_reported_are_charged_in_full():
    large = Failing(script=STEPS, fails_at=[0], begun=True)
    result = run(graph_of(large=large, score=0.0, max_step_tokens=50, on_large_error="accept"))
    assert result["usage"]["unaccounted_tokens"] == 50
    refused = Failing(script=STEPS, fails_at=[0], begun=False)
    result = run(graph_of(large=refused, score=0.0, max_step_tokens=50, on_large_error="accept"))
    assert result["usage"]["unaccounted_tokens"] == 0


def test_tokens_of_a_failed_call_that_were_reported_are_counted():
    reported = FailedAttempts(count=4, input_tokens=40, output_tokens=8, unknown=1)
    large = Failing(script=STEPS, fails_at=[0], reported=reported)
    result = run(graph_of(large=large, score=0.0, max_step_tokens=50, on_large_error="accept"))
    spent = result["usage"]["large"]
    billed = [(call["prompt_tokens"], call["tokens"]) for call in large.calls]
    assert spent["input_tokens"] == 40 + sum(prompt for prompt, _ in billed)
    assert spent["output_tokens"] == 8 + sum(tokens for _, tokens in billed)
    assert (spent["failed_attempts"], spent["failed_calls"]) == (4, 1)
    assert result["usage"]["unaccounted_tokens"] == 50


@given(
    small=st.sets(st.integers(0, 6)),
    large=st.sets(st.integers(0, 6)),
    scorer=st.sets(st.integers(0, 6)),
    begun=st.booleans(),
    limit=st.integers(8, 60),
    on_scorer_error=st.sampled_from(["accept", "regenerate"]),
)
@settings(max_examples=150, deadline=None)
def test_limits_hold_whatever_fails(small, large, scorer, begun, limit, on_scorer_error):
    writer = Failing(script=STEPS, fails_at=large, begun=begun)
    result = run(
        graph_of(
            Failing(script=SMALL_STEPS, fails_at=small),
            writer,
            scorer,
            score=0.0,
            max_step_tokens=10,
            budget=Budget(large_tokens=limit, large_calls=4),
            **{**GO_ON, "on_scorer_error": on_scorer_error},
        )
    )
    spend = result["usage"]
    assert spend["large"]["output_tokens"] + spend["unaccounted_tokens"] <= limit
    assert spend["large"]["calls"] <= 4
    assert spend["large"]["output_tokens"] == sum(call["tokens"] for call in writer.calls)
    assert result["stopped"] in ("finished", "failed")
    failed = sum(spend[part]["failed_calls"] for part in ("small", "large", "scorer"))
    assert failed == sum(
        len([n for n in fails if n < part])
        for fails, part in (
            (small, spend["small"]["calls"]),
            (large, spend["large"]["calls"]),
            (scorer, spend["scorer"]["calls"]),
        )
    )


# A limit of time


class Hanging(ScriptedChatModel):
    """Does not answer for longer than anybody waits."""

    def _generate(self, *arguments: Any, **named: Any) -> Any:
        time.sleep(5)
        return super()._generate(*arguments, **named)


def test_a_hanging_call_ends_at_the_deadline():
    begun = time.monotonic()
    graph = graph_of(Hanging(script=STEPS), policy=small_only(), budget={"seconds": 0.3})
    assert run(graph)["stopped"] == "deadline"
    assert time.monotonic() - begun < 3


class HangingScorer(ScriptedScorer):
    """Does not answer for longer than anybody waits."""

    def score(self, question: str, steps: Any) -> Any:
        time.sleep(5)
        return super().score(question, steps)


def test_a_hanging_scorer_ends_at_the_deadline():
    begun = time.monotonic()
    graph = create_trim_graph(
        ScriptedChatModel(script=STEPS),
        ScriptedChatModel(script=STEPS),
        HangingScorer(),
        policy=threshold(0.5),
        budget={"seconds": 0.3},
    )
    result = graph.invoke(QUESTION)["trim"]
    assert result["stopped"] == "deadline"
    assert result["steps"] == {"small": 1, "large": 0}
    assert time.monotonic() - begun < 3
