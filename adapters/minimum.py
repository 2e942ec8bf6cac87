"""A scorer that gives each step the lowest of several scorers' scores."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from trim_graph.errors import FailedAttempts

from .base import (
    AnyScorer,
    ScorableStep,
    Scorer,
    ScorerReply,
    as_scorer,
    common_window,
    read_scores,
    reads_reports,
    reads_token_probability,
)


class MinimumScorer:
    """Gives each step the lowest score of several scorers, such as `TurnSignals` and a judge.

    An asynchronous call has the scorers work at the same time. The reply totals their costs. If a scorer
    fails, its error is raised, with the costs of the others added to its attempts.

    Args:
        scorers: Two or more; as in `trim_graph.create_trim_graph`.

    Raises:
        TypeError: One is no scorer.
        ValueError: There are fewer than two, or they read windows of different lengths.

    Example:
        ```python
        scorer = MinimumScorer(TurnSignals(), LLMJudge(judge))
        ```
    """

    def __init__(self, *scorers: AnyScorer) -> None:
        if len(scorers) < 2:
            raise ValueError(f"MinimumScorer got {len(scorers)} scorers: pass two or more")
        self.scorers: tuple[Scorer, ...] = tuple(map(as_scorer, scorers))
        self.probability_window = common_window(self.scorers)

    @property
    def reads_reports(self) -> bool:
        """Whether a scorer may read more of a step than its text."""
        return any(map(reads_reports, self.scorers))

    @property
    def reads_token_probability(self) -> bool:
        """Whether a scorer reads the small model's mean token probabilities."""
        return reads_token_probability(*self.scorers)

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Scores every step, by one scorer after the other."""
        replies: list[ScorerReply] = []
        for scorer in self.scorers:
            try:
                replies.append(read_scores(scorer.score(question, steps), len(steps)))
            except Exception as error:
                _add_costs(error, replies)
                raise
        return _lowest(replies)

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Scores every step, by all scorers at the same time."""

        async def ask(scorer: Scorer) -> ScorerReply:
            return read_scores(await scorer.ascore(question, steps), len(steps))

        # All are awaited even if one fails: their tokens are spent and must be counted.
        answers = await asyncio.gather(*map(ask, self.scorers), return_exceptions=True)
        replies = [one for one in answers if isinstance(one, ScorerReply)]
        for one in answers:
            if isinstance(one, BaseException):
                _add_costs(one, replies)
                raise one
        return _lowest(replies)

    def check_writer(self, writer: str, model: Any) -> None:
        """Refuses a chat model that one of the scorers refuses.

        Raises:
            ValueError: It lacks what a scorer reads, or a scorer rates nothing that a graph writes.
        """
        for scorer in self.scorers:
            check = getattr(scorer, "check_writer", None)
            if check is not None:
                check(writer, model)


def _lowest(replies: Sequence[ScorerReply]) -> ScorerReply:
    return ScorerReply(
        [min(scores) for scores in zip(*(reply.scores for reply in replies), strict=True)],
        input_tokens=sum(reply.input_tokens for reply in replies),
        failed_attempts=sum(reply.failed_attempts for reply in replies),
        output_tokens=sum(reply.output_tokens for reply in replies),
        unknown_attempts=sum(reply.unknown_attempts for reply in replies),
    )


def _add_costs(error: BaseException, replies: Sequence[ScorerReply]) -> None:
    """Adds the costs of replies to the attempts that an error reports."""
    spent = [reply for reply in replies if reply.input_tokens or reply.output_tokens or reply.failed_attempts]
    if not spent:
        return
    attempts = getattr(error, "attempts", None)
    known = (
        attempts
        if isinstance(attempts, dict)
        else FailedAttempts(count=1, input_tokens=0, output_tokens=0, unknown=0)
    )
    total = FailedAttempts(
        **{
            **known,
            "count": known["count"] + sum(reply.failed_attempts for reply in spent),
            "input_tokens": known["input_tokens"] + sum(reply.input_tokens for reply in spent),
            "output_tokens": known["output_tokens"] + sum(reply.output_tokens for reply in spent),
            "unknown": known["unknown"] + sum(reply.unknown_attempts for reply in spent),
        }
    )
    error.attempts = total  # type: ignore[attr-defined]
