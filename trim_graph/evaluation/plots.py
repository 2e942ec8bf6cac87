"""Plots of measurements, each as PNG and SVG. They need matplotlib: ``pip install "trim-graph[eval]"``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .metrics import Interval
from .scorer_metrics import Discrimination

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (4.8, 3.6)
"""Inches."""
DPI = 150
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
ON_DARK = ("#56B4E9", "#E69F00", "#2FC79C", "#DE94BD", "#F0E442", "#A5B4FF")
MARKS = "osD^vPX*"
_LINES = ("-", "--", "-.", ":")
_LONGEST = 28
"""Letters of a name in a legend."""
_INSIDE = 4
"""Families up to which a legend lies among the points."""


class ArmPoint(NamedTuple):
    """Spend and accuracy of one arm."""

    family: str
    """Points of one family are joined by a line."""
    share: float
    """Large tokens as a share of what the large model alone uses."""
    accuracy: float
    share_interval: Interval | None = None
    accuracy_interval: Interval | None = None


class Positions(NamedTuple):
    """Shares of the solutions of one arm that the large model wrote, by place."""

    by_step: Sequence[float | None]
    """Share of the first, second, ... steps; None where too few solutions are that long."""
    by_place: Sequence[float | None]
    """Share of the steps in each tenth of a solution, steps counted as equally long."""


def save_plot(figure: Figure, stem: Path) -> list[Path]:
    """Writes ``stem.png`` and ``stem.svg``; the same figure gives the same bytes.

    Args:
        figure: From one of the functions here.
        stem: Path without an ending.

    Returns:
        The two files.
    """
    files = [stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "svg")]
    with _writing():
        figure.savefig(files[0], dpi=DPI)
        figure.savefig(files[1], metadata={"Date": None})
    return files


def svg_of(figure: Figure) -> bytes:
    """Returns a figure as SVG without a background."""
    stream = BytesIO()
    with _writing():
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return stream.getvalue()


@contextmanager
def _writing() -> Iterator[None]:
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "trim-graph"}), warnings.catch_warnings():
        # A name in a script that the font does not have is drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def draw_accuracy(
    points: Sequence[ArmPoint],
    small: ArmPoint,
    large: ArmPoint,
    *,
    beside: Sequence[ArmPoint] = (),
    dark: bool = False,
) -> Figure:
    """Draws accuracy against the share of large tokens.

    Args:
        points: One for each arm that routes, with intervals where they are known.
        small: The small model alone.
        large: The large model alone. The straight line between the two is what giving whole questions to one
            of the models at random reaches on average.
        beside: Points of other methods, to compare with: grey, and not joined.
        dark: Whether it is to be shown on a dark ground.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with _style(dark):
        figure, axes = _figure()
        grey = "0.65" if dark else "0.4"
        ends = [small.share, large.share], [small.accuracy, large.accuracy]
        axes.plot(*ends, "--", color=grey, linewidth=1.2, label="whole questions at random")
        for point, mark in ((small, "o"), (large, "s")):
            _draw_points(axes, [point], fmt=mark, color=grey, label=_short(point.family))
        for family in dict.fromkeys(point.family for point in beside):
            others = [point for point in beside if point.family == family]
            _draw_points(axes, others, fmt="x", color=grey, label=_short(family))
        families = dict.fromkeys(point.family for point in points)
        for number, family in enumerate(families):
            joined = sorted((p for p in points if p.family == family), key=lambda point: point.share)
            style = {"color": _colour(number, dark), "label": _short(family)}
            _draw_points(axes, joined, fmt=f"{MARKS[(number + 2) % len(MARKS)]}-", **style)
        axes.set(xlabel="large tokens, as a share of the large model alone", ylabel="accuracy")
        axes.set_xlim(-0.03, max([1.03, *(1.03 * point.share for point in [*points, *beside])]))
        if beside or len(families) > _INSIDE:
            figure.legend(fontsize=8, loc="outside lower center", ncols=2)
        else:
            axes.legend(fontsize=8, loc="best")
        return figure


def positions_of(figure: Figure, points: Sequence[ArmPoint]) -> list[tuple[float, float]]:
    """Returns where points lie in a figure of `draw_accuracy`: shares of its size, from the top left."""
    with _writing():
        figure.draw_without_rendering()
    places = figure.axes[0].transData.transform([(point.share, point.accuracy) for point in points])
    return [(float(x / figure.bbox.width), float(1 - y / figure.bbox.height)) for x, y in places]


def draw_reliability(curves: Mapping[str, Discrimination], *, dark: bool = False) -> Figure:
    """Draws reliability curves: of what scored so much, the share that was right.

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
            spread = [_arms(one["right"], one["right_interval"]) for one in bins]
            auc = "" if found["auc"] is None else f", AUC {found['auc']:.3f}"
            axes.errorbar(
                [one["mean_score"] for one in bins],
                [one["right"] for one in bins],
                yerr=[[pair[side] for pair in spread] for side in (0, 1)],
                fmt=MARKS[number % len(MARKS)] + _LINES[number % len(_LINES)],
                color=_colour(number, dark),
                markersize=4,
                linewidth=1.2,
                capsize=2.5,
                label=f"{_short(name)}{auc}",
            )
        axes.set(xlabel="mean score", ylabel="share right", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.legend(fontsize=8, loc="upper left")
        return figure


def draw_places(arms: Mapping[str, Positions], *, dark: bool = False) -> Figure:
    """Draws how much the large model writes in each tenth of a solution.

    Args:
        arms: By name.
        dark: Whether it is to be shown on a dark ground.

    Raises:
        ImportError: matplotlib is not installed.
    """
    shares = {name: found.by_place for name, found in arms.items()}
    figure = _draw_shares(shares, lambda at, n: (at + 0.5) / n, dark)
    figure.axes[0].set(xlabel="place in the solution, from beginning to end", xlim=(0, 1))
    return figure


def draw_steps(arms: Mapping[str, Positions], *, dark: bool = False) -> Figure:
    """Draws how many of the first, second, ... steps the large model writes.

    Args:
        arms: By name.
        dark: Whether it is to be shown on a dark ground.

    Raises:
        ImportError: matplotlib is not installed.
    """
    shares = {name: found.by_step for name, found in arms.items()}
    figure = _draw_shares(shares, lambda at, n: at + 1.0, dark)
    from matplotlib.ticker import MaxNLocator

    figure.axes[0].set(xlabel="step of the solution")
    figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _draw_shares(
    arms: Mapping[str, Sequence[float | None]], place: Callable[[int, int], float], dark: bool
) -> Figure:
    with _style(dark):
        figure, axes = _figure()
        for number, (name, shares) in enumerate(arms.items()):
            known = [(place(at, len(shares)), share) for at, share in enumerate(shares) if share is not None]
            axes.plot(
                [at for at, _ in known],
                [share for _, share in known],
                MARKS[number % len(MARKS)] + _LINES[number % len(_LINES)],
                color=_colour(number, dark),
                markersize=4,
                linewidth=1.2,
                label=_short(name),
            )
        axes.set(ylabel="written by the large model", ylim=(-0.03, 1.03))
        if arms:
            axes.legend(fontsize=8, loc="best")
        return figure


def _draw_points(axes: Axes, points: Sequence[ArmPoint], **style: Any) -> None:
    def bars(values: Sequence[tuple[float, Interval | None]]) -> list[list[float]] | None:
        known = [_arms(value, spread) for value, spread in values]
        return [[pair[side] for pair in known] for side in (0, 1)] if any(map(any, known)) else None

    axes.errorbar(
        [point.share for point in points],
        [point.accuracy for point in points],
        xerr=bars([(point.share, point.share_interval) for point in points]),
        yerr=bars([(point.accuracy, point.accuracy_interval) for point in points]),
        markersize=5,
        linewidth=1.2,
        capsize=2.5,
        **style,
    )


def _colour(number: int, dark: bool) -> str:
    return (ON_DARK if dark else COLOURS)[number % len(COLOURS)]


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
        raise ImportError(f'a plot needs matplotlib: pip install "trim-graph[eval]" ({error})') from error
    ink = "#d7dce3" if dark else "#222831"
    ground = "#171b21" if dark else "#ffffff"
    return rc_context(
        {
            "font.size": 10,
            # A name from a file is shown as it is, not set as mathematics.
            "text.parse_math": False,
            "legend.framealpha": 0.7,
            "figure.facecolor": ground,
            "axes.facecolor": ground,
            "text.color": ink,
            "axes.labelcolor": ink,
            "axes.edgecolor": ink,
            "xtick.color": ink,
            "ytick.color": ink,
        }
    )


def _arms(value: float, spread: Interval | None) -> tuple[float, float]:
    """Returns the lengths of error bars, below and above."""
    return (0.0, 0.0) if spread is None else (max(0.0, value - spread[0]), max(0.0, spread[1] - value))


def _short(name: str) -> str:
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    # matplotlib leaves a label that begins with _ out of the legend.
    shown = f" {shown}" if shown.startswith("_") else shown
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
