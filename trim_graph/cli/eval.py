"""`trim-graph eval`: what would a policy save, and what would it cost in accuracy?"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from trim_graph.config.load import judge_without_price
from trim_graph.errors import InputError, SettingsError, counted
from trim_graph.evaluation.arms import (
    RANDOM_RATES,
    REFERENCES,
    Arm,
    check_names,
    identity_of,
    judge_of,
    policy_arms,
    policy_config,
    price_identity,
    random_arms,
    sweep_arms,
)
from trim_graph.evaluation.baselines import (
    BASELINES,
    FREE,
    MATHEMATICS,
    OPERATIONS,
    Baselines,
    Validation,
    count_fitting_runs,
    keep_when_regraded,
    planned_runs,
)
from trim_graph.evaluation.datasets import (
    Dataset,
    first_questions,
    grader_of,
    make_dataset,
    mapping_of,
    read_through,
    shared_questions,
    title_of,
)
from trim_graph.evaluation.experiment import ExperimentRunner, RunConfig, known_arms
from trim_graph.evaluation.forecast import (
    Kind,
    PlannedRuns,
    SpendEstimate,
    count_and_measure,
    estimate_spend,
    lengths_of,
)
from trim_graph.evaluation.records import (
    SUMMARY,
    RunSummary,
    read_rows_of,
    read_settings,
    write_json,
    write_rows,
)
from trim_graph.evaluation.runner import Executor, Models
from trim_graph.evaluation.verdicts import CostModel, summarise_run
from trim_graph.storage.journal import moved

from .common import (
    Progress,
    calls_scorer,
    check_readable,
    chosen_config,
    load_parts,
    open_executor,
    parsed_option,
)
from .eval_output import estimate_as_json, print_estimate, print_summary
from .options import EvalOptions, command_line
from .terminal import Interrupted, at_terminal, need

ASK_CALLS, ASK_COST = 20_000, 1.0
"""Calls, and cost in the currency of the prices, above which a person at a terminal is asked first."""


def run_eval(request: EvalOptions) -> RunSummary | None:
    """Evaluates, writes the run's folder, prints the summary; None where only the estimate is wanted.

    Raises:
        TrimError: The request cannot be fulfilled.
        Interrupted: Ctrl-C, or the spend was declined.
    """
    evaluation = Evaluation(request)
    estimate = evaluation.estimate()
    if request.estimate:
        if request.as_json:
            print(estimate_as_json(estimate))
        else:
            print_estimate(estimate)
        return None
    if estimate.calls >= 1:
        print_estimate(estimate, stderr=True)
        _confirm(estimate, request)
    try:
        with evaluation.executor() as executor:
            runner = asyncio.run(evaluation.run(executor))
        summary = evaluation.finish(runner)
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted: the same command resumes {request.out}") from error
    finally:
        evaluation.close()

    print_summary(summary, request.out, as_json=request.as_json)
    return summary


def _confirm(estimate: SpendEstimate, request: EvalOptions) -> None:
    """Asks a person at a terminal whether to spend that much.

    Raises:
        Interrupted: They say no.
    """
    much = estimate.calls > ASK_CALLS or (estimate.cost or 0.0) > ASK_COST
    if request.yes or not much or not at_terminal():
        return
    import typer

    if not typer.confirm("Start?", err=True):
        raise Interrupted("nothing was run; --yes starts without asking")


class Evaluation:
    """A request that has been checked; models are loaded last.

    Args:
        request: What is asked for.
    """

    def __init__(self, request: EvalOptions) -> None:
        need("cli,eval", "numpy", "pyarrow")
        self.request = request
        overrides: dict[str, Any] = {"settings": {"seed": request.seed}}
        if request.prices is not None:
            example = "{large: {input: 0.5, output: 1.5}}"
            overrides["prices"] = parsed_option("--prices", request.prices, example)
        self.config = chosen_config(request.config, overrides)
        self.arms = self._arms()
        self.baselines = chosen_baselines(request.baselines)
        self.dataset = read_dataset("--dataset", request.dataset, "test", request.seed)
        self.n, self.repeats = count_questions(
            "--dataset", request.dataset, self.dataset, request.n, DEFAULT_N
        )
        self.judge = judge_of(request.judge, self.config)
        own = None if self.judge is None else self.judge.config
        if (unpriced := judge_without_price(self.config.prices, self.config.scorer, own)) is not None:
            raise SettingsError(unpriced)
        self.leak: str | None = None
        self.warnings = list[str]()
        """Warnings for a reader of the summary."""
        if self.repeats:
            self.warnings.append(repeats_warning(self.n, self.repeats))
        if (cache := self.config.response_cache) is not None:
            if request.samples > 1:
                raise SettingsError(
                    f"--samples {request.samples}: response_cache would answer all samples of a question "
                    "alike: leave one of them out"
                )
            if request.cost_per_second:
                raise SettingsError(
                    f"--cost-per-second {request.cost_per_second:g}: response_cache answers known calls at "
                    "once, so no seconds are measured: leave one of them out"
                )
            self.warnings.append(
                f"responses were read from {cache.name} where known: no seconds were measured"
            )
        self.validation = self._validation()
        check_readable(self.config, "--dataset", self.dataset, self.n)
        if self.validation is not None:
            check_readable(self.config, "--validation", *self.validation)
        self.run_config = self._run_config()
        if request.out.exists() or not request.estimate:
            # Refuses a folder that was begun otherwise.
            known_arms(request.out, self.run_config.settings, regrade=request.regrade)
            known = read_settings(request.out)
            for one in moved(known["settings"], self.run_config.settings) if known else ():
                print(f"{request.out} is resumed: {one}", file=sys.stderr, flush=True)
        self._bar: Progress | None = None
        self._opened = ExitStack()

    def estimate(self) -> SpendEstimate:
        """Returns what is left to spend, from what is done in the folder and what that took."""
        named = [one.arm for one in self._planned({}) if one.arm is not None]
        counts, seen = count_and_measure(self.request.out, named, retry_errors=self.request.retry_errors)
        texts = [one.text for one in first_questions(self.dataset, min(self.n, 100), default=self.n)]
        lengths = lengths_of(texts, self.config.settings.instruction, seen)
        prices = self.config.prices if self.config.prices.given else None
        planned = self._planned({**counts, **count_fitting_runs(self.request.out)})
        if not calls_scorer(self.config):
            planned = [one for one in planned if one.kind != "scores"]
        return estimate_spend(planned, lengths, seen, prices)

    def _planned(self, done: Mapping[str, int]) -> list[PlannedRuns]:
        """Returns the runs that are left, where so many of each arm are done."""
        runs, scored = self.run_config.distinct * self.request.samples, calls_scorer(self.config)
        arms = [
            _planned_arm(arm, max(0, runs - done.get(arm.name, 0)), scored=scored)
            for arm in (*REFERENCES, *self.arms)
        ]
        baselines = planned_runs(
            self.baselines,
            n=self.run_config.distinct,
            samples=self.request.samples,
            validation_n=0 if self.validation is None else self.validation[1],
            scorer_type=None if self.config.scorer is None else self.config.scorer.type,
            judged=self.judge is not None,
            judge=None if self.judge is None else self.judge.writer,
            done=lambda name: done.get(name, 0),
        )
        return [*arms, *baselines]

    def executor(self) -> AbstractContextManager[Executor]:
        """Returns a context with the executor that runs the models."""
        rated = self.config.scorer is not None

        def load() -> Models:
            return Models(self.config, load_parts(self.config, rated=rated), self.judge)

        request = self.request
        return open_executor(
            self.config,
            load,
            judge=self.judge,
            rated=rated,
            ray=request.ray,
            count=request.ray_workers,
            workers=request.workers,
            load_per_worker=request.load_per_worker,
        )

    def _arms(self) -> list[Arm]:
        given = self.request.policy
        own = [] if self.request.sweep and not given else policy_arms(given, self.config.policy.model_dump())
        arms = own + sweep_arms(self.request.sweep) + random_arms(chosen_rates(self.request.random_rates))
        check_names(arms)
        if self.config.scorer is None:
            for arm in arms:
                if policy_config(arm.policy).build().needs_score:
                    raise SettingsError(
                        f"the policy {arm.name} needs scores: name a scorer in the configuration"
                    )
        return arms

    def _run_config(self) -> RunConfig:
        request, config = self.request, self.config
        identity = {key: value for key, value in identity_of(config).items() if key != "policy"}
        settings = {
            **identity,
            "prices": price_identity(config.prices),
            "dataset": self.dataset.identity(),
            **({"grader": grader} if (grader := grader_of(self.dataset)) else {}),
            "samples": request.samples,
            "concurrency": request.concurrency,
        }
        return RunConfig(
            dataset=self.dataset,
            n=self.n,
            samples=request.samples,
            seed=request.seed,
            concurrency=request.concurrency,
            prices=config.prices,
            settings=settings,
            retry_errors=request.retry_errors,
            repeats=self.repeats,
            regrade=request.regrade,
        )

    def _validation(self) -> tuple[Any, int] | None:
        """Returns the validation questions and how many."""
        request = self.request
        given = request.validation
        if given is None:
            if self.dataset.type != "arithmetic":
                return None
            given = f"arithmetic:{self.dataset.split}:validation"
        dataset = read_dataset("--validation", given, "validation", request.seed)
        if dataset.identity() == self.dataset.identity():
            raise SettingsError("--validation are the questions of --dataset: choose others")
        n, _ = count_questions("--validation", given, dataset, request.validation_n, VALIDATION_N)
        if shared := shared_questions(self.dataset, self.n, dataset, n):
            self.leak = (
                f"{shared} of the {n} questions of --validation {'is' if shared == 1 else 'are'} among "
                "those of --dataset: what is fitted "
                "on them, router and kind, looks better here than it is"
            )
        return dataset, n

    async def run(self, executor: Executor) -> ExperimentRunner:
        """Runs all arms.

        Args:
            executor: Runs the models.
        """
        runner = ExperimentRunner(
            self.request.out,
            self.run_config,
            executor,
            on_begin=self._begin,
            on_row=self._advance,
            timed=self.config.response_cache is None,
        )
        self._announce()
        if self.leak and {"router", "kind"} & set(self.baselines):
            self.warnings.append(self.leak)
        for warning in self.warnings:
            print(f"warning: {warning}", file=sys.stderr, flush=True)
        if self.request.regrade:
            self._regrade(runner)
        for arm in (*REFERENCES, *self.arms):
            await runner.run(arm.name, arm.settings, arm.policy)
        if self.baselines:
            await self._run_baselines(runner)
        self.close()
        return runner

    def _regrade(self, runner: ExperimentRunner) -> None:
        """Grades the solutions in the folder again, and those that fit baselines."""
        if (validation := self._validate(runner)) is not None:
            validation.regrade()
        keep_when_regraded(runner)
        runner.regrade()

    def finish(self, runner: ExperimentRunner) -> RunSummary:
        """Writes the rows and the summary of all arms."""
        request = self.request
        self.warnings += [
            f"the arm {arm} is left out: questions are lacking, or not graded, or all failed"
            for arm in runner.take_older()
        ]
        self.warnings += self._pair_of_none_right(runner)
        write_rows(request.out, list(runner.arms))
        cost_model = CostModel(self.config.prices.given, request.cost_per_second, request.max_loss)
        summary = summarise_run(
            runner, self.config, cost_model, self.warnings, command=command_line("eval", request)
        )
        write_json(request.out / SUMMARY, summary)
        return summary

    def _pair_of_none_right(self, runner: ExperimentRunner) -> list[str]:
        """Returns a warning with an expected answer and one given, where no arm has any right."""
        if any(arm.plain["correct"] for arm in runner.done.values()):
            return []
        for row in read_rows_of(self.request.out, "large"):
            if row["correct"] is not None and row["error"] is None:
                got = (
                    f"answer {row['answer']!r}"
                    if row["answer"]
                    else f"no answer in {row['solution'][-80:]!r}"
                )
                return [
                    f"no arm has any question right. Question {row['id']}, large alone: expected "
                    f"{row['expected']!r}, got {got} ({mapping_of(self.dataset) or 'exact answers'})"
                ]
        return []

    async def _run_baselines(self, runner: ExperimentRunner) -> None:
        pattern = self.request.pattern
        scorer = self.config.scorer
        work = Baselines(
            runner=runner,
            validation=self._validate(runner),
            scorer_type=None if scorer is None else scorer.type,
            judge_name=None if self.judge is None else self.judge.name,
            pattern=pattern or (OPERATIONS if self.dataset.type == "arithmetic" else MATHEMATICS),
            seed=self.request.seed,
        )
        self.warnings += await work.run(self.baselines, all_of_them=self.request.baselines in ("all", "free"))

    def _validate(self, runner: ExperimentRunner) -> Validation | None:
        """Returns what runs the models alone on the validation questions, where there are any."""
        if self.validation is None:
            return None
        dataset, n = self.validation
        rated = self.config.scorer is not None and "kind" in self.baselines
        return Validation(runner, dataset, n, on_record=self._advance, rated=rated)

    def _announce(self) -> None:
        runs = self.run_config.distinct * self.request.samples
        names = [arm.name for arm in self.arms] + list(self.baselines)
        print(
            f"{counted(runs, 'run')} an arm: small, large, {', '.join(names)}",
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
        """Ends the progress bar."""
        self._opened.close()
        self._bar = None


def _planned_arm(arm: Arm, left: int, *, scored: bool) -> PlannedRuns:
    """Returns the runs of an arm that are left, with what its policy says of their spend."""
    type, group = arm.policy.get("type"), "random routing" if arm.kind == "random" else "policies"
    if type in ("small_only", "large_only"):
        group = "models alone" if arm.kind == "reference" else group
        return PlannedRuns(group, arm.name, "small" if type == "small_only" else "large", left)
    kind: Kind = "probed" if type == "entropy_probe" else "routed"
    rate = float(arm.policy["rate"]) if type == "random_rate" else 1.0
    scored = scored and policy_config(arm.policy).build().needs_score
    return PlannedRuns(group, arm.name, kind, left, rate, scored)


DEFAULT_N = 200
"""Questions of a dataset without end, where -n does not say."""
VALIDATION_N = 300
"""Validation questions, where --validation-n does not say."""


def read_dataset(option: str, given: str, part: Any, seed: int) -> Dataset:
    """Reads an option that names a dataset, and says which fields are read and who grades."""
    parsed = parsed_option(option, given, "{type: file, path: questions.jsonl}")
    dataset = make_dataset(parsed, part=part, seed=seed)
    if (mapping := mapping_of(dataset)) is not None:
        print(f"{title_of(dataset)}: {mapping}", file=sys.stderr, flush=True)
    return dataset


def count_questions(
    option: str, named: str, dataset: Dataset, wanted: int | None, default: int
) -> tuple[int, frozenset[int]]:
    """Returns how many questions there are to read, and which are earlier ones again (`read_through`)."""
    if next(first_questions(dataset, 1, default=1), None) is None:
        raise InputError(f"{option} {named}: there are no questions in it")
    there = dataset.count()
    if there is None:
        return (default if wanted is None else wanted), frozenset()
    if wanted is not None and wanted > there:
        raise SettingsError(f"{option} {named} has {counted(there, 'question')}; {wanted} are wanted")
    n = there if wanted is None else wanted
    return n, read_through(dataset, n)


def repeats_warning(n: int, repeats: Collection[int]) -> str:
    """Says that questions are earlier ones again."""
    return (
        f"{len(repeats)} of {counted(n, 'question')} {'has' if len(repeats) == 1 else 'have'} the text of an "
        f"earlier one, the first of them question {min(repeats)}: each text is asked and counted once"
    )


def chosen_baselines(given: str) -> list[str]:
    """Returns the names of the baselines that are wanted."""
    groups = {"all": list(BASELINES), "free": list(FREE), "none": []}
    if given in groups:
        return groups[given]
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in BASELINES:
            raise SettingsError(
                f"--baselines {given}: there is no {name!r}; choose all, none, or of {', '.join(BASELINES)}; "
                "free are those that call no model"
            )
    return names


def chosen_rates(given: str) -> list[float]:
    """Returns the rates of random routing, in order.

    Raises:
        SettingsError: One is no rate between 0 and 1.
    """
    groups: dict[str, list[float]] = {"none": [], "usual": list(RANDOM_RATES)}
    if given in groups:
        return groups[given]
    try:
        rates = sorted({float(rate) for rate in given.split(",")})
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < 1 for rate in rates):
        raise SettingsError(
            f"--random-rates {given}: give rates between 0 and 1, such as 0.1,0.5,0.9, or usual, or none"
        )
    return rates
