"""Traces: what happened to each question under a behaviour policy, one record a question."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, Protocol

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from trim_graph.adapters import ScorableStep
from trim_graph.adapters.base import read_scores
from trim_graph.budget import Writer
from trim_graph.errors import InputError
from trim_graph.storage.journal import to_line
from trim_graph.storage.rows import import_parquet, read_rows

from .runner import Question

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


CHANNELS = ("trim", "messages", "run", "steps", "scores", "decisions")
"""Of the graph's state: what a trace is made of."""


class Graph(Protocol):
    """What `make_trace` needs of a graph built by `create_trim_graph`."""

    async def ainvoke(self, input: Any, /, *, output_keys: Sequence[str]) -> Any:
        """Answer with the named channels."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """What the traces of one collection have in common.

    Attributes:
        dataset: Its name.
        split: Train, validation or test, if known.
        policy: The behaviour policy, as a configuration names it.
        seed: Of the graph.
    """

    dataset: str
    split: str | None
    policy: dict[str, Any]
    seed: int | None


async def make_trace(
    graph: Graph,
    item: tuple[int, Question],
    source: Source,
    *,
    rater: Any = None,
    label_steps: bool = False,
) -> Trace:
    """Run one question through the graph.

    What the policy did not ask the scorer about is scored after the run, all accepted steps in one call: the
    policy sees no more than it wants, and the trace has every score. The tokens read for that count.

    Args:
        graph: Built by `create_trim_graph`.
        item: The question with its place in the dataset.
        source: What all traces have in common.
        rater: The graph's scorer; without one, what was not scored in the run stays so.
        label_steps: Whether to check each step, where the dataset can.

    Returns:
        The trace; of a question that failed one that says why.
    """
    index, question = item
    try:
        result = await graph.ainvoke({"messages": [("user", question.text)]}, output_keys=CHANNELS)
        trace = trace_of(result, index, question, source)
        if rater is not None:
            await _rate(trace, rater)
        if label_steps:
            label_all(trace["steps"], question)
    except Exception as error:
        trace = _failed(index, question, source, f"{type(error).__name__}: {error}")
    return trace


def trace_of(result: dict[str, Any], index: int, question: Question, source: Source) -> Trace:
    """Make a trace of the channels `CHANNELS` of a run that has ended."""
    summary, steps = result["trim"], steps_of(result)
    solution = str(result["messages"][-1].text)
    return Trace(
        id=question.id or str(index),
        index=index,
        dataset=source.dataset,
        split=source.split,
        question=question.text,
        policy=source.policy,
        seed=source.seed,
        correct=None if question.grade is None else bool(question.grade(solution)),
        answer=summary["answer"],
        stopped=summary["stopped"],
        steps=steps,
        tokens={key: summary["tokens"][key] for key in TOKENS},
        error=None,
    )


def steps_of(result: dict[str, Any]) -> list[TraceStep]:
    """Return the accepted steps of a run with what is known of each: score, decision, the draft turned down.

    Args:
        result: The channels ``steps``, ``scores`` and ``decisions`` of a run that has ended.
    """
    decided = {record["step"]: record for record in result["decisions"]}
    steps: list[TraceStep] = []
    for number, step in enumerate(result["steps"]):
        record = decided.get(number, {})
        draft = record.get("discarded")
        steps.append(
            TraceStep(
                text=step["text"],
                writer=step["writer"],
                tokens=step["tokens"],
                score=result["scores"].get(str(number)),
                decision=record.get("decision"),
                mean_token_probability=step["mean_token_probability"],
                label=None,
                discarded=None
                if draft is None
                else DiscardedDraft(
                    text=draft["text"],
                    tokens=draft["tokens"],
                    score=record["score"],
                    label=None,
                    mean_token_probability=draft["mean_token_probability"],
                ),
            )
        )
    return steps


def label_all(steps: Sequence[TraceStep], question: Question) -> None:
    """Say of each step, and of each draft turned down, whether it is right, where the dataset can."""
    if question.label_steps is None:
        return
    texts = [step["text"] for step in steps]
    for number, (step, label) in enumerate(zip(steps, question.label_steps(texts), strict=True)):
        step["label"] = label
        draft = step["discarded"]
        if draft is not None:
            draft["label"] = question.label_steps([*texts[:number], draft["text"]])[-1]


async def _rate(trace: Trace, scorer: Any) -> None:
    """Score what has no score: the accepted steps in one call, and each discarded draft behind its own."""
    steps = trace["steps"]

    async def rated(rows: list[ScorableStep]) -> Sequence[float]:
        reply = read_scores(await scorer.ascore(trace["question"], rows), len(rows))
        trace["tokens"]["scorer"] += reply.input_tokens
        trace["tokens"]["scorer_output"] += reply.output_tokens
        return reply.scores

    async def accepted() -> None:
        if any(step["score"] is None for step in steps):
            scores = await rated([_scorable(step) for step in steps])
            for step, score in zip(steps, scores, strict=True):
                step["score"] = score if step["score"] is None else step["score"]

    async def discarded(number: int, draft: DiscardedDraft) -> None:
        last = ScorableStep(
            text=draft["text"],
            writer="small",
            mean_token_probability=draft.get("mean_token_probability"),
        )
        draft["score"] = (await rated([*map(_scorable, steps[:number]), last]))[-1]

    drafts = [(number, draft) for number, step in enumerate(steps) if (draft := step["discarded"])]
    missing = [discarded(number, draft) for number, draft in drafts if draft["score"] is None]
    await asyncio.gather(accepted(), *missing)


def _scorable(step: TraceStep) -> ScorableStep:
    return ScorableStep(
        text=step["text"], writer=step["writer"], mean_token_probability=step["mean_token_probability"]
    )


def _failed(index: int, question: Question, source: Source, error: str) -> Trace:
    return Trace(
        id=question.id or str(index),
        index=index,
        dataset=source.dataset,
        split=source.split,
        question=question.text,
        policy=source.policy,
        seed=source.seed,
        correct=None,
        answer=None,
        stopped="",
        steps=[],
        tokens=dict.fromkeys(TOKENS, 0),
        error=error,
    )
