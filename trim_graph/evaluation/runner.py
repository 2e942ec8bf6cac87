"""The runner: from a question to its record, and executors that do so for many questions.

An executor does a task in this process or elsewhere; `run_each` has it done on many items. A task can be
pickled, and so can its items (one sample of a question) and its results. One process keeps each result once,
as they come, so that the same journals and the same checks serve one machine and many. The executor on a Ray
cluster: `trim_graph.distributed`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from trim_graph.adapters import ScorableStep
from trim_graph.adapters.base import as_scorer, read_scores, scorable_step
from trim_graph.adapters.provider_errors import error_line
from trim_graph.config import Parts, TrimConfig, build_graph, for_measuring
from trim_graph.driver import final_state
from trim_graph.settings import TrimContext

from .arms import Judge, policy_config
from .records import DiscardedDraft, Question, Record, RecordStep, WorkItem, new_record, record_of

Item = TypeVar("Item")
Result = TypeVar("Result")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)
MAX_CONSECUTIVE_FAILURES = 20
"""Runs that may fail in a row, before any has succeeded since: then something else is wrong."""


async def run_question(
    graph: Any,
    item: WorkItem,
    *,
    seed: int | None = None,
    rater: Any = None,
    label_steps: bool = False,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> Record:
    """Runs one question through a graph.

    Args:
        graph: Built by `create_trim_graph`.
        item: The question with its place.
        seed: Of sample 0, each further sample adds 1; default: the graph's own for all.
        rater: A scorer for what the policy did not ask it about: it scores after the run, all accepted steps
            in one call, so that the policy sees no more than it wants. The tokens it reads count.
        label_steps: Whether to check each step, where the dataset can.
        on_event: Receives each event of the run.

    Returns:
        The record; of a run that failed, one that says why.
    """
    seed = None if seed is None else seed + item.sample
    first_step: float | None = None
    begun = time.monotonic()

    def take(event: dict[str, Any]) -> None:
        nonlocal first_step
        on_event(event)
        if event.get("event") == "accepted" and first_step is None:
            first_step = time.monotonic() - begun

    try:
        context = None if seed is None else TrimContext(seed=seed)
        result = await final_state(graph, [("user", item.question.text)], context=context, on_event=take)
        seconds = time.monotonic() - begun
        record = record_of(result, item, seed, seconds=seconds, first_step_seconds=first_step)
        if rater is not None:
            await _rate(record, rater)
        if label_steps:
            _label(record["steps"], item.question)
    except Exception as error:
        seconds, failure = time.monotonic() - begun, error_line(error)
        return new_record(item, seed, correct=False, seconds=seconds, error=failure)
    return record


async def run_arm(
    graph: Any,
    questions: Sequence[Question],
    *,
    concurrency: int = 32,
    on_record: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Runs every question through the graph.

    Args:
        graph: Built by `create_trim_graph`.
        questions: Any number.
        concurrency: Most questions under way at once.
        on_record: Called after each question, in the order they end: for a progress bar, or to keep
            what is there when the run is cut short.

    Returns:
        One record per question, in the order of the questions. An error belongs to its question and
        does not end the others.

    Raises:
        ValueError: ``concurrency`` is below 1.
    """
    records: dict[int, Record] = {}

    def keep(record: Record) -> None:
        records[record["index"]] = record
        if on_record is not None:
            on_record(record)

    items = (WorkItem(index, 0, question) for index, question in enumerate(questions))
    await run_each(partial(run_question, graph), items, concurrency=concurrency, on_result=keep)
    return [records[index] for index in range(len(questions))]


async def run_each(
    work: Callable[[Item], Awaitable[Result]],
    items: Iterable[Item],
    *,
    concurrency: int,
    on_result: Callable[[Result], None] = lambda result: None,
) -> None:
    """Does the work for every item, so many at a time.

    Args:
        work: Called with each item; an exception it raises ends the others too, and is raised.
        items: Any number, taken one by one as they are needed.
        concurrency: Most items under way at once.
        on_result: Receives each item's result, in the order in which they end; an error that it raises ends
            the work.

    Raises:
        ValueError: ``concurrency`` is below 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency={concurrency} must be 1 or more")
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            on_result(await work(item))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _label(steps: Sequence[RecordStep], question: Question) -> None:
    """Notes of each step, and of each discarded draft, whether it is right, where the dataset can."""
    if question.label_steps is None:
        return
    texts = [step["text"] for step in steps]
    for number, (step, label) in enumerate(zip(steps, question.label_steps(texts), strict=True)):
        step["label"] = label
        draft = step["discarded"]
        if draft is not None:
            draft["label"] = question.label_steps([*texts[:number], draft["text"]])[-1]


async def _rate(record: Record, scorer: Any) -> None:
    """Scores what has no score: the accepted steps in one call, and each discarded draft behind its own."""
    steps = record["steps"]

    async def rated(rows: list[ScorableStep]) -> Sequence[float]:
        reply = read_scores(await scorer.ascore(record["question"], rows), len(rows))
        record["tokens"]["scorer"] += reply.input_tokens
        record["tokens"]["scorer_output"] += reply.output_tokens
        return reply.scores

    async def accepted() -> None:
        if any(step["score"] is None for step in steps):
            scores = await rated([scorable_step(step) for step in steps])
            for step, score in zip(steps, scores, strict=True):
                step["score"] = score if step["score"] is None else step["score"]

    async def discarded(number: int, draft: DiscardedDraft) -> None:
        draft["score"] = (await rated([*map(scorable_step, steps[:number]), scorable_step(draft)]))[-1]

    drafts = [(number, draft) for number, step in enumerate(steps) if (draft := step["discarded"])]
    missing = [discarded(number, draft) for number, draft in drafts if draft["score"] is None]
    await asyncio.gather(accepted(), *missing)


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
        """Builds a graph for measurements: it asks no human, and draws from no account.

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
        elif fresh and self.config.scorer is not None and getattr(self.config.scorer, "keeps_scores", False):
            scorer = self.config.scorer.build()
        parts = Parts(self.parts.small, self.parts.large, scorer)
        return build_graph(for_measuring(self.config.model_copy(update=changed)), parts=parts)


class Task(Protocol[Item_contra, Result_co]):
    """Work of one kind on many items. Task, items and results are pickled."""

    def setup(self, models: Models) -> Callable[[Item_contra], Awaitable[Result_co]]:
        """Returns the function that does the work on one item. An item's error belongs into its result."""
        ...


@dataclass(frozen=True, slots=True)
class RunQuestions:
    """The task of making a record of each item.

    Attributes:
        policy: As a configuration names it; default: the configuration's own.
        seed: Of sample 0; see `run_question`.
        judged: Whether a judge scores in the scorer's place.
        fresh: Whether a scorer with a cache begins with an empty one.
        rated: Whether the scorer rates what the policy did not ask it about.
        label_steps: Whether to check each step, where the dataset can.
    """

    policy: dict[str, Any] | None = None
    seed: int | None = None
    judged: bool = False
    fresh: bool = False
    rated: bool = False
    label_steps: bool = False

    def setup(self, models: Models) -> Callable[[WorkItem], Awaitable[Record]]:
        """Builds the graph; a run that fails has a record that says why."""
        scorer = models.parts.scorer if self.rated else None
        return partial(
            run_question,
            models.graph(self.policy, judged=self.judged, fresh=self.fresh),
            seed=self.seed,
            rater=None if scorer is None else as_scorer(scorer),
            label_steps=self.label_steps,
        )


class Executor(Protocol):
    """Does tasks where the models are."""

    async def ready(self) -> None:
        """Loads models, or waits until workers have; the first `setup` does so too."""
        ...

    async def setup(self, task: Task[Item, Result]) -> Callable[[Item], Awaitable[Result]]:
        """Returns the function that does a task on one item, for `run_each`."""
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

    async def setup(self, task: Task[Item, Result]) -> Callable[[Item], Awaitable[Result]]:
        """Loads the models and returns the task's function; see `Executor.setup`."""
        await self.ready()
        assert self._models is not None
        return task.setup(self._models)
