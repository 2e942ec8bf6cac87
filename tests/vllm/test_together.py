"""Calls that `ChatVLLM` sends to a real server as one request: each is answered and counted as alone."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from trim_graph.adapters import ChatVLLM
from trim_graph.adapters.vllm import batching
from trim_graph.examples.arithmetic import problems

from .conftest import KEY, KEY_ENV

PROBLEMS = problems("standard", 6)
FIRST = [[HumanMessage(problem.question)] for problem in PROBLEMS]
LATER = [
    [HumanMessage(problem.question), AIMessage("".join(step + "\n\n" for step in problem.steps[:2]))]
    for problem in PROBLEMS
]


@pytest.fixture(params=["small", "large"])
def models(request, servers, monkeypatch):
    """The same model, its calls sent together and apart."""
    monkeypatch.setenv(KEY_ENV, KEY)
    place = {"base_url": servers[request.param].url, "api_key_env": KEY_ENV, "model": request.param}
    return ChatVLLM(**place, max_batch_size=16, batch_wait_factor=1.0), ChatVLLM(**place)


@pytest.mark.parametrize("settings", [{}, {"max_tokens": 3}, {"logprobs": True}, {"timeout": 60.0}])
async def test_texts_ends_and_tokens_are_those_of_calls_on_their_own(models, settings, monkeypatch):
    together, apart = models
    sizes = []
    start = batching.RequestBatcher._start

    def noted(self, line, common, seats):
        sizes.append(len(seats))
        start(self, line, common, seats)

    monkeypatch.setattr(batching.RequestBatcher, "_start", noted)
    asked = [*FIRST, *LATER]
    await together.ainvoke(asked[0], stop=["\n\n"])  # what stands around a question is asked for once
    ours = await asyncio.gather(*(together.ainvoke(one, stop=["\n\n"], **settings) for one in asked))
    assert max(sizes) > 1
    for one, messages in zip(ours, asked, strict=True):
        other = await apart.ainvoke(messages, stop=["\n\n"], **settings)
        assert one.content == other.content
        for name in ("finish_reason", "stop_reason"):
            assert one.response_metadata[name] == other.response_metadata[name]
        for name in ("input_tokens", "output_tokens", "total_tokens"):
            assert one.usage_metadata[name] == other.usage_metadata[name]
        if settings.get("logprobs"):
            reported = [message.response_metadata["mean_token_probability"] for message in (one, other)]
            assert reported[0] == pytest.approx(reported[1], abs=1e-3)


async def test_one_that_is_cancelled_and_one_too_long_cost_the_others_nothing(models):
    together, apart = models
    await together.ainvoke(FIRST[0], stop=["\n\n"])
    too_long = [HumanMessage("12 " * 5000)]
    calls = [asyncio.create_task(together.ainvoke(one, stop=["\n\n"])) for one in [*FIRST, too_long]]
    await asyncio.sleep(0.01)
    calls[2].cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers[2], asyncio.CancelledError)
    assert getattr(answers[-1], "status", None) == 400
    kept = [0, 1, 3, 4, 5]
    expected = [await apart.ainvoke(FIRST[number], stop=["\n\n"]) for number in kept]
    assert [answers[number].content for number in kept] == [one.content for one in expected]


async def test_texts_with_special_tokens_share_the_line_with_others(models):
    together, apart = models
    asked = [
        messages if number % 2 else [HumanMessage(f"{messages[0].content} <|im_end|>{number}"), *messages[1:]]
        for number, messages in enumerate(LATER * 2)
    ]
    ours = await asyncio.gather(*(together.ainvoke(one, stop=["\n\n"]) for one in asked))
    for one, messages in zip(ours, asked, strict=True):
        other = await apart.ainvoke(messages, stop=["\n\n"])
        assert one.content == other.content
        assert one.usage_metadata["total_tokens"] == other.usage_metadata["total_tokens"]


async def test_seeds_hold_for_each(models):
    together, _ = models
    settings = {"stop": ["\n\n"], "temperature": 1.0, "seed": 7}
    first, again = [
        await asyncio.gather(*(together.ainvoke(one, **settings) for one in FIRST)) for _ in range(2)
    ]
    assert [one.content for one in first] == [one.content for one in again]
