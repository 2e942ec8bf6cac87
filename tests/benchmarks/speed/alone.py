"""What the graph costs with models that answer at once: CPU, memory, many questions at once; and starting."""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage

from .instant import REGENERATED, STEPS, empty, instant
from .load import Peak, mixed, resident_mb
from .ways import MAX_STEPS, Models, bare, driver, graph_of, skeleton

TURNS = 7
CPU_TURNS = 42
QUESTIONS = 40
HELD = 500
"""Questions at once for the memory of one."""
CROWD = 10_000
HELD_STEPS = 2
WAIT_S = 0.5
"""What a call of a held model takes."""

Ask = Callable[[str], Awaitable[Any]]


def asked(models: Models, *, max_steps: int = MAX_STEPS) -> Ask:
    """The graph, invoked."""
    graph = graph_of(models, max_steps=max_steps)

    async def ask(question: str) -> Any:
        return await graph.ainvoke({"messages": [HumanMessage(question)]})

    return ask


def nothing(models: Models) -> Ask:
    """The four empty nodes, for as many steps."""
    graph = empty()

    async def ask(question: str) -> Any:
        return await graph.ainvoke({"left": STEPS + REGENERATED})

    return ask


WAYS: dict[str, Callable[[Models], Ask]] = {
    "empty": nothing,
    "bare": bare,
    "skeleton": skeleton,
    "trim": asked,
    "driver": driver,
}


def cpu() -> dict[str, Any]:
    """CPU milliseconds of a reasoning step: the least of several runs, since others only add to it."""
    spent: dict[str, list[float]] = {name: [] for name in WAYS}
    questions = mixed(QUESTIONS)
    for _ in range(CPU_TURNS):
        for name, way in WAYS.items():
            ask = way(instant())
            gc.collect()
            begun = time.process_time()
            asyncio.run(_all(ask, questions))
            spent[name].append(1000 * (time.process_time() - begun) / QUESTIONS / STEPS)
    least = {name: min(values) for name, values in spent.items()}
    own = {name: least[name] - least["bare"] for name in ("skeleton", "trim", "driver")}
    return {
        "ms_a_step": least,
        "ms_a_step_without_the_calls": own,
        "trim_to_skeleton": least["trim"] / least["skeleton"],
        "driver_to_skeleton": least["driver"] / least["skeleton"],
        "trim_to_driver": least["trim"] / least["driver"],
        "trim_to_empty_without_the_calls": own["trim"] / least["empty"],
    }


async def _all(ask: Ask, questions: list[str]) -> None:
    await asyncio.gather(*map(ask, questions))


def memory() -> dict[str, Any]:
    """Peak kilobytes of a question under way, each way in a process of its own."""
    kb = {
        name: _in_a_process("held", name, HELD)["kb_a_question"]
        for name in ("bare", "skeleton", "trim", "driver")
    }
    return {"kb_a_question": kb, "at_once": HELD, "trim_to_skeleton": kb["trim"] / kb["skeleton"]}


def crowd() -> dict[str, Any]:
    """Ten thousand questions at once in one process."""
    return _in_a_process("held", "trim", CROWD) | {"at_once": CROWD}


def held(name: str, n: int) -> dict[str, Any]:
    """Asks so many questions at once of models that take their time; all of them must be answered."""
    return asyncio.run(all_at_once(WAYS[name](instant(WAIT_S, steps=HELD_STEPS)), n))


async def all_at_once(ask: Ask, n: int) -> dict[str, Any]:
    """Asks so many questions at once, and counts those that failed."""
    await ask(mixed(1, seed=1000)[0])
    questions = (mixed(20) * (n // 20 + 1))[:n]
    gc.collect()
    begun, before = time.perf_counter(), resident_mb()
    async with Peak() as peak:
        answers = await asyncio.gather(*map(ask, questions), return_exceptions=True)
    failures = [answer for answer in answers if isinstance(answer, BaseException)]
    return {
        "failures": len(failures),
        **({"first_failure": repr(failures[0])} if failures else {}),
        "seconds": time.perf_counter() - begun,
        "peak_mb": peak.mb,
        "kb_a_question": 1000 * (peak.mb - before) / n,
    }


def _in_a_process(*arguments: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.speed", *map(str, arguments)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def start() -> dict[str, Any]:
    """Seconds of starting: imports, and the command line's help."""
    python, program = [sys.executable, "-c"], str(Path(sys.executable).with_name("trim-graph"))
    commands = {
        "python": [*python, "pass"],
        "import langgraph.graph": [*python, "import langgraph.graph"],
        "import trim_graph": [*python, "import trim_graph"],
        "create_trim_graph": [*python, "from trim_graph import create_trim_graph"],
        "trim-graph --help": [program, "--help"],
    }
    took: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(TURNS):
        for name, command in commands.items():
            begun = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            took[name].append(time.perf_counter() - begun)
    seconds = {name: statistics.median(values) for name, values in took.items()}
    nothing_yet = seconds["python"]
    langgraph = seconds["import langgraph.graph"] - nothing_yet
    to_langgraph = {
        name: (seconds[name] - nothing_yet) / langgraph for name in ("import trim_graph", "create_trim_graph")
    }
    return {"seconds": seconds, "to_langgraph": to_langgraph}
