"""Recorded judgements: what a model that reads a solution says of each step, kept in a journal."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from trim_graph.adapters import ScorableStep
from trim_graph.adapters.base import as_scorer, read_scores
from trim_graph.adapters.provider_errors import error_line
from trim_graph.evaluation.runner import Models
from trim_graph.state import Step

from .continuations import open_journal


class Reading(NamedTuple):
    """A solution to be judged.

    Attributes:
        question_index: Index of the question in its dataset.
        question: Its text.
        solution: Digest of all steps; see `trim_graph.training.continuations.extended`.
        steps: The steps.
    """

    question_index: int
    question: str
    solution: str
    steps: tuple[Step, ...]


class Judgement(TypedDict):
    """A recorded judgement."""

    index: int
    """Number of the record in its journal."""
    question: int
    solution: str
    scores: list[float]
    """Probability that the judge agrees with each step; empty after an error."""
    read: int
    """Tokens of the judge's prompts."""
    written: int
    seconds: float
    error: str | None


@dataclass(frozen=True, slots=True)
class JudgeSolutions:
    """The task of judging solutions with the executor's judge (`trim_graph.evaluation.runner.Task`).

    Without a judge among its models, the large model judges, by `trim_graph.adapters.LLMJudge`.
    """

    def setup(self, models: Models) -> Callable[[Reading], Awaitable[Judgement]]:
        """Builds the judge; a reading that fails has a record that says why."""
        from trim_graph.adapters import LLMJudge

        own = models.judge
        if own is not None and own.config is not None:
            judge = own.config.build()
        else:
            # The expected digit where the model reports log-probabilities: a probability, not a grade.
            judge = LLMJudge(getattr(models.parts, (own.writer if own is not None else None) or "large"))
        scorer = as_scorer(judge)

        async def work(reading: Reading) -> Judgement:
            begun = time.monotonic()
            judged = Judgement(
                index=-1,
                question=reading.question_index,
                solution=reading.solution,
                scores=[],
                read=0,
                written=0,
                seconds=0.0,
                error=None,
            )
            asked = [ScorableStep(step["text"], step["writer"]) for step in reading.steps]
            try:
                reply = read_scores(await scorer.ascore(reading.question, asked), len(asked))
                judged["scores"] = list(reply.scores)
                judged["read"], judged["written"] = reply.input_tokens, reply.output_tokens
            except Exception as error:
                judged["error"] = error_line(error)
            judged["seconds"] = time.monotonic() - begun
            return judged

        return work


_JUDGEMENT: TypeAdapter[Judgement] = TypeAdapter(Judgement)


class Judgements:
    """The judgements of a journal, open for more; use it as a context manager.

    Args:
        path: Path of the journal, created if it is missing. Its folder must exist.
        settings: What judgements must have in common: judge and dataset, JSON-native.
        retry_errors: Whether to drop those that failed, so that they are made again.

    Attributes:
        records: All of them, in the order in which they were recorded.
        failed: The last error of each question that has one, by its index.

    Raises:
        SettingsError: The journal was begun with other settings, or another process writes to it.
        InputError: A record in it cannot be read.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, retry_errors: bool = False) -> None:
        self.records: list[Judgement] = []
        self.failed: dict[int, str] = {}
        self._of: dict[tuple[int, str], Judgement] = {}
        self.journal = open_journal(
            path, settings, _JUDGEMENT, self._note, name="judgement", retry_errors=retry_errors
        )

    def keep(self, record: Judgement) -> None:
        """Records a new judgement; gives it its number."""
        record["index"] = 1 + max((one["index"] for one in self.records[-1:]), default=-1)
        self.journal.append(dict(record))
        self._note(record)

    def of(self, question: int, solution: str) -> Judgement | None:
        """Returns the judgement of a solution; None where nobody has recorded one."""
        return self._of.get((question, solution))

    def scores(self, question: int, solution: str) -> Sequence[float] | None:
        """Returns one probability a step; None where there is no judgement, or it failed."""
        found = self.of(question, solution)
        return None if found is None or found["error"] is not None else found["scores"]

    def _note(self, record: Judgement) -> None:
        self.records.append(record)
        self._of[record["question"], record["solution"]] = record
        if record["error"] is not None:
            self.failed[record["question"]] = record["error"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.journal.close()
