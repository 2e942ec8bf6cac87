"""What shadow mode adds to an application's calls: p50 and p99, alone and while the shadow works.

``python -m tests.benchmarks.shadow [--json FILE] [--calls N]``. The application makes calls at a steady pace,
from one event loop or several threads; its model answers at once or after 20 ms, as a server does. The same
calls are timed without a shadow, with one that draws nothing, and with one that walks along every answer, its
models scripted, so that its Python competes for the interpreter as much as it can. ``submit`` alone is timed
inside the calls. The ways take turns within a round.
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
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

ANSWER = [f"step {number} says about ten words of text on this one" for number in range(5)] + ["\\boxed{1}"]
DRAWN = {"without": None, "nothing drawn": 0.0, "every answer": 1.0}


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


class TimedShadow(Shadow):
    """A shadow that notes how long each `submit` takes."""

    times: list[float]

    def submit(self, *given: Any, **options: Any) -> bool:
        begun = time.perf_counter()
        taken = super().submit(*given, **options)
        self.times.append(time.perf_counter() - begun)
        return taken


def a_shadow(rate: float, folder: str) -> TimedShadow:
    """Returns a shadow of scripted models that examines a share of the answers."""
    small, large = ScriptedChatModel(script=ANSWER), ScriptedChatModel(script=ANSWER)
    shadow = TimedShadow(
        small,
        large,
        ScriptedScorer(),
        policy=threshold(0.5),
        answers="large",
        record=Path(folder) / f"{time.monotonic_ns()}.jsonl",
        rate=rate,
        capacity=64,
    )
    shadow.times = []
    return shadow


def in_threads(model: Any, calls: int, pause: float) -> list[float]:
    """Returns the seconds of each call, made by four threads at a pace."""

    def work(_: int) -> list[float]:
        spent = []
        for _ in range(calls // 4):
            begun = time.perf_counter()
            model.invoke("a question")
            spent.append(time.perf_counter() - begun)
            time.sleep(pause)
        return spent

    with ThreadPoolExecutor(4) as pool:
        return [one for spent in pool.map(work, range(4)) for one in spent]


def in_a_loop(model: Any, calls: int, pause: float) -> list[float]:
    """Returns the seconds of each call, made by four tasks of an event loop at a pace."""

    async def work() -> list[float]:
        spent = []
        for _ in range(calls // 4):
            begun = time.perf_counter()
            await model.ainvoke("a question")
            spent.append(time.perf_counter() - begun)
            await asyncio.sleep(pause)
        return spent

    async def all_of_them() -> list[float]:
        return [one for spent in await asyncio.gather(*(work() for _ in range(4))) for one in spent]

    return asyncio.run(all_of_them())


def quantiles(spent: list[float]) -> dict[str, float]:
    """Returns p50 and p99 in milliseconds."""
    cut = statistics.quantiles(spent, n=100)
    return {"p50_ms": 1000 * cut[49], "p99_ms": 1000 * cut[98]}


def measured(calls: int, rounds: int, pause: float) -> dict[str, Any]:
    """Returns the figures of all ways."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, way in (("threads", in_threads), ("event loop", in_a_loop)):
            for seconds in (0.0, 0.02):
                spent: dict[str, list[float]] = {one: [] for one in DRAWN}
                submits: dict[str, list[float]] = {one: [] for one in DRAWN}
                counted: dict[str, Any] = {}
                for number in range(rounds):
                    order = list(DRAWN)[number % 3 :] + list(DRAWN)[: number % 3]
                    for one in order:
                        model: Any = Paced(script=ANSWER, seconds=seconds)
                        rate = DRAWN[one]
                        if rate is None:
                            spent[one] += way(model, calls, pause)
                            continue
                        shadow = a_shadow(rate, folder)
                        spent[one] += way(shadow.watch(model), calls, pause)
                        submits[one] += shadow.times
                        counts = shadow.counts
                        counted[one] = {"recorded": counts.recorded, "dropped": counts.dropped}
                        shadow.close(0)
                plain = quantiles(spent["without"])
                rows = {}
                for one in DRAWN:
                    row: dict[str, Any] = quantiles(spent[one])
                    row |= {f"added_{key}": row[key] - plain[key] for key in ("p50_ms", "p99_ms")}
                    if submits[one]:
                        row["submit"] = quantiles(submits[one])
                        row["last_round"] = counted[one]
                    rows[one] = row
                found[f"{name}, answers after {1000 * seconds:g} ms"] = rows
    return found


def main() -> None:
    """Measures, prints a table, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200, help="of each way in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between the calls of a client")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = measured(given.calls, given.rounds, given.pause)
    for name, rows in figures.items():
        print(name)
        for one, row in rows.items():
            submit = row.get("submit")
            inside = f"   submit {submit['p50_ms']:.3f} / {submit['p99_ms']:.3f} ms" if submit else ""
            print(
                f"  {one:14} p50 {row['p50_ms']:8.3f} ms ({row['added_p50_ms']:+.3f})   "
                f"p99 {row['p99_ms']:8.3f} ms ({row['added_p99_ms']:+.3f}){inside}"
            )
    if given.json:
        about = {
            "command": f"python -m tests.benchmarks.shadow --calls {given.calls} --rounds {given.rounds}",
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
            f"Python {platform.python_version()}",
        }
        given.json.write_text(json.dumps({**about, "figures": figures}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
