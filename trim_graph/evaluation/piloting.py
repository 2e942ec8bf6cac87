"""First-token entropies of the small model's steps on a few questions, which set the limits of a baseline."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from trim_graph.errors import InputError
from trim_graph.journal import Journal
from trim_graph.rows import read_rows

from .executor import Models
from .harness import Harness
from .run_writing import write_json
from .running import WorkItem, WorkItems, run_row

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
    """The task of probing each step of the small model (`trim_graph.evaluation.executor.Task`).

    Attributes:
        seed: Of the graph.
    """

    seed: int

    def setup(self, models: Models) -> Callable[[WorkItem], Awaitable[Probed]]:
        """Build the graph; its answers are not looked at."""
        graph = models.graph(_POLICY, fresh=True)

        async def work(item: WorkItem) -> Probed:
            found = list[float]()

            def event(told: dict[str, Any]) -> None:
                if told.get("event") == "probe" and told.get("entropy") is not None:
                    found.append(float(told["entropy"]))

            row = await run_row(graph, "pilot", item, self.seed, event)
            return Probed(index=item.index, entropies=found, error=row["error"])

        return work


async def first_token_entropies(harness: Harness) -> list[float]:
    """Probe each step of the small model on a few questions, or read what was told before.

    Raises:
        InputError: It tells none.
    """
    plan, file = harness.plan, harness.folder / FILE
    if file.exists():
        return list(json.loads(file.read_bytes())["entropies"])
    path = harness.folder / NAME
    items = WorkItems(plan.dataset, min(plan.n, PILOT))
    with Journal(path, {**plan.settings, "pilot": _POLICY}) as journal:
        task = ProbeEntropies(plan.seed)
        await harness.fill("entropies", journal, items, task, lambda probed: journal.append(dict(probed)))
    entropies, failed = _told(path)
    path.unlink()
    if not entropies:
        why = failed or "it tells none"
        raise InputError(f"the small model must tell the entropy of its first token: {why}")
    write_json(file, {"questions": items.n, "entropies": entropies})
    return entropies


def _told(path: Path) -> tuple[list[float], str | None]:
    """Read all entropies in order of size, and the first error."""
    records = [record for _, record in read_rows(path)]
    failed = next((record["error"] for record in records if record["error"]), None)
    return sorted(entropy for record in records for entropy in record["entropies"]), failed
