"""Warming the large model's cache with vLLM servers: what a rewrite finds in it, and what is counted."""

import asyncio

from tests.agreement import ASKED
from trim_graph import create_trim_graph
from trim_graph.calls import warming
from trim_graph.policies import threshold

from .test_lookahead import outcome, until

LONG = "count the words " * 60
"""More than two of the blocks of 128 tokens that vLLM's cache has on CPUs."""
QUESTIONS = ASKED[:4]


async def rewrites(large, small, scorer, *, tag, warm_large):
    """Returns the events and usage of runs whose drafts are all rewritten, one after another."""
    graph = create_trim_graph(small, large, scorer, policy=threshold(1.0), warm_large=warm_large, max_steps=2)
    runs = []
    for problem in QUESTIONS:
        # The first words make the prompt of each run new to the cache.
        asked = [("system", f"{tag} {problem.question} {LONG}"), ("user", problem.question)]
        events, result = [], {}
        async for mode, data in graph.astream({"messages": asked}, stream_mode=["custom", "values"]):
            if mode == "custom":
                events.append(data)
            else:
                result = data
        runs.append((events, result["trim"]["usage"]))
    return runs


class Patient:
    """A scorer that rejects each draft once the large model has read the prompt, as a slow one would."""

    def score(self, question, steps):
        return [0.0] * len(steps)

    async def ascore(self, question, steps):
        reading = [task for task in asyncio.all_tasks() if task.get_name() == warming.TASK]
        if reading:
            await asyncio.wait(reading)
        return self.score(question, steps)


async def test_a_rewrite_finds_its_prompt_in_the_cache(servers, small, large):
    scorer = Patient()
    cold = await rewrites(large, small, scorer, tag="cold", warm_large=False)
    before = await outcome(servers["large"], "generation_tokens_total")
    warm = await rewrites(large, small, scorer, tag="warm", warm_large=True)
    await until(servers["large"], running=False)
    generated = await outcome(servers["large"], "generation_tokens_total") - before

    def cached_in_rewrites(usage):
        own = usage.get("warming", {"cached_tokens": 0})
        return usage["large"]["cached_tokens"] - own["cached_tokens"]

    # Without warming the second rewrite finds what the first has read; the first finds nothing.
    for (_, without), (events, usage) in zip(cold, warm, strict=True):
        assert cached_in_rewrites(usage) >= cached_in_rewrites(without) + 128
        assert usage["warming"]["calls"] == 1  # after a rewrite the cache holds what the model wrote
        assert usage["warming"]["failed_calls"] == 0
        assert [event["step"] for event in events if event["event"] == "warmed"] == [0]
    # Every token that the server has written is counted.
    assert sum(usage["large"]["output_tokens"] for _, usage in warm) == generated


async def test_a_call_is_charged_one_token_whether_it_has_ended_or_is_aborted(servers, small, large, scorer):
    graph = create_trim_graph(
        small, large, scorer, policy=threshold(0.0), warm_large=True, max_steps=1, max_step_tokens=8
    )
    for problem in QUESTIONS:
        asked = [("system", f"aborted {problem.question} {LONG}"), ("user", problem.question)]
        result = await graph.ainvoke({"messages": asked})
        usage = result["trim"]["usage"]
        assert usage["warming"]["calls"] == 1
        assert usage["large"]["output_tokens"] + usage["unaccounted_tokens"] == 1
    await until(servers["large"], running=False)
