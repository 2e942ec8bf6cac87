"""256 connections at once; `python -m tests.soak serve` asks for a minute."""

import asyncio

from tests.server.conftest import TEXT, parts_of
from tests.soak.connections import Connections


def test_no_question_of_256_connections_is_lost(serve):
    server = serve(parts_of(pace=0.05))
    load = Connections(server.url, 256, TEXT)
    asyncio.run(load.run(0.5))
    assert not load.lost
    assert len(load.seconds) >= 256
    assert server.under_way == 0
    counted = server.metrics['trim_requests_total{point="configured",status="200"}']
    assert counted == len(load.seconds)
