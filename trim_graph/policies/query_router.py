"""Send a whole question to one of the models: a classifier says which questions need the large one.

The baseline that step-level routing is measured against, in the manner of RouteLLM (arXiv 2406.18665) with a
linear classifier. `trim_graph.training.query_router` trains it. Needs NumPy (extra ``policies``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from trim_graph.errors import SettingsError

from .base import Choice, Observation, Policy
from .files import PolicyContents
from .text_features import SIZE, VERSION, count_features, weighted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class query_router(Policy):
    """The large model answers the question if that is likely to help, else the small one; nothing is scored.

    Args:
        weights: One per feature (`trim_graph.policies.text_features`).
        idf: The features' inverse document frequencies, as in training.
        bias: Of the classifier.
        limit: In [0, 1]. Above this probability the large model answers: it sets the share of questions.
        made: How it was trained, for the file.

    Raises:
        SettingsError: ``limit`` is out of range.
        ValueError: The numbers are no classifier over these features.
    """

    needs_score = False
    decides = False

    def __init__(
        self,
        weights: NDArray[np.float64],
        idf: NDArray[np.float64],
        bias: float,
        *,
        limit: float = 0.5,
        made: dict[str, Any] | None = None,
    ) -> None:
        import numpy as np

        if not 0 <= limit <= 1:
            raise SettingsError(f"query_router's limit is {limit}: choose a probability in [0, 1]")
        for name, array in (("weights", weights), ("idf", idf)):
            if array.shape != (SIZE,) or array.dtype != np.float64 or not np.isfinite(array).all():
                raise ValueError(f"{name} must be {SIZE} finite numbers of float64")
        if not math.isfinite(bias):
            raise ValueError(f"bias is {bias}")
        self.weights, self.idf, self.bias, self.limit = weights, idf, bias, limit
        self.made = made or {}

    def probability(self, question: str) -> float:
        """Return how likely the large model is right where the small one is wrong."""
        import numpy as np

        counted = count_features(question)
        logit = float(np.dot(weighted(counted, self.idf), self.weights[counted.places])) + self.bias
        # exp() of a large number overflows.
        return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))

    def next_writer(self, observation: Observation) -> Choice:
        """Compare the question's probability, which is computed once a run and remembered."""
        known = observation.memory
        probability = known if isinstance(known, float) else self.probability(observation.question)
        return Choice("large_to_end" if probability > self.limit else "small", probability)

    @property
    def small_follows(self) -> bool:
        """True: a question that the small model has begun is its own."""
        return True

    def with_limit(self, limit: float) -> query_router:
        """Return the same classifier with another limit: another share of questions for the large model."""
        return query_router(self.weights, self.idf, self.bias, limit=limit, made=self.made)

    def contents(self) -> PolicyContents:
        """Return what makes this policy again."""
        parameters = {"limit": self.limit, "bias": self.bias, "features": VERSION}
        return PolicyContents(
            "query_router", parameters, {"weights": self.weights, "idf": self.idf}, made=self.made
        )

    @classmethod
    def from_contents(cls, contents: PolicyContents) -> query_router:
        """Make it of what a file holds.

        Raises:
            ValueError: It is not what `contents` returned.
        """
        given, arrays = contents.parameters, contents.arrays
        if given["features"] != VERSION:
            raise ValueError(f"its features are of version {given['features']!r}; known is {VERSION}")
        bias, limit = float(given["bias"]), float(given["limit"])
        return cls(arrays["weights"], arrays["idf"], bias, limit=limit, made=contents.made)

    def __repr__(self) -> str:
        return f"query_router(limit={self.limit})"
