"""A model that answers and writes no step: why is said, and the declared way out is taken."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda

from trim_graph.adapters import ContinueByPrompt, ModelServerError
from trim_graph.budget import Budget
from trim_graph.calls import model_call
from trim_graph.policies import large_only, small_only
from trim_graph.routing.router import MAX_ATTEMPTS, MAX_IDLE
from trim_graph.testing import ScriptedChatModel


class Thinker(ScriptedChatModel):
    """Spends all its tokens on thoughts that it does not show, at the calls that are named."""

    thinks_at: tuple[int, ...] = tuple(range(99))

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        thinks = len(self.calls) in self.thinks_at
        result = super()._generate(messages, stop, run_manager, **kwargs)
        if thinks:
            message, most = result.generations[0].message, kwargs["max_tokens"]
            message.content = ""
            message.response_metadata |= {"finish_reason": "length", "stop_reason": None}
            message.usage_metadata |= {"output_tokens": most, "output_token_details": {"reasoning": most}}
        return result


STEPS = ["one", "two", "so it is \\boxed{4}"]
ONLY_THOUGHT = "the {} model wrote no step: all 512 tokens of its answer were used up and 512 of them went"
GO_ON = {"on_small_error": "large", "on_large_error": "accept"}


def notes(result):
    return [note for note in result["trim"]["notes"] if "wrote no step" in note]


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_thoughts_that_use_up_all_tokens_are_named_and_not_paid_for_again(make, asynchronously):
    small = Thinker(script=STEPS, thinks_at=(1, 2, 3, 4))
    result = make(small, scores={}).solve(asynchronously=asynchronously)
    assert result["trim"]["stopped"] == "no_step"
    assert result["messages"][-1].text == "one"
    assert notes(result) == [
        ONLY_THOUGHT.format("small")
        + " into thoughts that are not shown; raise max_step_tokens, or have it think less"
    ]
    assert len(small.calls) == 2
    spent = result["trim"]["usage"]["small"]
    assert (spent["output_tokens"], spent["failed_calls"]) == (small.calls[0]["tokens"] + 512, 1)


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_the_large_model_writes_what_the_small_one_does_not(make, asynchronously):
    rig = make(Thinker(script=STEPS, thinks_at=(1,)), STEPS, scores={}, **GO_ON)
    result = rig.solve(asynchronously=asynchronously)
    assert result["trim"]["stopped"] == "finished"
    assert result["messages"][-1].text == "\n\n".join(STEPS)
    assert result["trim"]["steps"] == {"small": 2, "large": 1}
    assert len(notes(result)) == 1


def test_the_draft_stays_where_the_large_model_writes_no_step(make):
    rig = make(STEPS, Thinker(script=STEPS), {"two": 0.1}, **GO_ON)
    result = rig.ask()
    assert result["messages"][-1].text == "\n\n".join(STEPS)
    assert notes(result)[0].startswith(ONLY_THOUGHT.format("large"))
    assert len(rig.large.calls) == 1
    assert make(STEPS, Thinker(script=STEPS), {"two": 0.1}).ask()["trim"]["stopped"] == "no_step"


def test_models_that_write_no_step_are_not_asked_for_ever_and_the_limit_holds(make):
    rig = make(
        Thinker(script=STEPS),
        Thinker(script=STEPS),
        scores={},
        budget=Budget(large_tokens=1200),
        **GO_ON,
    )
    result = rig.ask()
    assert result["trim"]["stopped"] == "failed"
    assert result["trim"]["usage"]["large"]["output_tokens"] == 512 + 512 + 176
    assert {note.split(" wrote")[0] for note in notes(result)} == {"the small model", "the large model"}


def test_blank_lines_before_a_step_are_gone_through(make):
    text = "one" + "\n" * 12 + "\\boxed{3}"
    result = make(lambda prefix: text[len(prefix) :], policy=small_only()).ask()
    assert result["messages"][-1].text == "one\n\n\\boxed{3}"
    assert (result["trim"]["stopped"], notes(result)) == ("finished", [])


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("\n\n", "it wrote nothing but blank lines"),
        ("---\n\n", "it wrote nothing but punctuation or tags: '---"),
        ("</b>\n\n", "it wrote nothing but punctuation or tags: '</b>"),
        ("", "its answer was empty"),
    ],
)
def test_an_answer_without_a_step_is_noted_with_what_it_held(make, said, why):
    rig = make(lambda prefix: said * 99, policy=small_only())
    result = rig.ask()
    assert result["trim"]["stopped"] == "no_step"
    assert notes(result)[0].startswith(f"the small model wrote no step: {why}")
    assert len(rig.small.calls) == (MAX_ATTEMPTS if said else 1)


def test_a_solution_of_no_step_is_not_finished_and_the_large_model_may_write_it(make):
    result = make([""], STEPS, scores={}, policy=small_only(), on_small_error="large").ask()
    assert result["trim"]["steps"]["large"] == 1


def test_an_answer_that_adds_nothing_is_asked_for_a_few_times_only(make):
    silent = RunnableLambda(
        lambda messages, **_: AIMessage(
            "",
            usage_metadata={"input_tokens": 1, "output_tokens": 4, "total_tokens": 5},
            response_metadata={"finish_reason": "length", "stop_reason": None},
        )
    )
    result = make(silent, policy=small_only()).ask()
    assert result["trim"]["usage"]["small"]["calls"] == MAX_IDLE
    assert "4 tokens of its answer were used up before it showed any text" in notes(result)[0]


def test_a_model_asked_by_prompt_is_not_asked_again_and_again_for_what_it_repeats(make):
    class Repeats(ScriptedChatModel):
        continues_exactly = False

    small = Repeats(script=lambda prefix: "one")
    result = make(ContinueByPrompt(small), policy=small_only()).ask()
    assert len(small.calls) == 1 + MAX_IDLE
    assert notes(result) == ["the small model wrote no step: its answer had nothing new in it"]


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("writer", ["small", "large"])
def test_an_answer_that_is_a_failure_takes_the_declared_way_out(make, monkeypatch, writer, asynchronously):
    def read(message, stops, name, *others):
        if name == writer:
            raise ModelServerError("the model ended with 'content_filter'", begun=True)
        return real(message, stops, name, *others)

    real = model_call.read_reply
    monkeypatch.setattr(model_call, "read_reply", read)
    options = {"small": {"policy": small_only()}, "large": {"policy": large_only()}}[writer]
    rig = make(STEPS, STEPS, **options, **GO_ON)
    result = rig.solve(asynchronously=asynchronously)
    other = "large" if writer == "small" else "small"
    assert result["trim"]["steps"][writer] == 0
    assert result["trim"]["steps"][other] > 0
    assert any("content_filter" in note for note in result["trim"]["notes"])
    failing = getattr(rig, writer)
    spent = result["trim"]["usage"]
    assert spent[writer]["output_tokens"] == sum(call["tokens"] for call in failing.calls)
    assert spent["unaccounted_tokens"] == 0
    with pytest.raises(ModelServerError, match="content_filter"):
        make(STEPS, STEPS, **options).solve(asynchronously=asynchronously)
