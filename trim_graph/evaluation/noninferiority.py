"""Accuracy on few questions: intervals of chances and of paired differences, and bounds of a loss.

A policy and the large model alone answer the same questions. Of n questions the policy loses some (only the
large model is right) and gains others (only the policy is right). The loss of accuracy is the chance of the
first less that of the second.

The bound is Buehler's: the largest loss under which a result at least as good as the one seen still has a
probability above 1 - confidence, whatever the chance of a gain. No normal approximation enters: it holds for
every n. Results are ordered, from good to bad, by lost - gained + 1.645 * sqrt(lost + gained + 1), the upper
limit of Agresti and Min without its small terms. A result without any difference is then bounded by
1 - (1 - confidence) ** (1 / n), as by Clopper and Pearson. The chance of a gain is sought within an interval
of its own, whose error counts against the bound.

The two-sided interval of a difference is Tango's, a score method: also after outcomes without any difference
it has a width, and it takes a thousandth of the time.

Outcomes may be means over several samples of a question, and counts then have fractions. That is on the safe
side: of all outcomes with one mean, right or wrong spread most.

Sources:
    T. Tango (1998), Statistics in Medicine 17, 891-908: the score interval, and its variance.
    R. J. Buehler (1957), Journal of the American Statistical Association 52, 482-493.
    C. J. Lloyd and M. V. Moldovan (2007), Statistics in Medicine 26, 3369-3384: for paired outcomes.
    A. Agresti and Y. Min (2005), Statistics in Medicine 24, 729-740: the order.
    R. L. Berger and D. D. Boos (1994), Journal of the American Statistical Association 89, 1012-1016: the
    interval of the chance of a gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Self

from .metrics import Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

CONFIDENCE = 0.95
"""Confidence of one-sided bounds, and of two-sided intervals."""
MAX_LOSS = 0.02
"""Loss of accuracy that is acceptable where nobody names another."""
POWER = 0.8
"""Chance that the questions of a plan suffice."""
MOST_QUESTIONS = 100_000
"""Largest sample that is planned."""
_Z = 1.645
_NUISANCE_ERROR = 1e-5
"""Error of the interval for the chance of a gain."""
_CHANCES = 48
"""Chances of a gain at which a probability is computed."""
_TAIL = 1e-9
"""Probability of numbers of lost questions that are not summed; it counts against the policy."""


@dataclass(frozen=True, slots=True)
class PairedOutcomes:
    """Counts of questions on which two arms differ.

    Attributes:
        n: All questions.
        lost: Those that only the reference answered right; with fractions where questions have samples.
        gained: Those that only the policy answered right.

    Raises:
        ValueError: There are no questions, or more that differ than there are.
    """

    n: int
    lost: float
    gained: float

    def __post_init__(self) -> None:
        if self.n < 1 or min(self.lost, self.gained) < 0 or self.lost + self.gained > self.n:
            raise ValueError(f"{self} are no counts of paired outcomes: of n >= 1 questions some differ")

    @classmethod
    def of(cls, policy: Sequence[float], reference: Sequence[float]) -> Self:
        """Counts the outcomes of the same questions in the same order: right, wrong, or shares of samples."""
        more = [own - right for own, right in zip(policy, reference, strict=True)]
        return cls(
            n=len(more), lost=sum(max(0, -one) for one in more), gained=sum(max(0, one) for one in more)
        )

    @property
    def loss(self) -> float:
        """The loss of accuracy that was seen."""
        return (self.lost - self.gained) / self.n

    @property
    def reversed(self) -> PairedOutcomes:
        """The same questions with the arms exchanged."""
        return PairedOutcomes(self.n, lost=self.gained, gained=self.lost)

    def p_value(self, max_loss: float) -> float:
        """Returns the p-value of the hypothesis that the loss is ``max_loss`` or more."""
        low, high = chance_interval(self.gained, self.n, 1 - _NUISANCE_ERROR)
        worst = _worst_probability(self.n, _badness(self.lost, self.gained), max_loss, low, high)
        return min(1.0, worst + _NUISANCE_ERROR)

    def gain_interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Returns the score interval of Tango for the accuracy of the policy less that of the reference."""
        return Interval(_gain_limit(self, confidence), 0.0 - _gain_limit(self.reversed, confidence))

    def loss_bound(self, confidence: float = CONFIDENCE) -> float:
        """Returns the upper bound of the loss: the least that `p_value` refutes at this confidence."""
        return _loss_bound(self, confidence)


@lru_cache(maxsize=4096)
def _loss_bound(seen: PairedOutcomes, confidence: float) -> float:
    from scipy.optimize import brentq  # type: ignore[import-untyped]

    error = 1 - confidence

    def excess(loss: float) -> float:
        return seen.p_value(loss) - error

    if excess(1.0) > 0:
        return 1.0
    return float(brentq(excess, -1.0, 1.0, xtol=1e-7))


def _gain_limit(seen: PairedOutcomes, confidence: float) -> float:
    """Returns the lower limit of the score interval."""
    from scipy.optimize import brentq
    from scipy.stats import norm  # type: ignore[import-untyped]

    n, lost, gained = seen.n, seen.lost, seen.gained
    z = float(norm.isf((1 - confidence) / 2))

    def excess(gain: float) -> float:
        """Returns how far the result lies above a true gain, less what chance allows for."""
        # The likeliest chance of a lost question, if this is the gain.
        b = (2 * n - gained + lost) * gain - gained - lost
        lose = (math.sqrt(max(0.0, b * b + 8 * n * lost * gain * (1 - gain))) - b) / (4 * n)
        variance = n * max(0.0, 2 * lose + gain * (1 - gain))
        return gained - lost - n * gain - z * math.sqrt(variance)

    highest = max(-1.0, -seen.loss - 1e-9)
    if excess(-1.0) <= 0 or excess(highest) >= 0:
        return -1.0
    return float(brentq(excess, -1.0, highest, xtol=1e-7))


def least_questions(max_loss: float, confidence: float = CONFIDENCE) -> int:
    """Returns how many questions bound the loss by ``max_loss`` if the arms differ on none of them."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-max_loss))


@lru_cache(maxsize=4096)
def further_questions(
    seen: PairedOutcomes, max_loss: float, confidence: float = CONFIDENCE, power: float = POWER
) -> int | None:
    """Returns how many more questions show a loss below ``max_loss`` with a probability of ``power``.

    The plan supposes that questions are lost and gained as often as in what was seen, with half a question
    added to each count: none seen is not none to come. The number is exact to 1 %.

    Returns:
        At least 1; None where the supposed loss is not below ``max_loss``, or so near that it would take more
        than `MOST_QUESTIONS` questions.
    """
    from scipy.stats import norm

    lose, gain = (seen.lost + 0.5) / (seen.n + 1), (seen.gained + 0.5) / (seen.n + 1)
    margin = max_loss - (lose - gain)
    if margin <= 0:
        return None
    variance = lose + gain - (lose - gain) ** 2
    normal = float(norm.isf(1 - confidence) + norm.isf(1 - power)) ** 2 * variance / margin**2
    low, high = seen.n, max(seen.n + 1, math.ceil(min(normal, MOST_QUESTIONS)))
    while _power(high, lose, gain, max_loss, confidence) < power:
        if high >= MOST_QUESTIONS:
            return None
        low, high = high, min(math.ceil(1.25 * high), MOST_QUESTIONS)
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        if _power(middle, lose, gain, max_loss, confidence) < power:
            low = middle
        else:
            high = middle
    return high - seen.n


def rounded_up(number: int) -> int:
    """Returns a planned number of questions, rounded up to two digits: one lost question more changes it."""
    unit: int = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit


def _power(n: int, lose: float, gain: float, max_loss: float, confidence: float) -> float:
    """Returns the probability that n questions show a loss below ``max_loss``."""
    import numpy as np

    interval = chance_interval(round(n * gain), n, 1 - _NUISANCE_ERROR)
    # Four deviations around the allowed loss: below nobody would be refused, above nobody accepted.
    spread = 4 * _Z * math.sqrt(n + 1)
    accepted, refused = n * max_loss - spread, n * max_loss + spread
    while refused - accepted > 0.1:
        middle = (accepted + refused) / 2
        # A plan bears a coarse search.
        worst = _worst_probability(n, middle, max_loss, *interval, chances=8)
        if worst + _NUISANCE_ERROR <= 1 - confidence:
            accepted = middle
        else:
            refused = middle
    return float(_probability(n, accepted, np.array([lose]), np.array([gain]))[0])


def chance_interval(count: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Returns the interval of Clopper and Pearson (1934) for a chance, exact for every n.

    Args:
        count: How often it happened.
        n: Of how many, 1 or more.
        confidence: Two-sided.
    """
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = beta.ppf(tail, count, n - count + 1) if count > 0 else 0.0
    high = beta.isf(tail, count + 1, n - count) if count < n else 1.0
    return Interval(float(low), float(high))


def _badness(lost: float, gained: float) -> float:
    return lost - gained + _Z * math.sqrt(lost + gained + 1)


def _worst_probability(
    n: int, badness: float, loss: float, low: float, high: float, chances: int = _CHANCES
) -> float:
    """Returns the largest probability of a result no worse than one, over chances of a gain in an interval.

    Args:
        n: Questions.
        badness: Of the result.
        loss: Chance of a lost question less that of a gained one.
        low: Least chance of a gain.
        high: Largest one.
        chances: How many chances of a gain are tried.
    """
    import numpy as np

    high = min(high, (1 - loss) / 2)
    if low > high:
        return 0.0
    # Even in the square root, the scale on which the spread of a count does not depend on its chance.
    gain = np.linspace(math.sqrt(low), math.sqrt(high), chances) ** 2
    return float(_probability(n, badness, np.clip(gain + loss, 0.0, 1.0), gain).max())


def _probability(n: int, badness: float, loses: Array, gains: Array) -> Array:
    """Returns the probability of a result no worse than one.

    Args:
        n: Questions.
        badness: Of the result.
        loses: Chance that a question is lost, shape (chances,).
        gains: Chance that it is gained, shape (chances,).
    """
    import numpy as np
    from scipy.stats import binom

    first, last = binom.ppf(_TAIL / 2, n, loses.min()), binom.isf(_TAIL / 2, n, loses.max())
    lost = np.arange(max(int(first), 0), int(last) + 1)
    # badness is reached where u = sqrt(lost + gained + 1) solves u**2 - Z u - (2 lost + 1 - badness) = 0.
    inside = np.maximum(_Z**2 + 4 * (2 * lost + 1 - badness), 0.0)
    least = np.ceil(((_Z + np.sqrt(inside)) / 2) ** 2 - 1 - lost - 1e-9)
    among = np.divide(gains, 1 - loses, out=np.zeros_like(gains), where=loses < 1)[:, None]
    enough = binom.sf(least - 1, n - lost, np.clip(among, 0.0, 1.0))
    found: Array = (binom.pmf(lost, n, loses[:, None]) * enough).sum(axis=1) + _TAIL
    return found
