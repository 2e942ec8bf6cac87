"""Options of the commands that make a policy: collect, calibrate, plan, and train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import failures_reported, need

policies = typer.Typer(rich_markup_mode=None)

DATASETS = """\
\b
Datasets: arithmetic:standard, arithmetic:hard, arithmetic:words (and a part:
arithmetic:hard:test), a JSONL or Parquet file in the shape of MATH-500, AIME,
GSM8K, OlympiadBench or ProcessBench, such a dataset on the Hugging Face Hub
(HuggingFaceH4/MATH-500:test), or
\b
  {type: file, path: my.jsonl, question: KEY, answer: KEY, grader: GRADER}
\b
Graders: exact, numeric, multiple_choice, math, none, or your own
module:function of (solution, row).
"""

Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="Run on a Ray cluster: HOST:PORT of its head, or auto for the one here."
    ),
]
RayWorkers = Annotated[
    int | None, typer.Option(help="Processes on the Ray cluster; default: one for each of its nodes.")
]


@policies.command(epilog=DATASETS, short_help="Run a dataset and keep a trace of every question.")
def collect(
    dataset: Annotated[str, typer.Option(help="Questions to run; see below.")],
    out: Annotated[Path, typer.Option(help="File for the traces, .jsonl or .parquet.")],
    config: Annotated[
        Path | None, typer.Option(help="YAML file as for solve; without it the arithmetic models.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="The behaviour policy: a name, or {type: random_rate, rate: 0.3}.")
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", help="How many questions; default: all of a file, else 1000.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Most questions under way at once.")] = 32,
    seed: Annotated[int, typer.Option(help="Draws arithmetic problems, and of a random policy.")] = 0,
    label_steps: Annotated[
        bool, typer.Option("--label-steps", help="Say of each step whether it is right (arithmetic only).")
    ] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Run the questions again that failed before.")
    ] = False,
    ray: Ray = None,
    ray_workers: RayWorkers = None,
) -> None:
    """Run a dataset under a behaviour policy, and write a trace of every question as it ends.

    The same command goes on with a file that was interrupted, or given a larger -n with one that is complete.
    A file never mixes datasets, policies, models or seeds. Every step is scored.
    """
    with failures_reported():
        from .collect import Request, run_collect

        run_collect(
            Request(
                dataset=dataset,
                out=out,
                config=config,
                policy=policy,
                n=n,
                concurrency=concurrency,
                seed=seed,
                label_steps=label_steps,
                retry_errors=retry_errors,
                ray=ray,
                ray_workers=ray_workers,
            )
        )


@policies.command(epilog=DATASETS, short_help="Choose a policy's threshold, or a policy, for a spend.")
def calibrate(
    large_share: Annotated[
        float | None, typer.Option(help="Wanted: this share of the tokens the large model alone uses.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="Wanted: no more than this a question, by the price table.")
    ] = None,
    pgr: Annotated[
        float | None, typer.Option(help="Wanted: this much of the performance gap, at the least spend.")
    ] = None,
    family: Annotated[
        list[str] | None,
        typer.Option(
            help='threshold, random_rate, a policy with "?" for a number, policy files or a folder of them '
            "(may be repeated); default: that of the configuration."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Validation questions; a spend needs no answers. See below.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file as for solve; without it the arithmetic models.")
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", help="How many questions; default: all of a file, else 500.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Most questions under way at once.")] = 32,
    seed: Annotated[int, typer.Option(help="Draws arithmetic problems, random policies, intervals.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="File for the configuration; default: CONFIG.calibrated.yaml.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Folder for what was measured, to go on with after an interrupt.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write every point to this file.")
    ] = None,
) -> None:
    """Choose the operating point of a policy for a spend or for a PGR, on validation questions.

    Says what to expect with 95 % intervals, and writes the configuration with that policy.
    """
    with failures_reported():
        from .calibrate import Request, run_calibrate

        run_calibrate(
            Request(
                family=family or (),
                large_share=large_share,
                max_cost=max_cost,
                pgr=pgr,
                dataset=dataset,
                config=config,
                n=n,
                concurrency=concurrency,
                seed=seed,
                out=out,
                keep=keep,
                json_file=json_file,
            )
        )


PLANNED = """\
\b
SOURCE is one of
  traces with labelled and scored steps (.jsonl, .parquet; trim-graph collect)
  a step model that --model-out wrote
  the parameters that TRIM's authors published, as JSON
\b
Rewards: 100 for a solution that ends right; costs are in the same unit.
Beliefs: carried (over time, by the score given the least earlier one),
carried_alone (by the score), carried_joint (by both, as if independent of the
steps before), memoryless (each step from a uniform belief, as published).
\b
The file is named in a configuration: policy: plan.json
"""


@policies.command(epilog=PLANNED, short_help="Plan when to ask the large model.")
def plan(
    source: Annotated[Path, typer.Argument(help="What is known of steps and scores; see below.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Policy file, .json; arrays go beside it.")],
    cost_per_token: Annotated[
        list[float] | None,
        typer.Option(help="Reward that a large token costs; several times: a plan and a file each."),
    ] = None,
    cost_per_call: Annotated[float, typer.Option(help="Reward that a call of the large model costs.")] = 0.0,
    cost_per_draft: Annotated[
        float, typer.Option(help="Reward that a draft and its score cost; a handover saves it.")
    ] = 0.0,
    budget: Annotated[
        int | None, typer.Option(help="Most large tokens of a run; the plan holds for every limit up to it.")
    ] = None,
    belief: Annotated[str, typer.Option(help="How scores become a belief; see below.")] = "carried",
    belief_step: Annotated[float, typer.Option(help="Grid of beliefs.")] = 0.025,
    handover: Annotated[bool, typer.Option(help="Whether all that remains may be handed over.")] = True,
    p_large: Annotated[
        float | None, typer.Option(help="Chance that the large model's step is right; replaces the source's.")
    ] = None,
    tokens: Annotated[float | None, typer.Option(help="Tokens of a draft; replaces the source's.")] = None,
    bins: Annotated[
        int | None, typer.Option(help="Bins of a score, where traces are read; default: 20.")
    ] = None,
    model_out: Annotated[Path | None, typer.Option(help="Write the step model to this file.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the step model, and the traces beside it (.png, .svg, .pdf).")
    ] = None,
    simulate: Annotated[int, typer.Option(help="Simulated solutions in the table.")] = 10_000,
) -> None:
    """Plan when to ask the large model, write the policy, and simulate it."""
    with failures_reported():
        from .plan import Request, run_plan

        run_plan(
            Request(
                source=source,
                out=out,
                cost_per_token=tuple(cost_per_token or ()),
                cost_per_call=cost_per_call,
                cost_per_draft=cost_per_draft,
                budget=budget,
                belief=belief,
                belief_step=belief_step,
                handover=handover,
                p_large=p_large,
                tokens=tokens,
                bins=bins,
                model_out=model_out,
                picture=picture,
                simulate=simulate,
            )
        )


train = typer.Typer(name="train", help="Train a policy.", no_args_is_help=True, rich_markup_mode=None)


@train.callback()
def _group() -> None:
    """Train a policy, and write it to a file that a configuration can name."""


Out = Annotated[Path, typer.Option(help="Folder for policies and learning curves.")]
Price = Annotated[
    list[float],
    typer.Option(
        "--lambda",
        help="Reward is 1 for a right answer less this for each large token; several times: a policy each.",
    ),
]
Dataset = Annotated[str, typer.Option(help="Questions with right answers, as for collect.")]
Config = Annotated[
    Path | None, typer.Option(help="YAML file as for solve; without it the arithmetic models.")
]
Number = Annotated[int, typer.Option("-n", help="Training questions: the first of the dataset.")]
ValidationSet = Annotated[
    str | None, typer.Option(help="Where validation questions come from; default: those that follow.")
]
Validation = Annotated[int, typer.Option(help="Validation questions.")]
Simulator = Annotated[
    Path | None,
    typer.Option(
        help="Begin on a simulator: traces with labelled and scored steps, or a step model (.json) of plan."
    ),
]
Seeds = Annotated[int, typer.Option(help="Trainings for each price; the best on validation is kept.")]
Steps = Annotated[int, typer.Option(help="Most decisions on rollouts of the models.")]
SimulatedSteps = Annotated[int, typer.Option(help="Most decisions on the simulator.")]
Patience = Annotated[int, typer.Option(help="Looks at the validation questions without improvement.")]
Recorded = Annotated[
    Path | None, typer.Option("--rollouts", help="Folder that keeps the models' rollouts for the next time.")
]
Rounds = Annotated[int, typer.Option(help="Most runs of a question before training; more follow as needed.")]
Concurrency = Annotated[int, typer.Option(help="Most runs under way at once.")]

_ABOUT = """\
\b
The models are run first, and what they wrote is kept: to train on it again needs
no model. That is exact for models at temperature 0. --rollouts goes on with what
it holds; what other models, settings or datasets have left there is refused.
"""


@train.command("aggregate", epilog=_ABOUT, short_help="PPO on five features of the steps so far.")
def aggregate(
    out: Out,
    price: Price,
    dataset: Dataset = "arithmetic:standard",
    validation_dataset: ValidationSet = None,
    config: Config = None,
    n: Number = 1000,
    validation: Validation = 300,
    simulator: Simulator = None,
    seeds: Seeds = 1,
    steps: Steps = 200_000,
    simulated_steps: SimulatedSteps = 100_000,
    patience: Patience = 10,
    rollouts: Recorded = None,
    rounds: Rounds = 64,
    concurrency: Concurrency = 128,
    ray: Ray = None,
    ray_workers: RayWorkers = None,
) -> None:
    """Train a small network by PPO that sees five features of a draft and the steps before it.

    They are the least and the product of the earlier scores, the draft's score, its tokens and its place.
    Writes aggregate-LAMBDA.json with its arrays, and learning curves.
    """
    with failures_reported():
        from .train import Request, run_training

        run_training(
            Request(
                kind="aggregate",
                out=out,
                prices=tuple(price),
                dataset=dataset,
                validation_dataset=validation_dataset,
                config=config,
                n=n,
                validation=validation,
                simulator=simulator,
                seeds=seeds,
                steps=steps,
                simulated_steps=simulated_steps,
                patience=patience,
                rollouts=rollouts,
                rounds=rounds,
                concurrency=concurrency,
                ray=ray,
                ray_workers=ray_workers,
            )
        )


@train.command("sequence", epilog=_ABOUT, short_help="PPO on the whole sequence of steps.")
def sequence(
    out: Out,
    price: Price,
    dataset: Dataset = "arithmetic:standard",
    validation_dataset: ValidationSet = None,
    config: Config = None,
    n: Number = 1000,
    validation: Validation = 300,
    simulator: Simulator = None,
    seeds: Seeds = 1,
    steps: Steps = 200_000,
    simulated_steps: SimulatedSteps = 100_000,
    patience: Patience = 10,
    window: Annotated[int, typer.Option(help="Most steps it looks at, the draft included.")] = 16,
    rollouts: Recorded = None,
    rounds: Rounds = 64,
    concurrency: Concurrency = 128,
    ray: Ray = None,
    ray_workers: RayWorkers = None,
) -> None:
    """Train a small transformer by PPO that sees score, tokens and writer of every step.

    Writes sequence-LAMBDA.json with its arrays, and learning curves.
    """
    with failures_reported():
        from .train import Request, run_training

        run_training(
            Request(
                kind="sequence",
                out=out,
                prices=tuple(price),
                dataset=dataset,
                validation_dataset=validation_dataset,
                config=config,
                n=n,
                validation=validation,
                simulator=simulator,
                seeds=seeds,
                steps=steps,
                simulated_steps=simulated_steps,
                patience=patience,
                window=window,
                rollouts=rollouts,
                rounds=rounds,
                concurrency=concurrency,
                ray=ray,
                ray_workers=ray_workers,
            )
        )


@train.command("query-router", short_help="Train the policy that sends whole questions to one model.")
def query_router(
    traces: Annotated[
        list[Path], typer.Option(help="Traces of small_only and of large_only; give it once for each file.")
    ],
    out: Annotated[Path, typer.Option(help="The policy file, .json; its arrays go beside it.")],
    share: Annotated[
        list[float] | None,
        typer.Option(
            help="Share of the questions to give to the large model; default: 0.5. With several there is a "
            "file for each, OUT-SHARE.json, for trim-graph calibrate --family to choose from."
        ),
    ] = None,
    validation: Annotated[float, typer.Option(help="Share of the questions to validate on.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Draws the validation questions and the folds.")] = 0,
) -> None:
    """Train a classifier on which questions the large model gets right and the small one wrong.

    The traces come from trim-graph collect with the policies small_only and large_only on the same questions.
    Rows of {"question", "small_correct", "large_correct"} do as well.
    """
    with failures_reported():
        need("train", "sklearn")
        from trim_graph.errors import SettingsError
        from trim_graph.evaluation.query_router import read_examples, train_query_router
        from trim_graph.policies import save_policy

        if out.suffix != ".json" or not out.absolute().parent.is_dir():
            raise SettingsError(f"--out {out}: name a .json file in a folder that exists")
        wanted = share or [0.5]
        if wrong := [value for value in wanted if not 0 < value < 1]:
            raise SettingsError(f"--share is {wrong[0]}: choose a share between 0 and 1")
        trained = train_query_router(read_examples(traces), validation=validation, seed=seed)
        typer.echo(
            f"trained on {trained.trained_on} questions; {trained.base_rate:.3f} of all benefit from the "
            f"large model; AUC {trained.auc:.3f} on {trained.validated_on} others"
        )
        for value in wanted:
            found, file = trained.at_share(value), out
            if len(wanted) > 1:
                file = out.with_stem(f"{out.stem}-{value:g}")
            save_policy(found.policy, file, share=found.share, traces=[path.name for path in traces])
            typer.echo(
                f"{file}: limit {found.policy.limit:.4f} gives {found.share:.3f} of those to the large model"
            )
