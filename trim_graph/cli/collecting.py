"""`trim-graph collect`: traces of a dataset under a behaviour policy."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trim_graph.config import TrimConfig, for_measuring
from trim_graph.distributed.merging import Join, join_all
from trim_graph.distributed.shards import WHOLE, Shard, ShardFolder, open_shard
from trim_graph.distributed.workers import Models, Workers
from trim_graph.errors import SettingsError, TrimError
from trim_graph.evaluation.datasets import Dataset, make_dataset
from trim_graph.evaluation.identity import code_identity, identity_of
from trim_graph.evaluation.units import Units
from trim_graph.journal import Journal, settings_beside
from trim_graph.training.collecting import CollectTraces, Source
from trim_graph.training.traces import Trace, parse_trace, read_traces, write_traces

from .eval_request import count_questions
from .models import chosen_config, load_parts, parsed_option
from .progress import Progress
from .reporting import Interrupted, need
from .told_request import names_but, read_told, tell
from .working import open_workers

DEFAULT_N = 1000
"""Questions of a dataset without end, where -n does not say."""
_OF_A_CALL = ("out", "shard", "ray", "ray_workers", "retry_errors")
"""What two calls that work on one collection may differ in."""
_SHARD = "traces.jsonl"
"""The journal in the folder of a shard."""
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
    shard: str | None = None
    ray: str | None = None
    ray_workers: int | None = None

    def told(self) -> dict[str, Any]:
        """Return what makes it this collection, JSON-native."""
        return tell(self, names_but(type(self), _OF_A_CALL))

    @classmethod
    def of(cls, told: dict[str, Any], out: Path) -> Request:
        """Make a request again of what `told` has returned.

        Raises:
            InputError: It is none.
        """
        return cls(**read_told(told, names_but(cls, _OF_A_CALL), out), out=out)


def run_collect(request: Request) -> None:
    """Collect the traces that a request asks for, or what is left of them.

    Raises:
        TrimError: The request cannot be fulfilled.
        Interrupted: Ctrl-C.
    """
    collection = _Collection(request)
    path = collection.open_path()
    with _open(path, request, collection.settings) as journal:
        if collection.units.left(journal.finished):
            with collection.workers() as workers:
                collection.run(journal, workers)
        told = collection.told(journal)
    if request.shard is not None:
        print(
            f"shard {request.shard} has ended: {told} in {path}. When all have: "
            f"trim-graph merge {request.out}"
        )
        return
    _to_parquet(request, path)
    print(f"{told} in {request.out}")


def merge_traces(out: Path, shards: Sequence[ShardFolder]) -> None:
    """Join the shards of a collection.

    Args:
        out: The file of traces.
        shards: Of it.

    Raises:
        TrimError: They are not complete, or do not belong together.
    """
    request = Request.of(shards[0].told["request"], out)
    collection = _Collection(request)
    path = _journal_path(request)
    _check_whole(request, path)
    total = len(collection.units)
    there = request.out if request.out.exists() and not path.exists() else path

    def older() -> Iterator[Trace]:
        return read_traces(there, errors=True, torn=True) if there.exists() else iter(())

    join_all(
        out,
        [
            Join(
                shards,
                _SHARD,
                path,
                collection.settings,
                total,
                check=parse_trace,
                older=older,
                what=out.name,
            )
        ],
    )
    _to_parquet(request, path)
    print(f"{total} questions of {len(shards)} shards in {out}")


class _Collection:
    """A collection under way."""

    def __init__(self, request: Request) -> None:
        _check(request)
        self.request = request
        self.shard = WHOLE if request.shard is None else Shard.parse(request.shard)
        overrides: dict[str, Any] = {"settings": {"seed": request.seed}}
        if request.policy is not None:
            example = "{type: random_rate, rate: 0.3}"
            overrides["policy"] = parsed_option("--policy", request.policy, example)
        self.config: TrimConfig = chosen_config(request.config, overrides)
        given = parsed_option("--dataset", request.dataset, "{type: file, path: questions.jsonl}")
        dataset: Dataset = make_dataset(given, part="train", seed=request.seed)
        self.settings = {
            **identity_of(self.config),
            "dataset": dataset.identity(),
            "label_steps": request.label_steps,
        }
        total = count_questions("--dataset", request.dataset, dataset, request.n, DEFAULT_N)
        self.units = Units(dataset, total, shard=self.shard)
        self.errors = self.in_a_row = 0

    def open_path(self) -> Path:
        """Return where the journal is."""
        if self.request.shard is None:
            return _journal_path(self.request)
        told = {"command": "collect", "code": code_identity(), "request": self.request.told()}
        folder = open_shard(self.request.out, self.shard, {**told, "folder": os.getcwd()})
        return folder.journal(_SHARD)

    def workers(self) -> Any:
        """Return a context with those who run the models."""
        config, request = for_measuring(self.config), self.request

        def load() -> Models:
            return Models(config, load_parts(self.config, rated=True))

        return open_workers(config, load, rated=True, ray=request.ray, count=request.ray_workers)

    def told(self, journal: Journal) -> str:
        """Say how far it is."""
        failed = f", {self.errors} of them failed now" if self.errors else ""
        return f"{len(journal.finished)} questions{failed}"

    def run(self, journal: Journal, workers: Workers) -> None:
        """Run what is left.

        Raises:
            Interrupted: Ctrl-C.
            TrimError: `GIVE_UP` questions failed in a row.
        """
        units, dataset = self.units, self.units.dataset
        source = Source(
            dataset=dataset.name,
            split=dataset.part_name,
            policy=self.config.policy.model_dump(),
            seed=self.config.settings.seed,
        )
        left = units.left(journal.finished)

        def keep(trace: Trace) -> None:
            journal.append(dict(trace))
            progress.advance(failed=trace["error"] is not None)
            self._give_up(trace, journal)

        async def work() -> None:
            await workers.do(
                CollectTraces(source, label_steps=self.request.label_steps),
                ((task.index, task.question) for task in units.tasks(journal.finished)),
                concurrency=min(self.request.concurrency, left),
                on_result=keep,
            )

        try:
            asyncio.run(workers.ready())
            with Progress("collecting", len(units), done=len(units) - left) as progress:
                asyncio.run(work())
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"interrupted: {self.told(journal)} in {journal.path}; the same command goes on"
            ) from error

    def _give_up(self, trace: Trace, journal: Journal) -> None:
        if trace["error"] is None:
            self.in_a_row = 0
            return
        self.errors, self.in_a_row = self.errors + 1, self.in_a_row + 1
        if self.in_a_row >= GIVE_UP:
            raise TrimError(
                f"{self.in_a_row} questions failed in a row, the last with {trace['error']}. When that is "
                f"put right, go on with --retry-errors; {self.told(journal)} in {journal.path}"
            )


def _journal_path(request: Request) -> Path:
    """Return the journal: the file of traces itself, or, for Parquet, one beside it until all is there."""
    out = request.out
    return out.with_name(f"{out.name}.jsonl") if out.suffix == ".parquet" else out


def _check_whole(request: Request, path: Path) -> None:
    """Refuse to write over traces that were not merged of shards."""
    there = request.out if request.out.exists() else path
    if there.exists() and not settings_beside(path).exists():
        raise SettingsError(f"{there} exists and was made otherwise: choose another file")


def _to_parquet(request: Request, journal: Path) -> None:
    if request.out.suffix == ".parquet":
        write_traces(request.out, read_traces(journal, errors=True))
        journal.unlink()


def _open(path: Path, request: Request, settings: dict[str, Any]) -> Journal:
    """Open the journal, with the traces of an earlier Parquet file."""
    out = request.out
    if out.suffix == ".parquet":
        need("cli,eval", "pyarrow")
        if request.shard is None and out.exists() and not path.exists():
            if not settings_beside(path).exists():
                raise SettingsError(f"--out {out} exists and was made otherwise: choose another file")
            write_traces(path, read_traces(out, errors=True))

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
