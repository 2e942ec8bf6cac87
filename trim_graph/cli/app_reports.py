"""The commands that measure a scorer, and show what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .reporting import failures_reported

reports = typer.Typer(rich_markup_mode=None)


@reports.command(short_help="Write an HTML page and pictures of an evaluation.")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of an evaluation: eval --out RUN.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page; default: report.html in RUN.")
    ] = None,
) -> None:
    """Write one HTML page with summary, curves and the trace of every question, and its pictures beside it.

    The page loads nothing and needs no server. Pictures, as PNG and SVG, go into a folder pictures. An
    evaluation that is still running may be looked at too.
    """
    with failures_reported():
        from .report import run_report

        run_report(run, out)


@reports.command("eval-scorer", short_help="Measure a scorer on labelled solutions.")
def eval_scorer(
    data: Annotated[
        list[Path],
        typer.Argument(help="Solutions in the shape of ProcessBench, or traces of collect --label-steps."),
    ],
    config: Annotated[
        Path | None, typer.Option(help="YAML file as for solve; without it the arithmetic reward model.")
    ] = None,
    scorer: Annotated[
        str | None, typer.Option(help="Instead of --config: {type: transformers_prm, model: FOLDER}.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="A step below it is taken for wrong; default: the best on the first file."),
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", help="How many solutions of each file; default: all.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Most solutions with the scorer at once.")] = 16,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for scores, figures and the picture, to go on with after an interrupt."),
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Rate the solutions again that failed before.")
    ] = False,
) -> None:
    """Have a scorer rate solutions whose first wrong step is known, and say how good it is.

    First-error F1 as ProcessBench (arXiv 2412.06559) defines it: the harmonic mean of the accuracy on
    solutions with an error, whose first wrong step must be found, and on those without, where none must be.
    Also AUC, calibration and reliability.
    """
    with failures_reported():
        from .scorer_evaluation import Request, run_eval_scorer

        run_eval_scorer(Request(tuple(data), config, scorer, threshold, n, concurrency, out, retry_errors))
