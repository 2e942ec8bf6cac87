"""`trim-graph up`: the vLLM servers of a configuration."""

from __future__ import annotations

import os
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
from trim_graph.config.schema import scorer_parts
from trim_graph.errors import ServerFailed, SettingsError

from .options import UpOptions
from .terminal import Interrupted, need

if TYPE_CHECKING:
    from trim_graph.serving.launch import Member
    from trim_graph.serving.plan import Launcher, Plan, ServerPlan

    from .common import Console

SERVER_FAILED = 1
"""Exit code when a server failed."""


@dataclass(frozen=True, slots=True)
class Signals:
    """Requests from outside.

    Attributes:
        stop: Ctrl-C, SIGTERM or SIGHUP.
        hurry: A second one.
    """

    stop: threading.Event
    hurry: threading.Event


def run_up(options: UpOptions) -> int:
    """Starts the servers of a configuration, and returns once they have ended.

    Returns:
        The exit code: 0, or 1 where a server failed.

    Raises:
        TrimError: An option is not valid, or the work cannot be done.
        Interrupted: Ctrl-C before all servers were up.
    """
    need("cli,vllm", "httpx")
    from trim_graph.serving.plan import PROGRAM, find_launcher, plan_servers

    folder = options.config.absolute().parent
    config = load_config(options.config)
    if any(part.type == "vllm_prm" for part in scorer_parts(config.scorer)):
        need("cli,vllm", "transformers", "jinja2")
    plan = plan_servers(config, folder)
    if not plan.servers and not options.show:
        raise SettingsError(
            f"{options.config} names no vLLM server on this machine: up starts parts of type vllm, vllm_prm "
            f"and vllm_generative_prm whose base_url is at localhost. {'; '.join(plan.elsewhere)}".rstrip(
                ". "
            )
        )
    python = options.python or os.environ.get("TRIM_VLLM_PYTHON") or None
    try:
        launcher = find_launcher(python)
    except SettingsError:
        if python is not None or not options.show:
            raise
        launcher = PROGRAM
    if launcher.plugin:
        plan = plan_servers(config, folder, plugin=True)
    if options.show:
        _print(plan, launcher, folder)
        return 0
    return _run(plan, launcher, folder, options)


def _print(plan: Plan, launcher: Launcher, folder: Path) -> None:
    """Prints a shell script; what is not run is a comment in it."""
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


def _run(plan: Plan, launcher: Launcher, folder: Path, options: UpOptions) -> int:
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
    logs = _logs(options.logs)
    console.print(f"logs in {logs}")
    failure: ServerFailed | None = None
    with _signals() as signals, _Display(console, missing) as display:
        fleet = Fleet(
            missing,
            launcher,
            folder,
            logs,
            startup_timeout=options.startup_timeout,
            on_change=display.show_state,
        )
        try:
            if not fleet.start(signals.stop):
                raise Interrupted("interrupted; all servers that had been started are ended")
            display.close()
            console.print(
                f"all up; Ctrl-C ends them. Check them with: trim-graph doctor --config {options.config}"
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
        return SERVER_FAILED
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
    """Takes Ctrl-C, SIGTERM and SIGHUP as wishes, so that none can cut the ending of the servers short."""
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
        """Takes the moving lines away."""
        self._shown.close()

    def show_state(self, member: Member) -> None:
        """Shows that a server has reached another state."""
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
