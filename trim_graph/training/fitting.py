"""Fits a step model on traces or on labelled solutions, and draws how well it describes them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr  # type: ignore[import-untyped]
from scipy.stats import chi2  # type: ignore[import-untyped]

from trim_graph.errors import InputError, SettingsError
from trim_graph.policies.pomdp import step_tables

from .step_model import LOST, NO_EARLIER, RIGHT, SLIP, STATES, Floats, Ints, StepModel, labelled_steps

BANDWIDTHS = (0.01, 0.02, 0.04, 0.08)
"""Widths of the kernels to choose from, the same for both scores, by held-out likelihood."""
SHRINKS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Weights to choose from, by held-out likelihood, of a score that is independent of the least earlier one."""
FOLDS = 5
UNIFORM = 1e-3
"""Share of every table that is uniform: no score is impossible in any state."""


@dataclass(frozen=True, slots=True)
class Drafts:
    """Steps with known state; arrays of shape (n,).

    Attributes:
        run: Number of the step's trace.
        index: Step, from 0.
        state: `RIGHT`, `LOST` or `SLIP`.
        least: Least score of the steps before.
        score: Score of the step; NaN where there is none.
        tokens: Tokens of the step; 0 where nobody counted.
        large: Whether the large model wrote the step.
    """

    run: Ints
    index: Ints
    state: Ints
    least: Floats
    score: Floats
    tokens: Floats
    large: npt.NDArray[np.bool_]

    def of(self, where: npt.NDArray[np.bool_]) -> Drafts:
        """Returns some of them."""
        return Drafts(*(getattr(self, name)[where] for name in self.__slots__))

    def scored(self) -> Drafts:
        """Returns those by the small model that have a score."""
        return self.of(~self.large & np.isfinite(self.score))


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Data of traces on which a step model is fitted.

    Attributes:
        drafts: All steps with known state, discarded drafts included.
        lengths: Steps of each solution.
        finished: Whether the solution ended by itself, and was not cut off.
        replaced: Tokens of discarded drafts.
        replacing: Tokens of the steps that replaced them.
        gains: Estimated gain of a rewrite, v_large - v_small, at each place with an advantage label; shape
            (m,).
        ended_right: Whether the solution with that place ended right; shape (m,).
    """

    drafts: Drafts
    lengths: Ints
    finished: npt.NDArray[np.bool_]
    replaced: float
    replacing: float
    gains: Floats = field(default_factory=lambda: np.empty(0))
    ended_right: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))


def read_training_data(traces: Iterable[Mapping[str, Any]]) -> TrainingData:
    """Reads labelled steps and lengths from traces, one at a time.

    Args:
        traces: As `trim_graph.evaluation.traces.read_traces` returns them.

    Raises:
        InputError: There is nothing in them.
    """
    rows: list[tuple[float, ...]] = []
    lengths, finished = [], []
    replaced = replacing = 0.0
    gains, ended_right = list[float](), list[bool]()
    for run, trace in enumerate(traces):
        if trace.get("error"):
            continue
        compared = (trace.get("policy") or {}).get("method") == "advantage" and trace["correct"] is not None
        lengths.append(len(trace["steps"]))
        finished.append(trace["stopped"] == "finished")
        least = NO_EARLIER
        for index, step, state, discarded_state in labelled_steps(trace):
            draft, large = step["discarded"], step["writer"] == "large"
            if compared and state in (RIGHT, SLIP) and not large and step.get("value") is not None:
                gains.append(1 - 2 * step["value"])
                ended_right.append(trace["correct"])
            if draft is not None and step["decision"] == "regenerate":
                replaced += draft["tokens"]
                replacing += step["tokens"]
            for part, found, by_large in ((draft, discarded_state, False), (step, state, large)):
                if found is not None:
                    score = np.nan if part["score"] is None else part["score"]
                    rows.append((run, index, found, least, score, part["tokens"], by_large))
            if step["score"] is not None:
                least = min(least, step["score"])
    if not rows:
        raise InputError("step model: the traces hold no labelled step; a model of steps needs labels")
    table = np.array(rows, np.float64)
    run_of, index_of, state_of = table[:, :3].astype(np.intp).T
    drafts = Drafts(
        run_of,
        index_of,
        state_of,
        least=table[:, 3],
        score=table[:, 4],
        tokens=table[:, 5],
        large=table[:, 6] > 0,
    )
    return TrainingData(
        drafts,
        np.array(lengths),
        np.array(finished),
        replaced,
        replacing,
        np.array(gains, np.float64),
        np.array(ended_right, np.bool_),
    )


def fit(
    traces: Iterable[Mapping[str, Any]] | TrainingData,
    *,
    p_large: float | None = None,
    bins: int = 20,
    tokens: npt.ArrayLike | None = None,
    made: dict[str, Any] | None = None,
) -> StepModel:
    """Fits a step model.

    Args:
        traces: Traces with labels and scores, or the result of `read_training_data`. Labelled solutions in
            the shape of ProcessBench become traces by `trim_graph.evaluation.scorer_metrics.score_labelled`.
        p_large: Chance of the large model's step to be right; replaces what the traces say. Needed where they
            hold neither labelled steps of it nor advantage labels.
        bins: Number of bins of a score.
        tokens: Token counts of a draft. Needed where nobody counted; replaces what the traces say.
        made: Says where the traces come from.

    Raises:
        InputError: The traces do not hold enough to fit on; the message says what is missing.
        SettingsError: A setting is out of range.
    """
    if bins < 2:
        raise SettingsError(f"step model: bins={bins}; choose 2 or more")
    data = traces if isinstance(traces, TrainingData) else read_training_data(traces)
    drafts = data.drafts
    alive, scored = drafts.state != LOST, drafts.scored()
    edges = np.linspace(0.0, 1.0, bins + 1)
    tables, shrink = np.empty((3, bins, bins)), np.empty(3)
    widths = []
    for state, name in ((RIGHT, "right"), (LOST, "behind a wrong step"), (SLIP, "first wrong")):
        part = scored.of(scored.state == state)
        if len(part.run) < 2 * FOLDS:
            raise InputError(
                f"step model: only {len(part.run)} scored drafts of the small model are {name}; "
                f"at least {2 * FOLDS} are needed. Files of labels have no scores: score them first, with "
                "trim-graph eval-scorer --out"
            )
        tables[state], width, shrink[state] = estimate(part, edges)
        widths.append(width)
    p_small = _chance(drafts.state[~drafts.large & alive])
    if p_large is None:
        p_large = _large_chance(data, p_small)
    if tokens is None:
        counted = drafts.tokens[~drafts.large & (drafts.tokens > 0)]
        if not len(counted):
            raise InputError(
                "step model: nobody counted tokens in the traces; give tokens of a draft (--tokens)"
            )
        tokens = np.round(np.quantile(counted, (np.arange(9) + 0.5) / 9))
    return StepModel(
        p_small=p_small,
        p_large=float(p_large),
        hazard=hazard_of(data.lengths, data.finished),
        edges=edges,
        tables=tables,
        tokens=np.atleast_1d(np.asarray(tokens, np.float64)),
        shrink=shrink,
        large_ratio=_large_ratio(data),
        made={
            "solutions": len(data.lengths),
            "drafts": len(scored.run),
            "method": "kernel",
            "widths": widths,
            **(made or {}),
        },
    )


def _chance(states: Ints) -> float:
    """Returns the share of right steps; half a step of either kind keeps it off 0 and 1 (Jeffreys' prior)."""
    return float(((states == RIGHT).sum() + 0.5) / (len(states) + 1))


def _large_chance(data: TrainingData, p_small: float) -> float:
    """Returns how likely the large model's step is right, from its labelled steps or from advantage labels.

    With advantage labels: the small model continues behind either step, and ends right with the same chance c
    behind any right step and never behind a wrong one. Then the mean of v_small is p_small * c and that of
    v_large is p_large * c, so p_large / p_small = 1 + mean(gain) / mean(v_small). For v_small, which the
    labels do not hold, the outcome of the labelled solution is an unbiased estimate.

    Raises:
        InputError: The traces hold too little of either.
    """
    drafts = data.drafts
    own = drafts.large & (drafts.state != LOST)
    if own.any():
        return _chance(drafts.state[own])
    places, right = len(data.gains), int(data.ended_right.sum())
    if right < 2 * FOLDS:
        raise InputError(
            f"step model: no labelled step of the large model in the traces, and {places} advantage labels, "
            f"{right} of them in solutions that ended right, where {2 * FOLDS} are needed; give p_large "
            "(--p-large), or label solutions of the large model too"
        )
    return float(np.clip(p_small * (1 + data.gains.sum() / right), UNIFORM, 1 - UNIFORM))


def _large_ratio(data: TrainingData) -> float:
    """Returns large tokens for one token of a draft: where drafts were replaced, else by the mean steps."""
    if data.replaced and data.replacing:
        return data.replacing / data.replaced
    large, small = (
        data.drafts.tokens[(data.drafts.large == by_large) & (data.drafts.tokens > 0)]
        for by_large in (True, False)
    )
    return float(large.mean() / small.mean()) if len(large) and len(small) else 1.0


PSEUDO_SOLUTIONS = 2.0
"""Weight of the hazard over all steps in that of one step, in solutions."""


def hazard_of(lengths: Ints, finished: npt.NDArray[np.bool_]) -> Floats:
    """Returns the hazard of ending at each step, from solutions of which some were cut off.

    Ends divided by solutions that got there (the life-table estimate); where few did, drawn to the hazard
    over all steps by `PSEUDO_SOLUTIONS`.

    Raises:
        InputError: No solution ended by itself.
    """
    if not finished.any():
        raise InputError("step model: no solution in the traces ended by itself")
    steps = int(lengths[finished].max())
    ends = np.bincount(lengths[finished] - 1, minlength=steps)[:steps].astype(np.float64)
    reached = np.array([(lengths > step).sum() for step in range(steps)], np.float64)
    overall = ends.sum() / reached.sum()
    hazard = (ends + PSEUDO_SOLUTIONS * overall) / (reached + PSEUDO_SOLUTIONS)
    # Before the first end ever seen nothing ends.
    hazard[: int(np.flatnonzero(ends)[0])] = 0.0
    hazard[-1] = 1.0
    return np.asarray(hazard)


def estimate(drafts: Drafts, edges: Floats) -> tuple[Floats, float, float]:
    """Returns P(least, score) over the bins, the width of the kernels, and the weight of shrinking.

    Both are chosen by held-out likelihood: the one of the pair, then that of the score given the least one.
    Whole solutions are held out: steps of one solution share their least score.
    """
    parts = [
        (drafts.of(drafts.run % FOLDS != fold), drafts.of(drafts.run % FOLDS == fold))
        for fold in range(FOLDS)
    ]
    parts = [(train, test) for train, test in parts if len(train.run) and len(test.run)]
    tables = {width: [_kernel(train, edges, width) for train, _ in parts] for width in BANDWIDTHS}

    def likelihood(of: list[Floats]) -> float:
        return sum(float(np.log(_at(t, test, edges)).sum()) for t, (_, test) in zip(of, parts, strict=True))

    def given(shrink: float) -> list[Floats]:
        return [step_tables(table[None], "carried", shrink)[0] for table in tables[width]]

    width = max(BANDWIDTHS, key=lambda choice: likelihood(tables[choice]))
    shrink = max(SHRINKS, key=lambda choice: likelihood(given(choice)))
    return _kernel(drafts, edges, width), width, shrink


def _at(table: Floats, drafts: Drafts, edges: Floats) -> Floats:
    low, score = (np.searchsorted(edges[1:-1], part, side="right") for part in (drafts.least, drafts.score))
    return np.asarray(table[low, score])


def _kernel(drafts: Drafts, edges: Floats, width: float) -> Floats:
    """Returns Gaussian kernels reflected at 0 and 1, integrated over the bins exactly."""
    table = _mass(drafts.least, edges, width).T @ _mass(drafts.score, edges, width)
    return np.asarray((1 - UNIFORM) * table / table.sum() + UNIFORM / table.size)


def _mass(values: Floats, edges: Floats, width: float) -> Floats:
    """Returns the share of each value's kernel in each bin."""
    copies = np.stack([values, -values, 2 - values])
    below = ndtr((edges - copies[..., None]) / width)
    return np.asarray(np.diff(below, axis=-1).sum(0))


MIN_DRAFTS = 20
"""Fewer drafts than this at one step say nothing of the accuracy there."""


def counts_of(model: StepModel, drafts: Drafts) -> Floats:
    """Returns how many drafts fall into each bin of (least, score)."""
    counts = np.zeros((model.bins, model.bins))
    np.add.at(counts, (model.bin_of(drafts.least), model.bin_of(drafts.score)), 1)
    return counts


def step_accuracy(drafts: Drafts, modelled: float, *, large: bool) -> dict[str, Any]:
    """Compares the accuracy at each step with one for all, the model's."""
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
    """Returns the probability that a solution has 1, 2, ... steps."""
    return np.asarray(np.cumprod(np.concatenate([[1.0], 1 - model.hazard[:-1]])) * model.hazard)


def draw(model: StepModel, path: str | os.PathLike[str], data: TrainingData | None = None) -> None:
    """Draws the tables, the accuracy by step and the lengths, traces beside the model where they are given.

    Args:
        model: The step model.
        path: An image; the ending says which kind (``.png``, ``.svg``, ``.pdf``).
        data: Traces to compare with.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f'a plot needs matplotlib: pip install "trim-graph[train]" ({error})') from error
    rows = 3 if data else 2
    figure = Figure(figsize=(12, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, 3)
    _tables(axes[0], model.tables, "model: ")
    if data:
        drafts = data.drafts.scored()
        counts = np.stack([counts_of(model, drafts.of(drafts.state == state)) for state in range(3)])
        seen = counts / np.maximum(counts.sum((1, 2), keepdims=True), 1)
        _tables(axes[1], seen, "traces: ")
    _margins(axes[-1][0], model, seen if data else None)
    _accuracies(axes[-1][1], model, data)
    lengths = np.arange(1, model.steps + 1)
    axes[-1][2].plot(lengths, ending_chances(model), label="model")
    if data and data.finished.any():
        ended = data.lengths[data.finished]
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


def _accuracies(axis: Any, model: StepModel, data: TrainingData | None) -> None:
    for large, name, chance in ((False, "small", model.p_small), (True, "large", model.p_large)):
        line = axis.plot([1, model.steps], [chance, chance], label=name)[0]
        if data is not None:
            steps = step_accuracy(data.drafts, chance, large=large)["by_step"]
            share = [entry["right"] / entry["n"] for entry in steps]
            error = [(p * (1 - p) / entry["n"]) ** 0.5 for p, entry in zip(share, steps, strict=True)]
            at = [entry["step"] + 1 for entry in steps]
            axis.errorbar(at, share, yerr=error, fmt="o", color=line.get_color(), markersize=3)
    axis.set(title="chance of a step to be right, after right ones", xlabel="step", ylim=(0, 1.02))
    axis.legend()
