"""Let the entropy of the small model's first token say who writes a step; no draft is thrown away for it.

Source: GlimpRouter, arXiv 2601.05110: the step goes to the large model where the entropy of its initial token
under the small one exceeds a threshold.
"""

from __future__ import annotations

import math

from trim_graph.errors import SettingsError

from .base import Observation, Policy


class entropy_probe(Policy):
    """Before each step, ask the small model for one token; the large one writes the step if it is unsure.

    The other steps are the small model's and stay as they are, unless the policy is combined with one that
    looks at drafts: ``entropy_probe(1.0) | threshold(0.5)``.

    Args:
        limit: Entropy in nats, 0 or more. Above it the large model writes.

    Raises:
        SettingsError: ``limit`` is negative or not finite.
    """

    needs_score = False
    decides = False

    def __init__(self, limit: float) -> None:
        if not 0 <= limit < math.inf:
            raise SettingsError(f"entropy_probe is {limit}: choose an entropy in nats, 0 or more")
        self.limit = limit

    def next_writer(self, observation: Observation) -> str:
        """Ask for the probe, then compare its entropy."""
        if observation.probe_entropy is None:
            return "probe"
        return "large" if observation.probe_entropy > self.limit else "small"

    def with_limit(self, limit: float) -> entropy_probe:
        """Return the policy of this kind with another limit."""
        return entropy_probe(limit)

    def __repr__(self) -> str:
        return f"entropy_probe({self.limit})"
