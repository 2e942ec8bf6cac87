"""The commands and their options; what a command does is in the module of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .policy_commands import DATASETS, Ray, RayWorkers, policies, train
from .terminal import failures_reported, guarded

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
        from .eval import Request, run_eval

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
        from .eval import run_report

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
        from .eval_scorer import Request, run_eval_scorer

        run_eval_scorer(Request(tuple(data), config, scorer, threshold, n, concurrency, out, retry_errors))


ledger = typer.Typer(name="ledger", rich_markup_mode=None, help="Look after a ledger of shared budgets.")

Place = Annotated[
    str,
    typer.Argument(metavar="PLACE", help="As ledger: in a file: sqlite:PATH, postgresql://..., env:NAME."),
]


@ledger.command("list", short_help="Show what calls have set aside.")
def list_reservations(
    place: Place,
    account: Annotated[str | None, typer.Option(help="Of one account, such as user:ada.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Show what calls of the large model have set aside in a ledger, the oldest first.

    A reservation counts as used in full until its call has ended. One that has expired belongs to a call
    whose end nobody saw, of a process that was killed for instance.
    """
    with failures_reported():
        from .ledger import run_list

        run_list(place, account, as_json)


@ledger.command(short_help="Give back what a lost call has set aside.")
def release(
    place: Place,
    account: Annotated[str, typer.Option(help="Whose, such as user:ada.")],
    entry: Annotated[str | None, typer.Option(help="One reservation, as list shows it.")] = None,
    expired: Annotated[bool, typer.Option("--expired", help="All that have expired.")] = False,
    charge: Annotated[bool, typer.Option("--charge", help="Charge them in full instead, for good.")] = False,
) -> None:
    """Give reservations back, as if their calls had not been made; with --charge, settle them in full.

    Nobody saw the end of these calls: what is given back may have been generated all the same.
    """
    with failures_reported():
        from .ledger import run_release

        run_release(place, account, entry, expired=expired, charge=charge)


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
entropy_probe (limit), by_pattern (pattern, rates), stay_on_large (policy, k),
any_of and all_of (policies);
FILE.json for one that was trained or planned. Models and scorer may be {type:
example}; models on servers are {type: vllm} and {type: langchain, model:
"openai:..."}, on vLLM in this process {type: vllm_engine}; reward models there
{type: vllm_prm} and {type: vllm_engine_prm}, scorers without one {type:
llm_judge, model: {...}} and {type: token_probability}. Formats of a reward model: qwen,
math_shepherd, skywork, rlhflow. Checkpoint: none, memory, sqlite:PATH,
postgresql://USER@HOST/DATABASE, or env:NAME for a variable that holds one.
A spent budget: on_exhausted small, stop or ask. What users and threads may
spend over all runs: quotas {user: {large_tokens: 20000}}, counted by a
ledger such as sqlite:spend.db.
"""

SERVE_HELP = """\
\b
How a server is started stands in its part of the file, all of it optional:
\b
  large:
    type: vllm
    model: Qwen/Qwen2.5-7B-Instruct
    base_url: http://localhost:8002/v1
    api_key_env: LARGE_KEY      # the server will want the key in this variable
    serve: {gpu: 0, memory_share: 0.4, dtype: bfloat16, max_model_len: 8192,
            path: ./weights, args: [--enforce-eager]}
\b
gpu: an index or several, [0, 1]; or cpu: true. memory_share: by default the
weights' share in 0.9 of the GPU. kv_cache_gb: memory for keys and values.
path: the weights where model is but a name; example: small, large or prm
for those that come with trim-graph.
"""


class GuardedGroup(TyperGroup):
    """All commands, and what typer itself says of their options, with stdout and stderr guarded."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command."""
        with guarded():
            return super().main(*args, **options)


app = typer.Typer(
    name="trim-graph",
    cls=GuardedGroup,
    help="Let a small model solve a problem step by step, and a large one only the steps that need it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(evaluation)
app.add_typer(policies)
app.add_typer(reports)
app.add_typer(train)
app.add_typer(ledger)


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
    answer: Annotated[
        str | None,
        typer.Option(
            help="For a run that waits for a person: {more: {large_tokens: 200}}, {continue_with: small}."
        ),
    ] = None,
    user: Annotated[str | None, typer.Option(help="Whose quota the run draws from.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Solve a problem, showing each step as it is accepted, then the bill.

    Without --config the arithmetic models that come with trim-graph are used.
    """
    with failures_reported():
        from .solve import Request, run_solve

        run_solve(
            Request(
                problem=problem,
                config=config,
                policy=policy,
                threshold=threshold,
                budget={"large_tokens": large_tokens, "large_calls": large_calls, "seconds": seconds},
                thread=thread,
                resume=resume,
                answer=answer,
                user=user,
                as_json=as_json,
            )
        )


@app.command(short_help="Compare ways to solve many problems.")
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
    """Compare ways to solve held-out problems of the arithmetic world.

    The small model alone, the large one alone, routing by a threshold on the score of each step, by the
    planned and the learned policies that ship with the models, and at random with the spend of the
    threshold. Progress goes to stderr, the table to stdout.
    """
    with failures_reported():
        from .demo import Request, run_demo

        run_demo(Request(n, split, seed, concurrency, threshold, json_file))


@app.command(short_help="Make a reward model with a value head fit for vLLM.")
def convert_prm(
    model: Annotated[str, typer.Argument(help="Folder or hub id of Skywork-o1-Open-PRM.")],
    target: Annotated[Path, typer.Argument(help="Folder to be made.")],
) -> None:
    """Copy a process reward model with a value head in a layout that vLLM serves; print how.

    For the format skywork behind a vLLM server. The transformers adapter reads either layout.
    """
    with failures_reported():
        from .up import run_convert

        run_convert(model, target)


@app.command(short_help="Check a configuration against its models and servers.")
def doctor(
    config: Annotated[
        Path | None, typer.Option(help="YAML file as of solve; without it the example models are checked.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Most seconds for one check.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Check small, large and scorer as a run would use them, and say what is wrong and how to mend it.

    Asks each for a few short texts or scores. Exit code 0: no fault; 1: faults; 2: bad input.
    """
    with failures_reported():
        from .doctor import Request, run_doctor

        code = run_doctor(Request(config, timeout, as_json))
    raise typer.Exit(code)


@app.command(epilog=SERVE_HELP, short_help="Start the vLLM servers that a configuration names.")
def up(
    config: Annotated[Path, typer.Option(help="YAML file as of solve.")],
    show: Annotated[bool, typer.Option("--print", help="Print the commands and start nothing.")] = False,
    python: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Python of an environment that has vLLM; default: TRIM_VLLM_PYTHON, this one.",
        ),
    ] = None,
    logs: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where logs go; default: a new temporary folder.")
    ] = None,
    patience: Annotated[
        float, typer.Option(help="Most seconds for one server to become healthy, downloads included.")
    ] = 1800.0,
) -> None:
    """Start the vLLM servers of a configuration and end them together.

    They are the parts of type vllm and vllm_prm whose base_url is at localhost; servers elsewhere are left
    alone, and so is one that runs already with the same model from the same weights. Servers on one GPU
    start one after the other. Ctrl-C, SIGTERM or the death of one ends all.
    """
    with failures_reported():
        from .up import Request, run_up

        code = run_up(Request(config, show, python, logs, patience))
    raise typer.Exit(code)
