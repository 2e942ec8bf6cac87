"""Policies in which a network decides, and the features of an `Observation` that it reads.

`aggregate` reads five features of the run so far (TRIM-Agg), `sequence` the whole sequence of steps with a
small transformer (TRIM-Seq, arXiv 2601.10245). One trained network gives a whole curve of accuracy over
spend: its threshold is moved, as in RoRo (arXiv 2605.29310), and nothing is trained again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from trim_graph.errors import SettingsError

from .base import Observation, Policy
from .files import PolicyContents

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray]


class LearnedPolicy(Policy):
    """Regenerate a draft where the network's probability of doing so is at least ``threshold``.

    Args:
        arrays: The network's weights by name.
        threshold: In [0, 1]; 0.5 takes the likelier decision. A lower one spends more: at 0 every draft is
            regenerated.
        made: How it was trained, for the file.
        **parameters: What else the network needs.

    Raises:
        SettingsError: ``threshold`` is out of range.
        ValueError: An array is missing, does not fit the others, or holds what is no number.
    """

    type: ClassVar[str]

    def __init__(
        self,
        arrays: Arrays,
        *,
        threshold: float = 0.5,
        made: Mapping[str, Any] | None = None,
        **parameters: Any,
    ) -> None:
        import numpy as np

        if not 0 <= threshold <= 1:
            raise SettingsError(f"{self.type}: threshold is {threshold}: choose a probability in [0, 1]")
        self.threshold, self.made, self.parameters = threshold, dict(made or {}), parameters
        self.arrays = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}
        for name, array in self.arrays.items():
            if not np.isfinite(array).all():
                raise ValueError(f"array {name} holds NaN or infinity")
        self._check()

    def _check(self) -> None:
        """Raises ValueError where the arrays make no network of this type."""
        raise NotImplementedError

    def logit(self, observation: Observation) -> float:
        """Returns the log-odds of regenerating."""
        raise NotImplementedError

    def probability(self, observation: Observation) -> float:
        """Returns the network's probability of regenerating the draft."""
        return 0.5 * (1 + math.tanh(0.5 * self.logit(observation)))

    def decide(self, observation: Observation) -> str:
        """Compares the probability with the threshold."""
        return "regenerate" if self.probability(observation) >= self.threshold else "accept"

    def at(self, threshold: float) -> Self:
        """Returns the same network with another threshold.

        Raises:
            SettingsError: ``threshold`` is out of range.
        """
        return type(self)(self.arrays, threshold=threshold, made=self.made, **self.parameters)

    def contents(self) -> PolicyContents:
        """Returns what a file holds of it."""
        return PolicyContents(
            self.type, {"threshold": self.threshold, **self.parameters}, self.arrays, self.made
        )

    @classmethod
    def from_contents(cls, contents: PolicyContents) -> Self:
        """Makes the policy from the contents of a file."""
        return cls(contents.arrays, made=contents.made, **contents.parameters)

    def __repr__(self) -> str:
        return f"{self.type}(threshold={self.threshold})"

    def _shape(self, name: str, *shape: int | None) -> tuple[int, ...]:
        """Checks the shape of an array; None is any length."""
        if name not in self.arrays:
            raise ValueError(f"array {name} is missing")
        seen = self.arrays[name].shape
        if len(seen) != len(shape) or any(
            want not in (None, got) for want, got in zip(shape, seen, strict=True)
        ):
            raise ValueError(f"array {name} has the shape {seen}; expected {shape}")
        return seen


UNSCORED = 1.0
"""Value of a score that is missing."""
TOKENS = 300
"""Tokens of a step that count as 1."""

AGGREGATE = ("min_earlier", "product_earlier", "score", "tokens", "index")
"""Names of the aggregate features, in order."""
SEQUENCE = ("present", "draft", "large", "scored", "score", "tokens", "index")
"""Names of the features of one step, in order; ``present`` is 1 and distinguishes a step from padding."""


def aggregate_features(observation: Observation) -> list[float]:
    """Returns the aggregate features of a draft and the steps before it."""
    earlier = [UNSCORED if score is None else score for score in observation.scores]
    return [
        min(earlier, default=UNSCORED),
        math.prod(earlier),
        UNSCORED if observation.score is None else observation.score,
        observation.draft_tokens / TOKENS,
        observation.index / observation.max_steps,
    ]


def sequence_features(observation: Observation, window: int) -> list[list[float]]:
    """Returns one row for each of the last steps; the draft's is the last row.

    Args:
        observation: The observation of a draft.
        window: Most rows. Steps further back are left out.
    """
    first = max(0, len(observation.scores) - window + 1)
    rows = [
        _row(index, observation.max_steps, score, tokens, large=writer == "large")
        for index, (score, tokens, writer) in enumerate(
            zip(observation.scores, observation.tokens, observation.writers, strict=True)
        )
        if index >= first
    ]
    draft = _row(observation.index, observation.max_steps, observation.score, observation.draft_tokens)
    draft[SEQUENCE.index("draft")] = 1.0
    return [*rows, draft]


def padded(rows: Sequence[Sequence[float]], window: int) -> list[list[float]]:
    """Returns ``window`` rows: zeros before the given ones, so that the draft's stays the last."""
    return [[0.0] * len(SEQUENCE) for _ in range(window - len(rows))] + [list(row) for row in rows]


def _row(index: int, max_steps: int, score: float | None, tokens: int, *, large: bool = False) -> list[float]:
    return [
        1.0,
        0.0,
        float(large),
        float(score is not None),
        UNSCORED if score is None else score,
        tokens / TOKENS,
        index / max_steps,
    ]


class aggregate(LearnedPolicy):
    """A multi-layer perceptron (tanh) on `AGGREGATE`.

    Arrays: ``mean`` and ``scale`` of the features, then ``w0``, ``b0``, ``w1``, ... with one output, the
    log-odds of regenerating. Trained by `trim_graph.training.ppo`.
    """

    type: ClassVar[str] = "aggregate"

    def _check(self) -> None:
        width = len(AGGREGATE)
        self._shape("mean", width)
        self._shape("scale", width)
        depth = sum(name.startswith("w") for name in self.arrays)
        for layer in range(depth):
            outputs, _ = self._shape(f"w{layer}", None, width)
            self._shape(f"b{layer}", outputs)
            width = outputs
        if depth == 0 or width != 1:
            raise ValueError(f"the network has {depth} layers and {width} outputs; expected one output")
        self._layers = [(self.arrays[f"w{layer}"], self.arrays[f"b{layer}"]) for layer in range(depth)]

    def logit(self, observation: Observation) -> float:
        """Returns the log-odds of regenerating."""
        import numpy as np

        x = np.array(aggregate_features(observation), dtype=np.float32)
        x = (x - self.arrays["mean"]) / self.arrays["scale"]
        for weight, bias in self._layers[:-1]:
            x = np.tanh(weight @ x + bias)
        weight, bias = self._layers[-1]
        return float((weight @ x + bias)[0])


EPSILON = 1e-5
"""Added to the variance by torch's LayerNorm."""


class sequence(LearnedPolicy):
    """A transformer encoder on the rows of `sequence_features`; the draft's row is read out.

    Layer norm before attention and before the feed-forward part (ReLU), no positions but the feature
    ``index``. Arrays: ``mean``, ``scale``; each with ``.weight`` and ``.bias``: ``embed``, ``norm``, for each
    layer ``l`` ``l.norm1``, ``l.qkv``, ``l.out``, ``l.norm2``, ``l.up``, ``l.down``, and ``head`` with one
    output, the log-odds of regenerating. Trained by `trim_graph.training.ppo`.

    Args (beside those of `LearnedPolicy`):
        heads: Attention heads.
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
        """Returns the log-odds of regenerating."""
        import numpy as np

        rows = np.array(sequence_features(observation, self.parameters["window"]), dtype=np.float32)
        x = self._apply("embed", (rows - self.arrays["mean"]) / self.arrays["scale"])
        for layer in range(self._depth):
            # Of the last layer only the draft's row is read.
            queries = slice(-1, None) if layer == self._depth - 1 else slice(None)
            x = x[queries] + self._attend(layer, self._normed(f"{layer}.norm1", x), queries)
            inner = self._apply(f"{layer}.up", self._normed(f"{layer}.norm2", x))
            x = x + self._apply(f"{layer}.down", np.maximum(inner, 0))
        return float(self._apply("head", self._normed("norm", x[-1:]))[0, 0])

    def _attend(self, layer: int, x: Any, queries: slice) -> np.ndarray:
        import numpy as np

        heads, (length, width) = self.parameters["heads"], x.shape
        # (steps, 3, heads, width of a head) -> 3 times (heads, steps, width of a head)
        qkv = self._apply(f"{layer}.qkv", x).reshape(length, 3, heads, width // heads)
        query, key, value = qkv.transpose(1, 2, 0, 3)
        weights = query[:, queries] @ key.transpose(0, 2, 1) / np.float32((width // heads) ** 0.5)
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
