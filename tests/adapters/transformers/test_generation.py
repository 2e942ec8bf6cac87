"""Tests of batched generation: how tokens are drawn, and with what a batch is padded."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage

from tests.adapters.transformers.conftest import QUESTION
from trim_graph.adapters.transformers.generation import _draw, _end_ids, _pad_id


def test_a_seed_repeats_and_another_differs(noisy):
    def draw(seed, n=1):
        chats = [[HumanMessage(f"{i}?")] for i in range(n)]
        return [a.content for a in noisy.batch(chats, temperature=1.0, seed=seed)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(1, n=5)[0] == draw(1)[0]


def test_without_a_seed_draws_differ(noisy):
    hot = noisy.model_copy(update={"temperature": 1.5})
    assert len({hot.invoke(QUESTION).content for _ in range(4)}) > 1


def test_a_tiny_top_p_is_greedy(noisy):
    assert noisy.invoke(QUESTION, temperature=2.0, top_p=1e-6).content == noisy.invoke(QUESTION).content


def test_top_p_leaves_the_likeliest_tokens():
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = {int(_draw(logits, 1.0, 0.6, generator)) for _ in range(60)}
    assert drawn == {1, 2}


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-45, 5e-324])
def test_the_least_temperatures_are_greedy(noisy, temperature):
    greedy = noisy.invoke(QUESTION).content
    assert noisy.invoke(QUESTION, temperature=temperature, seed=1).content == greedy


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12),
    st.floats(0.05, 5),
    st.floats(0.01, 1),
    st.integers(0, 99),
)
def test_a_drawn_token_has_fewer_than_top_p_before_it(logits, temperature, top_p, seed):
    given = torch.tensor(logits)
    drawn = int(_draw(given, temperature, top_p, torch.Generator().manual_seed(seed)))
    probabilities = torch.softmax(given.double() / temperature, dim=-1)
    likelier = math.fsum(p for p in probabilities.tolist() if p > probabilities[drawn] * (1 + 1e-5))
    assert likelier < top_p + 1e-5
    assert probabilities[drawn] > 0


def test_tokens_are_drawn_as_often_as_the_temperature_says():
    logits, generator = torch.tensor([0.2, 0.5, 0.3]).log(), torch.Generator().manual_seed(1)
    for temperature in (1.0, 0.5):
        counts = torch.zeros(3)
        for _ in range(3000):
            counts[_draw(logits, temperature, 1.0, generator)] += 1
        expected = torch.softmax(logits / temperature, dim=-1)
        assert (counts / 3000).tolist() == pytest.approx(expected.tolist(), abs=0.035)


def test_any_token_pads_where_the_tokenizer_names_none():
    class Nameless:
        pad_token_id = None

    assert _pad_id(Nameless(), frozenset({7, 5})) == 5
    assert _pad_id(Nameless(), frozenset()) == 0


def test_a_tokenizers_own_padding_token_is_taken():
    class Named:
        pad_token_id = 3

    assert _pad_id(Named(), frozenset({7, 5})) == 3


def test_every_token_that_a_source_names_ends_an_answer():
    class Source:
        def __init__(self, ids=None, inner=None):
            self.eos_token_id, self._inner = ids, inner

        def get_text_config(self):
            return self._inner

    class Model:
        generation_config = Source([1, 2])
        config = Source(99, inner=Source(3))

    assert _end_ids(Model(), Source(4)) == {1, 2, 3, 4}
    assert _end_ids(Model(), Source()) == {1, 2, 3}
