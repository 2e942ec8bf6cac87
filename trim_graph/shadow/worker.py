"""The worker of a shadow: a bounded queue, and one thread with an event loop that empties it.

`ShadowWorker.offer` is all that the application's own thread runs: it draws, counts and appends. It never
waits and never raises. A full queue drops the job and counts it.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import random
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from trim_graph.settings import ShadowSettings

from .records import RecordSink, open_sink

Job = Callable[[], Awaitable[dict[str, Any]]]
"""Makes one record; called in the worker's thread."""

EXAMINING: ContextVar[bool] = ContextVar("trim_graph_shadow_examining", default=False)
"""Whether a call is a shadow's own; such calls are not watched, or a shadow would examine itself."""
EXIT_S = 1.0
"""Seconds that the end of the process waits for jobs under way."""
_log = logging.getLogger("trim_graph.shadow")


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of a shadow since it was made.

    ``seen == skipped + submitted`` and ``submitted == recorded + failed + dropped + pending``, at any time.

    Attributes:
        seen: Answers that were offered.
        skipped: Answers that the sampling rate left out, or that cannot be routed (``unsuitable``).
        unsuitable: Part of ``skipped``: answers of another kind, such as tool calls of a watched chat model.
        submitted: Answers that were drawn.
        recorded: Records written, but those of failures.
        failed: Jobs that raised, that exceeded the time limit, or whose record could not be written.
        dropped: Jobs that found the queue full, or that ended with the process.
        pending: Jobs in the queue or under way.
    """

    seen: int = 0
    skipped: int = 0
    unsuitable: int = 0
    submitted: int = 0
    recorded: int = 0
    failed: int = 0
    dropped: int = 0
    pending: int = 0


class ShadowWorker:
    """Runs jobs beside an application, and writes their records.

    The thread begins with the first job, is a daemon, and has an empty context: no callback, tracer or
    setting of the application's call reaches a job. After a fork the child begins with an empty queue and a
    thread of its own.

    Args:
        record: File of the records, or a sink.
        settings: Share of the answers that become jobs, and limits.

    Raises:
        SettingsError: The file of the records is of no known kind, or cannot be written.
    """

    def __init__(self, record: str | Path | RecordSink, settings: ShadowSettings) -> None:
        self.sink = open_sink(record) if isinstance(record, str | Path) else record
        self.settings = settings
        self._random = random.Random(settings.sampling_seed)
        self.closed = False
        self._begin()
        # A weak reference: a shadow that nobody holds any more can be collected.
        own = weakref.ref(self)
        atexit.register(_close_at_exit, own)

    def _begin(self) -> None:
        self._pid, self.session = os.getpid(), uuid.uuid4().hex
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._counts = dict.fromkeys(Counts.__dataclass_fields__, 0)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: list[asyncio.Future[None]] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def counts(self) -> Counts:
        """The counts now."""
        with self._changed:
            return Counts(**self._counts)

    def offer(self, job: Job | None, *, drawn: bool | None = None) -> bool:
        """Draws whether an answer becomes a job, and queues it; returns at once.

        Args:
            job: Makes the record; None counts an answer that cannot be routed.
            drawn: Whether the answer is drawn, if the caller has drawn; None draws by ``rate``.

        Returns:
            Whether the job is in the queue.
        """
        if self._pid != os.getpid():  # the child of a fork has no thread, and locks of unknown state
            self._begin()
        with self._changed:
            counts = self._counts
            counts["seen"] += 1
            if drawn is None:
                drawn = self._random.random() < self.settings.rate
            if job is None or not drawn:
                counts["skipped"] += 1
                counts["unsuitable"] += job is None
                return False
            counts["submitted"] += 1
            if self.closed or len(self._queue) >= self.settings.capacity:
                counts["dropped"] += 1
                return False
            counts["pending"] += 1
            self._queue.append(job)
            if self._thread is None:
                self._start()
            elif self._idle and self._loop is not None:
                self._loop.call_soon_threadsafe(self._wake, self._idle.pop())
        return True

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="trim-graph shadow", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter ends, or has no threads left
            self._thread = None
            self._counts["dropped"] += len(self._queue)
            self._counts["pending"] -= len(self._queue)
            self._queue.clear()

    @staticmethod
    def _wake(waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            waiter.set_result(None)

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._work())

    async def _work(self) -> None:
        EXAMINING.set(True)
        with self._changed:
            self._loop = asyncio.get_running_loop()
            self._tasks = [asyncio.create_task(self._empty_queue()) for _ in range(self.settings.concurrency)]
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _empty_queue(self) -> None:
        while True:
            with self._changed:
                job = self._queue.popleft() if self._queue else None
                if job is None:
                    if self.closed:
                        return
                    waiter = asyncio.get_running_loop().create_future()
                    self._idle.append(waiter)
            if job is None:
                await waiter
                continue
            outcome = "dropped"
            try:
                outcome = await self._make(job)
            finally:
                with self._changed:
                    self._counts["pending"] -= 1
                    self._counts[outcome] += 1
                    self._changed.notify_all()

    async def _make(self, job: Job) -> str:
        """Makes and writes one record; returns how it is counted."""
        try:
            async with asyncio.timeout(self.settings.timeout):
                record = await job()
        except Exception as error:
            # Not with its message, which may repeat a text of the conversation.
            _log.warning("a shadow job failed: %s", type(error).__name__)
            return "failed"
        counts = asdict(self.counts)
        try:
            self.sink.write({**record, "session": self.session, "counts": counts})
        except Exception as error:
            _log.warning("a shadow record cannot be written: %s", type(error).__name__)
            return "failed"
        return "failed" if record.get("error") else "recorded"

    def drain(self, timeout: float | None = None) -> bool:
        """Waits until no job is pending; returns whether that is so.

        Args:
            timeout: Most seconds to wait; None waits without a limit.
        """
        if self._pid != os.getpid():
            return True
        with self._changed:
            return self._changed.wait_for(lambda: not self._counts["pending"], timeout)

    def close(self, timeout: float | None = 10.0) -> bool:
        """Takes no further jobs, waits for those pending, and drops the others; may be called again.

        Args:
            timeout: Most seconds to wait; None waits without a limit.

        Returns:
            Whether every job ended by itself.
        """
        if self._pid != os.getpid():
            return True
        with self._changed:
            self.closed = True
            waiters, self._idle = self._idle, []
            loop, thread = self._loop, self._thread
            if loop is not None and not loop.is_closed():
                for waiter in waiters:
                    loop.call_soon_threadsafe(self._wake, waiter)
        deadline = None if timeout is None else time.monotonic() + timeout
        whole = self.drain(timeout)
        with self._changed:
            left = len(self._queue)
            self._counts["pending"] -= left
            self._counts["dropped"] += left
            self._queue.clear()
            loop, tasks = self._loop, self._tasks
            if not whole and loop is not None and not loop.is_closed():
                for task in tasks:
                    loop.call_soon_threadsafe(task.cancel)
        if thread is not None and thread is not threading.current_thread():
            thread.join(None if deadline is None else max(0.5, deadline - time.monotonic()))
        if thread is None or not thread.is_alive():
            self.sink.close()
        return whole


class WorkerControl:
    """What an application reads of a shadow's worker, and how it ends it."""

    _worker: ShadowWorker

    @property
    def counts(self) -> Counts:
        """What happened to the application's answers so far."""
        return self._worker.counts

    def drain(self, timeout: float | None = None) -> bool:
        """Waits until every submitted answer is examined; returns whether that is so.

        Args:
            timeout: Most seconds to wait; None waits without a limit.
        """
        return self._worker.drain(timeout)

    def close(self, timeout: float | None = 10.0) -> bool:
        """Takes no further answers, waits for those under way, drops the others, and closes the file.

        The end of the process does the same, but waits a second at most.

        Args:
            timeout: Most seconds to wait; None waits without a limit.

        Returns:
            Whether all submitted answers were examined.
        """
        return self._worker.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close_at_exit(own: weakref.ref[ShadowWorker]) -> None:
    worker = own()
    if worker is not None and not worker.closed:
        worker.close(EXIT_S)
