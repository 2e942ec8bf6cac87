"""Cancelled calls, streams left early, time limits: the engine is idle soon after."""

import asyncio
import time

import pytest
from langchain_core.messages import HumanMessage

from trim_graph.adapters.event_loop import run_sync
from trim_graph.examples.arithmetic import problems

CHAT = [HumanMessage(problems("hard", 1)[0].question)]


@pytest.fixture
def endless(small):
    """Writes on for seconds, whatever the model would say."""
    small.invoke(CHAT, max_tokens=1)
    return small.model_copy(update={"sampling_params": {"ignore_eos": True}, "max_tokens": 2000})


def at_work(model):
    """What vLLM's engine process itself says."""
    engine = model._handle.engine()
    return run_sync(engine._llm.engine_core.call_utility_async("has_work"))


def check_idle(model):
    """Nothing runs any more, and nobody here waits, long before 2000 tokens are written.

    Looks are counted, not seconds: vLLM answers between two tokens, however slow the machine.
    """
    engine = model._handle.engine()
    for _ in range(100):
        if not (at_work(model) or engine._calls or engine._llm.output_processor.has_unfinished_requests()):
            return
        time.sleep(0.01)
    pytest.fail("the request is still under way")


def test_a_running_request_is_distinguished_from_none(endless):
    stream = endless.stream(CHAT)
    next(stream)
    assert at_work(endless)
    time.sleep(1)
    assert at_work(endless)
    stream.close()
    check_idle(endless)


async def test_a_cancelled_call_leaves_the_engine_idle(endless):
    task = asyncio.create_task(endless.ainvoke(CHAT))
    await asyncio.sleep(0.4)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    check_idle(endless)


async def test_calls_cancelled_at_every_moment(endless):
    tasks = [asyncio.create_task(endless.ainvoke(CHAT)) for _ in range(40)]
    for number, task in enumerate(tasks):
        await asyncio.sleep(0.001 * (number % 7))
        task.cancel()
    left = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in left)
    check_idle(endless)


async def test_a_stream_left_early(endless):
    stream = endless.astream(CHAT)
    await anext(stream)
    await stream.aclose()
    check_idle(endless)


def test_a_synchronous_stream_left_early(endless):
    stream = endless.stream(CHAT)
    next(stream)
    stream.close()
    check_idle(endless)


def test_a_loop_that_ends_with_a_call_under_way(endless):
    async def leave():
        task = asyncio.create_task(endless.ainvoke(CHAT))
        await asyncio.sleep(0.2)
        return task

    assert asyncio.run(leave()).cancelled()
    check_idle(endless)


class TestTimeLimit:
    def check(self, answer):
        assert answer.response_metadata["finish_reason"] == "length"
        assert answer.response_metadata["stop_reason"] is None
        assert answer.response_metadata["timed_out"] is True
        assert 0 < answer.usage_metadata["output_tokens"] < 2000
        assert answer.usage_metadata["input_tokens"] > 0

    async def test_it_leaves_what_is_written(self, endless):
        for limit in (0.5, 1, 2, 4):
            begun = time.monotonic()
            answer = await endless.ainvoke(CHAT, timeout=limit)
            assert time.monotonic() - begun < limit + 1.5
            if answer.content:  # a busy machine may have written nothing yet
                break
        self.check(answer)
        check_idle(endless)

    def test_a_stream_cut_by_the_time_limit_leaves_the_engine_idle(self, endless):
        for limit in (0.5, 1, 2, 4):
            chunks = list(endless.stream(CHAT, timeout=limit))
            if len(chunks) > 3:  # a busy machine may have written less
                break
        assert len(chunks) > 3
        self.check(chunks[-1])
        check_idle(endless)

    def test_a_slow_reader_does_not_lose_what_is_written(self, small):
        whole = small.invoke(CHAT).content
        pieces = []
        for chunk in small.stream(CHAT, timeout=30):
            pieces.append(chunk.content)
            time.sleep(0.01)
        assert "".join(pieces) == whole

    def test_before_the_first_token_the_answer_is_empty(self, endless):
        answer = endless.invoke(CHAT, timeout=1e-6)
        assert answer.content == ""
        assert answer.response_metadata["timed_out"] is True
        assert answer.usage_metadata["output_tokens"] == 0
        check_idle(endless)
