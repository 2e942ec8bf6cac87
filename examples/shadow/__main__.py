"""Answer questions with a shadow beside: ``python -m trim_graph.examples.shadow shadow.jsonl -n 8``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .application import answer, build_shadow, questions


def main(arguments: list[str] | None = None) -> None:
    """Answers, waits for the shadow, and prints what it has counted."""
    parser = argparse.ArgumentParser(prog="python -m trim_graph.examples.shadow", description=__doc__)
    parser.add_argument("record", type=Path, help="file of the records")
    parser.add_argument("-n", type=int, default=8, help="questions")
    parser.add_argument("--run-rate", type=float, default=0.5, help="share of the questions that are routed")
    given = parser.parse_args(arguments)
    model, shadow = build_shadow(given.record, run_rate=given.run_rate)
    with shadow:
        for text in answer(model, questions(given.n)):
            print(text.splitlines()[-1])
        shadow.drain()
    counts = shadow.counts
    print(f"shadow: {counts.recorded} recorded, {counts.failed} failed, {counts.dropped} dropped")


if __name__ == "__main__":
    main()
