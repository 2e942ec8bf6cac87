"""Which kinds of steps does the small model get wrong? Rates of `trim_graph.policies.by_pattern` from traces.

A policy made of them routes by the kind of a step alone: what a scorer does better than it, it owes to
looking at the step itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from trim_graph.errors import InputError, SettingsError
from trim_graph.policies.by_pattern import kind_of
from trim_graph.training.traces import Trace

OPERATIONS = r"\d ([-+*/]|mod) \d|\b(larger|smaller)\b|(boxed)"
"""Kinds of steps in the arithmetic world: its operations."""
MATHEMATICS = r"(\\boxed|\\[dt]?frac|\\sqrt|\\times|\\cdot|\\binom|\^|[*/=])"
"""Kinds of steps elsewhere: what comes first of the marks that mathematical text has."""


class Kind(NamedTuple):
    """Drafts of one kind.

    Attributes:
        kind: As `by_pattern` names it; None: drafts without a match.
        tokens: Of all of them.
        wrong: Share of them that are wrong, by labels, else by scores.
        drafts: How many there are.
    """

    kind: str | None
    tokens: int
    wrong: float
    drafts: int


def fit_kinds(traces: Iterable[Trace], pattern: str) -> list[Kind]:
    """Count how often the small model's steps are wrong, by kind.

    Args:
        traces: Of runs in which the small model writes; each step labelled or scored.
        pattern: See `trim_graph.policies.by_pattern`.

    Returns:
        The kinds, the most often wrong first.

    Raises:
        SettingsError: The expression cannot be read.
        InputError: No step is labelled or scored.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"the pattern {pattern!r} cannot be read: {error}") from error
    found: dict[str | None, list[tuple[int, float]]] = {}
    for trace in traces:
        for step in trace["steps"]:
            if step["writer"] == "small":
                wrong = _wrong(step)
                if wrong is not None:
                    kind = kind_of(expression, step["text"])
                    found.setdefault(kind, []).append((step["tokens"], wrong))
    if not found:
        raise InputError("no step of the small model in the validation traces is labelled or scored")
    kinds = [
        Kind(kind, sum(t for t, _ in drafts), sum(w for _, w in drafts) / len(drafts), len(drafts))
        for kind, drafts in found.items()
    ]
    return sorted(kinds, key=lambda one: (-one.wrong, one.kind or ""))


def _wrong(step: Any) -> float | None:
    if step["label"] is not None:
        return float(not step["label"])
    return None if step["score"] is None else 1 - step["score"]


def policy_of_kinds(kinds: Sequence[Kind], pattern: str, part: float) -> dict[str, Any]:
    """Return the policy that has this part of the small model's tokens written again, the worst kinds first.

    Args:
        kinds: From `fit_kinds`.
        pattern: Theirs.
        part: In [0, 1].

    Returns:
        As a configuration names it.
    """
    whole = sum(kind.tokens for kind in kinds)
    left, rates = part * whole, dict[str | None, float]()
    for kind in kinds:
        rate = min(1.0, max(0.0, left / kind.tokens)) if kind.tokens else 0.0
        left -= rate * kind.tokens
        rates[kind.kind] = round(rate, 4)
    default = rates.pop(None, 0.0)
    return {"type": "by_pattern", "pattern": pattern, "rates": rates, "default": default}
