"""What the page knows of every question without reading its text, and that text; packed, JSON-native."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trim_graph.evaluation.run_files import Row, RowStep

from .drawing import LARGE

FAILED, LIMITED, DIFFERS = 1, 2, 4
WRONG, RIGHT, UNKNOWN = 0, 1, 2
OPENING = 160
"""Letters of a question in the list."""
MOST_WRITERS = 40
"""Steps in the list's strip."""
_LIMITS = ("budget", "deadline")


def index_of(rows: Sequence[Row], arms: Mapping[str, int]) -> dict[str, Any]:
    """Pack what the list and the filters need of one question.

    Args:
        rows: Of every arm and sample.
        arms: Their places in the page's list of arms.

    Returns:
        ``i``: its name; ``q``: how it begins; ``r``: of each row arm, sample, verdict, large tokens, flags
        and the writers of its steps, ``s`` or ``l``.
    """
    references = {row["sample"]: row for row in rows if row["arm"] == LARGE}
    runs = []
    for row in rows:
        flags = (row["error"] is not None) * FAILED + (row["stopped"] in _LIMITS) * LIMITED
        flags += differs(row, references.get(row["sample"])) * DIFFERS
        verdict = UNKNOWN if row["correct"] is None else int(row["correct"])
        writers = "".join(step["writer"][0] for step in row["steps"][:MOST_WRITERS])
        runs.append([arms[row["arm"]], row["sample"], verdict, row["large_tokens"], flags, writers])
    return {"i": rows[0]["id"], "q": " ".join(rows[0]["question"][:OPENING].split()), "r": runs}


def differs(row: Row, large: Row | None) -> bool:
    """Tell whether an answer is another than the large model's alone: not both right, and not the same."""
    if large is None or row["arm"] == LARGE or (row["correct"] and large["correct"]):
        return False
    if row["correct"] is not None and large["correct"] is not None and row["correct"] != large["correct"]:
        return True
    return (row["answer"] or "").strip() != (large["answer"] or "").strip()


def trace_of(rows: Sequence[Row], arms: Mapping[str, int]) -> dict[str, Any]:
    """Pack everything the page shows of one question; arms have many texts in common, so each stands once."""
    texts: dict[str, int] = {}

    def place(text: str) -> int:
        return texts.setdefault(text, len(texts))

    runs = [_run_of(row, arms[row["arm"]], place) for row in rows]
    first = rows[0]
    return {
        "id": first["id"],
        "question": first["question"],
        "expected": first["expected"],
        "runs": runs,
        "texts": list(texts),
    }


def _run_of(row: Row, arm: int, place: Callable[[str], int]) -> dict[str, Any]:
    tokens = row["tokens"]
    return {
        "arm": arm,
        "sample": row["sample"],
        "verdict": UNKNOWN if row["correct"] is None else int(row["correct"]),
        "failed": row["error"] is not None,
        "answer": row["answer"],
        "error": row["error"],
        "stopped": row["stopped"],
        "notes": row["notes"],
        "seconds": finite(row["seconds"]),
        "large_tokens": row["large_tokens"],
        "small_tokens": tokens.get("small", 0) + tokens.get("small_discarded", 0),
        "cost": finite(row["cost"]),
        "steps": [_step_of(step, place) for step in row["steps"]],
        # Only where there are no steps to show it by.
        "solution": place(row["solution"]) if row["solution"] and not row["steps"] else None,
    }


def _step_of(step: RowStep, place: Callable[[str], int]) -> dict[str, Any]:
    draft = step["discarded"]
    return {
        "text": place(step["text"]),
        "writer": step["writer"],
        "tokens": step["tokens"],
        "score": step["score"],
        "decision": step["decision"],
        "label": step["label"],
        "part": step.get("part"),
        "discarded": draft
        and {
            "text": place(draft["text"]),
            "tokens": draft["tokens"],
            "score": draft["score"],
            "label": draft["label"],
        },
    }


def finite(value: Any) -> Any:
    """Replace every infinity and NaN, at any depth, by None: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
