"""What `trim-graph eval` is asked for, checked before hours of work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trim_graph.errors import InputError, SettingsError
from trim_graph.evaluation.arms import RANDOM_RATES
from trim_graph.evaluation.baseline_arms import BASELINES
from trim_graph.evaluation.datasets import Dataset, first_questions, make_dataset, read_through

from .models import parsed_option

DEFAULT_N = 200
"""Questions of a dataset without end, where -n does not say."""
VALIDATION_N = 300
"""Validation questions, where --validation-n does not say."""


@dataclass(frozen=True, slots=True)
class Request:
    """The command line of `eval`, as given."""

    dataset: str
    out: Path
    config: Path | None = None
    policies: Sequence[str] = ()
    sweeps: Sequence[str] = ()
    random_rates: str = ",".join(f"{rate:g}" for rate in RANDOM_RATES)
    baselines: str = "all"
    validation: str | None = None
    validation_n: int | None = None
    pattern: str | None = None
    judge: str | None = None
    prices: str | None = None
    cost_per_second: float = 0.0
    n: int | None = None
    samples: int = 1
    seed: int = 0
    concurrency: int = 32
    retry_errors: bool = False
    as_json: bool = False
    ray: str | None = None
    ray_workers: int | None = None


def read_dataset(option: str, given: str, part: Any, seed: int) -> Dataset:
    """Read an option that names a dataset."""
    parsed = parsed_option(option, given, "{type: file, path: questions.jsonl}")
    return make_dataset(parsed, part=part, seed=seed)


def count_questions(option: str, named: str, dataset: Dataset, wanted: int | None, default: int) -> int:
    """Return how many questions there are to run, after a look at each of them."""
    if next(first_questions(dataset, 1, default=1), None) is None:
        raise InputError(f"{option} {named}: there are no questions in it")
    there = dataset.count()
    if there is None:
        return default if wanted is None else wanted
    if wanted is not None and wanted > there:
        raise SettingsError(f"{option} {named} has {there} questions; {wanted} are wanted")
    n = there if wanted is None else wanted
    read_through(dataset, n)
    return n


def chosen_baselines(given: str) -> list[str]:
    """Return the names of the baselines that are wanted."""
    if given in ("all", "none"):
        return list(BASELINES) if given == "all" else []
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in BASELINES:
            raise SettingsError(
                f"--baselines {given}: there is no {name!r}; choose all, none, or of {', '.join(BASELINES)}"
            )
    return names


def chosen_rates(given: str) -> list[float]:
    """Return the rates of random routing, in order.

    Raises:
        SettingsError: One is no rate between 0 and 1.
    """
    try:
        rates = sorted({float(rate) for rate in given.split(",")})
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < 1 for rate in rates):
        raise SettingsError(f"--random-rates {given}: give rates between 0 and 1, such as 0.1,0.5,0.9")
    return rates


def check_request(request: Request) -> None:
    """Refuse before hours of work what would fail after them."""
    for option, value in (
        ("-n", request.n),
        ("--validation-n", request.validation_n),
        ("--samples", request.samples),
        ("--concurrency", request.concurrency),
    ):
        if value is not None and value < 1:
            raise SettingsError(f"{option} is {value}: choose 1 or more")
    if not 0 <= request.cost_per_second < float("inf"):
        raise SettingsError(f"--cost-per-second is {request.cost_per_second}: choose 0 or more")
