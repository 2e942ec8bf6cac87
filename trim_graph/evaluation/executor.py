"""Executors do a task on many items, in this process or elsewhere.

A task can be pickled, and so can its items (a question, one sample of a question) and its results. One
process keeps each result once, as they come, so that the same journals and the same checks serve one machine
and many. The executor on a Ray cluster: `trim_graph.distributed.ray`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from trim_graph.config import Parts, TrimConfig, build_graph, for_measuring

from .arms import Judge, policy_config
from .runner import run_each

Item = TypeVar("Item")
Result = TypeVar("Result")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


@dataclass(frozen=True)
class Models:
    """Loaded parts of a configuration.

    Attributes:
        config: Names the models.
        parts: The models and the scorer.
        judge: Scores in the scorer's place where a task says so.
    """

    config: TrimConfig
    parts: Parts
    judge: Judge | None = None

    def graph(
        self, policy: dict[str, Any] | None = None, *, judged: bool = False, fresh: bool = False
    ) -> Any:
        """Builds a graph for measurements: it asks no person, and draws from no account.

        Args:
            policy: In the form of a configuration; default: the policy of the configuration.
            judged: Whether the judge scores, with an empty cache.
            fresh: Whether a scorer with a cache begins with an empty one.
        """
        changed: dict[str, Any] = {} if policy is None else {"policy": policy_config(policy)}
        scorer = self.parts.scorer
        if judged:
            assert self.judge is not None
            scorer, prices = self.judge.build(self.parts), self.judge.prices(self.config.prices)
            changed |= {} if prices is None else {"prices": prices}
        elif fresh and self.config.scorer is not None and self.config.scorer.type == "llm_judge":
            scorer = self.config.scorer.build()
        parts = Parts(self.parts.small, self.parts.large, scorer)
        return build_graph(for_measuring(self.config.model_copy(update=changed)), parts=parts)


class Task(Protocol[Item_contra, Result_co]):
    """Work of one kind on many items. Task, items and results are pickled."""

    def setup(self, models: Models) -> Callable[[Item_contra], Awaitable[Result_co]]:
        """Returns the function that does the work on one item. An item's error belongs into its result."""
        ...


class Executor(Protocol):
    """Does tasks on many items."""

    async def ready(self) -> None:
        """Loads models, or waits until workers have; the first `map` does so too."""
        ...

    async def map(
        self,
        task: Task[Item, Result],
        items: Iterable[Item],
        *,
        concurrency: int,
        on_result: Callable[[Result], None],
    ) -> None:
        """Does a task on every item.

        Args:
            task: What to do.
            items: Taken as they are needed.
            concurrency: Most items under way at once, over all workers.
            on_result: Receives each item's result, once, in the order in which they end. An error that it
                raises ends the work.

        Raises:
            ValueError: ``concurrency`` is below 1.
        """
        ...


class LocalExecutor:
    """Does tasks with models in this process.

    Args:
        load: Loads the models; called before the first item.
    """

    def __init__(self, load: Callable[[], Models]) -> None:
        self._load = load
        self._models: Models | None = None

    async def ready(self) -> None:
        """Loads the models."""
        if self._models is None:
            self._models = self._load()

    async def map(
        self,
        task: Task[Item, Result],
        items: Iterable[Item],
        *,
        concurrency: int,
        on_result: Callable[[Result], None],
    ) -> None:
        """Does a task; see `Executor.map`."""
        await self.ready()
        assert self._models is not None
        work = task.setup(self._models)

        async def one(item: Item) -> None:
            on_result(await work(item))

        await run_each(one, items, concurrency=concurrency)
