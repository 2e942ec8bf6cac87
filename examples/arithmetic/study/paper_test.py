"""The paper's own test (arXiv 2601.10245): Delta IBC beside that of the best query-level method.

Its "5x" on MATH-500 and "6x" on AIME are the Delta IBC of TRIM's policies divided by that of the best method
that routes whole questions, a cascade on the same reward model included. The paper does not say over which
shares it averages; here they are those up to the curve's own CPT(95), as in `trim-graph eval`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .figures import Figure

BY_QUESTION = ("query router", "cascade, token probability", "cascade, least PRM score")
"""Families that give whole questions to one model."""
NOT_ROUTED = ("random steps",)
"""Families that decide by chance."""


def over_query_level(curves: Mapping[str, Mapping[str, Figure]]) -> dict[str, Any]:
    """Returns each step-level family's Delta IBC beside the best query-level one.

    Args:
        curves: Figures of the curve of each family, ``delta_ibc`` among them.

    Returns:
        By family: the query-level family ``beside`` it, the ``difference`` and the ``ratio``, which is None
        where the interval of what it is divided by is not clear of zero. Empty without a query-level family.
    """
    known = {name: found for name, curve in curves.items() if (found := curve["delta_ibc"]).value is not None}
    best = _best({name: known[name].value for name in BY_QUESTION if name in known})
    if best is None:
        return {}
    compared = {}
    for name, ours in known.items():
        if name in (*BY_QUESTION, *NOT_ROUTED):
            continue
        ratio = ours.over(known[best])
        compared[name] = {
            "beside": best,
            "difference": ours.minus(known[best]).document(),
            "ratio": None if ratio is None else ratio.document(),
        }
    return compared


def _best(values: Mapping[str, float | None]) -> str | None:
    known = {name: value for name, value in values.items() if value is not None}
    return max(known, key=lambda name: known[name]) if known else None
