"""First-token entropies of the small model's steps on a few questions, which set the limits of a baseline."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from trim_graph.errors import InputError
from trim_graph.journal import Journal
from trim_graph.rows import read_rows

from .harness import Harness
from .run_writing import write_json
from .running import Task, run_row
from .units import Units

if TYPE_CHECKING:
    from trim_graph.distributed.workers import Models

PILOT = 50
"""Questions that are probed."""
NAME, FILE = "pilot.jsonl", "entropies.json"
_POLICY = {"type": "entropy_probe", "limit": 1e9}


class Probed(TypedDict):
    """What a question's probes have told."""

    index: int
    entropies: list[float]
    error: str | None


@dataclass(frozen=True, slots=True)
class ProbeEntropies:
    """The job of probing each step of the small model (`trim_graph.distributed.workers.Job`).

    Attributes:
        seed: Of the graph.
    """

    seed: int

    def begin(self, models: Models) -> Callable[[Task], Awaitable[Probed]]:
        """Build the graph; its answers are not looked at."""
        graph = models.graph(_POLICY, fresh=True)

        async def work(task: Task) -> Probed:
            found = list[float]()

            def event(told: dict[str, Any]) -> None:
                if told.get("event") == "probe" and told.get("entropy") is not None:
                    found.append(float(told["entropy"]))

            row = await run_row(graph, "pilot", task, self.seed, event)
            return Probed(index=task.index, entropies=found, error=row["error"])

        return work


def pilot_units(harness: Harness) -> Units:
    """Return the questions that are probed: the first of the dataset."""
    plan = harness.plan
    return Units(plan.dataset, min(plan.n, PILOT), shard=plan.shard)


def pilot_settings(harness: Harness) -> dict[str, Any]:
    """Return what the probes are made with."""
    return {**harness.plan.settings, "pilot": _POLICY}


async def first_token_entropies(harness: Harness) -> list[float]:
    """Probe each step of the small model on a few questions, or read what was told before.

    Raises:
        InputError: It tells none.
        Pending: Only a shard's part of it is there.
    """
    file = (harness.whole or harness.folder) / FILE
    if file.exists():
        return list(json.loads(file.read_bytes())["entropies"])
    path = harness.folder / NAME
    with Journal(path, pilot_settings(harness)) as journal:
        units = pilot_units(harness)
        job = ProbeEntropies(harness.plan.seed)
        await harness.fill("entropies", journal, units, job, lambda probed: journal.append(dict(probed)))
    entropies, failed = _told(path)
    path.unlink()
    if not entropies:
        why = failed or "it tells none"
        raise InputError(f"the small model must tell the entropy of its first token: {why}")
    write_json(harness.folder / FILE, {"questions": units.n, "entropies": entropies})
    return entropies


def _told(path: Path) -> tuple[list[float], str | None]:
    """Read all entropies in order of size, and the first error."""
    records = [record for _, record in read_rows(path)]
    failed = next((record["error"] for record in records if record["error"]), None)
    return sorted(entropy for record in records for entropy in record["entropies"]), failed
