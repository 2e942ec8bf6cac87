"""Accuracy against the share of large tokens, one panel a world or a kind of scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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


class Panel(NamedTuple):
    """One panel of a picture.

    Attributes:
        title: Stands above it.
        ends: Accuracy of the small model alone and of the large one.
        curves: Operating points of each curve, by its name in the legend.
    """

    title: str
    ends: tuple[float, float]
    curves: Mapping[str, Sequence[dict[str, Any]]]


def draw(document: dict[str, Any], file: Path) -> None:
    """Draws the operating points of each family, one panel a world."""
    panels = [
        Panel(
            f"{split}, {world['n']} test problems",
            (world["small"]["value"], world["large"]["value"]),
            {name: world["families"].get(name, {"points": []})["points"] for name in DRAWN},
        )
        for split, world in document["worlds"].items()
    ]
    draw_panels(panels, DRAWN, file)


def draw_panels(panels: Sequence[Panel], colours: Mapping[str, str], file: Path) -> None:
    """Draws operating points with 95 % intervals, and the straight line of random questions.

    Args:
        panels: From left to right.
        colours: Of each curve, by its name.
        file: Picture to be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(panels), 4.4), layout="constrained")
    places = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(places, panels, strict=True):
        axes.plot([0, 1], panel.ends, color="black", linestyle=":", linewidth=1, label="random questions")
        axes.axvline(0.2, color="lightgray", linewidth=1, zorder=0)
        axes.axhline(panel.ends[1], color="lightgray", linewidth=1, zorder=0)
        for name, points in panel.curves.items():
            if points:
                _draw_points(axes, points, name, colours[name])
        axes.set_title(panel.title, fontsize="medium")
        axes.set_xlabel("share of large tokens")
        axes.set_xlim(0, 1)
    places[0].set_ylabel("accuracy (95 % intervals)")
    places[-1].legend(fontsize="x-small", loc="lower right")
    figure.savefig(file, dpi=64)


def _draw_points(axes: Any, points: Sequence[dict[str, Any]], name: str, colour: str) -> None:
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
