"""Runs of the models alone on validation questions, for the baselines that are fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trim_graph.errors import TrimError
from trim_graph.journal import Journal
from trim_graph.training.collecting import Source, collect
from trim_graph.training.traces import Trace

from .datasets import Dataset, first_questions
from .runner import Question

FOLDER = "validation"


@dataclass(frozen=True, slots=True)
class Validation:
    """Validation questions and where their traces are kept.

    Attributes:
        folder: Of the run.
        dataset: The questions; not those of the evaluation.
        n: How many.
        settings: What makes outcomes comparable, JSON-native.
        seed: Of the graphs.
        concurrency: Most questions under way at once.
        on_begin: Called before a model is run, with its name, all runs, and those done before.
        on_trace: Called with each trace.
    """

    folder: Path
    dataset: Dataset
    n: int
    settings: dict[str, Any]
    seed: int
    concurrency: int
    on_begin: Callable[[str, int, int], None]
    on_trace: Callable[[Trace], None]

    def file(self, writer: str) -> Path:
        """Return where the traces of a model alone are."""
        return self.folder / FOLDER / f"{writer}.jsonl"

    async def run(self, writer: str, graph: Any, scorer: Any = None) -> Path:
        """Run what is left of a model alone; steps are labelled where the dataset can, else scored.

        Args:
            writer: ``small`` or ``large``.
            graph: Under the policy ``small_only`` or ``large_only``.
            scorer: Scores steps that nothing else labels.

        Returns:
            The file of traces.

        Raises:
            TrimError: A question failed.
        """
        self.file(writer).parent.mkdir(exist_ok=True)
        policy = {"type": f"{writer}_only"}
        settings = {**self.settings, "validation": self.dataset.identity(), "policy": policy}

        def keep(trace: Trace) -> None:
            if trace["error"] is not None:
                raise TrimError(f"a validation question failed: {trace['error']}")
            journal.append(dict(trace))
            self.on_trace(trace)

        with Journal(self.file(writer), settings) as journal:
            left = [index for index in range(self.n) if index not in journal.finished]
            self.on_begin(f"validation, {writer}", self.n, self.n - len(left))
            if left:
                source = Source(self.dataset.name, "validation", policy, self.seed)
                labelled = all(question.label_steps for _, question in self._questions({left[0]}))
                await collect(
                    graph,
                    self._questions(set(left)),
                    source,
                    scorer=None if labelled else scorer,
                    on_trace=keep,
                    concurrency=min(self.concurrency, len(left)),
                    label_steps=True,
                )
        return self.file(writer)

    def _questions(self, wanted: set[int]) -> Iterator[tuple[int, Question]]:
        for index, question in enumerate(first_questions(self.dataset, self.n, default=self.n)):
            if index in wanted:
                yield index, question
