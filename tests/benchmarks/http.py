"""CPU of an HTTP request, by requests at once: ``python -m tests.benchmarks.http``.

One httpx client with as many connections as there are requests at once, and the pool of this project. The
server, a process of its own, answers each request after a tenth of a second and does nothing else.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import typer

from trim_graph.adapters.vllm.client import VLLMServer, new_client

AT_ONCE = (1, 8, 64, 256)
EACH = 6
"""Requests by each of those that are at once; 60 in all at least."""
DELAY_S = 0.1
PROMPT = {"prompt": "x" * 600, "max_tokens": 64}
ANSWER = {"choices": [{"index": 0, "text": "3 + 4 = 7", "finish_reason": "stop"}]}

Ask = Callable[[], Awaitable[Any]]


def main(output: Annotated[Path | None, typer.Option("--json", help="File for the results.")] = None) -> None:
    """Prints a table, and writes it where that is wanted."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    root = f"http://127.0.0.1:{ours.recv()}"
    found: dict[str, dict[str, float]] = {"one client": {}, "trim-graph": {}}
    for at_once in AT_ONCE:
        for name, way in (("one client", one_client), ("trim-graph", pooled)):
            found[name][str(at_once)] = asyncio.run(way(root, at_once))
    process.terminate()
    print("| CPU ms a request, at once | " + " | ".join(map(str, AT_ONCE)) + " |")
    print("|---|" + "---|" * len(AT_ONCE))
    for name, spent in found.items():
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in spent.values()) + " |")
    if output is not None:
        output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


async def one_client(root: str, at_once: int) -> float:
    """All connections in one client."""
    async with new_client(at_once) as client:

        async def ask() -> Any:
            return (await client.post(f"{root}/v1/completions", json=PROMPT)).json()

        return await cpu_of(ask, at_once)


async def pooled(root: str, at_once: int) -> float:
    """As the adapters ask."""
    server = VLLMServer(root)
    return await cpu_of(lambda: server.post("/v1/completions", PROMPT), at_once)


async def cpu_of(ask: Ask, at_once: int) -> float:
    """Milliseconds of this process's CPU a request."""
    total = max(60, EACH * at_once)
    left = iter(range(total))

    async def work() -> None:
        for _ in left:
            await ask()

    await asyncio.gather(*(ask() for _ in range(at_once)))  # connects
    begun = time.process_time()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return 1000 * (time.process_time() - begun) / total


def serve(reported: Connection) -> None:
    """Answers requests until the process ends; its port is printed first."""
    body = json.dumps(ANSWER).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                asked = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(asked.partition(b"content-length:")[2].split(b"\r\n")[0]))
                await asyncio.sleep(DELAY_S)
                writer.write(head.encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        reported.send(server.sockets[0].getsockname()[1])
        async with server:
            await server.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    typer.run(main)
