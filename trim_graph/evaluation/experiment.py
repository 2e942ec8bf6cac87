"""Runs an evaluation: one question, an arm's questions, and all arms one after the other.

An interrupted evaluation resumes from the rows in its folder.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from trim_graph.adapters.base import as_scorer
from trim_graph.budget import Prices
from trim_graph.errors import InputError, SettingsError, TrimError
from trim_graph.settings import TrimContext
from trim_graph.storage.journal import Journal, differences

from .comparison import Columns, Resampled, read_columns, resample
from .datasets import Dataset, first_questions
from .executor import Executor, Models, Task
from .records import SETTINGS as SETTINGS_FILE
from .records import (
    VERSION,
    ArmSettings,
    Calls,
    PerWriter,
    Row,
    RowStep,
    RunSettings,
    check_folder,
    journal_of,
    read_rows_of,
    read_settings,
    restore_journal,
    write_json,
)
from .runner import MAX_CONSECUTIVE_FAILURES, Question
from .traces import CHANNELS, TOKENS, Source, Trace, label_all, make_trace, steps_of

WRITERS = ("small", "large")


@dataclass(frozen=True, slots=True)
class Plan:
    """What all arms of an evaluation have in common.

    Attributes:
        dataset: The questions.
        n: How many of them: the first.
        samples: Runs of each question in each arm.
        seed: Of the graphs, and of the bootstrap.
        concurrency: Most questions under way at once.
        prices: The price table.
        settings: What makes outcomes comparable, JSON-native; other settings are refused in this folder.
        retry_errors: Whether runs that failed are run again.
    """

    dataset: Dataset
    n: int
    samples: int
    seed: int
    concurrency: int
    prices: Prices
    settings: dict[str, Any]
    retry_errors: bool = False


def known_arms(folder: Path, settings: dict[str, Any]) -> dict[str, ArmSettings]:
    """Returns the arms that a folder has already.

    Args:
        folder: Of the run; made if it is not there.
        settings: What the arms must have been run with; see `Plan`.

    Raises:
        SettingsError: The folder was begun with other settings, or cannot be used.
    """
    check_folder(folder)
    known = read_settings(folder)
    if known is None:
        return {}
    if different := differences(known["settings"], settings):
        raise SettingsError(
            f"{folder} was begun with other settings, and a folder holds only one kind: "
            f"{'; '.join(different)}. Choose another --out, or give the same settings"
        )
    return dict(known["arms"])


@dataclass
class Harness:
    """Runs arms and keeps their figures.

    Args:
        folder: Of the run; made if it is not there.
        plan: What all arms have in common.
        executor: Runs their questions.
        on_begin: Called before an arm is run, with its name, all its runs, and those done before.
        on_row: Called with each row.

    Raises:
        SettingsError: The folder was begun with other settings, or cannot be used.
    """

    folder: Path
    plan: Plan
    executor: Executor
    on_begin: Callable[[str, int, int], None] = lambda arm, total, done: None
    on_row: Callable[[Row], None] = lambda row: None
    arms: dict[str, ArmSettings] = field(init=False)
    """All that the folder knows of."""
    done: dict[str, Resampled] = field(default_factory=dict)
    """The arms that are complete."""

    def __post_init__(self) -> None:
        self.arms = known_arms(self.folder, self.plan.settings)

    async def run(
        self, arm: str, settings: ArmSettings, policy: dict[str, Any], *, judged: bool = False
    ) -> Resampled:
        """Run what is left of an arm.

        Args:
            arm: Its name.
            settings: What it is.
            policy: As a configuration names it.
            judged: Whether a judge scores in the scorer's place.

        Raises:
            SettingsError: An arm of this name was another policy.
            TrimError: `MAX_CONSECUTIVE_FAILURES` runs failed in a row.
        """
        if arm in self.done:
            return self.done[arm]
        self.note(arm, settings)
        restore_journal(self.folder, arm)
        settings_of_rows = {**self.plan.settings, "arm": {"policy": self.arms[arm]["policy"]}}
        samples, retry = self.plan.samples, self.plan.retry_errors
        with Journal(
            journal_of(self.folder, arm),
            settings_of_rows,
            keep=lambda row: not retry or row["error"] is None,
            unit=lambda row: unit_of(row["index"], row["sample"], samples),
        ) as journal:
            items = WorkItems(self.plan.dataset, self.plan.n, samples)
            task = RunRows(arm, policy, judged=judged, seed=self.plan.seed)
            keeper = _Keeper(journal, self.folder, self.on_row)
            await self.fill(arm, journal, items, task, keeper.keep)
        return self.take(arm)

    async def fill(
        self,
        what: str,
        journal: Journal,
        items: WorkItems,
        task: Task[Any, Any],
        keep: Callable[[Any], None],
        convert: Callable[[WorkItem], Any] = lambda item: item,
    ) -> None:
        """Has the executor do what is left of some items.

        Args:
            what: Name of the work, for the display.
            journal: Says what is done.
            items: All items.
            task: Work on each item.
            keep: Keeps each result.
            convert: Turns an item into the task's input.
        """
        left = items.count_unfinished(journal.finished)
        if left:
            await self.executor.ready()
        self.on_begin(what, len(items), len(items) - left)
        if left:
            await self.executor.map(
                task,
                map(convert, items.unfinished(journal.finished)),
                concurrency=min(self.plan.concurrency, left),
                on_result=keep,
            )

    def note(self, arm: str, settings: ArmSettings) -> None:
        """Write down what an arm is.

        Raises:
            SettingsError: An arm of this name was another policy.
        """
        known = self.arms.get(arm)
        if known is not None and known["policy"] != settings["policy"]:
            told = "; ".join(differences(known["policy"], settings["policy"], "policy"))
            raise SettingsError(
                f"{self.folder}: the arm {arm} was another policy: {told}. Name this one NAME={{...}}, or "
                "choose another --out"
            )
        self.arms[arm] = settings
        self.write_settings()

    def forget(self, arm: str) -> None:
        """Let an arm of this name be another policy than it was."""
        self.arms.pop(arm, None)

    def write_settings(self) -> None:
        """Write what the run is to its folder."""
        settings = RunSettings(version=VERSION, settings=self.plan.settings, arms=self.arms)
        write_json(self.folder / SETTINGS_FILE, settings)

    def columns(self, arm: str) -> Columns:
        """Read the numbers of an arm.

        Raises:
            InputError: Rows are missing.
        """
        plan = self.plan
        rows = read_rows_of(self.folder, arm)
        return read_columns(rows, n=plan.n, samples=plan.samples, prices=self._prices(arm))

    def take(self, arm: str) -> Resampled:
        """Take an arm's rows into the comparison.

        Raises:
            InputError: Rows are missing, or all runs failed.
        """
        columns = self.columns(arm)
        if columns.errors == self.plan.n * self.plan.samples:
            rows = read_rows_of(self.folder, arm)
            failed = next((row["error"] for row in rows if row["error"]), "")
            raise InputError(
                f"all {columns.errors} runs of the arm {arm} failed, the first with {failed}. When that is "
                "put right, go on with --retry-errors"
            )
        self.done[arm] = resample(columns, seed=self.plan.seed)
        return self.done[arm]

    def take_older(self) -> list[str]:
        """Take in the arms that other commands have left in this folder; return those that lack rows."""
        lacking = []
        for arm in self.arms:
            if arm not in self.done:
                try:
                    self.take(arm)
                except InputError:
                    lacking.append(arm)
        return lacking

    def _prices(self, arm: str) -> Prices:
        """Return the price table of an arm: a judge that is one of the models is paid like it."""
        judge = self.arms[arm]["policy"].get("scorer", {}).get("model")
        prices = self.plan.prices
        return prices.model_copy(update={"scorer": getattr(prices, judge)}) if judge in WRITERS else prices


class _Keeper:
    """Keeps rows, and gives up where all fail."""

    def __init__(self, journal: Journal, folder: Path, on_row: Callable[[Row], None]) -> None:
        self.journal, self.folder, self.on_row, self.in_a_row = journal, folder, on_row, 0

    def keep(self, row: Row) -> None:
        self.journal.append(dict(row))
        self.on_row(row)
        self.in_a_row = 0 if row["error"] is None else self.in_a_row + 1
        if self.in_a_row >= MAX_CONSECUTIVE_FAILURES:
            raise TrimError(
                f"arm {row['arm']}: {self.in_a_row} runs failed in a row, the last with {row['error']}. When "
                f"that is put right, go on with --retry-errors; what is done is in {self.folder}"
            )


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
    spend = summary["usage"]
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


@dataclass(frozen=True, slots=True)
class CollectTraces:
    """The task of making a trace of each question (`trim_graph.evaluation.executor.Task`).

    Attributes:
        source: What all traces have in common.
        policy: The behaviour policy, as a configuration names it; default: the configuration's own.
        rated: Whether the scorer rates what the policy did not ask it about.
        label_steps: Whether to check each step, where the dataset can.
    """

    source: Source
    policy: dict[str, Any] | None = None
    rated: bool = True
    label_steps: bool = False

    def setup(self, models: Models) -> Callable[[tuple[int, Question]], Awaitable[Trace]]:
        """Build the graph; a question that fails has a trace that says why."""
        graph = models.graph(self.policy)
        scorer = models.parts.scorer if self.rated else None
        rater = None if scorer is None else as_scorer(scorer)

        async def work(item: tuple[int, Question]) -> Trace:
            return await make_trace(graph, item, self.source, rater=rater, label_steps=self.label_steps)

        return work
