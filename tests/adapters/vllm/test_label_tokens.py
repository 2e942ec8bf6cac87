"""Tests of label tokens: which tokens spell a label, and the probability of each label in an answer."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_graph.adapters.vllm.label_tokens import find_label_ids, label_metadata, label_request, name_of

VOCABULARY = {":": 0, "7": 1, " 7": 2, "y": 3, "es": 4, " yes": 5, " ": 6, "no": 7}


async def tokenize(text):
    """The longest token first, as it happens to be for these texts."""
    ids = []
    while text:
        piece = max((one for one in VOCABULARY if text.startswith(one)), key=len)
        ids.append(VOCABULARY[piece])
        text = text.removeprefix(piece)
    return ids


async def text_of(ids):
    return "".join(text for text, token in VOCABULARY.items() if token in ids)


async def test_a_label_is_one_token_alone_or_behind_a_space():
    assert await find_label_ids(["7"], tokenize, text_of) == {1: "7", 2: "7"}


async def test_a_label_of_several_tokens_counts_only_where_it_is_one():
    assert await find_label_ids(["yes"], tokenize, text_of) == {5: "yes"}


async def test_a_label_whose_space_is_a_token_of_its_own_has_one_token():
    assert await find_label_ids(["no"], tokenize, text_of) == {7: "no"}


async def test_a_label_that_no_token_spells_has_none():
    assert await find_label_ids(["es7"], tokenize, text_of) == {}


def test_labels_are_asked_for_only_where_there_are_tokens_and_log_probabilities():
    assert label_request({1: "7", 2: "7"}, 3) == {
        "logprob_token_ids": [1, 2],
        "return_tokens_as_token_ids": True,
    }
    assert label_request({}, 3) == label_request({1: "7"}, 0) == {}


def entry(chosen, top):
    named = [{"token": name_of(token), "logprob": math.log(p)} for token, p in top.items()]
    return {"token": name_of(chosen), "logprob": math.log(top[chosen]), "top_logprobs": named}


def test_the_tokens_of_a_label_are_added_up_and_the_chosen_one_is_counted_once():
    found = label_metadata([entry(1, {1: 0.5, 2: 0.25, 7: 0.125})], {1: "7", 2: "7", 7: "no"})
    assert found["label_probabilities"] == pytest.approx({"7": 0.75, "no": 0.125})
    assert found["label_tokens_exact"] is True


def test_the_chosen_token_counts_where_the_likeliest_do_not_include_it():
    answer = {**entry(1, {1: 0.25}), "top_logprobs": entry(2, {2: 0.5})["top_logprobs"]}
    assert label_metadata([answer], {1: "7", 2: "7"}) == {
        "label_probabilities": pytest.approx({"7": 0.75}),
        "label_tokens_exact": True,
    }


def test_a_token_that_is_not_reported_has_no_probability_and_the_answer_says_so():
    found = label_metadata([entry(7, {7: 0.5})], {1: "7", 7: "no"})
    assert found["label_probabilities"] == pytest.approx({"7": 0.0, "no": 0.5})
    assert found["label_tokens_exact"] is False


def test_only_the_first_token_of_an_answer_counts():
    found = label_metadata([entry(7, {7: 0.5}), entry(1, {1: 1.0})], {1: "7", 7: "no"})
    assert found["label_probabilities"] == pytest.approx({"7": 0.0, "no": 0.5})


def test_an_answer_without_log_probabilities_says_nothing():
    assert label_metadata([], {1: "7"}) == {}


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=8), st.data())
def test_probabilities_of_labels_are_those_of_all_their_tokens_together(weights, data):
    total = math.fsum(weights)
    top = {token: weight / total for token, weight in enumerate(weights)}
    ids = data.draw(st.dictionaries(st.sampled_from(sorted(top)), st.sampled_from("abc"), min_size=1))
    found = label_metadata([entry(data.draw(st.sampled_from(sorted(top))), top)], ids)
    for label in set(ids.values()):
        expected = math.fsum(top[token] for token, own in ids.items() if own == label)
        assert found["label_probabilities"][label] == pytest.approx(expected)
    assert found["label_tokens_exact"] is True
