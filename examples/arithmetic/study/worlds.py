"""The recorded problems of a world, and the results of routing them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from trim_graph.evaluation import Question, Record
from trim_graph.evaluation.records import WorkItem, new_record
from trim_graph.policies import Policy, small_only

from .trees import example_expander

if TYPE_CHECKING:
    from trim_graph.training.rollouts import Node, Rollout, Tree

Floats = npt.NDArray[np.float64]
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """Results of a way of routing, one for each problem in their order.

    Attributes:
        correct: Whether the answer is right; shape (n,).
        tokens: Tokens of the large model; shape (n,).
    """

    correct: npt.NDArray[np.bool_]
    tokens: npt.NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.correct.mean())

    @property
    def spent(self) -> int:
        """Large tokens of all problems."""
        return int(self.tokens.sum())

    def outcomes(self) -> list[Record]:
        """Returns it as `trim_graph.evaluation` takes it."""
        pairs = zip(self.correct.tolist(), self.tokens.tolist(), strict=True)
        return [
            new_record(WorkItem(index, 0, Question("")), correct=right, large_tokens=tokens)
            for index, (right, tokens) in enumerate(pairs)
        ]


class LargeAtEachStep(Policy):
    """The large model writes every step: the same as the large model alone, but step by step."""

    needs_score = False

    def decide(self, observation: Any) -> str:
        """Asks the large model."""
        return "regenerate"


class World:
    """Recorded problems.

    Args:
        split: Name of the world.
        trees: Trees of the problems; they are expanded where a policy takes an unexplored branch.
    """

    def __init__(self, split: str, trees: Sequence[Tree]) -> None:
        from trim_graph.training.rollout_collection import ExpandingRollouts

        self.split, self.rollouts = split, ExpandingRollouts(trees, example_expander(split))
        self.trees = self.rollouts.trees
        self.small, self.large = self.solved(small_only()), self.solved(LargeAtEachStep())
        self._made: dict[Any, Any] = {}
        nodes = [node for tree in self.trees for node in tree.nodes.values()]
        self.draft_scores: Floats = np.sort([n.draft_score for n in nodes if n.draft_score is not None])
        """Scores of all drafts recorded at first, sorted."""
        self.entropies: Floats = np.sort([node.entropy for node in nodes if node.entropy is not None])
        """Entropies of all first tokens recorded at first, sorted."""

    def __len__(self) -> int:
        return len(self.trees)

    @property
    def questions(self) -> list[str]:
        """Texts of the problems."""
        return [tree.question.text for tree in self.trees]

    def solved(self, policy: Policy, *, seed: int = 0) -> Arm:
        """Lets a policy route every problem."""
        from trim_graph.training.rollouts import evaluate_offline

        return _arm(evaluate_offline(self.rollouts, policy, seed=seed))

    def once(self, key: Any, make: Callable[[], Made]) -> Made:
        """Returns what was made of this world under a key, or make it."""
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made

    def split_by(self, large: npt.NDArray[np.bool_]) -> Arm:
        """Gives whole problems to one model or the other; shape of ``large``: (n,)."""
        return Arm(
            np.where(large, self.large.correct, self.small.correct), np.where(large, self.large.tokens, 0)
        )

    def share(self, arm: Arm) -> float:
        """Returns the large tokens as a share of what the large model alone uses."""
        return arm.spent / self.large.spent

    def oracle(self) -> Arm:
        """Returns the results of a judge without error, by which exactly the wrong drafts are regenerated."""
        from trim_graph.training.rollouts import run_batched

        def run(rollout: Rollout) -> None:
            while not rollout.ended:
                rollout.decide(not _right(self.trees[rollout.index], rollout.node))

        return _arm(run_batched(self.rollouts, run))

    def floor(self, accuracy: float) -> float | None:
        """Returns the least share of large tokens for an accuracy, with hindsight.

        Each problem takes its cheapest branch to the right answer, and the cheapest problems are solved: no
        policy can do it for less. None where not even that reaches the accuracy, or where a branch is
        unexplored.
        """
        if any(tree.unexplored() is not None for tree in self.trees):
            return None
        costs = np.sort([_least_tokens(tree.root, {}) for tree in self.trees])
        solved = math.ceil(accuracy * len(costs) - 1e-9)
        spent = float(costs[:solved].sum())
        return spent / self.large.spent if math.isfinite(spent) else None

    def steps_right(self) -> float:
        """Returns the share of right steps in the small model's solutions, each given the steps before it."""
        labels = [_right(tree, node) for tree in self.trees for node in self.alone(tree)]
        return sum(labels) / len(labels)

    def alone(self, tree: Tree) -> list[Node]:
        """Returns the nodes on the path of the small model alone, without the end."""
        path, node = [], tree.root
        while not node.ended:
            path.append(node)
            assert node.accepted is not None
            node = node.accepted
        return path

    def confidence(self) -> Floats:
        """Returns the mean token probability of the small model's whole answers, shape (n,)."""
        found = []
        for tree in self.trees:
            drafts = [node.draft for node in self.alone(tree) if node.draft is not None]
            tokens = sum(draft.tokens for draft in drafts)
            found.append(sum((draft.probability or 0.0) * draft.tokens for draft in drafts) / max(tokens, 1))
        return np.array(found)

    def least_score(self) -> Floats:
        """Returns the least score of a step of the small model's whole answers, shape (n,)."""
        return np.array(
            [min((node.draft_score or 0.0 for node in self.alone(tree)), default=1.0) for tree in self.trees]
        )


def _right(tree: Tree, node: Node) -> bool:
    """Returns whether the draft at a node is right, given the steps before it."""
    assert tree.question.label_steps is not None
    assert node.draft is not None
    return bool(tree.question.label_steps([*node.steps, node.draft.text])[-1])


def _arm(ended: Sequence[Rollout]) -> Arm:
    return Arm(np.array([one.correct for one in ended]), np.array([one.large_tokens for one in ended]))


def _least_tokens(node: Node, known: dict[Node, float]) -> float:
    """Returns the fewest large tokens from a node to a right answer; infinite where there is no such path."""
    if node.ended:
        return 0.0 if node.correct else math.inf
    if node not in known:
        accepted, regenerated, large = node.accepted, node.regenerated, node.large
        assert accepted is not None
        assert regenerated is not None
        assert large is not None
        known[node] = min(_least_tokens(accepted, known), large.tokens + _least_tokens(regenerated, known))
    return known[node]
