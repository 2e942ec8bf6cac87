"""Entropy of a token's distribution, from the log-probabilities of the likeliest tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

TOP_LOGPROBS = 20
"""How many of the likeliest tokens are asked for: the most that OpenAI's API tells, and a vLLM server unless
started with ``--max-logprobs``."""


@dataclass(frozen=True, slots=True)
class Entropy:
    """Entropy of a distribution over tokens.

    Attributes:
        nats: In nats; a lower bound where ``untold`` is above 0.
        untold: Probability of the tokens that were not told.
    """

    nats: float
    untold: float = 0.0


def entropy_of_likeliest(logprobs: Sequence[float], chosen: float | None = None) -> Entropy:
    """Return a lower bound of the entropy, from the log-probabilities of the likeliest tokens.

    The tokens not told share the probability ``untold``, and none is likelier than the least likely one
    told, so they add at least ``-untold * log(min(least, untold))``. Renormalising the told ones gives a
    lower bound too, but a worse one: it would call the flattest distribution over 100 000 tokens no less
    certain than one over 20. Exact where all are told.

    Args:
        logprobs: Natural logarithms of probabilities.
        chosen: That of the token generated. A server tells it too where it is none of the likeliest, so if
            it is the least likely one it says nothing of those not told.

    Raises:
        ValueError: There are none, or one is no log-probability.
    """
    if not logprobs or any(math.isnan(value) or value > 1e-3 for value in logprobs):
        raise ValueError(f"these are not log-probabilities: {list(logprobs)[:5]}")
    ordered = sorted(map(float, logprobs), reverse=True)
    told = [(math.exp(value), value) for value in ordered]
    nats = -sum(p * value for p, value in told if p > 0)
    untold = max(0.0, 1.0 - math.fsum(p for p, _ in told))
    bounding = ordered[:-1] if chosen is not None and ordered[-1] == chosen else ordered
    if untold > 0:
        least = math.exp(bounding[-1]) if bounding else 1.0
        nats -= untold * math.log(min(least, untold)) if least > 0 else untold * math.log(untold)
    return Entropy(max(0.0, nats), untold)
