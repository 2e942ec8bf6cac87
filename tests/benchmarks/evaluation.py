"""What the end of an evaluation costs: memory and time from journals to Parquet, metrics and verdicts.

``python -m tests.benchmarks.evaluation [-n 100000] [--json FILE]`` writes made-up rows of three arms, each
row with eight steps, and does with them what `trim-graph eval` does when the last question has ended. Memory
is the process's peak beyond what it had before that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trim_graph import ModelPrice, Prices
from trim_graph.evaluation.comparison import Comparison, read_metric_columns, resample
from trim_graph.evaluation.records import (
    Question,
    Row,
    WorkItem,
    journal_of,
    new_record,
    read_rows_of,
    row_of,
    write_rows,
)
from trim_graph.evaluation.verdicts import CostModel, judge, overall
from trim_graph.storage.journal import to_line

ARMS = {"small": (0.4, 0), "large": (0.9, 60), "threshold-0.5": (0.85, 20)}
"""Accuracy and large tokens of each."""
STEPS = 8
PRICES = Prices(small=ModelPrice(input=0.1, output=0.1), large=ModelPrice(input=1, output=3))


def made_up(arm: str, index: int, rng: random.Random) -> Row:
    """Returns a row that nobody ran."""
    right, tokens = ARMS[arm]
    question = Question("What is it? " * 10, expected="4", id=f"q{index}")
    row = row_of(new_record(WorkItem(index, 0, question), 0), arm)
    row["correct"], row["large_tokens"] = rng.random() < right, tokens and rng.randrange(2 * tokens)
    row["cost"], row["seconds"] = row["large_tokens"] / 1e6, rng.expovariate(1)
    row["first_step_seconds"] = row["seconds"] / 2
    text = "So it is as it was before, and a little more than that. " * 2
    row["steps"] = [
        {
            "text": text,
            "writer": "small",
            "tokens": 20,
            "score": rng.random(),
            "decision": "accept",
            "mean_token_probability": 0.9,
            "label": None,
            "part": None,
            "discarded": None,
        }
        for _ in range(STEPS)
    ]
    row["solution"] = text * STEPS
    return row


def peak() -> float:
    """Returns the most memory this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(n: int, folder: Path) -> dict[str, Any]:
    """Writes rows, and takes the time and memory of each part of the end."""
    (folder / "rows").mkdir()
    rng = random.Random(0)
    for arm in ARMS:
        with journal_of(folder, arm).open("wb") as stream:
            for index in range(n):
                stream.write(to_line(made_up(arm, index, rng)))
    size = sum(file.stat().st_size for file in (folder / "rows").iterdir())
    before, found = peak(), {"n": n, "arms": len(ARMS), "journals_mb": size / 2**20}
    resampled = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        answer = work()
        found[f"{name}_seconds"] = time.perf_counter() - begun
        found[f"{name}_peak_mb"] = peak() - before
        return answer

    def metrics() -> None:
        for arm in ARMS:
            resampled[arm] = resample(
                read_metric_columns(read_rows_of(folder, arm), n=n, samples=1, prices=PRICES)
            )

    def summary() -> str:
        kinds = {"small": "reference", "large": "reference"}
        settings: Any = {arm: {"kind": kinds.get(arm, "policy"), "family": arm, "policy": {}} for arm in ARMS}
        comparison = Comparison(resampled, settings, n=n)
        comparison.summaries()
        comparison.curves()
        return overall(judge(comparison, CostModel(priced=True)), comparison)

    timed("metrics", metrics)
    timed("summary", summary)
    timed("parquet", lambda: write_rows(folder, list(ARMS)))
    found["parquet_mb"] = (folder / "rows.parquet").stat().st_size / 2**20
    return found


def main() -> None:
    """Measures, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=100_000, help="questions")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.n, Path(folder))
    for name, value in found.items():
        print(f"{name:<20} {value:>12,.1f}")
    if given.json is not None:
        machine = {"platform": platform.platform(), "cpu_count": os.cpu_count()}
        date = datetime.now(UTC).isoformat(timespec="seconds")
        given.json.write_text(json.dumps({"date": date, "machine": machine, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
