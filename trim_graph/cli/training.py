"""`trim-graph train`: policies that are learned from traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app_policies import Ray, RayWorkers
from .reporting import failures_reported, need

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
        from .learning import Request, run_training

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
        from .learning import Request, run_training

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
        from trim_graph.policies import save_policy
        from trim_graph.training.query_router import read_examples, train_query_router

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
