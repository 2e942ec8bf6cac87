"""The graph over servers does what it does over transformers, and gives no key away."""

import asyncio
import json
import logging

import httpx
import pytest
from langgraph.checkpoint.memory import InMemorySaver

from tests.agreement import ASKED, check_agreement, check_watched_steps, run_all
from trim_graph.examples.arithmetic import is_right
from trim_graph.graph import create_trim_graph
from trim_graph.policies import entropy_probe, threshold

from .conftest import KEY


async def test_answers_and_decisions_are_those_of_transformers(
    small, large, scorer, local_small, local_large, local_scorer
):
    ours = await run_all(small, large, scorer)
    check_agreement(ours, await run_all(local_small, local_large, local_scorer))
    right = sum(is_right(problem, one.text) for problem, one in zip(ASKED, ours, strict=True))
    assert right > len(ASKED) / 2


async def test_the_server_stops_where_the_text_shows_the_end_of_a_step(small, large):
    await check_watched_steps(small, large)


async def test_a_probe_finds_the_same_entropies_and_writers_as_in_this_process(
    small, large, local_small, local_large
):
    runs = []
    for models in ((small, large), (local_small, local_large)):
        graph = create_trim_graph(*models, policy=entropy_probe(0.05))
        answers = await asyncio.gather(*(probed(graph, problem) for problem in ASKED))
        runs.append([event for events in answers for event in events])
    for event, local in zip(*runs, strict=True):
        assert (event["event"], event["step"], event.get("writer")) == (
            local["event"],
            local["step"],
            local.get("writer"),
        )
        if event["event"] == "probe":
            assert event["entropy"] <= local["entropy"] + 1e-3
            assert event["entropy"] == pytest.approx(
                local["entropy"], abs=0.02 + 5 * event["unobserved_probability"]
            )
    assert {event.get("writer") for event in runs[0]} == {None, "small", "large"}


async def counted(servers):
    """Tokens that the servers themselves have counted: prompt and generated, by server."""
    reported = {}
    async with httpx.AsyncClient(timeout=60) as client:
        for name, server in servers.items():
            lines = (await client.get(server.url.replace("/v1", "/metrics"))).text.splitlines()
            for kind in ("prompt", "generation"):
                found = [line for line in lines if line.startswith(f"vllm:{kind}_tokens_total")]
                reported[name, kind] = sum(float(line.split()[-1]) for line in found)
    return reported


@pytest.mark.parametrize("policy", [threshold(0.9), entropy_probe(0.001)])
async def test_the_summary_says_what_the_servers_counted(servers, small, large, scorer, policy):
    graph = create_trim_graph(
        small, large, scorer if policy.needs_score else None, policy=policy, budget={"large_tokens": 40}
    )
    await graph.ainvoke({"messages": [("user", ASKED[0].question)]})  # what is asked of a server once
    before = await counted(servers)
    results = await asyncio.gather(
        *(graph.ainvoke({"messages": [("user", problem.question)]}) for problem in ASKED[:12])
    )
    after = await counted(servers)
    spends = [result["trim"]["usage"] for result in results]
    for name in ("small", "large"):
        for kind, key in (("prompt", "input_tokens"), ("generation", "output_tokens")):
            assert sum(spend[name][key] for spend in spends) == after[name, kind] - before[name, kind]
    scored = sum(spend["scorer"]["input_tokens"] for spend in spends)
    assert scored == after["prm", "prompt"] - before["prm", "prompt"]
    assert all(spend["large"]["output_tokens"] <= 40 for spend in spends)
    assert sum(spend["large"]["output_tokens"] for spend in spends) > 0


async def probed(graph, problem):
    stream = graph.astream({"messages": [("user", problem.question)]}, stream_mode="custom")
    return [event async for event in stream if event["event"] in ("probe", "accepted")]


async def test_the_key_is_in_no_event_trace_state_or_log(small, large, scorer, caplog):
    caplog.set_level(logging.DEBUG)
    graph = create_trim_graph(small, large, scorer, policy=threshold(0.9), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    asked = {"messages": [("user", ASKED[0].question)]}
    seen = [str(event) async for event in graph.astream_events(asked, config, version="v2")]
    states = [repr(state) async for state in graph.aget_state_history(config)]
    assert any("on_chat_model_end" in text for text in seen)
    assert len(states) > 3
    assert not [text for text in (*seen, *states, caplog.text, repr(graph), repr(large)) if KEY in text]


@pytest.mark.parametrize("budget", [{"large_tokens": 30}, {"large_cost": 3e-5}])
async def test_budgets_hold_over_servers(small, large, scorer, budget):
    prices = {"large": {"input": 0.1, "output": 1.0}}
    graph = create_trim_graph(small, large, scorer, policy=threshold(1.0), budget=budget, prices=prices)
    results = await asyncio.gather(
        *(graph.ainvoke({"messages": [("user", problem.question)]}) for problem in ASKED[:8])
    )
    for result in results:
        spend = result["trim"]["usage"]["large"]
        assert spend["output_tokens"] <= budget.get("large_tokens", 30)
        cost = (0.1 * spend["input_tokens"] + spend["output_tokens"]) / 1e6
        assert cost <= budget.get("large_cost", 1.0)
    json.dumps([result["trim"] for result in results])
