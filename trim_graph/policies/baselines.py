"""Policies to compare with, and one that wraps another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trim_graph.errors import SettingsError

from .base import (
    DECISIONS,
    NEXT_WRITERS,
    Choice,
    Observation,
    Policy,
    as_policy,
    checked,
    remembering,
)


class small_only(Policy):
    """The small model writes everything; nothing is scored."""

    needs_score = False
    decides = False

    def __repr__(self) -> str:
        return "small_only()"


class large_only(Policy):
    """The large model writes everything, in one call."""

    needs_score = False
    decides = False

    def next_writer(self, observation: Observation) -> str:
        """Name the large model."""
        return "large_to_end"

    def __repr__(self) -> str:
        return "large_only()"


class random_rate(Policy):
    """Regenerate each draft with probability ``rate``, without looking at it.

    Args:
        rate: In [0, 1].

    Raises:
        SettingsError: ``rate`` is out of range.
    """

    needs_score = False

    def __init__(self, rate: float) -> None:
        if not 0 <= rate <= 1:
            raise SettingsError(f"random_rate is {rate}: choose a probability in [0, 1]")
        self.rate = rate

    def decide(self, observation: Observation) -> str:
        """Draw."""
        return "regenerate" if observation.random().random() < self.rate else "accept"

    def __repr__(self) -> str:
        return f"random_rate({self.rate})"


class stay_on_large(Policy):
    """After a regeneration the large model also writes the next ``k`` steps.

    Args:
        policy: Decides on the drafts of the small model.
        k: How many steps; 0 changes nothing.

    Raises:
        SettingsError: ``k`` is negative.
    """

    def __init__(self, policy: Policy | Callable[[Observation], Any], k: int) -> None:
        if k < 0:
            raise SettingsError(f"stay_on_large for k={k} steps: choose 0 or more")
        self.policy, self.k = as_policy(policy), k
        self.needs_score, self.decides = self.policy.needs_score, self.policy.decides

    @property
    def small_follows(self) -> bool:
        """As the wrapped policy: the large model stays behind its own steps only."""
        return self.policy.small_follows

    def next_writer(self, observation: Observation) -> Choice:
        """Name the large model while steps are left to stay; else ask the wrapped policy."""
        left, inner = observation.memory or (0, None)
        if left > 0:
            return Choice("large", [left - 1, inner])
        answer = self.policy.next_writer(remembering(observation, inner))
        choice = checked(answer, NEXT_WRITERS, self.policy, inner)
        return Choice(choice.value, [0, choice.memory])

    def decide(self, observation: Observation) -> Choice:
        """Ask the wrapped policy, and remember a regeneration."""
        _, inner = observation.memory or (0, None)
        choice = checked(self.policy.decide(remembering(observation, inner)), DECISIONS, self.policy, inner)
        stay = self.k if choice.value == "regenerate" else 0
        return Choice(choice.value, [stay, choice.memory])

    def __repr__(self) -> str:
        return f"stay_on_large({self.policy!r}, k={self.k})"
