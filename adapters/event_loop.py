"""One event loop in a daemon thread for synchronous callers, and results computed once for all loops."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

_CLOSING_S = 2.0
"""Seconds that the end of the process waits for connections to close."""

_lock = threading.Lock()
_current: _Background | None = None


class _Background:
    """The loop and its thread."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name="trim-graph calls", daemon=True)
        self._thread.start()
        self._ready.wait()
        atexit.register(self.close)

    def _main(self) -> None:
        # Closing the runner ends its async generators, and those close their connections.
        with asyncio.Runner() as runner:
            self.loop = runner.get_loop()
            self._stop = asyncio.Event()
            self._ready.set()
            runner.run(self._wait())

    async def _wait(self) -> None:
        await self._stop.wait()

    @property
    def alive(self) -> bool:
        """Whether it takes calls; in a forked child it does not."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Ends the loop."""
        if self.alive:
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_CLOSING_S)


def _loop() -> asyncio.AbstractEventLoop:
    global _current
    with _lock:
        if _current is None or not _current.alive:
            _current = _Background()
        return _current.loop


def run_sync(call: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on the background loop and waits for it. An interrupt cancels it."""
    future = asyncio.run_coroutine_threadsafe(call, _loop())
    try:
        return future.result()
    finally:
        future.cancel()


def iterate_sync(items: AsyncGenerator[T, None]) -> Iterator[T]:
    """Runs an async generator on the background loop; leaving the iteration early closes it."""
    arrived: queue.SimpleQueue[tuple[T] | None] = queue.SimpleQueue()
    future = asyncio.run_coroutine_threadsafe(_pump(items, arrived.put), _loop())
    try:
        while (item := arrived.get()) is not None:
            yield item[0]
        future.result()
    finally:
        future.cancel()


async def run_aside(call: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on the background loop and awaits it on this one. Cancelling passes on."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, _loop()))


async def iterate_aside(items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Runs an async generator on the background loop and iterates on this one; leaving early closes it."""
    own = asyncio.get_running_loop()
    arrived: asyncio.Queue[tuple[T] | None] = asyncio.Queue()

    def put(item: tuple[T] | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and its reader with it
            own.call_soon_threadsafe(arrived.put_nowait, item)

    future = asyncio.run_coroutine_threadsafe(_pump(items, put), _loop())
    try:
        while (item := await arrived.get()) is not None:
            yield item[0]
        await asyncio.wrap_future(future)
    finally:
        future.cancel()


async def _pump(items: AsyncGenerator[T, None], put: Callable[[tuple[T] | None], None]) -> None:
    try:
        async with contextlib.aclosing(items):
            async for item in items:
                put((item,))
    finally:
        put(None)


class AsyncLazy(Generic[T]):
    """A value made at the first `get`. A failure is not kept: the next call tries again.

    Args:
        make: Makes the value.

    Attributes:
        value: The value; None before it is made.
    """

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
        self.value: T | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> AsyncLazy[T]:
        """Copies share the value."""
        return self

    async def get(self) -> T:
        """Returns the value; calls that come while it is being made wait for it."""
        if self.value is None:
            async with self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
                if self.value is None:
                    self.value = await self._make()
        return self.value
