"""Tests of recorded continuations: what is found again, what counts for a prefix, and what is refused."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.config import Parts, example_config
from trim_graph.errors import InputError, SettingsError
from trim_graph.evaluation import Question
from trim_graph.evaluation.runner import Models
from trim_graph.testing import ScriptedChatModel
from trim_graph.training.continuations import (
    START,
    ContinuationRequest,
    Continuations,
    ContinueSolutions,
    Share,
    extended,
    prefixes,
)

DELIMITER = "\n\n"
texts = st.text(st.sampled_from(["a", "b", "\n", " ", "\ud800"]), max_size=3)


def a_step(text, **more):
    plain = {"text": text, "writer": "small", "model": "tiny", "tokens": 1, "mean_token_probability": None}
    return {**plain, "end": "delimiter", **more}


def a_record(written, *, prefix=START, correct=True, **more):
    return {
        "index": -1,
        "question": 0,
        "id": "q",
        "prefix": prefix,
        "writer": "small",
        "sample": 0,
        "one_step": False,
        "seed": 0,
        "steps": [a_step(text) for text in written],
        "correct": correct,
        "answer": None,
        "stopped": "finished",
        "tokens": {"small": 1, "large": 0},
        "prompt_tokens": {"small": 1, "large": 0},
        "calls": 1,
        "seconds": 0.0,
        "error": None,
        **more,
    }


@pytest.fixture
def opened(tmp_path):
    journals = []

    def open_again(**options):
        if journals:
            journals[-1].__exit__(None, None, None)
        journals.append(
            Continuations(tmp_path / "runs.jsonl", {"of": "test"}, delimiter=DELIMITER, **options)
        )
        return journals[-1]

    yield open_again
    journals[-1].__exit__(None, None, None)


def digest(*written):
    return prefixes([a_step(text) for text in written], DELIMITER)[-1]


# Digests of prefixes


@given(st.lists(texts, max_size=4), st.lists(texts, max_size=4))
def test_two_prefixes_have_one_digest_only_if_their_steps_are_the_same(one, other):
    assert (digest(*one) == digest(*other)) == (one == other)


@given(st.lists(texts, max_size=4))
def test_the_digests_of_a_solution_begin_with_that_of_no_steps_and_extend_each_other(written):
    steps = [a_step(text) for text in written]
    found = prefixes(steps, DELIMITER)
    assert found[0] == START
    assert [extended(before, step, DELIMITER) for before, step in zip(found, steps, strict=False)] == found[
        1:
    ]
    for cut in range(len(steps) + 1):
        assert prefixes(steps[cut:], DELIMITER, found[cut]) == found[cut:]


def test_what_follows_a_step_is_part_of_its_digest():
    step = a_step("a")
    cut = a_step("a", end="length")
    own = a_step("a", separator="\n")
    found = [extended(START, *given) for given in ((step, "\n\n"), (step, "\n"), (cut, "\n"), (own, " "))]
    assert len(set(found)) == 3
    assert found[1] == found[3]


# What counts for a prefix


def test_a_rollout_counts_for_each_prefix_that_it_passes(opened):
    found = opened()
    found.keep(a_record(["a", "b", "right"]))
    found.keep(a_record(["a", "wrong"], sample=1, correct=False))
    assert found.share(0, START) == Share(1, 2)
    assert found.share(0, digest("a")) == Share(1, 2)
    assert found.share(0, digest("a", "b")) == Share(1, 1)
    assert found.share(0, digest("a", "b", "right")) == Share(0, 0)  # nothing was drawn behind the end
    assert found.share(1, START) == Share(0, 0)
    assert found.share(0, START).value == 0.5


@pytest.mark.parametrize(
    "other",
    [{"writer": "large"}, {"one_step": True, "correct": None}, {"error": "OSError: gone", "correct": None}],
    ids=["large model", "one step", "failed"],
)
def test_only_whole_continuations_of_the_small_model_count(opened, other):
    found = opened()
    found.keep(a_record(["a", "right"], **other))
    assert found.share(0, START) == Share(0, 0)


def test_an_ungraded_continuation_counts_as_not_right(opened):
    found = opened()
    found.keep(a_record(["a"], correct=None))
    assert found.share(0, START) == Share(0, 1)


# What is found again


def test_what_was_recorded_is_found_by_question_prefix_writer_and_sample_also_when_it_is_opened_again(opened):
    found = opened()
    for sample in (2, 0):
        found.keep(a_record([f"{sample}"], sample=sample))
    found.keep(a_record(["large"], writer="large", one_step=True, prefix=digest("a"), sample=1))
    for again in (found, opened()):
        assert [one["sample"] for one in again.made(0, START, "small")] == [0, 2]
        assert list(again.missing(0, START, "small", 4)) == [1, 3]
        assert list(again.further(0, START, 2)) == [3, 4]
        assert list(again.further(0, digest("a"), 2)) == [0, 1]
        assert again.made(0, digest("a"), "large") == []
        assert list(again.missing(0, digest("a"), "large", 2, one_step=True)) == [0]
        assert [one["index"] for one in again.records] == [0, 1, 2]


def test_a_failure_is_kept_until_it_is_tried_again(opened):
    found = opened()
    found.keep(a_record([], error="OSError: gone", correct=None))
    found.keep(a_record(["right"], question=1, id="r"))
    assert found.failed == {0: "OSError: gone"}
    assert list(opened().missing(0, START, "small", 1)) == []
    again = opened(retry_errors=True)
    assert again.failed == {}
    assert list(again.missing(0, START, "small", 1)) == [0]
    assert [one["id"] for one in again.records] == ["r"]
    again.keep(a_record(["right"]))
    assert [one["index"] for one in again.records] == [1, 2]


@pytest.mark.parametrize(
    ("wrong", "key"), [({"steps": "none"}, "steps"), ({"writer": "human"}, "writer"), ({"seed": "x"}, "seed")]
)
def test_a_record_that_is_no_continuation_is_refused_by_name(opened, tmp_path, wrong, key):
    opened().keep(a_record(["right"]))
    opened().journal.close()
    file = tmp_path / "runs.jsonl"
    file.write_text(json.dumps({**json.loads(file.read_text()), **wrong}) + "\n")
    with pytest.raises(InputError, match=rf"runs\.jsonl, line 1: no continuation: {key}"):
        opened()


def test_a_journal_of_other_settings_is_refused_and_left_as_it_was(opened, tmp_path):
    opened().keep(a_record(["right"]))
    before = (tmp_path / "runs.jsonl").read_text()
    opened().journal.close()
    with pytest.raises(SettingsError, match="of"):
        Continuations(tmp_path / "runs.jsonl", {"of": "another"}, delimiter=DELIMITER)
    assert (tmp_path / "runs.jsonl").read_text() == before


# Continuations as they are made


def made(request, small=("a", "right"), large=("L", "M", "right")):
    def after(written):
        def answer(prefix):
            rest = [step for step in written if step not in prefix]
            return DELIMITER.join(rest)

        return ScriptedChatModel(script=answer)

    models = Models(example_config({"policy": "small_only"}), Parts(after(small), after(large), None), None)

    async def work():
        return await ContinueSolutions(seed=5).setup(models)(request)

    return asyncio.run(work())


def request(*written, grader=lambda text: text.endswith("right"), **more):
    question = Question("Which way?", grader, "right", id="q")
    steps = tuple(a_step(text) for text in written)
    return ContinuationRequest(
        0, question, steps, digest(*written), **{"writer": "small", "sample": 0, **more}
    )


def test_a_continuation_holds_the_new_steps_alone_and_the_whole_solution_is_graded():
    record = made(request("a", sample=2))
    assert [step["text"] for step in record["steps"]] == ["right"]
    assert (record["correct"], record["error"], record["seed"]) == (True, None, 7)
    assert record["prefix"] == digest("a")
    assert record["tokens"]["small"] > 0 == record["tokens"]["large"]


def test_of_one_step_only_the_step_is_written_and_it_is_graded_where_it_ends_the_solution():
    record = made(request("a", writer="large", one_step=True))
    assert [(step["text"], step["writer"]) for step in record["steps"]] == [("L", "large")]
    assert record["correct"] is None
    last = made(request("a", "L", "M", writer="large", one_step=True))
    assert [step["text"] for step in last["steps"]] == ["right"]
    assert last["correct"] is True


def test_a_continuation_that_fails_says_why_and_raises_nothing():
    def broken(text):
        raise OSError("no grader")

    record = made(request(grader=broken))
    assert "no grader" in record["error"]
    assert (record["steps"], record["correct"]) == ([], None)
