"""A cascade of two scorers: a cheap one rates each step, a costly one only where the first is unsure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trim_graph.errors import ChatModelContractError, FailedAttempts, ScorerError, SettingsError

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
from .known_scores import KnownScores, KnownSteps

_NOT_OF_A_CALL = (SettingsError, ChatModelContractError)
UNSURE = (0.2, 0.8)
"""Scores between which a step goes to the second scorer, unless others are given."""


class CascadeScorer:
    """Asks a second scorer only about the steps of which the first is unsure.

    The first is usually free or cheap: the small model itself (``LLMJudge(small, scale="yes_no")``),
    `TokenProbability`, a small reward model. The second is the large model as a judge, or a large reward
    model. Source of the name: model cascades (FrugalGPT, arXiv 2305.05176); ConfSpec has the small model
    verify steps and sends those of middling confidence on.

    Each step is rated once: scores are kept by question and steps up to it. A second scorer that rates steps
    one by one (`LLMJudge`, `VLLMGenerativeProcessReward`) is asked about the unsure steps alone; another
    reads the steps up to the last of them. `ScorerReply` counts the tokens of both, so both count as the
    scorer's; a price table has one price for a scorer, which should be the second's.

    The scores of the two should mean the same: a threshold outside of the limits asks the second scorer
    without need.

    Args:
        first: Rates every step; a `Scorer`, a Runnable or a function, as for `create_trim_graph`.
        second: Rates those of which the first is unsure.
        unsure: Lowest and highest score of the first at which the second is asked.
        cache_size: Scores to keep; with 0 each step is rated again each time.

    Raises:
        ValueError: The limits are none, or both scorers read windows of different lengths.
        TypeError: One is no scorer.
        ScorerError: One of them fails, with the tokens of both; by a call.

    Example:
        ```python
        judges = CascadeScorer(LLMJudge(small, scale="yes_no"), LLMJudge(large), unsure=(0.2, 0.9))
        graph = create_trim_graph(small, large, judges, policy=threshold(0.5))
        ```
    """

    def __init__(
        self,
        first: AnyScorer,
        second: AnyScorer,
        *,
        unsure: tuple[float, float] = UNSURE,
        cache_size: int = 4096,
    ) -> None:
        self.unsure = check_limits(unsure)
        self.first, self.second = as_scorer(first), as_scorer(second)
        self._scores = KnownScores(cache_size)
        self.probability_window = common_window((self.first, self.second))

    @property
    def reads_reports(self) -> bool:
        """Whether a scorer may read more of a step than its text."""
        return reads_reports(self.first) or reads_reports(self.second)

    @property
    def reads_token_probability(self) -> bool:
        """Whether a scorer reads the small model's mean token probabilities."""
        return reads_token_probability(self.first, self.second)

    def __repr__(self) -> str:
        return f"CascadeScorer({self.first!r}, {self.second!r}, unsure={self.unsure})"

    def check_writer(self, writer: str, model: Any) -> None:
        """Has both scorers refuse a chat model that does not report what they read.

        Raises:
            ValueError: One refuses it.
        """
        for scorer in (self.first, self.second):
            if (check := getattr(scorer, "check_writer", None)) is not None:
                check(writer, model)

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Rates every step that was not rated before."""
        known = KnownSteps(question, steps, self._scores, reported=self.reads_reports)
        if not known.missing:
            return ScorerReply(known.whole())
        asked = _Asked(self.first, steps, known.missing)
        first = asked.read(self.first.score(question, asked.steps, **asked.arguments))
        if not (unsure := self._settle(known, first)):
            return replace(first, scores=known.whole())
        asked = _Asked(self.second, steps, unsure)
        try:
            second = asked.read(self.second.score(question, asked.steps, **asked.arguments))
        except _NOT_OF_A_CALL:
            raise
        except Exception as error:
            raise _with_tokens(error, first) from _cause(error)
        return _finish(known, unsure, first, second)

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Rates every step that was not rated before, without blocking the event loop."""
        known = KnownSteps(question, steps, self._scores, reported=self.reads_reports)
        if not known.missing:
            return ScorerReply(known.whole())
        asked = _Asked(self.first, steps, known.missing)
        first = asked.read(await self.first.ascore(question, asked.steps, **asked.arguments))
        if not (unsure := self._settle(known, first)):
            return replace(first, scores=known.whole())
        asked = _Asked(self.second, steps, unsure)
        try:
            second = asked.read(await self.second.ascore(question, asked.steps, **asked.arguments))
        except _NOT_OF_A_CALL:
            raise
        except Exception as error:
            raise _with_tokens(error, first) from _cause(error)
        return _finish(known, unsure, first, second)

    def _settle(self, known: KnownSteps, first: ScorerReply) -> list[int]:
        """Keeps the scores that the first scorer is sure of, and returns the indices of the others."""
        low, high = self.unsure
        scores = dict(zip(known.missing, first.scores, strict=True))
        for index, score in scores.items():
            if not low <= score <= high:
                known.keep(index, score)
        return [index for index, score in scores.items() if low <= score <= high]


class _Asked:
    """A question to a scorer about some of the steps.

    Args:
        scorer: One that declares ``rates_some`` rates these steps only; another rates all up to the last.
        steps: All steps.
        wanted: Indices of those in question, in order.
    """

    def __init__(self, scorer: Scorer, steps: Sequence[ScorableStep], wanted: Sequence[int]) -> None:
        self.steps, self._wanted = steps[: wanted[-1] + 1], wanted
        self._some = getattr(scorer, "rates_some", False)
        self.arguments: dict[str, Any] = {"only": wanted} if self._some else {}

    def read(self, answer: Any) -> ScorerReply:
        """Returns the checked answer, with the scores of the wanted steps only."""
        if self._some:
            return read_scores(answer, len(self._wanted))
        reply = read_scores(answer, len(self.steps))
        return replace(reply, scores=[reply.scores[index] for index in self._wanted])


def check_limits(unsure: Sequence[float]) -> tuple[float, float]:
    """Checks the limits of a cascade.

    Raises:
        ValueError: They are not two probabilities, the lower one first.
    """
    numbers = [value for value in unsure if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(unsure) != 2 or len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1] <= 1:
        raise ValueError(
            f"unsure={list(unsure)} is no pair of probabilities, the lower one first, such as {list(UNSURE)}"
        )
    return float(numbers[0]), float(numbers[1])


def _finish(known: KnownSteps, unsure: Sequence[int], first: ScorerReply, second: ScorerReply) -> ScorerReply:
    for index, score in zip(unsure, second.scores, strict=True):
        known.keep(index, score)
    return ScorerReply(
        known.whole(),
        first.input_tokens + second.input_tokens,
        first.failed_attempts + second.failed_attempts,
        first.output_tokens + second.output_tokens,
        first.unknown_attempts + second.unknown_attempts,
    )


def _cause(error: Exception) -> BaseException:
    """Returns the error that a caller may look for: of a server or a full context, where there is one."""
    return error.__cause__ if isinstance(error, ScorerError) and error.__cause__ is not None else error


def _with_tokens(error: Exception, first: ScorerReply) -> ScorerError:
    """Returns the second scorer's error with the tokens of both."""
    found = next((one for one in (error, error.__cause__) if getattr(one, "attempts", None)), None)
    lost: FailedAttempts | None = getattr(found, "attempts", None)
    raised = ScorerError(f"the second scorer of the cascade: {error}")
    raised.attempts = FailedAttempts(
        count=first.failed_attempts + (lost["count"] if lost else 1),
        input_tokens=first.input_tokens + (lost["input_tokens"] if lost else 0),
        output_tokens=first.output_tokens + (lost["output_tokens"] if lost else 0),
        unknown=first.unknown_attempts + (lost["unknown"] if lost else 0),
    )
    return raised
