"""Lookahead with vLLM servers: what is written ahead, and how that ends when it is of no use."""

import asyncio

import httpx

from tests.agreement import ASKED
from trim_graph import create_trim_graph
from trim_graph.policies import threshold

from .test_chat import EVERLASTING

MOST = 600


async def outcome(server, name):
    """One of vLLM's own metrics."""
    async with httpx.AsyncClient(timeout=30) as client:
        lines = (await client.get(server.url.replace("/v1", "/metrics"))).text.splitlines()
    return float(next(line for line in lines if line.startswith(f"vllm:{name}")).split()[-1])


async def until(server, running):
    """Waits until the server has requests under way, or has none."""
    for _ in range(2000):
        if bool(await outcome(server, "num_requests_running")) == running:
            return
        await asyncio.sleep(0.01)


async def test_answers_are_those_without_and_every_token_is_counted(servers, small, large, scorer):
    async def answers(lookahead):
        graph = create_trim_graph(small, large, scorer, policy=threshold(0.9), lookahead=lookahead)
        asked = ({"messages": [("user", problem.question)]} for problem in ASKED[:10])
        return await asyncio.gather(*map(graph.ainvoke, asked))

    without = await answers(False)
    before = await outcome(servers["small"], "generation_tokens_total")
    ahead = await answers(True)
    await until(servers["small"], running=False)
    generated = await outcome(servers["small"], "generation_tokens_total") - before
    same = sum(a["messages"][-1].text == b["messages"][-1].text for a, b in zip(ahead, without, strict=True))
    assert same >= 9  # in another order of summation two near tokens may change places
    spends = [result["trim"]["usage"] for result in ahead]
    assert sum(spend["lookahead"]["taken"] for spend in spends) > 0
    discarded = sum(spend["lookahead"]["discarded"] for spend in spends)
    charged = sum(spend["small"]["output_tokens"] for spend in spends)
    # On busy cores a call may be silent for so long that it is cancelled, and charged in full.
    unobserved_probability = sum(spend["lookahead"]["unaccounted_tokens"] for spend in spends)
    # What a server writes between its last word and the abort it tells nobody.
    assert 0 <= generated - charged <= unobserved_probability + 40 * discarded


async def test_a_step_given_up_ends_on_the_server(servers, small, large):
    """Its tokens stop: see `TestLeaving` for why that may take more than one attempt."""

    class Rejects:
        """Rates a draft low once the server is at work on the next one."""

        def score(self, question, steps):
            return [0.1] * len(steps)

        async def ascore(self, question, steps):
            await until(servers["small"], running=True)
            return self.score(question, steps)

    # The first step ends where the text says "Step 2", the one written ahead nowhere.
    graph = create_trim_graph(
        small.model_copy(update={"extra_body": EVERLASTING}),
        large,
        Rejects(),
        policy=lambda seen: "handover",
        delimiter="Step 2",
        max_step_tokens=MOST,
        lookahead=True,
    )
    for problem in ASKED[:10]:
        before = await outcome(servers["small"], "generation_tokens_total")
        result = await graph.ainvoke({"messages": [("user", problem.question)]})
        await until(servers["small"], running=False)
        generated = await outcome(servers["small"], "generation_tokens_total") - before
        spend = result["trim"]["usage"]
        assert spend["lookahead"]["discarded"] == 1
        assert spend["small"]["output_tokens"] <= generated
        if generated < MOST:
            return
    raise AssertionError(f"the server wrote all it was asked for, each time: {generated} tokens")
