"""Many connections that ask an OpenAI-compatible server all the time, and what became of their questions."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections import Counter
from typing import Any

import httpx

QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


class Connections:
    """Asks a server.

    Args:
        url: Of the server, with ``/v1``.
        connections: How many ask at once; each has a connection of its own.
        expected: The answer to every question.

    Attributes:
        seconds: Each answered question took.
        lost: Questions without their answer, by what came instead.
    """

    def __init__(self, url: str, connections: int, expected: str) -> None:
        self._url, self._connections, self._expected = url, connections, expected
        self.seconds: list[float] = []
        self.lost: Counter[str] = Counter()
        self.took = 0.0

    async def run(self, seconds: float) -> None:
        """Asks for so many seconds; questions that are under way then are waited for."""
        begun = time.monotonic()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(timeout=120, limits=limits, trust_env=False) as client:

            async def ask_on(connection: int) -> None:
                streams = connection % 2 == 0
                while time.monotonic() - begun < seconds:
                    asked = time.monotonic()
                    try:
                        text = await self._ask(client, streams)
                    except (httpx.HTTPError, ValueError, KeyError) as error:
                        text = f"{type(error).__name__}: {error}"
                    if text == self._expected:
                        self.seconds.append(time.monotonic() - asked)
                    else:
                        self.lost[text[:200]] += 1

            await asyncio.gather(*map(ask_on, range(self._connections)))
        self.took = time.monotonic() - begun

    async def _ask(self, client: httpx.AsyncClient, streams: bool) -> str:
        body = {"model": "trim", "messages": QUESTION, "stream": streams}
        async with client.stream("POST", f"{self._url}/chat/completions", json=body) as answer:
            said = (await answer.aread()).decode()
        if answer.status_code != 200:
            return f"{answer.status_code}: {said}"
        if not streams:
            return str(json.loads(said)["choices"][0]["message"]["content"])
        *data, done = [line for line in said.split("\n\n") if line.startswith("data: ")]
        if done != "data: [DONE]":
            return f"a stream that ends with {done}"
        deltas = (json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in data)
        return "".join(delta.get("content") or "" for delta in deltas)

    def figures(self) -> dict[str, Any]:
        """Returns what was measured, JSON-native."""
        ordered = sorted(self.seconds)
        return {
            "connections": self._connections,
            "questions": len(ordered),
            "lost": dict(self.lost),
            "questions_per_s": len(ordered) / self.took,
            "p50_s": statistics.median(ordered) if ordered else None,
            "p99_s": ordered[int(0.99 * (len(ordered) - 1))] if ordered else None,
            "longest_s": ordered[-1] if ordered else None,
        }
