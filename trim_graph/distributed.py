"""Executor on Ray, a cluster or this machine: actors, each with models of its own; needs the extra ``ray``.

The process with the journal gives one item after the other to the workers and keeps each result as it comes.
Where a worker dies, its unfinished items go to another one, and its finished ones do not: every result is
kept exactly once. The connection is made within a time limit, and the cluster is left as it was found.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import Any

from trim_graph.config import TrimConfig
from trim_graph.config.schema import models_of
from trim_graph.errors import SettingsError, TrimError, counted, shown_address
from trim_graph.evaluation.arms import code_identity
from trim_graph.evaluation.runner import Item, Models, Result, Task

REACHED_IN = 5.0
"""Seconds for a connection to be taken."""
ANSWERED_IN = 60.0
"""Seconds for a cluster to answer; ``ray.init`` has no limit of its own, and takes no signal."""
_TRIAL = """\
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}".strip().splitlines()[0])
"""
TRIES = 3
"""Workers that may die at one item."""
PLACED_IN = 60.0
"""Seconds for the cluster to find a place for a worker."""
OBJECTS = 200 * 2**20
"""Bytes of shared memory for questions and records, which the processes of one machine exchange."""
_SHARED = ("vllm", "vllm_prm", "vllm_generative_prm", "langchain", "token_probability", "turn_signals")
"""Parts that are elsewhere, or nothing to load."""


class Worker:
    """One process on the cluster with models of its own; Ray makes an actor of it."""

    def __init__(self) -> None:
        self._turn = -1
        self._models: Models | None = None
        self._work: Callable[[Any], Awaitable[Any]] | None = None

    async def place(self) -> str:
        """Returns host and process."""
        return f"{socket.gethostname()}, process {os.getpid()}"

    async def load(self, code: dict[str, str], make: Callable[[], Models]) -> None:
        """Loads the models.

        Raises:
            SettingsError: Another trim-graph is installed here.
        """
        own = code_identity()
        if own != code:
            raise SettingsError(
                f"the worker at {await self.place()} has another trim-graph, {own['version']} "
                f"({own['sha256'][:8]}); this is {code['version']} ({code['sha256'][:8]})"
            )
        self._models = make()

    async def run(self, turn: int, task: Task[Any, Any], item: Any) -> Any:
        """Does a task on an item; a new turn begins a new task."""
        if turn != self._turn or self._work is None:
            assert self._models is not None
            self._turn, self._work = turn, task.setup(self._models)
        return await self._work(item)


@dataclass(eq=False, slots=True)
class _Live:
    """A worker with loaded models."""

    actor: Any
    place: str
    busy: int = 0


class _Unplaced(Exception):
    """The cluster found no place for a worker."""


class RayExecutor:
    """Does tasks on a cluster that this process is connected to; made by `open_ray_executor`.

    Args:
        ray: The module.
        make: Loads a worker's models, on the worker; is pickled.
        count: Workers.
        gpus: GPUs of each worker.
    """

    def __init__(self, ray: Any, make: Callable[[], Models], *, count: int, gpus: int = 0) -> None:
        self._ray, self._make, self.count = ray, make, count
        self._options = {
            "num_cpus": 1,
            "num_gpus": gpus,
            "max_restarts": 0,
            "scheduling_strategy": "SPREAD",
            "max_concurrency": 100_000,
        }
        self._actors = list[Any]()
        self._live = list[_Live]()
        self._starting = set[asyncio.Task[None]]()
        self._why: Exception | None = None
        self._turns = 0

    async def ready(self) -> None:
        """Starts the missing workers, and waits until they have loaded their models.

        Raises:
            TrimError: No worker could be placed, or none could load its models.
        """
        self._why = None  # an earlier start that failed is no reason now
        while len(self._live) + len(self._starting) < self.count:
            self._start_one()
        if self._starting:
            await asyncio.wait(self._starting)
        if not self._live:
            raise self._failure()
        if len(self._live) < self.count:
            _report(f"{len(self._live)} of {self.count} workers: {self._why}")
            self.count = len(self._live)

    async def setup(self, task: Task[Item, Result]) -> Callable[[Item], Awaitable[Result]]:
        """Starts the workers and returns a function that has one of them do the task.

        Raises:
            TrimError: No worker could be placed, or none could load its models.
        """
        await self.ready()
        self._turns += 1
        return partial(self._run, self._turns, task)

    async def _run(self, turn: int, task: Any, item: Any) -> Any:
        """Has the least busy worker do a task on an item.

        Raises:
            TrimError: `TRIES` workers have died at the item, or no worker is left.
        """
        errors = self._ray.exceptions
        for _ in range(TRIES):
            worker = await self._least_busy()
            worker.busy += 1
            try:
                return await worker.actor.run.remote(turn, task, item)
            except errors.RayTaskError as error:
                raise _cause(error) from None
            except (errors.RayActorError, errors.ObjectLostError) as error:
                died = error
                self._replace(worker, error)
            finally:
                worker.busy -= 1
        raise TrimError(
            f"{TRIES} workers died one after the other, all with the same question under way: "
            f"{_reason(died)}. When that is put right, the same command resumes it"
        )

    async def _least_busy(self) -> _Live:
        while not self._live:
            if not self._starting:
                raise self._failure()
            await asyncio.wait(self._starting, return_when=asyncio.FIRST_COMPLETED)
        return min(self._live, key=lambda worker: worker.busy)

    def _replace(self, worker: _Live, error: Exception) -> None:
        """Starts another worker in place of a dead one; the first of its items to fail does so."""
        if worker in self._live:
            self._live.remove(worker)
            self._kill(worker.actor)
            _report(
                f"the worker at {worker.place} died; its "
                f"{counted(worker.busy, 'question is', 'questions are')} run by another: "
                f"{_reason(error)}"
            )
            self._start_one()

    def _start_one(self) -> None:
        task = asyncio.get_running_loop().create_task(self._start())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _start(self) -> None:
        actor = self._ray.remote(Worker).options(**self._options).remote()
        self._actors.append(actor)
        try:
            try:
                async with asyncio.timeout(PLACED_IN):
                    place = await actor.place.remote()
            except TimeoutError:
                free = self._ray.available_resources()
                raise _Unplaced(
                    f"the cluster found no place for a worker in {PLACED_IN:g} s; each needs 1 CPU"
                    f"{', 1 GPU' if self._options['num_gpus'] else ''}, and free are "
                    f"{free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU"
                ) from None
            await actor.load.remote(code_identity(), self._make)
            self._live.append(_Live(actor, place))
        except Exception as error:
            self._why = _cause(error)
            self._kill(actor)
            if self._live:
                _report(f"a worker could not start, {len(self._live)} continue: {_reason(self._why)}")

    def _failure(self) -> Exception:
        why = self._why
        if isinstance(why, TrimError | ImportError):
            return why
        if isinstance(why, _Unplaced):
            return SettingsError(f"--ray: {why}")
        return TrimError(f"no worker on the Ray cluster could start: {_reason(why)}")

    def _kill(self, actor: Any) -> None:
        if actor in self._actors:
            self._actors.remove(actor)
        self._ray.kill(actor)

    def close(self) -> None:
        """Ends the workers."""
        for actor in list(self._actors):
            self._kill(actor)
        self._live.clear()


@contextmanager
def open_ray_executor(
    address: str, make: Callable[[], Models], config: TrimConfig, *, count: int | None = None
) -> Iterator[RayExecutor]:
    """Connects to a cluster for workers, which the first task starts.

    Args:
        address: ``HOST:PORT`` of its head, or ``auto``.
        make: Loads a worker's models, on the worker; is pickled.
        config: Names the models.
        count: Workers; default: one for each node.

    Raises:
        SettingsError: The cluster cannot be reached, or ``count`` is below 1.
    """
    if count is not None and count < 1:
        raise SettingsError(f"--ray-workers is {count}: choose 1 or more")
    with connected(address) as ray, _executor(ray, make, config, count) as executor:
        yield executor


@contextmanager
def open_local_executor(
    make: Callable[[], Models], config: TrimConfig, *, count: int
) -> Iterator[RayExecutor]:
    """Starts Ray on this machine alone, and as many processes as workers; both end with the context.

    An application that is connected to a cluster has its workers there.

    Args:
        make: Loads a worker's models, on the worker; is pickled.
        config: Names the models.
        count: Workers, each with an event loop of its own.
    """
    with started(count) as ray, _executor(ray, make, config, count) as executor:
        yield executor


@contextmanager
def _executor(
    ray: Any, make: Callable[[], Models], config: TrimConfig, count: int | None
) -> Iterator[RayExecutor]:
    """Yields the executor on what this process is connected to, and ends its workers."""
    wanted = sum(node["Alive"] for node in ray.nodes()) if count is None else count
    own = loaded_by_each(config)
    gpus = int(any(_on_gpu(config, part) for part in own) and ray.cluster_resources().get("GPU", 0) > 0)
    if own:
        _report(
            f"each of {wanted} workers loads {', '.join(own)} of its own; models behind servers (type: "
            "vllm) are shared"
        )
    executor = RayExecutor(ray, make, count=wanted, gpus=gpus)
    try:
        yield executor
    finally:
        executor.close()


def loaded_by_each(config: TrimConfig) -> list[str]:
    """Returns the parts of a configuration that every worker loads for itself."""
    return [part for part in ("small", "large", "scorer") if _own_models(config, part)]


def _own_models(config: TrimConfig, part: str) -> list[Any]:
    """Returns the models of a part that are not elsewhere."""
    given = getattr(config, part)
    models = models_of(given) if part == "scorer" else [given]
    return [model for model in models if model.type not in _SHARED]


def _on_gpu(config: TrimConfig, part: str) -> bool:
    return any(getattr(model, "device", "engine") != "cpu" for model in _own_models(config, part))


def _cause(error: Exception) -> Exception:
    """Returns what a worker raised, without the error that Ray wraps around it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def _reason(error: Exception | None) -> str:
    """Returns the line of Ray's long message with the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [
        line for line in lines if line.startswith(("The actor is dead", "Worker exit", "ray.exceptions"))
    ]
    return (named or lines or [type(error).__name__])[-1][:300]


def _report(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connects to a cluster; meanwhile all prints go to stderr.

    Args:
        address: ``HOST:PORT`` of its head, or ``auto`` for the one that this machine is part of.

    Yields:
        The module ``ray``.

    Raises:
        SettingsError: There is no cluster, or it does not answer in time.
    """
    import ray

    if ray.is_initialized():  # by the application that calls
        yield ray
        return
    _reach(address)
    with _initialized(address=address):
        yield ray


@contextmanager
def started(cpus: int) -> Iterator[Any]:
    """Starts Ray on this machine for as long as the context lasts; meanwhile all prints go to stderr.

    Args:
        cpus: Most workers. It may be more than the machine has cores.

    Yields:
        The module ``ray``.
    """
    import ray

    if ray.is_initialized():  # by the application that calls
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _initialized(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECTS):
        yield ray


@contextmanager
def _initialized(**options: Any) -> Iterator[None]:
    """Connects to Ray and leaves it again, with this process's output and signals as they were."""
    import ray

    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    # Ray prints notes of its own, the last of them as it ends; they do not belong into a command's output.
    with redirect_stdout(sys.stderr):
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
            if main:  # Ray's own would end the process without a word of what is left
                signal.signal(signal.SIGTERM, handler)
            yield
        finally:
            ray.shutdown()
            if main:
                signal.signal(signal.SIGTERM, handler)


def _reach(address: str) -> None:
    """Tries the connection in a process that can be killed."""
    if address != "auto":
        _take_connection(address)
    option = f"--ray {address}: "
    try:
        trial = subprocess.run(
            [sys.executable, "-c", _TRIAL, address], capture_output=True, text=True, timeout=ANSWERED_IN
        )
    except subprocess.TimeoutExpired as error:
        raise SettingsError(
            f"{option}no Ray cluster answers in {ANSWERED_IN:g} s. This machine must be part of it: ray "
            "start --address=HOST:PORT"
        ) from error
    if trial.returncode:
        why = (trial.stderr.strip().splitlines() or ["it ended at once"])[-1]
        hint = "ray start --head begins one" if address == "auto" else "is this machine part of it?"
        raise SettingsError(f"{option}{why} ({hint})")


def _take_connection(address: str) -> None:
    host, _, port = address.rpartition(":")
    if shown_address(address) is None:
        raise SettingsError(
            "--ray is neither HOST:PORT nor auto: give HOST:PORT of the cluster's head, such as "
            "10.0.0.1:6379; run this command on one of its machines, or hand it in with ray job submit"
        )
    if not 1 <= int(port) <= 65535:  # the system would take the last 16 bits
        wrong = f"{port}, above 65535" if int(port) else "0"
        raise SettingsError(f"--ray {address} cannot be reached: its port is {wrong}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED_IN).close()
    except OSError as error:
        raise SettingsError(f"--ray {address} cannot be reached: {error}") from error
