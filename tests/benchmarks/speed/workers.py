"""Steps per second of several processes (``--workers``), with models that take no CPU to speak of.

The engines are those of `paced`, so fast that one process of Python cannot keep them busy. Each worker has
engines of its own, as each has connections of its own to a server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from typing import Any

from langchain_core.messages import HumanMessage

from trim_graph.config import Parts, TrimConfig, example_config
from trim_graph.distributed import open_local_executor
from trim_graph.driver import final_state
from trim_graph.evaluation.runner import LocalExecutor, Models, run_each

from .load import mixed_problems
from .paced import Pace, Paced, Solutions
from .ways import MAX_STEP_TOKENS, MAX_STEPS, THRESHOLD

PACE = Pace(small=1, large=1, scorer=0.2)
QUESTIONS = 768
AT_ONCE = 256
SEED = 200


class Solve:
    """Solves questions on a worker, as `eval` does, and returns the number of steps of each."""

    def setup(self, models: Models) -> Callable[[str], Awaitable[int]]:
        """Builds the graph."""
        graph = models.graph()

        async def work(question: str) -> int:
            state = await final_state(graph, [HumanMessage(question)])
            return len(state["steps"])

        return work


def configuration() -> TrimConfig:
    """Returns the settings of the other ways of the benchmark; the models are replaced."""
    return example_config(
        {
            "policy": {"type": "threshold", "t": THRESHOLD},
            "settings": {"max_steps": MAX_STEPS, "max_step_tokens": MAX_STEP_TOKENS},
        }
    )


def load() -> Models:
    """Loads the models of a worker."""
    paced = Paced(PACE, Solutions(mixed_problems(QUESTIONS, SEED))).models()
    return Models(configuration(), Parts(paced.small, paced.large, paced.scorer))


async def _timed(executor: Any, questions: Sequence[str]) -> dict[str, float]:
    async def solved(some: Sequence[str]) -> tuple[int, float]:
        counts: list[int] = []
        begun = time.perf_counter()
        work = await executor.setup(Solve())
        await run_each(work, some, concurrency=AT_ONCE, on_result=counts.append)
        return sum(counts), time.perf_counter() - begun

    _, starting = await solved(questions[:8])
    steps, seconds = await solved(questions)
    return {"steps_per_s": steps / seconds, "questions_per_s": len(questions) / seconds, "start_s": starting}


def measured(counts: Sequence[int], turns: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures this process alone and so many workers, in turn.

    Args:
        counts: Numbers of workers.
        turns: Repetitions.
        say: Prints a line.

    Returns:
        Runs by way, and the ratios of steps per second to this process within each turn.
    """
    questions = [problem.question for problem in mixed_problems(QUESTIONS, SEED)]
    names = {"this process": 0, **{f"{count} workers": count for count in counts}}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(turns):
        order = list(names)[turn % len(names) :] + list(names)[: turn % len(names)]
        for name in order:
            count = names[name]
            opened = open_local_executor(load, configuration(), count=count) if count else None
            with opened if opened is not None else nullcontext(LocalExecutor(load)) as executor:
                run = asyncio.run(_timed(executor, questions))
            runs[name].append(run)
            say(f"{name:13} {run['steps_per_s']:8.0f} steps/s, {run['start_s']:.1f} s to start")
    alone = runs["this process"]
    return {
        "turns": turns,
        "at_once": AT_ONCE,
        "questions": QUESTIONS,
        "runs": runs,
        "to_this_process": {
            name: [run["steps_per_s"] / base["steps_per_s"] for run, base in zip(found, alone, strict=True)]
            for name, found in runs.items()
        },
    }
