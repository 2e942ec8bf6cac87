"""Calibration of a trained scorer, its metrics on held-out questions, and its model card.

Imports no torch.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trim_graph.adapters.prm.scorer_file import (
    LEAST_TOKEN_PROBABILITY,
    ScorerFile,
    Stacking,
    log_odds,
)
from trim_graph.evaluation.baselines import step_pattern
from trim_graph.evaluation.scorer_metrics import (
    against_token_probability,
    best_threshold,
    compute_scorer_metrics,
    looked_at,
    step_rows,
    within_kinds,
)

from .scorer_data import LabelledSteps

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .scorer import Encoded, ScorerTraining

    Floats = NDArray[np.float64]

ScoredSolutions = Sequence[tuple[LabelledSteps, list[float]]]

_OF_VALUE = ("advantage", "agreement")
"""Methods whose values are no probability that a step is right."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Results of a training, for its card.

    Attributes:
        validation: Solutions of the questions that the calibration was fitted on, and the scores that it
            gives them.
        held_out: Solutions that the metrics are of, and the scores.
        head_alone: The same solutions and the head's scores, where these are combined with token
            probabilities; else None.
        held_out_is: ``test``; without test questions as ``calibrated_with``.
        calibrated_with: ``cross-validated`` for a head: all questions but the test's, each rated by a head
            that has not learned from it. ``validation`` for tuned weights.
        calibrated_on: What the calibration was fitted on.
        skipped: Solutions left out as too long.
        questions: Number of questions by part.
        steps: Number of steps with a target by part.
        seconds: Duration of the training.
    """

    validation: ScoredSolutions
    held_out: ScoredSolutions
    head_alone: ScoredSolutions | None
    held_out_is: str
    calibrated_with: str
    calibrated_on: str
    skipped: int
    questions: dict[str, int]
    steps: dict[str, int]
    seconds: float


class CalibrationSteps(NamedTuple):
    """Steps of questions that the head has not learned from, for the calibration.

    Attributes:
        logits: Value of the head at each step.
        targets: In [0, 1].
        token_probabilities: Mean token probability of each step of the small model; NaN where it is not
            known, and of other writers.
        questions: Question of each step.
        targets_are: ``labels`` or ``values``.
    """

    logits: Floats
    targets: Floats
    token_probabilities: Floats
    questions: Sequence[str]
    targets_are: str


def calibration_steps(encoded: Sequence[Encoded], logits: Sequence[Floats], asked: str) -> CalibrationSteps:
    """Joins the logits of validation steps and the targets to calibrate them on.

    Args:
        encoded: Validation solutions.
        logits: One array for each.
        asked: ``auto``, ``value`` or ``label``; see `trim_graph.training.scorer.ScorerTraining`.
    """
    import numpy as np

    hard = all(one.solution.hard and one.solution.method not in _OF_VALUE for one in encoded)
    on_labels = asked == "label" or (asked == "auto" and hard)
    found, questions = list[tuple[float, float, float]](), list[str]()
    for one, values in zip(encoded, logits, strict=True):
        solution = one.solution
        targets: Sequence[float | None] = solution.targets
        if on_labels:
            known = looked_at(solution.rated(values.tolist()))
            targets = [float(right) for _, right in known] + [None] * (len(values) - len(known))
        probabilities = [
            math.nan if probability is None or writer != "small" else probability
            for probability, writer in zip(solution.token_probabilities, solution.writers, strict=True)
        ]
        steps = zip(values.tolist(), targets, probabilities, strict=True)
        kept = [(value, target, other) for value, target, other in steps if target is not None]
        found += kept
        questions += [solution.question] * len(kept)
    rows = np.array(found, dtype=np.float64)
    targets_are = "labels" if on_labels else "values"
    return CalibrationSteps(rows[:, 0], rows[:, 1], rows[:, 2], questions, targets_are)


def fit_platt(logits: Floats, targets: Floats) -> tuple[float, float]:
    """Fits scale and shift of the logits so that their sigmoids are calibrated.

    Platt's method (1999): least cross entropy, with his smoothed targets. The scale stays above 0, so that
    the order of the scores stays.

    Args:
        logits: Of validation steps.
        targets: In [0, 1].

    Returns:
        Scale and shift.
    """
    (scale,), shift, _ = _fit_logistic([logits], targets, least=1e-3)
    return scale, shift


LEAST_QUESTIONS = 10
"""Questions below which no combination with token probabilities is fitted."""
_CRITICAL = 3.84
"""The 95 % quantile of chi-squared with one degree of freedom."""


def fit_stacking(steps: CalibrationSteps, scale: float, shift: float) -> Stacking | None:
    """Fits the combination of the calibrated scores with the mean token probabilities.

    The token probability is taken in where it improves the fit by a likelihood-ratio test at 5 %.

    Args:
        steps: Steps of questions that the head has not learned from.
        scale: Scale of the calibrated logits.
        shift: Their shift.

    Returns:
        The combination; None where the token probabilities of fewer than `LEAST_QUESTIONS` questions are
        known, are all the same, or add nothing.
    """
    import numpy as np

    known = ~np.isnan(steps.token_probabilities)
    questions = {one for one, kept in zip(steps.questions, known, strict=True) if kept}
    if len(questions) < LEAST_QUESTIONS:
        return None
    targets, logits = steps.targets[known], scale * steps.logits[known] + shift
    odds = np.array(
        [log_odds(one, LEAST_TOKEN_PROBABILITY) for one in steps.token_probabilities[known]], dtype=np.float64
    )
    if np.ptp(odds) < 1e-6 or np.ptp(targets) == 0:
        return None
    *_, alone = _fit_logistic([logits], targets, least=0.0)
    (score, token_probability), intercept, loss = _fit_logistic([logits, odds], targets, least=0.0)
    if not token_probability or 2 * len(targets) * (alone - loss) < _CRITICAL:
        return None
    return Stacking(intercept=intercept, score=score, token_probability=token_probability)


def _fit_logistic(
    features: Sequence[Floats], targets: Floats, *, least: float
) -> tuple[tuple[float, ...], float, float]:
    """Fits a logistic regression by the least cross entropy.

    Targets are smoothed as by Platt: (n + 1) / (n + 2) for n right steps and 1 / (n + 2) for n wrong ones, so
    that features without errors do not become certain.

    Args:
        features: One array a feature.
        targets: In [0, 1].
        least: Least weight of a feature times its spread.

    Returns:
        One weight a feature, the constant term, and the mean cross entropy in nats.
    """
    import numpy as np
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    right = float(targets.sum())
    high, low = (right + 1) / (right + 2), 1 / (len(targets) - right + 2)
    smoothed = low + (high - low) * targets
    spreads = np.array([float(feature.std()) or 1.0 for feature in features])
    rows = np.stack(features, axis=1) / spreads

    def loss(parameters: Floats) -> tuple[float, Floats]:
        values = rows @ parameters[:-1] + parameters[-1]
        error = 1 / (1 + np.exp(-np.clip(values, -500, 500))) - smoothed
        gradient = np.append(rows.T @ error / len(rows), error.mean())
        return float((np.logaddexp(0, values) - smoothed * values).mean()), gradient

    bounds = [(least, None)] * len(features) + [(None, None)]
    found = minimize(loss, np.append(spreads, 0.0), jac=True, bounds=bounds)
    weights = (found.x[:-1] / spreads).tolist()
    return tuple(weights), float(found.x[-1]), float(found.fun)


def measure(measured: Measured, *, pattern: str | None, seed: int) -> dict[str, Any]:
    """Computes the metrics of a scorer on held-out questions.

    The threshold of the first-error F1 is the best one on the questions of the calibration.

    Args:
        measured: Solutions and scores.
        pattern: Regular expression that finds the kind of a step; None: that of the datasets.
        seed: Of the bootstraps.
    """
    threshold = best_threshold([one.rated(scores) for one, scores in measured.validation])
    threshold = 0.5 if threshold is None else threshold
    metrics = compute_scorer_metrics(
        [one.rated(scores) for one, scores in measured.held_out], threshold, seed=seed
    )
    rows = step_rows(
        (one.question, one.steps, one.token_probabilities, one.rated(scores))
        for one, scores in measured.held_out
    )
    pattern = pattern or step_pattern(one.dataset for one, _ in measured.held_out)
    alone = None
    if measured.head_alone is not None:
        rated = [one.rated(scores) for one, scores in measured.head_alone]
        steps = compute_scorer_metrics(rated, threshold, seed=seed)["steps"]
        alone = {name: steps[name] for name in ("auc", "auc_interval", "brier")}
    return {
        "measured_on": f"{measured.held_out_is} questions",
        "questions": len({one.question for one, _ in measured.held_out}),
        "auc_within_kinds": within_kinds(rows, pattern),
        "against_token_probability": against_token_probability(rows, seed=seed),
        "head_alone": alone,
        **metrics,
    }


_LIBRARIES = ("trim-graph", "torch", "transformers", "peft", "scikit-learn")


def write_card(
    folder: Path,
    file: ScorerFile,
    measured: Measured,
    training: ScorerTraining,
    labels: Sequence[str],
    *,
    device: str,
    dtype: str,
) -> None:
    """Writes the model card, README.md.

    Args:
        folder: Folder of the scorer.
        file: Content of its `trim_scorer.json`.
        measured: What the training left.
        training: Its settings.
        labels: Names of the label files.
        device: Device it ran on.
        dtype: Type of the weights.
    """
    found = file.metrics
    versions = ", ".join(f"{name} {version}" for name in _LIBRARIES if (version := _version(name)))
    machine = f"{platform.system()} {platform.machine()}, {device}, {dtype}"
    tuned = {
        "head": "head only, base frozen",
        "lora": f"LoRA of rank {training.lora_rank}, merged",
        "full": "all",
    }
    lines = [
        "---",
        "library_name: transformers",
        f"base_model: {file.base}",
        "pipeline_tag: text-classification",
        "tags: [process-reward-model, trim-graph]",
        "---",
        "",
        f"# Step scorer on {file.base}",
        "",
        "Gives each step of a solution a probability that it is right. Made by `trim-graph train scorer`.",
        "",
        "```yaml",
        "scorer: {type: transformers_prm, model: THIS_FOLDER}",
        "```",
        "",
        f"## Metrics on {found['questions']} {found['measured_on']}",
        "",
        *_notes(measured),
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {text} |" for name, text in figure_rows(found)),
        "",
        "| score from | to | steps | mean score | share right |",
        "|---|---|---|---|---|",
        *map(_bin_row, found["steps"]["bins"]),
        "",
        "| kind of step | steps | right | AUC |",
        "|---|---|---|---|",
        *(
            f"| {_cell(one['kind'])} | {one['n']} | {one['right']} | {_number(one['auc'])} |"
            for one in found["auc_within_kinds"]["kinds"]
        ),
        "",
        "## Training",
        "",
        "| | |",
        "|---|---|",
        f"| labels | {', '.join(labels)}; method {file.method} |",
        *(
            f"| {part} | {measured.questions[part]} questions, {measured.steps[part]} steps with a target |"
            for part in ("train", "validation", "test")
        ),
        f"| left out as too long | {measured.skipped} solutions |",
        f"| trained weights | {tuned[file.tuning]} |",
        f"| step token | `{file.step_token}` |",
        f"| calibration | Platt's, on the {measured.calibrated_on} of {measured.calibrated_with} questions |",
        *_stacking_row(file),
        f"| seed | {training.seed} |",
        f"| time | {measured.seconds:.0f} s |",
        f"| machine | {machine} |",
        f"| libraries | {versions} |",
        f"| date | {datetime.date.today().isoformat()} |",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), "utf-8")


def _stacking_row(file: ScorerFile) -> list[str]:
    if file.stacking is None:
        return []
    weights = f"{file.stacking.score:.3g} and {file.stacking.token_probability:.3g}"
    return [
        f"| combined with | the mean token probability, by log-odds; weights {weights} |",
        "| needs | the token probabilities of the small model that wrote the labelled steps (`logprobs`) |",
    ]


def _bin_row(one: dict[str, Any]) -> str:
    shares = f"{one['mean_score']:.3f} | {one['right']:.3f}"
    return f"| {one['low']:.1f} | {one['high']:.1f} | {one['n']} | {shares} |"


def _notes(measured: Measured) -> list[str]:
    lines = ["In brackets 95 % intervals, by bootstrap over solutions or questions."]
    if measured.held_out_is == "validation":
        lines.append(
            "These questions also served early stopping, calibration, the combination with token "
            "probabilities and the threshold, so the metrics are somewhat too good."
        )
    elif measured.held_out_is == "cross-validated":
        lines.append(
            "Each question is rated by a head that has not learned from it. Calibration, the combination "
            "with token probabilities and the threshold are fitted on all of them."
        )
    if not all(one.hard for one, _ in measured.held_out):
        lines.append("Where no label is known, a step counts as right if its value is 0.5 or more.")
    return lines


def figure_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns names and texts of the metrics, for people."""
    steps, first = found["steps"], found["first_error"]
    other = found["against_token_probability"]
    rows = [
        ("AUC of steps", _number(steps["auc"], steps["auc_interval"])),
        *_head_alone(found["head_alone"]),
        ("AUC within a kind of step", _number(found["auc_within_kinds"]["auc"])),
        ("AUC of the kind of step alone", _number(found["auc_within_kinds"]["auc_of_kind"])),
        (
            "AUC of solutions, by the least score",
            _number(found["whole"]["auc"], found["whole"]["auc_interval"]),
        ),
        ("first-error F1", _number(first["f1"], first["f1_interval"])),
        ("threshold of the F1", f"{first['threshold']:.4g}"),
        ("calibration error (ECE)", _number(steps["calibration_error"])),
        ("Brier score", _number(steps["brier"])),
        ("steps", f"{steps['n']}, {steps['right']} of them right"),
    ]
    if other is None:
        return [*rows, ("against token probability", "unknown: the steps have none")]
    less = _number(other["difference"], other["difference_interval"])
    return [
        *rows,
        ("AUC of the mean token probability", _number(other["auc_of_other"])),
        ("AUC less that of token probability", less),
    ]


def _head_alone(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    text = _number(found["auc"], found["auc_interval"])
    return [("AUC of steps by the head, without token probability", text)]


def _number(value: float | None, spread: Any = None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if spread is None else f"{value:.3f} ({spread[0]:.3f} to {spread[1]:.3f})"


def _cell(kind: str | None) -> str:
    return "other" if kind is None else f"`{kind}`".replace("|", "\\|")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
