"""A scorer that is asked once for each solution, for runs that share most of their steps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from trim_graph.adapters import ScorableStep, ScorerReply
from trim_graph.adapters.scorers import as_scorer, read_scores


class RememberingScorer:
    """A scorer that reads no solution twice: the runs of a calibration share most of their prefixes."""

    def __init__(self, scorer: Any) -> None:
        self.scorer = as_scorer(scorer)
        self.known: dict[tuple[str, ...], ScorerReply] = {}
        self._recalled: dict[str, float] = {}

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Recall or ask."""
        key = (question, *(step["text"] for step in steps))
        if key not in self.known:
            self.known[key] = read_scores(self.scorer.score(question, steps), len(steps))
        return self.known[key]

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Recall or ask."""
        key = (question, *(step["text"] for step in steps))
        if key not in self.known:
            self.known[key] = read_scores(await self.scorer.ascore(question, steps), len(steps))
        return self.known[key]

    def draft_scores(self) -> list[float]:
        """Return the scores of all drafts so far, in order of size."""
        return sorted(self.drafts().values())

    def drafts(self) -> dict[str, float]:
        """Return the score of each draft so far, by a digest of what was read."""
        read = {_digest(key): reply.scores[-1] for key, reply in self.known.items()}
        return {**self._recalled, **read}

    def recall(self, drafts: Mapping[str, float]) -> None:
        """Take in what an earlier process has seen (`drafts`): only `draft_scores` tells of it."""
        self._recalled.update(drafts)


def _digest(key: tuple[str, ...]) -> str:
    return hashlib.blake2b(json.dumps(key).encode(), digest_size=8).hexdigest()
