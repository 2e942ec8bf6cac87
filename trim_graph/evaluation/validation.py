"""Runs of the models alone on validation questions, for the baselines that are fitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trim_graph.errors import TrimError
from trim_graph.journal import Journal
from trim_graph.training.collecting import CollectTraces, Source
from trim_graph.training.traces import Trace

from .datasets import Dataset, first_questions
from .harness import Harness
from .runner import Question
from .running import WorkItem, WorkItems

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

    async def run(self, writer: str) -> Path:
        """Run what is left of a model alone; steps are labelled where the dataset can, else scored.

        Args:
            writer: ``small`` or ``large``.

        Returns:
            The file of traces.

        Raises:
            TrimError: A question failed.
        """
        harness = self.harness
        file, policy = harness.folder / FOLDER / f"{writer}.jsonl", {"type": f"{writer}_only"}
        settings = {**harness.plan.settings, "validation": self.dataset.identity(), "policy": policy}
        file.parent.mkdir(exist_ok=True)

        def keep(trace: Trace) -> None:
            if trace["error"] is not None:
                raise TrimError(f"a validation question failed: {trace['error']}")
            journal.append(dict(trace))
            self.on_trace(trace)

        with Journal(file, settings) as journal:
            source = Source(self.dataset.name, "validation", policy, harness.plan.seed)
            labelled = all(one.label_steps for one in first_questions(self.dataset, 1, default=1))
            rated = writer == "small" and not labelled
            task = CollectTraces(source, policy, rated=rated, label_steps=True)
            items = WorkItems(self.dataset, self.n)
            await harness.fill(f"validation, {writer}", journal, items, task, keep, _numbered)
        return file


def _numbered(item: WorkItem) -> tuple[int, Question]:
    return item.index, item.question
