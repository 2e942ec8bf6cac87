"""Connections of an event loop to a server: how many, and how they fail."""

import asyncio
from types import SimpleNamespace

import aiohttp
import httpx
import pytest
from httpx_aiohttp.transport import map_aiohttp_exceptions

from trim_graph.adapters.vllm import client
from trim_graph.adapters.vllm.client import TransientError, VLLMServer


@pytest.fixture
def crowd(monkeypatch):
    """Most requests at once, of all clients, in a list of one."""
    now, most = [0], [0]

    def new_client(max_connections):
        async def handler(request):
            now[0] += 1
            most[0] = max(most[0], now[0])
            await asyncio.sleep(0.005)
            now[0] -= 1
            return httpx.Response(200, json={})

        return httpx.AsyncClient(transport=httpx.MockTransport(handler))

    monkeypatch.setattr(client, "new_client", new_client)
    return most


@pytest.mark.parametrize("allowed", [3, 8, 20])
async def test_no_more_requests_at_once_than_allowed(crowd, allowed):
    server = VLLMServer("http://nobody", max_connections=allowed)
    await asyncio.gather(*(server.get("/") for _ in range(50)))
    assert crowd == [allowed]


ADDRESS = SimpleNamespace(host="nobody", port=80, ssl=None, real_url="http://nobody/")
"""What aiohttp says in its errors that it asked."""


class Raising(httpx.AsyncBaseTransport):
    """Raises what aiohttp would, as `httpx_aiohttp` passes it on."""

    def __init__(self, error):
        self._error = error

    async def handle_async_request(self, request):
        with map_aiohttp_exceptions():
            raise self._error


@pytest.mark.parametrize(
    ("error", "says", "begun"),
    [
        (aiohttp.ClientConnectorError(ADDRESS, OSError(111, "refused")), "no server answers", False),
        (aiohttp.ConnectionTimeoutError("slow"), "no server answers", False),
        (aiohttp.ServerDisconnectedError(), "the connection to http://nobody failed", True),
        (aiohttp.ClientOSError(104, "reset"), "the connection to http://nobody failed", True),
        (aiohttp.SocketTimeoutError("silent"), "the connection to http://nobody failed", True),
        (aiohttp.ClientPayloadError("cut"), "the connection to http://nobody failed", True),
        (aiohttp.ClientResponseError(ADDRESS, (), message="no HTTP"), "the connection to", True),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_only_a_server_that_was_not_reached_has_not_begun(monkeypatch, error, says, begun):
    def new_client(max_connections):
        return httpx.AsyncClient(transport=Raising(error))

    monkeypatch.setattr(client, "new_client", new_client)
    with pytest.raises(TransientError, match=says) as raised:
        await VLLMServer("http://nobody").post_once("/", {})
    assert raised.value.begun == begun
