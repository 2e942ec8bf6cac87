"""Tests of batched requests: waiting calls of `ChatVLLM` are sent as one, and stay apart in all else."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from langchain_core.messages import HumanMessage

from tests.adapters.recorded_server import RecordedServer, failed, usage
from trim_graph.adapters import ChatVLLM, ModelServerError
from trim_graph.adapters.vllm import client
from trim_graph.adapters.vllm.batching import AdaptiveWait


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(client, "_backoff", lambda state: 0.0)


@pytest.fixture
def connect(monkeypatch):
    """A function from a server's behaviour to the server and a model that sends calls together."""

    def make(*script, **settings):
        server = RecordedServer(*script)
        monkeypatch.setattr(client, "new_client", server.client)
        base_url = f"http://vllm{time.monotonic_ns()}.test:8000/v1"
        return server, ChatVLLM(**{"model": "m", "base_url": base_url, "max_batch_size": 8, **settings})

    return make


def event(index: int, text: str, written: int, *, finish: str | None = None, stop=None, with_usage=True):
    choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": stop}
    made = {"object": "text_completion", "model": "m", "choices": [choice]}
    return {**made, "usage": usage(100 + index, written)} if with_usage else made


def body_of(request: httpx.Request):
    body = json.loads(request.content)
    prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
    return body, prompts


class Stream(httpx.AsyncByteStream):
    """Events one by one; where a future stands for one, it is awaited; an exception breaks the stream."""

    def __init__(self, *events) -> None:
        self.events, self.closed = events, False

    async def __aiter__(self):
        for one in self.events:
            if isinstance(one, asyncio.Future):
                await one
                continue
            if isinstance(one, Exception):
                raise one
            yield f"data: {one if isinstance(one, str) else json.dumps(one)}\n\n".encode()

    async def aclose(self) -> None:
        self.closed = True


def echo(request: httpx.Request) -> httpx.Response:
    """Answers every prompt with its question, the last one first; the tokens are the place in the request."""
    _, prompts = body_of(request)
    events = []
    for index, prompt in reversed(list(enumerate(prompts))):
        asked = prompt.split("<user>")[1].split("</>")[0]
        events += [event(index, asked[0], 1), event(index, asked[1:], 2 + index, finish="stop", stop="\n\n")]
    total = {"model": "m", "choices": [], "usage": usage(999, 999, cached=7)}
    return httpx.Response(200, stream=Stream(*events, total, "[DONE]"))


async def ask(model: ChatVLLM, text: str, **settings):
    return await model.ainvoke([HumanMessage(text)], stop=["\n\n"], **settings)


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - of anything
            await asyncio.sleep(0)


async def warm(server: RecordedServer, model: ChatVLLM, *texts: str) -> None:
    """Asks what is asked once, so that the calls of a test wait at the same time."""
    for text in texts:
        await ask(model, text)
    server.requests.clear()


async def test_calls_that_wait_go_as_one_request_and_get_their_own_answers_and_tokens(connect):
    server, model = connect(echo)
    texts = [f"what is {number}" for number in range(5)]
    await warm(server, model, *texts)
    answers = await asyncio.gather(*(ask(model, text) for text in texts))
    assert [answer.content for answer in answers] == texts
    ((path, body),) = server.generations
    assert path == "/v1/completions"
    assert len(body["prompt"]) == 5
    for index, answer in enumerate(answers):
        assert answer.usage_metadata == {
            "input_tokens": 100 + index,
            "output_tokens": 2 + index,
            "total_tokens": 102 + 2 * index,
        }
        assert answer.response_metadata["stop_reason"] == "\n\n"


async def test_a_lone_call_reports_what_came_from_the_cache(connect):
    server, model = connect(echo)
    answer = await ask(model, "alone")
    assert answer.usage_metadata["input_token_details"] == {"cache_read": 7}
    assert isinstance(server.generations[0][1]["prompt"], str)


async def test_texts_and_token_ids_go_apart(connect):
    """A request takes one kind of prompts."""
    prompts: list[Any] = ["<user>a</>", [1, 2], "<user>b</>", [3]]

    def answer(request: httpx.Request) -> httpx.Response:
        given = json.loads(request.content)["prompt"]
        seen.append(given)
        ends = [event(index, str(one), 1, finish="stop") for index, one in enumerate(given)]
        return httpx.Response(200, stream=Stream(*ends, "[DONE]"))

    async def text_of(prompt: Any) -> str:
        found = [one async for one in line.events({"model": "m", "prompt": prompt}, seen=False)]
        return "".join(one["choices"][0]["text"] for one in found)

    seen: list[Any] = []
    _, model = connect(answer)
    (line,) = model._batchers.values()
    assert await asyncio.gather(*map(text_of, prompts)) == [str(prompt) for prompt in prompts]
    assert sorted(map(str, seen)) == ["['<user>a</>', '<user>b</>']", "[[1, 2], [3]]"]


async def test_calls_with_other_settings_go_apart(connect):
    server, model = connect(echo)
    await warm(server, model, "aa", "bb", "cc", "dd")
    await asyncio.gather(
        ask(model, "aa", max_tokens=5),
        ask(model, "bb", max_tokens=6),
        ask(model, "cc", max_tokens=5, seed=1),
        ask(model, "dd", max_tokens=5),
    )
    sent = [
        (body["max_tokens"], body.get("seed"), isinstance(body["prompt"], list))
        for _, body in server.generations
    ]
    assert sorted(sent, key=str) == [(5, 1, False), (5, None, True), (6, None, False)]


async def test_nobody_waits_for_the_slowest(connect):
    held: list[asyncio.Future] = []

    def slow(request):
        _, prompts = body_of(request)
        if len(prompts) == 1:
            return echo(request)
        held.append(asyncio.get_running_loop().create_future())
        first, last = event(0, "quick", 1, finish="stop"), event(1, "slow", 9, finish="stop")
        return httpx.Response(200, stream=Stream(first, held[0], last, "[DONE]"))

    server, model = connect(slow)
    await warm(server, model, "aa", "bb")
    tasks = [asyncio.create_task(ask(model, text)) for text in ("aa", "bb")]
    done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result().content for task in done] == ["quick"]
    held[0].set_result(None)
    assert (await waiting.pop()).content == "slow"


async def test_cancelling_one_leaves_the_others_alone_and_cancelling_all_ends_the_request(connect):
    streams, going = [], []

    def hanging(request):
        _, prompts = body_of(request)
        if len(prompts) == 1:
            return echo(request)
        going.append(asyncio.get_running_loop().create_future())
        streams.append(Stream(going[-1], *(event(i, "so", 2, finish="stop") for i in range(3)), "[DONE]"))
        return httpx.Response(200, stream=streams[-1])

    server, model = connect(hanging)
    await warm(server, model, "aa", "bb", "cc")

    async def begun():
        count = len(streams)
        tasks = [asyncio.create_task(ask(model, text)) for text in ("aa", "bb", "cc")]
        await until(lambda: len(streams) > count)
        return tasks

    tasks = await begun()
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])
    assert not streams[0].closed
    going[0].set_result(None)
    assert [answer.content for answer in await asyncio.gather(tasks[0], tasks[2])] == ["so", "so"]
    tasks = await begun()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await until(lambda: streams[1].closed)


async def test_a_bad_prompt_does_not_cost_the_others_their_answers(connect):
    def choosy(request):
        _, prompts = body_of(request)
        return failed(400, "too long") if any("bad" in prompt for prompt in prompts) else echo(request)

    server, model = connect(choosy)
    await warm(server, model, "aa", "bb")
    answers = await asyncio.gather(
        *(ask(model, text) for text in ("aa", "bad", "bb")), return_exceptions=True
    )
    assert [getattr(answer, "content", None) for answer in answers] == ["aa", None, "bb"]
    assert isinstance(answers[1], ModelServerError)
    assert answers[1].status == 400


async def test_what_a_broken_request_had_not_finished_is_tried_again_and_each_call_counts_its_own_loss(
    connect,
):
    broken = []

    def breaks_once(request):
        _, prompts = body_of(request)
        if len(prompts) == 1 or broken:
            return echo(request)
        broken.append(prompts)
        # Unseen answers come in two events: text behind the first token has unknown tokens.
        whole, part = event(0, "whole", 4, finish="stop"), event(1, "p", 1)
        return httpx.Response(200, stream=Stream(whole, part, httpx.ReadError("gone")))

    server, model = connect(breaks_once)
    await warm(server, model, "aa", "bb", "cc")
    answers = await asyncio.gather(*(ask(model, text) for text in ("aa", "bb", "cc")))
    assert [answer.content for answer in answers] == ["whole", "bb", "cc"]
    lost = [answer.response_metadata.get("failed_attempts") for answer in answers]
    assert lost[0] is None
    assert (lost[1]["input_tokens"], lost[1]["output_tokens"], lost[1]["unknown"]) == (0, 0, 1)
    assert (lost[2]["output_tokens"], lost[2]["unknown"]) == (0, 1)


async def test_a_broken_request_that_was_seen_reports_what_was_written(connect):
    broken = []

    def breaks_once(request):
        _, prompts = body_of(request)
        if len(prompts) == 1 or broken:
            return echo(request)
        broken.append(prompts)
        return httpx.Response(200, stream=Stream(event(0, "par", 3), httpx.ReadError("gone")))

    server, model = connect(breaks_once)
    await warm(server, model, "aa", "bb")
    answers = await asyncio.gather(*(ask(model, text, timeout=60.0) for text in ("aa", "bb")))
    lost = [answer.response_metadata["failed_attempts"] for answer in answers]
    assert [(one["output_tokens"], one["unknown"]) for one in lost] == [(3, 0), (0, 1)]


async def test_a_refusal_in_the_middle_gives_nobody_a_part_twice(connect):
    def refuses_late(request):
        _, prompts = body_of(request)
        if len(prompts) == 1:
            return echo(request)
        refused = {"error": {"message": "a bad number", "code": 400}}
        return httpx.Response(200, stream=Stream(event(0, "par", 3), refused))

    server, model = connect(refuses_late)
    await warm(server, model, "aa", "bb")
    answers = await asyncio.gather(*(ask(model, text) for text in ("aa", "bb")))
    assert [answer.content for answer in answers] == ["aa", "bb"]
    assert answers[0].response_metadata["failed_attempts"]["unknown"] == 1


async def test_what_may_end_early_goes_by_itself(connect):
    server, model = connect(echo)
    await warm(server, model, "aa", "bb")
    await asyncio.gather(*(ask(model, text, stop_when=lambda text: "x" in text) for text in ("aa", "bb")))
    assert all(isinstance(body["prompt"], str) for _, body in server.generations)
    assert len(server.generations) == 2


async def test_a_call_with_little_time_waits_for_nobody(busy):
    server, model = busy
    (together,) = model._batchers.values()
    together._wait_factor = 10_000
    assert (await ask(model, "one", timeout=30.0)).content == "one"
    assert len(server.generations) == 2


async def test_an_error_for_all_is_an_error_for_each(connect):
    def refuses(request):
        _, prompts = body_of(request)
        return echo(request) if len(prompts) == 1 else failed(501, "not here")

    server, model = connect(refuses)
    await warm(server, model, "aa", "bb")
    errors = await asyncio.gather(*(ask(model, text) for text in ("aa", "bb")), return_exceptions=True)
    assert [type(error) for error in errors] == [ModelServerError] * 2
    assert errors[0] is not errors[1]


async def test_a_server_that_does_not_report_the_tokens_of_each_is_an_error(connect):
    def silent(request):
        _, prompts = body_of(request)
        if len(prompts) == 1:
            return echo(request)
        return httpx.Response(200, stream=Stream(event(0, "a", 1, finish="stop", with_usage=False), "[DONE]"))

    server, model = connect(silent)
    await warm(server, model, "aa", "bb")
    with pytest.raises(ModelServerError, match="max_batch_size=1"):
        await asyncio.gather(*(ask(model, text) for text in ("aa", "bb")))


async def test_streams_and_calls_with_a_time_limit_see_each_token(connect):
    server, model = connect(echo)
    await warm(server, model, "aa", "bb")
    await asyncio.gather(ask(model, "aa", timeout=5), ask(model, "bb", timeout=5))
    chunks = [chunk.content async for chunk in model.astream([HumanMessage("aa")], stop=["\n\n"])]
    assert chunks[:2] == ["a", "a"]
    assert all("stream_interval" not in body for _, body in server.generations)
    server.requests.clear()
    await ask(model, "aa")
    assert "stream_interval" in server.generations[0][1]


@pytest.fixture
async def busy(connect):
    """A server and a model with eight calls under way, and what ends them."""
    held: list[asyncio.Future] = []

    def slow(request):
        _, prompts = body_of(request)
        if len(prompts) < 8:
            return echo(request)
        held.append(asyncio.get_running_loop().create_future())
        return httpx.Response(
            200, stream=Stream(held[0], *(event(i, "so", 2, finish="stop") for i in range(8)), "[DONE]")
        )

    server, model = connect(slow)
    texts = [f"q{number}" for number in range(8)]
    await warm(server, model, *texts, "one", "two")
    tasks = [asyncio.create_task(ask(model, text)) for text in texts]
    await until(lambda: held)
    yield server, model
    held[0].set_result(None)
    await asyncio.gather(*tasks)


async def test_while_calls_are_under_way_others_wait_for_company_but_not_for_long(busy):
    server, model = busy
    assert [a.content for a in await asyncio.gather(ask(model, "one"), ask(model, "two"))] == ["one", "two"]
    assert [len(body["prompt"]) for _, body in server.generations] == [8, 2]
    assert (await asyncio.wait_for(ask(model, "one"), 5)).content == "one"


async def test_a_cancelled_call_that_still_waits_is_not_sent(busy):
    server, model = busy
    waiting = asyncio.create_task(ask(model, "one"))
    (together,) = model._batchers.values()
    await until(lambda: any(any(line.waiting.values()) for line in together._queues.values()))
    waiting.cancel()
    await asyncio.wait([waiting])
    assert (await ask(model, "two")).content == "two"
    assert [body["prompt"].count("two") for _, body in server.generations[1:]] == [1]


def test_the_chat_endpoint_takes_one_conversation():
    with pytest.raises(ValueError, match="max_batch_size"):
        ChatVLLM(model="m", max_batch_size=2, continuation="chat")


# `AdaptiveWait`: the wait factor with which calls are over soonest


Seconds = Callable[[float], float]


def run(wait: AdaptiveWait, seconds: Seconds, *, at_once: int, calls: int) -> Counter[float]:
    """Keeps so many calls at once, which take what their factor says; returns the calls by factor."""
    under_way = [(wait.enter(), seconds(wait.factor)) for _ in range(at_once)]
    factors: Counter[float] = Counter()
    for _ in range(calls):
        wait.leave(*under_way.pop(0))
        factors[wait.factor] += 1
        under_way.append((wait.enter(), seconds(wait.factor)))
    for call in under_way:
        wait.leave(*call)
    return factors


@pytest.mark.parametrize("best", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("at_once", [8, 64, 256])
def test_most_calls_go_with_the_factor_that_has_them_over_soonest(best, at_once):
    factors = run(
        AdaptiveWait(), lambda factor: 1.0 if factor == best else 1.2, at_once=at_once, calls=60 * at_once
    )
    assert factors.most_common(1)[0][0] == best


def test_a_factor_that_brings_nothing_is_not_chosen_over_a_smaller_one():
    wait = AdaptiveWait()
    factors = run(wait, lambda factor: 1.0 - factor / 1000, at_once=16, calls=2000)
    assert factors[0.25] > factors[1.0] + factors[4.0]


def test_few_calls_at_once_never_wait_longer_than_the_least_factor_says():
    factors = run(AdaptiveWait(), lambda factor: 1.0 / factor, at_once=7, calls=2000)
    assert set(factors) == {0.25}


def test_after_the_load_falls_the_least_factor_is_taken_again():
    wait = AdaptiveWait()
    run(wait, lambda factor: 1.0 / factor, at_once=64, calls=2000)
    run(wait, lambda factor: 1.0 / factor, at_once=4, calls=200)
    assert wait.factor == 0.25


def test_a_best_factor_that_changes_is_found_within_some_windows():
    wait = AdaptiveWait()
    run(wait, lambda factor: factor, at_once=16, calls=2000)
    factors = run(wait, lambda factor: 1.0 / factor, at_once=16, calls=4000)
    assert factors.most_common(1)[0][0] == 4.0


def test_calls_that_fail_or_began_in_an_earlier_window_are_not_timed():
    wait = AdaptiveWait()
    late = [wait.enter() for _ in range(16)]
    run(wait, lambda factor: 1.0 if factor == 1.0 else 1.5, at_once=48, calls=4000)
    assert wait.factor == 1.0
    for window in late:
        wait.leave(window, 1000.0)
    for _ in range(2000):
        wait.leave(wait.enter(), None)
    factors = run(wait, lambda factor: 1.0 if factor == 1.0 else 1.5, at_once=48, calls=500)
    assert factors[1.0] > 250
