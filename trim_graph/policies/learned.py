"""What the learned policies have in common: a network's probability, and the limit above which it counts.

The networks are evaluated in NumPy, so that a run needs neither torch nor what trained them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from trim_graph.errors import SettingsError

from .base import Observation, Policy
from .files import PolicyContents

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray]


class LearnedPolicy(Policy):
    """Regenerate a draft where the network's probability of doing so is at least ``limit``.

    Args:
        arrays: The network's weights by name.
        limit: In [0, 1]; 0.5 takes the likelier decision. Other values make a family of policies, from
            generous to thrifty, of one network.
        made: How it was trained, for the file.
        **parameters: What else the network needs.

    Raises:
        SettingsError: ``limit`` is out of range.
        ValueError: An array is missing, does not fit the others, or holds what is no number.
    """

    type: ClassVar[str]

    def __init__(
        self, arrays: Arrays, *, limit: float = 0.5, made: Mapping[str, Any] | None = None, **parameters: Any
    ) -> None:
        import numpy as np

        if not 0 <= limit <= 1:
            raise SettingsError(f"limit is {limit}: choose a probability in [0, 1]")
        self.limit, self.made, self.parameters = limit, dict(made or {}), parameters
        self.arrays = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}
        for name, array in self.arrays.items():
            if not np.isfinite(array).all():
                raise ValueError(f"array {name} holds NaN or infinity")
        self._check()

    def _check(self) -> None:
        """Raise ValueError where the arrays make no network of this type."""
        raise NotImplementedError

    def logit(self, observation: Observation) -> float:
        """Return the log-odds of regenerating."""
        raise NotImplementedError

    def probability(self, observation: Observation) -> float:
        """Return the network's probability of regenerating the draft."""
        return 0.5 * (1 + math.tanh(0.5 * self.logit(observation)))

    def decide(self, observation: Observation) -> str:
        """Compare the probability with the limit."""
        return "regenerate" if self.probability(observation) >= self.limit else "accept"

    def at(self, limit: float) -> Self:
        """Return the same network with another limit."""
        return type(self)(self.arrays, limit=limit, made=self.made, **self.parameters)

    def contents(self) -> PolicyContents:
        """Return what a file holds of it."""
        return PolicyContents(self.type, {"limit": self.limit, **self.parameters}, self.arrays, self.made)

    @classmethod
    def from_contents(cls, contents: PolicyContents) -> Self:
        """Make the policy that a file holds."""
        return cls(contents.arrays, made=contents.made, **contents.parameters)

    def __repr__(self) -> str:
        return f"{self.type}(limit={self.limit})"

    def _shape(self, name: str, *shape: int | None) -> tuple[int, ...]:
        """Check the shape of an array; None is any length."""
        if name not in self.arrays:
            raise ValueError(f"array {name} is missing")
        seen = self.arrays[name].shape
        if len(seen) != len(shape) or any(
            want not in (None, got) for want, got in zip(shape, seen, strict=True)
        ):
            raise ValueError(f"array {name} has the shape {seen}; expected {shape}")
        return seen
