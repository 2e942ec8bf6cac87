"""How long it takes to import `create_trim_graph`, beside ``import langgraph.graph``, which it needs.

``python -m tests.benchmarks.startup [--json FILE]`` starts processes in turns and prints the least of each,
on the clock and of the CPU, less that of a bare interpreter. What is wanted is a ratio of 1.5 at most.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

IMPORTS = {
    "nothing": "",
    "langgraph.graph": "import langgraph.graph",
    "trim_graph": "import trim_graph",
    "create_trim_graph": "from trim_graph import create_trim_graph",
}
REPEATS = 10


def start(code: str) -> tuple[float, float]:
    """Run a process; gives its seconds on the clock and of the CPU."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    clock, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(repeats: int) -> dict[str, dict[str, float]]:
    """The least of a few starts of each import, bytecode already written."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in IMPORTS}
    for turn in range(repeats + 1):
        for name, code in IMPORTS.items():
            took = start(code)
            if turn:
                taken[name].append(took)
    return {
        name: {"clock": min(clock for clock, _ in all_), "cpu": min(cpu for _, cpu in all_)}
        for name, all_ in taken.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Seconds that an import takes.")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    given = parser.parse_args(arguments)
    found = measure(given.repeats)
    ours, theirs, bare = (found[name] for name in ("create_trim_graph", "langgraph.graph", "nothing"))
    ratio = {of: (ours[of] - bare[of]) / (theirs[of] - bare[of]) for of in ("clock", "cpu")}
    print(f"{datetime.now(UTC).date()}  least of {given.repeats}, less a bare interpreter")
    print("| import | clock, s | CPU, s |")
    print("|---|---|---|")
    for name, one in found.items():
        print(f"| {name} | {one['clock'] - bare['clock']:.2f} | {one['cpu'] - bare['cpu']:.2f} |")
    print(f"ratio: {ratio['cpu']:.2f} of the CPU, {ratio['clock']:.2f} on the clock (wanted: 1.5 at most)")
    if given.json:
        figures = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "ratio": ratio, "seconds": found}
        given.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
