"""The answers of a writer: steps, pieces that are none, cuts, timeouts, crashes, answers without a step."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command

from trim_graph.adapters import ContinueByPrompt, ModelServerError
from trim_graph.budget import Budget
from trim_graph.calls import model_call
from trim_graph.errors import ChatModelContractError
from trim_graph.policies import large_only, small_only
from trim_graph.routing.drafts import MAX_ATTEMPTS, MAX_IDLE
from trim_graph.testing import ScriptedChatModel

THREAD = {"configurable": {"thread_id": "1"}}


def texts(rig, **options):
    return [event["text"] for event in rig.steps(**options)]


# Steps and what are none


def test_a_step_ends_at_the_delimiter_and_the_solution_at_the_end_of_sequence(rig):
    result = rig.ask()
    # The first step may open a thought, which ends a step too.
    assert [call["stop"] for call in rig.small.calls] == [["\n\n", "</think>"], *[["\n\n"]] * 3]
    assert result["messages"][-1].content == "small one\n\nLARGE two\n\nsmall three\n\nso it is \\boxed{4}"


def test_a_text_that_mentions_a_box_early_has_not_finished(make):
    rig = make(["I will put it into \\boxed{}", "or \\boxed{3}?", "no, \\boxed{4}"], scores={})
    result = rig.ask()["trim"]
    assert (result["steps"]["small"], result["answer"], result["stopped"]) == (3, "4", "finished")


def test_another_delimiter_may_separate_steps(make):
    model = ScriptedChatModel(script=["one", "two", "three"], delimiter="##")
    rig = make(model, model, scores={}, delimiter="##")
    assert rig.ask()["messages"][-1].content == "one##two##three"


def test_punctuation_alone_is_no_step_and_joins_the_one_that_follows(make):
    rig = make(["one", "---", "", "two"], policy=small_only())
    assert texts(rig) == ["one", "---\n\n\n\ntwo"]
    assert rig.prompts("small")[2][-1].content == "one\n\n---\n\n"


def test_blank_pieces_of_a_text_are_no_steps(make):
    def script(prefix):
        return "one\n\n\n\ntwo" if not prefix.strip() else "\n\ntwo" if prefix == "one\n\n" else "two"

    assert texts(make(script, policy=small_only())) == ["one", "two"]


@pytest.mark.parametrize("said", ["", "\n\n", "---\n\n", ". . .\n\n", "***"])
def test_a_model_that_never_writes_a_step_is_asked_a_bounded_number_of_times(make, said):
    rig = make(lambda prefix: said * 10, policy=small_only())
    result = rig.ask()
    assert len(rig.small.calls) <= MAX_ATTEMPTS
    assert result["trim"]["stopped"] in ("no_step", "finished")
    assert result["messages"][-1].content == ""


def test_silence_at_the_end_of_a_solution_finishes_it(make):
    rig = make(lambda prefix: "" if prefix else "all done\n\n", policy=small_only())
    result = rig.ask()
    assert result["trim"]["stopped"] == "finished"
    assert result["messages"][-1].content == "all done"


def test_a_step_cut_by_its_token_limit_is_carried_on_without_a_delimiter(make):
    rig = make(["a b c d e", "f g"], policy=small_only(), max_step_tokens=2)
    assert rig.ask()["messages"][-1].content == "a b c d e\n\nf g"


def test_text_cut_right_before_a_delimiter_is_not_glued_to_the_next_step(make):
    rig = make(["a b", "c d"], policy=small_only(), max_step_tokens=2)
    assert texts(rig) == ["a b", "\n\nc d"]
    assert rig.prompts("small")[2][-1].content == "a b\n\n"


def test_space_and_punctuation_cut_by_the_token_limit_are_carried_on(make):
    rig = make(["- - - - so it is"], policy=small_only(), max_step_tokens=4)
    assert rig.ask()["messages"][-1].content == "- - - - so it is"


words = st.lists(st.sampled_from(["a", "b", "c\n\nd", "e\n\n\n\nf"]), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(words, st.integers(2, 6))
def test_however_a_text_is_cut_its_words_arrive_in_order(make, said, max_step_tokens):
    text = " ".join(said)

    def script(prefix):
        """Continues after as many letters as are in the prefix."""
        place, left = 0, sum(not character.isspace() for character in prefix)
        while left:
            left -= not text[place].isspace()
            place += 1
        return text[place:] if prefix == prefix.rstrip() else text[place:].lstrip()

    rig = make(script, policy=small_only(), max_step_tokens=max_step_tokens, max_steps=60)
    assert rig.ask()["messages"][-1].content.split() == text.split()


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_handover_is_cut_into_steps_and_its_tokens_shared_out_exactly(make, cut):
    script = ["LARGE one", "LARGE two and more", "---", "LARGE three"]
    rig = make(large=script, policy=large_only(), max_steps=cut, max_step_tokens=1)
    events = rig.steps()
    assert sum(event["tokens"] for event in events) == rig.large.calls[0]["tokens"]
    assert all(event["writer"] == "large" for event in events)


def test_a_handover_cut_right_behind_a_delimiter_is_not_glued_to_what_follows(make):
    large = ScriptedChatModel(script=lambda prefix: "L one\n\nL two\n\n never")
    rig = make(
        large=large, policy=large_only(), budget={"large_tokens": 3, "min_tokens": 2}, max_step_tokens=9
    )
    assert texts(rig)[:3] == ["L one", "L two", "small three"]
    assert rig.prompts("small")[0][-1].content == "L one\n\nL two\n\n"


def test_a_model_that_cannot_report_a_steps_end_is_refused_with_the_reason(make):
    class Hosted(ScriptedChatModel):
        def _generate(self, *args, **kwargs):
            result = super()._generate(*args, **kwargs)
            del result.generations[0].message.response_metadata["stop_reason"]
            return result

    with pytest.raises(ChatModelContractError, match=r"small model .*stop_reason"):
        make(Hosted(script=["one"])).ask()


def test_a_models_own_error_comes_through(make):
    class Broken(ScriptedChatModel):
        def _generate(self, *args, **kwargs):
            raise ConnectionError("refused")

    with pytest.raises(ConnectionError, match="refused"):
        make(Broken(script=["one"])).ask()


# Deadlines


class Slow(ScriptedChatModel):
    """Takes what a clock of its own says, and keeps to its timeout, or raises, or does neither."""

    clock: object = None
    seconds: float = 1.0
    manner: str = "cuts"

    def _generate(self, messages, stop=None, run_manager=None, *, timeout=None, **kwargs):
        late = timeout is not None and timeout < self.seconds
        self.clock.now += min(self.seconds, timeout) if late and self.manner != "ignores" else self.seconds
        if late and self.manner == "raises":
            raise TimeoutError
        if late and self.manner == "cuts":
            kwargs["max_tokens"] = 1
        return super()._generate(messages, stop, run_manager, timeout=timeout, **kwargs)

    async def _agenerate(self, *args, **kwargs):
        return self._generate(*args, **kwargs)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now)
    for module in ("calls.model_call", "nodes.score_step", "runtime"):
        monkeypatch.setattr(sys.modules[f"trim_graph.{module}"], "time", fake)
    return clock


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("manner", ["cuts", "raises", "ignores"])
def test_a_slow_model_ends_the_run_with_the_steps_it_has(make, clock, manner, asynchronously):
    small = Slow(script=[f"step {n}" for n in range(9)], clock=clock, manner=manner)
    rig = make(small, scores={}, budget={"seconds": 2.5})
    result = rig.solve(asynchronously=asynchronously)
    assert result["trim"]["stopped"] == "deadline"
    assert result["messages"][-1].content.startswith("step 0\n\nstep 1")
    assert [call["timeout"] for call in small.calls] == [2.5, 1.5, 0.5][: len(small.calls)]
    assert result["trim"]["seconds"] == {"cuts": 2.5, "raises": 2.5, "ignores": 3.0}[manner]
    assert len(rig.scorer.calls) == 2, "there is no time for the scorer any more"


def test_a_large_call_cut_by_the_deadline_is_charged_and_said(make, clock):
    large = Slow(script=["LARGE one"], clock=clock, seconds=9, manner="raises")
    rig = make(
        large=large,
        policy=large_only(),
        budget={"seconds": 2, "large_tokens": 100, "large_cost": 1.0},
        prices={"large": {"input": 1, "output": 10}},
    )
    summary = rig.ask()["trim"]
    assert summary["stopped"] == "deadline"
    assert summary["tokens"]["large_unaccounted"] == 100
    assert summary["usage"]["large"]["calls"] == 1
    assert summary["cost"] > 100 * 10 / 1e6, "the prompt has a price too"
    assert any("limit on seconds; 100 tokens" in note for note in summary["notes"])


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_a_large_call_for_which_a_slow_policy_leaves_no_time_is_not_made(make, clock, asynchronously):
    class Slow(large_only):
        def next_writer(self, observation):
            clock.now += 3
            return super().next_writer(observation)

    rig = make(policy=Slow(), budget={"seconds": 2, "large_tokens": 100})
    summary = rig.solve(asynchronously=asynchronously)["trim"]
    assert (summary["stopped"], rig.large.calls, summary["notes"]) == ("deadline", [], [])
    assert summary["tokens"]["large_unaccounted"] == 0


def test_without_a_deadline_no_timeout_is_passed_and_a_models_own_comes_through(make, rig):
    rig.ask()
    assert {call["timeout"] for call in rig.small.calls} == {None}

    class Impatient(ScriptedChatModel):
        def _generate(self, *args, **kwargs):
            raise TimeoutError("its own")

    for budget in (None, Budget(seconds=60)):
        with pytest.raises(TimeoutError, match="its own"):
            make(Impatient(script=["one"]), budget=budget).ask()


async def test_a_model_that_ignores_its_timeout_is_cancelled_soon_after(make, monkeypatch):
    monkeypatch.setattr("trim_graph.calls.model_call.GRACE", 0.05)
    cancelled = []

    class Hanging(ScriptedChatModel):
        async def _agenerate(self, *args, **kwargs):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

    summary = (await make(Hanging(script=["one"]), budget={"seconds": 0.05}).aask())["trim"]
    assert cancelled == [True]
    assert summary["stopped"] == "deadline"
    assert 0.05 <= summary["seconds"] < 10
    assert any("small model was cut off by the limit on seconds" in note for note in summary["notes"])


async def test_a_scorer_that_hangs_is_cancelled_too_and_the_draft_stays(make, monkeypatch):
    monkeypatch.setattr(sys.modules["trim_graph.nodes.score_step"], "GRACE", 0.05)

    async def hanging(question, steps):
        await asyncio.sleep(60)

    result = await make(scorer=hanging, budget={"seconds": 0.1}).aask()
    assert result["trim"]["stopped"] == "deadline"
    assert result["messages"][-1].content == "small one"
    assert result["trim"]["decisions"] == {}


# Crashes


def interrupted_before_large(make, **options):
    """A rig stopped just before the large model is asked for the second step."""
    rig = make(checkpointer=InMemorySaver(), **options)
    rig.ask(config=THREAD, interrupt_before=["generate_step"])
    while not rig.graph.get_state(THREAD).values["in_flight"]:
        rig.graph.invoke(None, THREAD, interrupt_before=["generate_step"])
    return rig


def plant(rig):
    """Makes it look as if another process had begun the call."""
    lost = {**rig.graph.get_state(THREAD).values["in_flight"], "process": "another"}
    rig.graph.update_state(THREAD, Command(update={"in_flight": lost}, goto="generate_step"), as_node="route")


def test_a_large_call_lost_in_a_crash_is_charged_and_said(make):
    rig = interrupted_before_large(
        make, budget={"large_tokens": 100}, max_step_tokens=40, prices={"large": {"output": 10}}
    )
    plant(rig)
    events = list(rig.graph.stream(None, THREAD, stream_mode="custom"))
    summary = events[-1]["summary"]
    assert summary["tokens"]["large_unaccounted"] == 40
    assert summary["usage"]["large"]["calls"] == 2
    assert summary["cost"] == pytest.approx((40 + 3) * 10 / 1e6)
    (note,) = summary["notes"]
    assert "crash; 40 tokens were charged" in note
    assert {"type": "trim", "event": "note", "text": note} in events
    assert len(rig.large.calls) == 1


def test_a_call_resumed_in_the_same_process_is_not_charged(make):
    rig = interrupted_before_large(make, budget={"large_tokens": 100})
    summary = rig.graph.invoke(None, THREAD)["trim"]
    assert summary["tokens"]["large_unaccounted"] == 0
    assert summary["notes"] == []


@pytest.mark.parametrize("limit", [{"large_tokens": 60}, {"large_calls": 1}])
def test_what_a_crash_was_charged_is_not_granted_again(make, limit):
    rig = interrupted_before_large(
        make, budget={**limit, "min_tokens": 30}, max_step_tokens=40, policy=lambda o: "regenerate"
    )
    plant(rig)
    summary = rig.graph.invoke(None, THREAD)["trim"]
    assert not rig.large.calls
    assert summary["stopped"] == "finished"
    assert summary["steps"] == {"small": 4, "large": 0}
    assert summary["tokens"]["large_unaccounted"] == 40


CRASH = """
import os, sys
from langgraph.checkpoint.sqlite import SqliteSaver
from trim_graph.graph import create_trim_graph
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

class Dying(ScriptedChatModel):
    def _generate(self, *args, **kwargs):
        os._exit(9)

with SqliteSaver.from_conn_string(sys.argv[1]) as saver:
    graph = create_trim_graph(
        ScriptedChatModel(script=["small one", "small two", "end"]), Dying(script=[]),
        ScriptedScorer({"small two": 0.1}), policy=threshold(0.5), checkpointer=saver, max_step_tokens=40,
        budget={"large_tokens": 100})
    graph.invoke({"messages": "2 + 2?"}, {"configurable": {"thread_id": "1"}}, durability="sync")
"""


def test_a_killed_process_costs_one_steps_tokens_and_no_accepted_step(make, tmp_path):
    path = str(tmp_path / "runs.sqlite")
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(CRASH), path], check=False)
    assert killed.returncode == 9
    with SqliteSaver.from_conn_string(path) as saver:
        rig = make(["small one", "small two", "end"], checkpointer=saver)
        result = rig.graph.invoke(None, THREAD, durability="sync")
    summary = result["trim"]
    assert result["messages"][-1].content == "small one\n\nLARGE two\n\nend"
    assert len(rig.small.calls) == 1
    assert summary["tokens"]["large_unaccounted"] == 40
    assert summary["usage"]["large"]["calls"] == 2
    assert rig.large.calls[0]["max_tokens"] == 40
    assert any("crash" in note for note in summary["notes"])


# Answers without a step: the reason is reported, and the declared fallback is taken


class Thinker(ScriptedChatModel):
    """Spends all its tokens on reasoning that it does not show, at the calls that are named."""

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
ONLY_REASONING = "the {} model wrote no step: all 512 tokens of its answer were used up and 512 of them"
DECLARED = {"on_small_error": "large", "on_large_error": "accept"}


def notes(result):
    return [note for note in result["trim"]["notes"] if "wrote no step" in note]


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_reasoning_that_uses_up_all_tokens_is_named_and_not_paid_for_again(make, asynchronously):
    small = Thinker(script=STEPS, thinks_at=(1, 2, 3, 4))
    result = make(small, scores={}).solve(asynchronously=asynchronously)
    assert result["trim"]["stopped"] == "no_step"
    assert result["messages"][-1].text == "one"
    assert notes(result) == [
        ONLY_REASONING.format("small")
        + " are reasoning that is not shown; raise max_step_tokens, or have it think less"
    ]
    assert len(small.calls) == 2
    spent = result["trim"]["usage"]["small"]
    assert (spent["output_tokens"], spent["failed_calls"]) == (small.calls[0]["tokens"] + 512, 1)


@pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
def test_the_large_model_writes_what_the_small_one_does_not(make, asynchronously):
    rig = make(Thinker(script=STEPS, thinks_at=(1,)), STEPS, scores={}, **DECLARED)
    result = rig.solve(asynchronously=asynchronously)
    assert result["trim"]["stopped"] == "finished"
    assert result["messages"][-1].text == "\n\n".join(STEPS)
    assert result["trim"]["steps"] == {"small": 2, "large": 1}
    assert len(notes(result)) == 1


def test_the_draft_stays_where_the_large_model_writes_no_step(make):
    rig = make(STEPS, Thinker(script=STEPS), {"two": 0.1}, **DECLARED)
    result = rig.ask()
    assert result["messages"][-1].text == "\n\n".join(STEPS)
    assert notes(result)[0].startswith(ONLY_REASONING.format("large"))
    assert len(rig.large.calls) == 1
    assert make(STEPS, Thinker(script=STEPS), {"two": 0.1}).ask()["trim"]["stopped"] == "no_step"


def test_models_that_write_no_step_are_not_asked_for_ever_and_the_limit_holds(make):
    rig = make(
        Thinker(script=STEPS),
        Thinker(script=STEPS),
        scores={},
        budget=Budget(large_tokens=1200),
        **DECLARED,
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
    rig = make(STEPS, STEPS, **options, **DECLARED)
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
