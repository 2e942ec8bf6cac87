"""From a writer's text to a draft, and from a draft to steps; no graph, no model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.adapters.responses import Reply
from trim_graph.routing.drafts import parse_draft, rejected_draft, split_into_steps
from trim_graph.routing.router import step_from_draft
from trim_graph.segmentation import (
    DelimiterSteps,
    Thinking,
    delimiter,
    join_steps,
    partial_text_counts,
    pattern,
    stop_arguments,
)
from trim_graph.settings import Settings
from trim_graph.state import Draft

PARAGRAPHS = delimiter("\n\n")
LINES = pattern(r"\n")
PIECES = st.sampled_from(["one", "two.", "3", " ", "\n", "\n\n", ".", "}.", "- ", "<think>", "</think>", ""])


def reply(
    text: str, end: str = "delimiter", *, tokens: int = 12, separator: str | None = None, **more: Any
) -> Reply:
    given: dict[str, Any] = {
        "text": text,
        "end": end,
        "separator": ("\n\n" if end == "delimiter" else "") if separator is None else separator,
        "model": "small-1",
        "input_tokens": 5,
        "cached_tokens": 0,
        "output_tokens": tokens,
        "mean_token_probability": 0.9,
        **more,
    }
    return Reply(**given)


def parsed(
    said: Reply,
    *,
    partial_text: str = "",
    way: Any = PARAGRAPHS,
    previous: Any = None,
    partial_tokens: int = 0,
    **more: Any,
) -> Any:
    return parse_draft(
        said,
        writer="small",
        partial_text=partial_text,
        segmentation=way,
        settings=Settings(**more),
        previous=previous,
        partial_tokens=partial_tokens,
    )


def test_text_of_earlier_attempts_counts_among_the_tokens_of_the_step():
    step = parsed(reply("two", tokens=4), partial_text="---\n\n", partial_tokens=3)
    assert (step["text"], step["tokens"]) == ("---\n\ntwo", 7)


def whole(text: str, end: str = "eos", **more: Any) -> Draft:
    given: dict[str, Any] = {
        "text": text,
        "writer": "large",
        "model": "large-1",
        "tokens": 40,
        "mean_token_probability": None,
        "end": end,
        "score": None,
        **more,
    }
    return Draft(**given)  # type: ignore[typeddict-item]


def split(draft: Draft, way: Any = PARAGRAPHS, thinking: Any = None) -> list[Any]:
    return list(split_into_steps(step_from_draft(draft), way, delimiter="\n\n", thinking=thinking))


# From an answer to a draft


def test_an_answer_that_ended_at_the_delimiter_is_a_draft_as_it_is():
    assert parsed(reply("one")) == {
        "text": "one",
        "writer": "small",
        "model": "small-1",
        "tokens": 12,
        "mean_token_probability": 0.9,
        "end": "delimiter",
        "score": None,
    }


@pytest.mark.parametrize("end", ["eos", "length"])
def test_an_answer_that_ended_otherwise_keeps_its_end(end):
    assert parsed(reply("one", end))["end"] == end


@pytest.mark.parametrize("text", ["", " ", "\n", "...", "<p>", "---"])
def test_an_answer_without_a_word_is_no_draft(text):
    assert parsed(reply(text)) is None


def test_text_written_before_joins_the_answer():
    assert parsed(reply("one"), partial_text="- ")["text"] == "- one"


def test_a_separator_that_is_not_the_delimiter_is_kept_with_the_draft():
    assert parsed(reply("one", separator="\n---\n"))["separator"] == "\n---\n"
    assert "separator" not in parsed(reply("one"))


@pytest.mark.parametrize(
    ("text", "end", "found"),
    [
        ("one\ntwo", "length", ("one", "delimiter", "\n", 6)),
        ("one\ntwo", "eos", ("one", "delimiter", "\n", 6)),
        ("one", "eos", ("one", "eos", None, 12)),
    ],
)
def test_an_answer_that_goes_on_behind_a_step_is_cut_and_its_tokens_shared(text, end, found):
    draft = parsed(reply(text, end), way=LINES)
    assert (draft["text"], draft["end"], draft.get("separator"), draft["tokens"]) == found


def test_an_answer_to_the_end_is_not_cut():
    assert parsed(reply("one\n\ntwo", "eos"), way=None)["text"] == "one\n\ntwo"


@pytest.mark.parametrize(
    ("end", "previous_end", "kept"),
    [("eos", "length", True), ("eos", "delimiter", False), ("length", "length", False)],
)
def test_punctuation_that_ends_a_cut_step_is_a_draft(end, previous_end, kept):
    draft = parsed(reply("}.", end), previous=whole("boxed{4", previous_end))
    assert (draft is not None) == kept


@pytest.mark.parametrize(
    ("said", "part"),
    [
        (reply("<think>hm"), "reasoning"),
        (reply("hm", starts_in_reasoning=True), "reasoning"),
        (reply("plain"), None),
    ],
)
def test_a_first_draft_belongs_to_the_reasoning_where_it_was_opened(said, part):
    assert parsed(said).get("part") == part


def test_a_reasoning_that_closes_within_an_answer_ends_the_draft():
    draft = parsed(reply("<think>hm</think>so it is", "eos"))
    assert (draft["text"], draft["separator"], draft["part"]) == ("<think>hm", "</think>", "reasoning")


def test_without_thinking_the_marks_are_text():
    draft = parsed(reply("<think>hm</think>so it is", "eos"), thinking=None)
    assert draft["text"] == "<think>hm</think>so it is"
    assert "part" not in draft


@given(
    st.lists(PIECES).map("".join),
    st.sampled_from(["eos", "length", "delimiter"]),
    st.sampled_from([PARAGRAPHS, LINES]),
)
def test_a_draft_begins_the_answer_holds_no_more_tokens_and_ends_once(text, end, way):
    draft = parsed(reply(text, end), way=way, partial_text="- ")
    if draft is not None:
        assert ("- " + text).startswith(draft["text"])
        assert 0 <= draft["tokens"] <= 12
        assert draft["end"] in (end, "delimiter")


# Where an answer is to stop


def test_an_answer_stops_at_the_delimiter_and_where_the_reasoning_may_close():
    def stops(way: Any, previous: Any) -> Any:
        found = stop_arguments(way, Thinking(), previous, partial_text="", takes_stop_when=True)
        return found.get("stop")

    assert stops(PARAGRAPHS, whole("one", "delimiter")) == ["\n\n"]
    assert stops(PARAGRAPHS, None) == ["\n\n", "</think>"]
    assert stops(PARAGRAPHS, whole("<think>hm", "delimiter", part="reasoning")) == ["\n\n", "</think>"]
    assert stops(LINES, whole("one", "delimiter")) is None


def test_a_watched_answer_stops_at_the_end_of_its_step_with_what_was_written_before():
    found = stop_arguments(LINES, None, None, partial_text="one", takes_stop_when=True)["stop_when"]
    assert (found("\ntwo"), found(" more")) == (True, False)
    assert stop_arguments(LINES, None, None, partial_text="one", takes_stop_when=False) == {}


@pytest.mark.parametrize(
    ("previous", "partial_text", "counts"),
    [
        (None, " \n", False),
        (None, "- ", True),
        (whole("one", "delimiter"), "\n", False),
        (whole("one", "length"), "\n", True),
        (whole("one", "delimiter", separator="</think>"), "\n", True),
    ],
)
def test_blank_text_counts_only_where_no_blank_separator_stands_before_it(previous, partial_text, counts):
    assert partial_text_counts(previous, partial_text) == counts


# From a draft to steps


def test_a_text_to_the_end_is_cut_at_delimiters_and_only_its_last_step_has_its_end():
    steps = split(whole("one\n\ntwo\n\nthree"))
    assert [(one["text"], one["end"]) for one in steps] == [
        ("one", "delimiter"),
        ("two", "delimiter"),
        ("three", "eos"),
    ]
    assert all("score" not in one for one in steps)


def test_a_text_cut_right_behind_a_delimiter_has_ended_its_last_step():
    assert [one["end"] for one in split(whole("one\n\ntwo\n\n", "length"))] == ["delimiter", "delimiter"]
    assert [one["end"] for one in split(whole("one\n\ntwo", "length"))] == ["delimiter", "length"]


def test_a_text_that_holds_no_step_stays_whole():
    assert [one["text"] for one in split(whole("..."))] == ["..."]


def test_a_separator_that_is_not_the_delimiter_is_kept_with_each_step():
    assert [one.get("separator") for one in split(whole("one\ntwo"), LINES)] == ["\n", None]


def test_a_reasoning_and_its_answer_are_two_steps_of_their_parts():
    steps = split(whole("<think>hm\n\nso</think>It is 4.", part="reasoning"), thinking=Thinking())
    assert [(one["text"], one["part"], one.get("separator")) for one in steps] == [
        ("<think>hm", "reasoning", None),
        ("so", "reasoning", "</think>"),
        ("It is 4.", "answer", None),
    ]


@given(st.lists(PIECES).map("".join), st.sampled_from(["eos", "length"]), st.integers(0, 100), st.booleans())
def test_drafts_of_a_text_share_out_its_tokens_exactly_and_join_to_its_words(text, end, tokens, thinks):
    draft = parsed(reply(text, end, tokens=tokens), way=None, thinking=Thinking() if thinks else None)
    if draft is None:
        return
    steps = split(draft, DelimiterSteps(), Thinking() if thinks else None)
    assert sum(one["tokens"] for one in steps) == tokens
    assert join_steps(steps).split() == text.split() or "".join(join_steps(steps).split()) == "".join(
        text.split()
    )


# What the large model was to replace


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ([], False),
        ([{"step": 1, "decision": "regenerate", "score": 0.2, "discarded": {"text": "x"}}], True),
        ([{"step": 0, "decision": "regenerate", "score": 0.2, "discarded": {"text": "x"}}], False),
        ([{"step": 1, "decision": "accept", "score": 0.2}], False),
    ],
)
def test_a_draft_was_rejected_where_the_last_decision_discarded_one_at_this_step(records, found):
    draft = rejected_draft(records, 1)
    assert draft == ({"text": "x", "score": 0.2} if found else None)
