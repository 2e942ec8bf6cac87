"""`trim-graph eval`: what would a policy save on these questions, and what would it cost in accuracy?"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from trim_graph.budget import Prices
from trim_graph.errors import SettingsError
from trim_graph.evaluation.arms import REFERENCES, Arm, check_names, policy_arms, random_arms, sweep_arms
from trim_graph.evaluation.baseline_arms import Baselines
from trim_graph.evaluation.by_kind import MATHEMATICS, OPERATIONS
from trim_graph.evaluation.datasets import shared_questions
from trim_graph.evaluation.executor import Executor, Models
from trim_graph.evaluation.families import policy_config
from trim_graph.evaluation.harness import Harness, Plan, known_arms
from trim_graph.evaluation.identity import identity_of
from trim_graph.evaluation.judging import judge_of
from trim_graph.evaluation.run_files import SUMMARY
from trim_graph.evaluation.run_summary import RunSummary
from trim_graph.evaluation.run_writing import write_json, write_rows
from trim_graph.evaluation.validation import Validation
from trim_graph.evaluation.verdicts import Worth
from trim_graph.evaluation.whole_summary import summarise_run

from .eval_request import (
    DEFAULT_N,
    VALIDATION_N,
    Request,
    check_request,
    chosen_baselines,
    chosen_rates,
    count_questions,
    read_dataset,
)
from .executors import open_executor
from .models import chosen_config, load_parts, parsed_option
from .progress import Progress
from .reporting import Interrupted, need

__all__ = ["Evaluation", "Request", "run_eval"]


def run_eval(request: Request) -> RunSummary:
    """Evaluate, write the run's folder, print the summary.

    Raises:
        TrimError: The request cannot be fulfilled.
        Interrupted: Ctrl-C.
    """
    evaluation = Evaluation(request)
    try:
        with evaluation.executor() as executor:
            harness = asyncio.run(evaluation.run(executor))
        summary = evaluation.finish(harness)
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted: the same command goes on with {request.out}") from error
    finally:
        evaluation.close()
    from .eval_report import show

    show(summary, request.out, as_json=request.as_json)
    return summary


class Evaluation:
    """A request that has been checked; models are loaded last.

    Args:
        request: What is asked for.
    """

    def __init__(self, request: Request) -> None:
        need("cli,eval", "numpy", "pyarrow")
        check_request(request)
        self.request = request
        overrides: dict[str, Any] = {"settings": {"seed": request.seed}}
        if request.prices is not None:
            example = "{large: {input: 0.5, output: 1.5}}"
            overrides["prices"] = parsed_option("--prices", request.prices, example)
        self.config = chosen_config(request.config, overrides)
        self.arms = self._arms()
        self.baselines = chosen_baselines(request.baselines)
        self.dataset = read_dataset("--dataset", request.dataset, "test", request.seed)
        self.n = count_questions("--dataset", request.dataset, self.dataset, request.n, DEFAULT_N)
        self.judge = judge_of(request.judge, self.config)
        self.leak: str | None = None
        self.warnings = list[str]()
        """What a reader of the summary should know."""
        self.validation = self._validation()
        self.plan = self._plan()
        known_arms(request.out, self.plan.settings)  # refuses a folder that was begun otherwise
        self._bar: Progress | None = None
        self._opened = ExitStack()

    def executor(self) -> AbstractContextManager[Executor]:
        """Return a context with the executor that runs the models."""
        rated = self.config.scorer is not None

        def load() -> Models:
            return Models(self.config, load_parts(self.config, rated=rated), self.judge)

        request = self.request
        return open_executor(
            self.config, load, judge=self.judge, rated=rated, ray=request.ray, count=request.ray_workers
        )

    def _arms(self) -> list[Arm]:
        given = self.request.policies
        own = [] if self.request.sweeps and not given else policy_arms(given, self.config.policy.model_dump())
        arms = own + sweep_arms(self.request.sweeps) + random_arms(chosen_rates(self.request.random_rates))
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

    def _validation(self) -> tuple[Any, int] | None:
        """Return the validation questions and how many."""
        request = self.request
        given = request.validation
        if given is None:
            if self.dataset.type != "arithmetic":
                return None
            given = f"arithmetic:{self.dataset.split}:validation"
        dataset = read_dataset("--validation", given, "validation", request.seed)
        if dataset.identity() == self.dataset.identity():
            raise SettingsError("--validation are the questions of --dataset: choose others")
        n = count_questions("--validation", given, dataset, request.validation_n, VALIDATION_N)
        if shared := shared_questions(self.dataset, self.n, dataset, n):
            self.leak = (
                f"{shared} of the {n} questions of --validation are among those of --dataset: what is fitted "
                "on them, router and kind, looks better here than it is"
            )
        return dataset, n

    async def run(self, executor: Executor) -> Harness:
        """Run all arms.

        Args:
            executor: Runs the models.
        """
        harness = Harness(self.request.out, self.plan, executor, on_begin=self._begin, on_row=self._advance)
        self._announce()
        if self.leak and {"router", "kind"} & set(self.baselines):
            self.warnings.append(self.leak)
            print(f"warning: {self.leak}", file=sys.stderr, flush=True)
        for arm in (*REFERENCES, *self.arms):
            await harness.run(arm.name, arm.settings, arm.policy)
        if self.baselines:
            await self._run_baselines(harness)
        self.close()
        return harness

    def finish(self, harness: Harness) -> RunSummary:
        """Write the rows and the summary of all arms."""
        request = self.request
        self.warnings += [
            f"the arm {arm} is left out: questions are lacking, or all failed" for arm in harness.take_older()
        ]
        write_rows(request.out, list(harness.arms))
        worth = Worth(priced=_priced(self.config.prices), second=request.cost_per_second)
        summary = summarise_run(harness, self.config, worth, self.warnings)
        write_json(request.out / SUMMARY, summary)
        return summary

    async def _run_baselines(self, harness: Harness) -> None:
        pattern = self.request.pattern
        scorer = self.config.scorer
        work = Baselines(
            harness=harness,
            validation=self._validate(harness),
            scorer_type=None if scorer is None else scorer.type,
            judge_name=None if self.judge is None else self.judge.name,
            pattern=pattern or (OPERATIONS if self.dataset.type == "arithmetic" else MATHEMATICS),
            seed=self.request.seed,
        )
        self.warnings += await work.run(self.baselines, all_of_them=self.request.baselines == "all")

    def _validate(self, harness: Harness) -> Validation | None:
        """Return what runs the models alone on the validation questions, where there are any."""
        if self.validation is None:
            return None
        dataset, n = self.validation
        advance = lambda trace: self._bar.advance() if self._bar else None  # noqa: E731
        return Validation(harness=harness, dataset=dataset, n=n, on_trace=advance)

    def _announce(self) -> None:
        runs = self.n * self.request.samples
        told = [arm.name for arm in self.arms] + list(self.baselines)
        print(
            f"{runs} runs an arm: small, large, {', '.join(told)}",
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


def _priced(prices: Prices) -> bool:
    return any(price.input or price.output for _, price in prices)
