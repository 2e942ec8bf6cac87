"""Options of all commands, each declared once: the command line, its help, and the object Python passes.

An option that is a setting of what the command does has default, bound and help where the setting is
declared. Nothing heavy is imported here, for ``--help``. What a command does is in the module of its name.
"""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.models import ParameterInfo

from trim_graph.bounds import NOT_NEGATIVE, POSITIVE, Bound, Bounded, one_of
from trim_graph.training.settings import (
    Calibration,
    Dtype,
    Generator,
    LabelSettings,
    ScorerTraining,
    Terms,
    Training,
    Tuning,
)

from .terminal import failures_reported

SECONDS = Bound(lambda value: value > 0, "choose a number of seconds above 0", "g")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of one command.

    A field whose annotation holds an option or an argument of typer is one of the command line, and so is
    one whose setting has a help. Other fields are for callers in Python only.

    Attributes:
        settings: Declares the settings that some of the options are, under the same names.

    Raises:
        SettingsError: A value is out of its bound, or a text is expected and something else given.
    """

    settings: ClassVar[type[Bounded] | None] = None

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            kinds = _kinds(hint)
            given = getattr(self, name)
            if kinds & {str, Path} and given is not None:
                several = given if isinstance(given, list) else [given]
                taken = [_taken(name, one, kinds) for one in several]
                object.__setattr__(self, name, taken if list in kinds else taken[0])
            for bound in _metadata(hint):
                if isinstance(bound, Bound):
                    bound.check(_flag(name, hint), getattr(self, name))


Chosen = TypeVar("Chosen", bound=Options)
Given = TypeVar("Given", bound=Bounded)


def settings_of(options: Options, kind: type[Given], **others: Any) -> Given:
    """Returns the settings that some of the options are.

    Args:
        options: The options.
        kind: Class of the settings.
        **others: Settings that are no options, or not in this form.

    Raises:
        SettingsError: The settings contradict each other.
    """
    shared = {one.name for one in fields(kind)} & {one.name for one in fields(options)}
    return kind(**{name: getattr(options, name) for name in shared} | others)


def command(
    group: typer.Typer, name: str | None = None, *, epilog: str | None = None, short_help: str
) -> Callable[[Callable[[Chosen], int | None]], Callable[[Chosen], int | None]]:
    """Registers a function of one `Options` object as a command with the object's fields as its options.

    The docstring of the function is the help of the command, and what it returns the exit code.

    Args:
        group: The app or group that gets it.
        name: Name of the command; default: that of the function.
        epilog: Text at the end of its help.
        short_help: Text in the list of commands.
    """

    def register(function: Callable[[Chosen], int | None]) -> Callable[[Chosen], int | None]:
        (kind,) = (hint for key, hint in get_type_hints(function).items() if key != "return")

        def run(**given: Any) -> None:
            with failures_reported():
                code = function(kind(**{key: value for key, value in given.items() if value is not None}))
            if code:
                raise typer.Exit(code)

        run.__doc__ = function.__doc__
        run.__signature__ = inspect.Signature(_parameters(kind))  # type: ignore[attr-defined]
        group.command(name or function.__name__.replace("_", "-"), epilog=epilog, short_help=short_help)(run)
        return function

    return register


def _parameters(kind: type[Options]) -> list[inspect.Parameter]:
    """Returns what typer is to read of a class of options."""
    hints = _hints(kind)
    found = []
    for one in fields(kind):
        hint = hints[one.name]
        if _parameter_info(hint) is None:
            continue
        default = inspect.Parameter.empty if one.default is MISSING else one.default
        if one.default_factory is not MISSING:  # an empty list: typer shows none as a default
            default = None
        found.append(
            inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
        )
    return found


def _hints(kind: type[Options]) -> dict[str, Any]:
    """Returns the annotations of the fields; that of a setting has the bound and help of its declaration."""
    hints = get_type_hints(kind, include_extras=True)
    for one in fields(kind.settings) if kind.settings else ():
        if (hint := hints.get(one.name)) is None:
            continue
        plain, *extras = get_args(hint) if _metadata(hint) else (hint,)
        info, text = copy(_parameter_info(hint)), one.metadata.get("help")
        if text:
            info = info or typer.Option()
            info.help = info.help or text
        others = (extra for extra in extras if not isinstance(extra, ParameterInfo))
        hints[one.name] = Annotated[(plain, info, *others, one.metadata.get("bound"))]
    return hints


def _parameter_info(hint: Any) -> ParameterInfo | None:
    return next((one for one in _metadata(hint) if isinstance(one, ParameterInfo)), None)


def _kinds(hint: Any) -> set[Any]:
    """Returns the types in an annotation, at any depth."""
    inner = get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint)
    own = {get_origin(hint), hint} & {list, str, Path, Literal}
    return own.union(*map(_kinds, inner)) if own != {Literal} else own


def _taken(name: str, given: Any, kinds: set[Any]) -> Any:
    """Returns a value from Python as the command line has it: a mapping as YAML, a path as a `Path`."""
    if Path in kinds and isinstance(given, str | Path):
        return Path(given)
    if str in kinds and isinstance(given, Mapping):
        return json.dumps(given, default=str)  # JSON is YAML
    if str in kinds and not isinstance(given, str):
        from trim_graph.errors import SettingsError

        raise SettingsError(f"{name} is {given!r}: give a text as on the command line, or a mapping")
    return given


def _metadata(hint: Any) -> tuple[Any, ...]:
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def command_line(name: str, options: Options) -> str:
    """Returns the command line that gives these options; defaults and what looks like a secret are left out.

    Args:
        name: Of the command.
        options: Its options.
    """
    from trim_graph.errors import may_be_shown

    words, hints = ["trim-graph", name], _hints(type(options))
    for one in fields(options):
        value, default = getattr(options, one.name), one.default
        if value is None or value == default or value == []:
            continue
        flag = _flag(one.name, hints[one.name])
        for given in value if isinstance(value, list) else [value]:
            words += [flag] if given is True else [flag, str(given) if may_be_shown(str(given)) else "..."]
    return shlex.join(words)


def _flag(name: str, hint: Any) -> str:
    """Returns an option as it is given on the command line."""
    info = _parameter_info(hint)
    # Typer keeps the first flag of an annotation where a default would be.
    if info is not None and isinstance(info.default, str):
        return info.default
    return f"--{name.replace('_', '-')}"


Config = Annotated[
    Path | None, typer.Option(help="YAML file as for solve; without it the arithmetic models.")
]
Concurrency = Annotated[int, typer.Option(help="Most questions under way at once."), POSITIVE]
RetryErrors = Annotated[
    bool, typer.Option("--retry-errors", help="Run the questions again that failed before.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="Run on a Ray cluster: HOST:PORT of its head, or auto for the one here."
    ),
]
RayWorkers = Annotated[
    int | None, typer.Option(help="Processes on the Ray cluster; default: one for each of its nodes.")
]
Workers = Annotated[
    int | None,
    typer.Option(help="Processes on this machine, for models behind servers; default: this process alone."),
    POSITIVE,
]
LoadPerWorker = Annotated[
    bool,
    typer.Option(
        "--load-per-worker", help="With --workers: each process loads the models that are not behind servers."
    ),
]


@dataclass(frozen=True, kw_only=True)
class SolveOptions(Options):
    """Options of `solve`."""

    problem: Annotated[
        str | None, typer.Argument(help="The problem; without --config an arithmetic one.")
    ] = None
    config: Annotated[
        Path | None, typer.Option(help="YAML file with models, scorer, policy and limits; example below.")
    ] = None
    policy: Annotated[
        str | None,
        typer.Option(
            help="Replaces the policy: small, large, a threshold, or {type: random_rate, rate: 0.3}."
        ),
    ] = None
    threshold: Annotated[float | None, typer.Option(help="Short for the policy threshold at this score.")] = (
        None
    )
    large_tokens: Annotated[int | None, typer.Option(help="Most tokens the large model may generate.")] = None
    large_calls: Annotated[int | None, typer.Option(help="Most calls of the large model.")] = None
    seconds: Annotated[float | None, typer.Option(help="Most seconds the run may take.")] = None
    thread: Annotated[str | None, typer.Option(help="Name of the run in the checkpoint.")] = None
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run of --thread.")] = False
    answer: Annotated[
        str | None,
        typer.Option(
            help="For a run that waits for a human: {more: {large_tokens: 200}}, {continue_with: small}."
        ),
    ] = None
    user: Annotated[str | None, typer.Option(help="Whose quota the run draws from.")] = None
    explain: Annotated[
        bool, typer.Option("--explain", help="Print below each step why it went to its writer.")
    ] = False
    as_json: AsJson = False


@dataclass(frozen=True, kw_only=True)
class InitOptions(Options):
    """Options of `init`."""

    out: Annotated[Path, typer.Argument(help="The file to be written.")] = Path("trim.yaml")
    models: Annotated[
        Literal["servers", "hosted", "local", "example"] | None,
        typer.Option(
            help="Where the models run: on vLLM servers, at a provider, or in this process; example: those "
            "that come with trim-graph. Asked for on a terminal."
        ),
    ] = None
    scorer: Annotated[
        Literal["prm", "judge", "token_probability", "cascade"] | None,
        typer.Option(help="What rates a step; default: a reward model, of hosted models a judge."),
    ] = None
    small: Annotated[
        str | None, typer.Option(help="Small model: hub id, folder, or a name such as openai:gpt-4.1-mini.")
    ] = None
    large: Annotated[str | None, typer.Option(help="Large model, as --small.")] = None
    prm: Annotated[str | None, typer.Option(help="Process reward model: hub id or folder.")] = None
    replace: Annotated[bool, typer.Option("--replace", help="Write over a file that exists.")] = False


@dataclass(frozen=True, kw_only=True)
class SchemaOptions(Options):
    """Options of `schema`."""

    out: Annotated[Path | None, typer.Option(help="File to write it to, instead of stdout.")] = None


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Options):
    """Options of `demo`."""

    n: Annotated[int, typer.Option("-n", help="How many problems."), POSITIVE] = 100
    split: Annotated[str, typer.Option(help="standard, hard (longer chains) or words (word problems).")] = (
        "standard"
    )
    seed: Annotated[int, typer.Option(help="Draws the problems, the random policy and the intervals.")] = 0
    concurrency: Annotated[int, typer.Option(help="Most problems under way at once."), POSITIVE] = 32
    threshold: Annotated[float | None, typer.Option(help="Instead of the calibrated one.")] = None
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything to this file.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Options):
    """Options of `convert-prm`."""

    model: Annotated[str, typer.Argument(help="Folder or hub id of Skywork-o1-Open-PRM.")]
    target: Annotated[Path, typer.Argument(help="Folder to be made.")]


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Options):
    """Options of `doctor`."""

    config: Annotated[
        Path | None, typer.Option(help="YAML file as of solve; without it the example models are checked.")
    ] = None
    timeout: Annotated[float, typer.Option(help="Most seconds for one check."), SECONDS] = 30.0
    as_json: AsJson = False


@dataclass(frozen=True, kw_only=True)
class UpOptions(Options):
    """Options of `up`."""

    config: Annotated[Path, typer.Option(help="YAML file as of solve.")]
    show: Annotated[bool, typer.Option("--print", help="Print the commands and start nothing.")] = False
    python: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Python of an environment that has vLLM; default: TRIM_VLLM_PYTHON, this one.",
        ),
    ] = None
    logs: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where logs go; default: a new temporary folder.")
    ] = None
    startup_timeout: Annotated[
        float,
        typer.Option(help="Most seconds for one server to become healthy, downloads included."),
        SECONDS,
    ] = 1800.0


@dataclass(frozen=True, kw_only=True)
class ServeOptions(Options):
    """Options of `serve`."""

    config: Config = None
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all of the machine.")] = (
        "127.0.0.1"
    )
    port: Annotated[
        int, typer.Option(help="Port to listen at."), Bound(lambda value: 1 <= value <= 65535, "1 to 65535")
    ] = 8000
    api_keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Clients' keys, a line NAME=KEY each; more may be in the variable TRIM_API_KEYS.",
        ),
    ] = None
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Answer without keys also beyond this machine.")
    ] = False
    model_name: Annotated[str, typer.Option(help="Name of the routed pair of models in requests.")] = "trim"
    max_questions: Annotated[
        int, typer.Option(help="Most questions under way in each process; others get 429."), POSITIVE
    ] = 256
    workers: Annotated[int, typer.Option(help="Processes that share the address."), POSITIVE] = 1
    telemetry: Annotated[
        bool,
        typer.Option(
            "--telemetry",
            help="Report spans and counters to OpenTelemetry, as the program opentelemetry-instrument that "
            "starts this one sets it up.",
        ),
    ] = False
    drain: Annotated[
        float,
        typer.Option(help="Seconds that SIGTERM and Ctrl-C leave to questions under way."),
        SECONDS,
    ] = 60.0


@dataclass(frozen=True, kw_only=True)
class EvalOptions(Options):
    """Options of `eval`."""

    dataset: Annotated[str, typer.Option(help="Questions with right answers; see below.")]
    out: Annotated[Path, typer.Option(help="Folder for rows and summary; the same command resumes it.")]
    config: Config = None
    policy: Annotated[
        list[str],
        typer.Option(
            "--policy", help="A policy; may be repeated. Without it and --sweep: the configuration's."
        ),
    ] = field(default_factory=list)
    sweep: Annotated[
        list[str], typer.Option("--sweep", help="Several operating points; may be repeated. See below.")
    ] = field(default_factory=list)
    random_rates: Annotated[
        str,
        typer.Option(
            help="Rates of random routing, shares of steps that it has written again: 0.2,0.5, usual (five "
            "rates), or none. Each costs as much as a policy."
        ),
    ] = "none"
    baselines: Annotated[
        str, typer.Option(help="free (those that call no model), all, none, or some: router,cascade,kind.")
    ] = "free"
    validation: Annotated[
        str | None, typer.Option(help="Other questions, to fit router and kind on; a dataset.")
    ] = None
    validation_n: Annotated[
        int | None, typer.Option(help="How many of them; default: all of a file, else 300."), POSITIVE
    ] = None
    pattern: Annotated[
        str | None, typer.Option(help="Regular expression that finds the kind of a step, for kind.")
    ] = None
    judge: Annotated[
        str | None, typer.Option(help="large, small, or {type: llm_judge, model: {...}}; for judge.")
    ] = None
    prices: Annotated[
        str | None, typer.Option(help="{large: {input: 0.5, output: 1.5}, ...}; joins the configuration's.")
    ] = None
    cost_per_second: Annotated[
        float,
        typer.Option(help="What a second of waiting costs, in the currency of the prices."),
        NOT_NEGATIVE,
    ] = 0.0
    max_loss: Annotated[
        float,
        typer.Option(help="Loss of accuracy against the large model alone that is acceptable."),
        Bound(lambda value: 0 < value < 1, "choose a share of the questions between 0 and 1", "g"),
    ] = 0.02
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print what the evaluation will spend, and end.")
    ] = False
    yes: Annotated[bool, typer.Option("--yes", help="Start without asking, however much it spends.")] = False
    n: Annotated[
        int | None, typer.Option("-n", help="How many questions; default: all of a file, else 200."), POSITIVE
    ] = None
    samples: Annotated[int, typer.Option(help="Runs of each question in each arm."), POSITIVE] = 1
    seed: Annotated[int, typer.Option(help="Draws arithmetic problems, random policies, intervals.")] = 0
    concurrency: Concurrency = 32
    retry_errors: RetryErrors = False
    regrade: Annotated[
        bool,
        typer.Option(
            "--regrade", help="Grade the solutions in --out again, calling no model for them, and go on."
        ),
    ] = False
    workers: Workers = None
    load_per_worker: LoadPerWorker = False
    ray: Ray = None
    ray_workers: RayWorkers = None
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Options):
    """Options of `report`."""

    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Folder of an evaluation: eval --out RUN; or a file of shadow records."
        ),
    ]
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The page; default: report.html in RUN, or beside the file."),
    ] = None
    max_loss: Annotated[
        float | None,
        typer.Option(help="Of a shadow: loss of accuracy that is acceptable; default: 0.02."),
        Bound(lambda value: 0 < value < 1, "choose a share of the questions between 0 and 1", "g"),
    ] = None
    as_json: Annotated[
        bool, typer.Option("--json", help="Of a shadow: print the metrics as one JSON object.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class EvalScorerOptions(Options):
    """Options of `eval-scorer`."""

    data: Annotated[
        list[Path],
        typer.Argument(
            help="Solutions in the shape of ProcessBench, BIG-Bench-Mistake or PRM800K, files of label, or "
            "traces of collect --label-steps."
        ),
    ]
    config: Annotated[
        Path | None, typer.Option(help="YAML file as for solve; without it the arithmetic reward model.")
    ] = None
    scorer: Annotated[
        str | None, typer.Option(help="Instead of --config: {type: transformers_prm, model: FOLDER}.")
    ] = None
    against: Annotated[
        Literal["token_probability"] | None,
        typer.Option(help="Compare with it on the same steps; exit code 1 if the scorer is no better."),
    ] = None
    pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression that finds the kind of a step, for AUC within kinds."),
    ] = None
    threshold: Annotated[
        float | None,
        typer.Option(help="A step below it is taken for wrong; default: the best on the first file."),
        Bound(lambda value: 0 <= value <= 1, "choose a score from 0 to 1"),
    ] = None
    n: Annotated[
        int | None, typer.Option("-n", help="How many solutions of each file; default: all."), POSITIVE
    ] = None
    concurrency: Annotated[int, typer.Option(help="Most solutions with the scorer at once."), POSITIVE] = 16
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for scores, metrics and the plot, to resume after an interrupt."),
    ] = None
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Rate the solutions again that failed before.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class CollectOptions(Options):
    """Options of `collect`."""

    dataset: Annotated[str, typer.Option(help="Questions to run; see below.")]
    out: Annotated[Path, typer.Option(help="File for the traces, .jsonl or .parquet.")]
    config: Config = None
    policy: Annotated[
        str | None, typer.Option(help="The behaviour policy: a name, or {type: random_rate, rate: 0.3}.")
    ] = None
    n: Annotated[
        int | None,
        typer.Option("-n", help="How many questions; default: all of a file, else 1000."),
        POSITIVE,
    ] = None
    concurrency: Concurrency = 32
    seed: Annotated[int, typer.Option(help="Draws arithmetic problems, and of a random policy.")] = 0
    label_steps: Annotated[
        bool, typer.Option("--label-steps", help="Say of each step whether it is right (arithmetic only).")
    ] = False
    retry_errors: RetryErrors = False
    workers: Workers = None
    load_per_worker: LoadPerWorker = False
    ray: Ray = None
    ray_workers: RayWorkers = None


@dataclass(frozen=True, kw_only=True)
class LabelOptions(Options):
    """Options of `label`."""

    settings = LabelSettings

    dataset: Annotated[
        str, typer.Option(help="Questions with right answers, see below; for labelled, a file of solutions.")
    ]
    out: Annotated[Path, typer.Option(help="File for the labels, .jsonl or .parquet.")]
    method: Annotated[str, typer.Option(help="monte_carlo, advantage, agreement or labelled; see below.")] = (
        LabelSettings.method
    )
    config: Config = None
    runs: Annotated[
        Path | None,
        typer.Option(
            help="Folder of recorded runs, which all methods share; default: beside OUT, named after it."
        ),
    ] = None
    n: Annotated[
        int | None,
        typer.Option("-n", help="How many questions; default: all of a file, else 300."),
        POSITIVE,
    ] = None
    rollouts: int = LabelSettings.rollouts
    generator: Annotated[
        list[str],
        typer.Option(help="Whose solutions are labelled, small or large (repeatable); default: small."),
        one_of(Generator),
    ] = field(default_factory=lambda: list(LabelSettings.generators))
    temperature: Annotated[
        float | None,
        typer.Option(help="Of the small model; default: the configuration's, or 0.7 where that is 0."),
        NOT_NEGATIVE,
    ] = None
    continuations: int = LabelSettings.continuations
    width: float = LabelSettings.width
    target: str = LabelSettings.target
    tolerance: int = LabelSettings.tolerance
    reweight: Annotated[bool, typer.Option("--reweight/--no-reweight")] = LabelSettings.reweight
    places: int = LabelSettings.places
    min_confidence: float = LabelSettings.min_confidence
    consensus: Annotated[bool, typer.Option("--consensus")] = LabelSettings.consensus
    judge: Annotated[
        str | None,
        typer.Option(
            help="large, small, or {type: llm_judge, model: {...}}; default: the configuration's llm_judge, "
            "else large."
        ),
    ] = None
    agreement: float = LabelSettings.agreement
    pilot: Annotated[
        int, typer.Option(help="Questions done first, from which the whole is estimated."), POSITIVE
    ] = 8
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Do the pilot, print the estimate and end.")
    ] = False
    seed: Annotated[int, typer.Option(help="Draws arithmetic problems and the places of advantage.")] = (
        LabelSettings.seed
    )
    concurrency: int = LabelSettings.concurrency
    retry_errors: RetryErrors = False
    workers: Workers = None
    load_per_worker: LoadPerWorker = False
    ray: Ray = None
    ray_workers: RayWorkers = None


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(Options):
    """Options of `calibrate`."""

    large_share: Annotated[
        float | None, typer.Option(help="Wanted: this share of the tokens the large model alone uses.")
    ] = None
    max_cost: Annotated[
        float | None, typer.Option(help="Wanted: no more than this a question, by the price table.")
    ] = None
    pgr: Annotated[
        float | None, typer.Option(help="Wanted: this much of the performance gap, at the least spend.")
    ] = None
    max_loss: Annotated[
        float | None,
        typer.Option(
            help="Wanted: shown to lose no more accuracy than this against the large model alone, at the "
            "least spend; 0.02 are two points."
        ),
    ] = None
    save: Annotated[
        float | None,
        typer.Option(
            help="Wanted: at least this share of the large model's tokens saved; 0.7 leaves it 30 %. Of the "
            "policies that save so much the one that spends most is chosen; of a list of policies, the one "
            "that is most often right."
        ),
    ] = None
    family: Annotated[
        list[str],
        typer.Option(
            help='threshold, random_rate, advantage, a policy with "?" for a number, FILE.json:? for the '
            "threshold of a learned policy, policy files or a folder of them (may be repeated); default: "
            "that of the configuration."
        ),
    ] = field(default_factory=list)
    dataset: Annotated[
        str | None, typer.Option(help="Validation questions; a spend needs no answers. See below.")
    ] = None
    config: Config = None
    n: Annotated[
        int | None, typer.Option("-n", help="How many questions; default: all of a file, else 500."), POSITIVE
    ] = None
    concurrency: Concurrency = 32
    seed: Annotated[int, typer.Option(help="Draws arithmetic problems, random policies, intervals.")] = 0
    out: Annotated[
        Path | None, typer.Option(help="File for the configuration; default: CONFIG.calibrated.yaml.")
    ] = None
    write: Annotated[bool, typer.Option("--write", help="Write into the file of --config itself.")] = False
    keep: Annotated[
        Path | None, typer.Option(help="Folder for what was measured, to resume after an interrupt.")
    ] = None
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write every point to this file.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class PlanOptions(Options):
    """Options of `plan`."""

    settings = Terms

    source: Annotated[Path, typer.Argument(help="What is known of steps and scores; see below.")]
    out: Annotated[Path, typer.Option("--out", "-o", help="Policy file, .json; arrays go beside it.")]
    cost_per_token: Annotated[
        list[float],
        typer.Option(help="Reward that a large token costs; several times: a plan and a file each."),
    ] = field(default_factory=list)
    cost_per_call: float = Terms.cost_per_call
    cost_per_draft: float = Terms.cost_per_draft
    budget: Annotated[
        int | None, typer.Option(help="Most large tokens of a run; the plan holds for every limit up to it.")
    ] = None
    belief: Annotated[str, typer.Option(help="How scores become a belief; see below.")] = "carried"
    belief_step: Annotated[float, typer.Option(help="Grid of beliefs.")] = 0.025
    handover: bool = Terms.handover
    p_large: Annotated[
        float | None, typer.Option(help="Chance that the large model's step is right; replaces the source's.")
    ] = None
    tokens: Annotated[float | None, typer.Option(help="Tokens of a draft; replaces the source's.")] = None
    bins: Annotated[
        int | None,
        typer.Option(help="Bins of a score, where traces are read; default: 20."),
        Bound(lambda value: value >= 2, "choose 2 or more"),
    ] = None
    model_out: Annotated[Path | None, typer.Option(help="Write the step model to this file.")] = None
    plot: Annotated[
        Path | None, typer.Option(help="Draw the step model, and the traces beside it (.png, .svg, .pdf).")
    ] = None
    simulate: Annotated[int, typer.Option(help="Simulated solutions in the table."), POSITIVE] = 10_000


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """Options of the commands that train a policy by reinforcement learning.

    Attributes:
        kind: Kind of the policy.
        window: Most steps that a policy of kind sequence looks at.
    """

    kind: ClassVar[Literal["aggregate", "sequence"]]
    settings = Training

    out: Annotated[Path, typer.Option(help="Folder of policies and learning curves, to be made.")]
    prices: Annotated[
        list[float],
        typer.Option(
            "--lambda",
            help="Reward is 1 for a right answer less this for each large token; several times: "
            "a policy each.",
        ),
        Bound(lambda value: 0 <= value <= 1, "choose a cost in right answers, such as 0.01"),
    ]
    dataset: Annotated[str, typer.Option(help="Questions with right answers, as for collect.")] = (
        "arithmetic:standard"
    )
    validation_dataset: Annotated[
        str | None, typer.Option(help="Where validation questions come from; default: those that follow.")
    ] = None
    config: Config = None
    n: Annotated[int, typer.Option("-n", help="Training questions: the first of the dataset."), POSITIVE] = (
        1000
    )
    validation: Annotated[int, typer.Option(help="Validation questions."), POSITIVE] = 300
    simulator: Annotated[
        Path | None,
        typer.Option(
            help="Begin on a simulator: traces with labelled and scored steps, or a step model (.json) "
            "of plan."
        ),
    ] = None
    seeds: Annotated[
        int, typer.Option(help="Trainings for each price; the best on validation is kept."), POSITIVE
    ] = 1
    steps: int = Training.steps
    simulated_steps: int = Training.simulated_steps
    patience: int = Training.patience
    window: int = Training.window
    rollouts: Annotated[
        Path | None,
        typer.Option("--rollouts", help="Folder that keeps the models' rollouts for the next time."),
    ] = None
    rounds: Annotated[
        int, typer.Option(help="Most runs of a question before training; more follow as needed."), POSITIVE
    ] = 64
    concurrency: Annotated[int, typer.Option(help="Most runs under way at once."), POSITIVE] = 128
    ray: Ray = None
    ray_workers: RayWorkers = None


@dataclass(frozen=True, kw_only=True)
class AggregateOptions(TrainOptions):
    """Options of `train aggregate`."""

    kind = "aggregate"


@dataclass(frozen=True, kw_only=True)
class SequenceOptions(TrainOptions):
    """Options of `train sequence`."""

    kind = "sequence"

    window: Annotated[int, typer.Option(help="Most steps it looks at, the draft included.")] = Training.window


@dataclass(frozen=True, kw_only=True)
class QueryRouterOptions(Options):
    """Options of `train query-router`."""

    traces: Annotated[
        list[Path], typer.Option(help="Traces of small_only and of large_only; give it once for each file.")
    ]
    out: Annotated[Path, typer.Option(help="The policy file, .json; its arrays go beside it.")]
    share: Annotated[
        list[float],
        typer.Option(
            help="Share of the questions to give to the large model; default: 0.5. With several there is a "
            "file for each, OUT-SHARE.json, for trim-graph calibrate --family to choose from."
        ),
        Bound(lambda value: 0 < value < 1, "choose a share between 0 and 1"),
    ] = field(default_factory=lambda: [0.5])
    validation: Annotated[float, typer.Option(help="Share of the questions to validate on.")] = 0.2
    seed: Annotated[int, typer.Option(help="Draws the validation questions and the folds.")] = 0


@dataclass(frozen=True, kw_only=True)
class ScorerOptions(Options):
    """Options of `train scorer`."""

    settings = ScorerTraining

    labels: Annotated[
        list[Path],
        typer.Option(help="Labelled steps: of label, or collect --label-steps; give it once for each file."),
    ]
    out: Annotated[Path, typer.Option(help="Folder of the scorer, to be made.")]
    base: Annotated[
        str | None,
        typer.Option(help="Causal model: folder or hub id; default: the small model of the configuration."),
    ] = None
    config: Config = None
    tuning: Tuning = ScorerTraining.tuning
    validation: float = ScorerTraining.validation
    test: float = ScorerTraining.test
    epochs: float = ScorerTraining.epochs
    learning_rate: float | None = ScorerTraining.learning_rate
    batch_size: int = ScorerTraining.batch_size
    patience: int = ScorerTraining.patience
    lora_rank: int = ScorerTraining.lora_rank
    gradient_checkpointing: Annotated[bool, typer.Option("--gradient-checkpointing")] = (
        ScorerTraining.gradient_checkpointing
    )
    device: str = ScorerTraining.device
    dtype: Dtype = ScorerTraining.dtype
    step_token: str | None = ScorerTraining.step_token
    system_prompt: str | None = ScorerTraining.system_prompt
    max_tokens: int | None = ScorerTraining.max_tokens
    calibrate_on: Calibration = ScorerTraining.calibrate_on
    token_probability: bool = ScorerTraining.token_probability
    pattern: str | None = ScorerTraining.pattern
    seed: int = ScorerTraining.seed
    as_json: AsJson = False


LedgerPlace = Annotated[
    str,
    typer.Argument(metavar="PLACE", help="As ledger: in a file: sqlite:PATH, postgresql://..., env:NAME."),
]


@dataclass(frozen=True, kw_only=True)
class LedgerListOptions(Options):
    """Options of `ledger list`."""

    place: LedgerPlace
    account: Annotated[str | None, typer.Option(help="Of one account, such as user:ada.")] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False


@dataclass(frozen=True, kw_only=True)
class LedgerReleaseOptions(Options):
    """Options of `ledger release`."""

    place: LedgerPlace
    account: Annotated[str, typer.Option(help="Whose, such as user:ada.")]
    entry: Annotated[str | None, typer.Option(help="One reservation, as list shows it.")] = None
    expired: Annotated[bool, typer.Option("--expired", help="All that have expired.")] = False
    charge: Annotated[bool, typer.Option("--charge", help="Charge them in full instead, for good.")] = False
