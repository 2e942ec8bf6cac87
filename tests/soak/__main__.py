"""Long runs on real vLLM servers, too long for every change: ``make soak``.

::

    python -m tests.soak faults -n 1000       # one request in ten meets a fault before the servers
    python -m tests.soak steady --minutes 30  # the same load all the time, no faults

Both start three servers (``TRIM_VLLM_PYTHON`` names a Python with vLLM), print a table and write JSON with
``--json``. They end with 1 where a promise is broken: a question without a well-formed end, a deadline
missed by more than a second, growth.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tests.fault_proxy import FAULTS, FaultProxy
from tests.server.conftest import SMALL
from tests.server.processes import config, script, start
from tests.soak.connections import Connections
from tests.soak.load import Load, Sample, grown
from tests.vllm.conftest import KEY, KEY_ENV, running_servers
from trim_graph import create_trim_graph
from trim_graph.adapters import ChatVLLM, VLLMProcessReward
from trim_graph.examples.hosted.scripted_server import ScriptedServer
from trim_graph.policies import threshold

DEADLINE_S = 60.0
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
Output = Annotated[Path | None, typer.Option("--json", help="File for the results.")]


@app.command()
def faults(
    n: Annotated[int, typer.Option("-n", min=100, help="Questions.")] = 1000,
    concurrency: Annotated[int, typer.Option(min=1)] = 64,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of requests that meet a fault.")] = 0.1,
    seed: int = 0,
    output: Output = None,
) -> None:
    """Questions while one request in ten is delayed, dropped, cut, refused or answered with garbage."""
    chance = random.Random(seed)

    def plan() -> Any:
        while True:
            yield chance.choice(FAULTS) if chance.random() < share else None

    with running_servers() as servers:
        urls = {name: server.url for name, server in servers.items()}
        proxies = [FaultProxy(urls[name], plan()) for name in ("small", "large", "prm")]
        for proxy, name in zip(proxies, ("small", "large", "prm"), strict=True):
            urls[name] = proxy.__enter__().url
        try:
            load = Load(_graph(urls), concurrency=concurrency)
            asyncio.run(load.questions(n))
        finally:
            for proxy in proxies:
                proxy.__exit__()
    met = sum(len(proxy.met) for proxy in proxies)
    _report(load, output, {"questions": n, "faults met": met, "seed": seed})


@app.command()
def steady(
    minutes: Annotated[float, typer.Option(min=0.1)] = 30.0,
    concurrency: Annotated[int, typer.Option(min=1)] = 16,
    output: Output = None,
) -> None:
    """The same load for a long time: memory, file handles and the event loop's lag stay flat."""
    with running_servers() as servers:
        load = Load(_graph({name: server.url for name, server in servers.items()}), concurrency=concurrency)
        asyncio.run(load.minutes(minutes))
    _report(load, output, {"minutes": minutes})


@app.command()
def serve(
    seconds: Annotated[float, typer.Option(min=1)] = 60.0,
    connections: Annotated[int, typer.Option(min=1)] = 256,
    workers: Annotated[int, typer.Option(min=1)] = 2,
    latency: Annotated[float, typer.Option(min=0, help="Seconds that a model takes for a step.")] = 0.05,
    output: Output = None,
) -> None:
    """Connections that ask `trim-graph serve`, in front of a scripted model server; none is lost."""
    text, figures = "\n\n".join(SMALL), {"workers": workers, "latency_s": latency}
    with tempfile.TemporaryDirectory() as folder, ScriptedServer(script, latency=latency) as models:
        limit = ("--max-questions", str(connections))
        process = start(Path(folder), config(models.url), "--workers", str(workers), *limit)
        try:
            process.wait_until_up()
            load = Connections(process.url, connections, text)
            asyncio.run(load.run(seconds))
        finally:
            process.end()
    figures |= {"date": time.strftime("%Y-%m-%d"), **load.figures()}
    Console().print(figures)
    if output is not None:
        output.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(bool(load.lost))


def _graph(urls: dict[str, str]) -> Any:
    os.environ[KEY_ENV] = KEY
    timeouts: dict[str, Any] = {"read_timeout": 5.0, "max_retries": 2}
    return create_trim_graph(
        ChatVLLM(model="small", base_url=urls["small"], **timeouts),
        ChatVLLM(model="large", base_url=urls["large"], api_key_env=KEY_ENV, **timeouts),
        VLLMProcessReward("prm", base_url=urls["prm"], **timeouts),
        policy=threshold(0.9),
        budget={"seconds": DEADLINE_S, "large_tokens": 400},
        on_small_error="large",
        on_large_error="accept",
        on_scorer_error="accept",
        max_step_tokens=64,
    )


def _report(load: Load, output: Path | None, reported: dict[str, Any]) -> None:
    console = Console()
    console.print(Sample.table(load.samples))
    broken = [*load.broken, *grown(load.samples)]
    late = [seconds for seconds in load.seconds if seconds > DEADLINE_S + 1]
    if late:
        broken.append(
            f"{len(late)} questions ended later than a second after their deadline of {DEADLINE_S} s"
        )
    results = {
        **reported,
        "date": time.strftime("%Y-%m-%d"),
        "ended": dict(load.ended),
        "longest_s": max(load.seconds, default=0.0),
        "questions_per_s": len(load.seconds) / load.took,
        "samples": [sample._asdict() for sample in load.samples],
        "broken": broken,
    }
    console.print({key: value for key, value in results.items() if key != "samples"})
    if output is not None:
        output.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(bool(broken))


if __name__ == "__main__":
    app()
