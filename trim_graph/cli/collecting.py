"""`trim-graph collect`: traces of a dataset under a behaviour policy."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trim_graph.config import Parts, TrimConfig, build_graph, for_measuring
from trim_graph.errors import SettingsError, TrimError
from trim_graph.evaluation import Question
from trim_graph.evaluation.datasets import Dataset, first_questions, make_dataset
from trim_graph.evaluation.identity import identity_of
from trim_graph.journal import Journal, settings_beside
from trim_graph.training.collecting import Source, collect
from trim_graph.training.traces import Trace, parse_trace, read_traces, write_traces

from .models import chosen_config, load_parts, parsed_option
from .progress import Progress
from .reporting import Interrupted, need

DEFAULT_N = 1000
"""Questions of a dataset without end, where -n does not say."""
GIVE_UP = 20
"""Questions that may fail in a row, before any has succeeded since: then something else is wrong."""


@dataclass(frozen=True, slots=True)
class Request:
    """The command line of `collect`, as given."""

    dataset: str
    out: Path
    config: Path | None = None
    policy: str | None = None
    n: int | None = None
    concurrency: int = 32
    seed: int = 0
    label_steps: bool = False
    retry_errors: bool = False


def run_collect(request: Request) -> None:
    """Collect the traces that a request asks for, or what is left of them.

    Raises:
        TrimError: The request cannot be fulfilled.
        Interrupted: Ctrl-C.
    """
    _check(request)
    overrides: dict[str, Any] = {"settings": {"seed": request.seed}}
    if request.policy is not None:
        example = "{type: random_rate, rate: 0.3}"
        overrides["policy"] = parsed_option("--policy", request.policy, example)
    config = chosen_config(request.config, overrides)
    given = parsed_option("--dataset", request.dataset, "{type: file, path: questions.jsonl}")
    dataset = make_dataset(given, part="train", seed=request.seed)
    settings = {**identity_of(config), "dataset": dataset.identity(), "label_steps": request.label_steps}
    next(
        first_questions(dataset, 1, default=1), None
    )  # a file that cannot be read is told before models load
    total = request.n if request.n is not None else dataset.count()
    with _open(request, settings) as journal:
        collection = _Collection(request, config, dataset, journal, total or DEFAULT_N)
        if collection.left():
            collection.run(load_parts(config, rated=True))
    if request.out.suffix == ".parquet":
        write_traces(request.out, read_traces(journal.path, errors=True))
        journal.path.unlink()
    print(f"{collection.told()} in {request.out}")


class _Collection:
    """A collection under way."""

    def __init__(
        self, request: Request, config: TrimConfig, dataset: Dataset, journal: Journal, total: int
    ) -> None:
        self.request, self.config, self.dataset = request, config, dataset
        self.journal, self.total = journal, total
        self.errors = self.in_a_row = 0

    def left(self) -> int:
        """Return how many questions are left."""
        finished = self.journal.finished
        return sum(index not in finished for index in range(self.total))

    def told(self) -> str:
        """Say how far it is."""
        failed = f", {self.errors} of them failed now" if self.errors else ""
        return f"{len(self.journal.finished)} questions{failed}"

    def run(self, parts: Parts) -> None:
        """Run what is left.

        Raises:
            Interrupted: Ctrl-C.
            TrimError: `GIVE_UP` questions failed in a row.
        """
        source = Source(
            dataset=self.dataset.name,
            split=self.dataset.part_name,
            policy=self.config.policy.model_dump(),
            seed=self.config.settings.seed,
        )
        with Progress("collecting", self.total, done=len(self.journal.finished)) as self.progress:
            work = collect(
                build_graph(for_measuring(self.config), parts=parts),
                self._questions(),
                source,
                scorer=parts.scorer,
                on_trace=self._keep,
                concurrency=min(self.request.concurrency, self.left()),
                label_steps=self.request.label_steps,
            )
            try:
                asyncio.run(work)
            except KeyboardInterrupt as error:
                raise Interrupted(
                    f"interrupted: {self.told()} in {self.journal.path}; the same command goes on"
                ) from error

    def _questions(self) -> Iterator[tuple[int, Question]]:
        every = first_questions(self.dataset, self.total, default=self.total)
        for index, question in enumerate(every):
            if index not in self.journal.finished:
                yield index, question

    def _keep(self, trace: Trace) -> None:
        self.journal.append(dict(trace))
        self.progress.advance(failed=trace["error"] is not None)
        if trace["error"] is None:
            self.in_a_row = 0
            return
        self.errors, self.in_a_row = self.errors + 1, self.in_a_row + 1
        if self.in_a_row >= GIVE_UP:
            raise TrimError(
                f"{self.in_a_row} questions failed in a row, the last with {trace['error']}. When that is "
                f"put right, go on with --retry-errors; {self.told()} in {self.journal.path}"
            )


def _open(request: Request, settings: dict[str, Any]) -> Journal:
    """Open the journal: the file of traces itself, or, for Parquet, one beside it until all is there."""
    path = request.out
    if path.suffix == ".parquet":
        need("cli,eval", "pyarrow")
        path = request.out.with_name(f"{request.out.name}.jsonl")
        if request.out.exists() and not path.exists() and settings_beside(path).exists():
            write_traces(path, read_traces(request.out, errors=True))
        elif request.out.exists() and not path.exists():
            raise SettingsError(f"--out {request.out} exists and was made otherwise: choose another file")

    def keep(record: dict[str, Any]) -> bool:
        return not request.retry_errors or parse_trace(record, str(path))["error"] is None

    return Journal(path, settings, keep=keep)


def _check(request: Request) -> None:
    """Refuse before minutes of work what would fail after them."""
    if request.n is not None and request.n < 1:
        raise SettingsError(f"-n is {request.n}: choose 1 or more")
    if request.concurrency < 1:
        raise SettingsError(f"--concurrency is {request.concurrency}: choose 1 or more")
    out = request.out
    if out.suffix not in (".jsonl", ".parquet"):
        raise SettingsError(f"--out {out}: the name must end in .jsonl or .parquet")
    folder = out.absolute().parent
    if not folder.is_dir():
        raise SettingsError(f"--out {out}: the folder {folder} does not exist")
    if out.is_dir() or not os.access(out if out.exists() else folder, os.W_OK):
        raise SettingsError(
            f"--out {out} cannot be written: {'a folder' if out.is_dir() else 'no permission'}"
        )
