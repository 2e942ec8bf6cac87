"""The example models with as many parameters as those of the paper, and the same answers.

Width is zeros around what was learned, depth is layers that add nothing to what passes through. They cost
what models of their size cost, and write what the small ones write, but for rounding. Only the vocabulary
stays: an embedding of 150 000 tokens would be 8 to 16 % more.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from trim_graph.examples.arithmetic import LARGE, PRM, SMALL

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
    "small": (SMALL, Shape(1536, 28, 12, 2, 8960)),
    "large": (LARGE, Shape(3584, 28, 28, 4, 18944)),
    "prm": (PRM, Shape(3584, 28, 28, 7, 18944)),
}


def widen_all(target: Path, *, device: str = "cpu") -> dict[str, Path]:
    """Write the three models in bfloat16 to a folder.

    Args:
        target: Gets a folder for each.
        device: Where the weights are made.
    """
    return {
        name: widen(source, target / name, shape, device=device) for name, (source, shape) in SHAPES.items()
    }


def widen(
    source: Path,
    target: Path,
    shape: Shape,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    noise: float = NOISE,
) -> Path:
    """Write one model in another shape.

    Args:
        source: Folder of a Qwen2 model, with one key and value head for each head.
        target: Gets the same files, with larger weights.
        shape: At least as large in all respects; heads of a multiple of the source's dimensions.
        device: Where the weights are made.
        dtype: Of the weights.
        noise: Standard deviation of weights that nothing comes of.
    """
    config = json.loads((source / "config.json").read_text("utf-8"))
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, target)
    torch.manual_seed(0)
    old = load_file(source / "model.safetensors", device=device)
    wider = _Wider(config, shape, old, noise)
    weights = {name: value.to(dtype).cpu().contiguous() for name, value in wider.weights()}
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_text(json.dumps(wider.config(dtype), indent=1), "utf-8")
    return target


class _Wider:
    def __init__(
        self, config: dict[str, Any], shape: Shape, old: dict[str, torch.Tensor], noise: float
    ) -> None:
        self._config, self._shape, self._old, self._noise = config, shape, old, noise
        self._hidden, self._heads = config["hidden_size"], config["num_attention_heads"]
        self._dim = self._hidden // self._heads
        if HEAD % self._dim or self._heads > shape.kv_heads or config["num_key_value_heads"] != self._heads:
            raise ValueError(f"heads of {config} do not fit into {shape}")
        # A dimension and the one half a head further turn together, at a speed that falls with their number.
        half, step = self._dim // 2, HEAD // self._dim
        first = torch.arange(half) * step
        inside = torch.cat([first, first + HEAD // 2])
        group = shape.heads // shape.kv_heads
        self._q = torch.cat([inside + HEAD * group * head for head in range(self._heads)])
        self._kv = torch.cat([inside + HEAD * head for head in range(self._heads)])

    def config(self, dtype: torch.dtype) -> dict[str, Any]:
        """Return that of the new model."""
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

    def weights(self) -> Any:
        """Yield the new weights by their names."""
        for name, value in self._old.items():
            if not name.startswith("model.layers."):
                yield name, self._outer(name, value)
        for layer in range(self._shape.layers):
            yield from self._layer(layer)

    def _outer(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """What is not in a layer."""
        if name == "model.norm.weight":
            return self._norm(value)
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            return self._placed(value, len(value), self._shape.hidden)
        if name == "score.0.weight":  # a reward model's head is as wide as the model
            return self._placed(value, self._shape.hidden, self._shape.hidden)
        if name == "score.2.weight":
            return self._placed(value, len(value), self._shape.hidden)
        if name == "score.0.bias":
            return self._placed(value[:, None], self._shape.hidden, 1)[:, 0]
        return value

    def _layer(self, layer: int) -> Any:
        shape, at = self._shape, f"model.layers.{layer}."
        known = layer < self._config["num_hidden_layers"]
        hidden, q, kv = shape.hidden, HEAD * shape.heads, HEAD * shape.kv_heads
        for name in ("input_layernorm", "post_attention_layernorm"):
            key = f"{at}{name}.weight"
            yield key, self._norm(self._old[key]) if known else torch.ones(hidden)
        sizes = {
            "self_attn.q_proj": (q, hidden, self._q, None, (HEAD / self._dim) ** 0.5),
            "self_attn.k_proj": (kv, hidden, self._kv, None, 1.0),
            "self_attn.v_proj": (kv, hidden, self._kv, None, 1.0),
            "self_attn.o_proj": (hidden, q, None, self._q, 1.0),
            "mlp.gate_proj": (shape.intermediate, hidden, None, None, 1.0),
            "mlp.up_proj": (shape.intermediate, hidden, None, None, 1.0),
            "mlp.down_proj": (hidden, shape.intermediate, None, None, 1.0),
        }
        for name, (out, inner, rows, columns, scale) in sizes.items():
            adds = name.endswith(("o_proj", "down_proj"))
            for kind in ("weight", "bias"):
                old = self._old.get(f"{at}{name}.{kind}") if known else None
                if old is not None and kind == "weight":
                    yield at + name + ".weight", self._placed(old * scale, out, inner, rows, columns)
                elif old is not None:
                    yield at + name + ".bias", self._placed(old[:, None] * scale, out, 1, rows)[:, 0]
                elif kind == "weight":
                    device = self._old["model.norm.weight"].device
                    noise = 0.0 if adds else self._noise
                    yield at + name + ".weight", noise * torch.randn(out, inner, device=device)
                elif name.endswith(("q_proj", "k_proj", "v_proj")):
                    yield at + name + ".bias", torch.zeros(out)

    def _norm(self, weight: torch.Tensor) -> torch.Tensor:
        """Make up for the new dimensions, zeros, that the mean square is taken over too."""
        new = torch.ones(self._shape.hidden, device=weight.device)
        new[: len(weight)] = weight * (len(weight) / self._shape.hidden) ** 0.5
        return new

    def _placed(
        self,
        old: torch.Tensor,
        rows: int,
        columns: int,
        at_rows: torch.Tensor | None = None,
        at_columns: torch.Tensor | None = None,
    ) -> torch.Tensor:
        new = torch.zeros(rows, columns, device=old.device)
        r = torch.arange(len(old)) if at_rows is None else at_rows
        c = torch.arange(old.shape[1]) if at_columns is None else at_columns
        new[r.to(old.device)[:, None], c.to(old.device)[None, :]] = old
        return new
