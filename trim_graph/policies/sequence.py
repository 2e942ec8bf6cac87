"""A learned policy on the whole sequence of steps: a small transformer (TRIM-Seq, arXiv 2601.10245)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from .base import Observation
from .features import SEQUENCE, sequence_features
from .learned import LearnedPolicy

if TYPE_CHECKING:
    import numpy as np

EPSILON = 1e-5
"""Added to the variance by torch's LayerNorm."""


class sequence(LearnedPolicy):
    """A transformer encoder on the rows of `sequence_features`; the draft's row is read out.

    Layer norm before attention and before the feed-forward part (ReLU), no positions but the feature
    ``index``. Arrays: ``mean``, ``scale``; each with ``.weight`` and ``.bias``: ``embed``, ``norm``, for each
    layer ``l`` ``l.norm1``, ``l.qkv``, ``l.out``, ``l.norm2``, ``l.up``, ``l.down``, and ``head`` with one
    output, the log-odds of regenerating. Trained by `trim_graph.training.ppo`.

    Args (beside those of `LearnedPolicy`):
        heads: Of the attention.
        window: Most steps it looks at, the draft included.
    """

    type: ClassVar[str] = "sequence"

    def _check(self) -> None:
        heads, window = self.parameters["heads"], self.parameters["window"]
        for name, value in (("heads", heads), ("window", window)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a whole number of 1 or more")
        if unknown := set(self.parameters) - {"heads", "window"}:
            raise ValueError(f"unknown parameters {', '.join(sorted(unknown))}")
        self._shape("mean", len(SEQUENCE))
        self._shape("scale", len(SEQUENCE))
        width, _ = self._linear("embed", None, len(SEQUENCE))
        if width % heads:
            raise ValueError(f"the width {width} does not divide into {heads} heads")
        self._depth = sum(name.endswith(".qkv.weight") for name in self.arrays)
        for layer in range(self._depth):
            self._norm(f"{layer}.norm1", width)
            self._linear(f"{layer}.qkv", 3 * width, width)
            self._linear(f"{layer}.out", width, width)
            self._norm(f"{layer}.norm2", width)
            inner, _ = self._linear(f"{layer}.up", None, width)
            self._linear(f"{layer}.down", width, inner)
        self._norm("norm", width)
        self._linear("head", 1, width)

    def _linear(self, name: str, outputs: int | None, inputs: int) -> tuple[int, ...]:
        shape = self._shape(f"{name}.weight", outputs, inputs)
        self._shape(f"{name}.bias", shape[0])
        return shape

    def _norm(self, name: str, width: int) -> None:
        self._shape(f"{name}.weight", width)
        self._shape(f"{name}.bias", width)

    def logit(self, observation: Observation) -> float:
        """Return the log-odds of regenerating."""
        import numpy as np

        rows = np.array(sequence_features(observation, self.parameters["window"]), dtype=np.float32)
        x = self._apply("embed", (rows - self.arrays["mean"]) / self.arrays["scale"])
        for layer in range(self._depth):
            # Of the last layer only the draft's row is read.
            asking = slice(-1, None) if layer == self._depth - 1 else slice(None)
            x = x[asking] + self._attend(layer, self._normed(f"{layer}.norm1", x), asking)
            inner = self._apply(f"{layer}.up", self._normed(f"{layer}.norm2", x))
            x = x + self._apply(f"{layer}.down", np.maximum(inner, 0))
        return float(self._apply("head", self._normed("norm", x[-1:]))[0, 0])

    def _attend(self, layer: int, x: Any, asking: slice) -> np.ndarray:
        import numpy as np

        heads, (length, width) = self.parameters["heads"], x.shape
        # (steps, 3, heads, width of a head) -> 3 times (heads, steps, width of a head)
        qkv = self._apply(f"{layer}.qkv", x).reshape(length, 3, heads, width // heads)
        query, key, value = qkv.transpose(1, 2, 0, 3)
        weights = query[:, asking] @ key.transpose(0, 2, 1) / np.float32((width // heads) ** 0.5)
        weights = np.exp(weights - weights.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return self._apply(f"{layer}.out", (weights @ value).transpose(1, 0, 2).reshape(-1, width))

    def _apply(self, name: str, x: Any) -> np.ndarray:
        result: np.ndarray = x @ self.arrays[f"{name}.weight"].T + self.arrays[f"{name}.bias"]
        return result

    def _normed(self, name: str, x: Any) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = (centred * centred).mean(axis=-1, keepdims=True)
        normed: np.ndarray = centred / (spread + EPSILON) ** 0.5
        return normed * self.arrays[f"{name}.weight"] + self.arrays[f"{name}.bias"]
