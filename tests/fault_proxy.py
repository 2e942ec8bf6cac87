"""A TCP proxy that stands before a real HTTP server and spoils what passes through it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import Literal, get_args
from urllib.parse import urlsplit

Fault = Literal[
    "delay",
    "drop",
    "drop_answer",
    "drop_midway",
    "truncate",
    "half_close",
    "stall",
    "429",
    "429_wait",
    "500",
    "503",
    "garbage",
    "html",
    "wrong_json",
]
FAULTS: tuple[Fault, ...] = get_args(Fault)

DELAY_S = 0.3
RETRY_AFTER_S = 1
_WORK = (b"/v1/chat/completions", b"/v1/completions", b"/pooling")
_STATUS = {"429": "Too Many Requests", "500": "Internal Server Error", "503": "Service Unavailable"}


class FaultProxy:
    """Forwards HTTP/1.1 requests; those that ask a model for something meet the faults in their order.

    Args:
        url: The real server's.
        first: Faults of the first such requests; None lets one through.
        then: The fault of all further ones.
        delay: Seconds that the fault ``delay`` takes.

    Attributes:
        met: The faults that were met.
    """

    def __init__(
        self,
        url: str,
        first: Iterable[Fault | None] = (),
        then: Fault | None = None,
        *,
        delay: float = DELAY_S,
    ) -> None:
        self._delay = delay
        parts = urlsplit(url)
        self._host, self._port, self._path = str(parts.hostname), int(parts.port or 80), parts.path
        self._plan: Iterator[Fault | None] = chain(first, repeat(then))
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault proxy", daemon=True)
        self.met: list[Fault] = []
        self.url = ""

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._tasks = set[asyncio.Task[None] | None]()  # a loop keeps no task by itself
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{self._path}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        # A connection that was just made has a task that has not begun.
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)  # closed transports leave the loop

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            await self._handle(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort() if writer.is_closing() else writer.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(b":") for line in lines[1:])}
        request = head + await reader.readexactly(int(headers.get(b"content-length", b"0")))
        fault = next(self._plan) if lines[0].split(b" ")[1] in _WORK else None
        if fault is not None:
            self.met.append(fault)
        await self._spoil(fault, request, writer)

    async def _spoil(self, fault: Fault | None, request: bytes, writer: asyncio.StreamWriter) -> None:
        match fault:
            case "drop":
                writer.transport.abort()
            case "half_close":
                writer.write_eof()
                await asyncio.sleep(30)
            case "stall":
                await asyncio.sleep(600)
            case "garbage":
                writer.write(b"\x00\xff\x13 nothing like HTTP \r\n\r\n")
                await writer.drain()
            case "html":
                await _answer(writer, "200 OK", b"<html>A gateway's page</html>", "text/html")
            case "wrong_json":
                await _answer(writer, "200 OK", b'{"hello": ["world"]}')
            case "429" | "429_wait" | "500" | "503":
                body = json.dumps({"error": {"message": "the test asked for it"}}).encode()
                wait = f"retry-after: {RETRY_AFTER_S}\r\n" if fault == "429_wait" else ""
                await _answer(writer, f"{fault[:3]} {_STATUS[fault[:3]]}", body, more=wait)
            case _:
                if fault == "delay":
                    await asyncio.sleep(self._delay)
                await self._forward(fault, request, writer)

    async def _forward(self, fault: Fault | None, request: bytes, writer: asyncio.StreamWriter) -> None:
        upstream, sender = await asyncio.open_connection(self._host, self._port)
        try:
            line, _, rest = request.partition(b"\r\n")
            lowered = rest.replace(b"onnection: keep-alive", b"onnection: close")
            sender.write(line + b"\r\n" + lowered)
            if fault not in ("drop_answer", "drop_midway", "truncate"):
                while piece := await upstream.read(65536):
                    writer.write(piece)
                    await writer.drain()
                return
            answer = await upstream.read()
            if fault != "drop_answer":
                body = answer.index(b"\r\n\r\n") + 4
                writer.write(answer[: (body + len(answer)) // 2])
                await writer.drain()
            if fault != "truncate":
                await asyncio.sleep(0.05)
                writer.transport.abort()
        finally:
            sender.close()


async def _answer(
    writer: asyncio.StreamWriter, status: str, body: bytes, kind: str = "application/json", more: str = ""
) -> None:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}"
    writer.write(head.encode() + b"connection: close\r\n\r\n" + body)
    await writer.drain()
