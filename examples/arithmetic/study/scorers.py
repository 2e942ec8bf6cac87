"""Other scorers on recorded problems: the texts stay, the scores change. For the study of a worse judge."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trim_graph.adapters import ScorableStep
from trim_graph.adapters.base import read_scores
from trim_graph.adapters.prm.scorer_file import SCORER_FILE
from trim_graph.storage.journal import Journal
from trim_graph.storage.rows import read_rows

from .trees import Problems, recorded_trees
from .worlds import World

if TYPE_CHECKING:
    from trim_graph.evaluation.scorer_metrics import Paired
    from trim_graph.training.rollouts import Node, Tree


TOKEN_PROBABILITY = "token probability"
"""Name of the scorer `by_token_probability`."""


def rescored(drawn: Problems, folder: Path, prm: Path, *, concurrency: int = 48) -> World:
    """Returns recorded problems with the scores of another process reward model.

    Args:
        drawn: Which problems; recorded before.
        folder: Keeps the trees, and the scores beside them.
        prm: The model's folder.
        concurrency: Most problems under way at once.
    """
    trees = recorded_trees(drawn, folder)
    path = folder / f"{drawn.name}-{prm.name}.jsonl"
    trees_digest = (folder / f"{drawn.name}.jsonl.settings.json").read_text(encoding="utf-8")
    with Journal(path, {"prm": _digest(prm), "trees": trees_digest}) as journal:
        left = [index for index in range(len(trees)) if index not in journal.finished]
        if left:
            asyncio.run(_record(trees, left, journal, prm, concurrency))
            print(f"{drawn.name}: scored by {prm.name}", file=sys.stderr, flush=True)
    for _, record in read_rows(path):
        if record["index"] < len(trees):
            for node, score in zip(_open(trees[record["index"]]), record["scores"], strict=True):
                _set_score(node, score)
    return World(drawn.split, trees)


def by_token_probability(drawn: Problems, folder: Path) -> World:
    """Returns recorded problems whose scores are the drafts' mean token probability."""
    trees = recorded_trees(drawn, folder)
    for tree in trees:
        for node in _open(tree):
            assert node.draft is not None
            _set_score(node, node.draft.probability)
    return World(drawn.split, trees)


class RatedSteps(NamedTuple):
    """The steps of the small model's solutions, each right or wrong given the steps before it.

    Attributes:
        problems: Index of each step's problem.
        right: Whether it is right.
        scores: Its score.
    """

    problems: list[int]
    right: list[bool]
    scores: list[float]


def rated_steps(world: World) -> RatedSteps:
    """Returns the steps of the small model's solutions with their scores."""
    found = RatedSteps([], [], [])
    for index, tree in enumerate(world.trees):
        path = world.alone(tree)
        texts = [node.draft.text for node in path if node.draft is not None]
        assert tree.question.label_steps is not None
        found.problems.extend([index] * len(path))
        found.right.extend(map(bool, tree.question.label_steps(texts)))
        found.scores.extend(node.draft_score or 0.0 for node in path)
    return found


def compare_auc(world: World, other: World) -> Paired:
    """Compares two scorers' AUC for telling right from wrong steps of the small model's solutions.

    Args:
        world: Problems with the scores of one.
        other: The same problems with those of the other.
    """
    from trim_graph.evaluation.scorer_metrics import compare_areas

    steps = rated_steps(world)
    found = compare_areas(steps.scores, rated_steps(other).scores, steps.right, steps.problems)
    assert found is not None
    return found


def _digest(prm: Path) -> str:
    """Returns the digest of a reward model's weights and of a trained one's file, which decide its scores."""
    whole = hashlib.sha256()
    for file in (prm / "model.safetensors", prm / SCORER_FILE):
        if file.exists():
            whole.update(file.read_bytes())
    return whole.hexdigest()[:16]


def _open(tree: Tree) -> list[Node]:
    """Returns the nodes with a draft, in the order of the tree."""
    return [node for node in tree.nodes.values() if node.draft is not None]


def _set_score(node: Node, score: float | None) -> None:
    node.draft_score = score
    if node.accepted is not None:
        node.accepted.score = score


async def _record(
    trees: Sequence[Tree], left: Sequence[int], journal: Journal, prm: Path, concurrency: int
) -> None:
    from trim_graph.adapters import TransformersProcessReward
    from trim_graph.evaluation.runner import run_each

    scorer: Any = TransformersProcessReward(str(prm), max_batch_size=64)

    async def draft_score(tree: Tree, node: Node) -> float:
        assert node.draft is not None
        draft = ScorableStep(node.draft.text, mean_token_probability=node.draft.probability)
        steps = [*map(ScorableStep, node.steps), draft]
        return read_scores(await scorer.ascore(tree.question.text, steps), len(steps)).scores[-1]

    async def work(index: int) -> None:
        scores = await asyncio.gather(*(draft_score(trees[index], node) for node in _open(trees[index])))
        journal.append({"index": index, "scores": scores})

    await run_each(work, left, concurrency=concurrency)
