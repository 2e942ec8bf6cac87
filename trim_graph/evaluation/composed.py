"""Baselines that give a whole question to one model: their outcomes are those of the models alone.

A query-level router asks one of the two. A cascade asks the small model, and the large one from the beginning
where the small one was not confident; it pays for both. Either was run already, on the same questions and
through the same adapters, so their rows are put together of the rows there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trim_graph.errors import InputError
from trim_graph.journal import to_line

from .run_files import Calls, PerWriter, Row, journal_of, read_rows_of
from .run_writing import in_order
from .summarising import LARGE, SMALL

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Signal = Callable[[Row], float]
"""From the small model's row of a question to a number: the higher, the sooner the large model is asked."""


def pairs(folder: Path, n: int, samples: int) -> Iterator[tuple[Row, Row]]:
    """Give the rows of the small and of the large model alone, question by question."""

    def wanted(arm: str) -> Iterator[Row]:
        journal = journal_of(folder, arm)
        rows = in_order(journal) if journal.exists() else read_rows_of(folder, arm)
        return (row for row in rows if row["index"] < n and row["sample"] < samples)

    return zip(wanted(SMALL), wanted(LARGE), strict=True)


def unsureness(row: Row) -> float:
    """Return 1 minus the mean probability of the tokens of the small model's answer.

    Raises:
        InputError: The model does not tell probabilities.
    """
    told = [(step["tokens"], step["mean_token_probability"]) for step in row["steps"]]
    known = [(tokens, probability) for tokens, probability in told if probability is not None]
    if not known and row["error"] is None:
        raise InputError(
            "the small model does not tell the probabilities of its tokens: a cascade by confidence needs "
            "them (logprobs: true)"
        )
    tokens = sum(tokens for tokens, _ in known)
    return 1 - sum(t * p for t, p in known) / tokens if tokens else 1.0


def read_signals(
    rows: Iterable[tuple[Row, Row]], signal: Signal
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read the signal of each run, and the large tokens that asking the large model costs."""
    import numpy as np

    table = np.array([(signal(small), large["large_tokens"]) for small, large in rows], dtype=float)
    return table[:, 0], table[:, 1]


def limit_for(signals: NDArray[np.float64], tokens: NDArray[np.float64], target: float) -> float:
    """Return the limit above which questions go to the large model so that the spend is nearest to this one.

    Args:
        signals: Of each run.
        tokens: Large tokens that each would cost.
        target: Large tokens wanted, mean a run.
    """
    import numpy as np

    values, places = np.unique(signals, return_inverse=True)
    costs = np.bincount(places, weights=tokens) / len(tokens)
    # spends[k]: where the k lowest values stay with the small model.
    spends = np.concatenate([costs[::-1].cumsum()[::-1], [0.0]])
    kept = int(np.argmin(np.abs(spends - target)))
    if kept == 0:
        return float(np.nextafter(values[0], -np.inf))
    return float(values[kept - 1])


def compose(
    folder: Path, arm: str, rows: Iterable[tuple[Row, Row]], signal: Signal, limit: float, *, both: bool
) -> None:
    """Write the journal of an arm that is put together.

    Args:
        folder: Of the run.
        arm: Its name.
        rows: From `pairs`.
        signal: Of the small model's row.
        limit: Above it the large model answers.
        both: Whether the small model has been asked first all the same.
    """
    file = journal_of(folder, arm)
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with beside.open("wb") as stream:
            for small, large in rows:
                chosen = small if signal(small) <= limit else _after(small, large) if both else large
                stream.write(to_line({**chosen, "arm": arm}))
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def _after(small: Row, large: Row) -> Row:
    """Return the large model's row, with the small model's answer thrown away before it."""
    if small["error"] is not None:
        return Row(**{**large, "seconds": small["seconds"] + large["seconds"]})
    first = large["first_step_seconds"]
    thrown = small["tokens"]["small"] + small["tokens"]["small_discarded"]

    def total(key: str) -> PerWriter:
        return PerWriter(
            small=small[key]["small"],  # type: ignore[literal-required]
            large=large[key]["large"],  # type: ignore[literal-required]
        )

    changed = {
        "notes": [*large["notes"], "the small model's whole answer was thrown away"],
        "seconds": small["seconds"] + large["seconds"],
        "first_step_seconds": None if first is None else small["seconds"] + first,
        "tokens": {
            **large["tokens"],
            "small_discarded": thrown,
            **{
                name: small["tokens"].get(name, 0) + large["tokens"].get(name, 0)
                for name in ("scorer", "scorer_output")
            },
        },
        "prefill": total("prefill"),
        "cached_prefill": total("cached_prefill"),
        "calls": Calls(small=small["calls"]["small"], large=large["calls"]["large"], scorer=0),
        "cost": small["cost"] + large["cost"],
    }
    return Row(**{**large, **changed})  # type: ignore[typeddict-item]
