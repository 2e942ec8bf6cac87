"""The folder of an evaluation: one row a question and arm, the settings, and the summary.

While it runs::

    RUN/settings.json     what it was begun with (`RunSettings`)
    RUN/rows/ARM.jsonl    a journal for each arm: rows in the order in which the questions ended

and when it has ended::

    RUN/rows.parquet      all rows, arm by arm, in order of question and sample
    RUN/summary.json      `trim_graph.evaluation.run_summary.RunSummary`

`read_run` reads a folder in either state; `read_rows_of` streams rows. Parquet needs the extra ``eval``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired
from urllib.parse import quote, unquote

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from trim_graph.errors import InputError
from trim_graph.rows import import_parquet, read_rows
from trim_graph.thinking import Part
from trim_graph.training.traces import Count, TraceStep

if TYPE_CHECKING:
    from .run_summary import RunSummary

VERSION = 1
SETTINGS, SUMMARY, ROWS, JOURNALS = "settings.json", "summary.json", "rows.parquet", "rows"

ArmKind = Literal["reference", "policy", "sweep", "random", "baseline"]
"""``reference``: one of the models alone; ``random``: random routing at one rate; ``sweep``: one of several
operating points of a policy."""


class RowStep(TraceStep):
    """One accepted step of a row."""

    part: NotRequired[Part | None]
    """Thought or answer, where a model thinks."""


class PerWriter(TypedDict):
    """A count for each of the two models."""

    small: Count
    large: Count


class Calls(PerWriter):
    """Calls that were answered or have failed with all their attempts."""

    scorer: Count


class Row(TypedDict):
    """What came of one question under one arm."""

    arm: str
    index: Count
    """Of the question in the dataset, from 0."""
    id: str
    """Of the question in the dataset; its place where it has none."""
    sample: Count
    """Which of the repeated samples, from 0."""
    seed: int | None
    """Of the run: that of the evaluation plus ``sample``."""
    question: str
    expected: str | None
    """The right answer, for the record."""
    correct: bool | None
    """False after an error; None where there is no right answer to compare with."""
    answer: str | None
    """Content of the last ``\\boxed{}`` of the solution."""
    solution: str
    """Empty after an error."""
    error: str | None
    """Type and message of what went wrong, or None. The tokens of such a row are 0: nobody knows them."""
    stopped: str
    """As in `trim_graph.state.Summary`; empty after an error."""
    notes: list[str]
    """Those of the run."""
    seconds: float
    """Wall clock, waiting for other questions under way included."""
    first_step_seconds: float | None
    """Wall clock until the first step was accepted."""
    large_tokens: Count
    """What the large model generated, discarded, unaccounted and failed attempts included."""
    tokens: dict[str, Count]
    """``small``, ``large``: in accepted steps; ``small_discarded``, ``large_discarded``: generated besides;
    ``large_unaccounted``: charged for calls whose end nobody saw; ``scorer``: read;
    ``scorer_output``: written by a judge, not in rows of earlier releases."""
    prefill: PerWriter
    """Prompt tokens of all calls."""
    cached_prefill: PerWriter
    """Those of them that were served from a cache, where the model tells."""
    calls: Calls
    cost: float
    """By the price table; 0 where there is none."""
    steps: list[RowStep]


class ArmSettings(TypedDict):
    """What an arm is."""

    kind: ArmKind
    family: str
    """Arms of one family are points of one curve."""
    policy: dict[str, Any]
    """As a configuration names it, files by their content. Of an arm that is composed of the outcomes of the
    models alone, what it is composed by."""


class RunSettings(TypedDict):
    """What a run was begun with."""

    version: int
    settings: dict[str, Any]
    """Models, scorer, prices, budget, dataset, seed and samples: what makes outcomes comparable."""
    arms: dict[str, ArmSettings]
    """By name, in the order in which they were begun."""


_ROW: TypeAdapter[Row] = TypeAdapter(Row)
_SETTINGS: TypeAdapter[RunSettings] = TypeAdapter(RunSettings)


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder that was read.

    Attributes:
        folder: Where it is.
        settings: What it was begun with.
        summary: None while it has not ended, or was begun again and has not.
    """

    folder: Path
    settings: RunSettings
    summary: RunSummary | None

    def rows(self, *arms: str) -> Iterator[Row]:
        """Stream the rows, arm by arm; see `read_rows_of`."""
        return read_rows_of(self.folder, *arms)


def read_run(folder: str | Path) -> Run:
    """Read a run folder: settings and summary at once, rows as they are asked for.

    Args:
        folder: That ``trim-graph eval --out`` named.

    Raises:
        InputError: It is none, or something in it cannot be read.
    """
    place = Path(folder)
    settings = read_settings(place)
    if settings is None:
        raise InputError(f"{place} is no folder of an evaluation: {SETTINGS} is not there")
    # A run that was begun again has journals: its older summary is not of the rows that are there now.
    ended = (place / SUMMARY).exists() and not any((place / JOURNALS).glob("*.jsonl"))
    summary: RunSummary | None = _json(place / SUMMARY) if ended else None
    return Run(place, settings, summary)


def read_settings(folder: Path) -> RunSettings | None:
    """Return what a run was begun with; None where it was not.

    Raises:
        InputError: The file is damaged, or of a later version.
    """
    file = folder / SETTINGS
    if not file.exists():
        return None
    values = _json(file)
    if isinstance(values, dict) and values.get("version", VERSION) > VERSION:
        raise InputError(f"{file} is of version {values['version']}; known is {VERSION}: use a later release")
    try:
        return _SETTINGS.validate_python(values)
    except ValidationError as error:
        raise InputError(f"{file} is damaged: {error.errors(include_url=False)[0]['msg']}") from error


def file_name(arm: str) -> str:
    """Return an arm's name as the name of a file has it."""
    return quote(arm, safe=" +@=,()")


def journal_of(folder: Path, arm: str) -> Path:
    """Return where the journal of an arm lies."""
    return folder / JOURNALS / f"{file_name(arm)}.jsonl"


def arm_of(journal: Path) -> str:
    """Return the arm that a journal is of."""
    return unquote(journal.stem)


def read_rows_of(folder: str | Path, *arms: str) -> Iterator[Row]:
    """Stream the rows of a run, arm by arm.

    An arm's journal is read where there is one, in the order in which questions ended, else its rows of
    ``rows.parquet``, in order of question and sample.

    Args:
        folder: Of the run.
        arms: Names; default: all.

    Raises:
        InputError: A row cannot be read; the message names file and line.
        ImportError: Parquet is not installed.
    """
    place = Path(folder)
    journals = {arm_of(file): file for file in sorted((place / JOURNALS).glob("*.jsonl"))}

    def wanted(arm: str) -> bool:
        return not arms or arm in arms

    if (place / ROWS).exists():
        for where, values in _of_parquet(place / ROWS, lambda arm: wanted(arm) and arm not in journals):
            yield parse_row(values, where)
    for arm, file in journals.items():
        if wanted(arm):
            for where, values in read_rows(file, torn=True):
                yield parse_row(values, where)


def parse_row(values: dict[str, Any], place: str) -> Row:
    """Check one row.

    Args:
        values: As read from a file; keys that a row does not have are left out.
        place: Where it stands, for the message.

    Raises:
        InputError: It is none.
    """
    try:
        return _ROW.validate_python(values, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{place}: not a row of an evaluation: {key}: {first['msg']}") from error


def _of_parquet(file: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the rows of some arms; no row group holds two arms, and those of others are passed over."""
    parquet = import_parquet()
    import pyarrow  # type: ignore[import-untyped]

    try:
        with parquet.ParquetFile(file) as opened:
            for group in range(opened.num_row_groups):
                arm = opened.metadata.row_group(group).column(0).statistics.min
                if wanted(arm):
                    for number, values in enumerate(opened.read_row_group(group).to_pylist(), 1):
                        yield f"{file}, row {number} of group {group}", values
    except (pyarrow.ArrowException, AttributeError) as error:
        raise InputError(f"{file}: not the rows of an evaluation: {error}") from error


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (ValueError, OSError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
