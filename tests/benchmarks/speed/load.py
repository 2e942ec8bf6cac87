"""Questions asked of a way, so many at once, and what that took."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import psutil

from trim_graph.examples.arithmetic import Problem, problems

from .ways import Solved, Way


def mixed_problems(n: int, seed: int = 0) -> list[Problem]:
    """Draws problems of mixed length: half of them of 4 to 7 operations, half of 8 to 12."""
    drawn = [*problems("standard", n - n // 2, seed=seed), *problems("hard", n // 2, seed=seed)]
    random.Random(seed).shuffle(drawn)
    return drawn


def mixed(n: int, seed: int = 0) -> list[str]:
    """Draws the questions of such problems."""
    return [problem.question for problem in mixed_problems(n, seed)]


async def ask_all(way: Way, questions: Sequence[str], concurrency: int) -> list[Solved]:
    """Asks all questions, at most ``concurrency`` at once."""
    waiting = iter(enumerate(questions))
    solved: dict[int, Solved] = {}

    async def work() -> None:
        for number, question in waiting:
            solved[number] = await way(question)

    await asyncio.gather(*(work() for _ in range(min(concurrency, len(questions)))))
    return [solved[number] for number in range(len(questions))]


class Clock:
    """Seconds that passed, and seconds of CPU that this process used, and others.

    Args:
        elsewhere: Returns the CPU seconds of other processes so far.
    """

    def __init__(self, elsewhere: Callable[[], float] = lambda: 0.0) -> None:
        self._elsewhere = elsewhere

    def __enter__(self) -> Clock:
        self._begun = time.perf_counter(), time.process_time(), self._elsewhere()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._begun[0]
        self.cpu = time.process_time() - self._begun[1]
        self.cpu_elsewhere = self._elsewhere() - self._begun[2]


def cpu_of(processes: Iterable[psutil.Process]) -> float:
    """CPU seconds of processes and all that they started, so far."""
    everyone = {one for process in processes for one in (process, *process.children(recursive=True))}
    times = [one.cpu_times() for one in everyone]
    return float(sum(one.user + one.system for one in times))


def metrics(solved: Sequence[Solved], clock: Clock) -> dict[str, float]:
    """Returns the totals of a run."""
    steps = sum(one.steps for one in solved)
    seconds = sorted(one.seconds for one in solved)
    first = sorted(one.first_seconds for one in solved if one.first_seconds is not None)
    reported = (
        {"first_step_s": statistics.median(first), "first_step_p95_s": quantile(first, 0.95)} if first else {}
    )
    return {
        "questions": len(solved),
        "steps": steps,
        "seconds": clock.seconds,
        "questions_per_s": len(solved) / clock.seconds,
        "tokens_per_s": sum(one.tokens for one in solved) / clock.seconds,
        "latency_s": statistics.median(seconds),
        "latency_p95_s": quantile(seconds, 0.95),
        **reported,
        "cpu_ms_a_step": 1000 * clock.cpu / steps,
        "cpu_elsewhere_ms_a_step": 1000 * clock.cpu_elsewhere / steps,
    }


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that is not below ``share`` of all."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def medians(runs: Iterable[dict[str, float]]) -> dict[str, float]:
    """The median of each metric over repeated runs."""
    runs = list(runs)
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def same(ours: Sequence[Solved], theirs: Sequence[Solved]) -> float:
    """The share of questions with the same solution, letter by letter."""
    return sum(a.text == b.text for a, b in zip(ours, theirs, strict=True)) / len(ours)


def resident_mb() -> float:
    """What this process holds of memory now."""
    return float(psutil.Process().memory_info().rss) / 1e6


class Peak:
    """The most memory that this process held, looked at every 20 ms."""

    async def __aenter__(self) -> Peak:
        self.before = self.mb = resident_mb()
        self._watch = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._watch.cancel()
        self.mb = max(self.mb, resident_mb())

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            self.mb = max(self.mb, resident_mb())


def ratios(runs: dict[str, list[dict[str, float]]], of: str, to: Sequence[str]) -> dict[str, Any]:
    """Ratios of metrics within each repetition, the median of them."""
    names = ("questions_per_s", "tokens_per_s", "latency_s", "latency_p95_s", "first_step_s", "cpu_ms_a_step")
    return {
        other: {
            name: statistics.median(
                ours[name] / theirs[name] for ours, theirs in zip(runs[of], runs[other], strict=True)
            )
            for name in names
            if name in runs[of][0] and name in runs[other][0]
        }
        for other in to
        if other in runs
    }
