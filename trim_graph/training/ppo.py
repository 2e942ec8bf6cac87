"""Train a learned policy by PPO (Schulman et al. 2017, arXiv 1707.06347) with stable-baselines3.

First on the simulator of a step model, where experience is cheap, then on rollouts of the real models. What
is kept is the policy that did best on validation questions, deciding as it will at run time; where it has not
improved for a while, training ends.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from trim_graph.errors import SettingsError
from trim_graph.policies.aggregate import aggregate
from trim_graph.policies.learned import LearnedPolicy
from trim_graph.policies.sequence import sequence

from .environment import Batch, Look, Recorded, RoutingVecEnv, Simulated, aggregate_look, sequence_look
from .networks import Encoder, Standardised, aggregate_arrays, sequence_arrays, spread_of
from .rollouts import Rollouts
from .solving import solve
from .step_model import StepModel

Kind = Literal["aggregate", "sequence"]


@dataclass(frozen=True, slots=True)
class Training:
    """How a policy is trained.

    Attributes:
        simulated_steps: Most decisions on the simulator; 0 trains on rollouts alone.
        steps: Most decisions on rollouts; 0 trains on the simulator alone.
        rows: Questions side by side.
        rollout: Decisions of each row between two updates.
        batch: Decisions in a minibatch.
        epochs: Passes over them.
        learning_rate: Of Adam.
        entropy: Weight of the entropy bonus.
        every: Updates between two looks at the validation questions.
        patience: Looks without an improvement after which a phase ends.
        window: Most steps that the sequence policy looks at.
        width: Of its rows; of the hidden layers of the aggregate policy.
    """

    simulated_steps: int = 100_000
    steps: int = 200_000
    rows: int = 64
    rollout: int = 32
    batch: int = 512
    epochs: int = 8
    learning_rate: float = 1e-3
    entropy: float = 0.003
    every: int = 4
    patience: int = 10
    window: int = 16
    width: int = 32

    def __post_init__(self) -> None:
        for name in ("rows", "rollout", "batch", "epochs", "every", "patience", "window", "width"):
            if getattr(self, name) < 1:
                raise SettingsError(f"training: {name} is {getattr(self, name)}; choose 1 or more")
        if max(self.steps, self.simulated_steps) < 1:
            raise SettingsError("training: steps and simulated_steps are both 0; there is nothing to do")


class Score(NamedTuple):
    """How a policy does on questions: means over them."""

    reward: float
    accuracy: float
    large_tokens: float


@dataclass(frozen=True, slots=True)
class Point:
    """One look at a policy in training.

    Attributes:
        phase: ``simulator`` or ``rollouts``.
        steps: Decisions so far, of all phases.
        training_reward: Mean reward of a question since the last look, exploration included.
        reward: On the validation questions, of the likelier decisions.
        accuracy: The same.
        large_tokens: The same, a question.
    """

    phase: str
    steps: int
    training_reward: float | None
    reward: float
    accuracy: float
    large_tokens: float


@dataclass
class Trained:
    """A policy and how it came about."""

    policy: LearnedPolicy
    kind: Kind
    price: float
    seed: int
    validation: Score
    curve: list[Point] = field(default_factory=list)


def score(rollouts: Rollouts, policy: Any, price: float) -> Score:
    """Let a policy decide on every question.

    Args:
        rollouts: Of the questions.
        policy: Any that accepts and regenerates.
        price: Of a large token, in right answers.
    """
    ended = solve(rollouts, policy)
    accuracy = sum(one.correct for one in ended) / len(ended)
    tokens = sum(one.large_tokens for one in ended) / len(ended)
    return Score(accuracy - price * tokens, accuracy, tokens)


def train(
    kind: Kind,
    price: float,
    *,
    rollouts: Rollouts,
    validation: Rollouts,
    model: StepModel | None = None,
    seed: int = 0,
    training: Training | None = None,
    tell: Callable[[Point], None] | None = None,
) -> Trained:
    """Train one policy.

    Args:
        kind: ``aggregate`` or ``sequence``.
        price: Of a large token, in right answers: the lambda of the reward.
        rollouts: Of the training questions.
        validation: Of other questions, to choose by.
        model: Fitted on the training questions; None skips the simulator.
        seed: Of the weights, the order of the questions and the exploration.
        training: Everything else.
        tell: Called at each look.
    """
    given = training or Training()
    look = aggregate_look() if kind == "aggregate" else sequence_look(given.window)
    recorded = Recorded(rollouts, given.rows, seed=seed)
    phases: list[tuple[str, Batch, int]] = [("rollouts", recorded, given.steps)]
    if model is not None:
        simulated = Simulated(model, given.rows, seed=seed, max_steps=rollouts.max_steps)
        phases.insert(0, ("simulator", simulated, given.simulated_steps))
    with _one_thread():
        env = RoutingVecEnv(phases[0][1], look, price=price)
        learner = _learner(kind, env, spread_of(_sample(recorded, look, seed)), given, seed)
        made = {"lambda": price, "seed": seed, "training": asdict(given)}
        best = _Best(lambda: export(kind, learner, given, made), validation, price, tell)
        for phase, batch, steps in phases:
            if steps > 0:
                learner.set_env(RoutingVecEnv(batch, look, price=price))
                watch = _Watch(best, phase, given)
                learner.learn(steps, callback=watch, reset_num_timesteps=False)
                learner.policy.load_state_dict(best.state)
    return Trained(best.policy, kind, price, seed, best.score, best.curve)


def export(
    kind: Kind, learner: PPO, training: Training, made: Mapping[str, Any] | None = None
) -> LearnedPolicy:
    """Make the policy for run time of a model in training."""
    if kind == "aggregate":
        return aggregate(aggregate_arrays(learner), made=made)
    encoder: Any = learner.policy.features_extractor
    heads = encoder.layers[0].heads
    return sequence(sequence_arrays(learner), made=made, heads=heads, window=training.window)


def _learner(kind: Kind, env: RoutingVecEnv, spread: tuple[Any, Any], given: Training, seed: int) -> PPO:
    mean, scale = spread
    own: dict[str, Any]
    if kind == "aggregate":
        hidden = [given.width, given.width]
        own = {
            "features_extractor_class": Standardised,
            "features_extractor_kwargs": {"mean": mean, "scale": scale},
            "net_arch": {"pi": hidden, "vf": hidden},
        }
    else:
        own = {
            "features_extractor_class": Encoder,
            "features_extractor_kwargs": {"mean": mean, "scale": scale, "width": given.width},
            "net_arch": {"pi": [], "vf": [given.width]},
        }
    return PPO(
        "MlpPolicy",
        env,
        n_steps=given.rollout,
        batch_size=given.batch,
        n_epochs=given.epochs,
        gamma=1.0,
        gae_lambda=0.95,
        ent_coef=given.entropy,
        learning_rate=given.learning_rate,
        policy_kwargs=own,
        seed=seed,
        device="cpu",
    )


def _sample(batch: Recorded, look: Look, seed: int, decisions: int = 64) -> Any:
    """Return what a policy that decides at random sees."""
    rng = np.random.default_rng(seed)
    seen = list(batch.begin(seed))
    inputs = [look.features(one) for one in seen]
    for _ in range(decisions):
        seen, _turn = batch.decide((rng.random(batch.n) < 0.3).tolist())
        inputs.extend(look.features(one) for one in seen)
    return np.array(inputs, dtype=np.float32)


class _Best:
    """The best policy so far, by its reward on the validation questions."""

    def __init__(
        self,
        policy: Callable[[], LearnedPolicy],
        validation: Rollouts,
        price: float,
        tell: Callable[[Point], None] | None,
    ) -> None:
        self._make, self._validation, self._price, self._tell = policy, validation, price, tell
        self.curve: list[Point] = []
        self.score = Score(-np.inf, 0.0, 0.0)

    def look(self, phase: str, learner: PPO, training_reward: float | None) -> bool:
        """Say whether the policy is better than all before it."""
        policy = self._make()
        found = score(self._validation, policy, self._price)
        point = Point(phase, int(learner.num_timesteps), training_reward, *found)
        self.curve.append(point)
        if self._tell is not None:
            self._tell(point)
        if found.reward <= self.score.reward:
            return False
        self.score, self.policy = found, policy
        self.state = copy.deepcopy(learner.policy.state_dict())
        return True


class _Watch(BaseCallback):
    """Looks at the policy before every so many updates and after the last; ends a phase that stands still."""

    def __init__(self, best: _Best, phase: str, training: Training) -> None:
        super().__init__()
        self._best, self._phase, self._training = best, phase, training
        self._updates = self._waited = self._questions = 0
        self._reward = 0.0

    def _on_step(self) -> bool:
        self._reward += float(self.locals["rewards"].sum())
        self._questions += int(self.locals["dones"].sum())
        return self._waited < self._training.patience

    def _on_rollout_end(self) -> None:
        if self._updates % self._training.every == 0:
            self._look()
        self._updates += 1

    def _on_training_end(self) -> None:
        self._look()

    def _look(self) -> None:
        earned = self._reward / self._questions if self._questions else None
        self._reward, self._questions = 0.0, 0
        better = self._best.look(self._phase, self.model, earned)  # type: ignore[arg-type]
        self._waited = 0 if better else self._waited + 1


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
