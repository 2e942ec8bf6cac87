"""`trim-graph up`: the vLLM servers of a configuration; `convert-prm`: a PRM that vLLM can serve."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trim_graph.config import load_config
from trim_graph.errors import ServerFailed, SettingsError

from .terminal import Interrupted, need

if TYPE_CHECKING:
    from trim_graph.serving.launch import Member
    from trim_graph.serving.plan import Launcher, Plan, ServerPlan

    from .common import Console

FAULT = 1
"""Exit code when a server failed."""


@dataclass(frozen=True, slots=True)
class Request:
    """The command line of `up`, as given."""

    config: Path
    show: bool
    python: str | None
    logs: Path | None
    patience: float


@dataclass(frozen=True, slots=True)
class Signals:
    """What was asked for from outside.

    Attributes:
        stop: Ctrl-C, SIGTERM or SIGHUP.
        hurry: A second one.
    """

    stop: threading.Event
    hurry: threading.Event


def run_up(request: Request) -> int:
    """Start the servers of a request, and stay until they are to end.

    Returns:
        The exit code: 0, or 1 where a server failed.

    Raises:
        TrimError: The request cannot be fulfilled.
        Interrupted: Ctrl-C before all servers were up.
    """
    need("cli,vllm", "httpx")
    from trim_graph.serving.plan import PROGRAM, find_launcher, plan_servers

    if not request.patience > 0:
        raise SettingsError(f"--patience is {request.patience:g}: choose a number of seconds above 0")
    folder = request.config.absolute().parent
    config = load_config(request.config)
    if config.scorer is not None and config.scorer.type == "vllm_prm":
        need("cli,vllm", "transformers")
    plan = plan_servers(config, folder)
    python = request.python or os.environ.get("TRIM_VLLM_PYTHON") or None
    if request.show:
        try:
            launcher = find_launcher(python)
        except SettingsError:
            if python is not None:
                raise
            launcher = PROGRAM
        _print(plan, launcher, folder)
        return 0
    if not plan.servers:
        raise SettingsError(
            f"{request.config} names no vLLM server on this machine: up starts parts of type vllm and "
            f"vllm_prm whose base_url is at localhost. {'; '.join(plan.elsewhere)}".rstrip(". ")
        )
    return _run(plan, find_launcher(python), folder, request)


def _print(plan: Plan, launcher: Launcher, folder: Path) -> None:
    """Print a shell script; what is not run is a comment in it."""
    if folder != Path.cwd():
        import shlex

        print(f"cd {shlex.quote(str(folder))}")
    seen: set[str] = set()
    for server in plan.servers:
        turn = " (once the one before is up: they share a GPU)" if server.gpus & seen else ""
        seen |= server.gpus
        print(f"# {server.name}{turn}")
        print(server.shell_line(launcher))
    for line in plan.elsewhere:
        print(f"# {line}")


def _run(plan: Plan, launcher: Launcher, folder: Path, request: Request) -> int:
    from trim_graph.serving.launch import Fleet, already_running

    from .common import Console

    console = Console(stderr=True, soft_wrap=True)
    for line in plan.elsewhere:
        console.print(line)
    there = already_running(plan.servers)
    for server in there:
        console.print(f"{server.name}: runs already at {server.root}: it is used, and not ended")
    missing = [server for server in plan.servers if server not in there]
    if not missing:
        console.print("all servers run already")
        return 0
    logs = _logs(request.logs)
    console.print(f"logs in {logs}")
    failure: ServerFailed | None = None
    with _signals() as signals, _Display(console, missing) as display:
        fleet = Fleet(missing, launcher, folder, logs, patience=request.patience, told=display.told)
        try:
            if not fleet.start(signals.stop):
                raise Interrupted("interrupted; all servers that had been started are ended")
            display.close()
            console.print(
                f"all up; Ctrl-C ends them. Check them with: trim-graph doctor --config {request.config}"
            )
            fleet.watch(signals.stop)
        except ServerFailed as error:
            failure = error
        finally:
            display.close()
            if signals.stop.is_set():
                console.print("ending the servers (Ctrl-C again: at once)")
            fleet.end(signals.hurry)
    if failure is not None:
        print(f"trim-graph: {failure}\ntrim-graph: all servers are ended", file=sys.stderr)
        return FAULT
    return 0


def _logs(folder: Path | None) -> Path:
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="trim-graph-up-"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--logs {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise SettingsError(f"--logs {folder} cannot be written to: no permission")
    return folder.absolute()


@contextmanager
def _signals() -> Iterator[Signals]:
    """Take Ctrl-C, SIGTERM and SIGHUP as wishes, so that none can cut the ending of the servers short."""
    signals = Signals(threading.Event(), threading.Event())

    def handle(*_: object) -> None:
        (signals.hurry if signals.stop.is_set() else signals.stop).set()

    kinds = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = [signal.signal(kind, handle) for kind in kinds]
    try:
        yield signals
    finally:
        for kind, old in zip(kinds, before, strict=True):
            signal.signal(kind, old)


class _Display:
    """A line for each server that moves on a terminal; elsewhere a line for each change."""

    def __init__(self, console: Console, servers: list[ServerPlan]) -> None:
        from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

        from .common import live, text_column

        self._console = console
        self._progress = Progress(
            SpinnerColumn(finished_text="*"),
            text_column("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._shown, self._show = ExitStack(), partial(live, self._progress)
        self._tasks = {
            server.name: self._progress.add_task(f"{server.name}: waits for its turn", total=1, start=False)
            for server in servers
        }

    def __enter__(self) -> _Display:
        self._shown.enter_context(self._show())
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the moving lines away."""
        self._shown.close()

    def told(self, member: Member) -> None:
        """Show that a server has reached another state."""
        name, task = member.plan.name, self._tasks[member.plan.name]
        if member.state == "starting":
            self._progress.start_task(task)
            self._progress.update(task, description=f"{name}: starting, log {member.log}")
            if not self._console.is_terminal:
                self._console.print(f"{name}: starting, log {member.log}")
            return
        self._progress.update(task, description=f"{name}: up", completed=1)
        took = time.monotonic() - member.begun
        self._console.print(f"{name}: up at {member.plan.root} after {took:.0f} s")


def run_convert(model: str, target: Path) -> None:
    """Convert a PRM with a value head, and say how to serve it.

    Raises:
        SettingsError: The model or the target is not right.
    """
    need("local", "torch", "transformers")
    import typer

    from trim_graph.adapters.model_source import load_tokenizer
    from trim_graph.adapters.prm.convert import convert_value_head
    from trim_graph.adapters.prm.scores import serve_options

    try:
        convert_value_head(model, target)
        options = serve_options("skywork", tokenizer=load_tokenizer(str(target), chat=False))
    except (ValueError, OSError) as error:
        raise SettingsError(str(error)) from error
    typer.echo(f"vllm serve {shlex.quote(str(target))} {shlex.join(options)}")
