"""The HTTP clients of an event loop for a server, shared by all adapters and closed with the loop."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache

import httpx

from trim_graph.errors import ModelServerError

KEEP_ALIVE_S = 4.0
"""Below the 5 s after which uvicorn, which vLLM runs on, drops an idle connection."""
LANE = 8
"""Most connections of one client. For every request httpx compares all connections of its client with all
others, which with a hundred of them takes ten times as long as all else (`tests.benchmarks.http`)."""


@dataclass(slots=True, eq=False)
class Lane:
    """A client with a few connections."""

    client: httpx.AsyncClient
    room: int
    """Connections that it may have."""
    busy: int = 0
    left_at: float = 0.0
    """When its last request ended, in seconds of the monotonic clock."""


@dataclass(slots=True, eq=False)
class Pool:
    """The connections from one event loop to one server.

    Args:
        max_connections: All clients' together.
    """

    max_connections: int
    gate: asyncio.Semaphore = field(init=False)
    """Queues callers; httpx's own queue takes quadratic time with thousands of them."""
    lanes: list[Lane] = field(init=False, default_factory=list)
    life: AsyncGenerator[None, None] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.gate = asyncio.Semaphore(self.max_connections)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Wait for a turn, and lend a client for one request."""
        async with self.gate:
            await self._close_idle()
            # The first that has room, so that the last ones fall idle where there is less to do.
            lane = next((lane for lane in self.lanes if lane.busy < lane.room), None) or self._new_lane()
            lane.busy += 1
            try:
                yield lane.client
            finally:
                lane.busy -= 1
                lane.left_at = time.monotonic()

    async def close(self) -> None:
        """Close all connections."""
        for lane in self.lanes:
            await lane.client.aclose()

    def _new_lane(self) -> Lane:
        room = min(LANE, self.max_connections - sum(lane.room for lane in self.lanes))
        lane = Lane(new_client(room), room)
        self.lanes.append(lane)
        return lane

    async def _close_idle(self) -> None:
        """Close clients that were needed at a busier time: httpx drops old connections only at a request."""
        since = time.monotonic() - KEEP_ALIVE_S
        idle = [lane for lane in self.lanes[1:] if not lane.busy and lane.left_at < since]
        for lane in idle:  # all before the first wait, in which others come by
            self.lanes.remove(lane)
        for lane in idle:
            await lane.client.aclose()


_Key = tuple[str, int, asyncio.AbstractEventLoop]
_pools: dict[_Key, Pool] = {}


@cache
def _certificates() -> ssl.SSLContext:
    """Read once: that takes longer than many requests."""
    return httpx.create_ssl_context()


def new_client(max_connections: int) -> httpx.AsyncClient:
    """A client without a limit of its own on time."""
    limits = httpx.Limits(
        max_connections=max_connections,
        max_keepalive_connections=max_connections,
        keepalive_expiry=KEEP_ALIVE_S,
    )
    try:
        return httpx.AsyncClient(limits=limits, verify=_certificates())
    except (ValueError, ImportError, httpx.InvalidURL):
        fault = "is not the URL of a proxy that httpx can use"
    # Out of the except clause: httpx's own words may repeat a proxy's password.
    raise ModelServerError(f"a proxy of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) {fault}")


async def pool_for(root: str, max_connections: int) -> Pool:
    """The pool of the running event loop for a server; made at the first call, closed with the loop."""
    key = (root, max_connections, asyncio.get_running_loop())
    pool = _pools.get(key)
    if pool is None:
        for old in [other for other in list(_pools) if other[2].is_closed()]:
            _pools.pop(old, None)
        pool = _pools[key] = Pool(max_connections)
        # A loop that shuts down closes its async generators: that is when the connections close.
        pool.life = _lifetime(key, pool)
        await anext(pool.life)
    return pool


async def _lifetime(key: _Key, pool: Pool) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        _pools.pop(key, None)
        await pool.close()
