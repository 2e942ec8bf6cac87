"""Parts that commands share: models of a configuration, who does the work, progress, and consoles."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import rich.console
from rich.progress import TextColumn
from rich.segment import Segment
from rich.text import Text

from trim_graph.adapters import ScorableStep
from trim_graph.config import Parts, TrimConfig, build_parts, example_config, load_config
from trim_graph.config.schema import models_of, scorer_parts
from trim_graph.errors import InputError, SettingsError, TrimError, may_be_shown
from trim_graph.evaluation.arms import Judge
from trim_graph.evaluation.datasets import Dataset, first_questions, title_of
from trim_graph.evaluation.runner import Executor, LocalExecutor, Models

from .terminal import guarded, need, unguarded, visible


def chosen_config(file: Path | None, overrides: dict[str, Any]) -> TrimConfig:
    """Reads the configuration, or puts together the one of the example models."""
    if file is not None:
        return load_config(file, overrides=overrides)
    return example_config(overrides)


def parsed_option(option: str, given: str, example: str) -> Any:
    """Reads an option that is a name or a YAML mapping.

    Raises:
        SettingsError: It is not YAML.
    """
    import yaml

    try:
        return yaml.safe_load(given)
    except yaml.YAMLError:
        shown = f" {given!r}" if may_be_shown(given) else ""
    raise SettingsError(f"{option}{shown} is neither a name nor a mapping such as '{example}'")


def make_folder(option: str, folder: Path) -> None:
    """Makes a folder that an option names, before the work whose results go there.

    Raises:
        SettingsError: It cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{option} {folder}: cannot be made a folder: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise SettingsError(f"{option} {folder} cannot be written: no permission")


def check_trace_file(out: Path) -> None:
    """Checks that traces can be written to ``--out``, before the work whose results would be lost.

    Raises:
        SettingsError: The name ends otherwise, the folder does not exist, or it cannot be written.
    """
    if out.suffix not in (".jsonl", ".parquet"):
        raise SettingsError(f"--out {out}: the name must end in .jsonl or .parquet")
    folder = out.absolute().parent
    if not folder.is_dir():
        raise SettingsError(f"--out {out}: the folder {folder} does not exist")
    if out.is_dir() or not os.access(out if out.exists() else folder, os.W_OK):
        raise SettingsError(
            f"--out {out} cannot be written: {'a folder' if out.is_dir() else 'no permission'}"
        )


def readable(problem: str, config: TrimConfig) -> str:
    """Checks a problem before a model sees it.

    Raises:
        InputError: It is empty, or the example models cannot read it.
    """
    if not problem.strip():
        raise InputError('the problem is empty: trim-graph solve "PROBLEM"')
    if "example" not in (config.small.type, config.large.type):
        return problem
    from trim_graph.examples.arithmetic.readable import read_problem

    return read_problem(problem)


def check_readable(config: TrimConfig, option: str, dataset: Dataset, n: int) -> None:
    """Checks the questions of a dataset before a model sees one.

    Args:
        config: Names the models.
        option: That named the dataset.
        dataset: The questions.
        n: How many of them: the first.

    Raises:
        InputError: The example models cannot read one.
    """
    if "example" not in (config.small.type, config.large.type) or dataset.type == "arithmetic":
        return
    for number, question in enumerate(first_questions(dataset, n, default=n)):
        try:
            readable(question.text, config)
        except InputError as error:
            name = question.id or str(number)
            raise InputError(f"{option} {title_of(dataset)}, question {name}: {error}") from error


def load_parts(config: TrimConfig, *, rated: bool = False, large: bool = True, servers: bool = True) -> Parts:
    """Makes the models and loads their weights, so that loading counts neither as a step nor as time spent.

    Args:
        config: Names them.
        rated: Whether the scorer is needed also where the policy looks at no score.
        large: Whether the large model is needed; else it is made, and neither loaded nor asked.
        servers: Whether models on servers are asked too; else they may start later.

    Raises:
        SettingsError: A model cannot be loaded.
        MissingExtra: What runs models is not installed.
    """
    need_extras(config)
    parts = build_parts(config)
    _check_here(config, large=large)
    with _loading() as show:
        for name, model in (("small", parts.small), ("large", parts.large)):
            elsewhere = getattr(config, name).type in _ON_SERVERS
            if (name == "large" and not large) or (elsewhere and not servers):
                continue
            show(f"loading the {name} model")
            with _refusing(name):
                load_chat_model(model)
        asked = servers or not _scorer_types(config) & _ON_SERVERS
        if asked and loads_scorer(config) and (rated or config.policy.build().needs_score):
            show("loading the scorer")
            with _refusing("scorer"):
                parts.scorer.score("1", [ScorableStep("1")])
    return parts


def _check_here(config: TrimConfig, *, large: bool) -> None:
    """Checks devices and the hub for all models of this process, before the first takes minutes to load."""
    from trim_graph.adapters.model_source import check_available

    named = {"small": config.small, **({"large": config.large} if large else {})}
    for name, entry in (*named.items(), *(("scorer", one) for one in models_of(config.scorer))):
        if entry.type in _HERE:
            with _refusing(name):
                check_available(entry)


def load_scorer(config: TrimConfig) -> Any:
    """Makes the scorer alone and loads its weights.

    Raises:
        SettingsError: There is none, or it cannot be loaded.
        MissingExtra: What runs it is not installed.
    """
    if config.scorer is None:
        raise SettingsError("the configuration names no scorer")
    _need(_scorer_types(config))
    with _loading() as show:
        show("loading the scorer")
        with _refusing("scorer"):
            scorer = config.scorer.build()
            if loads_scorer(config):
                scorer.score("1", [ScorableStep("1")])
    return scorer


_CALL_NOTHING = {"token_probability", "turn_signals"}
"""Scorers that read what a call has reported already."""
_NOT_LOADED = {"llm_judge", *_CALL_NOTHING}
"""Scorers without weights of their own, which rate no step that is a text alone."""
_HERE = {"transformers", "transformers_prm", "example"}
_ON_SERVERS = {"vllm", "vllm_prm", "vllm_generative_prm"}
_ON_ENGINES = {"vllm_engine", "vllm_engine_prm"}


def need_extras(config: TrimConfig) -> None:
    """Imports what the models of a configuration need, or says how to get it.

    Raises:
        MissingExtra: Something is not installed.
    """
    _need({config.small.type, config.large.type} | _scorer_types(config))


def _scorer_types(config: TrimConfig) -> set[str]:
    return {part.type for part in models_of(config.scorer)}


def _need(types: set[str]) -> None:
    if types & _HERE:
        need("cli,local", "torch", "transformers", "safetensors")
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if types & _ON_SERVERS:
        need("cli,vllm", "httpx", "transformers", "jinja2")
    if types & _ON_ENGINES:
        from trim_graph.adapters.vllm.engine import vllm_module

        vllm_module()
    if "langchain" in types:
        need("cli,hosted", "langchain")


def load_chat_model(model: Any) -> None:
    """Loads weights, or starts an engine; a hosted model has nothing to load."""
    from langchain_core.messages import HumanMessage

    if hasattr(model, "start"):
        model.start()
    if hasattr(model, "count_prompt_tokens"):
        model.count_prompt_tokens([HumanMessage("1")])


def loads_scorer(config: TrimConfig) -> bool:
    """Returns whether the scorer has weights of its own to load."""
    parts = scorer_parts(config.scorer)
    return bool(parts) and all(part.type not in _NOT_LOADED for part in parts)


def calls_scorer(config: TrimConfig) -> bool:
    """Returns whether the scorer calls a model, and so has a price."""
    return any(part.type not in _CALL_NOTHING for part in scorer_parts(config.scorer))


def _loading() -> AbstractContextManager[Callable[[str], None]]:

    return status("loading")


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Names the model that cannot be loaded; libraries say why in their first line, and then at length."""
    try:
        yield
    except TrimError as error:
        raise SettingsError(f"{name}: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise SettingsError(f"{name}: the model cannot be loaded: {lines[0]}") from error


@contextmanager
def open_executor(
    config: TrimConfig,
    load: Callable[[], Models],
    *,
    judge: Judge | None = None,
    rated: bool,
    ray: str | None,
    count: int | None,
    workers: int | None = None,
    load_per_worker: bool = False,
    large: bool = True,
) -> Iterator[Executor]:
    """Opens the executor that a command line asks for.

    Args:
        config: Names the models.
        load: Loads them in this process.
        judge: Scores in the scorer's place where a task says so.
        rated: Whether the scorer is needed also where the policy looks at no score.
        ray: Address of a Ray cluster, or ``auto``; None: the models run on this machine.
        count: Workers on the cluster.
        workers: Processes on this machine; None or 1: the models run in this one.
        load_per_worker: Whether each of these processes may load models of its own.
        large: Whether workers need the large model.

    Raises:
        SettingsError: Options exclude each other, the cluster cannot be reached, or each process would load
            models without being asked to.
        MissingExtra: Ray is not installed.
    """
    if count is not None and ray is None:
        raise SettingsError("--ray-workers needs --ray")
    if load_per_worker and workers is None:
        raise SettingsError("--load-per-worker needs --workers")
    if ray is not None and workers is not None:
        raise SettingsError(
            "--workers are processes on this machine, and --ray names a cluster: give --ray-workers instead"
        )
    if ray is None and workers in (None, 1):
        yield LocalExecutor(load)
        return
    from trim_graph.distributed import loaded_by_each, open_local_executor, open_ray_executor

    own = [part for part in loaded_by_each(config) if large or part != "large"]
    if workers is not None and own and not load_per_worker:
        raise SettingsError(
            f"--workers {workers}: each process would load {', '.join(own)} of its own: name models behind "
            "servers (trim-graph up starts some), or add --load-per-worker"
        )
    need("ray", "ray")
    need_extras(config)
    make = partial(_models, config, judge, rated, large)
    with (
        open_ray_executor(ray, make, config, count=count)
        if ray is not None
        else open_local_executor(make, config, count=workers or 1)
    ) as executor:
        yield executor


def _models(config: TrimConfig, judge: Judge | None, rated: bool, large: bool) -> Models:
    """Loads the models on a worker."""
    return Models(config, load_parts(config, rated=rated, large=large), judge)


EVERY = 30.0
"""Seconds between two lines in a log."""


class Progress:
    """Progress display of a piece of work.

    Args:
        what: In a word.
        total: How many items there are; None if unknown.
        done: How many were done before.
    """

    def __init__(self, what: str, total: int | None, *, done: int = 0) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self.what, self.total, self.done = what, total, done
        self.now = self.failed = 0
        self._begun = self._printed = time.monotonic()
        console = Console(stderr=True)
        self._bar: Bar | None = None
        self._shown = ExitStack()
        if console.is_terminal:
            columns = (text_column("{task.description}"), BarColumn(), MofNCompleteColumn())
            rest = (TimeElapsedColumn(), text_column("{task.fields[rate]}"))
            self._bar = Bar(*columns, *rest, console=console)
            self._show = partial(live, self._bar)
            self._task = self._bar.add_task(what, total=total, completed=done, rate="")

    def advance(self, *, failed: bool = False) -> None:
        """Notes that one more is done."""
        self.now, self.failed = self.now + 1, self.failed + failed
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done + self.now, rate=self.rate())
        elif time.monotonic() - self._printed >= EVERY:
            self._printed = time.monotonic()
            print(f"{self.what}: {self.line()}", file=sys.stderr, flush=True)

    def line(self) -> str:
        """Says how far it is."""
        total = "" if self.total is None else f"/{self.total}"
        if not self.now and self.done == self.total:
            return f"{self.done}{total}, nothing left to run"
        return f"{self.done + self.now}{total}, {self.rate()}"

    def rate(self) -> str:
        """Says how fast it goes, how long it takes, and how much has failed."""
        a_second = self.now / max(time.monotonic() - self._begun, 1e-9)
        text = f"{a_second:.1f}/s"
        if self.total is not None and a_second > 0:
            left = round((self.total - self.done - self.now) / a_second)
            text += f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        return f"{text}, {self.failed} failed" if self.failed else text

    def __enter__(self) -> Self:
        self._begun = self._printed = time.monotonic()
        if self._bar is not None:
            self._shown.enter_context(self._show())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shown.close()
        if self._bar is None:
            print(f"{self.what}: {self.line()}", file=sys.stderr, flush=True)


Display = TypeVar("Display", bound=AbstractContextManager[Any])


class Console(rich.console.Console):
    """The console of every command.

    Args:
        stderr: Whether it writes to stderr.
        plain_width: Width where the stream is no terminal.
        options: Further options of rich's console.
    """

    def __init__(self, *, stderr: bool = False, plain_width: int | None = None, **options: Any) -> None:
        stream = unguarded(sys.stderr if stderr else sys.stdout)
        super().__init__(file=stream, markup=False, emoji=False, highlight=False, **options)
        if plain_width is not None and not self.is_terminal:
            self.width = plain_width

    def render_str(self, text: str, **options: Any) -> Text:
        """Makes a text that rich can lay out; before rich drops some control characters unseen."""
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: rich.console.RenderableType, options: rich.console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Renders without what acts on a terminal in a text; rich's own moves are apart from it."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def text_column(form: str) -> TextColumn:
    """Makes a column of a moving display, whose text is no markup."""
    return TextColumn(form, markup=False)


@contextmanager
def live(display: Display) -> Iterator[Display]:
    """Shows a display that moves.

    Rich takes the place of stdout and stderr meanwhile, and would read escape sequences out of what is
    printed: a guard goes before it.
    """
    with display, guarded():
        yield display


@contextmanager
def status(text: str) -> Iterator[Callable[[str], None]]:
    """Shows on stderr what is under way; yields a function that says what is next."""
    with live(Console(stderr=True).status(Text(visible(text)))) as shown:
        yield lambda text: shown.update(Text(visible(text)))
