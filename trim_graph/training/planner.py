"""Planning when to pay for the large model: backward induction over step, belief and tokens left. NumPy only.

`BatchPomdp` carries out a plan on a batch of simulated solutions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trim_graph.errors import SettingsError
from trim_graph.policies.pomdp import (
    BELIEFS,
    CLOSE,
    PAIR_BELIEFS,
    REWARD,
    BeliefKind,
    Floats,
    Plan,
    Values,
    decision_values,
    draft_prior,
    step_tables,
)

from .settings import Terms as Terms
from .simulator import ACCEPT, HANDOVER, REGENERATE, ObservationBatch
from .step_model import RIGHT, SLIP, Ints, StepModel

LEVELS = 32
"""Levels of the budget, zero and the whole included."""


def solve(
    model: StepModel,
    terms: Terms | None = None,
    *,
    belief: BeliefKind = "carried",
    budget: int | None = None,
    levels: int = LEVELS,
    belief_step: float = 0.025,
) -> Plan:
    """Solves the POMDP of a step model.

    Args:
        model: The step model.
        terms: Costs; default: none.
        belief: How the policy will turn scores into a belief. ``carried_joint`` and ``memoryless`` are
            planned as published: every observation is a pair drawn anew.
        budget: Most large tokens of a run, if they are limited. The plan holds for every limit up to it;
            a run with more tokens left decides as with this many.
        levels: Most levels of the budget, zero and the whole included.
        belief_step: Between two points of the grid of beliefs; 1 over it must be whole.

    Raises:
        SettingsError: A value is out of range.
    """
    terms = terms or Terms()
    if belief not in BELIEFS:
        raise SettingsError(f"plan: belief={belief!r}; choose one of {', '.join(BELIEFS)}")
    points = round(1 / belief_step) if 0 < belief_step <= 1 else 0
    if points < 1 or abs(points * belief_step - 1) > 1e-9:
        raise SettingsError(f"plan: belief_step is {belief_step}; 1 must be a multiple of it, such as 0.025")
    unit, count = _budget_levels(model, budget, levels)
    return _Induction(model, terms, belief, points + 1, unit, count).run()


def _budget_levels(model: StepModel, budget: int | None, levels: int) -> tuple[float, int]:
    """Returns the tokens between two levels, and how many levels there are.

    Steps take whole multiples of the unit, so that nothing is interpolated there: a fraction of the tokens
    that a step takes is worth nothing. The unit is the one that rounds the model's tokens least.
    """
    if budget is None:
        return 0.0, 0
    if budget < 1 or levels < 3:
        raise SettingsError(f"plan: budget={budget} in {levels} levels; choose at least 1 token and 3 levels")
    parts = np.arange(max(2, levels // 2), levels)
    large = model.large_tokens[:, None] / (budget / parts)
    error = np.abs(large - np.round(large)).mean(0) / parts
    best = parts[np.flatnonzero(error <= error.min() + 1e-12)[-1]]
    return budget / float(best), int(best) + 1


class _Induction:
    """Arrays have the axes (belief, context, observation, budget level), or the first of them."""

    def __init__(
        self, model: StepModel, terms: Terms, belief: BeliefKind, grid: int, unit: float, count: int
    ) -> None:
        self.model, self.terms, self.belief, self.unit, self.count = model, terms, belief, unit, count
        self.grid = np.linspace(0.0, 1.0, grid)
        self.tables = step_tables(model.tables, belief, model.shrink)
        _, self.contexts, observations = self.tables.shape
        self.context = np.broadcast_to(np.arange(self.contexts)[:, None], self.tables.shape[1:])
        self.next_context = (
            np.minimum(self.context, np.arange(observations)) if belief == "carried" else self.context
        )
        tokens, shares = np.unique(model.large_tokens, return_counts=True)
        self.tokens = list(zip(tokens.tolist(), (shares / shares.sum()).tolist(), strict=True))

    def run(self) -> Plan:
        model, terms = self.model, self.terms
        steps, levels = model.steps, self.count + 1
        shape = (len(self.grid), self.contexts, levels)
        values, regenerated = np.zeros((steps + 1, *shape)), np.zeros((steps, *shape))
        rest_right, rest_tokens = self._rest()
        for step in range(steps - 1, -1, -1):
            regenerated[step] = self._behind_large(values[step + 1])
            rest = rest_right[step], rest_tokens[step]
            values[step] = self._before(step, values[step + 1], regenerated[step], rest)
        return Plan(
            belief=self.belief,
            p_small=model.p_small,
            p_large=model.p_large,
            large_ratio=model.large_ratio,
            mean_tokens=float(model.tokens.mean()),
            cost_per_token=terms.cost_per_token,
            cost_per_call=terms.cost_per_call,
            knows_end=terms.knows_end,
            handover=terms.handover,
            unit=self.unit,
            hazard=model.hazard,
            edges=model.edges,
            tables=self.tables,
            # In a file half the size; a reward of 100 has seven digits left.
            values=values.astype(np.float32),
            regenerated=regenerated.astype(np.float32),
            rest_right=rest_right,
            rest_tokens=rest_tokens,
        )

    def _rest(self) -> tuple[Floats, Floats]:
        """Returns, behind each step, the large model's chance to write all the rest right, and its tokens.

        Where the budget does not pay for a step the small model writes it.
        """
        model = self.model
        right, tokens = np.zeros((model.steps, self.count + 1)), np.zeros((model.steps, self.count + 1))
        for step in range(model.steps - 1, 0, -1):
            ends = model.hazard[step]
            for cost, share in self.tokens:
                pays = self._pays(cost)
                on_right, on_tokens = self._spent(right[step], cost), self._spent(tokens[step], cost)
                large = model.p_large * (ends + (1 - ends) * on_right)
                small = model.p_small * (ends + (1 - ends) * right[step])
                right[step - 1] += share * np.where(pays, large, small)
                spent = np.where(pays, cost + (1 - ends) * on_tokens, (1 - ends) * tokens[step])
                tokens[step - 1] += share * spent
        return right, tokens

    def _units(self, cost: float) -> int:
        return max(1, round(cost / self.unit)) if self.unit else 0

    def _pays(self, cost: float) -> npt.NDArray[np.bool_]:
        """Returns at which levels the budget covers a cost."""
        pays = np.arange(self.count + 1) >= self._units(cost)
        pays[-1] = True
        return pays

    def _spent(self, values: Floats, cost: float) -> Floats:
        """Returns the values with this much less of the budget; where it does not pay, of an empty one."""
        level = np.maximum(np.arange(self.count + 1) - self._units(cost), 0)
        level[-1] = self.count
        return values[..., level]

    def _at(self, values: Floats, right: Floats, context: Ints) -> Floats:
        """Interpolates values (belief, context, level) at beliefs and contexts; adds an axis of levels."""
        place = right * (len(self.grid) - 1)
        low = np.minimum(place.astype(np.intp), len(self.grid) - 2)
        part = (place - low)[..., None]
        context = np.broadcast_to(context, low.shape)
        return np.asarray(values[low, context] * (1 - part) + values[low + 1, context] * part)

    def _observe(self, prior: Floats) -> tuple[Floats, Floats, Floats]:
        """Observes: from (3, belief) to P(observation), P(right | it), P(right or slip | it).

        Those have the axes (belief, context, observation).
        """
        joint = prior[:, :, None, None] * self.tables[:, None]
        chance = joint.sum(0)
        known = np.where(chance > 0, chance, 1.0)
        return chance, joint[RIGHT] / known, (joint[RIGHT] + joint[SLIP]) / known

    def _behind_large(self, following: Floats) -> Floats:
        """Returns the value behind a step of the large model."""
        if self.belief in PAIR_BELIEFS:
            right = self.grid * self.model.p_large
            return self._at(following, right[:, None], self.context[:, 0])
        # Its score is observed together with the next draft.
        chance, now_right, _ = self._observe(np.stack(draft_prior(self.grid, self.model.p_large)))
        return np.asarray((chance[..., None] * self._at(following, now_right, self.next_context)).sum(2))

    def _before(self, step: int, following: Floats, behind: Floats, rest: tuple[Floats, Floats]) -> Floats:
        """Returns the values before a draft, from those behind it."""
        model, terms = self.model, self.terms
        chance, right, open_ = self._observe(np.stack(draft_prior(self.grid, model.p_small)))
        # Values of the three decisions if the solution ends here, and if it continues.
        end = REWARD * right[..., None], REWARD * model.p_large * open_[..., None]
        on_accept = self._at(following, right, self.next_context)
        on_large = self._at(behind, open_, self.context)
        if terms.handover:
            on_large = np.maximum(on_large, end[1] * rest[0] - terms.cost_per_token * rest[1])
        hazard = model.hazard[step]
        if not terms.knows_end:
            on_accept = hazard * end[0] + (1 - hazard) * on_accept
            on_large = hazard * end[1] + (1 - hazard) * on_large
        value = (1 - hazard if terms.knows_end else 1.0) * self._best(on_accept, on_large)
        if terms.knows_end:
            value = value + hazard * self._best(*(np.broadcast_to(part, on_large.shape) for part in end))
        return np.asarray((chance[..., None] * value).sum(2) - terms.cost_per_draft)

    def _best(self, accept: Floats, large: Floats) -> Floats:
        """Chooses the better decision for each token count that a draft may have."""
        best = np.zeros_like(large)
        for cost, share in self.tokens:
            dear = self._spent(large, cost) - (self.terms.cost_per_token * cost + self.terms.cost_per_call)
            best += share * np.where(self._pays(cost), np.maximum(accept, dear), accept)
        return best


class Beliefs:
    """Beliefs about the drafts of a batch, the array form of the belief in `pomdp`.

    Args:
        plan: Names the kind of belief and holds the tables.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.pairs = plan.belief in PAIR_BELIEFS
        self.begin(0)

    def begin(self, n: int) -> None:
        """Forgets; ``n`` new solutions follow."""
        self.accepted, self.open = np.ones(n), np.ones(n)

    def see(self, batch: ObservationBatch) -> Floats:
        """Observes drafts; call once a step.

        Returns:
            The beliefs, shape (3, n).
        """
        plan = self.plan
        behind_large = self.open * plan.p_large
        if not self.pairs:
            score = np.where(batch.by_large, batch.large_score, 0.0)
            behind_large = self._update(self.open, plan.p_large, batch.least_before, score)[RIGHT]
        prior = np.where(batch.by_large, behind_large, self.accepted)
        prior = np.where(batch.index == 0, 1.0, prior)
        belief = self._update(prior, plan.p_small, batch.least, batch.score)
        self.accepted, self.open = belief[RIGHT], belief[RIGHT] + belief[SLIP]
        return belief

    def _update(self, right: Floats, chance: float, least: Floats, score: Floats) -> Floats:
        prior = np.stack(draft_prior(right, chance))
        if self.plan.belief == "memoryless":
            prior = np.full_like(prior, 1 / 3)
        low, place = self.bin_of(least), self.bin_of(score)
        context = low if self.plan.belief == "carried" else np.zeros_like(low)
        joint = prior * self.plan.tables[:, context, place + low * len(self.plan.edges[1:]) * self.pairs]
        total = joint.sum(0)
        return np.asarray(np.where(total > 0, joint / np.where(total > 0, total, 1.0), prior))

    def bin_of(self, score: Floats) -> Ints:
        """Returns the bin of each score."""
        return np.searchsorted(self.plan.edges[1:-1], score, side="right")


class BatchPomdp:
    """The policy `pomdp` for a batch: the same decisions, computed on arrays.

    ``test_batch_and_scalar_pomdp_agree`` holds the two together.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.beliefs = Beliefs(plan)
        self.begin(0)

    def begin(self, n: int) -> None:
        """Forgets; ``n`` new solutions follow."""
        self.beliefs.begin(n)
        self.belief = np.zeros((3, n))

    def decide(self, batch: ObservationBatch) -> Ints:
        """Returns one decision a row."""
        plan = self.plan
        self.belief = belief = self.beliefs.see(batch)
        right, open_ = belief[RIGHT], belief[RIGHT] + belief[SLIP]
        cost = batch.tokens * plan.large_ratio
        last = len(plan.hazard) - 1
        step = np.minimum(batch.index, last)
        if plan.knows_end:
            step = np.where(batch.ends, step, np.minimum(step, max(last - 1, 0)))
        hazard = batch.ends.astype(np.float64) if plan.knows_end else plan.hazard[step]
        context = self.beliefs.bin_of(batch.least) if plan.belief == "carried" else np.zeros_like(step)
        after = np.minimum(context, self.beliefs.bin_of(batch.score))
        fixed, spent = self._level(batch.large_left), self._level(batch.large_left - cost)
        going_on = self._value(plan.regenerated, step, open_, context, spent)
        hit = REWARD * plan.p_large * open_
        more = np.full_like(hit, -1.0)
        if plan.handover:
            rest_right = self._line(plan.rest_right, step, spent)
            rest_tokens = self._line(plan.rest_tokens, step, spent)
            more = hit * rest_right - plan.cost_per_token * rest_tokens - going_on
        accepted = self._value(plan.values, step + 1, right, after, fixed)
        accept, large = decision_values(
            hazard, REWARD * right, hit, accepted, going_on + np.maximum(more, 0.0)
        )
        pays = (cost <= batch.large_left) & (
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
