"""How many GPU hours an evaluation takes: tokens an arm, divided by tokens a second. Assumed, not measured.

Tokens a question of MATH-500 are those that TRIM's authors published for Qwen2.5-1.5B and 7B (the release of
arXiv 2601.10245): 401 by the small model alone, 495 in 8 steps by the large one alone, and at a threshold of
0.7 496 small and 171 large ones. All else here is assumed and may be given otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

SMALL_ALONE, LARGE_ALONE = 401, 495
SMALL_ROUTED, LARGE_ROUTED, STEPS = 496, 171, 8
QUESTION = 150
"""Assumed tokens of a question."""
AIME_FACTOR = 2.5
"""Assumed tokens of an AIME question, in those of MATH-500."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens a second on one GPU of 80 GB that all three models share, with 32 questions under way.

    Attributes:
        small: Written by a model of 1.5 billion parameters.
        large: Written by one of 7 billion.
        reading: Read by one of 7 billion.
    """

    small: float = 3000
    large: float = 1200
    reading: float = 30_000

    def seconds(self, small: float, large: float, reading: float) -> float:
        """Returns how long so many tokens take."""
        return small / self.small + large / self.large + reading / self.reading


@dataclass(frozen=True, slots=True)
class Arms:
    """Numbers of arms by their cost.

    Attributes:
        scored: Policies and baselines that score each step.
        judged: Baselines that have the large model rate each step.
        unscored: Arms that score no step: random routing, entropy, kind.
        validation: Validation questions, run by both models alone and scored.
    """

    scored: int
    judged: int
    unscored: int
    validation: int


def gpu_hours(questions: int, arms: Arms, rates: Rates, *, factor: float = 1.0) -> float:
    """Returns the GPU hours of an evaluation.

    Args:
        questions: Of the dataset.
        arms: Besides the models alone.
        rates: Of the GPU.
        factor: Tokens of a question, in those of MATH-500.
    """
    read = STEPS * (QUESTION + LARGE_ALONE / 2)
    alone = rates.seconds(SMALL_ALONE, LARGE_ALONE, 2 * QUESTION)
    routed = rates.seconds(SMALL_ROUTED, LARGE_ROUTED, 2 * QUESTION)
    a_question = alone + (arms.scored + arms.judged) * (routed + rates.seconds(0, 0, read))
    a_question += arms.unscored * routed
    validated = arms.validation * (alone + rates.seconds(0, 0, read))
    return factor * (questions * a_question + validated) / 3600
