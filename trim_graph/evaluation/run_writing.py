"""Writing the folder of an evaluation (`trim_graph.evaluation.run_files`): its Parquet file, its journals."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trim_graph.errors import InputError, SettingsError
from trim_graph.journal import to_line
from trim_graph.rows import import_parquet
from trim_graph.training.traces import TOKENS

from .run_files import ROWS, SETTINGS, SUMMARY, Row, journal_of, parse_row, read_rows_of

_GROUP = 1024
"""Rows to a row group of Parquet; as many are in memory while one is written or read, and what is kept of
each group until the file is closed grows with their number."""


def check_folder(folder: Path) -> None:
    """Make the folder of a run where it is not there.

    Args:
        folder: Of the run.

    Raises:
        SettingsError: It cannot be made or written, or holds something else than a run.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise SettingsError(f"--out {folder} cannot be written: no permission")
    if any(folder.iterdir()) and not (folder / SETTINGS).exists():
        raise SettingsError(
            f"--out {folder} holds files, and no {SETTINGS} that says they are a run's: choose another folder"
        )


def write_json(file: Path, values: Any) -> None:
    """Write a JSON file; an older one stays whole until the new one is."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    beside.write_text(text, encoding="utf-8", errors="replace")
    beside.replace(file)


def write_rows(folder: Path, arms: Sequence[str]) -> int:
    """Write ``rows.parquet`` of the arms' journals, and take those away.

    Rows of an arm that has no journal are taken from the older ``rows.parquet``.

    Args:
        folder: Of the run.
        arms: Names, in the order they are to have.

    Returns:
        How many rows there are.

    Raises:
        InputError: A row cannot be read.
        ImportError: Parquet is not installed.
    """
    parquet, schema = import_parquet(), row_schema()
    import pyarrow  # type: ignore[import-untyped]

    beside, count = folder / f".{ROWS}.{os.getpid()}", 0
    try:
        with parquet.ParquetWriter(beside, schema, compression="zstd") as writer:
            for group in _grouped(folder, arms):
                writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
                count += len(group)
        (folder / SUMMARY).unlink(missing_ok=True)  # it is of the rows before these
        beside.replace(folder / ROWS)
    finally:
        beside.unlink(missing_ok=True)
    for arm in arms:
        journal_of(folder, arm).unlink(missing_ok=True)
    return count


def _grouped(folder: Path, arms: Iterable[str]) -> Iterator[list[dict[str, Any]]]:
    """Give the rows in groups of one arm each."""
    for arm in arms:
        group = list[dict[str, Any]]()
        file = journal_of(folder, arm)
        for row in in_order(file) if file.exists() else read_rows_of(folder, arm):
            group.append(dict(row))
            if len(group) == _GROUP:
                yield group
                group = []
        if group:
            yield group


def in_order(journal: Path) -> Iterator[Row]:
    """Give the rows of a journal in order of question and sample; only where each begins is kept in memory.

    A last line that ends in the middle, as a killed writer leaves it, is passed over.

    Raises:
        InputError: A row cannot be read.
    """
    import numpy as np

    places, order = array("q"), array("q")
    with journal.open("rb") as stream:
        place = 0
        for line in stream:
            if not line.endswith(b"\n"):
                break
            values = _read_place(line, f"{journal}, byte {place}")
            places.append(place)
            order.extend(values)
            place += len(line)
        keys = np.array(order, dtype=np.int64).reshape(-1, 2)
        for number in np.lexsort((keys[:, 1], keys[:, 0])):
            stream.seek(places[number])
            yield parse_row(json.loads(stream.readline()), f"{journal}, byte {places[number]}")


def _read_place(line: bytes, place: str) -> tuple[int, int]:
    """Return question and sample of a line."""
    try:
        values = json.loads(line)
        return values["index"], values["sample"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{place}: not a row of an evaluation: {error}") from error


def restore_journal(folder: Path, arm: str) -> None:
    """Make the journal of an arm again of ``rows.parquet``, so that the arm can go on.

    Args:
        folder: Of the run.
        arm: Its name.

    Raises:
        InputError: A row cannot be read.
    """
    file = journal_of(folder, arm)
    file.parent.mkdir(exist_ok=True)
    if file.exists() or not (folder / ROWS).exists():
        return
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with beside.open("wb") as stream:
            for row in read_rows_of(folder, arm):
                stream.write(to_line(row))
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def row_schema() -> Any:
    """Return the columns of ``rows.parquet``: those of `Row`."""
    import pyarrow as pa

    text, number, flag, real = pa.string(), pa.int64(), pa.bool_(), pa.float64()
    draft = {"text": text, "tokens": number, "score": real, "label": flag, "mean_token_probability": real}
    step = {
        "text": text,
        "writer": text,
        "tokens": number,
        "score": real,
        "decision": text,
        "mean_token_probability": real,
        "label": flag,
        "part": text,
        "discarded": pa.struct(list(draft.items())),
    }
    per_writer = [("small", number), ("large", number)]
    return pa.schema(
        {
            "arm": text,
            "index": number,
            "id": text,
            "sample": number,
            "seed": number,
            "question": text,
            "expected": text,
            "correct": flag,
            "answer": text,
            "solution": text,
            "error": text,
            "stopped": text,
            "notes": pa.list_(text),
            "seconds": real,
            "first_step_seconds": real,
            "large_tokens": number,
            "tokens": pa.struct([(key, number) for key in TOKENS]),
            "prefill": pa.struct(per_writer),
            "cached_prefill": pa.struct(per_writer),
            "calls": pa.struct([*per_writer, ("scorer", number)]),
            "cost": real,
            "steps": pa.list_(pa.struct(list(step.items()))),
        }
    )
