"""The step model: how solutions continue and how a scorer rates them. Policies are planned on it.

The states of a draft are those of TRIM-POMDP (arXiv 2601.10245, section 4.4): `RIGHT`, all is right so far,
the draft included; `LOST`, an accepted step is wrong; `SLIP`, the draft is the first wrong step. The
observation is the pair (least score of the earlier steps, score of the draft).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trim_graph.errors import SettingsError
from trim_graph.evaluation.scorer_metrics import labels_of_values
from trim_graph.policies.pomdp import step_tables

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

FORMAT = "trim-graph step model"
VERSION = 1

RIGHT, LOST, SLIP = 0, 1, 2
STATES = ("right so far", "lost before", "first wrong step")

NO_EARLIER = 1.0
"""The least score of the earlier steps where there are none."""

SHRINK = 1e-3
"""Where published tables hold less than about this of P(least earlier | state), the score is taken to be
independent of it: the far tails of kernel densities say nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class StepModel:
    """Step accuracies, the hazard of ending, and the scorer's tables.

    Attributes:
        p_small: Probability that the small model's next step is right, given that all before it is.
        p_large: The same probability for the large model.
        hazard: ``hazard[t]``: probability that a solution ends with its step ``t`` (from 0), given that it
            gets there. The last is 1.
        edges: Borders of the bins of a score, from 0 to 1.
        tables: P(least earlier score, score | state) over the bins; shape (3, bins, bins), each state sums
            to 1.
        tokens: Token counts of a draft, all equally likely.
        shrink: How far P(score | least, state) is drawn to P(score | state), for each state: this much joins
            P(least | state).
        large_ratio: Large tokens spent on replacing a draft, for one token of the draft.
        made: Where the model comes from, for people; JSON-native.
    """

    p_small: float
    p_large: float
    hazard: Floats
    edges: Floats
    tables: Floats
    tokens: Floats
    shrink: Floats = field(default_factory=lambda: np.full(3, SHRINK))
    large_ratio: float = 1.0
    made: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bins = len(self.edges) - 1
        for name in ("hazard", "edges", "tables", "tokens", "shrink"):
            array = np.ascontiguousarray(getattr(self, name), dtype=np.float64)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
            _require(array.size > 0 and bool(np.isfinite(array).all()), name, "must be finite numbers")
        for name in ("p_small", "p_large"):
            _require(0 < getattr(self, name) < 1, name, f"is {getattr(self, name)}; it must be in (0, 1)")
        _require(
            self.hazard.ndim == 1 and self.hazard.min() >= 0 and self.hazard.max() <= 1, "hazard", "is off"
        )
        _require(self.hazard[-1] == 1, "hazard", "must end with 1: a solution cannot be endless")
        ordered = self.edges.ndim == 1 and bins >= 1 and bool((np.diff(self.edges) > 0).all())
        _require(ordered and self.edges[0] == 0 and self.edges[-1] == 1, "edges", "must rise from 0 to 1")
        shape = (3, bins, bins)
        _require(self.tables.shape == shape, "tables", f"have shape {self.tables.shape}; expected {shape}")
        sums = self.tables.sum((1, 2))
        _require(self.tables.min() >= 0 and bool(np.allclose(sums, 1, atol=1e-6)), "tables", f"sum to {sums}")
        _require(self.tokens.ndim == 1 and self.tokens.min() > 0, "tokens", "must be positive")
        _require(self.shrink.shape == (3,) and self.shrink.min() > 0, "shrink", "must be 3 positive numbers")
        _require(self.large_ratio > 0, "large_ratio", "must be positive")

    @property
    def steps(self) -> int:
        """Most steps of a solution."""
        return len(self.hazard)

    @property
    def bins(self) -> int:
        """Number of bins of a score."""
        return len(self.edges) - 1

    @property
    def large_tokens(self) -> Floats:
        """Tokens of the large model for one step, all equally likely."""
        return self.tokens * self.large_ratio

    def bin_of(self, score: npt.ArrayLike) -> Ints:
        """Returns the bin of each score."""
        found = np.searchsorted(self.edges, np.asarray(score, np.float64), side="right") - 1
        return np.clip(found, 0, self.bins - 1)

    def score_alone(self) -> Floats:
        """Returns P(score | state), shape (3, bins)."""
        return np.asarray(self.tables.sum(1))

    def score_given_min(self) -> Floats:
        """Returns P(score | least earlier score, state), shape (3, bins, bins); see `shrink`."""
        return step_tables(self.tables, "carried", self.shrink)

    def changed(self, *, p_large: float | None = None, tokens: npt.ArrayLike | None = None) -> StepModel:
        """Returns the model for another large model, or other token counts."""
        return replace(
            self,
            p_large=self.p_large if p_large is None else p_large,
            tokens=self.tokens if tokens is None else np.asarray(tokens, np.float64),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model as JSON; an older file stays whole until the new one is."""
        file = Path(path)
        document = {
            "format": FORMAT,
            "version": VERSION,
            "p_small": self.p_small,
            "p_large": self.p_large,
            "large_ratio": self.large_ratio,
            **{
                name: getattr(self, name).tolist()
                for name in ("hazard", "edges", "tokens", "shrink", "tables")
            },
            "made": self.made,
        }
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            beside.write_text(json.dumps(document) + "\n", "utf-8")
            beside.replace(file)
        finally:
            beside.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> StepModel:
        """Reads what `save` wrote.

        Raises:
            SettingsError: There is no such file, it is no step model, or one of a later release.
        """
        document = read_document(path)
        if document.get("format") != FORMAT:
            raise SettingsError(f"{path} is no step model: it does not say format: {FORMAT!r}")
        if document.get("version") != VERSION:
            raise SettingsError(
                f"step model {path} has version {document.get('version')!r}; "
                f"this release of trim-graph reads version {VERSION}"
            )
        try:
            return cls(
                p_small=float(document["p_small"]),
                p_large=float(document["p_large"]),
                large_ratio=float(document["large_ratio"]),
                hazard=np.array(document["hazard"], np.float64),
                edges=np.array(document["edges"], np.float64),
                tables=np.array(document["tables"], np.float64),
                tokens=np.array(document["tokens"], np.float64),
                shrink=np.array(document["shrink"], np.float64),
                made=document.get("made") or {},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SettingsError(f"step model {path} is not valid: {error!r}") from error


_PUBLISHED = {
    "scores": "math-train",
    "ends": "slm",
    "small": "qwen2.5-1.5b-instruct",
    "large": "qwen2.5-7b-instruct",
}
"""Entries of the published parameters: scorer tables, solutions that give the hazard of ending, models."""
_PUBLISHED_TOKENS = 60.0
"""Tokens of a step, which are not among the parameters; the release's runs take 62 large tokens a step."""


def load_published(path: str | os.PathLike[str]) -> StepModel:
    """Reads the parameters that TRIM's authors published (arXiv 2601.10245; their release as JSON).

    They are those of Qwen2.5-1.5B and 7B; `StepModel.changed` replaces ``p_large`` and the tokens.

    Args:
        path: The JSON file.

    Raises:
        SettingsError: There is no such file, or an entry is not in it.
    """
    document = read_document(path)
    try:
        published = document["obs"][_PUBLISHED["scores"]]
        ending = document["terminal"][f"math_train_terminal_predictor_{_PUBLISHED['ends']}"]
        p_small, p_large = (
            document["transition"][_PUBLISHED[writer]]["per_step_accuracy"] for writer in ("small", "large")
        )
        # The hazard's first entry is step 0, before any step: solutions of no step do not exist.
        hazard = [ending["hazard"][str(step)] for step in range(1, ending["max_steps"] + 1)]
        centres = np.unique(np.array(published["grid"])[:, 0])
        tables = np.array([published["prob"][str(s)] for s in range(3)]).reshape(
            3, len(centres), len(centres)
        )
    except KeyError as error:
        raise SettingsError(f"published parameters {path} have no entry {error}") from error
    edges = np.concatenate([[0.0], (centres[1:] + centres[:-1]) / 2, [1.0]])
    return StepModel(
        p_small=p_small,
        p_large=p_large,
        hazard=np.array(hazard, np.float64),
        edges=edges,
        tables=tables / tables.sum((1, 2), keepdims=True),
        tokens=np.array([_PUBLISHED_TOKENS]),
        made={"published": Path(path).name, **_PUBLISHED},
    )


def read_document(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        SettingsError: The file cannot be read, or is none.
    """
    try:
        document = json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(f"step model {path} does not exist") from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"step model {path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise SettingsError(f"step model {path} is no JSON object")
    return document


def labelled_steps(
    trace: Mapping[str, Any],
) -> Iterator[tuple[int, Mapping[str, Any], int | None, int | None]]:
    """Yields the index of each step of a trace, the step, its state, and the state of its discarded draft.

    Where a trace has no label at all, its targets (``value``) say what is right, as in
    `trim_graph.evaluation.scorer_metrics.labels_of_values`; those of the method ``advantage`` do not: they
    say what a rewrite gains. A state is known up to the first step without a label, and None behind it. After
    the first wrong step every draft is `LOST`, whatever its label says: labels judge a step given the steps
    before it.
    """
    lost, known = False, True

    def state_of(label: bool | None) -> int | None:
        if not known:
            return None
        return LOST if lost else {True: RIGHT, False: SLIP}.get(label)  # type: ignore[arg-type]

    for index, (step, label) in enumerate(zip(trace["steps"], _labels(trace), strict=True)):
        discarded = step["discarded"]
        yield index, step, state_of(label), None if discarded is None else state_of(discarded["label"])
        known = known and (lost or label is not None)
        lost = lost or label is False


def _labels(trace: Mapping[str, Any]) -> list[bool | None]:
    labels = [step["label"] for step in trace["steps"]]
    if (trace.get("policy") or {}).get("method") == "advantage" or any(label is not None for label in labels):
        return labels
    return labels_of_values([step.get("value") for step in trace["steps"]])


def _require(holds: bool, name: str, complaint: str) -> None:
    if not holds:
        raise SettingsError(f"step model: {name} {complaint}")
