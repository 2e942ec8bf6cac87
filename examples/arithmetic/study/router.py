"""The query-level router of a world, trained on what both models alone make of training problems."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trim_graph.errors import TrimError
from trim_graph.evaluation import Question, Record, run_arm
from trim_graph.examples.arithmetic import LARGE, SMALL
from trim_graph.policies import large_only
from trim_graph.storage.journal import Journal

from .trees import Problems, weights_identity

if TYPE_CHECKING:
    from trim_graph.evaluation.query_router import TrainedRouter


def trained_router(drawn: Problems, folder: Path, *, concurrency: int = 64) -> TrainedRouter:
    """Trains the router of a world.

    Args:
        drawn: Problems of the training part.
        folder: Keeps the results of the models alone.
        concurrency: Most problems under way at once.

    Raises:
        TrimError: A problem failed, or the folder holds outcomes of other weights.
    """
    from trim_graph.evaluation.query_router import read_examples, train_query_router

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{drawn.name}-alone.jsonl"
    settings = {
        "split": drawn.split,
        "part": drawn.part,
        "seed": drawn.seed,
        "weights": {name: digest for name, digest in weights_identity().items() if name != "prm"},
    }
    with Journal(path, settings) as journal:
        left = [pair for pair in enumerate(drawn.questions()) if pair[0] not in journal.finished]
        if left:
            asyncio.run(_record(left, journal, concurrency))
            print(f"{drawn.name}: {len(left)} problems by both models alone", file=sys.stderr, flush=True)
    return train_query_router(read_examples([path])[: drawn.n])


async def _record(left: Sequence[tuple[int, Question]], journal: Journal, concurrency: int) -> None:
    questions = [question for _, question in left]
    small, large = await _alone(SMALL, questions, concurrency), await _alone(LARGE, questions, concurrency)
    for (index, question), one, other in zip(left, small, large, strict=True):
        journal.append(
            {
                "index": index,
                "question": question.text,
                "small_correct": bool(one["correct"]),
                "large_correct": bool(other["correct"]),
            }
        )


async def _alone(weights: Path, questions: Sequence[Question], concurrency: int) -> list[Record]:
    """Has one model write whole solutions, each in one call."""
    from trim_graph.adapters import ChatTransformers
    from trim_graph.graph import create_trim_graph

    model: Any = ChatTransformers(model=str(weights))
    # A model that repeats itself would fill all its positions; no solution has as many as 512 tokens.
    graph = create_trim_graph(model, model, policy=large_only(), max_step_tokens=16)
    outcomes = await run_arm(graph, questions, concurrency=concurrency)
    failed = next((record["error"] for record in outcomes if record["error"]), None)
    if failed:
        raise TrimError(f"a training problem failed: {failed}")
    return outcomes
