"""Synchronous callers of asynchronous code: results, errors, and leaving early."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from trim_graph.adapters import event_loop
from trim_graph.adapters.event_loop import iterate_aside, iterate_sync, run_aside, run_sync


async def add(a, b):
    await asyncio.sleep(0)
    return a + b


async def count(to, closed=None):
    try:
        for i in range(to):
            yield i
        raise LookupError("no more")
    finally:
        if closed is not None:
            closed.set()


def test_results_and_errors_come_through():
    assert run_sync(add(1, 2)) == 3
    with pytest.raises(TypeError, match="unsupported operand"):
        run_sync(add(1, "x"))


def test_it_works_within_a_running_loop():
    async def main():
        return run_sync(add(1, 2))

    assert asyncio.run(main()) == 3


def test_all_threads_share_one_loop():
    seen = set()

    async def note():
        seen.add(asyncio.get_running_loop())

    threads = [threading.Thread(target=lambda: run_sync(note())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1


def test_items_and_the_error_behind_them():
    items = iterate_sync(count(3))
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError, match="no more"):
        next(items)


def test_leaving_early_closes_the_generator():
    closed = threading.Event()

    async def slowly():
        try:
            while True:
                yield 1
                await asyncio.sleep(60)
        finally:
            closed.set()

    items = iterate_sync(slowly())
    assert next(items) == 1
    items.close()
    assert closed.wait(5)


def test_a_loop_that_ended_is_replaced():
    run_sync(add(1, 2))
    event_loop._current.close()
    assert run_sync(add(2, 2)) == 4


def test_the_process_ends_at_once_and_quietly():
    code = (
        "import asyncio\n"
        "from trim_graph.adapters.event_loop import iterate_aside, iterate_sync, run_aside, run_sync\n"
        "async def forever():\n"
        "    while True:\n"
        "        yield 1\n"
        "        await asyncio.sleep(60)\n"
        "items = iterate_sync(forever())\n"
        "print(next(items))\n"
    )
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert time.monotonic() - begun < 30


async def test_a_coroutine_aside_gives_its_result_error_and_leaves_when_cancelled():
    here = asyncio.get_running_loop()
    left = threading.Event()

    async def loop():
        return asyncio.get_running_loop()

    async def wait():
        try:
            await asyncio.sleep(60)
        finally:
            left.set()

    assert await run_aside(loop()) is not here
    with pytest.raises(TypeError, match="unsupported operand"):
        await run_aside(add(1, "x"))
    task = asyncio.create_task(run_aside(wait()))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left.wait(5)


async def test_items_from_aside_the_error_behind_them_and_leaving_early():
    seen, closed = [], threading.Event()

    async def read():
        async for item in iterate_aside(count(3)):
            seen.append(item)

    with pytest.raises(LookupError, match="no more"):
        await read()
    assert seen == [0, 1, 2]

    async def slowly():
        try:
            while True:
                yield 1
                await asyncio.sleep(60)
        finally:
            closed.set()

    items = iterate_aside(slowly())
    assert await anext(items) == 1
    await items.aclose()
    assert closed.wait(5)
