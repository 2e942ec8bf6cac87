"""Ways to find the end of a step other than a blank line, through the graph."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import ValidationError

from trim_graph import SettingsError
from trim_graph.adapters.base import STOPPED
from trim_graph.config import make_config
from trim_graph.policies import large_only, small_only, threshold
from trim_graph.segmentation import FunctionSteps, PatternSteps, delimiter, pattern, token_cap
from trim_graph.testing import ScriptedChatModel

THREAD = {"configurable": {"thread_id": "1"}}
TEXT = "Step 1: add 2.\nIt is 4.\n\n\nStep 2: halve it.\nStep 3: \\boxed{2}"
STEPS = ["Step 1: add 2.\nIt is 4.", "Step 2: halve it.", "Step 3: \\boxed{2}"]
NUMBERED = pattern(r"\n+(?=Step \d)")


class Watcher(ScriptedChatModel):
    """Ends its answer where `stop_when` says so, word by word, as the adapters of this package do."""

    takes_stop_when: ClassVar[bool] = True

    def _generate(self, messages, stop=None, run_manager=None, *, stop_when=None, **kwargs):
        result = super()._generate(messages, stop, run_manager, **kwargs)
        message = result.generations[0].message
        words = message.content.split(" ")
        for count in range(1, len(words)):
            text = " ".join(words[:count])
            if stop_when is not None and stop_when(text):
                message.content = text
                message.response_metadata |= {"finish_reason": "stop", "stop_reason": STOPPED}
                message.usage_metadata["output_tokens"] = count
                break
        return result


def carries_on(text=TEXT, kind=ScriptedChatModel, **fields):
    return kind(script=lambda prefix: text[len(prefix) :] if text.startswith(prefix) else "?", **fields)


def sentences(text):
    """One sentence a step; the space behind it separates two."""
    end = text.find(". ")
    return None if end < 0 else (end + 1, end + 2)


@pytest.fixture(params=[ScriptedChatModel, Watcher])
def kind(request):
    return request.param


class TestPattern:
    def test_each_numbered_step_is_a_step_whatever_stands_in_it(self, make, kind):
        rig = make(carries_on(kind=kind), carries_on(), scores={}, segmentation=NUMBERED)
        assert [step["text"] for step in rig.steps()] == STEPS
        result = rig.ask()
        assert result["messages"][-1].content == TEXT
        assert result["trim"]["stopped"] == "finished"
        assert result["trim"]["answer"] == "2"

    def test_the_prefix_is_carried_on_byte_for_byte(self, make, kind):
        rig = make(carries_on(kind=kind), carries_on(), scores={}, segmentation=NUMBERED)
        rig.ask()
        given_back = [str(p[-1].text) for p in rig.prompts("small")][1:]
        assert given_back == [TEXT[: TEXT.index("Step 2")], TEXT[: TEXT.index("Step 3")]]
        # The end of a thought, which the first step may open, is nothing that the text is watched for.
        assert [call["stop"] for call in rig.small.calls] == [["</think>"], None, None]

    def test_what_was_written_beyond_the_step_is_counted_as_discarded(self, make):
        watched, plain = (
            make(carries_on(kind=k), carries_on(), scores={}, segmentation=NUMBERED).ask()["trim"]
            for k in (Watcher, ScriptedChatModel)
        )
        for expected in (watched, plain):
            accepted, discarded = expected["tokens"]["small"], expected["tokens"]["small_discarded"]
            assert accepted + discarded == expected["usage"]["small"]["output_tokens"]
        assert watched["tokens"]["small_discarded"] < plain["tokens"]["small_discarded"]

    def test_one_step_is_written_again_and_the_others_stay(self, make):
        large = carries_on(TEXT.replace("halve it", "take half"), name="huge")
        scores = {STEPS[1]: 0.1}
        rig = make(carries_on(), large, scores, segmentation=NUMBERED, policy=threshold(0.5))
        result = rig.ask()
        assert [step["writer"] for step in rig.steps()][:2] == ["small", "large"]
        assert "take half" in result["messages"][-1].content

    def test_a_handover_is_cut_in_the_same_way(self, make):
        rig = make(carries_on(), carries_on(), policy=large_only(), segmentation=NUMBERED)
        assert [step["text"] for step in rig.steps()] == STEPS
        result = rig.ask()
        assert result["messages"][-1].content == TEXT
        assert result["trim"]["steps"] == {"small": 0, "large": 3}

    def test_a_separator_at_the_very_end_does_not_ask_for_more(self, make):
        rig = make(carries_on("a b\nc d\n"), carries_on(), scores={}, segmentation=pattern(r"\n"))
        result = rig.ask()
        assert len(rig.small.calls) == 2
        assert result["messages"][-1].content == "a b\nc d\n"

    def test_the_chunks_make_the_final_message(self, make):
        rig = make(carries_on(), carries_on(), scores={}, segmentation=NUMBERED)
        chunks = [c.content for c, _ in rig.graph.stream({"messages": "?"}, stream_mode="messages")]
        assert "".join(chunks) == TEXT
        assert len(chunks) == 3

    @pytest.mark.parametrize("wrong", ["(", "x*", "\\n*"])
    def test_a_pattern_that_cannot_separate_is_refused(self, make, wrong):
        with pytest.raises((SettingsError, ValidationError), match=r"regular expression|empty text"):
            make(segmentation={"type": "pattern", "pattern": wrong})

    def test_it_is_kept_over_a_checkpoint(self, make):
        saver = InMemorySaver()
        rig = make(carries_on(), carries_on(), scores={}, segmentation=NUMBERED, checkpointer=saver)
        rig.ask(config=THREAD, interrupt_after=["score_step"])
        other = make(carries_on(), carries_on(), scores={}, checkpointer=saver)
        assert other.graph.invoke(None, THREAD)["messages"][-1].content == TEXT


class TestFunction:
    def test_any_function_will_do(self, make, kind):
        text = "Add 2 to it. That is 4. So \\boxed{4}"
        rig = make(carries_on(text, kind), carries_on(text), scores={}, segmentation=sentences)
        assert [step["text"] for step in rig.steps()] == ["Add 2 to it.", "That is 4.", "So \\boxed{4}"]
        assert rig.ask()["messages"][-1].content == text

    def test_a_place_alone_means_that_nothing_separates(self, make):
        rig = make(carries_on("abcdef"), carries_on(), scores={}, segmentation=lambda t: 2 if t[2:] else None)
        assert [step["text"] for step in rig.steps()] == ["ab", "cd", "ef"]
        assert rig.ask()["messages"][-1].content == "abcdef"

    @pytest.mark.parametrize("wrong", [-1, 0, 99, "no", (3, 1), (1, 2, 3), [None, 2]])
    def test_an_answer_that_is_no_place_is_named(self, make, wrong):
        def broken(text):
            return wrong

        rig = make(carries_on(), carries_on(), scores={}, segmentation=broken)
        with pytest.raises(SettingsError, match=r"segmentation function .*broken returned"):
            rig.ask()

    def test_a_resumed_run_needs_the_same_function(self, make):
        saver = InMemorySaver()
        text = "Add 2 to it. That is 4. So \\boxed{4}"

        def rig(**options):
            return make(carries_on(text), carries_on(text), scores={}, checkpointer=saver, **options)

        rig(segmentation=sentences).ask(config=THREAD, interrupt_after=["score_step"])
        with pytest.raises(SettingsError, match=r"begun with the segmentation function .*sentences"):
            rig().graph.invoke(None, THREAD)
        assert rig(segmentation=sentences).graph.invoke(None, THREAD)["messages"][-1].content == text


class TestTokenCap:
    def test_a_step_ends_after_so_many_tokens(self, make):
        words = "one two three four five six seven"
        rig = make(carries_on(words), carries_on(), scores={}, segmentation=token_cap(3))
        result = rig.ask()
        assert {call["max_tokens"] for call in rig.small.calls} == {3}
        assert result["messages"][-1].content == words
        assert result["trim"]["stopped"] == "finished"
        assert result["trim"]["steps"]["small"] >= 2

    def test_max_step_tokens_still_holds(self, make):
        rig = make(carries_on("one two three"), carries_on(), segmentation=token_cap(9), max_step_tokens=2)
        rig.ask()
        assert {call["max_tokens"] for call in rig.small.calls} == {2}


def test_a_delimiter_and_another_way_are_refused_together(make):
    with pytest.raises(SettingsError, match="delimiter and segmentation are both given"):
        make(delimiter="##", segmentation=NUMBERED)


def test_in_a_configuration_file():
    data = {"small": {"type": "example"}, "large": {"type": "example"}, "policy": "small_only"}
    config = make_config({**data, "settings": {"segmentation": {"type": "pattern", "pattern": "\\n"}}})
    assert config.settings.segmentation == pattern("\\n")
    with pytest.raises(SettingsError, match=r"segmentation\.pattern: .*regular expression"):
        make_config({**data, "settings": {"segmentation": {"type": "pattern", "pattern": "("}}})


pieces = st.text(st.sampled_from("ab1 .\n-"), max_size=30)


@given(pieces, st.sampled_from([r"\n", r"\n+", r"\n(?=a)", r" |\n\n"]))
def test_a_split_loses_nothing(text, expression):
    found = PatternSteps(pattern=expression).split(text)
    if found:
        assert "".join(step + separator for step, separator in found) == text


@given(pieces, st.integers(1, 4))
def test_a_split_by_a_function_loses_nothing(text, size):
    cut = FunctionSteps(name="f", function=lambda t: (size, min(size + 1, len(t))) if len(t) > size else None)
    found = cut.split(text)
    if found:
        assert "".join(step + separator for step, separator in found) == text


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.sampled_from(["a b", "c", "--", "", "d e f"]), min_size=1, max_size=6),
    watches=st.booleans(),
    tokens=st.integers(2, 12),
)
def test_the_graph_gives_back_the_text_that_one_model_writes_in_one_go(make, lines, watches, tokens):
    """However it is cut, and whatever limit falls into a step, no byte is lost."""
    text = "\n".join(lines)
    model = carries_on(text, Watcher if watches else ScriptedChatModel)
    rig = make(
        model, model, policy=small_only(), segmentation=pattern(r"\n+"), max_step_tokens=tokens, max_steps=50
    )
    result = rig.ask()
    if result["trim"]["stopped"] == "finished":
        content = result["messages"][-1].content
        begin = text.index(content)
        assert not any(map(str.isalnum, text[:begin] + text[begin + len(content) :]))


@pytest.mark.parametrize("settings", [{"segmentation": token_cap(10)}, {"max_step_tokens": 10}])
def test_the_last_brace_of_an_answer_that_was_cut_is_kept(make, settings):
    text = "a b c d e f g h i \\boxed{42 }."
    rig = make(carries_on(text), carries_on(text), scores={}, **settings)
    result = rig.ask()
    assert result["messages"][-1].content == text
    assert result["trim"]["answer"] == "42"


def test_a_prompted_model_is_given_the_delimiter_that_separates(make):
    class Foreign(ScriptedChatModel):
        continues_exactly: ClassVar[bool] = False

    rig = make(
        Foreign(script=["one", "two"]), Foreign(script=["x"]), segmentation=delimiter("###"), scores={}
    )
    rig.ask()
    assert '"###"' in str(rig.small.calls[0]["messages"][-1].content)
    assert "cut off" not in str(rig.small.calls[1]["messages"][-1].content)
