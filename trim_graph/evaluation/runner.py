"""Runs questions through a graph, a limited number at a time, and keeps each outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
MAX_CONSECUTIVE_FAILURES = 20
"""Runs that may fail in a row, before any has succeeded since: then something else is wrong."""
StepLabels = Callable[[Sequence[str]], Sequence[bool | None]]


class Graph(Protocol):
    """What `run_arm` needs of a graph built by `create_trim_graph`."""

    async def ainvoke(self, input: Any, /) -> Any:
        """Answer ``{"messages": [...]}``."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """A question and how to grade an answer.

    Attributes:
        text: What the models are asked.
        grade: Says of the text of a solution whether it is right; None where nobody knows the answer.
        expected: The right answer, for the record only.
        id: Its name in the dataset.
        label_steps: Says of each step whether it is right given those before it, where that can be checked.
    """

    text: str
    grade: Callable[[str], bool] | None = None
    expected: str | None = None
    id: str = ""
    label_steps: StepLabels | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one question.

    Attributes:
        index: Of the question in the list.
        correct: Whether the solution was graded right; False after an error, else None where the question
            has no known answer.
        solution: Its text; empty after an error.
        large_tokens: Tokens the large model generated, those lost in a crash included.
        seconds: Wall time, waiting for others included.
        summary: The run's own (`trim_graph.state.Summary`).
        error: Type and message of what went wrong, or None.
    """

    index: int
    correct: bool | None
    solution: str = ""
    large_tokens: int = 0
    seconds: float = 0.0
    summary: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


async def run_arm(
    graph: Graph,
    questions: Sequence[Question],
    *,
    concurrency: int = 32,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run every question through the graph.

    Args:
        graph: Built by `create_trim_graph`.
        questions: Any number.
        concurrency: Most questions under way at once.
        on_outcome: Called after each question, in the order they end: for a progress bar, or to keep
            what is there when the run is cut short.

    Returns:
        One outcome per question, in the order of the questions. An error belongs to its question and
        does not end the others.

    Raises:
        ValueError: ``concurrency`` is below 1.
    """
    outcomes: dict[int, Outcome] = {}

    async def work(item: tuple[int, Question]) -> None:
        index, question = item
        outcome = outcomes[index] = await _answer(graph, index, question)
        if on_outcome is not None:
            on_outcome(outcome)

    await run_each(work, enumerate(questions), concurrency=concurrency)
    return [outcomes[index] for index in range(len(questions))]


async def run_each(
    work: Callable[[Item], Awaitable[None]], items: Iterable[Item], *, concurrency: int
) -> None:
    """Do the work for every item, so many at a time.

    Args:
        work: Called with each item; an exception it raises ends the others too, and is raised.
        items: Any number, taken one by one as they are needed.
        concurrency: Most items under way at once.

    Raises:
        ValueError: ``concurrency`` is below 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency={concurrency} must be 1 or more")
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _answer(graph: Graph, index: int, question: Question) -> Outcome:
    begun = time.monotonic()
    try:
        result = await graph.ainvoke({"messages": [("user", question.text)]})
        solution = str(result["messages"][-1].text)
        summary = dict(result["trim"])
        correct = None if question.grade is None else bool(question.grade(solution))
    except Exception as error:
        seconds = time.monotonic() - begun
        return Outcome(index, False, seconds=seconds, error=f"{type(error).__name__}: {error}")
    return Outcome(
        index=index,
        correct=correct,
        solution=solution,
        large_tokens=summary["usage"]["large"]["output_tokens"] + summary["usage"]["unaccounted_tokens"],
        seconds=time.monotonic() - begun,
        summary=summary,
    )
