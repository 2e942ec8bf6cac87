"""Plans when to pay for the large model: backward induction over step, belief and tokens left. NumPy only.

A plan is carried out here on many simulated solutions at once, and on recorded traces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trim_graph.errors import SettingsError
from trim_graph.policies.base import Observation, remembering
from trim_graph.policies.pomdp import (
    BELIEFS,
    CLOSE,
    REWARD,
    BeliefKind,
    Floats,
    Plan,
    Values,
    pomdp,
    step_tables,
)

from .simulator import ACCEPT, HANDOVER, REGENERATE, Seen
from .step_model import LOST, RIGHT, SLIP, Ints, StepModel

LEVELS = 32
"""Levels of the budget, zero and the whole included."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What decisions cost and what is known when they are taken.

    Attributes:
        cost_per_token: Reward that a large token costs; `REWARD` is what a right solution gives.
        cost_per_call: Reward that a call of the large model costs, whatever it writes.
        cost_per_draft: Reward that a draft costs, its score included. Only a handover saves it.
        knows_end: The policy will know whether the solution ends with the draft, as the graph's policies do.
        handover: Whether the large model may be given all that remains.
    """

    cost_per_token: float = 0.0
    cost_per_call: float = 0.0
    cost_per_draft: float = 0.0
    knows_end: bool = True
    handover: bool = True

    def __post_init__(self) -> None:
        for name in ("cost_per_token", "cost_per_call", "cost_per_draft"):
            if not 0 <= getattr(self, name) < np.inf:
                raise SettingsError(f"plan: {name} is {getattr(self, name)}; it must be 0 or more")


def solve(
    model: StepModel,
    terms: Terms | None = None,
    *,
    belief: BeliefKind = "carried",
    budget: int | None = None,
    levels: int = LEVELS,
    belief_step: float = 0.025,
) -> Plan:
    """Plan.

    Args:
        model: How solutions go on.
        terms: Costs; default: none.
        belief: How the policy will turn scores into a belief. ``carried_joint`` and ``memoryless`` are
            planned as published: every observation is a pair drawn anew.
        budget: Most large tokens of a run, if they are limited: the plan then holds for every limit up to it.
            A run that has more left acts as with this much.
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
    """Return the tokens between two levels, and how many levels there are.

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
        """Return, behind each step, the large model's chance to write all the rest right, and its tokens.

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
        """Say at which levels the budget pays for this."""
        pays = np.arange(self.count + 1) >= self._units(cost)
        pays[-1] = True
        return pays

    def _spent(self, values: Floats, cost: float) -> Floats:
        """Return the values with this much less of the budget; where it does not pay, of an empty one."""
        level = np.maximum(np.arange(self.count + 1) - self._units(cost), 0)
        level[-1] = self.count
        return values[..., level]

    def _at(self, values: Floats, right: Floats, context: Ints) -> Floats:
        """Interpolate values (belief, context, level) at beliefs and contexts; adds an axis of levels."""
        place = right * (len(self.grid) - 1)
        low = np.minimum(place.astype(np.intp), len(self.grid) - 2)
        part = (place - low)[..., None]
        context = np.broadcast_to(context, low.shape)
        return np.asarray(values[low, context] * (1 - part) + values[low + 1, context] * part)

    def _seen(self, prior: Floats) -> tuple[Floats, Floats, Floats]:
        """Observe: from (3, belief) to P(observation), P(right | it), P(right or slip | it).

        Those have the axes (belief, context, observation).
        """
        joint = prior[:, :, None, None] * self.tables[:, None]
        chance = joint.sum(0)
        known = np.where(chance > 0, chance, 1.0)
        return chance, joint[RIGHT] / known, (joint[RIGHT] + joint[SLIP]) / known

    def _behind_large(self, following: Floats) -> Floats:
        """Return the value of going on behind a step of the large model."""
        right = self.grid * self.model.p_large
        if self.belief in ("carried_joint", "memoryless"):
            return self._at(following, right[:, None], self.context[:, 0])
        # Its score is seen together with the next draft.
        chance, now_right, _ = self._seen(np.stack([right, 1 - self.grid, self.grid - right]))
        return np.asarray((chance[..., None] * self._at(following, now_right, self.next_context)).sum(2))

    def _before(self, step: int, following: Floats, behind: Floats, rest: tuple[Floats, Floats]) -> Floats:
        """Return the values before a draft, from those behind it."""
        model, terms = self.model, self.terms
        right = self.grid * model.p_small
        chance, right, open_ = self._seen(np.stack([right, 1 - self.grid, self.grid - right]))
        # What the three decisions give if the solution ends here, and if it goes on.
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
        """Choose the better decision for each token count that a draft may have."""
        best = np.zeros_like(large)
        for cost, share in self.tokens:
            dear = self._spent(large, cost) - (self.terms.cost_per_token * cost + self.terms.cost_per_call)
            best += share * np.where(self._pays(cost), np.maximum(accept, dear), accept)
        return best


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


def drafts_of(trace: Mapping[str, Any]) -> Iterator[tuple[Observation, int | None]]:
    """Give each draft of the small model as it was seen, thrown-away ones included, with its true state.

    The state is None where labels do not tell it. The large model's steps are not given; the observations
    behind them hold their scores.
    """
    lost, known = False, True
    steps = trace["steps"]
    for index, step in enumerate(steps):
        before = steps[:index]
        draft = step["discarded"] or (step if step["writer"] == "small" else None)
        if draft is not None:
            state = LOST if lost else {True: RIGHT, False: SLIP}.get(draft["label"])
            seen = Observation(
                question=trace["question"],
                index=index,
                max_steps=max(len(steps), 1),
                scores=tuple(other["score"] for other in before),
                tokens=tuple(other["tokens"] for other in before),
                writers=tuple(other["writer"] for other in before),
                score=draft["score"],
                draft=draft["text"],
                draft_tokens=draft["tokens"],
                draft_ends=index == len(steps) - 1 and trace["stopped"] == "finished",
            )
            yield seen, state if known else None
        known = known and (lost or step["label"] is not None)
        lost = lost or step["label"] is False


def losses(policy: pomdp, trace: Mapping[str, Any]) -> Floats:
    """Return the log-loss of the true state, in nats, at each draft whose state is known."""
    beliefs, states, memory = [], [], None
    for seen, state in drafts_of(trace):
        placed = remembering(seen, memory)
        if state is not None:
            beliefs.append(policy.belief(placed))
            states.append(state)
        memory = policy.decide(placed).memory
    if not states:
        return np.zeros(0)
    return log_loss(np.array(beliefs).T, np.array(states))
