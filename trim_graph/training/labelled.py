"""Labelled solutions in the shape of ProcessBench, and traces made of them by having a scorer rate each step.

ProcessBench (Zheng et al. 2024, arXiv 2412.06559): ``problem``, ``steps``, ``label``, the index of the first
wrong step by human annotators, -1 where all are right; ``generator``, the model that wrote the solution;
``final_answer_correct``. Traces whose steps are labelled (`trim-graph collect --label-steps`) are read too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from trim_graph.adapters import ScorableStep
from trim_graph.adapters.scorers import as_scorer, read_scores
from trim_graph.errors import InputError
from trim_graph.rows import read_rows

from .traces import TOKENS, Trace, TraceStep, parse_trace


class LabelledSolution(TypedDict):
    """A solution whose first wrong step is known."""

    id: str
    dataset: str
    question: str
    generator: str | None
    steps: list[str]
    labels: list[bool | None]
    """True up to the first wrong step, False there, None after it: nobody looked."""
    correct: bool | None
    """Whether the final answer is right."""


class _Row(TypedDict, total=False):
    id: str | int
    generator: str | None
    problem: str
    steps: list[str]
    label: int
    final_answer_correct: bool | None


_ROW: TypeAdapter[_Row] = TypeAdapter(_Row)
_REQUIRED = ("problem", "steps", "label")


def read_labelled(path: str | Path) -> Iterator[LabelledSolution]:
    """Read solutions in the shape of ProcessBench, or traces with labelled steps, one at a time.

    Args:
        path: JSONL, Parquet, or a JSON array.

    Raises:
        InputError: The file cannot be read, or a row has another shape; the message names file and line.
        ImportError: A Parquet file, and pyarrow is not installed.
    """
    file = Path(path)
    for number, (place, values) in enumerate(read_rows(file)):
        if "question" in values and "label" not in values:
            if (from_trace := _of_trace(values, place)) is not None:
                yield from_trace
            continue
        missing = [key for key in _REQUIRED if key not in values]
        if missing:
            raise InputError(
                f"{place}: no labelled solution: {', '.join(missing)} is missing; expected "
                f"{', '.join(_REQUIRED)}"
            )
        try:
            row = _ROW.validate_python(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"]))
            raise InputError(f"{place}: no labelled solution: {key}: {first['msg']}") from error
        steps, label = row["steps"], row["label"]
        if not steps:
            raise InputError(f"{place}: no labelled solution: steps is empty")
        if not -1 <= label < len(steps):
            raise InputError(
                f"{place}: label is {label}; expected the index of one of the {len(steps)} steps, or -1"
            )
        yield LabelledSolution(
            id=str(row.get("id", number)),
            dataset=file.stem,
            question=row["problem"],
            generator=row.get("generator"),
            steps=steps,
            labels=labels_from(label, len(steps)),
            correct=row.get("final_answer_correct"),
        )


def _of_trace(values: dict[str, Any], place: str) -> LabelledSolution | None:
    """Take the accepted steps of a trace; None where its question failed."""
    trace = parse_trace(values, place)
    if trace["error"] is not None:
        return None
    labels = [step["label"] for step in trace["steps"]]
    if not labels or labels[0] is None:
        raise InputError(f"{place}: no labelled solution: this trace says of no step whether it is right")
    wrong = labels.index(False) if False in labels else -1
    return LabelledSolution(
        id=trace["id"],
        dataset=trace["dataset"],
        question=trace["question"],
        generator=None,
        steps=[step["text"] for step in trace["steps"]],
        labels=labels if wrong < 0 else labels_from(wrong, len(labels)),
        correct=trace["correct"],
    )


def labels_from(first_wrong: int, count: int) -> list[bool | None]:
    """Turn the index of the first wrong step (-1: none) into one label per step."""
    if first_wrong < 0:
        return [True] * count
    return [*([True] * first_wrong), False, *([None] * (count - first_wrong - 1))]


async def score_labelled(
    scorer: Any, solutions: Iterable[LabelledSolution], *, concurrency: int = 16
) -> AsyncGenerator[Trace]:
    """Have a scorer rate every step, and give traces in the order of the solutions.

    All steps count as the small model's: that is what a policy is to judge. Nobody counted their tokens.

    Args:
        scorer: A `Scorer`, a Runnable, or a function of (question, steps).
        solutions: From `read_labelled`; taken as they are needed.
        concurrency: Most solutions with the scorer at once.

    Raises:
        ValueError: ``concurrency`` is below 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency={concurrency} must be 1 or more")
    asked, waiting = as_scorer(scorer), iter(enumerate(solutions))

    async def rated(index: int, solution: LabelledSolution) -> Trace:
        steps = [ScorableStep(text=text, writer="small") for text in solution["steps"]]
        try:
            reply = read_scores(await asked.ascore(solution["question"], steps), len(steps))
        except Exception as error:
            return _trace(index, solution, None, f"{type(error).__name__}: {error}", {})
        used = {"scorer": reply.input_tokens, "scorer_output": reply.output_tokens}
        return _trace(index, solution, reply.scores, None, used)

    pending = [asyncio.ensure_future(rated(*item)) for item in islice(waiting, concurrency)]
    try:
        while pending:
            trace = await pending.pop(0)
            pending += [asyncio.ensure_future(rated(*item)) for item in islice(waiting, 1)]
            yield trace
    finally:
        for task in pending:
            task.cancel()


def _trace(
    index: int,
    solution: LabelledSolution,
    scores: Sequence[float] | None,
    error: str | None,
    used: Mapping[str, int],
) -> Trace:
    steps = (
        [
            TraceStep(
                text=text,
                writer="small",
                tokens=0,
                score=score,
                decision=None,
                mean_token_probability=None,
                label=label,
                discarded=None,
            )
            for text, label, score in zip(solution["steps"], solution["labels"], scores or (), strict=True)
        ]
        if scores is not None
        else []
    )
    return Trace(
        id=solution["id"],
        index=index,
        dataset=solution["dataset"],
        split=None,
        question=solution["question"],
        policy={"type": "labelled", "generator": solution["generator"]},
        seed=None,
        correct=None if error else solution["correct"],
        answer=None,
        stopped="" if error else "finished",
        steps=steps,
        tokens={**dict.fromkeys(TOKENS, 0), **used},
        error=error,
    )
