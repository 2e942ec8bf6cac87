"""Regenerate a step whose score is below a threshold (TRIM-Thr, arXiv 2601.10245, section 4.1)."""

from __future__ import annotations

from trim_graph.errors import SettingsError

from .base import Observation, Policy


class threshold(Policy):
    """Regenerate the draft if its score is below ``t``.

    Args:
        t: In [0, 1]. At 0 nothing is regenerated; above every score, everything is.

    Raises:
        SettingsError: ``t`` is out of range.
    """

    def __init__(self, t: float) -> None:
        if not 0 <= t <= 1:
            raise SettingsError(f"threshold is {t}: scores are probabilities, choose a value in [0, 1]")
        self.t = t

    def decide(self, observation: Observation) -> str:
        """Compare the draft's score."""
        score = observation.score
        return "accept" if score is None or score >= self.t else "regenerate"

    def __repr__(self) -> str:
        return f"threshold({self.t})"
