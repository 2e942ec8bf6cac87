"""The example models with as many parameters as those of the paper, and the same answers.

Width is zeros around what was learned, depth is layers that add nothing to what passes through. They cost
what models of their size cost, and write what the small ones write, but for rounding. Only the vocabulary
stays: an embedding of 150 000 tokens would be 8 to 16 % more.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.vllm.conftest import EXAMPLES

HEAD = 128
NOISE = 0.02
"""Standard deviation of weights that nothing comes of: on zeros a GPU runs faster than it does in use."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a Qwen2 model whose heads have 128 dimensions."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int


SHAPES = {
    # Qwen2.5-1.5B, Qwen2.5-7B, and the latter with a key for each of the PRM's own heads.
    "small": Shape(1536, 28, 12, 2, 8960),
    "large": Shape(3584, 28, 28, 4, 18944),
    "prm": Shape(3584, 28, 28, 7, 18944),
}


def widen_all(target: Path, *, device: str = "cpu") -> dict[str, Path]:
    """Writes the three models in bfloat16 to a folder.

    Args:
        target: Gets a folder for each.
        device: Where the weights are made.
    """
    return {
        name: widen(EXAMPLES[name], folder, SHAPES[name], device=device)
        for name, folder in folders(target).items()
    }


def folders(target: Path) -> dict[str, Path]:
    """Where `widen_all` puts the models."""
    return {name: target / name for name in SHAPES}


def widen(
    source: Path,
    target: Path,
    shape: Shape,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """Writes one model in another shape.

    Args:
        source: Folder of a Qwen2 model, with one key and value head for each head.
        target: Gets the same files, with larger weights.
        shape: At least as large in all respects; heads of a multiple of the source's dimensions.
        device: Where the weights are made.
        dtype: Of the weights.

    Raises:
        ValueError: The model's heads do not fit.
    """
    config = json.loads((source / "config.json").read_text("utf-8"))
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, target)
    torch.manual_seed(0)
    stored = load_file(source / "model.safetensors", device=device)
    wider = _Wider(config, shape, {name: weight.float() for name, weight in stored.items()})
    weights = {name: value.to(dtype).cpu() for name, value in wider.weights()}
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_text(json.dumps(wider.config(dtype), indent=1), "utf-8")
    return target


class _Wider:
    def __init__(self, config: dict[str, Any], shape: Shape, old: dict[str, torch.Tensor]) -> None:
        self._config, self._shape, self._old = config, shape, old
        self._hidden, heads = config["hidden_size"], config["num_attention_heads"]
        dim = self._hidden // heads
        if HEAD % dim or heads > shape.kv_heads or config["num_key_value_heads"] != heads:
            raise ValueError(f"heads of {config} do not fit into {shape}")
        self._stretch = HEAD // dim
        # A dimension and the one half a head further turn together, at a speed that falls with their number.
        first = torch.arange(dim // 2) * self._stretch
        inside = torch.cat([first, first + HEAD // 2])
        group = shape.heads // shape.kv_heads
        q_at = torch.cat([inside + HEAD * group * head for head in range(heads)])
        kv_at = torch.cat([inside + HEAD * head for head in range(heads)])
        hidden, q, kv = shape.hidden, HEAD * shape.heads, HEAD * shape.kv_heads
        # The weights of a layer: their size, and where old rows and columns go if not to the front.
        self._layer: dict[str, tuple[tuple[int, ...], torch.Tensor | None, torch.Tensor | None]] = {
            "input_layernorm.weight": ((hidden,), None, None),
            "post_attention_layernorm.weight": ((hidden,), None, None),
            "self_attn.q_proj.weight": ((q, hidden), q_at, None),
            "self_attn.q_proj.bias": ((q,), q_at, None),
            "self_attn.k_proj.weight": ((kv, hidden), kv_at, None),
            "self_attn.k_proj.bias": ((kv,), kv_at, None),
            "self_attn.v_proj.weight": ((kv, hidden), kv_at, None),
            "self_attn.v_proj.bias": ((kv,), kv_at, None),
            "self_attn.o_proj.weight": ((hidden, q), None, q_at),
            "mlp.gate_proj.weight": ((shape.intermediate, hidden), None, None),
            "mlp.up_proj.weight": ((shape.intermediate, hidden), None, None),
            "mlp.down_proj.weight": ((hidden, shape.intermediate), None, None),
        }

    def config(self, dtype: torch.dtype) -> dict[str, Any]:
        """Returns that of the new model."""
        shape = self._shape
        return self._config | {
            "hidden_size": shape.hidden,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "intermediate_size": shape.intermediate,
            "layer_types": ["full_attention"] * shape.layers,
            "max_window_layers": shape.layers,
            "rms_norm_eps": self._config["rms_norm_eps"] * self._hidden / shape.hidden,
            "dtype": str(dtype).removeprefix("torch."),
        }

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the new weights by their names."""
        for name, old in self._old.items():
            if not name.startswith("model.layers."):
                size = tuple(self._shape.hidden if n == self._hidden else n for n in old.shape)
                yield name, self._grown(name, old, size)
        for layer in range(self._shape.layers):
            for part, (size, rows, columns) in self._layer.items():
                name = f"model.layers.{layer}.{part}"
                known = self._old.get(name)
                yield (
                    name,
                    self._idle(name, size)
                    if known is None
                    else self._grown(name, known, size, rows, columns),
                )

    def _grown(
        self,
        name: str,
        old: torch.Tensor,
        size: tuple[int, ...],
        rows: torch.Tensor | None = None,
        columns: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Puts what was learned into zeros."""
        if name.endswith("norm.weight"):
            # The mean square that it divides by is taken over the new zeros too.
            old = old * (self._hidden / self._shape.hidden) ** 0.5
        elif ".q_proj." in name:  # attention divides by the root of a head's dimensions
            old = old * self._stretch**0.5
        places = [
            torch.arange(n) if at is None else at for n, at in zip(old.shape, (rows, columns), strict=False)
        ]
        new = torch.zeros(size, device=old.device)
        new[torch.meshgrid(*(place.to(old.device) for place in places), indexing="ij")] = old
        return new

    def _idle(self, name: str, size: tuple[int, ...]) -> torch.Tensor:
        """A weight of a layer that adds nothing."""
        device = self._old["model.norm.weight"].device
        if name.endswith("norm.weight"):
            return torch.ones(size, device=device)
        if name.endswith(("bias", "o_proj.weight", "down_proj.weight")):
            return torch.zeros(size, device=device)
        return NOISE * torch.randn(size, device=device)
