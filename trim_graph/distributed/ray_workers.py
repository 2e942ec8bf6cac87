"""Workers on a Ray cluster: actors over its nodes, each with models of its own; needs the extra ``ray``.

The process that has the journal gives one item after the other to the workers and keeps each result as it
comes. Where a worker dies, what it had under way is given to another, and what it had given back is not:
every result is kept exactly once.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from trim_graph.config import TrimConfig
from trim_graph.errors import SettingsError, TrimError
from trim_graph.evaluation.identity import code_identity
from trim_graph.evaluation.runner import run_each

from .ray_cluster import connected
from .workers import Item, Job, Models, Result

TRIES = 3
"""Workers that may die at one item."""
PLACED_IN = 60.0
"""Seconds for the cluster to find a place for a worker."""
_SHARED = ("vllm", "vllm_prm", "langchain", "token_probability")
"""Parts that are elsewhere, or nothing to load."""


class Worker:
    """What runs on the cluster; an actor is made of it."""

    def __init__(self) -> None:
        self._turn = -1
        self._models: Models | None = None
        self._work: Callable[[Any], Awaitable[Any]] | None = None

    async def place(self) -> str:
        """Say where it is."""
        return f"{socket.gethostname()}, process {os.getpid()}"

    async def load(self, code: dict[str, str], make: Callable[[], Models]) -> None:
        """Load the models.

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

    async def run(self, turn: int, job: Job[Any, Any], item: Any) -> Any:
        """Work on an item; with a new turn a new job begins."""
        if turn != self._turn or self._work is None:
            assert self._models is not None
            self._turn, self._work = turn, job.begin(self._models)
        return await self._work(item)


@dataclass(eq=False, slots=True)
class _Live:
    """A worker that has its models."""

    actor: Any
    place: str
    busy: int = 0


class _Unplaced(Exception):
    """The cluster found no place for a worker."""


class RayWorkers:
    """Workers on a cluster that this process is connected to; made by `open_ray_workers`.

    Args:
        ray: The module.
        make: Makes a worker's models, on the worker; is pickled.
        count: Workers.
        gpus: Of each.
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
        """Start the workers that there are not, and wait until they have their models.

        Raises:
            TrimError: There is none, and none can be placed or load its models.
        """
        self._why = None  # an earlier start that failed is no reason now
        while len(self._live) + len(self._starting) < self.count:
            self._start_one()
        if self._starting:
            await asyncio.wait(self._starting)
        if not self._live:
            raise self._failure()
        if len(self._live) < self.count:
            _tell(f"{len(self._live)} of {self.count} workers: {self._why}")
            self.count = len(self._live)

    async def do(
        self,
        job: Job[Item, Result],
        items: Iterable[Item],
        *,
        concurrency: int,
        on_result: Callable[[Result], None],
    ) -> None:
        """Do a job; see `trim_graph.distributed.workers.Workers`.

        Raises:
            TrimError: `TRIES` workers have died at one item, or no worker is left.
        """
        await self.ready()
        self._turns += 1
        turn = self._turns

        async def one(item: Item) -> None:
            on_result(await self._run(turn, job, item))

        await run_each(one, items, concurrency=concurrency)

    async def _run(self, turn: int, job: Any, item: Any) -> Any:
        errors = self._ray.exceptions
        for _ in range(TRIES):
            worker = await self._least_busy()
            worker.busy += 1
            try:
                return await worker.actor.run.remote(turn, job, item)
            except errors.RayTaskError as error:
                raise _cause(error) from None
            except (errors.RayActorError, errors.ObjectLostError) as error:
                died = error
                self._replace(worker, error)
            finally:
                worker.busy -= 1
        raise TrimError(
            f"{TRIES} workers died one after the other, all with the same question under way: "
            f"{_reason(died)}. When that is put right, the same command goes on"
        )

    async def _least_busy(self) -> _Live:
        while not self._live:
            if not self._starting:
                raise self._failure()
            await asyncio.wait(self._starting, return_when=asyncio.FIRST_COMPLETED)
        return min(self._live, key=lambda worker: worker.busy)

    def _replace(self, worker: _Live, error: Exception) -> None:
        """Start another worker in the place of one that has died; the first of its items to know does so."""
        if worker in self._live:
            self._live.remove(worker)
            self._kill(worker.actor)
            _tell(
                f"the worker at {worker.place} died; its {worker.busy} questions are run by another: "
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
                _tell(f"a worker could not start, {len(self._live)} go on: {_reason(self._why)}")

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
        """End the workers."""
        for actor in list(self._actors):
            self._kill(actor)
        self._live.clear()


@contextmanager
def open_ray_workers(
    address: str, make: Callable[[], Models], config: TrimConfig, *, count: int | None = None
) -> Iterator[RayWorkers]:
    """Connect to a cluster and have workers there.

    Args:
        address: ``HOST:PORT`` of its head, or ``auto``.
        make: Makes a worker's models, on the worker; is pickled.
        config: Names the models.
        count: Workers; default: one for each node.

    Raises:
        SettingsError: The cluster cannot be reached, or ``count`` is below 1.
    """
    if count is not None and count < 1:
        raise SettingsError(f"--ray-workers is {count}: choose 1 or more")
    with connected(address) as ray:
        nodes = sum(node["Alive"] for node in ray.nodes())
        wanted = nodes if count is None else count
        own = loaded_by_each(config)
        gpus = int(any(_on_gpu(config, part) for part in own) and ray.cluster_resources().get("GPU", 0) > 0)
        if own:
            _tell(
                f"each of {wanted} workers loads {', '.join(own)} of its own; models behind servers (type: "
                "vllm) are shared"
            )
        workers = RayWorkers(ray, make, count=wanted, gpus=gpus)
        try:
            yield workers
        finally:
            workers.close()


def loaded_by_each(config: TrimConfig) -> list[str]:
    """Return the parts of a configuration that every worker loads for itself."""
    return [part for part in ("small", "large", "scorer") if _type(config, part) not in (None, *_SHARED)]


def _part(config: TrimConfig, part: str) -> Any:
    given = getattr(config, part)
    return given.model if given is not None and given.type == "llm_judge" else given


def _type(config: TrimConfig, part: str) -> str | None:
    given = _part(config, part)
    return None if given is None else given.type


def _on_gpu(config: TrimConfig, part: str) -> bool:
    given = _part(config, part)
    return bool(getattr(given, "device", "engine") != "cpu")


def _cause(error: Exception) -> Exception:
    """Return what a worker raised, without what Ray puts around it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def _reason(error: Exception | None) -> str:
    """Return the line of Ray's long message that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("The actor is dead", "Worker exit", "ray.exceptions"))]
    return (told or lines or [type(error).__name__])[-1][:300]


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
