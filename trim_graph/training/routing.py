"""A plan carried out on many simulated solutions at once: `trim_graph.policies.pomdp` in arrays."""

from __future__ import annotations

import numpy as np

from trim_graph.policies.plan import REWARD, Plan, Values
from trim_graph.policies.pomdp import CLOSE

from .simulator import ACCEPT, HANDOVER, REGENERATE, Seen
from .step_model import RIGHT, SLIP, Floats, Ints


class Beliefs:
    """Beliefs about many drafts, carried from step to step as the plan says.

    Args:
        plan: Names the kind of belief and holds the tables.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.pairs = plan.belief in ("carried_joint", "memoryless")
        self.begin(0)

    def begin(self, n: int) -> None:
        """Forget; ``n`` new solutions follow."""
        self.accepted, self.open = np.ones(n), np.ones(n)

    def see(self, seen: Seen) -> Floats:
        """Observe drafts; call once a step.

        Returns:
            The beliefs, shape (3, n).
        """
        plan = self.plan
        behind_large = self.open * plan.p_large
        if not self.pairs:
            score = np.where(seen.by_large, seen.large_score, 0.0)
            behind_large = self._update(self.open, plan.p_large, seen.least_before, score)[RIGHT]
        prior = np.where(seen.by_large, behind_large, self.accepted)
        prior = np.where(seen.index == 0, 1.0, prior)
        belief = self._update(prior, plan.p_small, seen.least, seen.score)
        self.accepted, self.open = belief[RIGHT], belief[RIGHT] + belief[SLIP]
        return belief

    def _update(self, right: Floats, chance: float, least: Floats, score: Floats) -> Floats:
        prior = np.stack([right * chance, 1 - right, right * (1 - chance)])
        if self.plan.belief == "memoryless":
            prior = np.full_like(prior, 1 / 3)
        low, place = self.bin_of(least), self.bin_of(score)
        context = low if self.plan.belief == "carried" else np.zeros_like(low)
        joint = prior * self.plan.tables[:, context, place + low * len(self.plan.edges[1:]) * self.pairs]
        total = joint.sum(0)
        return np.asarray(np.where(total > 0, joint / np.where(total > 0, total, 1.0), prior))

    def bin_of(self, score: Floats) -> Ints:
        """Return the bin of each score."""
        return np.searchsorted(self.plan.edges[1:-1], score, side="right")


class PlanRouter:
    """Decides as the policy `pomdp` does.

    Args:
        plan: The plan.
        cut_off: Plan as if there were no budget; what cannot be paid for is accepted.
    """

    def __init__(self, plan: Plan, *, cut_off: bool = False) -> None:
        self.plan, self.cut_off = plan, cut_off
        self.beliefs = Beliefs(plan)
        self.begin(0)

    def begin(self, n: int) -> None:
        """Forget; ``n`` new solutions follow."""
        self.beliefs.begin(n)
        self.belief = np.zeros((3, n))

    def decide(self, seen: Seen) -> Ints:
        """Return one decision a row."""
        plan = self.plan
        self.belief = belief = self.beliefs.see(seen)
        right, open_ = belief[RIGHT], belief[RIGHT] + belief[SLIP]
        cost = seen.tokens * plan.large_ratio
        last = len(plan.hazard) - 1
        step = np.minimum(seen.index, last)
        if plan.knows_end:
            step = np.where(seen.ends, step, np.minimum(step, max(last - 1, 0)))
        hazard = seen.ends.astype(np.float64) if plan.knows_end else plan.hazard[step]
        context = self.beliefs.bin_of(seen.least) if plan.belief == "carried" else np.zeros_like(step)
        after = np.minimum(context, self.beliefs.bin_of(seen.score))
        left = np.full_like(seen.large_left, np.inf) if self.cut_off else seen.large_left
        fixed, spent = self._level(left), self._level(left - cost)
        going_on = self._value(plan.regenerated, step, open_, context, spent)
        hit = REWARD * plan.p_large * open_
        more = np.full_like(hit, -1.0)
        if plan.handover:
            rest_right = self._line(plan.rest_right, step, spent)
            rest_tokens = self._line(plan.rest_tokens, step, spent)
            more = hit * rest_right - plan.cost_per_token * rest_tokens - going_on
        accept = hazard * REWARD * right
        accept += (1 - hazard) * self._value(plan.values, step + 1, right, after, fixed)
        large = hazard * hit + (1 - hazard) * (going_on + np.maximum(more, 0.0))
        pays = (cost <= seen.large_left) & (
            large - plan.cost_per_token * cost - plan.cost_per_call > accept + CLOSE
        )
        hands = (more > CLOSE) & (hazard < 1)
        return np.where(pays, np.where(hands, HANDOVER, REGENERATE), ACCEPT)

    def _level(self, tokens: Floats) -> Floats:
        top = self.plan.values.shape[-1] - 1
        if not self.plan.unit:
            return np.full(tokens.shape, float(top))
        limited = np.isfinite(tokens)
        return np.where(limited, np.clip(np.where(limited, tokens, 0) / self.plan.unit, 0, top - 1), top)

    @staticmethod
    def _value(table: Values, step: Ints, right: Floats, context: Ints, level: Floats) -> Floats:
        place = right * (table.shape[1] - 1)
        low = np.minimum(place.astype(np.intp), table.shape[1] - 2)
        part = place - low
        near = level.astype(np.intp)
        far = np.minimum(near + 1, table.shape[3] - 1)

        def between(column: Ints) -> Floats:
            below, above = table[step, low, context, column], table[step, low + 1, context, column]
            return np.asarray(below + part * (above - below))

        rest = np.where(level - near < CLOSE, 0.0, level - near)
        return np.asarray(between(near) * (1 - rest) + between(far) * rest)

    @staticmethod
    def _line(table: Floats, step: Ints, level: Floats) -> Floats:
        near = level.astype(np.intp)
        far = np.minimum(near + 1, table.shape[1] - 1)
        rest = np.where(level - near < CLOSE, 0.0, level - near)
        return np.asarray(table[step, near] * (1 - rest) + table[step, far] * rest)


def log_loss(belief: Floats, state: Ints) -> Floats:
    """Return minus the log of the belief in the true state, in nats; beliefs below 1e-6 count as that."""
    return np.asarray(-np.log(np.maximum(belief[state, np.arange(len(state))], 1e-6)))
