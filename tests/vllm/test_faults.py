"""Every fault between us and the real servers ends as declared."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from tests.fault_proxy import DELAY_S, FAULTS, RETRY_AFTER_S, FaultProxy
from tests.vllm.conftest import KEY, KEY_ENV
from trim_graph import create_trim_graph
from trim_graph.adapters import ChatVLLM, VLLMProcessReward
from trim_graph.adapters.vllm import client
from trim_graph.errors import ModelServerError, ScorerError
from trim_graph.examples.arithmetic import problems
from trim_graph.policies import threshold

PARTS = ("small", "large", "scorer")
QUESTION = {"messages": [("user", problems("standard", 1, seed=11)[0].question)]}
THREAD = {"configurable": {"thread_id": "1"}}

NOT_RETRIED = {("small", "html"), ("large", "html"), ("scorer", "html"), ("scorer", "wrong_json")}
"""What answers with 200 and sense of its own is no server that will be right the next time."""

WORKED_ON = {
    "500",
    "drop",
    "drop_answer",
    "drop_midway",
    "truncate",
    "half_close",
    "stall",
    "garbage",
    "wrong_json",
}
"""Faults of which nobody knows whether the server has worked, and on how much."""


@pytest.fixture
def run(servers, monkeypatch):
    """Runs the graph with one part behind a proxy; gives its state and the proxy.

    Between two attempts it waits only where the server asks for it.
    """
    monkeypatch.setenv(KEY_ENV, KEY)
    monkeypatch.setattr(client, "_backoff", lambda state: 0.0)

    def go(part: str, first: Any = (), then: Any = None, retries: int = 2, **settings: Any) -> Any:
        with ExitStack() as stack:
            name = "prm" if part == "scorer" else part
            urls = {name: server.url for name, server in servers.items()}
            proxy = stack.enter_context(FaultProxy(urls[name], first, then))
            urls[name] = proxy.url
            timeouts = {"read_timeout": 2.0, "max_retries": retries}
            graph = create_trim_graph(
                ChatVLLM(model="small", base_url=urls["small"], **timeouts),
                ChatVLLM(model="large", base_url=urls["large"], api_key_env=KEY_ENV, **timeouts),
                VLLMProcessReward("prm", base_url=urls["prm"], **timeouts),
                policy=threshold(1.0),
                checkpointer=InMemorySaver(),
                max_steps=3,
                max_step_tokens=64,
                **settings,
            )
            graph.invoke(QUESTION, THREAD)
            return graph.get_state(THREAD).values, proxy

    return go


@pytest.fixture(scope="module")
def undisturbed():
    return {}


def _text(state: dict[str, Any]) -> str:
    return str(state["messages"][-1].content)


def _writers(state: dict[str, Any]) -> set[str]:
    return {step["writer"] for step in state["steps"]}


@pytest.mark.parametrize(
    ("part", "fault"),
    [(part, fault) for part in PARTS for fault in FAULTS if (part, fault) not in NOT_RETRIED],
)
def test_a_fault_that_passes_is_made_good(part, fault, run, undisturbed):
    if not undisturbed:
        undisturbed["state"] = run("small")[0]
    begun = time.monotonic()
    state, proxy = run(part, first=[None, fault])
    assert proxy.met == [fault]
    assert _text(state) == _text(undisturbed["state"])
    spend, calm = state["usage"], undisturbed["state"]["usage"]
    assert spend[part]["failed_attempts"] == (fault != "delay")
    assert spend[part]["failed_calls"] == 0
    assert spend[part]["calls"] == calm[part]["calls"]
    if part == "large":
        assert spend["unaccounted_tokens"] == (64 if fault in WORKED_ON else 0)
    if fault in ("delay", "429_wait"):
        assert time.monotonic() - begun > (DELAY_S if fault == "delay" else RETRY_AFTER_S)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "delay"])
@pytest.mark.parametrize(
    ("part", "outcome", "writer"),
    [
        ("small", "large", "large"),
        ("large", "accept", "small"),
        ("scorer", "accept", "small"),
        ("scorer", "regenerate", "large"),
    ],
)
def test_a_fault_that_stays_ends_as_declared(part, outcome, writer, fault, run):
    slow = fault in ("stall", "429_wait")
    state, _ = run(part, then=fault, retries=0 if slow else 1, **{f"on_{part}_error": outcome})
    assert state["stopped"] in ("finished", "max_steps")
    assert len(state["steps"]) >= 1
    assert _writers(state) == {writer}
    assert state["usage"][part]["failed_calls"] >= 1
    assert any(f"the {part if part == 'scorer' else part + ' model'} failed" in n for n in state["notes"])
    assert KEY not in str(state)


@pytest.mark.parametrize("fault", ["500", "drop_midway", "garbage", "wrong_json"])
@pytest.mark.parametrize("part", PARTS)
def test_by_default_it_raises_and_names_the_server(part, fault, run):
    with pytest.raises((ModelServerError, ScorerError), match=r"127\.0\.0\.1:\d+"):
        run(part, then=fault, retries=0)


@pytest.mark.parametrize("part", PARTS)
def test_the_deadline_is_kept_while_a_server_stalls(part, run):
    begun = time.monotonic()
    state, _ = run(part, then="stall", retries=0, budget={"seconds": 1.5})
    assert state["stopped"] == "deadline"
    assert time.monotonic() - begun < 1.5 + 1.5
