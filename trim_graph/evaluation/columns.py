"""What is kept of an arm's rows for its figures: a few numbers a question, whatever its steps were."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trim_graph.budget import Prices
from trim_graph.errors import InputError

from .run_files import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def _cost_of_small_and_scorer(row: Row, prices: Prices) -> float:
    small, cached = row["prefill"]["small"], row["cached_prefill"]["small"]
    written = row["tokens"]["small"] + row["tokens"]["small_discarded"]
    scorer = prices.scorer.cost(row["tokens"]["scorer"], row["tokens"].get("scorer_output", 0))
    return prices.small.cost(small, written, cached) + scorer


NUMBERS: dict[str, Callable[[Row], float | None]] = {
    "correct": lambda row: row["correct"],
    "large_tokens": lambda row: row["large_tokens"],
    "small_tokens": lambda row: row["tokens"]["small"] + row["tokens"]["small_discarded"],
    "discarded_tokens": lambda row: row["tokens"]["small_discarded"] + row["tokens"]["large_discarded"],
    "scorer_tokens": lambda row: row["tokens"]["scorer"],
    "scorer_output_tokens": lambda row: row["tokens"].get("scorer_output", 0),
    "small_prefill": lambda row: row["prefill"]["small"],
    "large_prefill": lambda row: row["prefill"]["large"],
    "small_cached_prefill": lambda row: row["cached_prefill"]["small"],
    "large_cached_prefill": lambda row: row["cached_prefill"]["large"],
    "small_calls": lambda row: row["calls"]["small"],
    "large_calls": lambda row: row["calls"]["large"],
    "scorer_calls": lambda row: row["calls"]["scorer"],
    "cost": lambda row: row["cost"],
    "seconds": lambda row: row["seconds"],
    "first_step": lambda row: row["first_step_seconds"],
}
"""What is read off a row; None where it is not known."""
ADDED = "added_cost"
"""Cost of the small model and of the scorer, the part of ``cost`` that is not the large model's."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The numbers of one arm.

    Attributes:
        errors: Runs that failed.
        of: By the keys of `NUMBERS` and `ADDED`: shape (questions,), the mean over the samples of each; NaN
            where one is not known.
    """

    errors: int
    of: dict[str, NDArray[np.float64]]

    @property
    def graded(self) -> bool:
        """Whether the right answers are known."""
        correct = self.of["correct"]
        return bool((correct == correct).all())

    def mean(self, name: str) -> float:
        """Return the mean over the questions."""
        return float(self.of[name].mean())


def read_columns(rows: Iterable[Row], *, n: int, samples: int, prices: Prices) -> Columns:
    """Read the numbers of an arm off its rows.

    Args:
        rows: Of one arm, in any order; questions and samples beyond those wanted are passed over.
        n: Questions wanted: the first of the dataset.
        samples: Of each.
        prices: To tell the large model's cost from that of the others.

    Raises:
        InputError: Rows are missing, or there are two of one question and sample.
    """
    import numpy as np

    table = np.zeros((len(NUMBERS) + 1, n))
    seen, errors = np.zeros((n, samples), dtype=bool), 0
    for row in rows:
        index, sample = row["index"], row["sample"]
        if index >= n or sample >= samples:
            continue
        if seen[index, sample]:
            raise InputError(f"arm {row['arm']}: question {index}, sample {sample} has two rows")
        seen[index, sample] = True
        errors += row["error"] is not None
        numbers = [number(row) for number in NUMBERS.values()]
        table[:-1, index] += [np.nan if number is None else number for number in numbers]
        table[-1, index] += _cost_of_small_and_scorer(row, prices)
    if not seen.all():
        index, sample = (int(place) for place in np.argwhere(~seen)[0])
        raise InputError(
            f"{int((~seen).sum())} rows are missing, the first of question {index}, sample {sample}"
        )
    table /= samples
    return Columns(errors, dict(zip((*NUMBERS, ADDED), table, strict=True)))
