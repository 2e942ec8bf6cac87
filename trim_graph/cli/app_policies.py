"""The commands that find a policy: collect traces, calibrate, plan, train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .reporting import failures_reported

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
        from .collecting import Request, run_collect

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
        from .calibrating import Request, run_calibrate

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
        from .planning import Request, run_plan

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
