"""A process that has workers on a cluster and reports to a test, a JSON object a line, what they do.

It is one of its own because a cluster is left as it was found only when its process has ended. Called as
``python ray_site.py ADDRESS FOLDER``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import toy
from ray import cloudpickle

from trim_graph import TrimError
from trim_graph import distributed as on_ray
from trim_graph.config import Parts, make_config
from trim_graph.distributed import connected, open_ray_executor
from trim_graph.evaluation.records import WorkItem
from trim_graph.evaluation.runner import LocalExecutor, Models, RunQuestions, run_each
from trim_graph.training.rollout_collection import explore_with
from trim_graph.training.rollouts import Rollouts

CONFIG = make_config(
    {
        "small": {"type": "vllm", "model": "small"},
        "large": {"type": "vllm", "model": "large"},
        "scorer": {"type": "vllm_prm", "model": "prm"},
        "policy": {"type": "threshold", "t": 0.5},
    }
)
N = 24


def report(**what: Any) -> None:
    print(json.dumps(what), file=sys.__stdout__, flush=True)


class Slow(toy.ToyModel):
    """Leaves a test time to look, and notes which process was asked what."""

    folder: str
    deadly: bool = False

    def _generate(self, messages: Any, *given: Any, **named: Any) -> Any:
        question = next(message.text for message in messages if message.type == "human")
        if self.deadly and question == "question 3":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.folder:
            time.sleep(0.01)
            with open(Path(self.folder) / f"asked-{os.getpid()}", "a") as notes:
                notes.write(question + "\n")
        return super()._generate(messages, *given, **named)


def models(folder: str, deadly: bool = False, broken: bool = False) -> Models:
    if broken:
        raise TrimError("small: the model cannot be loaded")
    small = Slow(writer="small", folder=folder, deadly=deadly)
    return Models(CONFIG, Parts(small, toy.ToyModel(writer="large"), toy.ToyScorer()))


def collect(executor: Any, *, aloud: bool = False) -> list[Any]:
    records: list[Any] = []

    def keep(record: Any) -> None:
        records.append({**record, "seconds": 0.0, "first_step_seconds": None})
        if aloud and len(records) == N // 3:
            report(scene="begun")

    task = RunQuestions({"type": "threshold", "t": 0.5}, seed=0, rated=True)
    items = [WorkItem(index, 0, question) for index, question in enumerate(toy.questions(N))]

    async def run() -> None:
        await run_each(await executor.setup(task), items, concurrency=6, on_result=keep)

    asyncio.run(run())
    return records


def killed(address: str, folder: str) -> None:
    """The records of a collection in which a test kills a worker."""
    here = collect(LocalExecutor(partial(models, "")))
    with open_ray_executor(address, partial(models, folder), CONFIG, count=2) as executor:
        records = collect(executor, aloud=True)
    ordered = sorted(records, key=lambda record: record["index"])
    report(
        scene="killed",
        indices=[record["index"] for record in records],
        same=ordered == sorted(here, key=lambda record: record["index"]),
    )


def explored(address: str, folder: str) -> None:
    """Rollouts, here and on the cluster."""
    builder = partial(Rollouts, toy.questions(6), max_steps=CONFIG.settings.max_steps)
    here = builder(lambda policy: toy.build(policy))
    left = asyncio.run(here.explore(40))
    there = builder()
    with open_ray_executor(address, partial(models, ""), CONFIG, count=2) as executor:
        left_there = asyncio.run(explore_with(executor, there, 40))

    def known(found: Rollouts) -> list[Any]:
        return sorted((trace["index"], str(trace["steps"])) for trace in found.traces)

    report(
        scene="explored",
        left=[left, left_there],
        runs=[here.runs, there.runs],
        same=known(here) == known(there),
    )


def failing(address: str, folder: str) -> None:
    """What is said where workers die again and again, cannot load their models, or find no place."""
    reported = {}
    for name, changed in {
        "dies": {"deadly": True},
        "broken": {"broken": True},
        "code": {},
        "room": {},
    }.items():
        on_ray.PLACED_IN = 2.0 if name == "room" else 60.0
        on_ray.code_identity = OTHER if name == "code" else OWN
        try:
            with open_ray_executor(address, partial(models, "", **changed), CONFIG, count=1) as executor:
                if name == "room":
                    executor._options["num_cpus"] = 64
                collect(executor)
        except TrimError as error:
            reported[name] = str(error)
    report(scene="failing", **reported)


OWN = on_ray.code_identity


def OTHER() -> dict[str, str]:
    return {"version": "0.0.1", "sha256": "0" * 64}


if __name__ == "__main__":
    cloudpickle.register_pickle_by_value(toy)
    with connected(sys.argv[1]):
        for scene in (killed, explored, failing):
            scene(sys.argv[1], sys.argv[2])
