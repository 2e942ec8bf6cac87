"""Rollout trees of problems, recorded once, in a folder that an interrupted run resumes from."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trim_graph.errors import TrimError
from trim_graph.evaluation import Question
from trim_graph.examples.arithmetic import LARGE, PRM, SMALL, stream_problems
from trim_graph.examples.arithmetic.problems import Part, Split
from trim_graph.storage.journal import Journal
from trim_graph.storage.rows import read_rows

if TYPE_CHECKING:
    from trim_graph.training.rollout_collection import TreeExpander
    from trim_graph.training.rollouts import Tree

MAX_NODES = {"standard": 150, "words": 150, "hard": 16}
"""Nodes of a tree that are recorded before any policy asks; those of `hard` are too many to record all."""
_REPORT_EVERY = 50
"""Problems between two reports of the progress."""


@dataclass(frozen=True, slots=True)
class Problems:
    """The first ``n`` problems that a seed draws of a part of a world."""

    split: Split
    part: Part
    n: int
    seed: int = 0

    @property
    def name(self) -> str:
        """Name of the file that holds them."""
        return f"{self.split}-{self.part}-{self.seed}"

    def questions(self) -> list[Question]:
        """Draws them."""
        from trim_graph.evaluation.datasets import arithmetic_question

        drawn = stream_problems(self.split, part=self.part, seed=self.seed)
        return [arithmetic_question(problem) for problem in islice(drawn, self.n)]


def weights_identity() -> dict[str, str]:
    """Returns the digest of each model's weights: others write other texts."""
    return {
        folder.name: hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]
        for folder in (SMALL, LARGE, PRM)
    }


def recorded_trees(drawn: Problems, folder: Path, *, concurrency: int = 48) -> list[Tree]:
    """Returns the tree of each problem, recorded now or before.

    Args:
        drawn: Which problems.
        folder: Keeps the trees; what an interrupted run recorded stays.
        concurrency: Most problems under way at once.

    Raises:
        TrimError: The folder holds trees of other weights, or a solution cannot be recorded.
    """
    from trim_graph.training.rollouts import from_record

    questions = drawn.questions()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{drawn.name}.jsonl"
    with Journal(path, _settings(drawn)) as journal:
        left = [index for index in range(drawn.n) if index not in journal.finished]
        if left:
            asyncio.run(_record(drawn, journal, [(index, questions[index]) for index in left], concurrency))
    trees: dict[int, Tree] = {}
    for _, record in read_rows(path):
        if record["index"] < drawn.n:
            trees[record["index"]] = from_record(questions[record["index"]], record)
    return [trees[index] for index in range(drawn.n)]


def keep_trees(drawn: Problems, folder: Path, trees: Mapping[int, Tree]) -> None:
    """Stores trees that were expanded since they were recorded; the last record of a tree counts."""
    from trim_graph.training.rollouts import to_record

    with Journal(folder / f"{drawn.name}.jsonl", _settings(drawn)) as journal:
        for index, tree in trees.items():
            journal.append({"index": index, **to_record(tree)})


@cache
def _models() -> tuple[Any, Any, Any]:
    from trim_graph.adapters import ChatTransformers, TransformersProcessReward

    return (
        ChatTransformers(model=str(SMALL), logprobs=True),
        ChatTransformers(model=str(LARGE)),
        TransformersProcessReward(str(PRM), max_batch_size=64),
    )


def example_expander(split: str) -> TreeExpander:
    """Returns the expander of a world's trees with the example models, which are loaded once."""
    from trim_graph.training.rollout_collection import TreeExpander

    return TreeExpander(*_models(), probes=True, max_nodes=MAX_NODES[split])


def _settings(drawn: Problems) -> dict[str, Any]:
    return {
        "split": drawn.split,
        "part": drawn.part,
        "seed": drawn.seed,
        "weights": weights_identity(),
    }


async def _record(
    drawn: Problems, journal: Journal, left: Sequence[tuple[int, Question]], concurrency: int
) -> None:
    from trim_graph.evaluation.runner import run_each
    from trim_graph.training.rollouts import to_record

    expander = example_expander(drawn.split)
    begun, done = time.monotonic(), 0

    async def record(item: tuple[int, Question]) -> None:
        nonlocal done
        index, question = item
        tree = await expander.expand(question)
        if tree is None:
            raise TrimError(f"{drawn.name}: the solutions of {question.text[:80]!r} cannot be recorded")
        journal.append({"index": index, **to_record(tree)})
        done += 1
        if done % _REPORT_EVERY == 0 or done == len(left):
            rate = done / (time.monotonic() - begun)
            print(
                f"{drawn.name}: {done} of {len(left)} problems recorded, {rate:.2f}/s",
                file=sys.stderr,
                flush=True,
            )

    await run_each(record, left, concurrency=concurrency)
