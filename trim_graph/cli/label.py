"""`trim-graph label`: labels of the steps of solutions, for a scorer to learn from."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from trim_graph.config import TrimConfig, for_measuring
from trim_graph.config.load import with_temperature
from trim_graph.errors import counted
from trim_graph.evaluation import Question
from trim_graph.evaluation.arms import Judge, identity_of, judge_of
from trim_graph.evaluation.datasets import first_questions
from trim_graph.evaluation.runner import Executor, Models
from trim_graph.evaluation.traces import write_traces
from trim_graph.training.continuations import Continuations
from trim_graph.training.judgements import Judgements
from trim_graph.training.settings import LabelSettings
from trim_graph.training.step_labels import LabelReport, Labels, StepLabeller, read_labels

from .common import Progress, check_trace_file, chosen_config, load_parts, make_folder, open_executor
from .eval import count_questions, read_dataset
from .options import LabelOptions, settings_of
from .terminal import Interrupted, need

DEFAULT_N = 300
"""Questions of a dataset without end, where -n does not say."""
SAMPLING = 0.7
"""Temperature of a small model that a configuration runs at 0, as in Math-Shepherd (arXiv 2312.08935)."""
CONTINUATIONS = "continuations.jsonl"


def run_label(options: LabelOptions) -> None:
    """Labels what a request asks for, or what is left of it.

    Raises:
        TrimError: The request cannot be fulfilled.
        Interrupted: Ctrl-C.
    """
    check_trace_file(options.out)
    if options.method == "labelled":
        count = write_traces(options.out, read_labels(options.dataset))
        print(f"{counted(count, 'labelled solution')} in {options.out}")
        return
    need("cli,train", "scipy")
    work = _Labelling(options)
    with ExitStack() as stack:
        work.open(stack)
        labels = work.run(stack)
    if labels is not None:
        write_traces(options.out, labels.traces)
        _show(labels.report, options)


class _Labelling:
    """A labelling under way."""

    def __init__(self, options: LabelOptions) -> None:
        self.options = options
        self.settings = settings_of(options, LabelSettings, generators=tuple(options.generator))
        self.config = _sampling(options)
        self.judge: Judge | None = None
        if self.settings.judged:
            self.judge = judge_of(options.judge, self.config) or judge_of("large", self.config)
        self.config = self.config.model_copy(update={"scorer": None})
        self.dataset = read_dataset("--dataset", options.dataset, "train", options.seed)
        n, _ = count_questions("--dataset", options.dataset, self.dataset, options.n, DEFAULT_N)
        self.questions: Sequence[Question] = list(first_questions(self.dataset, n, default=n))
        self.folder = options.runs or options.out.with_name(f"{options.out.stem}.runs")

    def open(self, stack: ExitStack) -> None:
        """Opens the recorded runs and judgements."""
        make_folder("--runs", self.folder)
        identity, retry = identity_of(self.config), self.options.retry_errors
        dataset = self.dataset.identity()
        common = {key: identity[key] for key in ("small", "large", "settings")} | {"dataset": dataset}
        self.recorded = stack.enter_context(
            Continuations(
                self.folder / CONTINUATIONS,
                common,
                delimiter=self.config.settings.delimiter,
                retry_errors=retry,
            )
        )
        self.judgements: Judgements | None = None
        if self.judge is not None:
            asked = {"judge": self.judge.name, "dataset": dataset, "models": common}
            name = hashlib.sha256(json.dumps(self.judge.name, sort_keys=True).encode()).hexdigest()[:8]
            self.judgements = stack.enter_context(
                Judgements(self.folder / f"judgements-{name}.jsonl", asked, retry_errors=retry)
            )

    def run(self, stack: ExitStack) -> Labels | None:
        """Does the pilot, prints the estimate, and does the rest; None where only the estimate is wanted.

        Raises:
            Interrupted: Ctrl-C.
            TrimError: `MAX_CONSECUTIVE_FAILURES` calls failed in a row.
        """
        options = self.options

        needs_large = (
            self.settings.method == "advantage"
            or "large" in self.settings.generators
            or (self.judge is not None and self.judge.writer == "large")
        )

        def load() -> Models:
            return Models(for_measuring(self.config), load_parts(self.config, large=needs_large), self.judge)

        executor = stack.enter_context(
            open_executor(
                for_measuring(self.config),
                load,
                judge=self.judge,
                rated=False,
                ray=options.ray,
                count=options.ray_workers,
                workers=options.workers,
                load_per_worker=options.load_per_worker,
                large=needs_large,
            )
        )
        try:
            return asyncio.run(self._label(executor))
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"interrupted: {counted(self._made(), 'run')} in {self.folder}; the same command resumes them"
            ) from error

    async def _label(self, executor: Executor) -> Labels | None:
        labeller = StepLabeller(
            executor,
            self.questions,
            self.recorded,
            self.settings,
            judgements=self.judgements,
            dataset=self.dataset.name,
            split=self.dataset.part_name,
            show=Progress,
        )
        await executor.ready()
        pilot = min(self.options.pilot, len(self.questions))
        before, begun = self._made(), time.monotonic()
        found = await labeller.label(pilot)
        new = self._made() - before
        if self.options.estimate or (new and pilot < len(self.questions)):
            self._estimate(pilot, (time.monotonic() - begun) / new if new else None)
        if self.options.estimate:
            return None
        if pilot < len(self.questions):
            found = await labeller.label()
        _warn_of_repeats(found.report, self.settings)
        return found

    def _made(self) -> int:
        return len(self.recorded.records) + (len(self.judgements.records) if self.judgements else 0)

    def _estimate(self, pilot: int, seconds_a_run: float | None) -> None:
        """Prints what the whole takes, from what the questions of the pilot took."""
        total = len(self.questions)
        factor = total / pilot
        runs = [one for one in self.recorded.records if one["question"] < pilot]
        readings = [] if self.judgements is None else self.judgements.records
        readings = [one for one in readings if one["question"] < pilot]
        done = self._made()
        all_runs = round(factor * (len(runs) + len(readings)))
        rollouts = sum(not one["prefix"] for one in runs)
        written = sum(sum(one["tokens"].values()) for one in runs) + sum(one["written"] for one in readings)
        read = sum(sum(one["prompt_tokens"].values()) for one in runs) + sum(one["read"] for one in readings)
        large = sum(one["tokens"]["large"] for one in runs)
        calls = sum(one["calls"] for one in runs)
        if seconds_a_run is None:  # all of the pilot was recorded before
            waited = sum(one["seconds"] for one in runs) + sum(one["seconds"] for one in readings)
            seconds_a_run = waited / max(1, len(runs) + len(readings)) / self.options.concurrency
        left = max(0, all_runs - done)
        counts = [
            f"{factor * rollouts:.0f} rollouts",
            f"{factor * (len(runs) - rollouts):.0f} continuations",
            *([f"{factor * len(readings):.0f} judgements"] if readings else []),
            f"{factor * calls:.0f} calls",
            f"{factor * written:.0f} tokens written ({factor * large:.0f} by the large model)",
            f"{factor * read:.0f} read",
        ]
        print(
            f"estimate for {counted(total, 'question')}, from {pilot}: {', '.join(counts)}; {left} "
            "runs are left, about "
            f"{_duration(left * seconds_a_run)}",
            flush=True,
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _sampling(options: LabelOptions) -> TrimConfig:
    """Returns the configuration with a small model that samples, and without a policy's needs.

    Models of our adapters report token probabilities, which a trained scorer is compared with.
    """
    changed: dict[str, Any] = {"policy": "small_only", "budget": {}, "response_cache": None}
    config = chosen_config(options.config, changed)
    for part in ("small", "large"):
        model = getattr(config, part)
        if "logprobs" in type(model).model_fields:
            reporting = model.model_copy(update={"logprobs": True})
            config = config.model_copy(update={part: reporting})
    kwargs = getattr(config.small, "kwargs", None)
    known = getattr(config.small, "temperature", None) if kwargs is None else kwargs.get("temperature")
    wanted = options.temperature
    if wanted is None and (known or (kwargs is not None and known is None)):
        return config  # it samples, or a hosted model does so by its provider's default
    return with_temperature(config, SAMPLING if wanted is None else wanted)


def _warn_of_repeats(report: LabelReport, settings: LabelSettings) -> None:
    """Says so where every rollout of a question is the same, as from a model at temperature 0."""
    answered = report.questions - report.failed
    if answered and settings.rollouts > 1 and report.repeated >= answered * (settings.rollouts - 1):
        print(
            f"the {settings.rollouts} rollouts of each question are the same text: the small model is "
            "deterministic (temperature 0, or a fixed seed), so a share is 0 or 1. Give --temperature 0.7, "
            "and the model no seed"
        )


def _show(report: LabelReport, options: LabelOptions) -> None:
    value = "" if report.value is None else f", mean target {report.value:.3f}"
    print(
        f"{counted(report.solutions, 'labelled solution')} ({report.right} end right) of "
        f"{counted(report.questions, 'question')}, "
        f"{counted(report.steps, 'step')} with a target{value}, "
        f"{counted(report.lost, 'first lost step')} in {options.out}"
    )
    for count, what in (
        (report.repeated, "rollouts repeat another one of their question"),
        (report.hopeless, "questions dropped: no rollout ends right"),
        (report.unsure, f"questions dropped: fewer than {options.min_confidence:.0%} of rollouts end right"),
        (report.disagreed, "solutions dropped: the judge finds another first wrong step"),
    ):
        if count:
            print(f"  {count} {what}")
    if report.failed:
        print(
            f"  {counted(report.failed, 'question')} failed, one with {report.error}; run them with "
            "--retry-errors"
        )
