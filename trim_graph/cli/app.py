"""The commands and their help texts; `options` has their options, the module of each name the work."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .options import (
    AggregateOptions,
    CalibrateOptions,
    CollectOptions,
    ConvertOptions,
    DemoOptions,
    DoctorOptions,
    EvalOptions,
    EvalScorerOptions,
    InitOptions,
    LabelOptions,
    LedgerListOptions,
    LedgerReleaseOptions,
    PlanOptions,
    QueryRouterOptions,
    ReportOptions,
    SchemaOptions,
    ScorerOptions,
    SequenceOptions,
    ServeOptions,
    SolveOptions,
    UpOptions,
    command,
)
from .terminal import guarded

# A paragraph that begins with \b, after a blank line, keeps its line breaks in the help. A test reads this
# file back.
EXAMPLE_CONFIG = """\
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

Policies: small_only, large_only, threshold (t), advantage (minimum,
price_per_token), random_rate (rate), entropy_probe (limit), by_pattern
(pattern, rates), stay_on_large (policy, k), any_of and all_of (policies);
FILE.json for one that was trained or planned, {type: file, path: FILE.json,
threshold: 0.3} for a trained one at another threshold; {type: quality, name:
high} for one that trim-graph calibrate has chosen, see its help.

Models and scorer may be {type: example}; models on servers are {type: vllm}
and {type: langchain, model: "openai:..."}, on vLLM in this process {type:
vllm_engine}. Reward models there are {type: vllm_prm} and {type:
vllm_engine_prm}, or {type: vllm_generative_prm} on a server for generation.
Their formats: qwen, math_shepherd, skywork, rlhflow; a folder of train scorer
says its own. Scorers without a reward model: {type: llm_judge, model: {...},
scale: yes_no}, {type: token_probability, statistic: lowest_window}, {type:
turn_signals} for an agent's turns; of several {type: cascade, first: {...},
second: {...}, unsure: [0.2, 0.8]} and {type: minimum, scorers: [...]}.

Checkpoint: none, memory, sqlite:PATH, postgresql://USER@HOST/DATABASE, or
env:NAME for a variable that holds one.
A spent budget: on_exhausted small, stop or ask. What users and threads may
spend over all runs: quotas {user: {large_tokens: 20000}}, counted by a
ledger such as sqlite:spend.db.
With shadow: {answers: large, record: shadow.jsonl, rate: 0.1} trim-graph serve
answers with that model alone, and records what routing would have done.
"""

WRITTEN = """\
\b
  trim-graph init --models servers
  trim-graph init --models hosted --small openai:gpt-4.1-mini --large openai:gpt-4.1
  trim-graph init --models local --scorer prm --prm ./my-scorer
"""

SERVE_HELP = """\
How a server is started is in its part of the file, all of it optional:

\b
  large:
    type: vllm
    model: Qwen/Qwen2.5-7B-Instruct
    base_url: http://localhost:8002/v1
    api_key_env: LARGE_KEY     # the server requires the key in this variable
    serve: {gpu: 0, memory_share: 0.4, dtype: bfloat16, max_model_len: 8192,
            path: ./weights, args: [--enforce-eager]}

gpu: an index or several, [0, 1]; or cpu: true. memory_share: by default the
weights' share in 0.9 of the GPU. kv_cache_gb: memory for keys and values.
path: the weights where model is but a name; example: small, large or prm
for those that come with trim-graph.
"""

SERVED_MODELS = """\
\b
The model of a request is one of
  trim                 the policy of the configuration
  trim:0.6             a threshold: drafts that score below it are regenerated
  trim:quality=NAME    an operating point that the configuration names
  small, large         that model alone

The field trim of a request does the same, and lowers limits: {"threshold": 0.6,
"budget": {"large_tokens": 200}}. Tools, schemas and whatever else cannot be kept
are refused with OpenAI's error; nothing is ignored that could change an answer.
"""

DATASETS = """\
Datasets: arithmetic:standard, arithmetic:hard, arithmetic:words (and a split:
arithmetic:hard:test), a JSONL or Parquet file in the shape of MATH-500, AIME,
GSM8K, OlympiadBench or ProcessBench, such a dataset on the Hugging Face Hub
(HuggingFaceH4/MATH-500:test), or

\b
  {type: file, path: my.jsonl, question: KEY, answer: KEY, grader: GRADER}

Graders: exact, numeric, multiple_choice, math, none, or your own
module:function of (solution, row).
"""

ARMS = (
    DATASETS.rstrip()
    + """

Policies: small_only, {type: threshold, t: 0.3}, plan.json, each perhaps with a
name: mine={type: threshold, t: 0.3}. Sweeps: threshold:0.1,0.3,0.5,
random_rate:..., entropy_probe:..., advantage:..., thresholds of a learned
policy, aggregate-0.02.json:0.1,0.5, a policy with "?" for its number and the
numbers behind a colon, or a folder of policy files.

Baselines: router (trained), cascade (by confidence; calls no model), score_cascade
(calls the scorer only), prm (accepts at 0.7), judge (accepts at 7 of 9), entropy (of
the first token), kind (of step alone). Random routing: --random-rates usual.
"""
)

LABELLED = (
    """\
\b
Methods, and the target of a step, a number from 0 to 1:
  monte_carlo  whether one of the small model's continuations behind the step
               ends right, or with --target soft their share (Math-Shepherd)
  advantage    (1 + v_small - v_large) / 2, where v is that share behind the
               small and behind the large model's step at the same place: 0.5
               where a rewrite is worth nothing (Arbitrage)
  agreement    the probability that the judge agrees with the step; needs no
               right answers
  labelled     1 before the first wrong step, 0 there: solutions in the shape
               of ProcessBench, BIG-Bench-Mistake or PRM800K

\b
The hard label of a step says whether anything still ends right behind it. The
first step behind which nothing does is found by binary search (OmegaPRM); its
followers have no label.

\b
Against noise: questions that no rollout solves are dropped, with
--min-confidence also those that few do, --tolerance softens hard targets
before the first lost step, and shares count in relation to that of the
question's rollouts (all SCAN, arXiv 2509.16548); --consensus keeps the
solutions whose first lost step a judge confirms (arXiv 2501.07301).

"""
    + DATASETS
)

PLANNED = """\
\b
SOURCE is one of
  traces with labelled and scored steps (.jsonl, .parquet; trim-graph collect)
  a step model that --model-out wrote
  the parameters that TRIM's authors published, as JSON

Rewards: 100 for a solution that ends right; costs are in the same unit.

Beliefs: carried (over time, by the score given the least earlier one),
carried_alone (by the score), carried_joint (by both, as if independent of the
steps before), memoryless (each step from a uniform belief, as published).

The file is named in a configuration: policy: plan.json
"""

TRAINED = """\
The models are run first, and what they wrote is kept: to train on it again needs
no model. That is exact for models at temperature 0. --rollouts resumes from what
it holds; what other models, settings or datasets have left there is refused.
With slow models, --steps 0 --rounds 1 trains on the simulator alone: the models
then run each training question once, and each validation question once for each
look, where the policy goes a way that is not recorded.
"""


SCORER_TRAINED = """\
OUT is a folder of weights that a configuration names as it is:

\b
  scorer: {type: transformers_prm, model: OUT}

README.md in it has AUC, AUC within a kind of step, reliability and first-error
F1 on held-out questions. An interrupted training of lora or full resumes by the
same command. Is it better than token probability? trim-graph eval-scorer
"""


class GuardedGroup(TyperGroup):
    """All commands, and typer's own messages about their options, with stdout and stderr guarded."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Runs a command."""
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


@command(app, epilog=EXAMPLE_CONFIG, short_help="Solve one problem step by step.")
def solve(options: SolveOptions) -> None:
    """Solves a problem, showing each step as it is accepted, then its costs.

    Without --config the arithmetic models that come with trim-graph are used.
    """
    from .solve import run_solve

    run_solve(options)


@command(app, epilog=WRITTEN, short_help="Write a new configuration.")
def init(options: InitOptions) -> None:
    """Writes a commented configuration that loads, and its JSON schema beside it.

    Without --models it asks, on a terminal, for what the options leave open.
    """
    from .init import run_init

    run_init(options)


@command(app, short_help="Print the JSON schema of configurations.")
def schema(options: SchemaOptions) -> None:
    """Prints the JSON schema of a configuration file.

    Editors complete and check a file that names it in a line, as init writes it:
    # yaml-language-server: $schema=trim.schema.json
    """
    from .init import run_schema

    run_schema(options)


@command(app, short_help="Compare ways to solve many problems.")
def demo(options: DemoOptions) -> None:
    """Compares ways to solve held-out problems of the arithmetic world.

    The small model alone, the large one alone, routing by a threshold on the score of each step, by the
    planned and the learned policies that ship with the models, and at random with the spend of the
    threshold. Progress goes to stderr, the table to stdout.
    """
    from .demo import run_demo

    run_demo(options)


@command(app, short_help="Convert a reward model with a value head for vLLM.")
def convert_prm(options: ConvertOptions) -> None:
    """Copies a process reward model with a value head in a layout that vLLM serves; prints how to serve it.

    For the format skywork behind a vLLM server. The transformers adapter reads either layout.
    """
    from .convert_prm import run_convert

    run_convert(options)


@command(app, short_help="Check a configuration against its models and servers.")
def doctor(options: DoctorOptions) -> int:
    """Checks small, large and scorer as a run would use them, and says what is wrong and how to fix it.

    Asks each for a few short texts or scores. Exit code 0: no error; 1: errors; 2: bad input.
    """
    from .doctor import run_doctor

    return run_doctor(options)


@command(app, epilog=SERVE_HELP, short_help="Start the vLLM servers that a configuration names.")
def up(options: UpOptions) -> int:
    """Starts the vLLM servers of a configuration and ends them together.

    They are the parts of type vllm, vllm_prm and vllm_generative_prm whose base_url is at localhost, those
    within a scorer too, such as the model of a judge. Parts of one address share a server. Servers elsewhere
    are left alone, and so is one that runs already with the same model from the same weights. Servers on one
    GPU start one after the other. Ctrl-C, SIGTERM or the death of one ends all.
    """
    from .up import run_up

    return run_up(options)


@command(app, epilog=SERVED_MODELS, short_help="Answer requests in OpenAI's protocol.")
def serve(options: ServeOptions) -> int:
    """Serves a configuration over HTTP: /v1/chat/completions, /v1/models, /health and /metrics.

    Whatever speaks OpenAI's protocol can ask it, whole or streamed; a stream has accepted steps only. Each
    key has an account of its own where the configuration has quotas.user. SIGTERM and Ctrl-C let questions
    under way end. With --workers each process loads the models that run in it.
    """
    from .serve import run_serve

    return run_serve(options)


@command(app, "eval", epilog=ARMS, short_help="Compare policies, models and baselines on a dataset.")
def evaluate(options: EvalOptions) -> None:
    """Runs policies, the models alone and baselines on a dataset, and says whether a policy is worth it.

    First it prints what it will spend, validation included; at a terminal it asks before it spends much. It
    says "use it" only where the exact upper bound of the loss of accuracy is within --max-loss. Beside the
    policies it runs small alone and large alone; further arms, which call models too, take --random-rates and
    --baselines. Wall clock is measured with --concurrency questions under way. The same command resumes an
    interrupted or killed run.
    """
    from .eval import run_eval

    run_eval(options)


@command(app, epilog=DATASETS, short_help="Run a dataset and keep a trace of every question.")
def collect(options: CollectOptions) -> None:
    """Runs a dataset under a behaviour policy, and writes a trace of every question as it ends.

    The same command resumes a file that was interrupted, and with a larger -n extends one that is complete.
    A file never mixes datasets, policies, models or seeds. Every step is scored.
    """
    from .collect import run_collect

    run_collect(options)


@command(app, epilog=LABELLED, short_help="Label the steps of solutions, for a scorer to learn from.")
def label(options: LabelOptions) -> None:
    """Has the small model solve questions several times, and labels every step of its solutions.

    First a pilot of a few questions, and an estimate of the whole from what it took. Every run is recorded in
    a folder: the same command resumes them, and other methods use the same runs.
    """
    from .label import run_label

    run_label(options)


@command(app, epilog=DATASETS, short_help="Choose a policy's threshold, or a policy, for a spend or a loss.")
def calibrate(options: CalibrateOptions) -> int:
    """Chooses the operating point of a policy for a spend, a loss or a PGR, on validation questions.

    Says what to expect with 95 % intervals, and writes the configuration with that policy. Without a target
    the operating points of the configuration are calibrated, each for its own, such as quality: {high:
    {max_loss: 0.01}, fast: {save: 0.7}}; its policy may be one of them, {type: quality, name: high}.

    A loss is tested: its exact upper bound is at most --max-loss with a confidence of 95 %. Exit code 3: the
    questions do not decide; the output says how many more are likely to. 2: bad input.
    """
    from .calibrate import run_calibrate

    return run_calibrate(options)


@command(app, epilog=PLANNED, short_help="Plan when to ask the large model.")
def plan(options: PlanOptions) -> None:
    """Plans when to ask the large model, writes the policy, and simulates it."""
    from .plan import run_plan

    run_plan(options)


@command(app, short_help="Write an HTML page of an evaluation or of a shadow.")
def report(options: ReportOptions) -> None:
    """Writes one HTML page with summary, curves and the trace of every question, and its plots beside it.

    The page loads nothing and needs no server. Plots, as PNG and SVG, go into a folder plots. An
    evaluation that is still running may be looked at too.

    Of a file of shadow records (.jsonl, .db) it writes and prints what routing would have done beside the
    application: share of large tokens, net savings, agreement, a verdict, and how many more questions it
    needs.
    """
    from .report import run_report

    run_report(options)


@command(app, short_help="Measure a scorer on labelled solutions.")
def eval_scorer(options: EvalScorerOptions) -> int:
    """Has a scorer rate solutions whose first wrong step is known, and says how good it is.

    First-error F1 as ProcessBench (arXiv 2412.06559) defines it: the harmonic mean of the accuracy on
    solutions with an error, whose first wrong step must be found, and on those without, where none must be.
    Also AUC, AUC within kinds of steps, calibration and reliability.

    With --against token_probability the exit code is 1 unless the scorer's AUC is above that of the mean
    token probability on the same steps, by a 95 % interval over questions, in every file. Exit code 2: bad
    input, or no step has a token probability.
    """
    from .eval_scorer import run_eval_scorer

    return run_eval_scorer(options)


train = typer.Typer(
    name="train", help="Train a policy or a scorer.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(train)


@train.callback()
def _group() -> None:
    """Trains a policy or a scorer, and writes it to a file or folder that a configuration can name."""


@command(train, epilog=TRAINED, short_help="PPO on five features of the steps so far.")
def aggregate(options: AggregateOptions) -> None:
    """Trains a small network by PPO that sees five features of a draft and the steps before it.

    They are the least and the product of the earlier scores, the draft's score, its tokens and its place.
    Writes aggregate-LAMBDA.json with its arrays, and learning curves.
    """
    from .train import run_training

    run_training(options)


@command(train, epilog=TRAINED, short_help="PPO on the whole sequence of steps.")
def sequence(options: SequenceOptions) -> None:
    """Trains a small transformer by PPO that sees score, tokens and writer of every step.

    Writes sequence-LAMBDA.json with its arrays, and learning curves.
    """
    from .train import run_training

    run_training(options)


@command(train, short_help="Train the policy that sends whole questions to one model.")
def query_router(options: QueryRouterOptions) -> None:
    """Trains a classifier on which questions the large model gets right and the small one wrong.

    The traces come from trim-graph collect with the policies small_only and large_only on the same questions.
    Rows of {"question", "small_correct", "large_correct"} do as well.
    """
    from .train import run_query_router

    run_query_router(options)


@command(train, epilog=SCORER_TRAINED, short_help="Train a step scorer on labelled steps.")
def scorer(options: ScorerOptions) -> None:
    """Trains a scorer that gives each step the probability that it is right.

    Its base is a causal model, by default the small model itself, with a linear head on the hidden state
    after each step. Questions are held out for the metrics; a head is calibrated by cross-validation on the
    others. Needs labelled steps only: no server, no graph.
    """
    from .train_scorer import run_train_scorer

    run_train_scorer(options)


ledger = typer.Typer(name="ledger", rich_markup_mode=None, help="Inspect a ledger of shared budgets.")
app.add_typer(ledger)


@command(ledger, "list", short_help="Show what calls have reserved.")
def list_reservations(options: LedgerListOptions) -> None:
    """Shows what calls of the large model have reserved in a ledger, the oldest first.

    A reservation counts as used in full until its call has ended. One that has expired belongs to a call
    whose end is unknown, of a process that was killed for instance.
    """
    from .ledger import run_list

    run_list(options)


@command(ledger, short_help="Release what a lost call has reserved.")
def release(options: LedgerReleaseOptions) -> None:
    """Releases reservations, as if their calls had not been made; with --charge, settles them in full.

    Nobody saw the end of these calls: what is released may have been generated all the same.
    """
    from .ledger import run_release

    run_release(options)
