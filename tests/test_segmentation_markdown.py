"""Steps of Markdown: blocks stay whole, and a boundary once found stays where it is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_segmentation import Watcher, carries_on
from trim_graph import SettingsError
from trim_graph.config import make_config
from trim_graph.policies import large_only, small_only
from trim_graph.segmentation import MarkdownSteps, cut_text, is_step, markdown
from trim_graph.testing import ScriptedChatModel

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


def test_in_a_configuration_file():
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
