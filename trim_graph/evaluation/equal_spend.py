"""Give an arm the spend of another one, so that the two can be compared: choose a number, run, look, correct.

Large tokens rise with the number chosen (the rate of a random policy, the part of steps a kind of policy
hands over). The first guess is the share of large tokens that is wanted; a spend that is off corrects the
guess by a straight line between what is known. Only spends are looked at, never right answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
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


@dataclass
class Match:
    """The search for the number at which a dial's spend is that of an arm.

    Args:
        target: Large tokens wanted.
        whole: Large tokens of the large model alone: roughly what the dial spends at 1.
        first: The first guess, where an earlier run has found one.
    """

    target: float
    whole: float
    first: float | None = None
    tries: int = 0
    number: float | None = None
    """That whose spend was nearest, when the search has ended."""

    def next(self, known: Mapping[float, float]) -> float | None:
        """Return the number to be run next; None where the search has ended.

        Args:
            known: Spend by number.
        """
        if self.number is not None:
            return None
        near = _nearest(known, self.target)
        if near is not None and (self._close(known[near]) or self.tries == TRIES):
            self.number = near
            return None
        number = self.first if self.first is not None else _guess(known, self.target, self.whole)
        self.first = None
        if number in known:
            self.number = near
            return None
        self.tries += 1
        return number

    def _close(self, spend: float) -> bool:
        return abs(spend - self.target) <= CLOSE * self.target


async def match_spends(
    matches: Sequence[Match],
    measure: Callable[[Sequence[float]], Awaitable[Sequence[float]]],
    *,
    known: dict[float, float] | None = None,
) -> list[float]:
    """Choose the numbers at which a dial's spends are those of other arms.

    All searches take one step after the other together, and share what they measure.

    Args:
        matches: The searches.
        measure: Runs the dial at some numbers and returns its large tokens at each.
        known: Measured before: spend by number; is added to.

    Returns:
        For each search the number whose spend was nearest; it has been measured.
    """
    measured = {} if known is None else known
    while numbers := list(dict.fromkeys(n for one in matches if (n := one.next(measured)) is not None)):
        measured.update(zip(numbers, await measure(numbers), strict=True))
    found = [one.number for one in matches]
    return [number for number in found if number is not None]


def _nearest(measured: Mapping[float, float], target: float) -> float | None:
    return min(measured, key=lambda number: abs(measured[number] - target), default=None)


def _guess(measured: Mapping[float, float], target: float, whole: float) -> float:
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
