"""Connections of an event loop to a server: how many, of which client, and how long."""

import asyncio

import httpx
import pytest

from trim_graph.adapters.vllm import client
from trim_graph.adapters.vllm.client import VLLMServer


@pytest.fixture
def crowds(monkeypatch):
    """Most requests at once: of each client in the order of their making, and of all."""
    now, most, most_of_all = [], [], [0]

    def new_client(room):
        number = len(most)
        most.append(0)
        now.append(0)

        async def handler(request):
            now[number] += 1
            most[number] = max(most[number], now[number])
            most_of_all[0] = max(most_of_all[0], sum(now))
            await asyncio.sleep(0.005)
            now[number] -= 1
            return httpx.Response(200, json={})

        assert room > 0
        return SlowlyClosed(transport=httpx.MockTransport(handler))

    class SlowlyClosed(httpx.AsyncClient):
        async def aclose(self):
            await asyncio.sleep(0.01)
            await super().aclose()

    monkeypatch.setattr(client, "new_client", new_client)
    return most, most_of_all


@pytest.mark.parametrize("allowed", [3, 8, 20])
async def test_no_more_requests_at_once_than_allowed(crowds, allowed):
    server = VLLMServer("http://nobody", max_connections=allowed)
    await asyncio.gather(*(server.get("/") for _ in range(50)))
    each, of_all = crowds
    assert of_all == [allowed]
    assert sum(each) == allowed
    assert max(each) <= client.SLOT_CONNECTIONS


async def test_connections_of_a_busier_time_are_closed(crowds, monkeypatch):
    server = VLLMServer("http://nobody")
    await asyncio.gather(*(server.get("/") for _ in range(3 * client.SLOT_CONNECTIONS)))
    pool = await client.pool_for(server.root, server.max_connections)
    first, *others = pool.slots
    assert len(others) == 2
    await server.get("/")
    assert len(pool.slots) == 3
    monkeypatch.setattr(client, "KEEP_ALIVE_S", -1.0)
    await asyncio.gather(*(server.get("/") for _ in range(3)))
    assert pool.slots == [first]
    assert all(slot.client.is_closed for slot in others)
    assert not first.client.is_closed
