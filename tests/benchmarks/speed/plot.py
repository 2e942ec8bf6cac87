"""The table and the plot of what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PLACES = {
    "servers": "HTTP",
    "engines": "in process",
    "gpu_servers": "GPU, HTTP",
    "gpu_engines": "GPU, in process",
}


def _parts(results: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What was measured: where, how many at once, and the metrics."""
    for place, called in PLACES.items():
        parts = {key: found for key, found in results.get(place, {}).items() if isinstance(found, dict)}
        for at_once in sorted(parts, key=lambda key: int(key) if key.isdigit() else math.inf):
            found = parts[at_once]
            yield called, "128, lock-step" if at_once == "lock_step" else at_once, found
    for pace, found in results.get("paced", {}).items():
        if isinstance(found, dict):
            yield f"emulated, {pace}", "128, lock-step", found


def rows(results: dict[str, Any]) -> Iterator[list[str]]:
    """The cells of the table, its head first."""
    yield [
        "where",
        "at once",
        "way",
        "questions/s",
        "tokens/s",
        "latency s (p95)",
        "first step s (p95)",
        "CPU ms a step (elsewhere)",
    ]
    for called, label, found in _parts(results):
        for way, run in found["ways"].items():
            yield [
                called,
                label,
                way.replace("_", "-"),
                f"{run['questions_per_s']:.2f}",
                f"{run['tokens_per_s']:.0f}",
                f"{run['latency_s']:.2f} ({run['latency_p95_s']:.2f})",
                f"{run['first_step_s']:.2f} ({run['first_step_p95_s']:.2f})" if "first_step_s" in run else "",
                f"{run['cpu_ms_a_step']:.2f} ({run['cpu_elsewhere_ms_a_step']:.2f})",
            ]


def ratio_rows(results: dict[str, Any]) -> Iterator[list[str]]:
    """The graph's metrics as ratios to the others', medians over the turns."""
    yield ["where", "at once", "way", "to", "throughput", "latency", "CPU a step"]
    for called, label, found in _parts(results):
        for way, ratios in ((way, found.get(f"{way}_to", {})) for way in ("trim", "driver")):
            for other, ratio in ratios.items():
                names = ("questions_per_s", "latency_s", "cpu_ms_a_step")
                cells = [f"{ratio[name]:.2f}" for name in names]
                yield [called, label.partition(",")[0], way, other.replace("_", "-"), *cells]


def table(cells: Iterator[list[str]]) -> str:
    """Cells as a table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * (lines[0].count("|") - 1), *lines[1:]])


def draw(results: dict[str, Any], stem: Path) -> list[Path]:
    """Draws throughput by way, and CPU by way."""
    from matplotlib.figure import Figure

    from trim_graph.evaluation.plots import COLOURS, save_plot

    figure = Figure(figsize=(8.2, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    labels = {
        "bare": "bare loop",
        "skeleton": "skeleton",
        "trim": "trim-graph",
        "driver": "trim-graph, without LangGraph's loop",
        "streamed": "trim-graph, streamed",
        "lock_step": "lock-step",
    }
    names = tuple(labels)
    groups = [
        (f"{called}\n{'128' if at_once == 'lock_step' else at_once}", found["ways"])
        for place, called in PLACES.items()
        for at_once, found in results.get(place, {}).items()
        if at_once in ("64", "lock_step")
    ]
    for number, name in enumerate(names):
        bars = [
            (
                place + 0.2 * ([one for one in names if one in ways].index(name) - (len(ways) - 1) / 2),
                ways[name],
            )
            for place, (_, ways) in enumerate(groups)
            if name in ways
        ]
        left.bar(
            [x for x, _ in bars],
            [run["questions_per_s"] for _, run in bars],
            width=0.2,
            color=COLOURS[number],
            label=labels[name],
        )
    left.set_xticks(range(len(groups)), [label for label, _ in groups], fontsize=8)
    left.set_xlabel("where, and questions at once")
    left.set_ylabel("questions/s")
    left.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    if "graph" in results:
        spent = results["graph"]["cpu"]["ms_a_step"]
        order = ("bare", "driver", "empty", "skeleton", "trim")
        shown = {
            "driver": "without\nthe loop",
            "empty": "four empty\nnodes",
            "bare": "bare\nloop",
            "skeleton": "skeleton",
            "trim": "trim-\ngraph",
        }
        right.bar([shown[name] for name in order], [spent[name] for name in order], color=COLOURS[2])
        right.tick_params(axis="x", labelsize=6)
        right.set_ylabel("CPU ms a step, instant models")
    png, svg = save_plot(figure, stem)
    svg.unlink()  # the README shows the other
    return [png]
