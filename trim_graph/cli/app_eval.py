"""The command that says whether a policy is worth it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app_policies import DATASETS, Ray, RayWorkers
from .reporting import failures_reported

evaluation = typer.Typer(rich_markup_mode=None)

ARMS = (
    DATASETS.rstrip()
    + """

\b
Policies: small_only, {type: threshold, t: 0.3}, plan.json, each perhaps with a
name: mine={type: threshold, t: 0.3}. Sweeps: threshold:0.1,0.3,0.5,
random_rate:..., entropy_probe:..., a policy with "?" for its number and the
numbers behind a colon, or a folder of policy files.
\b
Baselines: router (trained), cascade (by confidence), prm (accepts at 0.7), judge
(accepts at 7 of 9), entropy (of the first token), kind (of step alone).
"""
)


@evaluation.command(name="eval", epilog=ARMS, short_help="What would it save, and what would it cost?")
def evaluate(
    dataset: Annotated[str, typer.Option(help="Questions with right answers; see below.")],
    out: Annotated[Path, typer.Option(help="Folder for rows and summary; the same command goes on with it.")],
    config: Annotated[
        Path | None, typer.Option(help="YAML file as for solve; without it the arithmetic models.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="A policy; may be repeated. Without it and --sweep: the configuration's."),
    ] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(help="Several operating points; may be repeated. See below.")
    ] = None,
    random_rates: Annotated[
        str, typer.Option(help="Rates of random routing: shares of steps that it has written again.")
    ] = "0.1,0.25,0.5,0.75,0.9",
    baselines: Annotated[str, typer.Option(help="all, none, or some: router,cascade,kind.")] = "all",
    validation: Annotated[
        str | None, typer.Option(help="Other questions, to fit router and kind on; a dataset.")
    ] = None,
    validation_n: Annotated[
        int | None, typer.Option(help="How many of them; default: all of a file, else 300.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="Regular expression that tells kinds of steps, for kind.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="large, small, or {type: llm_judge, model: {...}}; for judge.")
    ] = None,
    prices: Annotated[
        str | None, typer.Option(help="{large: {input: 0.5, output: 1.5}, ...}; joins the configuration's.")
    ] = None,
    cost_per_second: Annotated[
        float, typer.Option(help="What a second of waiting costs, in the currency of the prices.")
    ] = 0.0,
    n: Annotated[
        int | None, typer.Option("-n", help="How many questions; default: all of a file, else 200.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Runs of each question in each arm.")] = 1,
    seed: Annotated[int, typer.Option(help="Draws arithmetic problems, random policies, intervals.")] = 0,
    concurrency: Annotated[int, typer.Option(help="Most questions under way at once.")] = 32,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Run the questions again that failed before.")
    ] = False,
    ray: Ray = None,
    ray_workers: RayWorkers = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Run policies, the models alone and baselines on a dataset, and say whether a policy is worth it.

    Small alone, large alone and random routing always stand beside; each policy is compared with random
    routing at its own spend, on the lines between --random-rates. Wall clock is measured with --concurrency
    questions under way. An interrupted or killed run goes on where it was.
    """
    with failures_reported():
        from .evaluating import Request, run_eval

        run_eval(
            Request(
                dataset=dataset,
                out=out,
                config=config,
                policies=policy or (),
                sweeps=sweep or (),
                random_rates=random_rates,
                baselines=baselines,
                validation=validation,
                validation_n=validation_n,
                pattern=pattern,
                judge=judge,
                prices=prices,
                cost_per_second=cost_per_second,
                n=n,
                samples=samples,
                seed=seed,
                concurrency=concurrency,
                retry_errors=retry_errors,
                as_json=as_json,
                ray=ray,
                ray_workers=ray_workers,
            )
        )
