"""One worker thread per loaded model that runs the calls waiting for it in batches."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Generic, TypeVar

GRACE_S = 0.002
"""How long a lone call waits for company when the worker is idle."""
PREPARING_S = 0.05
"""How long waiting calls wait, at most, for calls that are still being tokenised."""
IDLE_S = 5.0
"""An idle thread ends after this long, so that it does not keep the weights alive."""

Reply = TypeVar("Reply")


@dataclass(eq=False, kw_only=True)
class Job(Generic[Reply]):
    """One call on its way through a `BatchWorker`.

    Attributes:
        batch_limit: Most jobs this one may share a batch with, itself included.
        future: Gets the reply or the error. Cancelling it takes the job out of the queue, or ends its
            row at the next token if it already runs.
    """

    batch_limit: int
    future: Future[Reply] = field(default_factory=Future)

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for the reply."""
        return not self.future.done()

    def settle(self, reply: Reply) -> None:
        """Hand the reply over, unless the caller has left."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(reply)

    def fail(self, error: BaseException) -> None:
        """Hand an error over, unless the job is already settled or its caller has left."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)

    def expire(self) -> None:
        """Settle the job if its time ran out while it waited. By default no job has a time limit."""


J = TypeVar("J", bound=Job)  # type: ignore[type-arg]


class BatchWorker(Generic[J]):
    """Collects jobs from any thread or event loop and runs them in batches on one daemon thread.

    The oldest waiting job is always in the next batch, so none starves. A batch that raises fails all of
    its jobs; the worker goes on.

    Args:
        run: Runs one batch; settles every job or raises.
        fits: Whether a job may join the jobs already chosen for a batch.
        name: Name of the thread, for debuggers and logs.
    """

    def __init__(
        self, run: Callable[[list[J]], None], *, fits: Callable[[list[J], J], bool], name: str
    ) -> None:
        self._run = run
        self._fits = fits
        self._name = name
        self._waiting: list[J] = []
        self._preparing = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """Announce a call that will submit a job in a moment, so that jobs already waiting wait for it."""
        with self._changed:
            self._preparing += 1
        try:
            yield
        finally:
            with self._changed:
                self._preparing -= 1
                self._changed.notify()

    def submit(self, job: J) -> None:
        """Queue a job; starts the thread where none runs."""
        with self._changed:
            self._waiting.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify()

    def drop_waiting(self) -> None:
        """Let go of queued jobs whose caller has left or whose time is up. Called while a batch runs."""
        if not self._waiting:  # unlocked on purpose: asked once a token, and a miss is made good at the next
            return
        with self._changed:
            for job in self._waiting:
                job.expire()
            self._waiting = [job for job in self._waiting if job.wanted]

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                self._run(batch)
            except BaseException as error:
                for job in batch:
                    job.fail(error)
            else:
                for job in batch:
                    job.fail(RuntimeError("the batch ended without a reply for this call"))
            del batch  # else the idle thread keeps prompts and replies alive

    def _next_batch(self) -> list[J]:
        """Wait for jobs; an empty list means that the thread has been idle for long and must end."""
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: bool(self._waiting), timeout=IDLE_S):
                    self._thread = None
                    return []
                self._wait_for_company()
            self.drop_waiting()
            with self._changed:
                if batch := self._take():
                    return batch

    def _wait_for_company(self) -> None:
        start = time.monotonic()
        while len(self._waiting) < self._waiting[0].batch_limit:
            limit = start + (PREPARING_S if self._preparing else GRACE_S)
            if (left := limit - time.monotonic()) <= 0:
                return
            self._changed.wait(left)

    def _take(self) -> list[J]:
        batch: list[J] = []
        for job in self._waiting:
            if not batch or (self._room(batch, job) and self._fits(batch, job)):
                batch.append(job)
        self._waiting = [job for job in self._waiting if job not in batch]
        return batch

    @staticmethod
    def _room(batch: list[J], job: J) -> bool:
        return len(batch) < min(job.batch_limit, *(other.batch_limit for other in batch))
