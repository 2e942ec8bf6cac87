"""`trim-graph eval-scorer`: has a scorer rate labelled solutions, and says how good it is."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, aclosing
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypedDict

from trim_graph.adapters.base import reads_token_probability
from trim_graph.config import TrimConfig
from trim_graph.config.schema import scorer_parts
from trim_graph.errors import InputError, SettingsError, TrimError, counted
from trim_graph.evaluation.arms import identity_of
from trim_graph.evaluation.runner import MAX_CONSECUTIVE_FAILURES
from trim_graph.evaluation.scorer_metrics import (
    LabelledSolution,
    compiled_pattern,
    read_labelled,
    score_labelled,
    scored_trace,
    window_probabilities,
)
from trim_graph.evaluation.traces import Trace, write_traces
from trim_graph.storage.journal import Journal
from trim_graph.storage.rows import read_rows

from .common import Progress, chosen_config, load_scorer, make_folder, parsed_option
from .options import EvalScorerOptions
from .terminal import Interrupted, need

if TYPE_CHECKING:
    from trim_graph.evaluation.scorer_metrics import Paired, Rated, ScorerMetrics, WithinKinds

METRICS = "metrics.json"
PLOT = "reliability"


def run_eval_scorer(options: EvalScorerOptions) -> int:
    """Rates what is not rated yet, and prints and writes the metrics.

    Returns:
        Exit code: 1 where the scorer is no better than what it is compared with, else 0.

    Raises:
        TrimError: An option is not valid, or the work cannot be done.
        Interrupted: Ctrl-C.
    """
    need("cli,eval", "numpy", "scipy", "sklearn", "matplotlib")
    config = _config(options)
    if options.pattern is not None:
        compiled_pattern(options.pattern)
    sets = [_Set(file, config, options) for file in options.data]
    for one in sets:
        for part in scorer_parts(config.scorer):
            if part.type == "token_probability":
                one.check_reported(
                    "the scorer token_probability rates only what a model writes in a run",
                    part.statistic,
                )
        if options.against is not None:
            one.check_reported("--against token_probability", "mean")
    with ExitStack() as stack:
        folder = options.out or Path(stack.enter_context(TemporaryDirectory()))
        for one in sets:
            one.open(folder, stack)
        if any(one.left() for one in sets):
            scorer = load_scorer(config)
            for one in sets if reads_token_probability(scorer) else ():
                unknown, total = one.without_token_probability()
                if unknown:
                    print(
                        f"{one.file}: the scorer weighs token probabilities too, and {unknown} of {total} "
                        "steps have none: its head alone rates them",
                        file=sys.stderr,
                    )
            _rate(sets, scorer, options)
        rated = {one.name: one.rated() for one in sets}
        if options.out is not None:
            for one in sets:
                write_traces(options.out / f"{one.name}.traces.jsonl", one.traces(rated[one.name]))
    extras = {one.name: one.extras(rated[one.name]) for one in sets}
    _report(options, config, rated, extras)
    compared = [extra["against_token_probability"] for extra in extras.values()]
    return int(options.against is not None and not all(one and one["better"] for one in compared))


class _Set:
    """The solutions of one file."""

    def __init__(self, file: Path, config: TrimConfig, options: EvalScorerOptions) -> None:
        self.file, self.name, self.options = file, file.stem, options
        self.total = sum(1 for _ in self.solutions())  # what cannot be read is reported before anything loads
        if not self.total:
            raise InputError(f"{file} holds no solution")
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        self.settings = {"scorer": identity_of(config)["scorer"], "sha256": digest}

    def open(self, folder: Path, stack: ExitStack) -> None:
        """Opens the journal of its scores."""
        keep = (lambda record: record["error"] is None) if self.options.retry_errors else lambda record: True
        self.journal = stack.enter_context(
            Journal(folder / f"{self.name}.scores.jsonl", self.settings, keep=keep)
        )

    def solutions(self) -> Iterator[LabelledSolution]:
        """Reads those that count."""
        return islice(read_labelled(self.file), self.options.n)

    def left(self) -> int:
        """Counts those not rated yet."""
        return sum(index not in self.journal.finished for index in range(self.total))

    async def rate(self, scorer: Any, progress: Progress) -> None:
        """Rates what is left."""
        waiting = [index for index in range(self.total) if index not in self.journal.finished]
        wanted = set(waiting)  # fixed now: solutions are read ahead of what the journal knows
        todo = (one for index, one in enumerate(self.solutions()) if index in wanted)
        in_a_row, order = 0, iter(waiting)
        async with aclosing(score_labelled(scorer, todo, concurrency=self.options.concurrency)) as traces:
            async for trace in traces:
                failed = trace["error"] is not None
                self.journal.append(
                    {
                        "index": next(order),
                        "id": trace["id"],
                        "scores": None if failed else [step["score"] for step in trace["steps"]],
                        "scorer_tokens": trace["tokens"]["scorer"],
                        "scorer_output_tokens": trace["tokens"]["scorer_output"],
                        "error": trace["error"],
                    }
                )
                progress.advance(failed=failed)
                in_a_row = in_a_row + 1 if failed else 0
                if in_a_row >= MAX_CONSECUTIVE_FAILURES:
                    raise TrimError(
                        f"{self.file}: {in_a_row} solutions failed in a row, the last with {trace['error']}. "
                        "When that is put right, resume with --retry-errors"
                    )

    def rated(self) -> list[Rated]:
        """Joins scores and labels."""
        from trim_graph.evaluation.scorer_metrics import Rated

        scores = {record["index"]: record["scores"] for _, record in read_rows(self.journal.path)}
        return [
            Rated(None if scores[index] is None else tuple(scores[index]), tuple(solution["labels"]))
            for index, solution in enumerate(self.solutions())
        ]

    def traces(self, rated: list[Rated]) -> Iterator[Trace]:
        """Yields the solutions with scores and labels, for `trim-graph plan`; not those that failed."""
        for index, (solution, one) in enumerate(zip(self.solutions(), rated, strict=True)):
            if one.scores is not None:
                yield scored_trace(index, solution, one.scores)

    def without_token_probability(self) -> tuple[int, int]:
        """Counts the steps without a mean token probability, and all steps."""
        known = [one for found in self.solutions() for one in found["token_probabilities"]]
        return sum(one is None for one in known), len(known)

    def check_reported(self, wanted_by: str, statistic: str) -> None:
        """Refuses a file in which no step has a statistic of its token probabilities.

        Args:
            wanted_by: The setting that needs it.
            statistic: ``mean`` or ``lowest_window``.

        Raises:
            InputError: No step has it.
        """
        if statistic == "mean":
            unknown, total = self.without_token_probability()
            known, name, fix = unknown < total, "mean token probability", "logprobs: true"
        else:
            windows = (one for found in self.solutions() for one in window_probabilities(found))
            known, name = any(one is not None for one in windows), "lowest window probability"
            fix = "the same scorer in the configuration"
        if not known:
            raise InputError(
                f"{wanted_by}: no step in {self.file} has a {name}; label or collect solutions of a small "
                f"model with {fix}"
            )

    def extras(self, rated: list[Rated]) -> Extras:
        """Computes the metrics that need texts and token probabilities.

        Raises:
            SettingsError: --pattern cannot be read.
        """
        from trim_graph.evaluation.baselines import step_pattern
        from trim_graph.evaluation.scorer_metrics import against_token_probability, step_rows, within_kinds

        rows = step_rows(
            (found["question"], found["steps"], found["token_probabilities"], one)
            for found, one in zip(self.solutions(), rated, strict=True)
        )
        pattern = self.options.pattern or step_pattern(found["dataset"] for found in self.solutions())
        compared = None if self.options.against is None else against_token_probability(rows)
        return Extras(auc_within_kinds=within_kinds(rows, pattern), against_token_probability=compared)


class Extras(TypedDict):
    """Figures that need the texts of steps, or probabilities of their tokens."""

    auc_within_kinds: WithinKinds
    against_token_probability: Paired | None
    """None without --against, and where the steps with a token probability are all right or all wrong."""


def _rate(sets: list[_Set], scorer: Any, options: EvalScorerOptions) -> None:
    async def work() -> None:
        for one in sets:
            await one.rate(scorer, progress)

    total, left = sum(one.total for one in sets), sum(one.left() for one in sets)
    with Progress("scoring", total, done=total - left) as progress:
        try:
            asyncio.run(work())
        except KeyboardInterrupt as error:
            kept = (
                f"; what was scored is in {options.out}: the same command resumes it" if options.out else ""
            )
            raise Interrupted(f"interrupted{kept}") from error


def _config(options: EvalScorerOptions) -> TrimConfig:
    """Refuses before minutes of work what would fail after them."""
    names = [file.stem for file in options.data]
    if len(set(names)) < len(names):
        raise SettingsError(f"two files of the same name: {', '.join(names)}")
    if options.out is not None:
        make_folder("--out", options.out)
    if options.scorer is not None and options.config is not None:
        raise SettingsError("give --config or --scorer, not both")
    overrides: dict[str, Any] = {}
    if options.scorer is not None:
        overrides["scorer"] = parsed_option("--scorer", options.scorer, "{type: transformers_prm, model: X}")
    config = chosen_config(options.config, overrides)
    if config.scorer is None:
        raise SettingsError(f"{options.config} names no scorer")
    if any(part.type == "turn_signals" for part in scorer_parts(config.scorer)):
        raise SettingsError(
            "the scorer turn_signals rates only what a model writes in a run: a solution in a file has no "
            "turns of an agent"
        )
    return config


def _report(
    options: EvalScorerOptions,
    config: TrimConfig,
    rated: dict[str, list[Rated]],
    extras: dict[str, Extras],
) -> None:
    from trim_graph.evaluation.scorer_metrics import best_threshold, compute_scorer_metrics

    threshold, chosen = options.threshold, "as given"
    if threshold is None:
        first = next(iter(rated))
        threshold = best_threshold(rated[first])
        chosen = f"the one of the highest F1 on {first}"
        if threshold is None:
            threshold, chosen = 0.5, f"since {first} has no solutions with an error, or none without"
    metrics = {name: compute_scorer_metrics(solutions, threshold) for name, solutions in rated.items()}
    _show(metrics, extras, threshold, chosen, compared=options.against is not None)
    if options.out is None:
        return
    from trim_graph.evaluation.plots import draw_reliability, save_plot

    document = {
        "command": "trim-graph eval-scorer",
        "scorer": identity_of(config)["scorer"],
        "threshold": threshold,
        "threshold_is": chosen,
        "average_f1": average_f1(metrics),
        "sets": {name: {**found, **extras[name]} for name, found in metrics.items()},
    }
    (options.out / METRICS).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    curves = {name: found["steps"] for name, found in metrics.items()}
    files = save_plot(draw_reliability(curves), options.out / PLOT)
    names = ", ".join(file.name for file in files)
    print(f"scores, traces with scores and labels, {names} and {METRICS} in {options.out}")


def average_f1(metrics: dict[str, ScorerMetrics]) -> float | None:
    """Returns the mean F1 over files, as the benchmark's over its subsets; None if one is undefined."""
    known = [found["first_error"]["f1"] for found in metrics.values()]
    return None if None in known else sum(f1 for f1 in known if f1 is not None) / len(known)


def _show(
    metrics: dict[str, ScorerMetrics],
    extras: dict[str, Extras],
    threshold: float,
    chosen: str,
    *,
    compared: bool,
) -> None:
    from rich.table import Table

    from .common import Console

    console = Console()
    console.print(
        f"A step is taken for wrong if its score is below {threshold:.4g}, {chosen}. "
        "In brackets 95 % intervals.",
        soft_wrap=True,
    )
    for name, found in metrics.items():
        table = Table(box=None, title=name, title_justify="left", show_header=False)
        for label, text in _ROWS:
            table.add_row(label, text(found))
        table.add_row("AUC within kinds of steps", _number(extras[name]["auc_within_kinds"]["auc"]))
        console.print(table)
        if compared:
            console.print(verdict(extras[name]["against_token_probability"]), soft_wrap=True)
    mean = average_f1(metrics)
    if len(metrics) > 1 and mean is not None:
        console.print(f"average F1: {mean:.3f}")
    failed = sum(found["errors"] for found in metrics.values())
    if failed:
        console.print(f"the scorer failed on {counted(failed, 'solution')}: judged wrong in the F1")


def verdict(found: Paired | None) -> str:
    """Says whether the scorer is better than token probability."""
    if found is None:
        return "The steps with a token probability are all right or all wrong: nothing can be compared."
    place = f"on your {counted(found['questions'], 'question')} ({counted(found['n'], 'step')})"
    numbers = (
        f"AUC {found['auc']:.3f} against {found['auc_of_other']:.3f}, difference "
        f"{_number(found['difference'], found['difference_interval'])}"
    )
    if found["better"]:
        return f"This scorer is better than token probability {place}: {numbers}."
    return f"This scorer is no better than token probability {place}: {numbers}."


def _number(value: float | None, spread: Any = None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if spread is None else f"{value:.3f} ({spread[0]:.3f} to {spread[1]:.3f})"


_ROWS: tuple[tuple[str, Any], ...] = (
    ("solutions", lambda f: str(f["first_error"]["n"])),
    ("with a wrong step", lambda f: str(f["first_error"]["erroneous"])),
    ("accuracy on those", lambda f: _number(f["first_error"]["accuracy_erroneous"])),
    ("accuracy on the others", lambda f: _number(f["first_error"]["accuracy_correct"])),
    ("first-error F1", lambda f: _number(f["first_error"]["f1"], f["first_error"]["f1_interval"])),
    ("steps rated", lambda f: str(f["steps"]["n"])),
    ("AUC of steps", lambda f: _number(f["steps"]["auc"], f["steps"]["auc_interval"])),
    ("AUC of solutions", lambda f: _number(f["whole"]["auc"], f["whole"]["auc_interval"])),
    ("calibration error", lambda f: _number(f["steps"]["calibration_error"])),
    ("Brier score", lambda f: _number(f["steps"]["brier"])),
)
