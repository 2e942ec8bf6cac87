"""Tests of segmentations: by delimiter, pattern, function, tokens and Markdown, through the graph."""

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
from trim_graph.segmentation import (
    FunctionSteps,
    MarkdownSteps,
    PatternSteps,
    cut_text,
    delimiter,
    divide_tokens,
    is_step,
    join_steps,
    markdown,
    pattern,
    split_steps,
    token_cap,
)
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


def test_a_pattern_of_a_configuration_file_is_the_segmentation():
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


# Texts as steps, and steps as texts


paragraph = st.text(alphabet="ab1 .-\n$", min_size=1, max_size=12)


solution = st.lists(paragraph, max_size=8).map("\n\n".join)


def records(texts: list[str]) -> list[dict[str, str]]:
    return [{"text": text, "end": "delimiter"} for text in texts]


def test_space_and_punctuation_alone_are_no_step():
    assert not any(map(is_step, ["", " \n", "---", "**", "\\[", "…"]))
    assert all(map(is_step, ["x", "= 4", "\\boxed{4}", "答え"]))


def test_the_delimiter_is_put_back_only_where_the_writer_wrote_it():
    steps = [
        {"text": "cut by its limit", "end": "length"},
        {"text": " and carried on", "end": "delimiter"},
        {"text": "the end", "end": "eos"},
    ]
    assert join_steps(steps) == "cut by its limit and carried on\n\nthe end"
    assert join_steps(steps, "##") == "cut by its limit and carried on##the end"


def test_pieces_that_are_no_step_join_the_one_that_follows_and_blank_ones_vanish():
    assert split_steps("one\n\n\n\n---\n\ntwo") == ["one", "---\n\ntwo"]
    assert split_steps("one\n\n---") == ["one\n\n---"]
    assert split_steps("---") == []


@given(solution)
def test_every_piece_of_a_split_is_a_step(text: str):
    assert all(map(is_step, split_steps(text)))


@given(solution)
def test_splitting_loses_nothing_but_space(text: str):
    steps = split_steps(text)
    if steps:
        assert "".join("".join(steps).split()) == "".join(text.split())


@given(solution)
def test_splitting_a_joined_text_gives_the_same_steps(text: str):
    steps = split_steps(text)
    if not any(step.endswith("\n") for step in steps):  # a newline there would move the delimiter
        assert split_steps(join_steps(records(steps)).removesuffix("\n\n")) == steps


@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=20).map(lambda t: f"s {t}"), min_size=1))
def test_plain_paragraphs_survive_joining_and_splitting(steps: list[str]):
    assert split_steps(join_steps(records(steps))) == steps


@given(st.integers(0, 5000), st.lists(st.text(max_size=30), min_size=1, max_size=20))
def test_shared_out_tokens_add_up_and_are_never_negative(total: int, texts: list[str]):
    shares = divide_tokens(total, texts)
    assert sum(shares) == total
    assert min(shares) >= 0
    assert len(shares) == len(texts)


# Markdown: blocks stay whole, and a boundary once found stays where it is


WHOLE = {
    "code": "```python\nx = 1\n\n\ny = 2\n```",
    "code between tildes": "~~~\nx = 1\n\ny = 2\n~~~",
    "a blank before the language": "```  python title=a\nx = 1\n\ny = 2\n```",
    "a longer fence around a shorter one": "````markdown\n```\nx = 1\n\n```\n\ny = 2\n````",
    "a closing fence may be longer": "```\nx = 1\n\ny = 2\n`````",
    "tildes close no backticks": "```\n~~~\n\ny = 2\n```",
    "a fence with a language closes nothing": "```\nx = 1\n```python\n\ny = 2\n```",
    "a fence deep within code closes nothing": '```\ndef f():\n    """\n     ```\n\n    """\n```',
    "indented code": "   ```\n   x = 1\n\n   y = 2\n   ```",
    "code in a list": "- so:\n  1. ```python\n     x = 1\n\n     y = 2\n     ```",
    "code on a list's marker": "- ```\n  x = 1\n\n  y = 2\n  ```",
    "quoted code": "> ```\n> x = 1\n\n> y = 2\n> ```",
    "a heading within code": "```\n# one\n\nx = 2\n```",
    "a table": "| a | b |\n|---|---|\n| 1 | 2 |\n\n| 3 | 4 |",
    "display math": "$$\nx = 1\n\n+ y\n$$",
    "brackets": "So \\[ x = 1\n\n+ y \\] holds",
    "an environment": "\\begin{align}\nx &= 1 \\\\[2pt]\n\ny &= 2\n\\end{align}",
    "an environment within another": "\\begin{a}\n\\begin{b}x\\end{b}\n\ny\n\\end{a}",
    "an environment within math": "$$\\begin{cases} x\n\ny \\end{cases}\n\nz$$",
    "a heading": "# One\n\nand its text",
    "headings": "## One\n\n### Two\n\nand their text",
    "an underlined heading": "One\n===\n\nand its text",
    "a heading behind text": "zero\n#### One\n\nand its text",
    "a formula and its lead-in": "Now we add:\n\n\\[ 1 + 2 = 3 \\]",
    "code and its lead-in": "so: \n\n```\nx = 1\n```",
    "a list and its lead-in": "**Steps:**\n\n1. add\n2. divide",
    "a wide colon": "x\uff1a\n\n3",
    "a lead-in behind text": "zero\nso:\n\none",
}


APART = {
    "paragraphs": ("one", "two"),
    "code": ("```\nx = 1\n```", "two"),
    "text and code": ("so", "```\nx = 1\n```"),
    "a colon within a line": ("so: 3", "two"),
    "a colon in code": ("```\nif x:\n```", "two"),
    "a colon in math": ("$$\nx:\n$$", "two"),
    "a span of code is no fence": ("```x``` is one", "two"),
    "math in a line": ("$x$ and $$y$$ and \\[z\\]", "two"),
    "escaped signs": ("it costs \\$$ 5 \\\\[2pt]", "two"),
    "math in a span of code": ("write `$$` or ``\\begin{a}``", "two"),
    "backticks that open no code": ("a ` b $x$", "two `"),
    "an end without a beginning": ("one \\end{a} \\]", "two"),
    "no heading": ("#one", "two"),
    "an indented number sign": ("    # one", "two"),
    "a rule": ("one", "two\n\n---"),
    "bars of absolute values": ("|x - 3| < 5 holds", "|y| > 2 does not"),
    "a row without a table": ("| a |", "| b |"),
    "a table and text": ("| a |\n|---|\n| 1 |", "two"),
    "code ends stray math": ("it costs $$ 5\n\n```\nx = 1\n```", "two"),
    "indentation": ("one  ", "  two"),
}


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
@pytest.mark.parametrize("block", WHOLE.values(), ids=WHOLE)
def test_a_block_is_never_cut(block, line_break):
    block = block.replace("\n", line_break)
    separator = 2 * line_break
    text = separator.join(["one", block, "two"])
    assert markdown().split(text) == [("one", separator), (block, separator), ("two", "")]


@pytest.mark.parametrize("separator", ["\n\n", "\r\n\r\n", "\n \t\n", "\n\n  \n\n", "\r\n \r\n"])
@pytest.mark.parametrize("steps", APART.values(), ids=APART)
def test_blank_lines_separate_all_else(steps, separator):
    first, second = steps
    assert markdown().split(f"{first}{separator}{second}") == [(first, separator), (second, "")]


def test_what_is_no_step_waits_for_one():
    assert markdown().split("---\n\none\n\ntwo\n\n") == [("---\n\none", "\n\n"), ("two", "\n\n")]
    assert markdown().split("---\n\n***") == []


PIECES = [
    *("one", "two x", "---", "#", "# one", "===", "- one", "  1. two", "> one", "| a |", "a | b"),
    *("```", "~~~", "````", "``` python", "  ```", "- ```", "`", "``"),
    *("$$", "$", "\\[", "\\]", "\\\\[2pt]", "\\begin{a}", "\\end{a}", "\\begin{b}", "\\end{b}", "\\$$"),
    *("\n", "\n", "\n\n", "\n\n", "\r\n", "\r\n\r\n", "\n \n", " ", "  ", "\t", "\r"),
]


texts = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


@settings(deadline=None, max_examples=300)
@given(texts)
def test_a_split_gives_back_the_text(text):
    found = markdown().split(text)
    assert not found or "".join(map("".join, found)) == text
    assert all(is_step(step) for step, _ in found)


@settings(deadline=None, max_examples=300)
@given(texts)
def test_a_boundary_stays_where_it_is_while_the_text_grows(text):
    way = markdown()
    while (last := way.boundary(text, ended=True)) is not None:
        seen = [way.boundary(text[:place], ended=False) for place in range(len(text) + 1)]
        first = next((place for place, found in enumerate(seen) if found is not None), len(seen))
        assert seen[first:] == [last] * len(seen[first:])
        assert first < len(seen) or not text[last.next :].strip()
        text = text[last.next :]
    assert not any(way.boundary(text[:place], ended=False) for place in range(len(text) + 1))


@settings(deadline=None, max_examples=300)
@given(texts, st.data())
def test_a_limit_that_cuts_a_step_moves_no_boundary(text, data):
    """Also where it falls into a fence, or between the letters of the fence itself."""
    last = markdown().boundary(text, ended=True)
    place = data.draw(st.integers(0, last.end if last else len(text)))
    found = markdown().continuing(text[:place]).boundary(text[place:], ended=True)
    if last is None:
        assert found is None
    elif is_step(text[place : last.end]):
        assert found == (last.end - place, last.next - place)
    else:
        assert found is None or found > (last.end - place, last.next - place)


def test_what_a_limit_has_cut_is_the_text_of_the_last_steps():
    steps = [{"text": text, "end": end} for text, end in (("a", "length"), ("b", "delimiter"))]
    assert cut_text(steps) == ""
    steps += [{"text": text, "end": "length"} for text in ("c", "d")]
    assert cut_text(steps) == "cd"


SOLUTION = "\n\n".join(["one", "# Two\n\n" + WHOLE["code in a list"], WHOLE["brackets"], "so \\boxed{2}"])


class ByLetter(Watcher):
    """Counts letters for tokens, so that a limit falls anywhere."""

    def _generate(self, messages, stop=None, run_manager=None, *, max_tokens=None, **kwargs):
        result = super()._generate(messages, stop, run_manager, **kwargs)
        message = result.generations[0].message
        if len(message.content) > max_tokens:
            message.content = message.content[:max_tokens]
            message.response_metadata |= {"finish_reason": "length", "stop_reason": None}
        return result


@pytest.mark.parametrize("kind", [ScriptedChatModel, Watcher])
@pytest.mark.parametrize("policy", [small_only, large_only])
def test_the_graph_keeps_blocks_whole(make, kind, policy):
    rig = make(carries_on(SOLUTION, kind), carries_on(SOLUTION), policy=policy(), segmentation=markdown())
    assert [step["text"] for step in rig.steps()] == [step for step, _ in markdown().split(SOLUTION)]
    assert rig.ask()["messages"][-1].text == SOLUTION


@pytest.mark.parametrize("limit", range(4, 40))
def test_a_limit_within_a_block_does_not_turn_code_inside_out(make, limit):
    model = carries_on(SOLUTION, ByLetter)
    rig = make(
        model, model, policy=small_only(), segmentation=markdown(), max_step_tokens=limit, max_steps=99
    )
    result = rig.ask()
    assert result["messages"][-1].text == SOLUTION
    ends = {SOLUTION.index(step) + len(step) for step, _ in markdown().split(SOLUTION)}
    end = 0
    for step in rig.steps():
        end = SOLUTION.index(step["text"], end) + len(step["text"])
        # An answer that is no step is carried on, up to the next limit.
        assert end in ends or len(step["text"]) % limit == 0


def test_a_fence_that_is_never_closed_ends_at_the_limit_of_each_step(make):
    text = "so:\n\n```\n" + "\n\n".join(f"line {number}" for number in range(50))
    model = carries_on(text, ByLetter)
    rig = make(model, model, policy=small_only(), segmentation=markdown(), max_step_tokens=40, max_steps=99)
    assert rig.ask()["messages"][-1].text == text
    assert {len(step["text"]) for step in rig.steps()[1:-1]} == {40}


def test_a_handover_goes_on_within_the_block_that_a_limit_has_cut(make):
    text = "```\na = 1\nb = 2\n\nc = 3\n```\n\nso \\boxed{2}"
    model = carries_on(text, ByLetter)
    rig = make(
        model,
        model,
        policy=lambda seen: "handover" if seen.index == 1 else "accept",
        segmentation=markdown(),
        max_step_tokens=12,
    )
    assert [step["text"] for step in rig.steps()][:1] == [text[:12]]
    assert [step["text"] for step in rig.steps()][1:] == [text[12:-14], "so \\boxed{2}"]


def test_markdown_of_a_configuration_file_is_the_segmentation():
    data = {"small": {"type": "example"}, "large": {"type": "example"}, "policy": "small_only"}
    config = make_config({**data, "settings": {"segmentation": {"type": "markdown"}}})
    assert config.settings.segmentation == MarkdownSteps()
    for wrong in (
        {"type": "markdwn"},
        {"type": "markdown", "cut": "```"},
        {"type": "markdown", "_cut": "```"},
    ):
        with pytest.raises(SettingsError, match="segmentation"):
            make_config({**data, "settings": {"segmentation": wrong}})
