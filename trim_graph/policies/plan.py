"""What a plan is: the value of every decision by step, belief and tokens left, as arrays. NumPy only.

Made by `trim_graph.training.planner`, carried out by `trim_graph.policies.pomdp`. Values are expected
rewards: `REWARD` for a solution that ends right, minus what was spent.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Values = npt.NDArray[np.float32]

REWARD = 100.0
"""For a solution that ends right (arXiv 2601.10245, section 4.4)."""

BeliefKind = Literal["carried", "carried_alone", "carried_joint", "memoryless"]
"""How scores become a belief. ``carried``: over time, by P(score | least earlier score, state);
``carried_alone``: by P(score | state); ``carried_joint``: by P(least, score | state), which counts the least
score again at every step; ``memoryless``: each step by P(least, score | state) from a uniform belief, as
published."""

BELIEFS: tuple[BeliefKind, ...] = get_args(BeliefKind)


def step_tables(tables: npt.ArrayLike, belief: str, shrink: npt.ArrayLike) -> Floats:
    """Return P(observation | context, state), shape (3, contexts, observations), for a kind of belief.

    Args:
        tables: P(least, score | state), shape (3, bins, bins).
        belief: A `BeliefKind`.
        shrink: For ``carried``: this much of P(score | state), for each state, joins the rows of ``tables``.
    """
    pairs = np.asarray(tables, np.float64)
    bins = pairs.shape[1]
    if belief == "carried":
        weight = np.asarray(shrink, np.float64).reshape(-1, 1, 1)
        alone = pairs.sum(1)[:, None, :]
        return np.asarray((pairs + weight * alone) / (pairs.sum(2, keepdims=True) + weight))
    if belief == "carried_alone":
        return pairs.sum(1)[:, None, :]
    return pairs.reshape(3, 1, bins * bins)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Values of going on, and what is needed to find a belief.

    ``right`` is the probability that all steps accepted so far are right. It is all that a belief before a
    draft
    holds: the draft is right with ``right * p_small``, the first wrong one with ``right * (1 - p_small)``.

    Attributes:
        belief: How scores become a belief.
        p_small: Chance of the small model's step to be right after right ones.
        p_large: The same of the large model.
        large_ratio: Large tokens for one token of the draft they replace.
        mean_tokens: Mean tokens of a draft.
        cost_per_token: Reward that a large token costs.
        cost_per_call: Reward that a call of the large model costs.
        knows_end: Whether it is planned on knowing that the solution ends with the draft.
        handover: Whether handing over was open to the plan.
        unit: Large tokens between two levels of the budget; 0: the plan knows no budget.
        hazard: Chance of ending with step ``t``.
        edges: Borders of the bins of a score.
        tables: P(observation | context, state), see `step_tables`.
        values: ``values[t, i, c, j]``: value before draft ``t`` with ``right = i / (I - 1)``, context ``c``
            (bin of the least score) and budget level ``j``; the last level is no limit. One step more than
            there are.
        regenerated: Value of going on behind step ``t`` if the large model wrote it; ``right`` and ``c`` are
            those of the steps before it, ``j`` is what is left afterwards.
        rest_right: ``[t, j]``: chance that the large model writes all behind step ``t`` right.
        rest_tokens: ``[t, j]``: tokens it takes.
    """

    belief: BeliefKind
    p_small: float
    p_large: float
    large_ratio: float
    mean_tokens: float
    cost_per_token: float
    cost_per_call: float
    knows_end: bool
    handover: bool
    unit: float
    hazard: Floats
    edges: Floats
    tables: Floats
    values: Values
    regenerated: Values
    rest_right: Floats
    rest_tokens: Floats

    def __post_init__(self) -> None:
        steps, grid, contexts, levels = self.regenerated.shape
        if self.belief not in BELIEFS:
            raise ValueError(f"belief is {self.belief!r}; there are: {', '.join(BELIEFS)}")
        shapes = {
            "hazard": (steps,),
            "values": (steps + 1, grid, contexts, levels),
            "rest_right": (steps, levels),
            "rest_tokens": (steps, levels),
            "tables": (3, contexts, self.tables.shape[-1]),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}; expected {shape}")
        bins = len(self.edges) - 1
        observations = bins if self.belief in ("carried", "carried_alone") else bins * bins
        if self.tables.shape[-1] != observations or contexts != (bins if self.belief == "carried" else 1):
            raise ValueError(f"tables of shape {self.tables.shape} do not go with {bins} bins")
        if (levels > 1) != (self.unit > 0) or grid < 2:
            raise ValueError(f"{levels} budget levels of {self.unit} tokens, {grid} beliefs")

    def settings(self) -> dict[str, Any]:
        """Return what is no array."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ARRAYS}

    def arrays(self) -> dict[str, Floats]:
        """Return the arrays by name."""
        return {name: getattr(self, name) for name in ARRAYS}

    def start(self, large_tokens: float | None = None) -> float:
        """Return the value of the whole plan, before the first draft, under a budget."""
        if large_tokens is None:
            return float(self.values[0, -1, -1, -1])
        levels = self.values.shape[-1] - 1
        if levels < 1:
            raise ValueError("the plan knows no budget")
        return float(self.values[0, -1, -1, min(int(large_tokens / self.unit + 1e-9), levels - 1)])


ARRAYS = ("hazard", "edges", "tables", "values", "regenerated", "rest_right", "rest_tokens")
