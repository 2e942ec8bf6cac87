"""How well a step model describes traces: figures, and a picture of both. The picture needs matplotlib."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from scipy.stats import chi2  # type: ignore[import-untyped]

from .fitting import Drafts, Material
from .simulator import Simulator
from .step_model import LOST, RIGHT, STATES, Floats, StepModel

MIN_DRAFTS = 20
"""Fewer drafts than this at one step say nothing of the accuracy there."""


def goodness_of_fit(model: StepModel, material: Material, *, simulated: int = 5000) -> dict[str, Any]:
    """Compare a model with traces, best with others than it was fitted on.

    Args:
        model: The step model.
        material: From `trim_graph.training.fitting.read_material`.
        simulated: Solutions to draw for the comparison of least scores.

    Returns:
        JSON-native. ``observation``: of each state the number of drafts ``n``; mean log-likelihood in nats of
        (least, score) under the model, with the two taken as independent, and uniform; total variation of
        the score and of the pair. ``accuracy``: by step, and the p-value of its being the same everywhere
        (chi-square). ``length``: means, and the greatest distance of the distribution functions.
        ``simulated_least``: total variation between the least scores that the simulator derives and those of
        the tables.
    """
    drafts = material.drafts.scored()
    return {
        "observation": {
            name: _observation(model, drafts.of(drafts.state == state), state)
            for state, name in enumerate(STATES)
        },
        "accuracy": {
            "small": _accuracy(material.drafts, model.p_small, large=False),
            "large": _accuracy(material.drafts, model.p_large, large=True),
        },
        "length": _length(model, material),
        "simulated_least": least_distance(model, simulated),
    }


def counts_of(model: StepModel, drafts: Drafts) -> Floats:
    """Return how many drafts fall into each bin of (least, score)."""
    counts = np.zeros((model.bins, model.bins))
    np.add.at(counts, (model.bin_of(drafts.least), model.bin_of(drafts.score)), 1)
    return counts


def _observation(model: StepModel, drafts: Drafts, state: int) -> dict[str, Any]:
    counts = counts_of(model, drafts)
    n = int(counts.sum())
    if not n:
        return {"n": 0}
    table, share = model.tables[state], counts / n
    margins = np.outer(table.sum(1), table.sum(0))
    tiny = np.finfo(np.float64).tiny

    def mean(of: Floats) -> float:
        return float((share * np.log(np.maximum(of, tiny))).sum())

    return {
        "n": n,
        "log_likelihood": mean(table),
        "log_likelihood_independent": mean(margins),
        "log_likelihood_uniform": -float(np.log(counts.size)),
        "total_variation_score": float(np.abs(share.sum(0) - table.sum(0)).sum() / 2),
        "total_variation_pair": float(np.abs(share - table).sum() / 2),
    }


def _accuracy(drafts: Drafts, modelled: float, *, large: bool) -> dict[str, Any]:
    """Compare the accuracy at each step with one for all, the model's."""
    own = drafts.of((drafts.large == large) & (drafts.state != LOST))
    steps = []
    for step in np.unique(own.index):
        right = own.state[own.index == step] == RIGHT
        if len(right) >= MIN_DRAFTS:
            steps.append({"step": int(step), "n": len(right), "right": int(right.sum())})
    report: dict[str, Any] = {"modelled": modelled, "by_step": steps}
    if len(steps) > 1:
        n, right = (np.array([entry[key] for entry in steps], np.float64) for key in ("n", "right"))
        overall = right.sum() / n.sum()
        if 0 < overall < 1:
            statistic = float(((right - n * overall) ** 2 / (n * overall * (1 - overall))).sum())
            report["same_everywhere_p"] = float(chi2.sf(statistic, len(steps) - 1))
    return report


def ending_chances(model: StepModel) -> Floats:
    """Return the probability that a solution has 1, 2, ... steps."""
    return np.asarray(np.cumprod(np.concatenate([[1.0], 1 - model.hazard[:-1]])) * model.hazard)


def _length(model: StepModel, material: Material) -> dict[str, float]:
    lengths, chances = material.lengths[material.finished], ending_chances(model)
    if not len(lengths):
        return {"n": 0}
    seen = np.bincount(np.minimum(lengths, model.steps) - 1, minlength=model.steps) / len(lengths)
    return {
        "n": len(lengths),
        "mean": float(lengths.mean()),
        "mean_modelled": float((chances * np.arange(1, model.steps + 1)).sum()),
        "distance": float(np.abs(np.cumsum(seen) - np.cumsum(chances)).max()),
    }


def least_distance(model: StepModel, n: int, seed: int = 0) -> dict[str, float]:
    """Return, by state, the total variation between derived least scores and the tables'.

    All drafts are accepted. The scores themselves agree by construction, given the least one.
    """
    counts = np.zeros((3, model.bins))
    simulator = Simulator(model, n, seed=seed)
    while not simulator.done.all():
        under_way = ~simulator.done
        np.add.at(counts, (simulator.state[under_way], model.bin_of(simulator.least[under_way])), 1)
        simulator.step(np.zeros(n, np.intp))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return dict(zip(STATES, (np.abs(shares - model.tables.sum(2)).sum(1) / 2).tolist(), strict=True))


def draw(model: StepModel, path: str | os.PathLike[str], material: Material | None = None) -> None:
    """Draw the tables, the accuracy by step and the lengths, traces beside the model where they are given.

    Args:
        model: The step model.
        path: An image; the ending says which kind (``.png``, ``.svg``, ``.pdf``).
        material: What to compare with.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f'a picture needs matplotlib: pip install "trim-graph[train]" ({error})') from error
    rows = 3 if material else 2
    figure = Figure(figsize=(12, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, 3)
    _tables(axes[0], model.tables, "model: ")
    if material:
        drafts = material.drafts.scored()
        counts = np.stack([counts_of(model, drafts.of(drafts.state == state)) for state in range(3)])
        seen = counts / np.maximum(counts.sum((1, 2), keepdims=True), 1)
        _tables(axes[1], seen, "traces: ")
    _margins(axes[-1][0], model, seen if material else None)
    _accuracies(axes[-1][1], model, material)
    lengths = np.arange(1, model.steps + 1)
    axes[-1][2].plot(lengths, ending_chances(model), label="model")
    if material and material.finished.any():
        ended = material.lengths[material.finished]
        values, n = np.unique(ended, return_counts=True)
        axes[-1][2].bar(values, n / len(ended), alpha=0.4, label="traces")
    axes[-1][2].set(title="steps of a solution", xlabel="steps")
    axes[-1][2].legend()
    figure.savefig(path, dpi=110)


def _tables(axes: Any, tables: Floats, title: str) -> None:
    for state, name in enumerate(STATES):
        shown = np.log10(np.maximum(tables[state], 1e-5))
        axes[state].imshow(shown, origin="lower", extent=(0, 1, 0, 1), vmin=-5, vmax=0, cmap="viridis")
        axes[state].set(title=f"{title}{name} (log10)", xlabel="score", ylabel="least earlier score")


def _margins(axis: Any, model: StepModel, seen: Floats | None) -> None:
    centres = (model.edges[1:] + model.edges[:-1]) / 2
    for state, name in enumerate(STATES):
        line = axis.plot(centres, model.tables[state].sum(0), label=name)[0]
        if seen is not None:
            axis.plot(centres, seen[state].sum(0), "o", color=line.get_color(), markersize=3)
    axis.set(title="score" + (" (dots: traces)" if seen is not None else ""), xlabel="score", yscale="log")
    axis.set_ylim(1e-4, 1)
    axis.legend()


def _accuracies(axis: Any, model: StepModel, material: Material | None) -> None:
    for large, name, chance in ((False, "small", model.p_small), (True, "large", model.p_large)):
        line = axis.plot([1, model.steps], [chance, chance], label=name)[0]
        if material is not None:
            steps = _accuracy(material.drafts, chance, large=large)["by_step"]
            share = [entry["right"] / entry["n"] for entry in steps]
            error = [(p * (1 - p) / entry["n"]) ** 0.5 for p, entry in zip(share, steps, strict=True)]
            at = [entry["step"] + 1 for entry in steps]
            axis.errorbar(at, share, yerr=error, fmt="o", color=line.get_color(), markersize=3)
    axis.set(title="chance of a step to be right, after right ones", xlabel="step", ylim=(0, 1.02))
    axis.legend()
