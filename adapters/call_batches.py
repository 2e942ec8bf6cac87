"""Joining the calls that wait at an event loop into one request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

Q = TypeVar("Q")
R = TypeVar("R")


@dataclass(eq=False, slots=True)
class _Line(Generic[Q, R]):
    """What waits at one event loop."""

    waiting: list[tuple[Q, asyncio.Future[R]]] = field(default_factory=list)
    running: int = 0
    senders: set[asyncio.Task[None]] = field(default_factory=set)
    """Keeps the tasks alive; a task leaves it only after it has left ``running``."""


class CallBatcher(Generic[Q, R]):
    """Sends what is asked at the same time, or while requests are under way, as one request.

    Args:
        send: Gets the questions of a batch and returns their answers in the same order.
        max_batch: Most questions in a request.
        max_requests: Most requests at once from one event loop.
    """

    def __init__(
        self,
        send: Callable[[list[Q]], Coroutine[Any, Any, list[R]]],
        *,
        max_batch: int,
        max_requests: int = 2,
    ) -> None:
        self._send = send
        self._max_batch = max_batch
        self._max_requests = max_requests
        self._lines: WeakKeyDictionary[asyncio.AbstractEventLoop, _Line[Q, R]] = WeakKeyDictionary()

    async def ask(self, question: Q) -> R:
        """Ask one question. Cancelling it takes it out of the line; the others are not touched."""
        loop = asyncio.get_running_loop()
        line = self._lines.setdefault(loop, _Line())
        answer: asyncio.Future[R] = loop.create_future()
        line.waiting.append((question, answer))
        if line.running < self._max_requests:
            line.running += 1
            sender = loop.create_task(self._work(line))
            line.senders.add(sender)
            sender.add_done_callback(line.senders.discard)
        return await answer

    async def _work(self, line: _Line[Q, R]) -> None:
        await asyncio.sleep(0)  # lets the calls of this turn of the loop come in
        try:
            while batch := self._take(line):
                await self._send_batch(batch)
        finally:
            line.running -= 1

    def _take(self, line: _Line[Q, R]) -> list[tuple[Q, asyncio.Future[R]]]:
        wanted = [item for item in line.waiting if not item[1].done()]
        line.waiting = wanted[self._max_batch :]
        return wanted[: self._max_batch]

    async def _send_batch(self, batch: list[tuple[Q, asyncio.Future[R]]]) -> None:
        sending = asyncio.create_task(self._send([q for q, _ in batch]))  # noqa: RUF006 - awaited below

        def left(_: asyncio.Future[R]) -> None:
            if all(answer.done() for _, answer in batch):
                sending.cancel()

        for _, answer in batch:
            answer.add_done_callback(left)
        await asyncio.wait([sending])
        error = None if sending.cancelled() else sending.exception()
        for number, (_, answer) in enumerate(batch):
            if answer.done():
                continue
            if error is not None:
                answer.set_exception(error)
            elif sending.cancelled():
                answer.cancel()
            else:
                answer.set_result(sending.result()[number])
