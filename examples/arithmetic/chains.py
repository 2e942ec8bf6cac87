"""Chains: a start number and a numbered list of operations on it, values kept between 0 and 99."""

from __future__ import annotations

import random

from .problems import Kind, Operation, Problem, Result, Split, render, stated_result

_OPENINGS = ("Start with {v}.", "Take the number {v}.", "Begin with {v}.", "Let the number be {v}.")
_RULES = (
    "Always keep only the last two digits.",
    "Keep only the last two digits of every result.",
    "After each step keep the last two digits only.",
)
_ENDINGS = ("What is the final number?", "What is the result?", "Which number is left at the end?")
_PHRASES: dict[Kind, tuple[str, ...]] = {
    "add": ("add {n}", "increase it by {n}", "add {n} to the result"),
    "subtract": ("subtract {n}", "decrease it by {n}", "take away {n}"),
    "multiply": ("multiply by {n}", "take it {n} times", "multiply the result by {n}"),
    "double": ("double it", "double the result", "take it twice"),
    "remainder": (
        "take the remainder after dividing by {n}",
        "divide by {n} and keep the remainder",
        "replace it by its remainder modulo {n}",
    ),
    "larger": ("take the larger of it and {n}", "replace it by {n} if {n} is larger"),
    "smaller": ("take the smaller of it and {n}", "replace it by {n} if {n} is smaller"),
    "digits": ("add its two digits", "replace it by the sum of its digits"),
}
SET_PHRASES: frozenset[str] = frozenset(
    (
        *(f" {part.strip()}" for phrases in _PHRASES.values() for p in phrases for part in p.split("{n}")),
        *(f" {sentence}" for sentence in (*_RULES, *_ENDINGS)),
        *(opening.partition(" {v}")[0] for opening in _OPENINGS),
        " the larger of",
        " the smaller of",
    )
) - {" "}
"""The fixed parts of questions and steps; the tokenizer keeps each in one piece."""

_EASY: tuple[tuple[Kind, float], ...] = (
    ("add", 4.0),
    ("subtract", 3.5),
    ("double", 1.5),
    ("larger", 1.5),
    ("smaller", 1.0),
    ("digits", 0.7),
)
_HARD: tuple[tuple[Kind, float], ...] = (("multiply", 2.0), ("remainder", 1.0))
LENGTHS: dict[Split, tuple[int, int]] = {"standard": (4, 7), "hard": (8, 12)}
"""Fewest and most operations of a chain; the answer is one step more."""
HARD_SHARE: dict[Split, float] = {"standard": 0.25, "hard": 0.35}
"""Share of operations drawn from the hard ones (multiply, remainder)."""


def _operand(kind: Kind, value: int, rng: random.Random) -> int:
    if kind == "add":
        return rng.randint(2, 69)
    if kind == "subtract":
        return rng.randint(1, max(1, value))
    if kind == "multiply":
        return rng.randint(3, 9)
    if kind == "remainder":
        return rng.randint(3, 12)
    return rng.randint(5, 95)


def _kind(value: int, hard_share: float, rng: random.Random) -> Kind:
    # Small values make every operation easy: climb first.
    if value < 13:
        return "add"
    table = _HARD if rng.random() < hard_share else _EASY
    return rng.choices([k for k, _ in table], [w for _, w in table])[0]


def draw_chain(rng: random.Random, split: Split, length: int | None = None) -> Problem:
    """Draws one chain, of any part (`problems.part_of` says which).

    Args:
        rng: Source of randomness.
        split: ``standard`` or ``hard``: how long and how hard.
        length: Number of operations instead of the split's own, for a curriculum.
    """
    count = length if length is not None else rng.randint(*LENGTHS[split])
    start = value = rng.randint(11, 99)
    operations: list[Operation] = []
    phrases: list[str] = []
    canonical = [f"start {start}"]
    for index in range(count):
        kind = _kind(value, HARD_SHARE[split], rng)
        number = _operand(kind, value, rng)
        left = start if index == 0 else Result(index - 1)
        operation = Operation(kind, left, number, lead=f"Step {index + 1}: ", wraps=True)
        step = render(operation, value, number)
        assert step is not None
        result = stated_result(step)
        assert result is not None
        value = result
        operations.append(operation)
        phrases.append(f"Step {index + 1}: {rng.choice(_PHRASES[kind]).format(n=number)}.")
        canonical.append(kind if kind in ("double", "digits") else f"{kind} {number}")
    question = " ".join(
        (rng.choice(_OPENINGS).format(v=start), *phrases, rng.choice(_RULES), rng.choice(_ENDINGS))
    )
    return Problem(split, question, tuple(operations), "; ".join(canonical))
