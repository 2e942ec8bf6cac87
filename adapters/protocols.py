"""What the graph asks of a scorer and of a chat model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, Protocol, runtime_checkable

from typing_extensions import TypedDict

from trim_graph.errors import FailedAttempts

StepEnd = Literal["delimiter", "eos", "length"]
"""Why the writer stopped: at the end of a step, at its end of sequence, or at ``max_tokens``."""

StopWhen = Callable[[str], bool]
"""Gets the text of an answer so far; whether the answer is to end there. The adapters of this package take
one as the call setting ``stop_when`` and answer with ``stop_reason`` `STOPPED`."""

STOPPED = "stop_when"

RetryTokens = Callable[[FailedAttempts], int]
"""Gets what the failed attempts of a call have used; returns how many tokens the next attempt may generate, 0
where there is to be none. `ChatVLLM` takes one as the call setting ``retry_tokens``."""


class ScorableStep(TypedDict):
    """One step as a scorer gets it; of an agent, one turn, written by `trim_graph.middleware.render_turn`."""

    text: str
    """The step without its delimiter."""
    writer: Literal["small", "large", "person"]
    """Which of the two models wrote it, or a person by hand."""
    mean_token_probability: NotRequired[float | None]
    """Mean probability of the step's tokens under its writer; None where the writer does not tell."""


@dataclass(frozen=True, slots=True)
class ScorerReply:
    """Scores and what they cost.

    Attributes:
        scores: One probability in [0, 1] per step, in the order of the steps.
        input_tokens: Tokens the scorer read, failed attempts included.
        failed_attempts: Attempts that failed before the one that gave the scores.
        output_tokens: Tokens the scorer wrote, failed attempts included; only a judge writes any.
        unknown_attempts: Those of the failed attempts whose tokens no server reported. The counts above
            include the most that they can have used.
    """

    scores: Sequence[float]
    input_tokens: int = 0
    failed_attempts: int = 0
    output_tokens: int = 0
    unknown_attempts: int = 0


@runtime_checkable
class Scorer(Protocol):
    """Rates each step of a solution.

    Both methods get the question and all steps so far (the accepted ones and, last, the draft), and
    answer with one probability in [0, 1] per step that the step is correct given what stands before it:
    a plain sequence of floats, or a `ScorerReply` that also tells the cost. They raise `ScorerError`
    rather than pad or truncate.
    """

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply | Sequence[float]:
        """Score every step of ``steps``."""
        ...

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply | Sequence[float]:
        """Score every step of ``steps`` without blocking the event loop."""
        ...


ScorerFunction = Callable[
    [str, list[ScorableStep]], ScorerReply | Sequence[float] | Awaitable[ScorerReply | Sequence[float]]
]
"""A function of the question and all steps so far, plain or ``async``, in place of a `Scorer`."""
