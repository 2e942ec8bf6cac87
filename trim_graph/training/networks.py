"""The networks that PPO trains, and how one becomes the arrays of a policy that runs without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from trim_graph.policies.features import SEQUENCE
from trim_graph.policies.sequence import EPSILON

Arrays = dict[str, npt.NDArray[np.float32]]

SPREAD = 1e-2
"""Least standard deviation a feature is divided by: one that hardly varies in training may do so later."""


class Standardised(BaseFeaturesExtractor):
    """Features less their mean, over their standard deviation.

    Args:
        space: Of the features.
        mean: Of each feature, over drafts seen in training.
        scale: Standard deviation of each.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, space: spaces.Box, mean: npt.NDArray[Any], scale: npt.NDArray[Any]) -> None:
        super().__init__(space, space.shape[-1])
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Standardise."""
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
        """Let each step look at all that are present.

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
        space: Of the rows, (window, features of a step).
        mean: Of each feature, over rows that are present.
        scale: Standard deviation of each.
        width: Of a row inside.
        heads: Of the attention.
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
        """Encode; ``rows`` is (batch, window, features)."""
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
    """Return mean and standard deviation of each feature.

    Args:
        inputs: (drafts, features), or (drafts, window, features): then over rows that are present.
    """
    rows = inputs.reshape(-1, inputs.shape[-1])
    if inputs.ndim == 3:
        rows = rows[rows[:, SEQUENCE.index("present")] > 0.5]
    return rows.mean(0), np.maximum(rows.std(0), SPREAD)


def aggregate_arrays(model: PPO) -> Arrays:
    """Take the arrays of `trim_graph.policies.aggregate.aggregate` out of a trained model."""
    policy = model.policy
    linear = [layer for layer in policy.mlp_extractor.policy_net if isinstance(layer, nn.Linear)]
    arrays = {f"{kind}{at}": value for at, layer in enumerate(linear) for kind, value in _weights(layer)}
    head = _one_output(policy.action_net)
    arrays |= {f"w{len(linear)}": head["weight"], f"b{len(linear)}": head["bias"]}
    return arrays | _standard(policy.features_extractor)


def sequence_arrays(model: PPO) -> Arrays:
    """Take the arrays of `trim_graph.policies.sequence.sequence` out of a trained model."""
    encoder = model.policy.features_extractor
    arrays = {name.removeprefix("layers."): _array(value) for name, value in encoder.named_parameters()}
    arrays |= {f"head.{name}": value for name, value in _one_output(model.policy.action_net).items()}
    return arrays | _standard(encoder)


def _weights(layer: nn.Linear) -> list[tuple[str, npt.NDArray[np.float32]]]:
    return [("w", _array(layer.weight)), ("b", _array(layer.bias))]


def _one_output(head: Any) -> Mapping[str, npt.NDArray[np.float32]]:
    """The difference of two logits is the log-odds of the second action."""
    weight, bias = _array(head.weight), _array(head.bias)
    return {"weight": weight[1:] - weight[:1], "bias": bias[1:] - bias[:1]}


def _standard(extractor: Any) -> Arrays:
    return {"mean": _array(extractor.mean), "scale": _array(extractor.scale)}


def _array(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    return np.array(tensor.detach().cpu().numpy(), dtype=np.float32)
