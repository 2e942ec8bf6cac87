"""What a routed agent does when a model or the scorer fails: as declared, and every token counted."""

import pytest
from agent_rig import LARGE, SMALL, build, multiply, talk, turns
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver

from trim_graph import ScorerError
from trim_graph.adapters import ModelServerError
from trim_graph.policies import large_only, random_rate
from trim_graph.testing import ScriptedToolModel

both_ways = pytest.mark.parametrize("asynchronously", [False, True])


class Failing(ScriptedToolModel):
    """Fails in its first calls."""

    failures: int = 99

    def _generate(self, *given, **options):
        if self.failures:
            self.failures -= 1
            self.calls.append(options)
            raise ModelServerError("the server is down", begun=True)
        return super()._generate(*given, **options)


def broken(question, steps):
    raise ScorerError("the scorer is down")


@pytest.mark.parametrize("part", ["small", "large"])
@both_ways
def test_a_failure_is_raised_where_nothing_else_is_declared(part, asynchronously):
    rig = build(**{part: Failing(script=SMALL)})
    with pytest.raises(ModelServerError, match="the server is down"):
        rig.ask(asynchronously=asynchronously)
    assert rig.ran == []


def test_a_failure_of_the_scorer_is_raised_where_nothing_else_is_declared():
    with pytest.raises(ScorerError, match="the scorer is down"):
        build(scorer=broken).ask()


@both_ways
@pytest.mark.parametrize(("way", "b"), [("accept", 21), ("regenerate", 12)])
def test_without_a_score_a_turn_is_accepted_or_written_again(way, b, asynchronously):
    rig = build(scorer=broken, on_scorer_error=way)
    result = rig.ask(asynchronously=asynchronously)
    assert rig.ran == [("multiply", 12, b)]
    assert result["trim"]["decisions"] == {way: 2}
    assert result["trim"]["notes"] == ["the scorer failed: ScorerError: the scorer is down"]


@both_ways
def test_where_the_large_model_fails_the_small_ones_turn_stays(asynchronously):
    rig = build(large=Failing(script=LARGE, name="huge"), on_large_error="accept", max_step_tokens=50)
    result = rig.ask(asynchronously=asynchronously)
    assert rig.ran == [("multiply", 12, 21)]
    assert turns(result)[0].tool_calls == SMALL[0].tool_calls
    assert result["trim"]["usage"]["unaccounted_tokens"] == 50
    assert "the large model failed: ModelServerError: the server is down" in result["trim"]["notes"]


def test_where_the_large_model_was_to_write_the_small_one_does():
    rig = build(large=Failing(script=LARGE), policy=large_only(), on_large_error="accept")
    assert rig.ask()["trim"]["steps"] == {"small": 2, "large": 0}


@pytest.mark.parametrize("per", ["question", "thread"])
def test_a_large_model_that_keeps_failing_is_given_up_but_asked_again_for_the_next_question(per):
    large = Failing(script=talk(5, 1, "l"), failures=3)
    thread = {"configurable": {"thread_id": "1"}}
    rig = build(
        talk(5, 1, "s"),
        large,
        policy=random_rate(1.0),
        on_large_error="accept",
        budget_per=per,
        agent={"checkpointer": InMemorySaver()},
    )
    result = rig.ask(config=thread)
    assert len(large.calls) == 3
    assert "the large model failed 3 times: it is not called any more" in result["trim"]["notes"]
    result = rig.ask(config=thread)
    assert result["trim"]["steps"] == {"small": 0, "large": 6}
    assert result["trim"]["usage"]["large"]["failed_calls"] == 0


@both_ways
def test_where_the_small_model_fails_the_large_one_writes(asynchronously):
    rig = build(small=Failing(script=SMALL, failures=1), on_small_error="large")
    result = rig.ask(asynchronously=asynchronously)
    assert rig.ran == [("multiply", 12, 12)]
    assert result["trim"]["steps"] == {"small": 1, "large": 1}
    assert result["trim"]["usage"]["small"]["failed_calls"] == 1


@both_ways
@pytest.mark.parametrize("part", ["small", "large", "scorer"])
def test_a_conversation_that_has_grown_too_long_is_an_error_that_others_may_act_on(part, asynchronously):
    """LangChain's middleware shortens it then, which an agent that has ended never reaches."""

    class Full(ScriptedToolModel):
        def _generate(self, messages, *given, **options):
            if len(messages) > 3:
                raise ContextOverflowError("too long")
            return super()._generate(messages, *given, **options)

    def judge(question, steps):
        if len(steps) > 1:
            raise ScorerError("no score") from ContextOverflowError("too long")
        return [0.1]

    parts = {
        "small": {"small": Full(script=talk(3, 1, "s")), "scorer": lambda q, steps: [1.0] * len(steps)},
        "large": {"large": Full(script=talk(3, 1, "l")), "policy": large_only()},
        "scorer": {"scorer": judge},
    }[part]
    with pytest.raises((ContextOverflowError, ScorerError)):
        build(**parts).ask(asynchronously=asynchronously)


def test_where_both_fail_the_agent_ends():
    rig = build(Failing(script=[]), Failing(script=[]), on_small_error="large", on_large_error="accept")
    result = rig.ask()
    assert result["trim"]["stopped"] == "failed"
    assert "no model could write the next turn" in turns(result)[-1].text


def test_a_turn_that_a_filter_has_emptied_is_a_failure():
    filtered = AIMessage("", response_metadata={"finish_reason": "content_filter"})
    rig = build([filtered, "done"], [multiply(12, 12, by="l")], on_small_error="large")
    result = rig.ask()
    assert rig.ran == [("multiply", 12, 12)]
    assert "content_filter" in result["trim"]["notes"][0]
    assert result["trim"]["tokens"]["small_discarded"] == 1
