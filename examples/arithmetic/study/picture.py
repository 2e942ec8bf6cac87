"""Accuracy against the share of large tokens, one panel a world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DRAWN = {
    "threshold": "C0",
    "planned (POMDP)": "C1",
    "learned (aggregate)": "C2",
    "query router": "C3",
    "cascade, token probability": "C4",
    "cascade, least PRM score": "C5",
    "entropy probe": "C6",
    "random steps": "C7",
}
"""Families in the picture, and their colours."""


def draw(document: dict[str, Any], file: Path) -> None:
    """Draws the operating points with 95 % intervals, and the straight line of random questions."""
    from matplotlib.figure import Figure

    worlds = document["worlds"]
    figure = Figure(figsize=(4.6 * len(worlds), 4.4), layout="constrained")
    panels = figure.subplots(1, len(worlds), squeeze=False)[0]
    for axes, (split, world) in zip(panels, worlds.items(), strict=True):
        ends = [world["small"]["value"], world["large"]["value"]]
        axes.plot([0, 1], ends, color="black", linestyle=":", linewidth=1, label="random questions")
        axes.axvline(0.2, color="lightgray", linewidth=1, zorder=0)
        axes.axhline(ends[1], color="lightgray", linewidth=1, zorder=0)
        for name, colour in DRAWN.items():
            points = world["families"].get(name, {"points": []})["points"]
            if points:
                _draw_points(axes, points, name, colour)
        axes.set_title(f"{split}, {world['n']} test problems", fontsize="medium")
        axes.set_xlabel("share of large tokens")
        axes.set_xlim(0, 1)
    panels[0].set_ylabel("accuracy (95 % intervals)")
    panels[-1].legend(fontsize="x-small", loc="lower right")
    figure.savefig(file, dpi=64)


def _draw_points(axes: Any, points: list[dict[str, Any]], name: str, colour: str) -> None:
    ordered = sorted(points, key=lambda point: point["share"]["value"])
    middle = [point["accuracy"]["value"] for point in ordered]
    spread = [
        [value - point["accuracy"]["interval"][0] for value, point in zip(middle, ordered, strict=True)],
        [point["accuracy"]["interval"][1] - value for value, point in zip(middle, ordered, strict=True)],
    ]
    axes.errorbar(
        [point["share"]["value"] for point in ordered],
        middle,
        yerr=[[max(value, 0.0) for value in side] for side in spread],
        color=colour,
        marker=".",
        markersize=4,
        linewidth=1,
        elinewidth=0.7,
        label=name,
    )
