"""Traces: what happened to each question under a behaviour policy, one record a question.

They are what step models are fitted on and policies trained with. A file of traces is JSONL or Parquet; in
Parquet ``policy`` is a JSON string, everything else has the columns of `Trace`. `read_traces` streams either.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from trim_graph.budget import Writer
from trim_graph.errors import InputError
from trim_graph.journal import to_line
from trim_graph.rows import import_parquet, read_rows

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]

TOKENS = (
    "small",
    "large",
    "small_discarded",
    "large_discarded",
    "large_unaccounted",
    "scorer",
    "scorer_output",
)
"""Keys of a trace's ``tokens``, as in `trim_graph.state.Summary`."""
_GROUP = 512
"""Traces to a row group of Parquet; as many are in memory while one is written."""


class DiscardedDraft(TypedDict):
    """A draft of the small model that the large model's step replaced."""

    text: str
    tokens: Count
    score: Probability | None
    label: bool | None
    mean_token_probability: NotRequired[Probability | None]


class TraceStep(TypedDict):
    """One accepted step."""

    text: str
    writer: Writer
    tokens: Count
    """0 where nobody counted, as in labelled solutions."""
    score: Probability | None
    """The scorer's probability that the step is right given what stands before it."""
    decision: str | None
    """``accept``, ``regenerate`` or ``handover``; None where the policy was not asked about a draft."""
    mean_token_probability: Probability | None
    label: bool | None
    """Whether the step is right given what stands before it: the first False of a solution is its first wrong
    step. None where nobody knows."""
    discarded: DiscardedDraft | None


class Trace(TypedDict):
    """What happened to one question."""

    id: str
    index: Count
    """Its place in the dataset, from 0."""
    dataset: str
    split: str | None
    """``train``, ``validation``, ``test``, as the dataset calls it."""
    question: str
    policy: dict[str, Any]
    """The behaviour policy, as a configuration names it."""
    seed: int | None
    correct: bool | None
    """Of the final answer; None where there is no right answer to compare with, and after an error."""
    answer: str | None
    stopped: str
    """As in `trim_graph.state.Summary`; empty after an error."""
    steps: list[TraceStep]
    tokens: dict[str, Count]
    """By the keys `TOKENS`."""
    error: str | None
    """Type and message of what went wrong, or None."""


_TRACE: TypeAdapter[Trace] = TypeAdapter(Trace)


def read_traces(*paths: str | Path, errors: bool = False, torn: bool = False) -> Iterator[Trace]:
    """Read traces one at a time, from one file after the other.

    Args:
        paths: Files named ``.jsonl`` or ``.parquet``.
        errors: Whether to give also the traces of questions that failed; they have no steps.
        torn: Whether a last line that ends in the middle, as in a file that is still being written, is passed
            over.

    Raises:
        InputError: A file cannot be read, or holds something that is no trace; the message names file, line
            and key.
        ImportError: A Parquet file, and pyarrow is not installed.
    """
    for path in paths:
        for place, values in read_rows(path, torn=torn):
            trace = parse_trace(values, place)
            if errors or trace["error"] is None:
                yield trace


def parse_trace(values: dict[str, Any], place: str) -> Trace:
    """Check one trace.

    Args:
        values: As read from a file; keys that a trace does not have are left out.
        place: Where it stands, for the message.

    Raises:
        InputError: It is none.
    """
    if isinstance(values.get("policy"), str):  # from Parquet
        try:
            values = {**values, "policy": json.loads(values["policy"])}
        except ValueError as error:
            raise InputError(f"{place}: policy: is no JSON: {error}") from error
    try:
        return _TRACE.validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        seen = "" if first["type"] == "missing" else f" (is {_shown(first['input'])})"
        raise InputError(f"{place}: not a trace: {key}: {first['msg']}{seen}") from error


def write_traces(path: str | Path, traces: Iterable[Trace]) -> int:
    """Write traces; an older file stays whole until the new one is.

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
        "discarded": pa.struct(list(draft.items())),
    }
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
            "steps": pa.list_(pa.struct(list(step.items()))),
            "tokens": pa.struct([(key, number) for key in TOKENS]),
            "error": text,
        }
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
