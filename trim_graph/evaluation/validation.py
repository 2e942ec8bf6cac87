"""Runs of the models alone on validation questions, for the baselines that are fitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trim_graph.errors import TrimError
from trim_graph.journal import Journal
from trim_graph.rows import read_rows
from trim_graph.training.collecting import CollectTraces, Source
from trim_graph.training.traces import Trace

from .datasets import Dataset, first_questions
from .harness import Harness
from .running import Task
from .units import Units

FOLDER = "validation"


@dataclass(frozen=True, slots=True)
class Validation:
    """Validation questions and where their traces are kept.

    Attributes:
        harness: Of the evaluation.
        dataset: The questions; not those of the evaluation.
        n: How many.
        on_trace: Called with each trace.
    """

    harness: Harness
    dataset: Dataset
    n: int
    on_trace: Callable[[Trace], None]

    @staticmethod
    def name(writer: str) -> str:
        """Return where in the folder of a run the traces of a model alone are."""
        return f"{FOLDER}/{writer}.jsonl"

    def settings(self, writer: str) -> dict[str, Any]:
        """Return what the traces of a model alone are made with."""
        policy = {"type": f"{writer}_only"}
        settings = self.harness.plan.settings
        return {**settings, "validation": self.dataset.identity(), "policy": policy}

    async def run(self, writer: str) -> Path:
        """Run what is left of a model alone; steps are labelled where the dataset can, else scored.

        Args:
            writer: ``small`` or ``large``.

        Returns:
            The file of traces.

        Raises:
            TrimError: A question failed.
            Pending: Only a shard's part of it is there.
        """
        harness = self.harness
        if harness.whole is not None and self._is_in(harness.whole / self.name(writer)):
            return harness.whole / self.name(writer)
        file, settings = harness.folder / self.name(writer), self.settings(writer)
        file.parent.mkdir(exist_ok=True)

        def keep(trace: Trace) -> None:
            if trace["error"] is not None:
                raise TrimError(f"a validation question failed: {trace['error']}")
            journal.append(dict(trace))
            self.on_trace(trace)

        with Journal(file, settings) as journal:
            source = Source(self.dataset.name, "validation", settings["policy"], harness.plan.seed)
            labelled = all(one.label_steps for one in first_questions(self.dataset, 1, default=1))
            rated = writer == "small" and not labelled
            job = CollectTraces(source, settings["policy"], rated=rated, label_steps=True)
            units = Units(self.dataset, self.n, shard=harness.plan.shard)
            await harness.fill(f"validation, {writer}", journal, units, job, keep, _item)
        return file

    def _is_in(self, file: Path) -> bool:
        there = {record["index"] for _, record in read_rows(file, torn=True)} if file.exists() else set()
        return there.issuperset(range(self.n))


def _item(task: Task) -> tuple[int, Any]:
    return task.index, task.question
