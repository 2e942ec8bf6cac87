"""A report measured: seconds, memory and size to write it, seconds until a browser shows a trace.

``python -m tests.benchmarks.report [--json FILE]``

Four arms, four steps a solution; the steps are padded to the length of real ones. The browser is the system's
Chromium.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.written_runs import ARMS, a_row, a_summary, write_run
from trim_graph.report import write_report

QUESTIONS = (100, 1000, 5000)
PADDING = " and so on" * 30
"""To about 300 letters a step."""


def padded_row(arm: str, index: int) -> dict[str, Any]:
    """Returns a row with steps of a usual length."""
    row = a_row(arm, index)
    for step in row["steps"]:
        step["text"] += PADDING
    return row


def write(folder: Path) -> dict[str, float]:
    """Writes a report in a process of its own, and says what it took."""
    begun = time.perf_counter()
    page = write_report(folder)[0]
    return {
        "seconds": time.perf_counter() - begun,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "page_mb": page.stat().st_size / 1e6,
    }


def open_page(page: Path) -> dict[str, float]:
    """Opens it, and goes to the next question; seconds of each."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page()
        begun = time.perf_counter()
        tab.goto(page.as_uri())
        tab.wait_for_selector(".step")
        opened = time.perf_counter()
        tab.keyboard.press("j")
        tab.evaluate("new Promise((done) => requestAnimationFrame(done))")
        moved = time.perf_counter()
        tab.get_by_role("checkbox").first.check()
        tab.evaluate("new Promise((done) => requestAnimationFrame(done))")
        filtered = time.perf_counter()
        browser.close()
    return {
        "open_seconds": opened - begun,
        "next_seconds": moved - opened,
        "filter_seconds": filtered - moved,
    }


def measure(n: int) -> dict[str, float]:
    """Measures one size."""
    with TemporaryDirectory() as place:
        rows = (padded_row(arm, index) for arm in ARMS for index in range(n))
        folder = write_run(Path(place) / "run", rows, summary=a_summary(n))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            written = pool.submit(write, folder).result()
        return {"questions": n, **written, **open_page(folder / "report.html")}


def main() -> None:
    """Measures all sizes and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    found = [measure(n) for n in QUESTIONS]
    print("  ".join(f"{name:>14}" for name in found[0]))
    for one in found:
        print("  ".join(f"{value:14.2f}" for value in one.values()))
    if wanted.json:
        document = {"date": datetime.now(UTC).date().isoformat(), "machine": platform.processor()}
        wanted.json.write_text(json.dumps({**document, "sizes": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
