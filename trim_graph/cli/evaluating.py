"""`trim-graph eval`: what would a policy save on these questions, and what would it cost in accuracy?"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trim_graph.budget import Prices
from trim_graph.config import Parts, build_graph, for_measuring
from trim_graph.errors import InputError, SettingsError
from trim_graph.evaluation.arms import Arm, check_names, policy_arms, sweep_arms
from trim_graph.evaluation.baseline_arms import BASELINES, Baselines
from trim_graph.evaluation.by_kind import MATHEMATICS, OPERATIONS
from trim_graph.evaluation.course import Course
from trim_graph.evaluation.datasets import (
    Dataset,
    first_questions,
    make_dataset,
    read_through,
    shared_questions,
)
from trim_graph.evaluation.families import policy_config
from trim_graph.evaluation.harness import Harness, Plan
from trim_graph.evaluation.identity import identity_of
from trim_graph.evaluation.judging import judge_of
from trim_graph.evaluation.run_files import SUMMARY
from trim_graph.evaluation.run_summary import RunSummary
from trim_graph.evaluation.run_writing import check_folder, write_json, write_rows
from trim_graph.evaluation.validation import Validation
from trim_graph.evaluation.verdicts import Worth
from trim_graph.evaluation.whole_summary import summarise_run

from .models import chosen_config, load_parts, parsed_option
from .progress import Progress
from .reporting import Interrupted, need

DEFAULT_N = 200
"""Questions of a dataset without end, where -n does not say."""
VALIDATION_N = 300
"""Validation questions, where --validation-n does not say."""


@dataclass(frozen=True, slots=True)
class Request:
    """The command line of `eval`, as given."""

    dataset: str
    out: Path
    config: Path | None = None
    policies: Sequence[str] = ()
    sweeps: Sequence[str] = ()
    baselines: str = "all"
    validation: str | None = None
    validation_n: int | None = None
    pattern: str | None = None
    judge: str | None = None
    prices: str | None = None
    cost_per_second: float = 0.0
    n: int | None = None
    samples: int = 1
    seed: int = 0
    concurrency: int = 32
    retry_errors: bool = False
    as_json: bool = False


def run_eval(request: Request) -> RunSummary:
    """Evaluate, write the run's folder, print the summary.

    Raises:
        TrimError: The request cannot be fulfilled.
        Interrupted: Ctrl-C.
    """
    evaluation = _Evaluation(request)
    try:
        summary = asyncio.run(evaluation.run())
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted: the same command goes on with {request.out}") from error
    finally:
        evaluation.close()
    from .eval_report import show

    show(summary, request.out, as_json=request.as_json)
    return summary


class _Evaluation:
    """A request that has been checked; models are loaded last."""

    def __init__(self, request: Request) -> None:
        need("cli,eval", "numpy", "pyarrow")
        _check(request)
        self.request = request
        overrides: dict[str, Any] = {"settings": {"seed": request.seed}}
        if request.prices is not None:
            example = "{large: {input: 0.5, output: 1.5}}"
            overrides["prices"] = parsed_option("--prices", request.prices, example)
        self.config = chosen_config(request.config, overrides)
        self.arms = self._arms()
        self.baselines = _baselines(request.baselines)
        self.dataset = _dataset("--dataset", request.dataset, "test", request.seed)
        self.n = _count("--dataset", request.dataset, self.dataset, request.n, DEFAULT_N)
        self.judge = judge_of(request.judge, self.config)
        check_folder(request.out)
        self.harness = Harness(request.out, self._plan(), on_begin=self._begin, on_row=self._advance)
        self.leak: str | None = None
        self.validation = self._validation()
        self._bar: Progress | None = None
        self._opened = ExitStack()

    def _arms(self) -> list[Arm]:
        given = self.request.policies
        own = [] if self.request.sweeps and not given else policy_arms(given, self.config.policy.model_dump())
        arms = own + sweep_arms(self.request.sweeps)
        check_names(arms)
        if self.config.scorer is None:
            for arm in arms:
                if policy_config(arm.policy).build().needs_score:
                    raise SettingsError(
                        f"the policy {arm.name} needs scores: name a scorer in the configuration"
                    )
        return arms

    def _plan(self) -> Plan:
        request, config = self.request, self.config
        identity = {key: value for key, value in identity_of(config).items() if key != "policy"}
        settings = {
            **identity,
            "prices": config.prices.model_dump(),
            "dataset": self.dataset.identity(),
            "samples": request.samples,
            "concurrency": request.concurrency,
        }
        return Plan(
            dataset=self.dataset,
            n=self.n,
            samples=request.samples,
            seed=request.seed,
            concurrency=request.concurrency,
            prices=config.prices,
            settings=settings,
            retry_errors=request.retry_errors,
        )

    def _validation(self) -> Validation | None:
        request = self.request
        given = request.validation
        if given is None:
            if self.dataset.type != "arithmetic":
                return None
            given = f"arithmetic:{self.dataset.split}:validation"
        dataset = _dataset("--validation", given, "validation", request.seed)
        if dataset.identity() == self.dataset.identity():
            raise SettingsError("--validation are the questions of --dataset: choose others")
        n = _count("--validation", given, dataset, request.validation_n, VALIDATION_N)
        if shared := shared_questions(self.dataset, self.n, dataset, n):
            self.leak = (
                f"{shared} of the {n} questions of --validation are among those of --dataset: what is fitted "
                "on them, router and kind, looks better here than it is"
            )
        return Validation(
            folder=request.out,
            dataset=dataset,
            n=n,
            settings=self.harness.plan.settings,
            seed=request.seed,
            concurrency=request.concurrency,
            on_begin=self._begin,
            on_trace=lambda trace: self._bar.advance() if self._bar else None,
        )

    async def run(self) -> RunSummary:
        """Run all arms, and write what came of them."""
        harness, request = self.harness, self.request
        self.parts = load_parts(self.config, rated=self.config.scorer is not None)
        course = Course(harness, self._graph)
        self._announce()
        if self.leak and {"router", "kind"} & set(self.baselines):
            print(f"warning: {self.leak}", file=sys.stderr, flush=True)
            course.warnings.append(self.leak)
        await course.references()
        for arm in self.arms:
            await course.run(arm)
        await course.beside(self.arms)
        if self.baselines:
            await self._run_baselines(course)
        self.close()
        lacking = harness.take_older()
        course.warnings += [
            f"the arm {arm} is left out: questions are lacking, or all failed" for arm in lacking
        ]
        write_rows(request.out, list(harness.arms))
        worth = Worth(priced=_priced(self.config.prices), second=request.cost_per_second)
        summary = summarise_run(harness, self.config, worth, course.warnings)
        write_json(request.out / SUMMARY, summary)
        return summary

    async def _run_baselines(self, course: Course) -> None:
        pattern = self.request.pattern
        scorer = self.config.scorer
        judge = self.judge
        work = Baselines(
            course=course,
            folder=self.request.out,
            beside=self.arms[len(self.arms) // 2 if not self.request.policies else 0].name,
            validation=self.validation,
            scorer=self.parts.scorer,
            scorer_type=None if scorer is None else scorer.type,
            judge=None if judge is None else judge.build(self.parts),
            judge_prices=None if judge is None else judge.prices(self.config.prices),
            judge_name=None if judge is None else judge.name,
            pattern=pattern or (OPERATIONS if self.dataset.type == "arithmetic" else MATHEMATICS),
            seed=self.request.seed,
        )
        every = self.request.baselines == "all"
        await work.run(self.baselines, all_of_them=every)

    def _graph(self, policy: dict[str, Any], *, scorer: Any = None, prices: Prices | None = None) -> Any:
        changed: dict[str, Any] = {"policy": policy_config(policy)}
        if prices is not None:
            changed["prices"] = prices
        own = self.parts.scorer
        if self.config.scorer is not None and self.config.scorer.type == "llm_judge":
            own = self.config.scorer.build()  # it remembers what it was asked: no arm may profit from another
        parts = Parts(self.parts.small, self.parts.large, own if scorer is None else scorer)
        return build_graph(for_measuring(self.config.model_copy(update=changed)), parts=parts)

    def _announce(self) -> None:
        runs = self.n * self.request.samples
        told = [arm.name for arm in self.arms] + list(self.baselines)
        print(
            f"{runs} runs an arm: small, large, {', '.join(told)}, and random routing at the spend of each "
            "policy",
            file=sys.stderr,
            flush=True,
        )

    def _begin(self, arm: str, total: int, done: int) -> None:
        self.close()
        self._bar = self._opened.enter_context(Progress(arm, total, done=done))

    def _advance(self, row: Any) -> None:
        if self._bar is not None:
            self._bar.advance(failed=row["error"] is not None)

    def close(self) -> None:
        """End the progress bar."""
        self._opened.close()
        self._bar = None


def _dataset(option: str, given: str, part: Any, seed: int) -> Dataset:
    parsed = parsed_option(option, given, "{type: file, path: questions.jsonl}")
    return make_dataset(parsed, part=part, seed=seed)


def _count(option: str, named: str, dataset: Dataset, wanted: int | None, default: int) -> int:
    """Return how many questions there are to run, after a look at each of them."""
    if next(first_questions(dataset, 1, default=1), None) is None:
        raise InputError(f"{option} {named}: there are no questions in it")
    there = dataset.count()
    if there is None:
        return default if wanted is None else wanted
    if wanted is not None and wanted > there:
        raise SettingsError(f"{option} {named} has {there} questions; {wanted} are wanted")
    n = there if wanted is None else wanted
    read_through(dataset, n)
    return n


def _baselines(given: str) -> list[str]:
    if given in ("all", "none"):
        return list(BASELINES) if given == "all" else []
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in BASELINES:
            raise SettingsError(
                f"--baselines {given}: there is no {name!r}; choose all, none, or of {', '.join(BASELINES)}"
            )
    return names


def _priced(prices: Prices) -> bool:
    return any(price.input or price.output for _, price in prices)


def _check(request: Request) -> None:
    """Refuse before hours of work what would fail after them."""
    for option, value in (
        ("-n", request.n),
        ("--validation-n", request.validation_n),
        ("--samples", request.samples),
        ("--concurrency", request.concurrency),
    ):
        if value is not None and value < 1:
            raise SettingsError(f"{option} is {value}: choose 1 or more")
    if not 0 <= request.cost_per_second < float("inf"):
        raise SettingsError(f"--cost-per-second is {request.cost_per_second}: choose 0 or more")
