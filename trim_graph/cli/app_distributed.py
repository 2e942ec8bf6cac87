"""The options of work on more than one machine, and the command that joins shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .reporting import failures_reported

Shard = Annotated[
    str | None,
    typer.Option(
        metavar="I/N", help="Run only this part of the questions, 1/4 to 4/4; then trim-graph merge."
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="Run on a Ray cluster: HOST:PORT of its head, or auto for the one here."
    ),
]
RayWorkers = Annotated[
    int | None, typer.Option(help="Processes on the Ray cluster; default: one for each of its nodes.")
]

distributed = typer.Typer(rich_markup_mode=None)


@distributed.command(short_help="Join what shards have run.")
def merge(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="What the shards were given as --out; of train, --rollouts.")
    ],
) -> None:
    """Join the shards of eval, collect or train, once every question is there, and exactly once.

    Says which shard lacks which questions. The result is what a run without --shard writes. Exit code 0: it
    is there; 3: all shards have ended, and arms that hang on what they spent are next: run the same commands
    and merge again; 2: questions are missing, or shards do not belong together.
    """
    with failures_reported():
        from .merging import run_merge

        code = run_merge(out)
    raise typer.Exit(code)
