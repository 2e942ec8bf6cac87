"""Engines that each have an accelerator of their own, emulated: the cost of scheduling alone.

Nothing is computed, engines only take time. One that writes makes one pass after the other, each as long as
the next whatever number of prompts is in it, as where reading the weights takes longer than the arithmetic;
whoever comes during a pass is in the next; a step of n tokens takes n + 1 passes. One that scores takes the
same time for each solution, as where the arithmetic takes longer. What is written is the right solution, and
one draft in five is rated low, so that the large model writes it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import ConfigDict

from trim_graph.adapters.base import ScorableStep, ScorerReply
from trim_graph.examples.arithmetic import SMALL, Problem
from trim_graph.segmentation import DEFAULT_DELIMITER

from .instant import InstantModel
from .lockstep import solve_all
from .ways import Models, Solved, Written

LOW_RATED = 0.2


class Writing:
    """Makes passes of so many seconds."""

    def __init__(self, pass_s: float) -> None:
        self.pass_s = pass_s
        self._begun = self._busy_until = -math.inf

    async def passes(self, n: int) -> None:
        """Takes part in the next so many passes."""
        now = asyncio.get_running_loop().time()
        if now >= self._busy_until:
            self._begun = now
        under_way = math.ceil((now - self._begun) / self.pass_s)
        end = self._begun + (under_way + n) * self.pass_s
        self._busy_until = max(self._busy_until, end)
        await asyncio.sleep(end - now)


class Scoring:
    """Takes so many seconds a solution, one after the other."""

    def __init__(self, solution_s: float) -> None:
        self.solution_s = solution_s
        self._busy_until = -math.inf

    async def read(self, n: int) -> None:
        """Reads so many solutions."""
        now = asyncio.get_running_loop().time()
        self._busy_until = max(now, self._busy_until) + n * self.solution_s
        await asyncio.sleep(self._busy_until - now)


class Solutions:
    """The right steps of problems, and the tokens of each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(SMALL))
        self._steps: dict[str, list[Written]] = {}
        for problem in problems:
            steps = problem.steps
            self._steps[problem.question] = [
                Written(text, number == len(steps) - 1, len(tokenizer.encode(text)) + 1)
                for number, text in enumerate(steps)
            ]

    def after(self, question: str, prefix: str) -> Written:
        """Returns the step that follows."""
        return self._steps[question][prefix.count(DEFAULT_DELIMITER)]

    def score(self, question: str, number: int) -> float:
        """Rate a step, always the same."""
        drawn = hashlib.sha256(f"{number} {question}".encode()).digest()
        return 0.5 if drawn[0] < 256 * LOW_RATED else 0.99


class PacedModel(InstantModel):
    """Writes the right solution at its engine's pace."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    engine: Writing
    solutions: Solutions

    def step_after(self, messages: list[BaseMessage]) -> Written:
        """Returns the right step that follows a conversation."""
        last = messages[-1]
        prefix = str(last.content) if isinstance(last, AIMessage) else ""
        question = next(str(one.content) for one in messages if one.type == "human")
        return self.solutions.after(question, prefix)

    async def take(self, step: Written) -> None:
        """Takes part in as many passes as the step has tokens, and one that reads the prompt."""
        await self.engine.passes(step.tokens + 1)


class PacedScorer:
    """Rates steps at its engine's pace."""

    def __init__(self, engine: Scoring, solutions: Solutions) -> None:
        self._engine, self._solutions = engine, solutions

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Rate them at once."""
        return ScorerReply([self._solutions.score(question, n) for n in range(len(steps))], 100)

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Rate them."""
        await self._engine.read(1)
        return self.score(question, steps)


@dataclass(frozen=True, slots=True)
class Pace:
    """Milliseconds: of a pass of each writer, of a solution that is scored."""

    small: float
    large: float
    scorer: float


class Paced:
    """Three such engines, for questions whose solutions are known."""

    def __init__(self, pace: Pace, solutions: Solutions) -> None:
        self._pace, self._solutions = pace, solutions

    def elsewhere(self) -> float:
        """Nothing is computed."""
        return 0.0

    async def fresh(self) -> Models:
        """Models for a run."""
        return self.models()

    def models(self) -> Models:
        """Models with engines of their own."""
        small, large, scorer = self._engines()
        writers = [PacedModel(engine=engine, solutions=self._solutions) for engine in (small, large)]
        return Models(*writers, PacedScorer(scorer, self._solutions))

    @asynccontextmanager
    async def lock_step(self, questions: Sequence[str]) -> AsyncIterator[Any]:
        """The loop for these questions."""
        small, large, scorer = self._engines()
        batches = _Batches({"small": small, "large": large}, scorer, self._solutions)
        heads = [{"small": question, "large": question} for question in questions]

        async def loop() -> list[Solved]:
            return await solve_all(questions, heads, batches, lambda _, head, prefix: (head, prefix))

        yield loop

    def _engines(self) -> tuple[Writing, Writing, Scoring]:
        pace = self._pace
        return Writing(pace.small / 1000), Writing(pace.large / 1000), Scoring(pace.scorer / 1000)


class _Batches:
    def __init__(self, writers: dict[str, Writing], scorer: Scoring, solutions: Solutions) -> None:
        self._writers, self._scorer, self._solutions = writers, scorer, solutions

    async def write(self, writer: str, prompts: list[tuple[str, str]]) -> list[Written]:
        written = [self._solutions.after(*prompt) for prompt in prompts]
        await self._writers[writer].passes(max(one.tokens for one in written) + 1)
        return written

    async def score(self, asked: list[tuple[str, list[str]]]) -> list[float]:
        await self._scorer.read(len(asked))
        return [self._solutions.score(question, len(steps) - 1) for question, steps in asked]
