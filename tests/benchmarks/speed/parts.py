"""What each server does alone, for capacity plans: tokens a second that it writes, or reads to score."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from trim_graph.segment import DEFAULT_DELIMITER

from .load import Clock, mixed_problems
from .served import Servers
from .ways import scorable, write

N, AT_ONCE = 512, 64
"""Calls of a turn, and how many at once."""

Call = tuple[str, list[str]]
"""A question and right steps."""


async def measured(place: Servers, turns: int) -> dict[str, Any]:
    """Ask one server after the other; medians of the turns."""
    found: dict[str, list[float]] = {"small": [], "large": [], "scorer": []}
    for turn in range(turns + 1):
        models, calls = await place.fresh(), _calls(turn)

        async def written(call: Call, model: Any) -> int:
            question, steps = call
            prefix = "".join(step + DEFAULT_DELIMITER for step in steps)
            return (await write(model, question, prefix)).tokens

        async def read(call: Call, scorer: Any) -> int:
            question, steps = call
            return int((await scorer.ascore(question, scorable(steps))).input_tokens)

        asked: list[tuple[str, Callable[[Call, Any], Awaitable[int]], Any]] = [
            ("small", written, models.small),
            ("large", written, models.large),
            ("scorer", read, models.scorer),
        ]
        for name, ask, model in asked:
            with Clock() as clock:
                tokens = await _all(ask, model, calls)
            # The first turn is to get warm.
            found[name] += [tokens / clock.seconds] if turn else []
    return {
        "tokens_per_s": {name: statistics.median(values) for name, values in found.items()},
        "calls": N,
        "at_once": AT_ONCE,
        "turns": turns,
    }


def _calls(turn: int) -> list[Call]:
    """Solutions as they stand in the middle of a run: at least a step, not yet the last."""
    chance = random.Random(turn)
    drawn = [(problem.question, problem.steps) for problem in mixed_problems(N, seed=200 + turn)]
    return [(question, steps[: chance.randint(1, len(steps) - 1)]) for question, steps in drawn]


async def _all(ask: Callable[[Call, Any], Awaitable[int]], model: Any, calls: Sequence[Call]) -> int:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(call: Call) -> int:
        async with gate:
            return await ask(call, model)

    return sum(await asyncio.gather(*map(one, calls)))
