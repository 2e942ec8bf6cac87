"""Trains a learned policy by PPO (Schulman et al. 2017, arXiv 1707.06347) with stable-baselines3.

Networks become arrays of a policy that runs without torch; learning curves are written as CSV, JSON and a
plot.
"""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from trim_graph.policies.learned import EPSILON, SEQUENCE, LearnedPolicy, aggregate, sequence

from .env import (
    EpisodeBatch,
    FeatureExtractor,
    RecordedEpisodes,
    RoutingVecEnv,
    SimulatedEpisodes,
    aggregate_extractor,
    sequence_extractor,
)
from .rollouts import Rollouts, evaluate_offline
from .settings import Training as Training
from .step_model import StepModel

Kind = Literal["aggregate", "sequence"]


class Score(NamedTuple):
    """Results of a policy: means over questions."""

    reward: float
    accuracy: float
    large_tokens: float


@dataclass(frozen=True, slots=True)
class EvalPoint:
    """One evaluation of a policy in training.

    Attributes:
        phase: ``simulator`` or ``rollouts``.
        steps: Decisions so far, of all phases.
        training_reward: Mean reward of a question since the last evaluation, exploration included.
        reward: Reward of the likelier decisions on the validation questions.
        accuracy: Accuracy of these.
        large_tokens: Large tokens of these, a question.
    """

    phase: str
    steps: int
    training_reward: float | None
    reward: float
    accuracy: float
    large_tokens: float


@dataclass
class Trained:
    """A trained policy and its learning curve."""

    policy: LearnedPolicy
    kind: Kind
    price: float
    seed: int
    validation: Score
    curve: list[EvalPoint] = field(default_factory=list)


def score(rollouts: Rollouts, policy: Any, price: float) -> Score:
    """Scores a policy on every question.

    Args:
        rollouts: Rollouts of the questions.
        policy: Any policy that accepts and regenerates.
        price: Price of a large token, in right answers.
    """
    ended = evaluate_offline(rollouts, policy, follow=isinstance(policy, LearnedPolicy))
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
    on_eval: Callable[[EvalPoint], None] | None = None,
) -> Trained:
    """Trains one policy.

    Args:
        kind: ``aggregate`` or ``sequence``.
        price: Price of a large token, in right answers: the lambda of the reward.
        rollouts: Rollouts of the training questions.
        validation: Rollouts of other questions, to choose by.
        model: Fitted on the training questions; None skips the simulator.
        seed: Seed of the weights, the order of the questions and the exploration.
        training: Hyperparameters.
        on_eval: Called after each evaluation.
    """
    given = training or Training()
    extractor = aggregate_extractor() if kind == "aggregate" else sequence_extractor(given.window)
    recorded = RecordedEpisodes(rollouts, given.rows, seed=seed)
    phases: list[tuple[str, EpisodeBatch, int]] = [("rollouts", recorded, given.steps)]
    if model is not None:
        simulated = SimulatedEpisodes(model, given.rows, seed=seed, max_steps=rollouts.max_steps)
        phases.insert(0, ("simulator", simulated, given.simulated_steps))
    with _one_thread():
        env = RoutingVecEnv(phases[0][1], extractor, price=price)
        learner = _learner(kind, env, spread_of(_sample(recorded, extractor, seed)), given, seed)
        made = {"lambda": price, "seed": seed, "training": asdict(given)}
        best = _Best(lambda: export(kind, learner, given, made), validation, price, on_eval)
        for phase, batch, steps in phases:
            if steps > 0:
                learner.set_env(RoutingVecEnv(batch, extractor, price=price))
                callback = _EvalCallback(best, phase, given)
                learner.learn(steps, callback=callback, reset_num_timesteps=False)
                learner.policy.load_state_dict(best.state)
    return Trained(best.policy, kind, price, seed, best.score, best.curve)


def export(
    kind: Kind, learner: PPO, training: Training, made: Mapping[str, Any] | None = None
) -> LearnedPolicy:
    """Returns the run-time policy of a model in training."""
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
    learner = PPO(
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
    learner.set_logger(Logger(None, []))  # its own one makes a folder among the temporary files
    return learner


SAMPLED = 64
"""Decisions from whose inputs the spread of each feature is measured."""


def _sample(batch: RecordedEpisodes, extractor: FeatureExtractor, seed: int) -> Any:
    """Returns the inputs of a policy that decides at random among explored branches, which runs no model."""
    rng = np.random.default_rng(seed)
    observations = list(batch.begin(seed))
    inputs = [extractor.features(one) for one in observations]
    for _ in range(SAMPLED):
        observations, _ = batch.decide(batch.explored((rng.random(batch.n) < 0.3).tolist()))
        inputs.extend(extractor.features(one) for one in observations)
    return np.array(inputs, dtype=np.float32)


class _Best:
    """The best policy so far, by its reward on the validation questions."""

    def __init__(
        self,
        policy: Callable[[], LearnedPolicy],
        validation: Rollouts,
        price: float,
        on_eval: Callable[[EvalPoint], None] | None,
    ) -> None:
        self._make, self._validation, self._price, self._on_eval = policy, validation, price, on_eval
        self.curve: list[EvalPoint] = []
        self.score = Score(-np.inf, 0.0, 0.0)

    def evaluate(self, phase: str, learner: PPO, training_reward: float | None) -> bool:
        """Evaluates the current policy, and returns whether it is better than all before it."""
        policy = self._make()
        found = score(self._validation, policy, self._price)
        point = EvalPoint(phase, int(learner.num_timesteps), training_reward, *found)
        self.curve.append(point)
        if self._on_eval is not None:
            self._on_eval(point)
        if found.reward <= self.score.reward:
            return False
        self.score, self.policy = found, policy
        self.state = copy.deepcopy(learner.policy.state_dict())
        return True


class _EvalCallback(BaseCallback):
    """Evaluates the policy every few updates and after the last; ends a phase that no longer improves."""

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
            self._evaluate()
        self._updates += 1

    def _on_training_end(self) -> None:
        self._evaluate()

    def _evaluate(self) -> None:
        earned = self._reward / self._questions if self._questions else None
        self._reward, self._questions = 0.0, 0
        better = self._best.evaluate(self._phase, self.model, earned)  # type: ignore[arg-type]
        self._waited = 0 if better else self._waited + 1


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limits torch to one thread: networks this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


Arrays = dict[str, npt.NDArray[np.float32]]

SPREAD = 1e-2
"""Least standard deviation a feature is divided by: one that hardly varies in training may do so later."""


class Standardised(BaseFeaturesExtractor):
    """Features less their mean, over their standard deviation.

    Args:
        space: Space of the features.
        mean: Mean of each feature, over drafts seen in training.
        scale: Standard deviation of each.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, space: spaces.Box, mean: npt.NDArray[Any], scale: npt.NDArray[Any]) -> None:
        super().__init__(space, space.shape[-1])
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Standardises."""
        return (features - self.mean) / self.scale


class Layer(nn.Module):
    """A layer of a transformer encoder, norm first; the mirror in NumPy is `policies.sequence`."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPSILON), nn.LayerNorm(width, eps=EPSILON)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor, present: torch.Tensor, *, last: bool) -> torch.Tensor:
        """Lets each step look at all that are present.

        Args:
            x: (batch, steps, width).
            present: (batch, steps).
            last: Whether only the last step's row is wanted.
        """
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if last:
            x, query = x[:, -1:], query[:, :, -1:]
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=present[:, None, None, :]
        )
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, -1, width))
        mapped: torch.Tensor = x + self.down(torch.relu(self.up(self.norm2(x))))
        return mapped


class Encoder(BaseFeaturesExtractor):
    """A transformer over the rows of steps; gives the draft's row.

    Args:
        space: Space of the rows, (window, features of a step).
        mean: Mean of each feature, over rows that are present.
        scale: Standard deviation of each.
        width: Width of a row inside.
        heads: Attention heads.
        inner: Width of the feed-forward part.
        layers: How many.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        space: spaces.Box,
        mean: npt.NDArray[Any],
        scale: npt.NDArray[Any],
        *,
        width: int = 32,
        heads: int = 4,
        inner: int = 64,
        layers: int = 2,
    ) -> None:
        super().__init__(space, width)
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))
        self.embed = nn.Linear(space.shape[-1], width)
        self.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Encodes; ``rows`` is (batch, window, features)."""
        present = rows[:, :, SEQUENCE.index("present")] > 0.5
        longest = max(1, int(present.sum(1).max()))
        # Absent rows look at what is present, like all others, and nobody looks at them. An input without any
        # (stable-baselines3 tries one of zeros) has its last row, so that no softmax is over nothing.
        rows, present = rows[:, -longest:], present[:, -longest:].clone()
        present[:, -1] = True
        x = self.embed((rows - self.mean) / self.scale)
        for number, layer in enumerate(self.layers, 1):
            x = layer(x, present, last=number == len(self.layers))
        encoded: torch.Tensor = self.norm(x[:, -1])
        return encoded


def spread_of(inputs: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Returns mean and standard deviation of each feature.

    Args:
        inputs: (drafts, features), or (drafts, window, features): then over rows that are present.
    """
    rows = inputs.reshape(-1, inputs.shape[-1])
    if inputs.ndim == 3:
        rows = rows[rows[:, SEQUENCE.index("present")] > 0.5]
    return rows.mean(0), np.maximum(rows.std(0), SPREAD)


def aggregate_arrays(model: PPO) -> Arrays:
    """Takes the arrays of `trim_graph.policies.learned.aggregate` out of a trained model."""
    policy = model.policy
    linear = [layer for layer in policy.mlp_extractor.policy_net if isinstance(layer, nn.Linear)]
    arrays = {f"{kind}{at}": value for at, layer in enumerate(linear) for kind, value in _weights(layer)}
    head = _one_output(policy.action_net)
    arrays |= {f"w{len(linear)}": head["weight"], f"b{len(linear)}": head["bias"]}
    return arrays | _standard(policy.features_extractor)


def sequence_arrays(model: PPO) -> Arrays:
    """Takes the arrays of `trim_graph.policies.learned.sequence` out of a trained model."""
    encoder = model.policy.features_extractor
    arrays = {name.removeprefix("layers."): _array(value) for name, value in encoder.named_parameters()}
    arrays |= {f"head.{name}": value for name, value in _one_output(model.policy.action_net).items()}
    return arrays | _standard(encoder)


def _weights(layer: nn.Linear) -> list[tuple[str, npt.NDArray[np.float32]]]:
    return [("w", _array(layer.weight)), ("b", _array(layer.bias))]


def _one_output(head: Any) -> Mapping[str, npt.NDArray[np.float32]]:
    """Returns one output for two logits: their difference is the log-odds of the second action."""
    weight, bias = _array(head.weight), _array(head.bias)
    return {"weight": weight[1:] - weight[:1], "bias": bias[1:] - bias[:1]}


def _standard(extractor: Any) -> Arrays:
    return {"mean": _array(extractor.mean), "scale": _array(extractor.scale)}


def _array(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    return np.array(tensor.detach().cpu().numpy(), dtype=np.float32)


def write_curves(trained: Sequence[Trained], folder: Path, name: str) -> list[Path]:
    """Writes ``name.csv``, one row for each evaluation, and ``name.json`` and ``name.png`` of the same.

    Args:
        trained: Any number of trainings.
        folder: Where to.
        name: Name of the files.

    Returns:
        The files.
    """
    files = [folder / f"{name}.{ending}" for ending in ("csv", "json", "png")]
    with files[0].open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["kind", "lambda", "seed", *(column.name for column in fields(EvalPoint))])
        for one in trained:
            writer.writerows([one.kind, one.price, one.seed, *asdict(point).values()] for point in one.curve)
    document = [
        {
            "kind": one.kind,
            "lambda": one.price,
            "seed": one.seed,
            "validation": one.validation._asdict(),
            "curve": [asdict(point) for point in one.curve],
        }
        for one in trained
    ]
    files[1].write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draw_curves(trained, files[2])
    return files


def draw_curves(trained: Sequence[Trained], file: Path) -> None:
    """Draws the reward on the validation questions over the decisions, one plot for each lambda."""
    from matplotlib.figure import Figure

    prices = sorted({one.price for one in trained})
    figure = Figure(figsize=(6, 2.2 * len(prices)), layout="constrained")
    for number, price in enumerate(prices):
        axes = figure.add_subplot(len(prices), 1, number + 1)
        for one in trained:
            if one.price == price:
                steps = [point.steps for point in one.curve]
                line = axes.plot(
                    steps, [point.reward for point in one.curve], label=f"{one.kind}, seed {one.seed}"
                )
                real = next((point.steps for point in one.curve if point.phase == "rollouts"), None)
                if real is not None and one.curve[0].phase == "simulator":
                    axes.axvline(real, color=line[0].get_color(), linestyle=":", linewidth=1)
        axes.set_title(f"lambda {price:g}", fontsize="medium")
        axes.set_ylabel("validation reward")
        axes.legend(fontsize="small", loc="lower right")
    axes.set_xlabel("decisions (dotted: from the simulator to real rollouts)")
    figure.savefig(file, dpi=120)
