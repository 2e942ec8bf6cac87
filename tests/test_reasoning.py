"""Models that think in `<think>`: steps inside the thought, and which part was routed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trim_graph.policies import large_only, threshold
from trim_graph.segmentation import Thinking, is_step, pattern
from trim_graph.testing import ScriptedChatModel

THOUGHT = "<think>\nAdd 2.\n\nMaybe \\boxed{3}?\n\nNo, it is 4.\n</think>\n\n"
TEXT = THOUGHT + "Two and two:\n\n\\boxed{4}"


def model(text=TEXT, **fields):
    return ScriptedChatModel(
        script=lambda prefix: text[len(prefix) :] if text.startswith(prefix) else "?", **fields
    )


class Opened(ScriptedChatModel):
    """Its chat template has opened the thought already, as that of DeepSeek-R1 does."""

    template_opens: bool = True

    def _generate(self, *args, **kwargs):
        result = super()._generate(*args, **kwargs)
        result.generations[0].message.response_metadata["starts_in_reasoning"] = self.template_opens
        return result


class Deaf(Opened):
    """Stops at blank lines only, as a server does that drops further stop strings."""

    template_opens: bool = False

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        kept = [string for string in stop or () if string == "\n\n"]
        return super()._generate(messages, kept or None, run_manager, **kwargs)


def part_texts(rig, **options):
    return [(step["part"], step["text"]) for step in rig.steps(**options)]


EXPECTED = [
    ("reasoning", "<think>\nAdd 2."),
    ("reasoning", "Maybe \\boxed{3}?"),
    ("reasoning", "No, it is 4.\n"),
    ("answer", "\n\nTwo and two:"),
    ("answer", "\\boxed{4}"),
]


def test_each_step_says_which_part_it_belongs_to(make):
    rig = make(model(), model(), scores={})
    assert part_texts(rig) == EXPECTED
    result = rig.ask()
    assert result["messages"][-1].content == TEXT
    assert result["trim"]["parts"] == {
        "reasoning": {"small": 3, "large": 0},
        "answer": {"small": 2, "large": 0},
    }
    json.dumps(result["trim"])


def test_the_answer_is_looked_for_behind_the_reasoning(make):
    text = "<think>\nSo \\boxed{3}.\n</think>\n\nI do not know."
    assert make(model(text), model(text), scores={}).ask()["trim"]["answer"] is None
    unfinished = "<think>\nSo \\boxed{3}."
    assert make(model(unfinished), model(unfinished), scores={}).ask()["trim"]["answer"] is None
    assert make(model(), model(), scores={}).ask()["trim"]["answer"] == "4"


def test_the_end_of_the_reasoning_ends_a_step_wherever_it_is(make):
    text = "<think>\nOne.\n\nTwo.</think>It is \\boxed{2}."
    rig = make(model(text), model(text), scores={})
    assert part_texts(rig) == [
        ("reasoning", "<think>\nOne."),
        ("reasoning", "Two."),
        ("answer", "It is \\boxed{2}."),
    ]
    assert rig.ask()["messages"][-1].content == text
    assert [call["stop"] for call in rig.small.calls[:3]] == [
        ["\n\n", "</think>"],
        ["\n\n", "</think>"],
        ["\n\n"],
    ]


def test_a_template_may_have_opened_the_reasoning(make):
    text = TEXT.removeprefix("<think>\n")

    def opened():
        return Opened(script=lambda prefix: text[len(prefix) :])

    rig = make(opened(), opened(), scores={})
    assert [part for part, _ in part_texts(rig)] == ["reasoning"] * 3 + ["answer"] * 2
    assert rig.ask()["trim"]["answer"] == "4"


def test_a_model_with_reasoning_disabled_writes_its_answer(make):
    text = "<think>\n\n</think>\n\nTwo and two.\n\n\\boxed{4}"
    rig = make(model(text), model(text), scores={})
    assert [part for part, _ in part_texts(rig)] == ["answer", "answer"]
    result = rig.ask()
    assert result["messages"][-1].content == text
    assert result["trim"]["answer"] == "4"


def test_the_trace_says_which_part_was_routed(make):
    large = model(TEXT.replace("Maybe \\boxed{3}?", "Perhaps not 3."))
    rig = make(model(), large, {"Maybe \\boxed{3}?": 0.1}, policy=threshold(0.5))
    events = list(rig.graph.stream({"messages": "?"}, stream_mode="custom"))
    decided = [(e["decision"], e["part"]) for e in events if e["event"] == "decision"]
    assert decided[:2] == [("accept", "reasoning"), ("regenerate", "reasoning")]
    assert {e["part"] for e in events if e["event"] == "draft"} == {"reasoning"}


@pytest.mark.parametrize("routed", ["reasoning", "answer"])
def test_one_part_alone_may_be_routed(make, routed):
    seen = []
    rig = make(
        model(),
        model(),
        scorer=lambda question, steps: [seen.append(steps[-1]) or 1.0] * len(steps),
        thinking=Thinking(routed=routed),
    )
    result = rig.ask()
    wanted = [text for part, text in EXPECTED if part == routed]
    assert seen == wanted
    assert result["trim"]["decisions"] == {"accept": len(wanted)}
    assert result["messages"][-1].content == TEXT


def test_a_policy_sees_the_part(make):
    parts = []
    policy = lambda seen: parts.append(seen.part) or "accept"  # noqa: E731
    rig = make(model(), model(), scores={}, policy=policy)
    parts.clear()  # of the samples
    rig.ask()
    assert parts == [part for part, _ in EXPECTED]


def test_a_handover_is_cut_into_both_parts(make):
    rig = make(model(), model(), policy=large_only())
    assert [part for part, _ in part_texts(rig)] == ["reasoning"] * 3 + ["answer"] * 2
    assert rig.ask()["trim"]["parts"]["reasoning"] == {"small": 0, "large": 3}


def test_reasoning_in_other_tags_is_found(make):
    text = TEXT.replace("think>", "reason>")
    tags = {"open": "<reason>", "close": "</reason>"}
    rig = make(model(text), model(text), scores={}, thinking=tags)
    assert [part for part, _ in part_texts(rig)] == ["reasoning"] * 3 + ["answer"] * 2


def test_without_reasoning_nothing_is_said_of_parts(make, rig):
    result = rig.ask()
    assert "parts" not in result["trim"]
    assert all("part" not in step for step in rig.steps())
    off = make(model(), model(), scores={}, thinking=None)
    assert all("part" not in step for step in off.steps())
    assert off.ask()["messages"][-1].content == TEXT


def test_reasoning_is_found_with_another_segmentation(make):
    text = "<think>\nStep 1: one\nStep 2: two</think>Step 3: \\boxed{3}"
    rig = make(model(text), model(text), scores={}, segmentation=pattern(r"\n(?=Step \d)"))
    assert [part for part, _ in part_texts(rig)] == ["reasoning", "reasoning", "answer"]
    assert rig.ask()["messages"][-1].content == text


SHORT = "<think>\nAdd 2.\n</think>\nIt is 4.\n\n\\boxed{4}"


@pytest.mark.parametrize("kind", [ScriptedChatModel, Deaf])
@pytest.mark.parametrize("policy", [None, large_only()], ids=["stepwise", "in one go"])
def test_a_reasoning_shorter_than_a_step_ends_it(make, kind, policy):
    writer = kind(script=lambda prefix: SHORT[len(prefix) :])
    rig = make(writer, writer, scores={}, policy=policy)
    assert part_texts(rig) == [
        ("reasoning", "<think>\nAdd 2.\n"),
        ("answer", "\nIt is 4."),
        ("answer", "\\boxed{4}"),
    ]
    assert rig.ask()["messages"][-1].content == SHORT


@pytest.mark.parametrize("kind", [ScriptedChatModel, Deaf])
def test_the_answer_behind_a_short_reasoning_is_decided_on(make, kind):
    better = SHORT.replace("4", "5")
    small = kind(script=lambda prefix: SHORT[len(prefix) :])
    large = kind(script=lambda prefix: better[len(prefix) :])
    rig = make(small, large, {"\nIt is 4.": 0.1}, thinking={"routed": "answer"})
    assert rig.ask()["trim"]["parts"]["answer"]["large"] == 1


def test_a_template_may_open_a_reasoning_shorter_than_a_step(make):
    text = SHORT.removeprefix("<think>\n")
    writer = Opened(script=lambda prefix: text[len(prefix) :])
    assert [part for part, _ in part_texts(make(writer, writer, scores={}))] == [
        "reasoning",
        "answer",
        "answer",
    ]


def test_a_reasoning_may_be_opened_by_a_later_step(make):
    text = "Let me see.\n\n<think>Two.</think>It is 2.\n\n<think>Sure?</think>Yes."
    rig = make(model(text), model(text), scores={})
    parts = [event.get("part") for event in rig.steps()]
    assert parts == [None, "reasoning", "answer", "reasoning", "answer"]
    assert rig.ask()["messages"][-1].content == text


def test_a_close_mark_that_the_open_mark_contains_is_refused():
    with pytest.raises(ValueError, match="would end as it begins"):
        Thinking(open="***", close="**")


@pytest.mark.parametrize("at", range(1, len("</think>")))
def test_a_close_mark_that_the_token_limit_cut_in_two_ends_the_reasoning(at):
    marks, close = Thinking(), "</think>"
    previous = {"text": f"Add 2.{close[:at]}", "part": "reasoning", "end": "length"}
    assert marks.part_of(previous, f"{close[at:]} It is 4.") == "answer"
    assert marks.part_of({**previous, "end": "delimiter"}, f"{close[at:]} It is 4.") == "reasoning"


def body(word):
    return st.lists(st.sampled_from([word, f" {word}", "\n", "\n\n", " ", ". "]), max_size=9).map("".join)


@settings(deadline=None, max_examples=200)
@given(
    thought=body("t1"),
    answer=body("a1"),
    opened=st.booleans(),
    in_one_go=st.booleans(),
    kind=st.sampled_from([Opened, Deaf]),
    cap=st.sampled_from([3, 512]),
)
def test_each_word_belongs_to_the_part_that_the_marks_say(
    make, thought, answer, opened, in_one_go, kind, cap
):
    text = f"{'' if opened else '<think>'}{thought}</think>{answer}"
    writer = kind(script=carries_on(text).script, template_opens=opened)
    policy = large_only() if in_one_go else threshold(0.5)
    rig = make(writer, writer, scores={}, policy=policy, max_step_tokens=cap, max_steps=99)
    steps = rig.steps()
    for step in steps:
        assert ("t1" in step["text"]) <= (step["part"] == "reasoning")
        assert ("a1" in step["text"]) <= (step["part"] == "answer")
    seen = "".join(step["text"] for step in steps)
    assert (seen.count("t1"), seen.count("a1")) == (text.count("t1"), text.count("a1"))


def carries_on(text):
    """Continues after the visible characters of the prefix; the graph drops blank pieces."""

    def rest(prefix):
        place, seen = 0, len("".join(prefix.split()))
        while seen:
            seen -= not text[place].isspace()
            place += 1
        return text[place:].lstrip() if prefix[-1:].isspace() else text[place:]

    return ScriptedChatModel(script=rest)


chunk = st.sampled_from(["a", "b c", "\n", "\n\n", " ", ".", "<think>", "</think>", "1"])


@settings(deadline=None)
@given(st.lists(chunk, max_size=12).map("".join))
def test_the_graph_loses_no_word(make, text):
    result = make(carries_on(text), carries_on(text), scores={}, max_steps=99).ask()
    said, content = ("".join(t.split()) for t in (text, result["messages"][-1].content))
    assert said.startswith(content)
    if result["trim"]["stopped"] == "finished":
        assert not is_step(said[len(content) :])
