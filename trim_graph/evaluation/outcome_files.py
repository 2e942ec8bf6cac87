"""Outcomes kept in a folder, one journal a policy, so that a calibration goes on where it was interrupted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from trim_graph.journal import Journal
from trim_graph.rows import read_rows

from .calibration import cost_of
from .remembering import RememberingScorer
from .run_writing import write_json
from .runner import Outcome


class OutcomeFile:
    """What one policy came to, question by question.

    Args:
        folder: Made if it is not there.
        settings: What decides over the outcomes: models, policy, dataset. Each has a file of its own.
        scorer: What it has seen of drafts is kept too, so that a search that is gone on with guesses as one
            that was not interrupted.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], scorer: RememberingScorer | None = None
    ) -> None:
        self.folder, self.settings, self.scorer = folder, settings, scorer
        name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.path = folder / f"{name}.jsonl"
        self._drafts, self._added = folder / f"{name}.scores.json", False

    def __enter__(self) -> OutcomeFile:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(self.path, self.settings)
        if self.scorer is not None and self._drafts.exists():
            self.scorer.recall(json.loads(self._drafts.read_bytes()))
        return self

    def __exit__(self, *failure: Any) -> None:
        if self.scorer is not None and (self._added or not self._drafts.exists()):
            write_json(self._drafts, self.scorer.drafts())
        self.journal.close()

    def read(self) -> list[Outcome]:
        """Return what is there."""
        return [
            Outcome(
                index=record["index"],
                correct=record["correct"],
                large_tokens=record["large_tokens"],
                seconds=record["seconds"],
                summary={"cost": record["cost"]},
            )
            for _, record in read_rows(self.path)
        ]

    def append(self, outcome: Outcome) -> None:
        """Keep one more."""
        self._added = True
        self.journal.append(
            {
                "index": outcome.index,
                "correct": outcome.correct,
                "large_tokens": outcome.large_tokens,
                "seconds": outcome.seconds,
                "cost": cost_of(outcome),
            }
        )
