"""Reader of data files row by row: JSONL, Parquet (extra ``eval``), or one JSON array."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trim_graph.errors import InputError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
_BATCH = 256
"""Rows of Parquet in memory at once."""


class Row(NamedTuple):
    """A row and its place in the file, for messages: ``data.jsonl, line 3``."""

    place: str
    values: dict[str, Any]


def read_rows(path: str | Path, *, torn: bool = False) -> Iterator[Row]:
    """Reads a file row by row.

    Args:
        path: The file; its suffix names the format: ``.jsonl``, ``.ndjson``, ``.parquet``, or ``.json`` for
            an array.
        torn: Whether to skip an incomplete last line, as a killed writer leaves it.

    Raises:
        InputError: The file does not exist, has another suffix, or holds something that is no row; the
            message names the file and the line.
        ImportError: Parquet is not installed.
    """
    file = Path(path)
    if file.suffix not in SUFFIXES:
        raise InputError(f"{file}: its name ends in {file.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    try:
        if file.suffix == ".parquet":
            yield from _parquet(file)
        elif file.suffix == ".json":
            yield from _array(file)
        else:
            yield from _lines(file, torn)
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist (looked for {file.absolute()})") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error


def _lines(file: Path, torn: bool) -> Iterator[Row]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            place = f"{file}, line {number}"
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            whole = line.endswith(b"\n")
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                if not whole and torn:
                    return
                hint = "" if whole else "; it has no end, as an interrupted writer leaves it"
                raise InputError(f"{place}: not JSON: {_short_of_line(error)}{hint}") from error
            yield Row(place, _mapping(values, place))


def _array(file: Path) -> Iterator[Row]:
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: not JSON: {_short(error)}; rows one a line go into a file named .jsonl"
        ) from error
    if not isinstance(values, list):
        raise InputError(f"{file} holds a JSON {type(values).__name__}; expected an array of objects")
    for number, value in enumerate(values, 1):
        place = f"{file}, row {number}"
        yield Row(place, _mapping(value, place))


def _parquet(file: Path) -> Iterator[Row]:
    parquet = import_parquet()
    import pyarrow  # type: ignore[import-untyped]

    number = 0
    try:
        with parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=_BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{file}, row {number}", values)
    except pyarrow.ArrowException as error:
        raise InputError(f"{file}, after row {number}: not Parquet: {_short(error)}") from error


def import_parquet() -> Any:
    """Returns ``pyarrow.parquet``.

    Raises:
        ImportError: It is not installed; the message says how to get it.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f'Parquet needs pyarrow: pip install "trim-graph[eval]" ({error})') from error
    return parquet


def _mapping(values: Any, place: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise InputError(f"{place}: holds a JSON {type(values).__name__}; expected an object")
    return values


def _short_of_line(error: Exception) -> str:
    """Returns what is wrong in one line of a file, by its column: the place names the line."""
    return (
        f"{error.msg} at column {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else _short(error)
    )


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
