"""The commands and their options; what they do is in `solving` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .reporting import failures_reported
from .training import train

# Lines that begin with \b keep their breaks in the help. A test reads this file back.
EXAMPLE_CONFIG = """\
\b
An example of trim.yaml (small, large and policy are required; relative paths
are relative to the file):
\b
  small: {type: transformers, model: Qwen/Qwen2.5-Math-1.5B-Instruct, device: auto}
  large: {type: transformers, model: ./models/large, device: auto, dtype: bfloat16}
  scorer: {type: transformers_prm, model: Qwen/Qwen2.5-Math-PRM-7B, device: auto}
  policy: {type: threshold, t: 0.5}
  budget: {large_tokens: 2000, seconds: 120}
  prices: {large: {input: 0.5, output: 1.5}}
  settings: {max_steps: 40, max_step_tokens: 512}
  checkpoint: sqlite:runs.db
\b
Policies: small_only, large_only, threshold (t), random_rate (rate),
entropy_probe (limit), stay_on_large (policy, k), any_of and all_of (policies);
FILE.json for one that was trained or planned. Models and scorer may be
{type: example}. Checkpoint: none, memory, sqlite:PATH,
postgresql://USER@HOST/DATABASE, or env:NAME for a variable that holds one.
"""

app = typer.Typer(
    name="trim-graph",
    help="Let a small model solve a problem step by step, and a large one only the steps that need it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(train)


def _version(wanted: bool) -> None:
    if wanted:
        from trim_graph import __version__

        typer.echo(f"trim-graph {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(epilog=EXAMPLE_CONFIG, short_help="Solve one problem step by step.")
def solve(
    problem: Annotated[
        str | None, typer.Argument(help="The problem; without --config an arithmetic one.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with models, scorer, policy and limits; example below.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Replaces the policy: a name, or {type: random_rate, rate: 0.3}.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Short for the policy threshold at this score.")
    ] = None,
    large_tokens: Annotated[
        int | None, typer.Option(help="Most tokens the large model may generate.")
    ] = None,
    large_calls: Annotated[int | None, typer.Option(help="Most calls of the large model.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Most seconds the run may take.")] = None,
    thread: Annotated[str | None, typer.Option(help="Name of the run in the checkpoint.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run of --thread.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Solve a problem, showing each step as it is accepted, then the bill.

    Without --config the arithmetic models that come with trim-graph are used.
    """
    with failures_reported():
        from .solving import Request, run_solve

        run_solve(
            Request(
                problem=problem,
                config=config,
                policy=policy,
                threshold=threshold,
                budget={"large_tokens": large_tokens, "large_calls": large_calls, "seconds": seconds},
                thread=thread,
                resume=resume,
                as_json=as_json,
            )
        )


@app.command(short_help="Compare four ways to solve many problems.")
def demo(
    n: Annotated[int, typer.Option("-n", help="How many problems.")] = 100,
    split: Annotated[
        str, typer.Option(help="standard, hard (longer chains) or words (word problems).")
    ] = "standard",
    seed: Annotated[int, typer.Option(help="Draws the problems, the random policy and the intervals.")] = 0,
    concurrency: Annotated[int, typer.Option(help="Most problems under way at once.")] = 32,
    threshold: Annotated[float | None, typer.Option(help="Instead of the calibrated one.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything to this file.")
    ] = None,
) -> None:
    """Compare four ways to solve held-out problems of the arithmetic world.

    The small model alone, the large one alone, routing by the score of each step, and routing at random with
    the same spend. Progress goes to stderr, the table to stdout.
    """
    with failures_reported():
        from .demo import Request, run_demo

        run_demo(Request(n, split, seed, concurrency, threshold, json_file))


DATASETS = """\
\b
Datasets: arithmetic:standard, arithmetic:hard, arithmetic:words (and a part:
arithmetic:hard:test), a JSONL or Parquet file in the shape of MATH-500, AIME,
GSM8K or ProcessBench, or
\b
  {type: file, path: my.jsonl, question: KEY, answer: KEY, grader: GRADER}
\b
Graders: exact, numeric, multiple_choice, math, none, or your own
module:function of (solution, row).
"""


@app.command(epilog=DATASETS, short_help="Run a dataset and keep a trace of every question.")
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
) -> None:
    """Run a dataset under a behaviour policy, and write a trace of every question as it ends.

    The same command goes on with a file that was interrupted, or given a larger -n with one that is complete.
    A file never mixes datasets, policies, models or seeds. Every step is scored.
    """
    with failures_reported():
        from .collecting import Request, run_collect

        run_collect(Request(dataset, out, config, policy, n, concurrency, seed, label_steps, retry_errors))


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


@app.command(epilog=PLANNED, short_help="Plan when to ask the large model.")
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
    bins: Annotated[int, typer.Option(help="Bins of a score, where traces are read.")] = 20,
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


@app.command(epilog=DATASETS, short_help="Choose a policy's threshold, or a policy, for a spend.")
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
