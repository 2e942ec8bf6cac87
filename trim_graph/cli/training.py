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
    share: Annotated[float, typer.Option(help="Share of the questions to give to the large model.")] = 0.5,
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
        found = train_query_router(read_examples(traces), share=share, validation=validation, seed=seed)
        save_policy(found.policy, out, traces=[path.name for path in traces])
        typer.echo(
            f"{out}: trained on {found.trained_on} questions, of which {found.base_rate:.3f} benefit; AUC "
            f"{found.auc:.3f} on {found.validated_on} others; limit {found.policy.limit:.4f} gives "
            f"{found.share:.3f} of them to the large model"
        )
