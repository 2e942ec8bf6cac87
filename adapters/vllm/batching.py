"""Batching of calls that wait at an event loop into one request: completions of one model, and scores."""

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
"""Fields for answers that nobody reads before their end: two events, the first token and the rest."""
_BEGIN_S = 0.02
"""Seconds assumed for a call until one has ended."""
_OF_LIMIT = 0.1
"""Largest share of its time limit that a call waits for others."""

_FACTORS = (0.25, 1.0, 4.0)
"""Wait factors that `AdaptiveWait` tries, the least wait first."""
_BETTER = 0.97
"""Ratio of seconds a call up to which a larger factor is better than a smaller one."""
_REPEATS = 10
"""Windows after which a factor is measured again."""
_FEW = 8
"""Calls at once below which the least factor is taken untried."""

Event = dict[str, Any]


class AdaptiveWait:
    """Wait factor of all calls of an event loop: the one with which a call is over soonest, waiting included.

    No single call shows whether waiting pays. Engines that share cores with each other are done sooner with
    few large batches, engines on accelerators of their own with many small ones. So calls are timed in
    windows, each with one of `_FACTORS`; the best is taken, and all are measured again now and then.

    Attributes:
        factor: The factor of now.
    """

    def __init__(self) -> None:
        self.factor = _FACTORS[0]
        self._at_once = 0
        self._most = 0
        """Most at once in this window."""
        self._window = 0
        self._times: list[float] = []
        """Seconds of the calls that began and ended in this window."""
        self._found: dict[float, tuple[float, int]] = {}
        """By factor: seconds a call, and the number of the window."""

    def enter(self) -> int:
        """Counts a call that begins to wait, and returns the number of the window."""
        self._at_once += 1
        self._most = max(self._most, self._at_once)
        return self._window

    def leave(self, window: int, seconds: float | None) -> None:
        """Counts a call that is over; at the end of a window it chooses the next factor.

        Args:
            window: What `enter` returned.
            seconds: Time since then; None if the call has failed or was cancelled.
        """
        self._at_once -= 1
        if seconds is None or window != self._window:
            return
        self._times.append(seconds)
        if len(self._times) >= max(2 * self._most, 8 * _FEW):
            self._close_window()

    def _close_window(self) -> None:
        mean = sum(self._times) / len(self._times)
        before, window = self._found.get(self.factor, (mean, self._window))
        if window == self._window - 1:
            mean = (mean + before) / 2
        self._found[self.factor] = mean, self._window
        self.factor = self._next()
        self._window += 1
        self._most, self._times = self._at_once, []

    def _next(self) -> float:
        best = _FACTORS[0]
        for factor in _FACTORS:
            if self._most < _FEW:
                break
            if factor not in self._found or self._window - self._found[factor][1] >= _REPEATS:
                return factor
            if self._found[factor][0] < self._found[best][0] * _BETTER:
                best = factor
        return best


_ADAPTIVE: WeakKeyDictionary[asyncio.AbstractEventLoop, AdaptiveWait] = WeakKeyDictionary()


@dataclass(eq=False, slots=True)
class _PendingCall:
    """One call in a request."""

    prompt: str | list[int]
    arrived: asyncio.Queue[Event | Exception | None] = field(default_factory=asyncio.Queue)
    begun: bool = False
    """Whether a part of the answer has come."""
    over: bool = False
    """Whether all events have come, or the caller has left."""
    request: asyncio.Task[None] | None = None


@dataclass(eq=False, slots=True)
class _PromptQueue:
    """The calls of one event loop."""

    adaptive: AdaptiveWait | None = None
    """None where the wait factor is fixed."""
    waiting: dict[str, list[_PendingCall]] = field(default_factory=dict)
    """By the fields that they have in common."""
    common: dict[str, Event] = field(default_factory=dict)
    under_way: int = 0
    seconds: float = _BEGIN_S
    """Moving average of the time of a call."""
    timer: asyncio.TimerHandle | None = None
    requests: dict[asyncio.Task[None], list[_PendingCall]] = field(default_factory=dict)


class RequestBatcher:
    """Sends completions that wait, and are equal but for their prompts, as one request.

    A lone call is sent at once. While others are under way, calls wait for further ones.

    Args:
        server: Server of the model.
        max_batch: Most prompts in a request.
        wait_factor: Calls wait until there are so many for each one under way, or until one has waited so
            many times as long as recent calls took. None: the event loop's `AdaptiveWait` says so.
    """

    def __init__(self, server: VLLMServer, *, max_batch: int, wait_factor: float | None) -> None:
        self._server = server
        self._max_batch = max_batch
        self._wait_factor = wait_factor
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, _PromptQueue] = WeakKeyDictionary()

    def __deepcopy__(self, memo: dict[int, Any]) -> RequestBatcher:
        """Copies of an adapter share the queue."""
        return self

    async def events(
        self, body: Event, *, seen: bool, within: float | None = None
    ) -> AsyncGenerator[Event, None]:
        """Yields the events of one answer, as a request of its own would have them.

        Leaving early removes the call from the queue or from its request. The server finishes its answer,
        unless all calls of a request have left.

        Args:
            body: Body of the request, with one prompt.
            seen: Whether the caller reads the answer before its end.
            within: Seconds that it may take; where they are few it does not wait for others.

        Raises:
            TransientError: The connection could not be made, or broke before the end.
            ModelServerError: The server refuses, or does not report the tokens of each prompt.
        """
        loop = asyncio.get_running_loop()
        queue = self._queue(loop)
        common = {name: value for name, value in body.items() if name != "prompt"}
        common |= STREAM if seen else STREAM | _UNSEEN
        factor = self._factor(queue)
        call = _PendingCall(body["prompt"])
        # A request takes texts or token ids, not both.
        key = f"{type(call.prompt).__name__} {json.dumps(common, sort_keys=True)}"
        queue.common[key] = common
        queue.waiting.setdefault(key, []).append(call)
        if queue.under_way == 0:
            loop.call_soon(self._send_if_due, queue)  # the calls of this turn of the loop come in first
        elif within is not None and factor * queue.seconds > _OF_LIMIT * within:
            self._send_all(queue)
        elif queue.timer is None:
            queue.timer = loop.call_later(factor * queue.seconds, self._send_all, queue)
            self._send_if_due(queue)
        else:
            self._send_if_due(queue)
        window, begun, answered = queue.adaptive.enter() if queue.adaptive else 0, loop.time(), False
        try:
            while (event := await call.arrived.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
            answered = True
        finally:
            if queue.adaptive is not None:
                queue.adaptive.leave(window, loop.time() - begun if answered else None)
            if not call.over:
                self._leave(queue, key, call)

    def _queue(self, loop: asyncio.AbstractEventLoop) -> _PromptQueue:
        if loop not in self._queues:
            adaptive = _ADAPTIVE.setdefault(loop, AdaptiveWait()) if self._wait_factor is None else None
            self._queues[loop] = _PromptQueue(adaptive=adaptive)
        return self._queues[loop]

    def _factor(self, queue: _PromptQueue) -> float:
        if queue.adaptive is not None:
            return queue.adaptive.factor
        assert self._wait_factor is not None
        return self._wait_factor

    def _leave(self, queue: _PromptQueue, key: str, call: _PendingCall) -> None:
        call.over = True
        if call.request is None:
            queue.waiting[key].remove(call)
        elif all(other.over for other in queue.requests.get(call.request, ())):
            call.request.cancel()

    def _send_if_due(self, queue: _PromptQueue) -> None:
        waiting = sum(map(len, queue.waiting.values()))
        if waiting >= min(self._factor(queue) * queue.under_way, self._max_batch):
            self._send_all(queue)

    def _send_all(self, queue: _PromptQueue) -> None:
        """Sends all waiting calls."""
        if queue.timer is not None:
            queue.timer.cancel()
            queue.timer = None
        waiting, queue.waiting = queue.waiting, {}
        common, queue.common = queue.common, {}
        for key, calls in waiting.items():
            for first in range(0, len(calls), self._max_batch):
                self._start(queue, common[key], calls[first : first + self._max_batch])

    def _start(self, queue: _PromptQueue, common: Event, calls: list[_PendingCall]) -> None:
        queue.under_way += len(calls)
        request = asyncio.get_running_loop().create_task(self._request(queue, common, calls))
        queue.requests[request] = calls
        for call in calls:
            call.request = request
        request.add_done_callback(queue.requests.pop)

    async def _request(self, queue: _PromptQueue, common: Event, calls: list[_PendingCall]) -> None:
        loop, live = asyncio.get_running_loop(), dict(enumerate(calls))
        begun = loop.time()

        def done(number: int) -> None:
            self._end(live.pop(number), None)
            queue.under_way -= 1
            queue.seconds += (loop.time() - begun - queue.seconds) / 8
            if queue.waiting:
                self._send_if_due(queue)

        try:
            await self._read(common, calls, live, done)
        except Exception as error:
            for call in live.values():
                if len(calls) > 1 and isinstance(error, ModelServerError) and error.status == 400:
                    # One bad prompt must not cost the others their answers.
                    if call.begun:
                        self._end(call, TransientError(str(error), begun=True))
                    elif not call.over:
                        self._start(queue, common, [call])
                else:
                    self._end(call, copy.copy(error))
        finally:
            queue.under_way -= len(live)
            if queue.waiting:
                self._send_if_due(queue)

    @staticmethod
    def _end(call: _PendingCall, last: Exception | None) -> None:
        call.over = True
        call.arrived.put_nowait(last)

    async def _read(
        self, common: Event, calls: list[_PendingCall], live: dict[int, _PendingCall], done: Any
    ) -> None:
        """Passes the events of a request to its calls."""
        prompts = [call.prompt for call in calls]
        body = common | {"prompt": prompts if len(prompts) > 1 else prompts[0]}
        events = self._server.events("/v1/completions", body)
        async with contextlib.aclosing(events):
            async for event in events:
                choices = event.get("choices") or []
                if not choices:
                    if len(calls) == 1 and live:  # the usage of all: of the only one
                        live[0].arrived.put_nowait(event)
                    continue
                number = choices[0].get("index")
                if number not in live:
                    continue
                if len(calls) > 1 and not event.get("usage"):
                    raise ModelServerError(
                        f"the server at {self._server.root} does not report the tokens of each prompt of a "
                        "request (continuous_usage_stats); max_batch_size=1 sends each on its own",
                        begun=True,
                    )
                live[number].begun = True
                live[number].arrived.put_nowait(event)
                if choices[0].get("finish_reason") and len(calls) > 1:
                    done(number)
        for number in list(live):
            done(number)


Q = TypeVar("Q")
R = TypeVar("R")


@dataclass(eq=False, slots=True)
class _ScoreQueue(Generic[Q, R]):
    """Questions that wait at one event loop."""

    waiting: list[tuple[Q, asyncio.Future[R]]] = field(default_factory=list)
    running: int = 0
    senders: set[asyncio.Task[None]] = field(default_factory=set)
    """Keeps the tasks alive; a task leaves it only after it has left ``running``."""


class ScoreBatcher(Generic[Q, R]):
    """Sends questions that arrive at the same time, or while requests are under way, as one request.

    Args:
        send: Gets the questions of a batch and returns their answers in the same order.
        max_batch: Most inputs in a request; one question may have more.
        max_requests: Most requests at once from one event loop.
        inputs: Returns the number of inputs that a question is sent as; None: one.
    """

    def __init__(
        self,
        send: Callable[[list[Q]], Coroutine[Any, Any, list[R]]],
        *,
        max_batch: int,
        max_requests: int = 2,
        inputs: Callable[[Q], int] | None = None,
    ) -> None:
        self._send = send
        self._max_batch = max_batch
        self._max_requests = max_requests
        self._inputs = inputs or (lambda question: 1)
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, _ScoreQueue[Q, R]] = WeakKeyDictionary()

    async def ask(self, question: Q) -> R:
        """Asks one question. Cancelling it takes it out of the queue; the others stay."""
        loop = asyncio.get_running_loop()
        queue = self._queues.setdefault(loop, _ScoreQueue())
        answer: asyncio.Future[R] = loop.create_future()
        queue.waiting.append((question, answer))
        if queue.running < self._max_requests:
            queue.running += 1
            sender = loop.create_task(self._work(queue))
            queue.senders.add(sender)
            sender.add_done_callback(queue.senders.discard)
        return await answer

    async def _work(self, queue: _ScoreQueue[Q, R]) -> None:
        await asyncio.sleep(0)  # lets the calls of this turn of the loop come in
        try:
            while batch := self._take(queue):
                await self._send_batch(batch)
        finally:
            queue.running -= 1

    def _take(self, queue: _ScoreQueue[Q, R]) -> list[tuple[Q, asyncio.Future[R]]]:
        wanted = [item for item in queue.waiting if not item[1].done()]
        taken = total = 0
        for question, _ in wanted:
            total += self._inputs(question)
            if taken and total > self._max_batch:
                break
            taken += 1
        queue.waiting = wanted[taken:]
        return wanted[:taken]

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
