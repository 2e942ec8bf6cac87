"""`trim-graph eval`: what would a policy save, and what would it cost in accuracy?"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trim_graph.budget import Prices
from trim_graph.errors import InputError, SettingsError, counted
from trim_graph.evaluation.arms import (
    REFERENCES,
    Arm,
    check_names,
    identity_of,
    judge_of,
    policy_arms,
    policy_config,
    random_arms,
    sweep_arms,
)
from trim_graph.evaluation.baselines import BASELINES, MATHEMATICS, OPERATIONS, Baselines, Validation
from trim_graph.evaluation.datasets import (
    Dataset,
    first_questions,
    make_dataset,
    read_through,
    shared_questions,
)
from trim_graph.evaluation.experiment import ExperimentRunner, RunConfig, known_arms
from trim_graph.evaluation.records import (
    SUMMARY,
    ArmSummary,
    Metric,
    OverQueryLevel,
    RunSummary,
    write_json,
    write_rows,
)
from trim_graph.evaluation.runner import Executor, Models
from trim_graph.evaluation.verdicts import CostModel, summarise_run

from .common import Progress, chosen_config, load_parts, open_executor, parsed_option
from .options import EvalOptions
from .terminal import Interrupted, need

if TYPE_CHECKING:
    from rich.table import Table


def run_eval(request: EvalOptions) -> RunSummary:
    """Evaluates, write the run's folder, print the summary.

    Raises:
        TrimError: The request cannot be fulfilled.
        Interrupted: Ctrl-C.
    """
    evaluation = Evaluation(request)
    try:
        with evaluation.executor() as executor:
            runner = asyncio.run(evaluation.run(executor))
        summary = evaluation.finish(runner)
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted: the same command resumes {request.out}") from error
    finally:
        evaluation.close()

    show(summary, request.out, as_json=request.as_json)
    return summary


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
        self.n = count_questions("--dataset", request.dataset, self.dataset, request.n, DEFAULT_N)
        self.judge = judge_of(request.judge, self.config)
        self.leak: str | None = None
        self.warnings = list[str]()
        """Warnings for a reader of the summary."""
        if (cache := self.config.response_cache) is not None:
            if request.samples > 1:
                raise SettingsError(
                    f"--samples {request.samples}: response_cache would answer all samples of a question "
                    "alike: leave one of them out"
                )
            self.warnings.append(
                f"responses were read from {cache.name} where known: no seconds were measured"
            )
        self.validation = self._validation()
        self.run_config = self._run_config()
        known_arms(request.out, self.run_config.settings)  # refuses a folder that was begun otherwise
        self._bar: Progress | None = None
        self._opened = ExitStack()

    def executor(self) -> AbstractContextManager[Executor]:
        """Returns a context with the executor that runs the models."""
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

    def _run_config(self) -> RunConfig:
        request, config = self.request, self.config
        identity = {key: value for key, value in identity_of(config).items() if key != "policy"}
        settings = {
            **identity,
            "prices": config.prices.model_dump(),
            "dataset": self.dataset.identity(),
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
        n = count_questions("--validation", given, dataset, request.validation_n, VALIDATION_N)
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
            self.request.out, self.run_config, executor, on_begin=self._begin, on_row=self._advance
        )
        self._announce()
        if self.leak and {"router", "kind"} & set(self.baselines):
            self.warnings.append(self.leak)
            print(f"warning: {self.leak}", file=sys.stderr, flush=True)
        for arm in (*REFERENCES, *self.arms):
            await runner.run(arm.name, arm.settings, arm.policy)
        if self.baselines:
            await self._run_baselines(runner)
        self.close()
        return runner

    def finish(self, runner: ExperimentRunner) -> RunSummary:
        """Writes the rows and the summary of all arms."""
        request = self.request
        self.warnings += [
            f"the arm {arm} is left out: questions are lacking, or all failed" for arm in runner.take_older()
        ]
        write_rows(request.out, list(runner.arms))
        cost_model = CostModel(priced=_priced(self.config.prices), second=request.cost_per_second)
        summary = summarise_run(runner, self.config, cost_model, self.warnings)
        write_json(request.out / SUMMARY, summary)
        return summary

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
        self.warnings += await work.run(self.baselines, all_of_them=self.request.baselines == "all")

    def _validate(self, runner: ExperimentRunner) -> Validation | None:
        """Returns what runs the models alone on the validation questions, where there are any."""
        if self.validation is None:
            return None
        dataset, n = self.validation
        return Validation(runner=runner, dataset=dataset, n=n, on_record=self._advance)

    def _announce(self) -> None:
        runs = self.n * self.request.samples
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


def _priced(prices: Prices) -> bool:
    return any(price.input or price.output for _, price in prices)


DEFAULT_N = 200
"""Questions of a dataset without end, where -n does not say."""
VALIDATION_N = 300
"""Validation questions, where --validation-n does not say."""


def read_dataset(option: str, given: str, part: Any, seed: int) -> Dataset:
    """Reads an option that names a dataset."""
    parsed = parsed_option(option, given, "{type: file, path: questions.jsonl}")
    return make_dataset(parsed, part=part, seed=seed)


def count_questions(option: str, named: str, dataset: Dataset, wanted: int | None, default: int) -> int:
    """Returns how many questions there are to run, after a look at each of them."""
    if next(first_questions(dataset, 1, default=1), None) is None:
        raise InputError(f"{option} {named}: there are no questions in it")
    there = dataset.count()
    if there is None:
        return default if wanted is None else wanted
    if wanted is not None and wanted > there:
        raise SettingsError(f"{option} {named} has {counted(there, 'question')}; {wanted} are wanted")
    n = there if wanted is None else wanted
    read_through(dataset, n)
    return n


def chosen_baselines(given: str) -> list[str]:
    """Returns the names of the baselines that are wanted."""
    if given in ("all", "none"):
        return list(BASELINES) if given == "all" else []
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in BASELINES:
            raise SettingsError(
                f"--baselines {given}: there is no {name!r}; choose all, none, or of {', '.join(BASELINES)}"
            )
    return names


def chosen_rates(given: str) -> list[float]:
    """Returns the rates of random routing, in order.

    Raises:
        SettingsError: One is no rate between 0 and 1.
    """
    try:
        rates = sorted({float(rate) for rate in given.split(",")})
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < 1 for rate in rates):
        raise SettingsError(f"--random-rates {given}: give rates between 0 and 1, such as 0.1,0.5,0.9")
    return rates


WIDTH = 150
"""Width of the tables where stdout is no terminal."""
_SPREAD_FROM = 50
"""Fewest questions for which the table shows intervals; below, they say little but noise."""


def show(summary: RunSummary, folder: Path, *, as_json: bool) -> None:
    """Prints the summary."""
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    from .common import Console

    console = Console(plain_width=WIDTH)
    samples = f", {summary['samples']} samples of each" if summary["samples"] > 1 else ""
    console.print(
        f"{counted(summary['n'], 'question')} of {summary['dataset']['name']}{samples}, "
        f"{summary['concurrency']} at "
        "a time; 95 % intervals by bootstrap, paired between arms"
    )
    console.print(_accuracy(summary))
    console.print(_usage_table(summary))
    console.print(_savings_table(summary))
    if summary["curves"]:
        console.print(_curves(summary))
    for warning in summary["warnings"]:
        console.print(f"warning: {warning}")
    kinds = {arm["arm"]: arm["kind"] for arm in summary["arms"]}
    for verdict in summary["verdicts"]:
        if kinds[verdict["arm"]] != "baseline":
            console.print(f"- {verdict['text']}")
    console.print(f"\n{summary['verdict']}")
    console.print(f"\nrows and summary in {folder}")


def _table(title: str, *columns: str) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _accuracy(summary: RunSummary) -> Table:
    table = _table(
        "accuracy and spend",
        "arm",
        "accuracy",
        "compared to large",
        "large tokens",
        "share",
        "PGR",
        "IBC",
        "over random",
    )
    spread = summary["n"] >= _SPREAD_FROM
    for arm in summary["arms"]:
        own = arm["metrics"]
        compared_to = arm["differences"].get("large", {}).get("accuracy")
        table.add_row(
            arm["arm"],
            _formatted(own["accuracy"], spread=spread),
            _formatted(compared_to, signed=True, spread=spread),
            _formatted(own["large_tokens"], digits=1),
            _formatted(own["share"], spread=spread),
            _formatted(own["pgr"], spread=spread),
            _formatted(own["ibc"], digits=2),
            _over_random(arm, spread=spread),
        )
    table.caption = (
        "over random: accuracy minus that of random routing with as many large tokens, read off the straight "
        "lines between its rates"
    )
    return table


def _usage_table(summary: RunSummary) -> Table:
    table = _table(
        "a question", "arm", "small tokens", "discarded", "scorer", "prefill small/large", "cached",
        "calls s/l/score", "cost", "seconds median", "p95", "first step", "p95",
    )  # fmt: skip
    for arm in summary["arms"]:
        own = arm["metrics"]
        table.add_row(
            arm["arm"],
            *(_formatted(own[f"{name}_tokens"], digits=1) for name in ("small", "discarded", "scorer")),
            _joined(arm, "small_prefill", "large_prefill"),
            _joined(arm, "small_cached_prefill", "large_cached_prefill"),
            _joined(arm, "small_calls", "large_calls", "scorer_calls", digits=1),
            _formatted(own["cost"], digits=6) if summary["priced"] else "-",
            *(_formatted(own[name], digits=2) for name in ("seconds_median", "seconds_p95")),
            *(_formatted(own[name], digits=2) for name in ("first_step_median", "first_step_p95")),
        )
    return table


def _savings_table(summary: RunSummary) -> Table:
    """Returns what each arm saves net, with what a configuration may say of the large model alone."""
    table = _table(
        "net savings a question, against the large model alone",
        "arm", "large tokens", "tokens in all", "cost", "seconds",
    )  # fmt: skip
    spread = summary["n"] >= _SPREAD_FROM
    for arm in summary["arms"]:
        if arm["arm"] != "large":
            saved = arm.get("savings", {})
            table.add_row(
                arm["arm"],
                *(
                    _formatted(saved.get(kind), digits=1, spread=spread)
                    for kind in ("large_tokens", "tokens")
                ),
                _formatted(saved.get("cost"), digits=6, spread=spread),
                _formatted(saved.get("seconds"), digits=2, spread=spread),
            )
    known = {key: round(value, 5) for key, value in summary.get("large_alone", {}).items() if value}
    if known:
        stated = ", ".join(f"{key}: {value:g}" for key, value in known.items())
        table.caption = (
            "scorer, discarded drafts and prompts are spent too; runs estimate their own savings best with "
            f"large_alone: {{{stated}}} in the configuration, as measured here"
        )
    return table


def _curves(summary: RunSummary) -> Table:
    budgets = list(summary["budgets"])
    table = _table(
        "curves", "family", "arms", "mean IBC", "Delta IBC", "to query-level", "CPT 50 %", "80 %", "95 %",
        *(f"accuracy at {100 * float(budget):g} %" for budget in budgets),
    )  # fmt: skip
    spread = summary["n"] >= _SPREAD_FROM
    for curve in summary["curves"]:
        table.add_row(
            curve["family"],
            str(len(curve["points"])),
            _formatted(curve["mean_ibc"], digits=2, spread=spread),
            _formatted(curve["delta_ibc"], digits=2, spread=spread),
            _over_query_level(curve["over_query_level"], spread=spread),
            *(_formatted(metric) for metric in curve["cpt"].values()),
            *(_formatted(curve["budgeted_accuracy"][budget]) for budget in budgets),
        )
    table.caption = (
        "CPT and accuracy within a budget: large tokens as a share of the large model's own; Delta IBC: its "
        "mean up to CPT(95); to query-level: its ratio to the best of router, cascade and score_cascade"
    )
    return table


def _formatted(metric: Metric | None, *, digits: int = 3, signed: bool = False, spread: bool = False) -> str:
    if metric is None or metric["value"] is None:
        return "-"
    sign = "+" if signed else ""
    text = f"{metric['value']:{sign}.{digits}f}"
    if spread and metric["interval"] is not None:
        text += f" ({metric['interval'][0]:{sign}.{digits}f} to {metric['interval'][1]:{sign}.{digits}f})"
    return text


def _over_query_level(found: OverQueryLevel | None, *, spread: bool) -> str:
    return (
        "-" if found is None else f"{_formatted(found['ratio'], digits=1, spread=spread)} {found['family']}"
    )


def _over_random(arm: ArmSummary, *, spread: bool) -> str:
    found = arm["matched_budget"].get("random")
    if found is not None and found["curve_ends"] is not None:
        return f"beyond {found['curve_ends']:.1f}"
    return _formatted(found and found["difference"], signed=True, spread=spread)


def _joined(arm: ArmSummary, *names: str, digits: int = 0) -> str:
    return "/".join(_formatted(arm["metrics"][name], digits=digits) for name in names)
