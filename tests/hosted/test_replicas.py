"""A replica that dies while questions are on it."""

import threading
from collections import defaultdict

from tests.fault_proxy import FaultProxy
from trim_graph import create_trim_graph
from trim_graph.adapters import ChatVLLM
from trim_graph.examples.hosted.scripted_server import Answer
from trim_graph.policies import random_rate

STEPS, QUESTIONS, DIES_AT = 4, 12, 15


def _script(body):
    """The next step of a solution, by what stands there."""
    *_, last = body["messages"]
    done = last["content"].count("\n\n") if last["role"] == "assistant" else 0
    if done == STEPS - 1:
        return Answer("so \\boxed{1}")
    return Answer(f"{body['model']} writes {done}", stop_reason="\n\n")


async def test_all_questions_end_though_a_replica_dies(serve):
    asked = 0
    dying = threading.Lock()

    def dies(body):
        nonlocal asked
        with dying:
            asked += 1
            if asked == DIES_AT:
                proxy.__exit__()
        return _script(body)

    lost, kept = serve(dies), serve(_script)
    proxy = FaultProxy(lost.url).__enter__()
    urls = [proxy.url, kept.url]
    graph = create_trim_graph(
        *(ChatVLLM(model=name, base_url=urls, continuation="chat") for name in ("small", "large")),
        policy=random_rate(0.5),
        max_steps=STEPS + 1,
    )
    questions = [{"messages": [("user", f"question {number}")]} for number in range(QUESTIONS)]
    states = await graph.abatch(questions)
    for state in states:
        assert state["messages"][-1].content.count("writes") == STEPS - 1
        assert state["trim"]["stopped"] == "finished"
    assert asked >= DIES_AT
    seen = defaultdict(list)
    for server in (lost, kept):
        for body in server.requests:
            seen[body["messages"][1]["content"]].append(server is kept)
    assert len(seen) == QUESTIONS
    stayed = [places for places in seen.values() if all(places) or not any(places)]
    moved = [places for places in seen.values() if places not in stayed]
    assert moved, "the replica died with questions on it"
    assert any(all(places) for places in stayed), "the other had questions of its own"
    # Each moved once, and for good: within the cooldown nobody goes back.
    assert all(places == sorted(places) for places in moved)
