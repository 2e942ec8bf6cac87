"""Runs an evaluation: one question, an arm's questions, and all arms one after the other.

An interrupted evaluation resumes from the rows in its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from trim_graph.budget import Prices
from trim_graph.errors import GraderError, InputError, SettingsError, TrimError
from trim_graph.storage.journal import Journal, differences, replace_journal

from .comparison import MetricColumns, Resampled, lacking_prices, read_metric_columns, resample
from .datasets import Dataset, first_questions
from .records import SETTINGS as SETTINGS_FILE
from .records import (
    VERSION,
    ArmSettings,
    EvaluationSettings,
    Record,
    Row,
    WorkItem,
    check_folder,
    failed_in_grader,
    grade_record,
    in_order,
    journal_of,
    read_rows_of,
    read_settings,
    restore_journal,
    row_of,
    write_json,
)
from .runner import MAX_CONSECUTIVE_FAILURES, Executor, RunQuestions, run_each

WRITERS = ("small", "large")
Graded = TypeVar("Graded", bound=Mapping[str, Any])


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Settings that all arms of an evaluation share.

    Attributes:
        dataset: The questions.
        n: How many of them: the first.
        samples: Runs of each question in each arm.
        seed: Of the graphs, and of the bootstrap.
        concurrency: Most questions under way at once.
        prices: The price table.
        settings: What makes outcomes comparable, JSON-native; other settings are refused in this folder.
        retry_errors: Whether runs that failed are run again.
        repeats: Places of questions that are earlier ones again (`read_through`); they are not run.
        regrade: Whether the solutions of the folder are graded again; it may then be of another grader.
    """

    dataset: Dataset
    n: int
    samples: int
    seed: int
    concurrency: int
    prices: Prices
    settings: dict[str, Any]
    retry_errors: bool = False
    repeats: frozenset[int] = frozenset()
    regrade: bool = False

    @property
    def distinct(self) -> int:
        """Number of questions that are run and counted."""
        return self.n - len(self.repeats)


def known_arms(folder: Path, settings: dict[str, Any], *, regrade: bool = False) -> dict[str, ArmSettings]:
    """Returns the arms that a folder has already.

    Args:
        folder: Of the run; made if it is not there.
        settings: What the arms must have been run with; see `RunConfig`.
        regrade: Whether their solutions are graded again, so that another grader may have graded them.

    Raises:
        SettingsError: The folder was begun with other settings, or cannot be used.
    """
    check_folder(folder)
    known = read_settings(folder)
    if known is None:
        if regrade:
            raise SettingsError(f"--regrade: {folder} holds no solutions yet: leave it out")
        return {}
    others = differences(_but_grader(known["settings"]), _but_grader(settings))
    if not regrade and not others and (different := differences(known["settings"], settings)):
        raise SettingsError(
            f"{folder} was graded by another grader, and a folder holds verdicts of only one: "
            f"{'; '.join(different)}. --regrade grades its solutions again and calls no model for them; or "
            "choose another --out"
        )
    if others:
        raise SettingsError(
            f"{folder} was begun with other settings, and a folder holds only one kind: "
            f"{'; '.join(others)}. Choose another --out, or give the same settings"
        )
    return dict(known["arms"])


def _but_grader(settings: dict[str, Any]) -> dict[str, Any]:
    dataset = {key: value for key, value in settings.get("dataset", {}).items() if key != "grader"}
    return {**{key: value for key, value in settings.items() if key != "grader"}, "dataset": dataset}


@dataclass
class ExperimentRunner:
    """Runs the arms of an experiment and keeps their metrics.

    Args:
        folder: Of the run; made if it is not there.
        run_config: What all arms have in common.
        executor: Runs their questions.
        on_begin: Called before an arm is run, with its name, all its runs, and those done before.
        on_row: Called with each row.
        timed: Whether the seconds of rows are those that models took; not where a cache of responses answers.

    Raises:
        SettingsError: The folder was begun with other settings, or cannot be used.
    """

    folder: Path
    run_config: RunConfig
    executor: Executor
    on_begin: Callable[[str, int, int], None] = lambda arm, total, done: None
    on_row: Callable[[Row], None] = lambda row: None
    timed: bool = True
    arms: dict[str, ArmSettings] = field(init=False)
    """All that the folder knows of."""
    done: dict[str, Resampled] = field(default_factory=dict)
    """The arms that are complete."""

    def __post_init__(self) -> None:
        self.arms = known_arms(self.folder, self.run_config.settings, regrade=self.run_config.regrade)

    def regrade(self) -> None:
        """Grades the solutions of all arms again, also of those that are put together of other arms' runs.

        Raises:
            GraderError: The grader failed; the arm keeps its verdicts.
        """
        for arm in self.arms:
            file = journal_of(self.folder, arm)
            file.parent.mkdir(exist_ok=True)
            rows = in_order(file) if file.exists() else read_rows_of(self.folder, arm)
            replace_journal(file, self._settings_of(arm), regraded(rows, self.run_config.dataset))
        self.write_settings()

    def _settings_of(self, arm: str) -> dict[str, Any]:
        return {**self.run_config.settings, "arm": {"policy": self.arms[arm]["policy"]}}

    async def run(
        self, arm: str, settings: ArmSettings, policy: dict[str, Any], *, judged: bool = False
    ) -> Resampled:
        """Runs what is left of an arm.

        Args:
            arm: Its name.
            settings: What it is.
            policy: As a configuration names it.
            judged: Whether a judge scores in the scorer's place.

        Raises:
            SettingsError: An arm of this name was another policy.
            GraderError: The grader failed; the solutions are kept.
            TrimError: `MAX_CONSECUTIVE_FAILURES` runs failed in a row.
        """
        if arm in self.done:
            return self.done[arm]
        self.note(arm, settings)
        restore_journal(self.folder, arm)
        samples, retry = self.run_config.samples, self.run_config.retry_errors

        def kept(row: dict[str, Any]) -> bool:
            if failed_in_grader(row):
                raise self._grader_failed(arm, row["error"])
            return not retry or row["error"] is None

        with Journal(
            journal_of(self.folder, arm),
            self._settings_of(arm),
            keep=kept,
            unit=lambda row: unit_of(row["index"], row["sample"], samples),
        ) as journal:
            items = WorkItems(self.run_config.dataset, self.run_config.n, samples, self.run_config.repeats)
            # Each arm begins with an empty cache: none profits from what a scorer was asked in another.
            task = RunQuestions(policy, self.run_config.seed, judged=judged, fresh=True, label_steps=True)
            writer = _RowWriter(arm, journal, self.folder, self.on_row)
            if await self.begin(arm, journal, items):
                await run_each(
                    await self.executor.setup(task),
                    # Where the grader fails, no further question is begun; what is under way is kept.
                    takewhile(lambda _: not writer.not_graded, items.unfinished(journal.finished)),
                    concurrency=self.run_config.concurrency,
                    on_result=writer.write,
                )
        if writer.not_graded:
            raise self._grader_failed(arm, writer.not_graded)
        return self.take(arm)

    def _grader_failed(self, arm: str, failure: str | None) -> GraderError:
        return GraderError(
            f"arm {arm}: {failure}. The solutions are kept in {self.folder}: put the grader right; the same "
            "command with --regrade grades them again, calls no model for them, and goes on"
        )

    async def begin(self, what: str, journal: Journal, items: WorkItems) -> int:
        """Announces some work, once models are loaded for what is left of it.

        Args:
            what: Name of the work, for the display.
            journal: Says what is done.
            items: All items.

        Returns:
            How many items are left.
        """
        left = items.count_unfinished(journal.finished)
        if left:
            await self.executor.ready()
        self.on_begin(what, len(items), len(items) - left)
        return left

    def note(self, arm: str, settings: ArmSettings) -> None:
        """Writes down what an arm is.

        Raises:
            SettingsError: An arm of this name was another policy.
        """
        known = self.arms.get(arm)
        if known is not None and known["policy"] != settings["policy"]:
            changes = "; ".join(differences(known["policy"], settings["policy"], "policy"))
            raise SettingsError(
                f"{self.folder}: the arm {arm} was another policy: {changes}. Name this one NAME={{...}}, or "
                "choose another --out"
            )
        self.arms[arm] = settings
        self.write_settings()

    def forget(self, arm: str) -> None:
        """Removes what is known of an arm, so that its policy may change."""
        self.arms.pop(arm, None)

    def write_settings(self) -> None:
        """Writes what the run is to its folder."""
        settings = EvaluationSettings(version=VERSION, settings=self.run_config.settings, arms=self.arms)
        write_json(self.folder / SETTINGS_FILE, settings)

    def metric_columns(self, arm: str) -> MetricColumns:
        """Reads the numbers of an arm.

        Raises:
            InputError: Rows are missing.
        """
        run_config = self.run_config
        return read_metric_columns(
            read_rows_of(self.folder, arm),
            n=run_config.n,
            samples=run_config.samples,
            prices=self._prices(arm),
            repeats=run_config.repeats,
        )

    def take(self, arm: str) -> Resampled:
        """Resamples an arm's rows for the comparison.

        Raises:
            InputError: Rows are missing, or all runs failed.
        """
        columns = self.metric_columns(arm)
        if columns.errors == self.run_config.distinct * self.run_config.samples:
            raise InputError(
                f"all {columns.errors} runs of the arm {arm} failed, the first with "
                f"{self.first_error(arm)}. When that is put right, resume with --retry-errors"
            )
        self.done[arm] = resample(columns, seed=self.run_config.seed, timed=self.timed)
        return self.done[arm]

    def unpriced(self) -> list[str]:
        """Names the prices that are lacking of what the arms used."""
        names = (name for arm, done in self.done.items() for name in lacking_prices(done, self._prices(arm)))
        return list(dict.fromkeys(names))

    def first_error(self, arm: str) -> str:
        """Returns what the first failed run of an arm failed with."""
        rows = read_rows_of(self.folder, arm)
        return next((row["error"] for row in rows if row["error"]), "")

    def take_older(self) -> list[str]:
        """Takes in the arms that other commands have left in this folder; returns those that lack rows."""
        lacking = []
        for arm in self.arms:
            if arm not in self.done:
                try:
                    self.take(arm)
                except InputError:
                    lacking.append(arm)
        return lacking

    def _prices(self, arm: str) -> Prices:
        """Returns the price table of an arm: a judge that is one of the models is paid like it."""
        judge = self.arms[arm]["policy"].get("scorer", {}).get("model")
        prices = self.run_config.prices
        return prices.model_copy(update={"scorer": getattr(prices, judge)}) if judge in WRITERS else prices


class _RowWriter:
    """Writes records to the journal of an arm as rows; raises where all runs fail."""

    def __init__(self, arm: str, journal: Journal, folder: Path, on_row: Callable[[Row], None]) -> None:
        self.arm, self.journal, self.folder, self.on_row, self.in_a_row = arm, journal, folder, on_row, 0
        self.not_graded: str | None = None
        """What the grader failed with."""

    def write(self, record: Record) -> None:
        row = row_of(record, self.arm)
        self.journal.append(dict(row))
        self.on_row(row)
        if failed_in_grader(row):
            self.not_graded = self.not_graded or row["error"]
            return
        self.in_a_row = 0 if row["error"] is None else self.in_a_row + 1
        if self.in_a_row >= MAX_CONSECUTIVE_FAILURES:
            raise TrimError(
                f"arm {self.arm}: {self.in_a_row} runs failed in a row, the last with {row['error']}. When "
                f"that is put right, resume with --retry-errors; what is done is in {self.folder}"
            )


def unit_of(index: int, sample: int, samples: int) -> int:
    """Numbers a question's samples without gaps, for a journal's list of what is done."""
    return index * samples + sample


@dataclass(frozen=True, slots=True)
class WorkItems:
    """The runs of a dataset: each question so many times.

    Attributes:
        dataset: The questions.
        n: How many of them: the first.
        samples: Runs of each.
        repeats: Places of questions that are passed over.
    """

    dataset: Dataset
    n: int
    samples: int = 1
    repeats: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return (self.n - len(self.repeats)) * self.samples

    def unfinished(self, finished: Container[int]) -> Iterator[WorkItem]:
        """Yields what is left, in order; what is finished is looked up as each item is taken.

        Args:
            finished: Numbers of what is done, by `unit_of`.
        """
        for index, question in enumerate(first_questions(self.dataset, self.n, default=self.n)):
            if index in self.repeats:
                continue
            for sample in range(self.samples):
                if unit_of(index, sample, self.samples) not in finished:
                    yield WorkItem(index, sample, question)

    def count_unfinished(self, finished: Container[int]) -> int:
        """Returns how many are left; see `unfinished`."""
        indices = (index for index in range(self.n) if index not in self.repeats)
        units = (unit_of(index, sample, self.samples) for index in indices for sample in range(self.samples))
        return sum(unit not in finished for unit in units)


def regraded(records: Iterable[Graded], dataset: Dataset) -> Iterator[Graded]:
    """Yields records with the verdicts of the dataset's grader; those of runs that failed stay as they are.

    Args:
        records: Of `trim_graph.evaluation.records.Record`'s keys, in order of ``index``.
        dataset: Theirs.

    Raises:
        GraderError: The grader failed.
    """
    questions = enumerate(dataset.questions())
    place, question = next(questions)
    for record in records:
        while place < record["index"]:
            place, question = next(questions)
        if record["error"] is None or failed_in_grader(record):
            grade_record(record, question)
            if record["error"] is not None:
                raise GraderError(record["error"])
        yield record
