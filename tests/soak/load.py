"""Questions asked of a graph all the time, and what this process uses meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import psutil
from rich.table import Table

from trim_graph.examples.arithmetic import problems

EVERY = 100
"""Questions between two samples; in a steady run a sample is taken every half minute."""
EVERY_S = 30.0
MEMORY_MIB = 30.0
"""Growth from the second sample to the last that is put down to the allocator."""


class Sample(NamedTuple):
    """What this process used at one moment."""

    questions: int
    rss_mib: float
    tasks: int
    handles: int
    connections: int
    lag_ms: float
    """The longest that the event loop kept a timer waiting since the last sample."""

    @staticmethod
    def table(samples: Sequence[Sample]) -> Table:
        """Shows them."""
        table = Table("questions", "MiB", "tasks", "handles", "connections", "longest lag, ms")
        for one in samples:
            table.add_row(*(f"{value:.0f}" for value in one))
        return table


def grown(samples: Sequence[Sample]) -> list[str]:
    """Name what has grown from the second sample, when all is in place, to the last."""
    if len(samples) < 3:
        return []
    first, last = samples[1], samples[-1]
    grew = [
        f"{name} grew from {getattr(first, name)} to {getattr(last, name)}"
        for name in ("tasks", "handles", "connections")
        if getattr(last, name) > 1.5 * getattr(first, name) + 10
    ]
    if last.rss_mib > first.rss_mib + MEMORY_MIB:
        grew.append(f"memory grew from {first.rss_mib:.0f} to {last.rss_mib:.0f} MiB")
    return grew


class Load:
    """Asks a graph.

    Args:
        graph: Built by `create_trim_graph`.
        concurrency: Questions under way at once.

    Attributes:
        samples: Taken on the way.
        seconds: Each question took.
        ended: Questions by why they stopped, or by the error that they raised.
        broken: Promises that were not kept.
    """

    def __init__(self, graph: Any, *, concurrency: int) -> None:
        self._graph, self._concurrency = graph, concurrency
        self._problems = itertools.cycle(problems("standard", 500, seed=77))
        self._process, self._lag = psutil.Process(), 0.0
        self.samples: list[Sample] = []
        self.seconds: list[float] = []
        self.ended: Counter[str] = Counter()
        self.broken: list[str] = []
        self.took = 0.0

    async def questions(self, n: int) -> None:
        """Asks so many."""
        left = iter(range(n))
        await self._run(lambda: next(left, None) is not None, lambda done: done % EVERY == 0)

    async def minutes(self, minutes: float) -> None:
        """Asks for so long."""
        end = time.monotonic() + 60 * minutes
        self._next = time.monotonic() + EVERY_S

        def due(done: int) -> bool:
            now = time.monotonic()
            if now < self._next:
                return False
            self._next = now + EVERY_S
            return True

        await self._run(lambda: time.monotonic() < end, due)

    async def _run(self, more: Any, due: Any) -> None:
        begun = time.monotonic()
        watch = asyncio.create_task(self._watch_loop())

        async def worker() -> None:
            while more():
                await self._ask()
                if due(len(self.seconds)):
                    self._sample()

        await asyncio.gather(*(worker() for _ in range(self._concurrency)))
        watch.cancel()
        self.took = time.monotonic() - begun

    async def _ask(self) -> None:
        begun = time.monotonic()
        question = {"messages": [("user", next(self._problems).question)]}
        try:
            result = await self._graph.ainvoke(question)
        except Exception as error:
            self.ended[type(error).__name__] += 1
            self.broken.append(f"{type(error).__name__}: {error}"[:300])
        else:
            trim = result["trim"]
            self.ended[trim["stopped"]] += 1
            if result["messages"][-1].type != "ai" or not trim["stopped"]:
                self.broken.append(f"no well-formed result: {result['messages'][-1]!r}"[:300])
            if trim["usage"]["large"]["output_tokens"] + trim["usage"]["unaccounted_tokens"] > 400:
                self.broken.append(f"over the budget of 400 tokens: {trim['usage']}"[:300])
        self.seconds.append(time.monotonic() - begun)

    def _sample(self) -> None:
        with self._process.oneshot():
            self.samples.append(
                Sample(
                    questions=len(self.seconds),
                    rss_mib=self._process.memory_info().rss / 2**20,
                    tasks=len(asyncio.all_tasks()),
                    handles=self._process.num_fds(),
                    connections=len(self._process.net_connections("tcp")),
                    lag_ms=1000 * self._lag,
                )
            )
        self._lag = 0.0

    async def _watch_loop(self) -> None:
        while True:
            due = time.monotonic() + 0.05
            await asyncio.sleep(0.05)
            self._lag = max(self._lag, time.monotonic() - due)
