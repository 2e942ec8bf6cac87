"""What a demo found: a table for people, a JSON file with everything."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trim_graph.evaluation import ArmFigures, Difference, Interval, accuracy_difference, compare
from trim_graph.evaluation.figures import RESAMPLES

if TYPE_CHECKING:
    from .demo import Demo

INTERVALS_FROM = 200
"""Fewest questions for which the table shows intervals; below, they say little but noise."""
WIDTH = 120
"""Of the table where stdout is no terminal."""
_PACKAGES = ("trim-graph", "langgraph", "langchain-core", "torch", "transformers", "numpy")


def figures_of(demo: Demo) -> tuple[dict[str, ArmFigures], Difference | None]:
    """Compute the figures of the arms that are complete; nothing without the two models alone."""
    done = {name: arm.outcomes for name, arm in demo.arms.items() if arm.complete}
    if not {"small", "large"} <= done.keys():
        return {}, None
    figures = compare(done, seed=demo.request.seed)
    if not {"threshold", "random"} <= done.keys():
        return figures, None
    return figures, accuracy_difference(done["threshold"], done["random"], seed=demo.request.seed)


def report(demo: Demo, *, partial: bool) -> dict[str, Any]:
    """Return everything, JSON-native."""
    figures, difference = figures_of(demo)
    request = demo.request
    return {
        "what": "trim-graph demo",
        "partial": partial,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "n": request.n,
        "split": request.split,
        "part": "test",
        "seed": request.seed,
        "concurrency": request.concurrency,
        "threshold": demo.threshold,
        "random_rate": demo.random_rate,
        "intervals": {"level": 0.95, "method": "paired bootstrap over questions", "resamples": RESAMPLES},
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cpu_count": os.cpu_count(),
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "arms": {
            name: {
                "policy": arm.policy,
                "complete": arm.complete,
                "seconds": arm.seconds,
                **figures.get(name, {}),
                "outcomes": [_outcome(demo, outcome) for outcome in arm.outcomes],
            }
            for name, arm in demo.arms.items()
        },
        "threshold_minus_random": difference,
    }


def _outcome(demo: Demo, outcome: Any) -> dict[str, Any]:
    question = demo.questions[outcome.index]
    return {"question": question.text, "expected": question.expected, **asdict(outcome)}


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def write_report(demo: Demo, file: Path, *, partial: bool) -> None:
    """Write the report; an older file stays whole until the new one is."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(report(demo, partial=partial), indent=1) + "\n", encoding="utf-8")
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def show_table(demo: Demo) -> None:
    """Print the arms side by side on stdout."""
    from rich.table import Table

    from .console import Console

    console = Console(plain_width=WIDTH)
    request = demo.request
    figures, difference = figures_of(demo)
    precise = request.n >= INTERVALS_FROM
    table = Table(title=f"{request.n} held-out problems, split {request.split}, seed {request.seed}")
    table.add_column("arm")
    for heading in ("accuracy", "large tokens", "share", "PGR", "seconds"):
        table.add_column(heading, justify="right")
    names = {"threshold": f"threshold {demo.threshold:g}", "random": f"random {demo.random_rate:g}"}
    names |= {name: file.stem for name, file in demo.files.items()}
    for name, arm in demo.arms.items():
        row = figures[name]
        table.add_row(
            names.get(name, f"{name} alone"),
            _figure(row["accuracy"], row["accuracy_interval"] if precise else None),
            str(row["large_tokens"]),
            _figure(row["share"], row["share_interval"] if precise else None),
            _figure(row["pgr"], row["pgr_interval"] if precise else None),
            f"{arm.seconds:.1f}",
        )
    console.print(table)
    if difference is not None:
        told = _figure(difference["accuracy"], difference["interval"] if precise else None, "+.3f")
        console.print(f"accuracy of threshold minus random: {told}")
    if precise:
        console.print(f"in brackets: 95 % intervals, paired bootstrap, {RESAMPLES} resamples")
    errors = {name: row["errors"] for name, row in figures.items() if row["errors"]}
    for name, count in errors.items():
        console.print(f"{name}: {count} of {request.n} questions failed and count as wrong")


def _figure(value: float | None, within: Interval | None, form: str = ".3f") -> str:
    if value is None:
        return "-"
    return f"{value:{form}}" + (f" ({within.low:{form}} to {within.high:{form}})" if within else "")
