"""Simulation of batches of solutions: drafts, scores and ends drawn from a step model. NumPy only.

Assumptions:

- A step is right, given that all before it is, with a probability that depends on its writer only. Once a
  step is wrong the solution is lost.
- Where a solution ends is a property of the place: the draft and what the large model writes instead end it
  alike. A policy that ignores `ObservationBatch.ends` is left with the hazard of the published model.
- A score depends on the state of its step and on the least of the scores before it, which is derived from the
  trajectory's own scores (``scores="given_min"``). So P(score | least, state) is the tables' own by
  construction; how far the least scores then agree with the tables is reported by
  `trim_graph.training.fitting`. ``"alone"``: on the state only. ``"published"``: the pair is drawn anew at
  each step, as the published POMDP assumes; its least score is no minimum of anything.
- A step by the large model is scored, with the tables of its own state, when the next draft is.
- A regeneration takes ``large_ratio`` times the tokens of the draft. One that the budget cannot pay for is
  refused and the draft stays; after a handover that runs out of budget the small model writes the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from trim_graph.errors import SettingsError

from .step_model import LOST, NO_EARLIER, RIGHT, SLIP, Floats, Ints, StepModel

Bools = npt.NDArray[np.bool_]
Scores = Literal["given_min", "alone", "published"]
SCORES: tuple[Scores, ...] = ("given_min", "alone", "published")

ACCEPT, REGENERATE, HANDOVER = 0, 1, 2
"""Decisions as numbers, in the order of `trim_graph.policies.base.DECISIONS`."""


@dataclass(frozen=True, slots=True)
class ObservationBatch:
    """Observations of a batch of ``n`` drafts; every array has shape (n,).

    Attributes:
        index: Index of the draft's step, from 0.
        score: The draft's score.
        least: Least score of the earlier steps, 1 where there are none.
        product: Product of the earlier steps' scores, 1 where there are none.
        tokens: The draft's tokens.
        ends: Whether the solution ends with this step.
        by_large: Whether the step before was written by the large model.
        large_score: Its score, where it was; else NaN.
        least_before: Least score of the steps before that one.
        large_left: Tokens left of the budget; infinite where there is none.
    """

    index: Ints
    score: Floats
    least: Floats
    product: Floats
    tokens: Floats
    ends: Bools
    by_large: Bools
    large_score: Floats
    least_before: Floats
    large_left: Floats


class Simulator:
    """Simulates a batch of ``n`` solutions.

    Args:
        model: The step model.
        n: Number of solutions.
        seed: Seed or generator.
        budget: Large tokens a solution may spend; infinite: no limit.
        scores: How scores are drawn, see above.

    Attributes:
        observations: Observations of the drafts. Rows that are `done` keep theirs until `reset`.
        done: Which solutions have ended.
        right: Which have ended right.
        state: The true state of each draft: `RIGHT`, `LOST` or `SLIP`.
        large_tokens: Tokens the large model has spent, a solution.
        small_tokens: Tokens of all drafts, a solution.
        large_calls: Regenerations and handovers, a solution.
    """

    def __init__(
        self,
        model: StepModel,
        n: int,
        *,
        seed: int | np.random.Generator = 0,
        budget: float = np.inf,
        scores: Scores = "given_min",
    ) -> None:
        if scores not in SCORES:
            raise SettingsError(f"simulator: scores={scores!r}; choose one of {', '.join(SCORES)}")
        self.model, self.n, self.budget, self.scores = model, n, float(budget), scores
        self.rng = np.random.default_rng(seed)
        given = model.score_given_min()
        if scores != "given_min":
            given = np.broadcast_to(model.score_alone()[:, None, :], given.shape)
        self._cumulative = np.cumsum(given, axis=2)
        self._pairs = np.cumsum(model.tables.reshape(3, -1), axis=1)
        self._make_rows()
        self.reset(np.ones(n, np.bool_))

    def _make_rows(self) -> None:
        n = self.n
        self.done, self.right = np.ones(n, np.bool_), np.zeros(n, np.bool_)
        self.ends, self.by_large = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        self.state, self.index = np.zeros(n, np.intp), np.zeros(n, np.intp)
        self.large_calls = np.zeros(n, np.intp)
        self.score, self.least, self.product = np.zeros(n), np.ones(n), np.ones(n)
        self.least_before, self.large_score = np.ones(n), np.full(n, np.nan)
        self.tokens, self.large_tokens, self.small_tokens = np.zeros(n), np.zeros(n), np.zeros(n)

    def reset(self, where: Bools) -> ObservationBatch:
        """Begins new solutions in these rows."""
        rows = np.flatnonzero(where)
        self.done[rows] = self.right[rows] = self.by_large[rows] = False
        self.index[rows] = self.large_calls[rows] = 0
        self.large_tokens[rows] = self.small_tokens[rows] = 0.0
        self.least[rows] = self.least_before[rows] = NO_EARLIER
        self.product[rows], self.large_score[rows] = 1.0, np.nan
        self._draft(rows, np.ones(len(rows), np.bool_))
        return self.observations

    @property
    def observations(self) -> ObservationBatch:
        """Observations of the current drafts."""
        return ObservationBatch(
            index=self.index.copy(),
            score=self.score.copy(),
            least=self.least.copy(),
            product=self.product.copy(),
            tokens=self.tokens.copy(),
            ends=self.ends.copy(),
            by_large=self.by_large.copy(),
            large_score=self.large_score.copy(),
            least_before=self.least_before.copy(),
            large_left=self.budget - self.large_tokens,
        )

    def step(self, decisions: npt.ArrayLike) -> Floats:
        """Carries out one decision a row; rows that are done are left alone.

        Args:
            decisions: `ACCEPT`, `REGENERATE` or `HANDOVER`, shape (n,).

        Returns:
            Tokens of the large model in this step, shape (n,).
        """
        decided = np.asarray(decisions)
        before = self.large_tokens.copy()
        under_way = ~self.done
        affordable = self.tokens * self.model.large_ratio <= self.budget - self.large_tokens
        large = under_way & (decided != ACCEPT) & affordable
        self.large_calls[large] += 1
        rows = np.flatnonzero(large)
        # RIGHT and SLIP alike: all before the draft is right, and the large model has its own chance.
        hit = self.rng.random(len(rows)) < self.model.p_large
        lost = self.state[rows] == LOST
        self.state[rows] = np.where(lost, LOST, np.where(hit, RIGHT, SLIP))
        self.large_tokens[rows] += self.tokens[rows] * self.model.large_ratio
        self._hand_over(np.flatnonzero(large & (decided == HANDOVER)))
        ended = under_way & self.ends & ~self.done
        self.right[ended] = self.state[ended] == RIGHT
        self.done[ended] = True
        self._advance(np.flatnonzero(under_way & ~self.done), large)
        return np.asarray(self.large_tokens - before)

    def _advance(self, rows: Ints, large: Bools) -> None:
        """Accepts the current step and draws the next draft."""
        by_large = large[rows]
        own = np.where(by_large, self._draw_score(self.state[rows], self.least[rows]), self.score[rows])
        self.least_before[rows] = self.least[rows]
        self.by_large[rows] = by_large
        self.large_score[rows] = np.where(by_large, own, np.nan)
        self.least[rows] = np.minimum(self.least[rows], own)
        self.product[rows] *= own
        self.index[rows] += 1
        self._draft(rows, self.state[rows] == RIGHT)

    def _draft(self, rows: Ints, still_right: Bools) -> None:
        count = len(rows)
        good = self.rng.random(count) < self.model.p_small
        self.state[rows] = np.where(still_right, np.where(good, RIGHT, SLIP), LOST)
        self.ends[rows] = self.rng.random(count) < self.model.hazard[self.index[rows]]
        self.tokens[rows] = self.rng.choice(self.model.tokens, count)
        self.small_tokens[rows] += self.tokens[rows]
        if self.scores == "published":
            self.least[rows], self.score[rows] = self._draw_pair(self.state[rows])
        else:
            self.score[rows] = self._draw_score(self.state[rows], self.least[rows])

    def _draw_score(self, state: Ints, least: Floats) -> Floats:
        rows = self._cumulative[state, self.model.bin_of(least)]
        return self._within(_pick(rows, self.rng))

    def _draw_pair(self, state: Ints) -> tuple[Floats, Floats]:
        least, score = np.divmod(_pick(self._pairs[state], self.rng), self.model.bins)
        return self._within(least), self._within(score)

    def _within(self, found: Ints) -> Floats:
        low, high = self.model.edges[found], self.model.edges[found + 1]
        return np.asarray(low + (high - low) * self.rng.random(len(found)))

    def _hand_over(self, rows: Ints) -> None:
        """Draws the rest of handed-over solutions; the small model writes where the budget is spent."""
        model = self.model
        while len(rows):
            ended = self.ends[rows]
            self.right[rows[ended]] = self.state[rows[ended]] == RIGHT
            self.done[rows[ended]] = True
            rows = rows[~ended]
            self.index[rows] += 1
            self.ends[rows] = self.rng.random(len(rows)) < model.hazard[self.index[rows]]
            tokens = self.rng.choice(model.tokens, len(rows))
            large = tokens * model.large_ratio <= self.budget - self.large_tokens[rows]
            self.large_tokens[rows] += np.where(large, tokens * model.large_ratio, 0.0)
            self.small_tokens[rows] += np.where(large, 0.0, tokens)
            chance = np.where(large, model.p_large, model.p_small)
            good = self.rng.random(len(rows)) < chance
            self.state[rows] = np.where(self.state[rows] == RIGHT, np.where(good, RIGHT, SLIP), LOST)


class BatchPolicy(Protocol):
    """A policy for a batch of solutions. It may keep a memory of each row from `begin` on."""

    def begin(self, n: int) -> None:
        """Forgets all rows; ``n`` new solutions follow."""
        ...

    def decide(self, batch: ObservationBatch) -> Ints:
        """Returns one decision a row."""
        ...


@dataclass
class StatelessBatchPolicy:
    """A batch policy made of a function of the observations."""

    function: Callable[[ObservationBatch], npt.ArrayLike]

    def begin(self, n: int) -> None:
        """Does nothing: there is no memory."""

    def decide(self, batch: ObservationBatch) -> Ints:
        """Asks the function."""
        return np.asarray(self.function(batch), np.intp)


@dataclass(frozen=True, slots=True)
class EpisodeStats:
    """Results of ``n`` simulated solutions; arrays of shape (n,)."""

    right: Bools
    large_tokens: Floats
    small_tokens: Floats
    large_calls: Ints


ROUNDS = 8
"""Solutions that a row of `simulate` holds in turn, so that a row never waits for the longest one."""


def simulate(model: StepModel, policy: BatchPolicy, n: int, **settings: Any) -> EpisodeStats:
    """Simulates at least ``n`` solutions of a policy to their ends.

    Args:
        model: The step model.
        policy: Decides. Each row holds `ROUNDS` solutions in turn; a new one has index 0.
        n: Number of solutions.
        **settings: Of `Simulator`.
    """
    rows = -(-n // ROUNDS)
    simulator = Simulator(model, rows, **settings)
    policy.begin(rows)
    right, calls = np.zeros((ROUNDS, rows), np.bool_), np.zeros((ROUNDS, rows), np.intp)
    large, small = np.zeros((ROUNDS, rows)), np.zeros((ROUNDS, rows))
    finished = np.zeros(rows, np.intp)
    while not simulator.done.all():
        under_way = ~simulator.done
        simulator.step(policy.decide(simulator.observations))
        ended = np.flatnonzero(under_way & simulator.done)
        for kept, now in (
            (right, simulator.right),
            (large, simulator.large_tokens),
            (small, simulator.small_tokens),
            (calls, simulator.large_calls),
        ):
            kept[finished[ended], ended] = now[ended]
        finished[ended] += 1
        again = np.zeros(rows, np.bool_)
        again[ended[finished[ended] < ROUNDS]] = True
        simulator.reset(again)
    return EpisodeStats(right.ravel(), large.ravel(), small.ravel(), calls.ravel())


def _pick(cumulative: Floats, rng: np.random.Generator) -> Ints:
    """Draws a column of each row of cumulative probabilities."""
    drawn = rng.random((len(cumulative), 1)) * cumulative[:, -1:]
    return np.asarray((drawn >= cumulative).sum(1), np.intp)
