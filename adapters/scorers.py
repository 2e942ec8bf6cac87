"""Taking whatever a user gives as a scorer, and checking what it answers."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.runnables import Runnable

from trim_graph.errors import ScorerError

from .protocols import ScorableStep, Scorer, ScorerFunction, ScorerReply

AnyScorer = Scorer | ScorerFunction | Runnable[Any, Any]
"""What `as_scorer` takes; a Runnable gets ``{"question": ..., "steps": [...]}``."""


class RunnableScorer:
    """A Runnable from ``{"question": ..., "steps": [...]}`` to one probability per step, as a `Scorer`."""

    def __init__(self, runnable: Runnable[Any, Any]) -> None:
        self.runnable = runnable

    def score(self, question: str, steps: Sequence[ScorableStep]) -> Any:
        """Invoke the Runnable."""
        return self.runnable.invoke({"question": question, "steps": list(steps)})

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> Any:
        """Invoke the Runnable without blocking."""
        return await self.runnable.ainvoke({"question": question, "steps": list(steps)})


class FunctionScorer:
    """A function ``f(question, steps)``, plain or ``async``, as a `Scorer`."""

    def __init__(self, function: Callable[[str, list[ScorableStep]], Any]) -> None:
        self.function = function
        self._is_async = inspect.iscoroutinefunction(function)

    def score(self, question: str, steps: Sequence[ScorableStep]) -> Any:
        """Call the function; a coroutine function is refused.

        Raises:
            ScorerError: The function is asynchronous.
        """
        if self._is_async:
            raise ScorerError("the scorer is an async function: call the graph with ainvoke or astream")
        return self.function(question, list(steps))

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> Any:
        """Await the function, or call it in a thread."""
        if self._is_async:
            return await self.function(question, list(steps))
        return await asyncio.to_thread(self.function, question, list(steps))


def as_scorer(scorer: Any) -> Scorer:
    """Take a `Scorer` as it is, and wrap a Runnable or a function.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(scorer, type):
        raise TypeError(f"scorer is the class {scorer.__name__}: pass an instance, {scorer.__name__}(...)")
    if isinstance(scorer, Scorer):
        return scorer
    if isinstance(scorer, Runnable):
        return RunnableScorer(scorer)
    if callable(scorer):
        return FunctionScorer(scorer)
    raise TypeError(
        f"scorer is {scorer!r}: pass an object with score and ascore, a Runnable, or a function "
        "of (question, steps)"
    )


def read_scores(answer: Any, expected: int) -> ScorerReply:
    """Check a scorer's answer: one probability per step.

    Args:
        answer: What the scorer returned.
        expected: How many steps it was given.

    Raises:
        ScorerError: Wrong count, not a number, NaN, or outside [0, 1].
    """
    reply = answer if isinstance(answer, ScorerReply) else ScorerReply(answer)
    try:
        if isinstance(reply.scores, str | bytes | Mapping):
            raise TypeError("not a sequence of numbers")
        scores = [float(score) for score in reply.scores]
    except (TypeError, ValueError) as error:
        raise ScorerError(f"the scorer did not return numbers: {reply.scores!r}") from error
    if len(scores) != expected:
        raise ScorerError(f"the scorer returned {len(scores)} scores for {expected} steps")
    for index, score in enumerate(scores):
        if math.isnan(score) or not 0 <= score <= 1:
            raise ScorerError(f"the scorer rated step {index} with {score}; expected a value in [0, 1]")
    return replace(reply, scores=scores)
