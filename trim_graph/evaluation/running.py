"""Run the questions of an evaluation through a graph, and make a row of each."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trim_graph.settings import TrimContext
from trim_graph.training.collecting import CHANNELS, label_all, steps_of
from trim_graph.training.traces import TOKENS

from .datasets import Dataset, first_questions
from .executor import Models
from .run_files import Calls, PerWriter, Row, RowStep
from .runner import Question


class Graph(Protocol):
    """What `run_row` needs of a graph built by `create_trim_graph`."""

    def astream(
        self,
        input: Any,
        /,
        *,
        context: TrimContext,
        stream_mode: Sequence[str],
        output_keys: Sequence[str],
    ) -> AsyncIterator[tuple[str, Any]]:
        """Tell events and states."""
        ...


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One run of one question.

    Attributes:
        index: Of the question in the dataset.
        sample: Which of the repeated samples.
        question: Its text and its grader.
    """

    index: int
    sample: int
    question: Question


def unit_of(index: int, sample: int, samples: int) -> int:
    """Number a question's samples without gaps, for a journal's list of what is done."""
    return index * samples + sample


@dataclass(frozen=True, slots=True)
class WorkItems:
    """The runs of a dataset: each question so many times.

    Attributes:
        dataset: The questions.
        n: How many of them: the first.
        samples: Runs of each.
    """

    dataset: Dataset
    n: int
    samples: int = 1

    def __len__(self) -> int:
        return self.n * self.samples

    def unfinished(self, finished: Container[int]) -> Iterator[WorkItem]:
        """Yields what is left, in order; what is finished is looked up as each item is taken.

        Args:
            finished: Numbers of what is done, by `unit_of`.
        """
        for index, question in enumerate(first_questions(self.dataset, self.n, default=self.n)):
            for sample in range(self.samples):
                if unit_of(index, sample, self.samples) not in finished:
                    yield WorkItem(index, sample, question)

    def count_unfinished(self, finished: Container[int]) -> int:
        """Returns how many are left; see `unfinished`."""
        return sum(unit not in finished for unit in range(len(self)))


@dataclass(frozen=True, slots=True)
class RunRows:
    """The task of running items through the graph of an arm (`trim_graph.evaluation.executor.Task`).

    Attributes:
        arm: Its name, for the rows.
        policy: As a configuration names it.
        judged: Whether a judge scores in the scorer's place.
        seed: Of the graph; a sample adds its number.
    """

    arm: str
    policy: dict[str, Any]
    judged: bool = False
    seed: int = 0

    def setup(self, models: Models) -> Callable[[WorkItem], Awaitable[Row]]:
        """Build the graph; a run that fails has a row that says why."""
        # Of a scorer that remembers what it was asked no arm may profit after another.
        graph = models.graph(self.policy, judged=self.judged, fresh=True)

        async def work(item: WorkItem) -> Row:
            return await run_row(graph, self.arm, item, self.seed + item.sample)

        return work


async def run_row(
    graph: Graph,
    arm: str,
    item: WorkItem,
    seed: int,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> Row:
    """Run an item through a graph.

    Args:
        graph: Built by `create_trim_graph`.
        arm: Its name, for the row.
        item: What to run.
        seed: Of the run.
        on_event: Gets each event of the run.

    Returns:
        Its row; of a run that failed one that says why.
    """
    row = empty_row(arm, item, seed)
    begun = time.monotonic()
    try:
        result: dict[str, Any] = {}
        async for mode, content in graph.astream(
            {"messages": [("user", item.question.text)]},
            context=TrimContext(seed=seed),
            stream_mode=["custom", "values"],
            output_keys=CHANNELS,
        ):
            if mode == "values":
                result = content
                continue
            on_event(content)
            if content.get("event") == "accepted" and row["first_step_seconds"] is None:
                row["first_step_seconds"] = time.monotonic() - begun
        row["seconds"] = time.monotonic() - begun
        _fill(row, result, item.question)
    except Exception as error:
        failed = empty_row(arm, item, seed)
        failed["seconds"] = time.monotonic() - begun
        failed["correct"] = False
        failed["error"] = f"{type(error).__name__}: {error}"
        return failed
    return row


def empty_row(arm: str, item: WorkItem, seed: int | None) -> Row:
    """Return the row of an item of which nothing is known yet."""
    question = item.question
    return Row(
        arm=arm,
        index=item.index,
        id=question.id or str(item.index),
        sample=item.sample,
        seed=seed,
        question=question.text,
        expected=question.expected,
        correct=None,
        answer=None,
        solution="",
        error=None,
        stopped="",
        notes=[],
        seconds=0.0,
        first_step_seconds=None,
        large_tokens=0,
        tokens=dict.fromkeys(TOKENS, 0),
        prefill=PerWriter(small=0, large=0),
        cached_prefill=PerWriter(small=0, large=0),
        calls=Calls(small=0, large=0, scorer=0),
        cost=0.0,
        steps=[],
    )


def _fill(row: Row, result: dict[str, Any], question: Question) -> None:
    summary, solution = result["trim"], str(result["messages"][-1].text)
    spend = summary["spend"]
    small, large = spend["small"], spend["large"]
    steps = steps_of(result)
    label_all(steps, question)
    row["correct"] = None if question.grade is None else bool(question.grade(solution))
    row["answer"], row["solution"], row["stopped"] = summary["answer"], solution, summary["stopped"]
    row["notes"] = list(summary["notes"])
    row["large_tokens"] = large["output_tokens"] + spend["unaccounted_tokens"]
    row["tokens"] = {key: summary["tokens"][key] for key in TOKENS}
    row["prefill"] = PerWriter(small=small["input_tokens"], large=large["input_tokens"])
    row["cached_prefill"] = PerWriter(small=small["cached_tokens"], large=large["cached_tokens"])
    row["calls"] = Calls(small=small["calls"], large=large["calls"], scorer=spend["scorer"]["calls"])
    row["cost"] = summary["cost"]
    row["steps"] = [
        RowStep(**known, part=step.get("part")) for known, step in zip(steps, result["steps"], strict=True)
    ]
