"""A run that repeats itself ends, and says so; one that does not is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph import SettingsError
from trim_graph.config import make_config
from trim_graph.policies import large_only, small_only, threshold
from trim_graph.routing.router import loop_in

AGAIN = "Let me look at the sum once more."
OTHER = "It is not what was asked for."


def steps_of(*texts, **channels):
    return [{"text": text, "end": "delimiter", **channels} for text in texts]


def writes(*texts):
    """Script of a model that writes these steps and the last one for ever."""

    def script(prefix):
        done = len([step for step in prefix.split("\n\n") if step])
        return texts[min(done, len(texts) - 1)] + "\n\n"

    return script


def test_a_step_written_again_and_again_ends_the_run_with_all_that_was_shown(make):
    rig = make(writes("Two and two.", AGAIN), writes("x"), scores={}, policy=small_only())
    chunks = [c.content for c, _ in rig.graph.stream({"messages": "?"}, stream_mode="messages")]
    rig.small.calls.clear()
    result = rig.ask()
    summary = result["trim"]
    assert summary["stopped"] == "loop"
    assert summary["steps"]["small"] == len(rig.small.calls) == 5
    assert summary["notes"] == [
        "the run has ended in a loop: the last step was written 4 times word for word"
    ]
    assert result["messages"][-1].text == "".join(chunks) == "\n\n".join(["Two and two.", *[AGAIN] * 4])
    assert result["messages"][-1].response_metadata["finish_reason"] == "length"


def test_a_loop_of_the_large_models_steps_ends_the_run_too(make):
    rig = make(writes("Two and two."), writes(AGAIN), scores={"Two and two.": 0.0}, policy=threshold(0.5))
    summary = rig.ask()["trim"]
    assert (summary["stopped"], summary["steps"]) == ("loop", {"small": 0, "large": 4})


def test_a_solution_that_ends_has_finished_whatever_it_repeats(make):
    rig = make([AGAIN] * 4, ["x"], scores={}, policy=small_only())
    assert rig.ask()["trim"]["stopped"] == "finished"
    rig = make(["x"], [AGAIN] * 9, policy=large_only())
    assert rig.ask()["trim"]["stopped"] == "finished"


def cut(text):
    """A solution whose last step its token limit has cut."""
    return [*steps_of("Two and two."), *steps_of(text, end="length")]


def test_a_step_that_is_one_pattern_to_its_token_limit_is_a_loop_wherever_the_cuts_fall():
    text = " \\implies \\frac{8}{15} < \\frac{n}{n + k}" * 40
    for begin in range(45):
        found = loop_in(cut(text[begin : begin + 1000]), 3)
        assert found is not None
        assert found.startswith("the last step, cut at its token limit, is the same text 2")
    assert loop_in(steps_of(text), 3) is None, "no limit has cut it"
    assert loop_in(cut(f"First, {text}"), 3) is None, "it is more than the pattern"
    assert loop_in([], 3) is None


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("0 & " * 15, False),
        ("0 & " * 40, True),
        ("0" * 59, False),
        ("0" * 61, True),
        (AGAIN * 3, False),
        (AGAIN * 4, True),
        ("", False),
    ],
)
def test_a_cut_row_of_a_table_is_a_loop_only_if_it_is_long(text, loops):
    assert (loop_in(cut(text), 3) is not None) is loops


@given(st.text(alphabet="ab ", min_size=1, max_size=9), st.integers(1, 80), st.integers(1, 5))
def test_a_cut_pattern_is_a_loop_once_it_repeats_as_often_as_equal_steps_would(pattern, times, most):
    text = (pattern * times).strip()
    found = loop_in(cut(text), most)
    shortest = next((p for p in range(1, len(text) + 1) if text == (text[:p] * len(text))[: len(text)]), 0)
    needed = max(most, -(-most * 20 // max(shortest, 1)))
    assert (found is not None) == (shortest > 0 and len(text) // shortest > needed)


def test_a_model_that_repeats_within_a_cut_step_ends_the_run(make):
    rig = make(
        writes("Two and two.", "and so on, " * 100), scores={}, policy=small_only(), max_step_tokens=60
    )
    summary = rig.ask()["trim"]
    assert (summary["stopped"], summary["steps"]["small"]) == ("loop", 2)
    assert summary["notes"] == [
        "the run has ended in a loop: the last step, cut at its token limit, is the same text 19 times"
    ]


def test_a_text_that_the_limit_of_the_solution_cuts_ends_for_that_limit(make):
    rig = make(["x"], writes("and so on, " * 999), policy=large_only(), max_steps=4, max_step_tokens=60)
    assert rig.ask()["trim"]["stopped"] == "max_steps"


def test_a_step_of_a_fixed_number_of_tokens_is_no_loop_by_itself(make):
    rows = {"segmentation": {"type": "tokens", "tokens": 60}, "max_steps": 2}
    rig = make(writes("0 & " * 60), scores={}, policy=small_only(), **rows)
    assert rig.ask()["trim"]["stopped"] == "max_steps"


def test_an_answer_boxed_again_and_again_ends_the_run(make):
    texts = [f"{number}. So it is \\boxed{{4}}." for number in range(20)]
    rig = make(writes(*texts), writes("x"), scores={}, policy=small_only())
    summary = rig.ask()["trim"]
    assert (summary["stopped"], summary["answer"], summary["steps"]["small"]) == ("loop", "4", 10)
    assert summary["notes"] == ["the run has ended in a loop: 10 steps in a row box the answer 4"]


def test_questions_that_have_the_same_answer_are_no_loop():
    texts = [f"Question {number}: it is \\boxed{{A}}." for number in range(1, 10)]
    assert loop_in(steps_of(*texts), 3) is None
    assert (
        loop_in(steps_of(*texts, "Question 10: it is \\boxed{A}."), 3) == "10 steps in a row box the answer A"
    )


def test_the_repeats_of_a_loop_are_a_setting(make):
    def stopped(**settings):
        summary = make(writes(AGAIN), writes("x"), scores={}, policy=small_only(), **settings).ask()["trim"]
        return summary["stopped"], summary["steps"]["small"]

    assert stopped(max_repeats=1) == ("loop", 2)
    assert stopped(max_repeats=7) == ("loop", 8)
    assert stopped(max_repeats=None) == ("max_steps", 32)
    with pytest.raises(SettingsError, match="max_repeats"):
        make(max_repeats=0)
    data = {"small": {"type": "example"}, "large": {"type": "example"}, "policy": "small_only"}
    assert make_config(data).settings.max_repeats == 3
    assert make_config({**data, "settings": {"max_repeats": None}}).settings.max_repeats is None
    with pytest.raises(SettingsError, match=r"settings\.max_repeats"):
        make_config({**data, "settings": {"max_repeats": 0}})


@pytest.mark.parametrize(
    "steps",
    [
        steps_of(AGAIN, AGAIN, AGAIN),
        steps_of(AGAIN, OTHER, AGAIN, AGAIN, OTHER, AGAIN, OTHER, AGAIN),
        steps_of(*[AGAIN] * 5, OTHER),
        steps_of(*["end"] * 10),
        steps_of(*["| 0 | 0 |"] * 6),
        steps_of(*["x += 1", "y += 1"] * 4),
        steps_of("It is \\boxed{4}.", "So \\boxed{4}.", "Thus \\boxed{4}."),
        steps_of(*["It is \\boxed{4}.", "Let me check.", "Yes, \\boxed{4}.", "And again?"] * 2),
        steps_of("\\boxed{1}", "\\boxed{2}", "\\boxed{3}", "\\boxed{4}", "\\boxed{5}"),
        steps_of(
            *[f"{word} \\boxed{{4}}?" for word in ("Is it", "Or", "Then", "But", "So")], part="reasoning"
        ),
        [],
    ],
)
def test_drafts_that_do_not_repeat_at_their_end_are_no_loop(steps):
    assert loop_in(steps, 3) is None


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (steps_of(*[AGAIN, f" {AGAIN}\n"] * 2), "the last step was written 4 times word for word"),
        (steps_of("One.", *[AGAIN, OTHER] * 4), "the last 2 steps were written 4 times word for word"),
        (steps_of(*["end"] * 21), "the last step was written 21 times word for word"),
        (steps_of(*[AGAIN] * 4, part="reasoning"), "the last step was written 4 times word for word"),
    ],
)
def test_drafts_that_repeat_often_enough_are_a_loop_and_say_how_often(steps, expected):
    assert loop_in(steps, 3) == expected


words = st.text("abc \\boxed{}12", max_size=40)


@given(st.lists(words, max_size=12, unique_by=str.strip), st.integers(1, 4))
def test_drafts_that_never_come_again_are_a_loop_only_by_their_answer(texts, max_repeats):
    steps = steps_of(*texts)
    assert loop_in(steps_of(*texts, part="reasoning"), max_repeats) is None
    assert (loop_in(steps, max_repeats) or "in a row box the answer").count("in a row box the answer") == 1


@given(st.lists(words, max_size=6), st.lists(words, min_size=1, max_size=4), st.integers(1, 4))
def test_drafts_that_come_again_so_often_are_found_whatever_stands_before_them(before, block, max_repeats):
    block = [f"step {number} of those that come again {text}" for number, text in enumerate(block)]
    assert loop_in(steps_of(*before, *block * (max_repeats + 1), part="reasoning"), max_repeats)
    assert loop_in(steps_of(*before, *block * max_repeats, part="reasoning"), max_repeats) is None
