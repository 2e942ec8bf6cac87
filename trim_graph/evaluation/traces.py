"""Traces: files of records under one behaviour policy, for fitting and training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trim_graph.errors import InputError
from trim_graph.storage.journal import to_line
from trim_graph.storage.rows import import_parquet, read_rows

from .records import TOKENS, Outline, Record, RecordStep, step_columns, without_empty_windows

_GROUP = 512
"""Traces to a row group of Parquet; as many are in memory while one is written."""


class Trace(Outline):
    """A record as a line of a trace file."""

    dataset: str
    split: str | None
    """``train``, ``validation``, ``test``, as the dataset calls it."""
    policy: dict[str, Any]
    """The behaviour policy, as a configuration names it."""


@dataclass(frozen=True, slots=True)
class Source:
    """Settings that the traces of one collection share.

    Attributes:
        dataset: Its name.
        split: Train, validation or test, if known.
        policy: The behaviour policy, as a configuration names it.
    """

    dataset: str
    split: str | None
    policy: dict[str, Any]


def trace_of(record: Record, source: Source) -> Trace:
    """Returns what a trace file holds of a record."""
    return Trace(
        id=record["id"],
        index=record["index"],
        dataset=source.dataset,
        split=source.split,
        question=record["question"],
        policy=source.policy,
        seed=record["seed"],
        correct=None if record["error"] else record["correct"],
        answer=record["answer"],
        stopped=record["stopped"],
        steps=[_without_part(step) for step in record["steps"]],
        tokens=record["tokens"],
        error=record["error"],
    )


def _without_part(step: RecordStep) -> RecordStep:
    kept = step.copy()
    kept.pop("part", None)
    return kept


_TRACE: TypeAdapter[Trace] = TypeAdapter(Trace)


def read_traces(*paths: str | Path, errors: bool = False) -> Iterator[Trace]:
    """Reads traces one at a time, from one file after the other.

    Args:
        paths: Files named ``.jsonl`` or ``.parquet``.
        errors: Whether to give also the traces of questions that failed; they have no steps.

    Raises:
        InputError: A file cannot be read, or holds something that is no trace; the message names file, line
            and key.
        ImportError: A Parquet file, and pyarrow is not installed.
    """
    for path in paths:
        for place, values in read_rows(path):
            trace = parse_trace(values, place)
            if errors or trace["error"] is None:
                yield trace


def parse_trace(values: dict[str, Any], place: str) -> Trace:
    """Checks one trace.

    Args:
        values: As read from a file; keys that a trace does not have are left out.
        place: File and line, for the message.

    Raises:
        InputError: It is none.
    """
    if isinstance(values.get("policy"), str):  # from Parquet
        try:
            values = {**values, "policy": json.loads(values["policy"])}
        except ValueError as error:
            raise InputError(f"{place}: policy: is no JSON: {error}") from error
        steps = values.get("steps") or ()
        if all(step.get("value") is None for step in steps):  # the column of others
            for step in steps:
                step.pop("value", None)
    if "steps" not in values and "question" in values:
        raise InputError(
            f"{place}: a question without steps: a trace is a solution with a label for each step, as "
            "trim-graph label and trim-graph collect --label-steps write it"
        )
    try:
        return without_empty_windows(_TRACE.validate_python(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        seen = "" if first["type"] == "missing" else f" (is {_shown(first['input'])})"
        raise InputError(f"{place}: not a trace: {key}: {first['msg']}{seen}") from error


def write_traces(path: str | Path, traces: Iterable[Trace]) -> int:
    """Writes traces; an older file stays whole until the new one is.

    Args:
        path: A name that ends in ``.jsonl`` or ``.parquet``.
        traces: Taken one after the other: they may come from a file that is larger than memory.

    Returns:
        How many there were.

    Raises:
        InputError: The name ends otherwise.
        ImportError: Parquet is not installed.
    """
    file = Path(path)
    if file.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"traces go into a .jsonl or .parquet file, and {file} is neither")
    beside = file.with_name(f".{file.name}.partial")
    try:
        write = _write_parquet if file.suffix == ".parquet" else _write_lines
        count = write(beside, traces)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
    return count


def _write_lines(file: Path, traces: Iterable[Trace]) -> int:
    count = 0
    with file.open("wb") as stream:
        for trace in traces:
            stream.write(to_line(trace))
            count += 1
    return count


def _write_parquet(file: Path, traces: Iterable[Trace]) -> int:
    parquet, schema = import_parquet(), _schema()
    import pyarrow  # type: ignore[import-untyped]

    count, group = 0, list[dict[str, Any]]()
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:

        def flush() -> None:
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
            group.clear()

        for trace in traces:
            group.append({**trace, "policy": json.dumps(trace["policy"])})
            count += 1
            if len(group) == _GROUP:
                flush()
        if group:
            flush()
    return count


def _schema() -> Any:
    import pyarrow as pa

    text, number, flag = pa.string(), pa.int64(), pa.bool_()
    return pa.schema(
        {
            "id": text,
            "index": number,
            "dataset": text,
            "split": text,
            "question": text,
            "policy": text,
            "seed": number,
            "correct": flag,
            "answer": text,
            "stopped": text,
            "steps": pa.list_(pa.struct([*step_columns().items(), ("value", pa.float64())])),
            "tokens": pa.struct([(key, number) for key in TOKENS]),
            "error": text,
        }
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
