"""Who does the work: the models of this process, or workers on a Ray cluster. What is done is a job.

A job can be pickled, and is done item by item: a question, a question's sample. Whoever keeps the results
keeps each once, as they come, so that the same journals and the same checks serve one machine and many.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from trim_graph.config import Parts, TrimConfig, build_graph, for_measuring
from trim_graph.evaluation.families import policy_config
from trim_graph.evaluation.judging import Judge
from trim_graph.evaluation.runner import run_each

Item = TypeVar("Item")
Result = TypeVar("Result")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


@dataclass(frozen=True)
class Models:
    """What a worker has: the parts of a configuration, loaded.

    Attributes:
        config: Names them.
        parts: The models and the scorer.
        judge: Scores in the scorer's place where a job says so.
    """

    config: TrimConfig
    parts: Parts
    judge: Judge | None = None

    def graph(
        self, policy: dict[str, Any] | None = None, *, judged: bool = False, fresh: bool = False
    ) -> Any:
        """Build a graph that measures: it asks nobody, and draws from no account.

        Args:
            policy: As a configuration names it; default: the configuration's own.
            judged: Whether the judge scores; it remembers nothing yet.
            fresh: Whether a scorer that remembers what it was asked begins anew.
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


class Job(Protocol[Item_contra, Result_co]):
    """Work of one kind on many items. It is pickled, and so are items and results."""

    def begin(self, models: Models) -> Callable[[Item_contra], Awaitable[Result_co]]:
        """Return what does the work on one item. An error of an item belongs into its result."""
        ...


class Workers(Protocol):
    """Those who do jobs."""

    async def ready(self) -> None:
        """Load models, or wait until workers have; the first call does it."""
        ...

    async def do(
        self,
        job: Job[Item, Result],
        items: Iterable[Item],
        *,
        concurrency: int,
        on_result: Callable[[Result], None],
    ) -> None:
        """Do a job on every item.

        Args:
            job: What to do.
            items: Taken as they are needed.
            concurrency: Most items under way at once, over all workers.
            on_result: Gets each item's result, once, in the order in which they end. An error that it raises
                ends the work.

        Raises:
            ValueError: ``concurrency`` is below 1.
        """
        ...


class LocalWorkers:
    """The models of this process.

    Args:
        load: Makes the models, when there is something to do for them.
    """

    def __init__(self, load: Callable[[], Models]) -> None:
        self._load = load
        self._models: Models | None = None

    async def ready(self) -> None:
        """Load the models."""
        if self._models is None:
            self._models = self._load()

    async def do(
        self,
        job: Job[Item, Result],
        items: Iterable[Item],
        *,
        concurrency: int,
        on_result: Callable[[Result], None],
    ) -> None:
        """Do a job; see `Workers`."""
        await self.ready()
        assert self._models is not None
        work = job.begin(self._models)

        async def one(item: Item) -> None:
            on_result(await work(item))

        await run_each(one, items, concurrency=concurrency)
