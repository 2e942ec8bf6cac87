"""Graphs to record rollouts with, from a configuration."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from langgraph.graph.state import CompiledStateGraph

from trim_graph.config import Parts, TrimConfig
from trim_graph.evaluation import Question
from trim_graph.evaluation.executor import Executor, Models
from trim_graph.evaluation.remembering import RememberingScorer
from trim_graph.policies import Policy

from .rollouts import Rollouts
from .traces import Trace


def graph_builder(
    config: TrimConfig, parts: Parts
) -> Callable[[Policy], CompiledStateGraph[Any, Any, Any, Any]]:
    """Return what makes the graph of a policy.

    Its models and scorer remember their answers, since rollouts of a question have most of their steps in
    common. It has no budget, whatever the configuration says: a limit would change decisions.

    Args:
        config: For the settings.
        parts: The models and the scorer.
    """
    from langchain_core.caches import InMemoryCache

    from trim_graph.graph import create_trim_graph

    for model in (parts.small, parts.large):
        if getattr(model, "cache", False) is None:
            model.cache = InMemoryCache()
    scorer = RememberingScorer(parts.scorer)

    def build(policy: Policy) -> CompiledStateGraph[Any, Any, Any, Any]:
        settings = config.settings.model_dump()
        return create_trim_graph(parts.small, parts.large, scorer, policy=policy, **settings)

    return build


class Unexplored(NamedTuple):
    """A question whose ways are not all known.

    Attributes:
        place: Its place among the questions that are explored.
        question: Its text and its grader.
        known: Runs recorded before.
    """

    place: int
    question: Question
    known: Sequence[Trace]


@dataclass(frozen=True, slots=True)
class ExploreQuestions:
    """The task of running questions until all their ways are known (`trim_graph.evaluation.executor.Task`).

    Attributes:
        rounds: Most runs of a question.
    """

    rounds: int

    def setup(self, models: Models) -> Callable[[Unexplored], Awaitable[list[Trace]]]:
        """Make the graphs; what a worker's models have answered they remember. A run that fails raises."""
        build, steps = graph_builder(models.config, models.parts), models.config.settings.max_steps

        async def work(item: Unexplored) -> list[Trace]:
            made = list[Trace]()
            one = Rollouts([item.question], build, max_steps=steps, on_trace=made.append)
            one.add(item.known)
            await one.explore(self.rounds)
            return [{**trace, "index": item.place} for trace in made]

        return work


async def explore_with(executor: Executor, rollouts: Rollouts, rounds: int) -> int:
    """Have an executor run each question until all its ways are known; see `Rollouts.explore`.

    Args:
        executor: Has the models.
        rollouts: Keep what is found, question by question.
        rounds: Most runs of a question.

    Returns:
        How many questions have unknown ways left.
    """

    def keep(traces: list[Trace]) -> None:
        for trace in traces:
            rollouts.keep(trace)

    open_ones = [index for index, tree in enumerate(rollouts.trees) if tree.unknown() is not None]
    if open_ones:
        known: dict[str, list[Trace]] = {}
        for trace in rollouts.traces:
            known.setdefault(trace["question"], []).append(trace)
        questions = (rollouts.trees[index].question for index in open_ones)
        await executor.map(
            ExploreQuestions(rounds),
            (
                Unexplored(index, question, known.get(question.text, ()))
                for index, question in zip(open_ones, questions, strict=True)
            ),
            concurrency=min(rollouts.concurrency, len(open_ones)),
            on_result=keep,
        )
    return sum(tree.unknown() is not None for tree in rollouts.trees)
