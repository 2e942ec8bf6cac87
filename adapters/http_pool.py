"""One HTTP client per event loop and server, shared by all adapters and closed with the loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import httpx

_KEEP_ALIVE_S = 4.0
"""Below the 5 s after which uvicorn, which vLLM runs on, drops an idle connection."""


@dataclass(slots=True, eq=False)
class Pool:
    """The connections from one event loop to one server."""

    client: httpx.AsyncClient
    gate: asyncio.Semaphore
    """Queues callers; httpx's own queue takes quadratic time with thousands of them."""
    life: AsyncGenerator[None, None] | None = None


_Key = tuple[str, int, asyncio.AbstractEventLoop]
_pools: dict[_Key, Pool] = {}


def new_client(max_connections: int) -> httpx.AsyncClient:
    """A client without a limit of its own on time."""
    limits = httpx.Limits(
        max_connections=max_connections,
        max_keepalive_connections=max_connections,
        keepalive_expiry=_KEEP_ALIVE_S,
    )
    return httpx.AsyncClient(limits=limits)


async def pool_for(root: str, max_connections: int) -> Pool:
    """The pool of the running event loop for a server; made at the first call, closed with the loop."""
    key = (root, max_connections, asyncio.get_running_loop())
    pool = _pools.get(key)
    if pool is None:
        for old in [other for other in list(_pools) if other[2].is_closed()]:
            _pools.pop(old, None)
        pool = _pools[key] = Pool(new_client(max_connections), asyncio.Semaphore(max_connections))
        # A loop that shuts down closes its async generators: that is when the connections close.
        pool.life = _lifetime(key, pool)
        await anext(pool.life)
    return pool


async def _lifetime(key: _Key, pool: Pool) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        _pools.pop(key, None)
        await pool.client.aclose()
