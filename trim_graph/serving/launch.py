"""Processes of servers: started in turn, watched, and ended together with all that they have started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

from trim_graph.errors import ServerFailed, SettingsError

from .plan import Launcher, ServerPlan

State = Literal["waiting", "starting", "up"]

GRACE_S = 30.0
"""Between asking servers to end and ending them."""
_TICK_S = 0.3
_TAIL_LINES = 25


@dataclass(slots=True, eq=False)
class Member:
    """One server of a fleet.

    Attributes:
        plan: What it is.
        log: File that it writes to.
        state: How far it is.
        begun: When it was started, by the monotonic clock; in seconds.
        process: Its process, the leader of a group of its own.
    """

    plan: ServerPlan
    log: Path
    state: State = "waiting"
    begun: float = 0.0
    process: subprocess.Popen[bytes] | None = None

    def tail(self) -> str:
        """Returns the last lines of the log, without the key."""
        with suppress(OSError):
            text = self.log.read_text("utf-8", "replace")[-20_000:]
            text = text.replace(self.plan.key, "***") if self.plan.key else text
            return "\n".join(text.splitlines()[-_TAIL_LINES:])
        return ""


class Fleet:
    """Servers that live and end together.

    Those on one GPU start one after the other: while vLLM measures how much memory a model takes, nobody
    else may take or give back any (`determine_available_memory` in vLLM's gpu_worker.py).

    Args:
        plans: The servers.
        launcher: How vLLM is called.
        folder: Where they run.
        logs: Folder for their logs.
        startup_timeout: Seconds that one may take until it is healthy.
        on_change: Called with each server that has reached another state.
    """

    def __init__(
        self,
        plans: Sequence[ServerPlan],
        launcher: Launcher,
        folder: Path,
        logs: Path,
        *,
        startup_timeout: float,
        on_change: Callable[[Member], None],
    ) -> None:
        self.members = [Member(plan, logs / f"{'-'.join(plan.names)}.log") for plan in plans]
        self._launcher = launcher
        self._folder = folder
        self._startup_timeout = startup_timeout
        self._on_change = on_change

    def start(self, stop: threading.Event) -> bool:
        """Starts all and waits until they are healthy.

        Args:
            stop: Ends the waiting when it is set.

        Returns:
            Whether all are up; if not, `stop` was set.

        Raises:
            ServerFailed: One died or took too long.
        """
        with httpx.Client(timeout=2.0, trust_env=False) as client:
            while not stop.is_set():
                self._begin_those_whose_turn_it_is()
                self._check_alive()
                for member in self._in("starting"):
                    if _healthy(client, member):
                        self._enter(member, "up")
                    elif time.monotonic() - member.begun > self._startup_timeout:
                        raise ServerFailed(
                            f"{member.plan.name} was not healthy within {self._startup_timeout:g} s; "
                            f"its log, {member.log}, ends:\n{member.tail()}"
                        )
                if len(self._in("up")) == len(self.members):
                    return True
                stop.wait(_TICK_S)
        return False

    def watch(self, stop: threading.Event) -> None:
        """Waits until `stop` is set.

        Raises:
            ServerFailed: A server died before.
        """
        while not stop.wait(_TICK_S):
            self._check_alive()

    def end(self, hurry: threading.Event) -> None:
        """Ends all servers and whatever they have started.

        Args:
            hurry: Set, it leaves them no time.
        """
        begun = [member.process for member in self.members if member.process is not None]
        for process in begun:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while any(process.poll() is None for process in begun):
            if time.monotonic() > deadline or hurry.wait(0.1):
                break
        for process in begun:
            # The group outlives its leader while a worker of it lives.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _begin_those_whose_turn_it_is(self) -> None:
        for member in self._in("waiting"):
            busy = frozenset().union(*(other.plan.gpus for other in self._in("starting")))
            if member.plan.gpus.isdisjoint(busy):
                member.begun = time.monotonic()
                member.process = self._begin(member)
                self._enter(member, "starting")

    def _begin(self, member: Member) -> subprocess.Popen[bytes]:
        try:
            with member.log.open("wb") as log:
                return subprocess.Popen(
                    member.plan.command(self._launcher),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=member.plan.full_environment(),
                    cwd=self._folder,
                    # A group of its own: Ctrl-C in the terminal is for us, who end it in order.
                    start_new_session=True,
                )
        except OSError as error:
            raise ServerFailed(f"{member.plan.name} cannot be started: {error}") from error

    def _check_alive(self) -> None:
        for member in self.members:
            if member.process is not None and (code := member.process.poll()) is not None:
                when = "while it started" if member.state == "starting" else "after it had been up"
                how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
                raise ServerFailed(
                    f"{member.plan.name} died {when}, {how}; its log, {member.log}, ends:\n{member.tail()}"
                )

    def _in(self, state: State) -> list[Member]:
        return [member for member in self.members if member.state == state]

    def _enter(self, member: Member, state: State) -> None:
        member.state = state
        self._on_change(member)


def _healthy(client: httpx.Client, member: Member) -> bool:
    try:
        return client.get(f"{member.plan.root}/health").status_code == 200
    except httpx.HTTPError:
        return False


_PROBE_TIMEOUT_S = 3.0


def already_running(servers: Sequence[ServerPlan]) -> list[ServerPlan]:
    """Finds the servers that run already: the model is served by its name, from the same weights.

    Returns:
        Those servers; the ports of the others are free.

    Raises:
        SettingsError: A port is taken by anything else.
    """
    running, taken = [], []
    for server in servers:
        if _is_free(server):
            continue
        found, what = _served(server)
        if found:
            running.append(server)
        else:
            taken.append(f"{server.name}: port {server.port} is taken by {what}")
    if taken:
        raise SettingsError("; ".join(taken) + ". Nothing was started: end that, or change base_url")
    return running


def _is_free(server: ServerPlan) -> bool:
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.host, server.port))
        except PermissionError as error:
            raise SettingsError(
                f"{server.name}: port {server.port} is not ours to listen at ({error.strerror}); choose one "
                "above 1023 in base_url"
            ) from error
        except OSError:
            return False
    return True


def _served(server: ServerPlan) -> tuple[bool, str]:
    """Returns whether the server at the port is the one that is wanted; if not, what it is."""
    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    entries: Any = None
    try:
        with httpx.Client(timeout=_PROBE_TIMEOUT_S, trust_env=False) as client:
            answer = client.get(f"{server.root}/v1/models", headers=headers)
        if answer.status_code in (401, 403):
            return False, "a server that wants another API key"
        with suppress(ValueError, AttributeError):
            entries = answer.json().get("data")
    except httpx.HTTPError:
        pass
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return False, "something that is not a vLLM server"
    if any(entry.get("id") == server.model and entry.get("root") == server.weights for entry in entries):
        return True, ""
    served = ", ".join(f"{entry.get('id')!r} (from {entry.get('root')})" for entry in entries)
    return False, f"a server of {served or 'nothing'}, not of {server.model!r} (from {server.weights})"
