"""Give an arm the spend of another one, so that the two can be compared: choose a number, run, look, correct.

Large tokens rise with the number chosen (the rate of a random policy, the part of steps a kind of policy
hands over). The first guess is the share of large tokens that is wanted; a spend that is off corrects the
guess by a straight line between what is known. Only spends are looked at, never right answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

CLOSE = 0.05
"""How far a spend may be off, relative to that wanted, to be called the same."""
TRIES = 3
"""Most arms run to come close."""
DIGITS = 4


@dataclass(frozen=True, slots=True)
class Dial:
    """Policies with a number in [0, 1] that spend more the higher it is.

    Attributes:
        family: Its name.
        policy: The policy at a number, as a configuration names it.
    """

    family: str
    policy: Callable[[float], dict[str, Any]]

    def arm(self, number: float) -> str:
        """Name the arm at a number."""
        return f"{self.family}-{number:g}"


async def match_spend(
    target: float,
    whole: float,
    measure: Callable[[float], Awaitable[float]],
    *,
    known: dict[float, float] | None = None,
    first: float | None = None,
) -> float:
    """Choose the number at which a dial's spend is that of another arm.

    Args:
        target: Large tokens wanted.
        whole: Large tokens of the large model alone: roughly what the dial spends at 1.
        measure: Runs the dial at a number and returns its large tokens.
        known: Measured before: spend by number; is added to.
        first: The first guess, where an earlier run has found one.

    Returns:
        The number whose spend was nearest; it has been measured.
    """
    measured = {} if known is None else known
    for _ in range(TRIES):
        near = _nearest(measured, target)
        if near is not None and abs(measured[near] - target) <= CLOSE * target:
            return near
        number = first if first is not None else _guess(measured, target, whole)
        first = None
        if number in measured:
            break
        measured[number] = await measure(number)
    near = _nearest(measured, target)
    assert near is not None
    return near


def _nearest(measured: dict[float, float], target: float) -> float | None:
    return min(measured, key=lambda number: abs(measured[number] - target), default=None)


def _guess(measured: dict[float, float], target: float, whole: float) -> float:
    """Draw a straight line between the nearest spends on either side, or from nothing through the nearest."""
    low = max((n for n, spend in measured.items() if spend <= target), key=measured.__getitem__, default=None)
    high = min((n for n, spend in measured.items() if spend > target), key=measured.__getitem__, default=None)
    if low is not None and high is not None:
        part = (target - measured[low]) / (measured[high] - measured[low])
        number = low + part * (high - low)
    else:
        one = low if low is not None and measured[low] > 0 else high
        number = target / whole if one is None else one * target / measured[one]
    return round(min(1.0, max(0.0, number)), DIGITS)
