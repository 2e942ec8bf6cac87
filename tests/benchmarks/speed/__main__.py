"""How fast routing is, against real vLLM servers and engines: ``make bench``.

::

    python -m tests.benchmarks.speed servers   # three vLLM servers; TRIM_VLLM_PYTHON names a Python with vLLM
    python -m tests.benchmarks.speed engines   # three engines in this process; in a Python with vLLM
    python -m tests.benchmarks.speed graph     # no models: CPU, memory, many questions at once, starting
    python -m tests.benchmarks.speed crowd     # ten thousand questions at once on the servers
    python -m tests.benchmarks.speed parts     # each server alone, for the plan of a load
    python -m tests.benchmarks.speed paced     # engines with accelerators of their own, emulated
    python -m tests.benchmarks.speed workers   # processes of an evaluation
    python -m tests.benchmarks.speed batching  # wait factors of batched requests, fixed and adaptive
    python -m tests.benchmarks.speed widen DIR # models as large as the paper's, with the examples' answers;
                                               # servers and engines with --widened DIR measure them on a GPU
    python -m tests.benchmarks.speed report    # the table and the plot of all that was measured

Each measures all ways in turn, several times, and takes medians: of metrics, and of the ratios within a turn.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .load import Clock, Peak, ask_all, medians, metrics, mixed, mixed_problems, ratios, same
from .ways import bare, driver, skeleton, streamed, trim

RESULTS = Path(__file__).with_name("results.json")
WAYS = {"trim": trim, "streamed": streamed, "driver": driver, "bare": bare, "skeleton": skeleton}
"""Ways to solve each question by itself."""
OURS = ("trim", "driver")
"""Those that are compared with the others."""
QUESTIONS = {1: 6, 8: 24, 64: 96, 256: 256}
"""How many are asked, by how many at once."""

LOCK_STEPPED = 128
"""Questions asked of the lock-step loop and of the graph, all at once."""
WORKERS = (1, 2, 4)
"""Processes of an evaluation."""
TOGETHER = 128
"""Most calls that go to a server as one request."""
WAIT_FACTOR = 4.0
"""The example models write a step in a tenth of a second."""
ADAPTIVE = "adaptive"
BATCHING: dict[str, tuple[int, float | None]] = {
    "apart": (1, None),
    **{f"factor {factor:g}": (TOGETHER, factor) for factor in (0.25, 1.0, 4.0)},
    ADAPTIVE: (TOGETHER, None),
    **{f"{ADAPTIVE}, {most} a request": (most, None) for most in (32, 64)},
}
"""Most calls that go as one request, and the wait factor, by the names of the ways to batch."""

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
Output = Annotated[Path, typer.Option("--json", help="File for the results; other parts of it stay.")]
Turns = Annotated[int, typer.Option("--turns", min=1)]
WaitFactor = Annotated[float, typer.Option("--wait-factor", help="`batch_wait_factor` of the chat models.")]
Widened = Annotated[
    Path | None,
    typer.Option("--widened", help="Folder of `widen`: models as large as the paper's, on a GPU."),
]
AtOnce = Annotated[list[int] | None, typer.Option("--at-once", help="Questions at once; several times.")]


@app.command()
def servers(
    turns: Turns = 3,
    at_once: AtOnce = None,
    together: int = TOGETHER,
    wait_factor: WaitFactor = WAIT_FACTOR,
    widened: Widened = None,
    output: Output = RESULTS,
    lock: bool = True,
) -> None:
    """Over HTTP."""
    from tests.vllm.conftest import running_servers

    from .served import Servers, server_options

    started = running_servers()
    keep = partial(_keep, output, "servers")
    if widened is not None:
        from .widened import folders

        started = running_servers(folders(widened), server_options)
        keep = _keep_of_gpu(output, "gpu_servers")
    with started as running:
        place = Servers(running, together=together, wait_factor=wait_factor)
        asyncio.run(_measured(place, turns, at_once, lock, keep))


@app.command()
def engines(
    turns: Turns = 3,
    at_once: AtOnce = None,
    widened: Widened = None,
    output: Output = RESULTS,
    lock: bool = True,
) -> None:
    """In process."""
    for name, value in (("HF_HUB_OFFLINE", "1"), ("VLLM_NO_USAGE_STATS", "1"), ("OMP_NUM_THREADS", "1")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from .served import Engines, on_a_gpu

    if widened is None:
        held, keep = Engines(), partial(_keep, output, "engines")
    else:
        from .widened import folders

        held, keep = Engines(folders(widened), on_a_gpu), _keep_of_gpu(output, "gpu_engines")
    try:
        asyncio.run(_measured(held, turns, at_once, lock, keep))
    finally:
        held.close()


@app.command()
def widen(folder: Path) -> None:
    """Writes the example models with as many parameters as those of the paper."""
    import torch

    from .widened import widen_all

    for name, place in widen_all(folder, device="cuda" if torch.cuda.is_available() else "cpu").items():
        print(name, place, flush=True)


@app.command()
def graph(output: Output = RESULTS) -> None:
    """Without models: CPU, memory, ten thousand questions at once, starting."""
    from . import alone

    parts = {"start": alone.start, "cpu": alone.cpu, "memory": alone.memory, "crowd": alone.crowd}
    for name, part in parts.items():
        found = part()
        print(name, json.dumps(found, indent=1), flush=True)
        _keep(output, "graph", {name: found})


@app.command()
def crowd(n: int = 10_000, steps: int = 2, output: Output = RESULTS) -> None:
    """So many questions at once over HTTP, cut off after a few steps."""
    from tests.vllm.conftest import running_servers

    from . import alone
    from .served import Servers

    async def run(place: Servers) -> dict[str, Any]:
        return await alone.all_at_once(alone.asked(await place.fresh(), max_steps=steps), n)

    with running_servers() as running:
        found = asyncio.run(run(Servers(running, together=TOGETHER, wait_factor=WAIT_FACTOR)))
    print(json.dumps(found, indent=1))
    _keep(output, "crowd", found | {"at_once": n, "steps": steps})


@app.command()
def parts(turns: Turns = 3, output: Output = RESULTS) -> None:
    """Tokens a second of each server alone, over HTTP."""
    from tests.vllm.conftest import running_servers

    from .parts import measured
    from .served import Servers

    with running_servers() as running:
        found = asyncio.run(measured(Servers(running, together=TOGETHER, wait_factor=WAIT_FACTOR), turns))
    print(json.dumps(found, indent=1))
    _keep(output, "parts", found)


@app.command()
def paced(turns: Turns = 3, output: Output = RESULTS) -> None:
    """Against the lock-step loop, with engines that take time and no CPU."""
    from .paced import Pace, Paced, Solutions

    drawn = [one for turn in range(turns) for one in mixed_problems(LOCK_STEPPED, _seed(turn))]
    found, solutions = {}, Solutions(drawn)
    for pace in (Pace(8, 8, 2), Pace(8, 16, 4), Pace(8, 32, 8)):
        name = f"{pace.small:g}/{pace.large:g} ms a token, {pace.scorer:g} ms a score"
        print(name)
        found[name] = asyncio.run(_against_lock_step(Paced(pace, solutions), turns))
    _keep(output, "paced", found)


@app.command()
def batching(turns: Turns = 3, at_once: AtOnce = None, output: Output = RESULTS) -> None:
    """Wait factors of batched requests: fixed ones, and the adaptive one."""
    from tests.vllm.conftest import running_servers

    from .served import Servers

    with running_servers() as running:
        places = {
            name: Servers(running, together=together, wait_factor=factor)
            for name, (together, factor) in BATCHING.items()
        }
        asyncio.run(_batched(places, turns, at_once, partial(_keep, output, "batching")))


async def _batched(
    places: dict[str, Any], turns: int, at_once: list[int] | None, keep: Callable[[dict[str, Any]], None]
) -> None:
    """The graph on the same questions with each way to batch requests."""
    await ask_all(trim(await places[ADAPTIVE].fresh()), mixed(4, seed=1000), 4)
    for concurrency in QUESTIONS if at_once is None else at_once:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in places}
        for turn in range(turns):
            for name in _turned(list(places), turn):
                way = trim(await places[name].fresh())
                with Clock(places[name].elsewhere) as clock:
                    solved = await ask_all(way, mixed(QUESTIONS[concurrency], seed=turn), concurrency)
                runs[name].append(metrics(solved, clock))
                _say(concurrency, name, runs[name][-1])
        found = {
            "turns": turns,
            "ways": {name: medians(of) for name, of in runs.items()},
            "adaptive_to": ratios(runs, ADAPTIVE, tuple(name for name in runs if name != ADAPTIVE)),
        }
        keep({str(concurrency): found})


@app.command()
def workers(
    turns: Turns = 3,
    count: Annotated[list[int] | None, typer.Option(help="Workers; several times.")] = None,
    output: Output = RESULTS,
) -> None:
    """Several processes, with engines that are faster than one process."""
    from .workers import measured

    _keep(output, "workers", measured(count or WORKERS, turns, lambda line: print(line, flush=True)))


@app.command(hidden=True)
def held(name: str, n: int) -> None:
    """One way, so many questions at once; in a process of its own."""
    from . import alone

    print(json.dumps(alone.held(name, n)))


@app.command()
def report(given: Output = RESULTS) -> None:
    """The tables, and the plot beside the results."""
    from . import plot

    found = json.loads(given.read_text("utf-8"))
    print(plot.table(plot.rows(found)), "", plot.table(plot.ratio_rows(found)), sep="\n")
    print(*plot.draw(found, given.with_name("speed")))


async def _measured(
    place: Any, turns: int, at_once: list[int] | None, lock: bool, keep: Callable[[dict[str, Any]], None]
) -> None:
    await ask_all(trim(await place.fresh()), mixed(4, seed=1000), 4)  # what is loaded at the first call
    if lock:
        keep({"lock_step": await _against_lock_step(place, turns)})
    for concurrency in QUESTIONS if at_once is None else at_once:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
        for turn in range(turns):
            questions = mixed(QUESTIONS[concurrency], seed=turn)
            texts = {}
            for name in _turned(list(WAYS), turn):
                way = WAYS[name](await place.fresh())
                async with Peak() as peak:
                    with Clock(place.elsewhere) as clock:
                        solved = await ask_all(way, questions, concurrency)
                texts[name] = solved
                runs[name].append(
                    metrics(solved, clock) | {"mb_a_question": (peak.mb - peak.before) / concurrency}
                )
                _say(concurrency, name, runs[name][-1])
            for name in WAYS:
                runs[name][-1]["same_solutions"] = same(texts[name], texts["bare"])
        found = {
            "turns": turns,
            "ways": {name: medians(of) for name, of in runs.items()},
            **{f"{name}_to": ratios(runs, name, [one for one in WAYS if one != name]) for name in OURS},
        }
        keep({str(concurrency): found})


async def _against_lock_step(place: Any, turns: int) -> dict[str, Any]:
    """The graph, with and without LangGraph's loop, and the lock-step loop: the same questions at once."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in (*OURS, "lock_step")}
    for turn in range(turns):
        questions = mixed(LOCK_STEPPED, _seed(turn))
        texts = {}
        for name in _turned(list(runs), turn):
            if name in OURS:
                way = WAYS[name](await place.fresh())
                with Clock(place.elsewhere) as clock:
                    texts[name] = await ask_all(way, questions, LOCK_STEPPED)
            else:
                async with place.lock_step(questions) as loop:
                    with Clock(place.elsewhere) as clock:
                        texts[name] = await loop()
            runs[name].append(metrics(texts[name], clock))
            _say(LOCK_STEPPED, name, runs[name][-1])
        for name in runs:
            runs[name][-1]["same_solutions"] = same(texts[name], texts["lock_step"])
    return {
        "turns": turns,
        "ways": {name: medians(of) for name, of in runs.items()},
        **{f"{name}_to": ratios(runs, name, ("lock_step",)) for name in OURS},
    }


def _seed(turn: int) -> int:
    """Of the questions of a turn against the lock-step loop."""
    return 100 + turn


def _turned(names: list[str], turn: int) -> list[str]:
    """Begins with another one at each turn."""
    return names[turn % len(names) :] + names[: turn % len(names)]


def _say(concurrency: int, name: str, run: dict[str, float]) -> None:
    print(
        f"{concurrency:4} at once  {name:9} {run['questions_per_s']:7.2f} questions/s "
        f"{run['tokens_per_s']:7.0f} tokens/s  median {run['latency_s']:6.2f} s "
        f"first step {run.get('first_step_s', math.nan):6.2f} s  CPU a step {run['cpu_ms_a_step']:6.2f} ms",
        flush=True,
    )


def _processor() -> str:
    """Returns the model of the processor, where the system names it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _keep_of_gpu(output: Path, part: str) -> Callable[[dict[str, Any]], None]:
    import torch

    return lambda found: _keep(output, part, {"gpu": torch.cuda.get_device_name(), **found})


def _keep(output: Path, part: str, found: dict[str, Any]) -> None:
    kept = json.loads(output.read_text("utf-8")) if output.exists() else {}
    kept[part] = kept.get(part, {}) | {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        **found,
    }
    output.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    app()
