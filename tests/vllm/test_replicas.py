"""Real servers with replicas: two proxies before one server, one of which dies in the middle."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.fault_proxy import FaultProxy
from tests.vllm.conftest import KEY, KEY_ENV
from trim_graph import create_trim_graph
from trim_graph.adapters import ChatVLLM, VLLMProcessReward
from trim_graph.examples.arithmetic import problems
from trim_graph.policies import threshold

QUESTIONS = [{"messages": [("user", one.question)]} for one in problems("standard", 6, seed=11)]


@pytest.mark.parametrize("fault", ["drop", "503"])
async def test_all_questions_end_alike_though_a_replica_of_each_server_dies(servers, monkeypatch, fault):
    monkeypatch.setenv(KEY_ENV, KEY)

    def graph(urls):
        return create_trim_graph(
            ChatVLLM(model="small", base_url=urls["small"]),
            ChatVLLM(model="large", base_url=urls["large"], api_key_env=KEY_ENV),
            VLLMProcessReward("prm", base_url=urls["prm"]),
            policy=threshold(0.9),
            max_steps=6,
            max_step_tokens=64,
        )

    calm = await graph({name: server.url for name, server in servers.items()}).abatch(QUESTIONS)
    with ExitStack() as stack:
        pairs = {
            name: [
                stack.enter_context(FaultProxy(server.url, first=[None], then=fault)),
                stack.enter_context(FaultProxy(server.url)),
            ]
            for name, server in servers.items()
        }
        urls = {name: [proxy.url for proxy in pair] for name, pair in pairs.items()}
        states = await graph(urls).abatch(QUESTIONS)
        met = {name: pair[0].met for name, pair in pairs.items()}
    for state, undisturbed in zip(states, calm, strict=True):
        assert state["messages"][-1].content == undisturbed["messages"][-1].content
        assert state["trim"]["stopped"] == undisturbed["trim"]["stopped"]
    assert any(met.values())
