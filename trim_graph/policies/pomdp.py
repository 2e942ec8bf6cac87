"""The policy of a plan (TRIM-POMDP, arXiv 2601.10245, section 4.4), at run time.

A plan holds the value of every decision by step, belief and tokens left, as arrays. The policy keeps a belief
and pays for the large model where its value is higher. `trim_graph.training.planner` makes plans, and has the
same policy for batches of simulated solutions. NumPy only.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from .base import Choice, Observation, Policy
from .files import PolicyContents

Floats = npt.NDArray[np.float64]
Values = npt.NDArray[np.float32]

REWARD = 100.0
"""Reward of a solution that ends right (arXiv 2601.10245, section 4.4)."""

BeliefKind = Literal["carried", "carried_alone", "carried_joint", "memoryless"]
"""How scores become a belief. ``carried``: over time, by P(score | least earlier score, state);
``carried_alone``: by P(score | state); ``carried_joint``: by P(least, score | state), which counts the least
score again at every step; ``memoryless``: each step by P(least, score | state) from a uniform belief, as
published."""

BELIEFS: tuple[BeliefKind, ...] = get_args(BeliefKind)
PAIR_BELIEFS: tuple[BeliefKind, ...] = ("carried_joint", "memoryless")
"""Kinds of belief whose observation is the pair (least score, score)."""

Number = TypeVar("Number", float, Floats)
"""A number at run time, an array of them in planning and simulation."""


def draft_prior(right: Number, chance: float) -> tuple[Number, Number, Number]:
    """Returns the probabilities of the states of a step before its score is observed: right, lost, slip.

    Args:
        right: Probability that all earlier steps are right.
        chance: Probability of the step to be right after right ones.
    """
    return right * chance, 1 - right, right * (1 - chance)


def decision_values(
    hazard: Number, right_reward: Number, large_reward: Number, accepted: Number, replaced: Number
) -> tuple[Number, Number]:
    """Returns the values of accepting a draft and of paying for the large model, without the price.

    Args:
        hazard: Probability that the solution ends with this step.
        right_reward: Expected reward of an end with the draft.
        large_reward: Expected reward of an end with the large model's step.
        accepted: Value behind the draft.
        replaced: Value behind the large model's step.
    """
    return (
        hazard * right_reward + (1 - hazard) * accepted,
        hazard * large_reward + (1 - hazard) * replaced,
    )


def step_tables(tables: npt.ArrayLike, belief: str, shrink: npt.ArrayLike) -> Floats:
    """Returns P(observation | context, state), shape (3, contexts, observations), for a kind of belief.

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
        return np.asarray(pairs.sum(1)[:, None, :])
    return pairs.reshape(3, 1, bins * bins)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Values of a solved POMDP, and the tables of its belief.

    ``right`` is the probability that all steps accepted so far are right. It determines the belief before a
    draft, see `draft_prior`.

    Attributes:
        belief: How scores become a belief.
        p_small: Chance of the small model's step to be right after right ones.
        p_large: The same probability for the large model.
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
        regenerated: Value of continuing after step ``t`` if the large model wrote it; ``right`` and ``c`` are
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
        observations = bins * bins if self.belief in PAIR_BELIEFS else bins
        if self.tables.shape[-1] != observations or contexts != (bins if self.belief == "carried" else 1):
            raise ValueError(f"tables of shape {self.tables.shape} do not go with {bins} bins")
        if (levels > 1) != (self.unit > 0) or grid < 2:
            raise ValueError(f"{levels} budget levels of {self.unit} tokens, {grid} beliefs")

    def settings(self) -> dict[str, Any]:
        """Returns what is no array."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ARRAYS}

    def arrays(self) -> dict[str, Floats]:
        """Returns the arrays by name."""
        return {name: getattr(self, name) for name in ARRAYS}

    def start(self, large_tokens: float | None = None) -> float:
        """Returns the value of the whole plan, before the first draft, under a budget."""
        if large_tokens is None:
            return float(self.values[0, -1, -1, -1])
        levels = self.values.shape[-1] - 1
        if levels < 1:
            raise ValueError("the plan knows no budget")
        return float(self.values[0, -1, -1, min(int(large_tokens / self.unit + 1e-9), levels - 1)])


ARRAYS = ("hazard", "edges", "tables", "values", "regenerated", "rest_right", "rest_tokens")


CLOSE = 1e-4
"""Values that differ by less than this are the same: the cheaper decision is taken."""


class Belief(NamedTuple):
    """Probabilities of the three states of a draft."""

    right: float
    lost: float
    slip: float


class pomdp(Policy):
    """Accept, regenerate or hand over, whichever the plan values most.

    The policy uses the scores, the tokens of the draft, the tokens left of the budget and, if the plan does,
    whether the solution ends with the draft. Its memory is four numbers.

    Args:
        plan: From `trim_graph.training.planner.solve`, or from a file by `load_policy`.
        made: Where the plan comes from, for the file.
    """

    def __init__(self, plan: Plan, made: dict[str, Any] | None = None) -> None:
        self.plan, self.made = plan, dict(made or {})
        # Plain floats: one decision touches a handful of numbers, and NumPy takes its time for each.
        self._tables: list[list[list[float]]] = plan.tables.tolist()
        self._edges: list[float] = plan.edges.tolist()[1:-1]
        self._carried = plan.belief != "memoryless"
        self._pairs = plan.belief in PAIR_BELIEFS
        self._contexts, self._bins = plan.tables.shape[1], len(plan.edges) - 1

    def decide(self, observation: Observation) -> Choice:
        """Updates the belief, and compares the decisions."""
        prior = self._prior(observation)
        belief = self._update(prior, self._least(observation, observation.index), observation.score)
        open_ = belief.right + belief.slip
        memory = [observation.index, prior, belief.right, open_] if self._carried else None
        return Choice(self._best(observation, belief), memory)

    def belief(self, observation: Observation) -> Belief:
        """Returns the belief about a draft."""
        return self._update(
            self._prior(observation), self._least(observation, observation.index), observation.score
        )

    # The belief

    def _prior(self, seen: Observation) -> float:
        """Returns the probability that all accepted steps are right."""
        if not self._carried:
            return 1.0
        done, right = 0, 1.0
        if seen.memory is not None:
            done, prior, accepted, open_ = seen.memory
            if done == seen.index:
                return float(prior)
            # After a regeneration: the discarded draft's evidence about earlier steps is in no score.
            right = accepted if seen.writers[done] == "small" else self._large(open_, seen, done)
            done += 1
        for step in range(done, seen.index):
            if seen.writers[step] == "small":
                right = self._update(right, self._least(seen, step), seen.scores[step]).right
            else:
                right = self._large(right, seen, step)
        return right

    def _large(self, before: float, seen: Observation, step: int) -> float:
        """Returns the belief behind a step of the large model, whose score is known by now, if at all."""
        chance = self.plan.p_large
        if self._pairs:
            return before * chance
        return self._update(before, self._least(seen, step), seen.scores[step], chance).right

    def _update(self, right: float, least: float, score: float | None, chance: float | None = None) -> Belief:
        """Observes the score of a step before which all is right with this probability."""
        chance = self.plan.p_small if chance is None else chance
        prior = draft_prior(right, chance) if self._carried else (1 / 3, 1 / 3, 1 / 3)
        if score is None:
            return Belief(*prior)
        low, place = bisect_right(self._edges, least), bisect_right(self._edges, score)
        context = low if self._contexts > 1 else 0
        if self._pairs:
            place += low * self._bins
        joint = [p * table[context][place] for p, table in zip(prior, self._tables, strict=True)]
        total = sum(joint)
        # An observation that the model excludes is ignored.
        return Belief(joint[0] / total, joint[1] / total, joint[2] / total) if total > 0 else Belief(*prior)

    @staticmethod
    def _least(seen: Observation, step: int) -> float:
        return min((score for score in seen.scores[:step] if score is not None), default=1.0)

    # The decision

    def _best(self, seen: Observation, belief: Belief) -> str:
        plan, left = self.plan, seen.budget_left
        tokens = (seen.draft_tokens or plan.mean_tokens) * plan.large_ratio
        if left.large_calls == 0 or (left.large_tokens is not None and tokens > left.large_tokens):
            return "accept"
        # Solutions longer than any seen are taken to be in the last step but one.
        last = len(plan.hazard) - 1
        step = min(seen.index, max(last - 1, 0) if plan.knows_end and not seen.draft_ends else last)
        hazard = float(seen.draft_ends) if plan.knows_end else float(plan.hazard[step])
        context = bisect_right(self._edges, self._least(seen, seen.index)) if self._contexts > 1 else 0
        after = context
        if self._contexts > 1 and seen.score is not None:
            after = min(context, bisect_right(self._edges, seen.score))
        open_ = belief.right + belief.slip
        fixed = self._level(left.large_tokens)
        spent = self._level(None if left.large_tokens is None else left.large_tokens - tokens)
        price = plan.cost_per_token * tokens + plan.cost_per_call
        hit = REWARD * open_ * plan.p_large
        accepted, replaced, handover = 0.0, 0.0, -1.0
        if hazard < 1:
            accepted = self._value(plan.values, step + 1, belief.right, after, fixed)
            going_on = self._value(plan.regenerated, step, open_, context, spent)
            if plan.handover:
                rest = self._line(plan.rest_right, step, spent), self._line(plan.rest_tokens, step, spent)
                handover = hit * rest[0] - plan.cost_per_token * rest[1] - going_on
            replaced = going_on + max(handover, 0.0)
        accept, large = decision_values(hazard, REWARD * belief.right, hit, accepted, replaced)
        if accept >= large - price - CLOSE:
            return "accept"
        return "handover" if handover > CLOSE else "regenerate"

    def _level(self, tokens: float | None) -> float:
        """Returns the place on the axis of the budget."""
        top = float(self.plan.values.shape[-1] - 1)
        if tokens is None or not self.plan.unit:
            return top
        return max(0.0, min(tokens / self.plan.unit, top - 1.0))

    def _value(self, table: Values, step: int, right: float, context: int, level: float) -> float:
        last = int(table.shape[1]) - 1
        place = right * last
        low = min(int(place), last - 1)
        part = place - low
        near = int(level)
        rest = level - near

        def between(column: int) -> float:
            below, above = table.item(step, low, context, column), table.item(step, low + 1, context, column)
            return below + part * (above - below)

        value = between(near)
        return value if rest < CLOSE else value + rest * (between(near + 1) - value)

    @staticmethod
    def _line(table: Floats, step: int, level: float) -> float:
        near = int(level)
        value = table.item(step, near)
        rest = level - near
        return value if rest < CLOSE else value + rest * (table.item(step, near + 1) - value)

    # The file

    def contents(self) -> PolicyContents:
        """Returns the contents of this policy's file."""
        return PolicyContents("pomdp", self.plan.settings(), self.plan.arrays(), self.made)

    @classmethod
    def from_contents(cls, contents: PolicyContents) -> pomdp:
        """Returns the policy of a file's contents."""
        if set(contents.arrays) != set(ARRAYS):
            raise ValueError(f"arrays are {sorted(contents.arrays)}; expected {sorted(ARRAYS)}")
        arrays: dict[str, Any] = {name: np.ascontiguousarray(contents.arrays[name]) for name in ARRAYS}
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds numbers that are not finite")
        plan = Plan(**{**contents.parameters, **arrays})
        return cls(plan, contents.made)

    def __repr__(self) -> str:
        plan = self.plan
        return f"pomdp({plan.belief}, cost_per_token={plan.cost_per_token}, steps={len(plan.hazard)})"
