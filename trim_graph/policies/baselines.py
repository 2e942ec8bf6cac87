"""Policies of one rule: threshold, advantage, entropy, pattern, rate, one model, staying on the large one."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

from trim_graph.errors import SettingsError

from .base import (
    DECISIONS,
    NEXT_WRITERS,
    AnyPolicy,
    Choice,
    Observation,
    Policy,
    as_policy,
    checked,
    in_range,
    with_memory,
)


class threshold(Policy):
    """Regenerate the draft if its score is below ``t``.

    Args:
        t: In [0, 1]. At 0 nothing is regenerated; above every score, everything is.

    Raises:
        SettingsError: ``t`` is out of range.
    """

    def __init__(self, t: float) -> None:
        if not in_range(t, 0, 1):
            number = ", and the number without quotes" if isinstance(t, str) else ""
            raise SettingsError(
                f"threshold is {t!r}: scores are probabilities, choose a value in [0, 1]{number}"
            )
        self.t = t

    def decide(self, observation: Observation) -> str:
        """Compares the draft's score."""
        score = observation.score
        return "accept" if score is None or score >= self.t else "regenerate"

    def __repr__(self) -> str:
        return f"threshold({self.t})"


class advantage(Policy):
    """Regenerate the draft where a rewrite is estimated to gain enough (Arbitrage, arXiv 2512.05033).

    For scorers that were trained on advantage labels (`trim-graph label --method advantage`). Such a score is
    ``(1 + v_small - v_large) / 2``, where v_small and v_large are the chances that the solution ends right
    behind the small and the large model's step. The draft is regenerated where ::

        gain = 1 - 2 * score = v_large - v_small
        gain > minimum + price_per_token * tokens

    ``tokens`` is the expected length of the large model's step: the length of the draft, which is known
    before the large model is called. A draft that is wrong beyond repair has no gain and stays, unlike under
    `threshold`.

    Args:
        minimum: Least gain, in [-1, 1]. At 0 a draft is regenerated where that is estimated to help at all; a
            higher one spends less, and at 1 nothing is regenerated.
        price_per_token: Gain that a large token must be worth, 0 or more; 0.01: a rewrite of 20 tokens must
            raise the chance of a right answer by 0.2. The same unit as ``--lambda`` of `trim-graph train`.

    Raises:
        SettingsError: A number is out of range.
    """

    def __init__(self, minimum: float = 0.0, price_per_token: float = 0.0) -> None:
        if not in_range(minimum, -1, 1):
            raise SettingsError(f"advantage: minimum is {minimum!r}: choose a gain in [-1, 1]")
        if not in_range(price_per_token, 0, sys.float_info.max):
            raise SettingsError(
                f"advantage: price_per_token is {price_per_token!r}: choose a finite number of 0 or more"
            )
        self.minimum, self.price_per_token = minimum, price_per_token

    def decide(self, observation: Observation) -> str:
        """Compares the estimated gain with what it must be."""
        if observation.score is None:
            return "accept"
        return "regenerate" if 1 - 2 * observation.score > self._needed(observation) else "accept"

    def evidence(self, observation: Observation) -> str:
        """Returns the estimated gain and what it must exceed."""
        if observation.score is None:
            return ""
        return f"gain {1 - 2 * observation.score:.3g}, more than {self._needed(observation):.3g} needed"

    def _needed(self, observation: Observation) -> float:
        return self.minimum + self.price_per_token * observation.draft_tokens

    def __repr__(self) -> str:
        return f"advantage({self.minimum}, price_per_token={self.price_per_token})"


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
        if not in_range(limit, 0, sys.float_info.max):
            raise SettingsError(f"entropy_probe is {limit!r}: choose an entropy in nats, 0 or more")
        self.limit = limit

    def next_writer(self, observation: Observation) -> str:
        """Asks for the probe, then compare its entropy."""
        if observation.probe_entropy is None:
            return "probe"
        return "large" if observation.probe_entropy > self.limit else "small"

    def with_limit(self, limit: float) -> entropy_probe:
        """Returns the policy of this kind with another limit."""
        return entropy_probe(limit)

    def __repr__(self) -> str:
        return f"entropy_probe({self.limit})"


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
        except (re.error, TypeError) as error:
            raise SettingsError(f"by_pattern: pattern {pattern!r} cannot be read: {error}") from error
        if not isinstance(rates, Mapping):
            raise SettingsError(f"by_pattern: rates is {rates!r}: give a probability for each kind of draft")
        for kind, rate in {**rates, "default": default}.items():
            if not in_range(rate, 0, 1):
                raise SettingsError(f"by_pattern: the rate of {kind!r} is {rate!r}: choose a probability")
        self.pattern, self.rates, self.default = pattern, dict(rates), default

    def decide(self, observation: Observation) -> str:
        """Draws by the rate of the draft's kind."""
        kind = step_type_of(self._expression, observation.draft or "")
        rate = self.default if kind is None else self.rates.get(kind, self.default)
        return "regenerate" if observation.random().random() < rate else "accept"

    def __repr__(self) -> str:
        return f"by_pattern({self.pattern!r}, {self.rates}, default={self.default})"


def step_type_of(expression: re.Pattern[str], text: str) -> str | None:
    """Returns the kind of a step: the first group that matched, or all of the match; None without one."""
    match = expression.search(text)
    if match is None:
        return None
    return next((group for group in match.groups() if group is not None), match[0])


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
        """Names the large model."""
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
        if not in_range(rate, 0, 1):
            raise SettingsError(f"random_rate is {rate!r}: choose a probability in [0, 1]")
        self.rate = rate

    def decide(self, observation: Observation) -> str:
        """Draws."""
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

    def __init__(self, policy: AnyPolicy, k: int) -> None:
        if not isinstance(k, int) or isinstance(k, bool) or k < 0:
            raise SettingsError(f"stay_on_large for k={k!r} steps: choose a whole number, 0 or more")
        self.policy, self.k = as_policy(policy), k
        self.needs_score, self.decides = self.policy.needs_score, self.policy.decides

    @property
    def small_follows(self) -> bool:
        """As the wrapped policy: the large model stays behind its own steps only."""
        return self.policy.small_follows

    def next_writer(self, observation: Observation) -> Choice:
        """Names the large model while steps are left to stay; else asks the wrapped policy."""
        left, inner = observation.memory or (0, None)
        if left > 0:
            return Choice("large", [left - 1, inner])
        answer = self.policy.next_writer(with_memory(observation, inner))
        choice = checked(answer, NEXT_WRITERS, self.policy, inner)
        return Choice(choice.value, [0, choice.memory])

    def decide(self, observation: Observation) -> Choice:
        """Asks the wrapped policy, and remembers a regeneration."""
        _, inner = observation.memory or (0, None)
        choice = checked(self.policy.decide(with_memory(observation, inner)), DECISIONS, self.policy, inner)
        stay = self.k if choice.value == "regenerate" else 0
        return Choice(choice.value, [stay, choice.memory])

    def evidence(self, observation: Observation) -> str:
        """Returns the numbers of the wrapped policy."""
        _, inner = observation.memory or (0, None)
        return self.policy.evidence(with_memory(observation, inner))

    def __repr__(self) -> str:
        return f"stay_on_large({self.policy!r}, k={self.k})"
