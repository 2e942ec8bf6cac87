"""Regenerate by what kind of step a draft is, as a regular expression tells, without a scorer.

The baseline that says whether a scorer earns its keep: a judge that only knew which kinds of steps are hard
would do no better. `trim_graph.evaluation.by_kind` fits the rates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from trim_graph.errors import SettingsError

from .base import Observation, Policy


class by_pattern(Policy):
    """Regenerate the draft with a probability that depends on its kind.

    Args:
        pattern: A regular expression. A draft's kind is the first group that matched, or all of the match
            where it has no groups; a draft without a match is of no kind.
        rates: Probability by kind.
        default: Probability for drafts of no kind, or of one that is not in ``rates``.

    Raises:
        SettingsError: The expression cannot be read, or a rate is out of range.
    """

    needs_score = False

    def __init__(self, pattern: str, rates: Mapping[str, float], default: float = 0.0) -> None:
        try:
            self._expression = re.compile(pattern)
        except re.error as error:
            raise SettingsError(f"by_pattern: pattern {pattern!r} cannot be read: {error}") from error
        for kind, rate in {**rates, "default": default}.items():
            if not (math.isfinite(rate) and 0 <= rate <= 1):
                raise SettingsError(f"by_pattern: the rate of {kind!r} is {rate}: choose a probability")
        self.pattern, self.rates, self.default = pattern, dict(rates), default

    def decide(self, observation: Observation) -> str:
        """Draw by the rate of the draft's kind."""
        kind = kind_of(self._expression, observation.draft or "")
        rate = self.default if kind is None else self.rates.get(kind, self.default)
        return "regenerate" if observation.random().random() < rate else "accept"

    def __repr__(self) -> str:
        return f"by_pattern({self.pattern!r}, {self.rates}, default={self.default})"


def kind_of(expression: re.Pattern[str], text: str) -> str | None:
    """Return the kind of a step: the first group that matched, or all of the match; None without one."""
    match = expression.search(text)
    if match is None:
        return None
    return next((group for group in match.groups() if group is not None), match[0])
