"""How trainings went: learning curves as CSV, JSON and a picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from .ppo import Point, Trained


def write_curves(trained: Sequence[Trained], folder: Path, name: str) -> list[Path]:
    """Write ``name.csv``, one row for each look, and ``name.json`` and ``name.png`` of the same.

    Args:
        trained: Any number of trainings.
        folder: Where to.
        name: Of the files.

    Returns:
        The files.
    """
    files = [folder / f"{name}.{ending}" for ending in ("csv", "json", "png")]
    with files[0].open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["kind", "lambda", "seed", *(column.name for column in fields(Point))])
        for one in trained:
            writer.writerows([one.kind, one.price, one.seed, *asdict(look).values()] for look in one.curve)
    document = [
        {
            "kind": one.kind,
            "lambda": one.price,
            "seed": one.seed,
            "validation": one.validation._asdict(),
            "curve": [asdict(look) for look in one.curve],
        }
        for one in trained
    ]
    files[1].write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draw_curves(trained, files[2])
    return files


def draw_curves(trained: Sequence[Trained], file: Path) -> None:
    """Draw the reward on the validation questions over the decisions, one picture for each lambda."""
    from matplotlib.figure import Figure

    prices = sorted({one.price for one in trained})
    figure = Figure(figsize=(6, 2.2 * len(prices)), layout="constrained")
    for number, price in enumerate(prices):
        axes = figure.add_subplot(len(prices), 1, number + 1)
        for one in trained:
            if one.price == price:
                steps = [look.steps for look in one.curve]
                line = axes.plot(
                    steps, [look.reward for look in one.curve], label=f"{one.kind}, seed {one.seed}"
                )
                real = next((look.steps for look in one.curve if look.phase == "rollouts"), None)
                if real is not None and one.curve[0].phase == "simulator":
                    axes.axvline(real, color=line[0].get_color(), linestyle=":", linewidth=1)
        axes.set_title(f"lambda {price:g}", fontsize="medium")
        axes.set_ylabel("validation reward")
        axes.legend(fontsize="small", loc="lower right")
    axes.set_xlabel("decisions (dotted: from the simulator to real rollouts)")
    figure.savefig(file, dpi=120)
