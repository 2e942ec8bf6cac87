"""What shadow mode adds to an application's calls: p50 and p99, alone and while the shadow works.

``python -m tests.benchmarks.shadow [--json FILE] [--calls N]``. The application makes calls at a steady pace,
from one event loop or several threads; its model answers at once or after 20 ms, as a server does. The same
calls are timed without a shadow, with one that draws nothing, with one that examines every answer in a thread
(its models scripted, so that its Python competes for the interpreter as much as it can), and with one that
does so in a process of its own (on the example models). ``submit`` alone is timed inside the calls. CPU is
that of the calling thread, which does not depend on what else the machine does. The ways take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trim_graph import Shadow
from trim_graph.policies import threshold
from trim_graph.shadow import ShadowProcess
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

ANSWER = [f"step {number} says about ten words of text on this one" for number in range(5)] + ["\\boxed{1}"]
WAYS = ("without", "nothing drawn", "in a thread", "in a process")
CONFIG = """\
small: {type: example}
large: {type: example}
scorer: {type: example}
policy: {type: threshold, t: 0.9}
"""


class Paced(ScriptedChatModel):
    """Answers after some seconds, as a server does."""

    seconds: float = 0.0

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        if self.seconds:
            time.sleep(self.seconds)
        return super()._generate(*args, **kwargs)

    async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
        if self.seconds:
            await asyncio.sleep(self.seconds)
        return ScriptedChatModel._generate(
            self, *args, **{k: v for k, v in kwargs.items() if k != "run_manager"}
        )


class TimedWorker:
    """Stands before a shadow's worker, and notes how long each offer takes."""

    def __init__(self, worker: Any) -> None:
        self._worker, self.times = worker, list[float]()

    def offer(self, *given: Any, **options: Any) -> bool:
        """Offers an answer."""
        begun = time.perf_counter()
        taken: bool = self._worker.offer(*given, **options)
        self.times.append(time.perf_counter() - begun)
        return taken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)


def a_shadow(way: str, folder: str) -> Any:
    """Returns a shadow that examines nothing, or every answer in a thread or a process."""
    record = Path(folder) / f"{time.monotonic_ns()}.jsonl"
    if way == "in a process":
        config = Path(folder) / "trim.yaml"
        config.write_text(CONFIG)
        shadow: Any = ShadowProcess(config, answers="large", record=record)
        shadow.submit("a question", "an answer", usage={"input_tokens": 1, "output_tokens": 2})
        shadow.drain(300)  # until its models are loaded
    else:
        small, large = ScriptedChatModel(script=ANSWER), ScriptedChatModel(script=ANSWER)
        shadow = Shadow(
            small,
            large,
            ScriptedScorer(),
            policy=threshold(0.5),
            answers="large",
            record=record,
            rate=float(way == "in a thread"),
        )
    shadow._worker = TimedWorker(shadow._worker)
    return shadow


Spent = tuple[float, float]
"""Seconds of a call by the clock, and of CPU of its thread."""


def in_threads(model: Any, calls: int, pause: float) -> list[Spent]:
    """Returns what each call takes, made by four threads at a pace."""

    def work(_: int) -> list[Spent]:
        spent = []
        for _ in range(calls // 4):
            begun, cpu = time.perf_counter(), time.thread_time()
            model.invoke("a question")
            spent.append((time.perf_counter() - begun, time.thread_time() - cpu))
            time.sleep(pause)
        return spent

    with ThreadPoolExecutor(4) as pool:
        return [one for spent in pool.map(work, range(4)) for one in spent]


def in_a_loop(model: Any, calls: int, pause: float) -> list[Spent]:
    """Returns what each call takes, made by four tasks of an event loop; CPU includes that of other tasks."""

    async def work() -> list[Spent]:
        spent = []
        for _ in range(calls // 4):
            begun, cpu = time.perf_counter(), time.thread_time()
            await model.ainvoke("a question")
            spent.append((time.perf_counter() - begun, time.thread_time() - cpu))
            await asyncio.sleep(pause)
        return spent

    async def all_of_them() -> list[Spent]:
        return [one for spent in await asyncio.gather(*(work() for _ in range(4))) for one in spent]

    return asyncio.run(all_of_them())


def quantiles(spent: list[float]) -> dict[str, float]:
    """Returns p50 and p99 in milliseconds."""
    cut = statistics.quantiles(spent, n=100)
    return {"p50_ms": 1000 * cut[49], "p99_ms": 1000 * cut[98]}


def measured(calls: int, rounds: int, pause: float) -> dict[str, Any]:
    """Returns the figures of all ways."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, a_shadow("in a process", folder) as process:
        for name, call_all in (("threads", in_threads), ("event loop", in_a_loop)):
            for seconds in (0.0, 0.02):
                spent: dict[str, list[Spent]] = {way: [] for way in WAYS}
                offers: dict[str, list[float]] = {way: [] for way in WAYS}
                counts: dict[str, Any] = {}
                for number in range(rounds):
                    for way in WAYS[number % 4 :] + WAYS[: number % 4]:
                        model: Any = Paced(script=ANSWER, seconds=seconds)
                        if way == "without":
                            spent[way] += call_all(model, calls, pause)
                            continue
                        shadow = process if way == "in a process" else a_shadow(way, folder)
                        shadow._worker.times.clear()
                        spent[way] += call_all(shadow.watch(model), calls, pause)
                        offers[way] += shadow._worker.times
                        counted = shadow.counts
                        counts[way] = {"recorded": counted.recorded, "dropped": counted.dropped}
                        if shadow is not process:
                            shadow.close(0)
                found[f"{name}, answers after {1000 * seconds:g} ms"] = {
                    way: _row(spent[way], spent["without"], offers[way], counts.get(way)) for way in WAYS
                }
    return found


def _row(spent: list[Spent], plain: list[Spent], offers: list[float], counts: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for at, clock in enumerate(("wall", "cpu")):
        own, without = (quantiles([one[at] for one in of]) for of in (spent, plain))
        row[clock] = own | {f"added_{key}": own[key] - without[key] for key in own}
    if offers:
        row["offer"] = quantiles(offers)
        row["last_round"] = counts
    return row


def main() -> None:
    """Measures, prints a table, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200, help="of each way in each round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between the calls of a client")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    figures = measured(given.calls, given.rounds, given.pause)
    for name, rows in figures.items():
        print(name)
        for way, row in rows.items():
            offer = row.get("offer")
            inside = f"   offer {offer['p50_ms']:.3f} / {offer['p99_ms']:.3f}" if offer else ""
            print(f"  {way:14}", *(_shown(clock, row[clock]) for clock in ("wall", "cpu")), inside)
    if given.json:
        about = {
            "command": f"python -m tests.benchmarks.shadow --calls {given.calls} --rounds {given.rounds} "
            f"--pause {given.pause:g}",
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
            f"Python {platform.python_version()}",
            "load_average": [load, os.getloadavg()[0]],
        }
        given.json.write_text(json.dumps({**about, "figures": figures}, indent=1) + "\n", encoding="utf-8")


def _shown(clock: str, one: dict[str, float]) -> str:
    return (
        f"  {clock} p50 {one['p50_ms']:.3f} ({one['added_p50_ms']:+.3f}) "
        f"p99 {one['p99_ms']:.3f} ({one['added_p99_ms']:+.3f}) ms"
    )


if __name__ == "__main__":
    main()
