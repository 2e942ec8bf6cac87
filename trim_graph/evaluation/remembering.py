"""A scorer that is asked once for each solution, for runs that share most of their steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trim_graph.adapters import ScorableStep, ScorerReply
from trim_graph.adapters.scorers import as_scorer, read_scores


class RememberingScorer:
    """A scorer that reads no solution twice: the runs of a calibration share most of their prefixes."""

    def __init__(self, scorer: Any) -> None:
        self.scorer = as_scorer(scorer)
        self.known: dict[tuple[str, ...], ScorerReply] = {}

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
        return sorted(reply.scores[-1] for reply in self.known.values())
