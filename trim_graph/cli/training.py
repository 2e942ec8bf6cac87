"""`trim-graph train`: policies that are learned from traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .reporting import failures_reported, need

train = typer.Typer(
    name="train", help="Train a policy from traces.", no_args_is_help=True, rich_markup_mode=None
)


@train.callback()
def _group() -> None:
    """Train a policy from traces, and write it to a file that a configuration can name."""


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
