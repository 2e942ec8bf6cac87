"""Joins calls that wait at an event loop into one request: completions of one model, and scores."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from trim_graph.errors import ModelServerError

from .client import TransientError, VLLMServer

STREAM = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
_UNSEEN = {"stream_interval": 1_000_000}
"""Nobody looks at an answer before it is done: it comes in two events, its first token and the rest."""
_BEGIN_S = 0.02
"""The time of a call until one is known."""
_OF_LIMIT = 0.1
"""Most of its time limit that a call waits for others."""

Event = dict[str, Any]


@dataclass(eq=False, slots=True)
class _Seat:
    """One call in a request."""

    prompt: str | list[int]
    arrived: asyncio.Queue[Event | Exception | None] = field(default_factory=asyncio.Queue)
    begun: bool = False
    """Whether a part of the answer has come."""
    over: bool = False
    """Whether nothing more is to come, or nobody waits for it."""
    request: asyncio.Task[None] | None = None


@dataclass(eq=False, slots=True)
class _PromptQueue:
    """The calls of one event loop."""

    waiting: dict[str, list[_Seat]] = field(default_factory=dict)
    """By what they have in common."""
    common: dict[str, Event] = field(default_factory=dict)
    under_way: int = 0
    seconds: float = _BEGIN_S
    """What a call took lately."""
    timer: asyncio.TimerHandle | None = None
    requests: dict[asyncio.Task[None], list[_Seat]] = field(default_factory=dict)


class RequestBatcher:
    """Sends completions that wait, and are equal but for their prompts, as one request.

    A lone call goes out at once. While others are under way, calls wait for company.

    Args:
        server: Where the model is.
        max_batch: Most prompts in a request.
        patience: How long they wait: until there are so many for each call under way, or one has waited for
            so many times as long as calls take lately.
    """

    def __init__(self, server: VLLMServer, *, max_batch: int, patience: float) -> None:
        self._server = server
        self._max_batch = max_batch
        self._patience = patience
        self._lines: WeakKeyDictionary[asyncio.AbstractEventLoop, _PromptQueue] = WeakKeyDictionary()

    def __deepcopy__(self, memo: dict[int, Any]) -> RequestBatcher:
        """Copies of an adapter wait in one line."""
        return self

    async def events(
        self, body: Event, *, seen: bool, within: float | None = None
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of one answer, as a request of its own would have them.

        Leaving early takes it out of the line, or out of its request: the server goes on with it, unless all
        of a request have left.

        Args:
            body: Of the request, with one prompt.
            seen: Whether the answer is looked at before it is done.
            within: Seconds that it may take; where they are few it does not wait for company.

        Raises:
            TransientError: The connection could not be made, or broke before the end.
            ModelServerError: The server refuses, or does not tell the tokens of each prompt.
        """
        loop = asyncio.get_running_loop()
        line = self._lines.setdefault(loop, _PromptQueue())
        common = {name: value for name, value in body.items() if name != "prompt"}
        common |= STREAM if seen else STREAM | _UNSEEN
        seat = _Seat(body["prompt"])
        # A request takes texts or token ids, not both.
        key = f"{type(seat.prompt).__name__} {json.dumps(common, sort_keys=True)}"
        line.common[key] = common
        line.waiting.setdefault(key, []).append(seat)
        if line.under_way == 0:
            loop.call_soon(self._send_if_due, line)  # the calls of this turn of the loop come in first
        elif within is not None and self._patience * line.seconds > _OF_LIMIT * within:
            self._send_all(line)
        elif line.timer is None:
            line.timer = loop.call_later(self._patience * line.seconds, self._send_all, line)
            self._send_if_due(line)
        else:
            self._send_if_due(line)
        try:
            while (event := await seat.arrived.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            if not seat.over:
                self._leave(line, key, seat)

    def _leave(self, line: _PromptQueue, key: str, seat: _Seat) -> None:
        seat.over = True
        if seat.request is None:
            line.waiting[key].remove(seat)
        elif all(other.over for other in line.requests.get(seat.request, ())):
            seat.request.cancel()

    def _send_if_due(self, line: _PromptQueue) -> None:
        waiting = sum(map(len, line.waiting.values()))
        if waiting >= min(self._patience * line.under_way, self._max_batch):
            self._send_all(line)

    def _send_all(self, line: _PromptQueue) -> None:
        """Send all that wait."""
        if line.timer is not None:
            line.timer.cancel()
            line.timer = None
        waiting, line.waiting = line.waiting, {}
        common, line.common = line.common, {}
        for key, seats in waiting.items():
            for first in range(0, len(seats), self._max_batch):
                self._start(line, common[key], seats[first : first + self._max_batch])

    def _start(self, line: _PromptQueue, common: Event, seats: list[_Seat]) -> None:
        line.under_way += len(seats)
        request = asyncio.get_running_loop().create_task(self._request(line, common, seats))
        line.requests[request] = seats
        for seat in seats:
            seat.request = request
        request.add_done_callback(line.requests.pop)

    async def _request(self, line: _PromptQueue, common: Event, seats: list[_Seat]) -> None:
        loop, live = asyncio.get_running_loop(), dict(enumerate(seats))
        begun = loop.time()

        def done(number: int) -> None:
            self._end(live.pop(number), None)
            line.under_way -= 1
            line.seconds += (loop.time() - begun - line.seconds) / 8
            if line.waiting:
                self._send_if_due(line)

        try:
            await self._read(common, seats, live, done)
        except Exception as error:
            for seat in live.values():
                if len(seats) > 1 and isinstance(error, ModelServerError) and error.status == 400:
                    # One bad prompt must not cost the others their answers.
                    if seat.begun:
                        self._end(seat, TransientError(str(error), begun=True))
                    elif not seat.over:
                        self._start(line, common, [seat])
                else:
                    self._end(seat, copy.copy(error))
        finally:
            line.under_way -= len(live)
            if line.waiting:
                self._send_if_due(line)

    @staticmethod
    def _end(seat: _Seat, last: Exception | None) -> None:
        seat.over = True
        seat.arrived.put_nowait(last)

    async def _read(self, common: Event, seats: list[_Seat], live: dict[int, _Seat], done: Any) -> None:
        """Hand the events of a request out."""
        prompts = [seat.prompt for seat in seats]
        body = common | {"prompt": prompts if len(prompts) > 1 else prompts[0]}
        events = self._server.events("/v1/completions", body)
        async with contextlib.aclosing(events):
            async for event in events:
                choices = event.get("choices") or []
                if not choices:
                    if len(seats) == 1 and live:  # the usage of all: of the only one
                        live[0].arrived.put_nowait(event)
                    continue
                number = choices[0].get("index")
                if number not in live:
                    continue
                if len(seats) > 1 and not event.get("usage"):
                    raise ModelServerError(
                        f"the server at {self._server.root} does not tell the tokens of each prompt of a "
                        "request (continuous_usage_stats); max_batch_size=1 sends each on its own",
                        begun=True,
                    )
                live[number].begun = True
                live[number].arrived.put_nowait(event)
                if choices[0].get("finish_reason") and len(seats) > 1:
                    done(number)
        for number in list(live):
            done(number)


Q = TypeVar("Q")
R = TypeVar("R")


@dataclass(eq=False, slots=True)
class _ScoreQueue(Generic[Q, R]):
    """What waits at one event loop."""

    waiting: list[tuple[Q, asyncio.Future[R]]] = field(default_factory=list)
    running: int = 0
    senders: set[asyncio.Task[None]] = field(default_factory=set)
    """Keeps the tasks alive; a task leaves it only after it has left ``running``."""


class ScoreBatcher(Generic[Q, R]):
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
        self._lines: WeakKeyDictionary[asyncio.AbstractEventLoop, _ScoreQueue[Q, R]] = WeakKeyDictionary()

    async def ask(self, question: Q) -> R:
        """Ask one question. Cancelling it takes it out of the line; the others are not touched."""
        loop = asyncio.get_running_loop()
        line = self._lines.setdefault(loop, _ScoreQueue())
        answer: asyncio.Future[R] = loop.create_future()
        line.waiting.append((question, answer))
        if line.running < self._max_requests:
            line.running += 1
            sender = loop.create_task(self._work(line))
            line.senders.add(sender)
            sender.add_done_callback(line.senders.discard)
        return await answer

    async def _work(self, line: _ScoreQueue[Q, R]) -> None:
        await asyncio.sleep(0)  # lets the calls of this turn of the loop come in
        try:
            while batch := self._take(line):
                await self._send_batch(batch)
        finally:
            line.running -= 1

    def _take(self, line: _ScoreQueue[Q, R]) -> list[tuple[Q, asyncio.Future[R]]]:
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
