"""A learned policy on five features of the run so far (TRIM-Agg, arXiv 2601.10245)."""

from __future__ import annotations

from typing import ClassVar

from .base import Observation
from .features import AGGREGATE, aggregate_features
from .learned import LearnedPolicy


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
        """Return the log-odds of regenerating."""
        import numpy as np

        x = np.array(aggregate_features(observation), dtype=np.float32)
        x = (x - self.arrays["mean"]) / self.arrays["scale"]
        for weight, bias in self._layers[:-1]:
            x = np.tanh(weight @ x + bias)
        weight, bias = self._layers[-1]
        return float((weight @ x + bias)[0])
