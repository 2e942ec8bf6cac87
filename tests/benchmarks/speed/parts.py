"""What each server does alone, for capacity plans: tokens a second that it writes, or reads to score."""

from __future__ import annotations

import random
import statistics
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from trim_graph.evaluation.runner import run_each

from .load import Clock, mixed_problems
from .served import Servers
from .ways import prefix_of, scorable, write

N, AT_ONCE = 512, 64
"""Calls of a turn, and how many at once."""

Call = tuple[str, list[str]]
"""A question and right steps."""


async def measured(place: Servers, turns: int) -> dict[str, Any]:
    """Asks one server after the other; medians of the turns."""
    found: dict[str, list[float]] = {"small": [], "large": [], "scorer": []}
    for turn in range(turns + 1):
        models, calls = await place.fresh(), _calls(turn)
        asked = {
            "small": partial(_written, models.small),
            "large": partial(_written, models.large),
            "scorer": partial(_read, models.scorer),
        }
        for name, ask in asked.items():
            with Clock() as clock:
                tokens = await _all(ask, calls)
            # The first turn is to get warm.
            found[name] += [tokens / clock.seconds] if turn else []
    return {
        "tokens_per_s": {name: statistics.median(values) for name, values in found.items()},
        "calls": N,
        "at_once": AT_ONCE,
        "turns": turns,
    }


async def _written(model: Any, call: Call) -> int:
    question, steps = call
    return (await write(model, question, prefix_of(steps))).tokens


async def _read(scorer: Any, call: Call) -> int:
    question, steps = call
    return int((await scorer.ascore(question, scorable(steps))).input_tokens)


def _calls(turn: int) -> list[Call]:
    """Unfinished solutions, as in the middle of a run: at least a step, not yet the last."""
    chance = random.Random(turn)
    drawn = [(problem.question, problem.steps) for problem in mixed_problems(N, seed=200 + turn)]
    return [(question, steps[: chance.randint(1, len(steps) - 1)]) for question, steps in drawn]


async def _all(ask: Callable[[Call], Awaitable[int]], calls: Sequence[Call]) -> int:
    tokens: list[int] = []

    async def one(call: Call) -> None:
        tokens.append(await ask(call))

    await run_each(one, calls, concurrency=AT_ONCE)
    return sum(tokens)
