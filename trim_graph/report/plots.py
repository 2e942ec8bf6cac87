"""Plots of a report: drawn once for each background, as files and for the page."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trim_graph.evaluation.plots import (
    COLOURS,
    Point,
    draw_accuracy,
    draw_places,
    draw_reliability,
    draw_steps,
    save_plot,
    svg_of,
)
from trim_graph.evaluation.records import ArmSettings, ArmSummary, RunSummary

from .gathering import Gathered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL, LARGE = "small", "large"
"""Names of the arms of one model alone."""
_MOST_ARMS = len(COLOURS)
_USUAL = ("policy", "sweep", "random", "baseline")
"""Whose places are shown first, where there are more arms than colours."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot.

    Attributes:
        name: Of its files.
        caption: What it shows, as HTML without markup.
        draw: Draws it for a light or a dark ground.
    """

    name: str
    caption: str
    draw: Callable[[bool], Figure]

    def save(self, folder: Path) -> list[Path]:
        """Writes it as PNG and SVG."""
        return save_plot(self.draw(False), folder / self.name)

    def html(self) -> str:
        """Returns it for a page, light or dark as the reader has it."""
        light, dark = (base64.b64encode(svg_of(self.draw(ground))).decode() for ground in (False, True))
        kind = "data:image/svg+xml;base64,"
        return (
            f'<figure class="card"><picture><source media="(prefers-color-scheme: dark)" '
            f'srcset="{kind}{dark}"><img alt="{self.caption}" src="{kind}{light}"></picture>'
            f"<figcaption>{self.caption}</figcaption></figure>"
        )


def plots_of(
    gathered: Gathered, summary: RunSummary | None, arms: Mapping[str, ArmSettings]
) -> Iterator[Plot]:
    """Gives the plots for which there is something to show."""
    if summary is not None and (accuracy := _accuracy(summary)) is not None:
        yield accuracy
    if (calibration := gathered.calibration.metrics()) is not None:
        kind, found = calibration
        shown = {"scores of steps" if kind == "steps" else "least score of a solution": found}
        caption = (
            "Calibration of the scorer: of the steps that scored so much, the share that was right."
            if kind == "steps"
            else "Calibration of the scorer: of the solutions whose least score was so much, the share that "
            "was right. Nobody says of the single steps whether they are."
        )
        yield Plot("calibration", caption, lambda dark: draw_reliability(shown, dark=dark))
    known = {name: found for name, found in gathered.places.items() if found.solutions}
    places = {name: known[name].shares() for name in _by_interest(arms) if name in known}
    if places := dict(list(places.items())[:_MOST_ARMS]):
        caption = "Where in a solution the large model writes"
        yield Plot(
            "large_by_place",
            f"{caption}: its share of each tenth, steps taken as equally long.",
            lambda dark: draw_places(places, dark=dark),
        )
        yield Plot(
            "large_by_step", f"{caption}: its share of each step.", lambda dark: draw_steps(places, dark=dark)
        )


def _by_interest(arms: Mapping[str, ArmSettings]) -> list[str]:
    routed = [name for name, arm in arms.items() if arm["kind"] in _USUAL]
    return sorted(routed, key=lambda name: _USUAL.index(arms[name]["kind"]))


def _accuracy(summary: RunSummary) -> Plot | None:
    arms = {arm["arm"]: arm for arm in summary["arms"]}
    ends = [_point(arms[name], at) for name, at in ((SMALL, 0.0), (LARGE, 1.0)) if name in arms]
    known = [end for end in ends if end is not None]
    if len(known) < 2:
        return None
    points = [point for arm in summary["arms"] if arm["kind"] != "reference" and (point := _point(arm))]
    small, large = known[0]._replace(family="small alone"), known[1]._replace(family="large alone")
    return Plot(
        "accuracy",
        "Accuracy against the share of large tokens, with 95 % intervals. On the dashed line: whole "
        "questions given to one of the two models at random.",
        lambda dark: draw_accuracy(points, small, large, dark=dark),
    )


def _point(arm: ArmSummary, share: float | None = None) -> Point | None:
    accuracy, spent = arm["metrics"]["accuracy"], arm["metrics"]["share"]
    at = spent["value"] if share is None else share
    if accuracy["value"] is None or at is None:
        return None
    spread = None if share is not None else spent["interval"]
    return Point(arm["family"], at, accuracy["value"], spread, accuracy["interval"])
