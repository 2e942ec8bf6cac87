"""Pictures of measurements, each as PNG and SVG. They need matplotlib: ``pip install "trim-graph[eval]"``.

Each is small enough to be read on a phone. Colours are those of Okabe and Ito, told apart by most eyes; arms
and writers have different marks too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .figures import Interval
from .scorer_figures import Discrimination

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (4.8, 3.6)
"""Inches."""
DPI = 150
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS = "osD^vPX*"
_LINES = ("-", "--", "-.", ":")
_LONGEST = 28
"""Letters of a name in a legend."""


class CurvePoint(NamedTuple):
    """What one arm came to."""

    name: str
    share: float
    """Large tokens as a share of what the large model alone uses."""
    accuracy: float
    share_interval: Interval | None = None
    accuracy_interval: Interval | None = None


class Positions(NamedTuple):
    """Where the large model wrote, in the solutions of one arm."""

    by_step: Sequence[tuple[int, int]]
    """Of the first, second, ... step: how many there are, and how many the large model wrote."""
    by_part: Sequence[tuple[int, int]]
    """The same of each tenth of a solution."""


def save_picture(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem.png`` and ``stem.svg``; the same figure gives the same bytes.

    Args:
        figure: From one of the functions here.
        stem: Path without an ending.

    Returns:
        The two files.
    """
    from matplotlib import rc_context

    files = [stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "svg")]
    with rc_context({"svg.hashsalt": "trim-graph"}):
        figure.savefig(files[0], dpi=DPI)
        figure.savefig(files[1], metadata={"Date": None})
    return files


def svg_of(figure: Figure) -> bytes:
    """Return a figure as SVG without a background."""
    from io import BytesIO

    from matplotlib import rc_context

    stream = BytesIO()
    with rc_context({"svg.hashsalt": "trim-graph"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return stream.getvalue()


def draw_accuracy(points: Sequence[CurvePoint], small: float, large: float, *, dark: bool = False) -> Figure:
    """Draw accuracy against the share of large tokens.

    Args:
        points: One for each arm that routes, with intervals where they are known.
        small: Accuracy of the small model alone, at share 0.
        large: Accuracy of the large model alone, at share 1. The straight line between the two is what giving
            whole questions to one of the models at random comes to on average.
        dark: Whether it is to be shown on a dark ground.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with _style(dark):
        figure, axes = _figure()
        grey = "0.65" if dark else "0.4"
        axes.plot([0, 1], [small, large], "--", color=grey, linewidth=1.2, label="whole questions at random")
        axes.plot([0], [small], "o", color=grey, label="small alone")
        axes.plot([1], [large], "s", color=grey, label="large alone")
        for number, point in enumerate(sorted(points, key=lambda one: one.share)):
            axes.errorbar(
                [point.share],
                [point.accuracy],
                xerr=_arms(point.share, point.share_interval),
                yerr=_arms(point.accuracy, point.accuracy_interval),
                fmt=MARKS[(number + 2) % len(MARKS)],
                color=COLOURS[number % len(COLOURS)],
                capsize=2.5,
                label=_short(point.name),
            )
        axes.set(xlabel="large tokens, as a share of the large model alone", ylabel="accuracy")
        axes.set_xlim(-0.03, max([1.03, *(1.03 * point.share for point in points)]))
        axes.legend(fontsize=8, loc="best")
        return figure


def draw_reliability(curves: Mapping[str, Discrimination], *, dark: bool = False) -> Figure:
    """Draw reliability curves: of what scored so much, the share that was right.

    Args:
        curves: By name; those without any rated step are left out.
        dark: Whether it is to be shown on a dark ground.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with _style(dark):
        figure, axes = _figure()
        axes.plot([0, 1], [0, 1], ":", color="0.65" if dark else "0.4", linewidth=1.2, label="calibrated")
        for number, (name, found) in enumerate(curves.items()):
            bins = found["bins"]
            if not bins:
                continue
            right = [one["right"] for one in bins]
            spread = [_arms(one["right"], one["right_interval"]) or [[0.0], [0.0]] for one in bins]
            auc = "" if found["auc"] is None else f", AUC {found['auc']:.3f}"
            axes.errorbar(
                [one["mean_score"] for one in bins],
                right,
                yerr=[[pair[side][0] for pair in spread] for side in (0, 1)],
                fmt=MARKS[number % len(MARKS)] + _LINES[number % len(_LINES)],
                color=COLOURS[number % len(COLOURS)],
                markersize=4,
                linewidth=1.2,
                capsize=2.5,
                label=f"{_short(name)}{auc}",
            )
        axes.set(xlabel="mean score", ylabel="share right", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.legend(fontsize=8, loc="upper left")
        return figure


def draw_positions(arms: Mapping[str, Positions], *, dark: bool = False) -> Figure:
    """Draw where in a solution the large model writes: its share of the steps in each tenth of a solution.

    Args:
        arms: By name.
        dark: Whether it is to be shown on a dark ground.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with _style(dark):
        figure, axes = _figure()
        for number, (name, positions) in enumerate(arms.items()):
            parts = len(positions.by_part)
            known = [(at, large / n) for at, (n, large) in enumerate(positions.by_part) if n]
            axes.plot(
                [(at + 0.5) / parts for at, _ in known],
                [share for _, share in known],
                MARKS[number % len(MARKS)] + _LINES[number % len(_LINES)],
                color=COLOURS[number % len(COLOURS)],
                markersize=4,
                linewidth=1.2,
                label=_short(name),
            )
        axes.set(xlabel="place in the solution (0: first step)", ylabel="steps by the large model")
        axes.set(xlim=(0, 1), ylim=(-0.03, 1.03))
        if arms:
            axes.legend(fontsize=8, loc="best")
        return figure


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _style(dark: bool) -> AbstractContextManager[Any]:
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise ImportError(f'a picture needs matplotlib: pip install "trim-graph[eval]" ({error})') from error
    ink = "#d7dce3" if dark else "#222831"
    keys = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    ground = "#171b21" if dark else "#ffffff"
    return rc_context(
        {
            "font.size": 10,
            # A name from a file is shown as it is, not set as mathematics.
            "text.parse_math": False,
            "legend.framealpha": 0.7,
            "figure.facecolor": ground,
            "axes.facecolor": ground,
            **dict.fromkeys(keys, ink),
        }
    )


def _arms(value: float, spread: Interval | None) -> list[list[float]] | None:
    """Return the lengths of error bars."""
    if spread is None:
        return None
    return [[max(0.0, value - spread.low)], [max(0.0, spread.high - value)]]


def _short(name: str) -> str:
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    # matplotlib leaves a label that begins with _ out of the legend.
    shown = f" {shown}" if shown.startswith("_") else shown
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
