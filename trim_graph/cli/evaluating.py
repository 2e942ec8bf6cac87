"""`trim-graph eval`: what would a policy save on these questions, and what would it cost in accuracy?"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import ExitStack
from typing import Any

from trim_graph.budget import Prices
from trim_graph.distributed.shards import WHOLE, Shard, ShardFolder, open_shard, shards_of
from trim_graph.distributed.workers import Models, Workers
from trim_graph.errors import SettingsError
from trim_graph.evaluation.arms import Arm, check_names, policy_arms, sweep_arms
from trim_graph.evaluation.baseline_arms import Baselines
from trim_graph.evaluation.by_kind import MATHEMATICS, OPERATIONS
from trim_graph.evaluation.course import Course
from trim_graph.evaluation.datasets import shared_questions
from trim_graph.evaluation.families import policy_config
from trim_graph.evaluation.harness import Harness, Plan
from trim_graph.evaluation.identity import code_identity, identity_of
from trim_graph.evaluation.judging import judge_of
from trim_graph.evaluation.run_files import SETTINGS, SUMMARY
from trim_graph.evaluation.run_summary import RunSummary
from trim_graph.evaluation.run_writing import check_folder, write_json, write_rows
from trim_graph.evaluation.validation import Validation
from trim_graph.evaluation.verdicts import Worth
from trim_graph.evaluation.whole_summary import summarise_run

from .eval_request import (
    DEFAULT_N,
    VALIDATION_N,
    Request,
    check_request,
    chosen_baselines,
    count_questions,
    read_dataset,
)
from .models import chosen_config, load_parts, parsed_option
from .progress import Progress
from .reporting import Interrupted, need
from .working import open_workers

__all__ = ["Evaluation", "Request", "run_eval"]

GIVEN_UP = "given_up.json"
"""In the folder of a shard: the baselines that it could not run, and why."""


def run_eval(request: Request) -> RunSummary | None:
    """Evaluate, write the run's folder, print the summary.

    Returns:
        The summary; None of a shard, whose part is not all there is.

    Raises:
        TrimError: The request cannot be fulfilled.
        Interrupted: Ctrl-C.
    """
    evaluation = Evaluation(request)
    try:
        with evaluation.workers() as workers:
            course = asyncio.run(evaluation.run(workers))
        if evaluation.folder is not None:
            evaluation.tell(course)
            return None
        summary = evaluation.finish(course)
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
        merging: Whether nothing is run: the folder may then hold shards alone.
    """

    def __init__(self, request: Request, *, merging: bool = False) -> None:
        need("cli,eval", "numpy", "pyarrow")
        check_request(request)
        self.request = request
        self.shard = WHOLE if request.shard is None else Shard.parse(request.shard)
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
        self.validation = self._validation()
        self.plan = self._plan()
        self.folder = None if request.shard is None else self._shard_folder(self.shard)
        if self.folder is None and not merging:
            check_folder(request.out)
        self.given_up = dict[str, str]()
        """Baselines that cannot be run, and why."""
        self.harness(None)  # refuses a folder that was begun otherwise
        self._bar: Progress | None = None
        self._opened = ExitStack()

    def harness(self, workers: Workers | None) -> Harness:
        """Return what runs arms, or takes what is there of them where there is nobody to run them."""
        out, folder = self.request.out, self.folder
        return Harness(
            out if folder is None else folder.path,
            self.plan,
            workers,
            whole=None if folder is None else out,
            on_begin=self._begin,
            on_row=self._advance,
        )

    def workers(self) -> Any:
        """Return a context with those who run the models."""
        rated = self.config.scorer is not None

        def load() -> Models:
            return Models(self.config, load_parts(self.config, rated=rated), self.judge)

        request = self.request
        return open_workers(
            self.config, load, judge=self.judge, rated=rated, ray=request.ray, count=request.ray_workers
        )

    def _shard_folder(self, shard: Shard) -> ShardFolder:
        told = {"command": "eval", "code": code_identity(), "request": self.request.told()}
        out = self.request.out
        if (out / SETTINGS).exists() and not shards_of(out).exists():
            raise SettingsError(
                f"--out {out} holds an evaluation that was run without --shard: choose another folder"
            )
        return open_shard(self.request.out, shard, {**told, "folder": os.getcwd()})

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
            shard=self.shard,
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

    def validate(self, harness: Harness) -> Validation | None:
        """Return what runs the models alone on the validation questions."""
        if self.validation is None:
            return None
        dataset, n = self.validation
        advance = lambda trace: self._bar.advance() if self._bar else None  # noqa: E731
        return Validation(harness=harness, dataset=dataset, n=n, on_trace=advance)

    async def run(self, workers: Workers | None) -> Course:
        """Run all arms, or what can be of them.

        Args:
            workers: None: nothing is run, only what is there is taken.
        """
        course = Course(self.harness(workers))
        if workers is not None:
            self._announce()
            self._tell_merge_of_given_up()
        if self.leak and {"router", "kind"} & set(self.baselines):
            course.warnings.append(self.leak)
            if workers is not None:
                print(f"warning: {self.leak}", file=sys.stderr, flush=True)
        await course.references()
        for arm in self.arms:
            await course.run(arm)
        await course.beside(self.arms)
        if self.baselines:
            await self._run_baselines(course)
        self.close()
        return course

    def finish(self, course: Course) -> RunSummary:
        """Write what came of all arms."""
        harness, request = course.harness, self.request
        lacking = harness.take_older()
        course.warnings += [
            f"the arm {arm} is left out: questions are lacking, or all failed" for arm in lacking
        ]
        write_rows(request.out, list(harness.arms))
        worth = Worth(priced=_priced(self.config.prices), second=request.cost_per_second)
        summary = summarise_run(harness, self.config, worth, course.warnings)
        write_json(request.out / SUMMARY, summary)
        return summary

    def tell(self, course: Course) -> None:
        """Say how far a shard is."""
        out = self.request.out
        for warning in course.warnings:
            if warning != self.leak:  # that was told before the first run
                print(f"warning: {warning}", file=sys.stderr, flush=True)
        if self.request.as_json:
            print(json.dumps({"shard": str(self.shard), "pending": course.pending}))
        elif course.pending:
            print(
                f"shard {self.shard} has ended its part of {', '.join(course.pending)}. When all have: "
                f"trim-graph merge {out}"
            )
        else:
            print(f"shard {self.shard} has nothing left to run: trim-graph merge {out}")

    async def _run_baselines(self, course: Course) -> None:
        pattern = self.request.pattern
        scorer = self.config.scorer
        work = Baselines(
            course=course,
            folder=course.harness.folder,
            beside=self.arms[len(self.arms) // 2 if not self.request.policies else 0].name,
            validation=self.validate(course.harness),
            scorer_type=None if scorer is None else scorer.type,
            judge_name=None if self.judge is None else self.judge.name,
            pattern=pattern or (OPERATIONS if self.dataset.type == "arithmetic" else MATHEMATICS),
            seed=self.request.seed,
            given_up=self.given_up,
        )
        every = self.request.baselines == "all"
        await work.run(self.baselines, all_of_them=every)
        self._tell_merge_of_given_up()

    def _tell_merge_of_given_up(self) -> None:
        """Write down, in a shard, which baselines it will not go on with: merging does not wait for them."""
        if self.folder is not None:
            file = self.folder.journal(GIVEN_UP)
            if self.given_up:
                write_json(file, self.given_up)
            else:
                file.unlink(missing_ok=True)

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


def _priced(prices: Prices) -> bool:
    return any(price.input or price.output for _, price in prices)
