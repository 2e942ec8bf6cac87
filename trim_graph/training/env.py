"""Environments for reinforcement learning of routing: drafts are observed, accepted or regenerated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from trim_graph.policies import Observation
from trim_graph.policies.learned import AGGREGATE, SEQUENCE, aggregate_features, padded, sequence_features

from .rollouts import Rollout, Rollouts, Script
from .simulator import Simulator
from .step_model import StepModel

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FeatureExtractor:
    """Turns an observation into the input of a network.

    Attributes:
        shape: Shape of the input.
        features: The function that a policy uses at run time, padded to the shape.
    """

    shape: tuple[int, ...]
    features: Callable[[Observation], Any]


def aggregate_extractor() -> FeatureExtractor:
    """Returns the extractor of `trim_graph.policies.learned.aggregate`."""
    return FeatureExtractor((len(AGGREGATE),), aggregate_features)


def sequence_extractor(window: int) -> FeatureExtractor:
    """Returns the extractor of `trim_graph.policies.learned.sequence`."""
    shape = (window, len(SEQUENCE))
    return FeatureExtractor(shape, lambda observation: padded(sequence_features(observation, window), window))


@dataclass(frozen=True, slots=True)
class Transition:
    """Transitions of a batch after one decision in each row; arrays of shape (n,)."""

    large_tokens: npt.NDArray[np.float64]
    ended: npt.NDArray[np.bool_]
    correct: npt.NDArray[np.bool_]


class EpisodeBatch(Protocol):
    """A batch of episodes, one solution each; where one has ended the next begins."""

    n: int

    def begin(self, seed: int | None) -> Sequence[Observation]:
        """Begins a solution in each row; a seed makes all that follows repeatable."""
        ...

    def decide(self, regenerate: Sequence[bool]) -> tuple[Sequence[Observation], Transition]:
        """Carries out one decision in each row, and returns the observations of the drafts that follow."""
        ...


class RecordedEpisodes:
    """Episodes from rollouts of a graph with its real models.

    Args:
        rollouts: Questions are taken in random order, each once before any is repeated.
        n: Number of rows.
        seed: Seed of the order.
    """

    def __init__(self, rollouts: Rollouts, n: int = 1, *, seed: int = 0) -> None:
        self.rollouts, self.n = rollouts, n
        self._rng = np.random.default_rng(seed)
        self._order: list[int] = []

    def begin(self, seed: int | None) -> list[Observation]:
        """Begins a solution in each row."""
        if seed is not None:
            self._rng, self._order = np.random.default_rng(seed), []
        self._rows = [self._next() for _ in range(self.n)]
        return [row.observation() for row in self._rows]

    def decide(self, regenerate: Sequence[bool]) -> tuple[list[Observation], Transition]:
        """Carries out one decision in each row; unexplored branches are run for all rows at a time."""
        self._explore(regenerate)
        spent = np.array(
            [row.decide(bool(how)) for row, how in zip(self._rows, regenerate, strict=True)], float
        )
        ended = np.array([row.ended for row in self._rows])
        correct = np.array([row.ended and row.correct for row in self._rows])
        self._rows = [self._next() if row.ended else row for row in self._rows]
        return [row.observation() for row in self._rows], Transition(spent, ended, correct)

    def explored(self, regenerate: Sequence[bool]) -> list[bool]:
        """Returns the decisions, each turned into the other where only that one's branch is explored."""
        pairs = zip(self._rows, regenerate, strict=True)
        return [how if row.missing(how) is None else not how for row, how in pairs]

    def _explore(self, regenerate: Sequence[bool]) -> None:
        before: dict[int, Script] = {}
        while True:
            scripts = {
                row.index: script
                for row, how in zip(self._rows, regenerate, strict=True)
                if (script := row.missing(bool(how))) is not None
            }
            if not scripts:
                return
            for index, script in scripts.items():
                if before.get(index) == script:
                    raise self.rollouts.nondeterminism_error(index)
            self.rollouts.expand(scripts)
            before = scripts

    def _next(self) -> Rollout:
        while True:
            if not self._order:
                self._order = self._rng.permutation(len(self.rollouts)).tolist()
            rollout = Rollout(self.rollouts, self._order.pop())
            if not rollout.ended:  # a solution without a step has nothing to decide
                return rollout


@dataclass(slots=True)
class _History:
    scores: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    writers: tuple[Any, ...] = ()


class SimulatedEpisodes:
    """Episodes drawn from a step model.

    Args:
        model: Fitted on traces (`trim_graph.training.fitting`), or published.
        n: Number of rows.
        seed: Seed of the draws.
        max_steps: The setting of the simulated graph.
    """

    def __init__(self, model: StepModel, n: int = 1, *, seed: int = 0, max_steps: int = 32) -> None:
        self.model, self.n, self.max_steps = model, n, max_steps
        self._rng = np.random.default_rng(seed)

    def begin(self, seed: int | None) -> list[Observation]:
        """Begins a solution in each row."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._simulator = Simulator(self.model, self.n, seed=self._rng)
        self._histories = [_History() for _ in range(self.n)]
        return self._observations()

    def decide(self, regenerate: Sequence[bool]) -> tuple[list[Observation], Transition]:
        """Carries out one decision in each row."""
        simulator, decisions = self._simulator, np.asarray(regenerate, dtype=np.intp)
        before = simulator.observations
        spent = simulator.step(decisions)
        ended, correct = simulator.done.copy(), simulator.done & simulator.right
        if ended.any():
            simulator.reset(ended)
        after = simulator.observations
        for row, history in enumerate(self._histories):
            if ended[row]:
                self._histories[row] = _History()
                continue
            large = bool(after.by_large[row])
            score = float(after.large_score[row] if large else before.score[row])
            tokens = round(float(spent[row] if large else before.tokens[row]))
            history.scores = (*history.scores, score)
            history.tokens = (*history.tokens, tokens)
            history.writers = (*history.writers, "large" if large else "small")
        return self._observations(), Transition(spent, ended, correct)

    def _observations(self) -> list[Observation]:
        batch = self._simulator.observations
        return [
            Observation(
                question="",
                index=len(history.scores),
                max_steps=self.max_steps,
                scores=history.scores,
                tokens=history.tokens,
                writers=history.writers,
                score=score,
                draft="",
                draft_tokens=round(tokens),
            )
            for history, score, tokens in zip(
                self._histories, batch.score.tolist(), batch.tokens.tolist(), strict=True
            )
        ]


def rewards(transition: Transition, price: float) -> npt.NDArray[np.float64]:
    """Returns the reward of one decision in each row."""
    earned: npt.NDArray[np.float64] = transition.correct - price * transition.large_tokens
    return earned


class RoutingVecEnv(VecEnv):
    """Many questions side by side for stable-baselines3; the action 0 accepts a draft, 1 regenerates it.

    Args:
        batch: The questions.
        extractor: Makes the input of the network.
        price: Price of a large token, in right answers; may change between rollouts.
    """

    def __init__(self, batch: EpisodeBatch, extractor: FeatureExtractor, *, price: float) -> None:
        self.batch, self.extractor, self.price = batch, extractor, price
        self.render_mode = None
        super().__init__(batch.n, *_spaces(extractor))

    def reset(self) -> Floats:
        """Begins a question in each row."""
        seed = self._seeds[0]
        self._reset_seeds()
        return _input(self.batch.begin(seed), self.extractor)

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Stores the decisions."""
        self._decisions = [bool(action) for action in actions]

    def step_wait(
        self,
    ) -> tuple[Floats, npt.NDArray[np.float32], npt.NDArray[np.bool_], list[dict[str, Any]]]:
        """Carries out the decisions."""
        observations, transition = self.batch.decide(self._decisions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        return (
            _input(observations, self.extractor),
            rewards(transition, self.price).astype(np.float32),
            transition.ended,
            infos,
        )

    def close(self) -> None:
        """Does nothing: there is nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Returns the attribute for each row."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets the attribute of all rows."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Raises: rows are no environments of their own."""
        raise NotImplementedError(f"rows have no method {method_name}")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Returns False for each row: rows are not wrapped."""
        return [False] * len(list(self._get_indices(indices)))


def _spaces(extractor: FeatureExtractor) -> tuple[spaces.Box, spaces.Discrete[Any]]:
    # A step may have any number of tokens; everything else lies in [0, 1].
    return spaces.Box(0.0, np.inf, extractor.shape, np.float32), spaces.Discrete(2)


def _input(observations: Sequence[Observation], extractor: FeatureExtractor) -> Floats:
    return np.array([extractor.features(one) for one in observations], dtype=np.float32)
