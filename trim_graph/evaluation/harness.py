"""The arms of an evaluation, one after the other, in a run folder that an interrupted run goes on with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trim_graph.budget import Prices
from trim_graph.distributed.shards import WHOLE, Shard
from trim_graph.errors import InputError, SettingsError, TrimError
from trim_graph.journal import Journal, differences

from .columns import Columns, read_columns
from .datasets import Dataset
from .run_files import SETTINGS as SETTINGS_FILE
from .run_files import VERSION, ArmSettings, Row, RunSettings, journal_of, read_rows_of, read_settings
from .run_writing import check_folder, restore_journal, write_json
from .running import RunRows, Task, unit_of
from .summarising import Resampled, resample
from .units import Units

if TYPE_CHECKING:
    from trim_graph.distributed.workers import Workers

WRITERS = ("small", "large")
GIVE_UP = 20
"""Runs that may fail in a row, before any has succeeded since: then something else is wrong."""


class Pending(Exception):
    """Something cannot be told or run yet, because other shards have not ended.

    Attributes:
        what: Arms and the like that are not all there.
    """

    def __init__(self, *what: str) -> None:
        super().__init__(f"not all there: {', '.join(what)}")
        self.what = what


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
    shard: Shard = WHOLE

    @property
    def units(self) -> Units:
        """Its runs of one arm, those of this shard."""
        return Units(self.dataset, self.n, self.samples, self.shard)


@dataclass
class Harness:
    """Runs arms and keeps their figures.

    Args:
        folder: Of the run, or of the shard; made if it is not there.
        plan: What all arms have in common.
        workers: Who runs them; None: nothing is run, only what is there is taken.
        whole: Of a shard: the folder that shards are merged into, whose arms are not run again.
        on_begin: Called before an arm is run, with its name, all its runs, and those done before.
        on_row: Called with each row.

    Raises:
        SettingsError: The folder was begun with other settings, or cannot be used.
    """

    folder: Path
    plan: Plan
    workers: Workers | None = None
    whole: Path | None = None
    on_begin: Callable[[str, int, int], None] = lambda arm, total, done: None
    on_row: Callable[[Row], None] = lambda row: None
    arms: dict[str, ArmSettings] = field(default_factory=dict)
    """All that the folder knows of."""
    done: dict[str, Resampled] = field(default_factory=dict)
    """The arms that are complete."""

    def __post_init__(self) -> None:
        self._older: dict[str, ArmSettings] = {}
        if self.whole is None:
            check_folder(self.folder, shards=self.workers is None)
        for folder in (self.folder, self.whole):
            self._know(folder, read_settings(folder) if folder is not None else None)

    @property
    def replays(self) -> bool:
        """Whether the course is gone through from its beginning: its arms then stand in its order."""
        return self.workers is None or self.whole is not None

    def _know(self, folder: Path | None, known: RunSettings | None) -> None:
        if known is None:
            return
        different = differences(known["settings"], self.plan.settings)
        if different:
            raise SettingsError(
                f"{folder} was begun with other settings, and a folder holds only one kind: "
                f"{'; '.join(different)}. Choose another --out, or give the same settings"
            )
        if self.replays:
            self._older = {**self._older, **known["arms"]}
        else:
            self.arms = dict(known["arms"])

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
            TrimError: `GIVE_UP` runs failed in a row.
            Pending: Only a shard's part of it is there.
        """
        if arm in self.done:
            return self.done[arm]
        self.note(arm, settings)
        if self.whole is not None and self.has_ended(arm):
            return self.take(arm)
        restore_journal(self.folder, arm)
        settings_of_rows = {**self.plan.settings, "arm": {"policy": self.arms[arm]["policy"]}}
        samples, retry = self.plan.samples, self.plan.retry_errors
        with Journal(
            journal_of(self.folder, arm),
            settings_of_rows,
            keep=lambda row: not retry or row["error"] is None,
            unit=lambda row: unit_of(row["index"], row["sample"], samples),
        ) as journal:
            job = RunRows(arm, policy, judged=judged, seed=self.plan.seed)
            keeper = _Keeper(journal, self.folder, self.on_row)
            await self.fill(arm, journal, self.plan.units, job, keeper.keep)
        return self.take(arm)

    async def fill(
        self,
        what: str,
        journal: Journal,
        units: Units,
        job: Any,
        keep: Callable[[Any], None],
        item: Callable[[Task], Any] = lambda task: task,
    ) -> None:
        """Have workers do what is left of some units.

        Args:
            what: They are, in a word.
            journal: That has what is done.
            units: All of them.
            job: See `trim_graph.distributed.workers.Job`.
            keep: Keeps each result.
            item: From a task to what the job works on.

        Raises:
            Pending: Nobody may run what is left, or these are but a shard's.
        """
        left = units.left(journal.finished)
        if self.workers is None and left:
            raise Pending(what)
        if self.workers is not None:
            if left:
                await self.workers.ready()
            self.on_begin(what, len(units), len(units) - left)
            if left:
                await self.workers.do(
                    job,
                    map(item, units.tasks(journal.finished)),
                    concurrency=min(self.plan.concurrency, left),
                    on_result=keep,
                )
        if self.whole is not None:
            raise Pending(what)

    def has_ended(self, arm: str) -> bool:
        """Tell whether all rows of an arm are there, and none of them is to be run again."""
        try:
            columns = self.columns(arm)
        except InputError:
            return False
        return not (self.plan.retry_errors and columns.errors)

    def note(self, arm: str, settings: ArmSettings) -> None:
        """Write down what an arm is.

        Raises:
            SettingsError: An arm of this name was another policy.
        """
        known = self.arms.get(arm) or self._older.get(arm)
        if known is not None and known["policy"] != settings["policy"]:
            told = "; ".join(differences(known["policy"], settings["policy"], "policy"))
            raise SettingsError(
                f"{self.folder}: the arm {arm} was another policy: {told}. Name this one NAME={{...}}, or "
                "choose another --out"
            )
        self.arms[arm] = settings
        if known is not None and "beside" in known and not self.replays:
            settings["beside"] = list(dict.fromkeys([*known["beside"], *settings.get("beside", [])]))
        if known is not None and "spends" in known:
            settings["spends"] = {**known["spends"], **settings.get("spends", {})}
        self.write_settings()

    def remember(self, arms: dict[str, ArmSettings]) -> None:
        """Take in what other folders know of arms, as those that other commands have left."""
        self._older |= {arm: settings for arm, settings in arms.items() if arm not in self._older}

    def forget(self, arm: str) -> None:
        """Let an arm of this name be another policy than it was."""
        self.arms.pop(arm, None)
        self._older.pop(arm, None)

    def write_settings(self) -> None:
        """Write what the run is to its folder."""
        older = {arm: settings for arm, settings in self._older.items() if arm not in self.arms}
        settings = RunSettings(version=VERSION, settings=self.plan.settings, arms={**self.arms, **older})
        write_json(self.folder / SETTINGS_FILE, settings)

    def columns(self, arm: str) -> Columns:
        """Read the numbers of an arm.

        Raises:
            InputError: Rows are missing.
        """
        plan = self.plan
        rows = read_rows_of(self.whole or self.folder, arm)
        return read_columns(rows, n=plan.n, samples=plan.samples, prices=self._prices(arm))

    def take(self, arm: str) -> Resampled:
        """Take an arm's rows into the comparison.

        Raises:
            InputError: Rows are missing, or all runs failed.
        """
        columns = self.columns(arm)
        if columns.errors == self.plan.n * self.plan.samples:
            rows = read_rows_of(self.whole or self.folder, arm)
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
        chosen = {(one["family"], of) for one in self.arms.values() for of in one.get("beside", [])}
        for arm, settings in self._older.items():
            if arm not in self.arms:
                if "beside" in settings:  # but not of what another is chosen for now
                    beside = [of for of in settings["beside"] if (settings["family"], of) not in chosen]
                    settings = ArmSettings(**{**settings, "beside": beside})
                self.arms[arm] = settings
        self.write_settings()
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
        if self.in_a_row >= GIVE_UP:
            raise TrimError(
                f"arm {row['arm']}: {self.in_a_row} runs failed in a row, the last with {row['error']}. When "
                f"that is put right, go on with --retry-errors; what is done is in {self.folder}"
            )
