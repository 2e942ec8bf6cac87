"""`trim-graph collect`: traces of a dataset under a behaviour policy."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from trim_graph.config import TrimConfig, for_measuring
from trim_graph.errors import SettingsError, TrimError, counted
from trim_graph.evaluation.arms import identity_of
from trim_graph.evaluation.experiment import WorkItems
from trim_graph.evaluation.records import Record
from trim_graph.evaluation.runner import MAX_CONSECUTIVE_FAILURES, Executor, Models, RunQuestions, run_each
from trim_graph.evaluation.traces import Source, parse_trace, read_traces, trace_of, write_traces
from trim_graph.storage.journal import Journal, settings_beside

from .common import Progress, check_trace_file, chosen_config, load_parts, open_executor, parsed_option
from .eval import count_questions, read_dataset
from .options import CollectOptions
from .terminal import Interrupted, need

DEFAULT_N = 1000
"""Questions of a dataset without end, where -n does not say."""


def run_collect(request: CollectOptions) -> None:
    """Collects the traces that a request asks for, or what is left of them.

    Raises:
        TrimError: The request cannot be fulfilled.
        Interrupted: Ctrl-C.
    """
    collection = _Collection(request)
    path = _journal_path(request.out)
    with _open(path, request, collection.settings) as journal:
        if collection.items.count_unfinished(journal.finished):
            with collection.executor() as executor:
                collection.run(journal, executor)
        progress = collection.progress(journal)
    if path != request.out:
        write_traces(request.out, read_traces(path, errors=True))
        path.unlink()
    print(f"{progress} in {request.out}")


class _Collection:
    """A collection under way."""

    def __init__(self, request: CollectOptions) -> None:
        check_trace_file(request.out)
        self.request = request
        overrides: dict[str, Any] = {"settings": {"seed": request.seed}}
        if request.policy is not None:
            example = "{type: random_rate, rate: 0.3}"
            overrides["policy"] = parsed_option("--policy", request.policy, example)
        self.config: TrimConfig = chosen_config(request.config, overrides)
        dataset = read_dataset("--dataset", request.dataset, "train", request.seed)
        self.settings = {
            **identity_of(self.config),
            "dataset": dataset.identity(),
            "label_steps": request.label_steps,
        }
        total, _ = count_questions("--dataset", request.dataset, dataset, request.n, DEFAULT_N)
        self.items = WorkItems(dataset, total)
        self.errors = self.in_a_row = 0

    def executor(self) -> AbstractContextManager[Executor]:
        """Returns a context with the executor that runs the models."""
        config, request = for_measuring(self.config), self.request

        def load() -> Models:
            return Models(config, load_parts(self.config, rated=True))

        return open_executor(
            config,
            load,
            rated=True,
            ray=request.ray,
            count=request.ray_workers,
            workers=request.workers,
            load_per_worker=request.load_per_worker,
        )

    def progress(self, journal: Journal) -> str:
        """Says how far it is."""
        failed = f", {self.errors} of them failed now" if self.errors else ""
        return f"{counted(len(journal.finished), 'question')}{failed}"

    def run(self, journal: Journal, executor: Executor) -> None:
        """Runs what is left.

        Raises:
            Interrupted: Ctrl-C.
            TrimError: `MAX_CONSECUTIVE_FAILURES` questions failed in a row.
        """
        items, dataset = self.items, self.items.dataset
        source = Source(
            dataset=dataset.name,
            split=dataset.part_name,
            policy=self.config.policy.model_dump(),
        )
        left = items.count_unfinished(journal.finished)

        def keep(record: Record) -> None:
            journal.append(dict(trace_of(record, source)))
            bar.advance(failed=record["error"] is not None)
            self._give_up(record, journal)

        async def work() -> None:
            seed = self.config.settings.seed
            task = RunQuestions(seed=seed, rated=True, label_steps=self.request.label_steps)
            await run_each(
                await executor.setup(task),
                items.unfinished(journal.finished),
                concurrency=min(self.request.concurrency, left),
                on_result=keep,
            )

        try:
            asyncio.run(executor.ready())
            with Progress("collecting", len(items), done=len(items) - left) as bar:
                asyncio.run(work())
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"interrupted: {self.progress(journal)} in {journal.path}; the same command resumes it"
            ) from error

    def _give_up(self, record: Record, journal: Journal) -> None:
        if record["error"] is None:
            self.in_a_row = 0
            return
        self.errors, self.in_a_row = self.errors + 1, self.in_a_row + 1
        if self.in_a_row >= MAX_CONSECUTIVE_FAILURES:
            raise TrimError(
                f"{self.in_a_row} questions failed in a row, the last with {record['error']}. When that is "
                f"put right, resume with --retry-errors; {self.progress(journal)} in {journal.path}"
            )


def _journal_path(out: Path) -> Path:
    """Returns the journal: the file of traces itself, or, for Parquet, one beside it until all is there."""
    return out.with_name(f"{out.name}.jsonl") if out.suffix == ".parquet" else out


def _open(path: Path, request: CollectOptions, settings: dict[str, Any]) -> Journal:
    """Opens the journal, with the traces of an earlier Parquet file."""
    out = request.out
    if out.suffix == ".parquet":
        need("cli,eval", "pyarrow")
        if out.exists() and not path.exists():
            if not settings_beside(path).exists():
                raise SettingsError(f"--out {out} exists and was made otherwise: choose another file")
            write_traces(path, read_traces(out, errors=True))

    def keep(record: dict[str, Any]) -> bool:
        return not request.retry_errors or parse_trace(record, str(path))["error"] is None

    return Journal(path, settings, keep=keep)
