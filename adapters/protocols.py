"""What the graph asks of a scorer and of a chat model, and the errors when it is not given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, Protocol, runtime_checkable

from langchain_core.exceptions import ContextOverflowError
from typing_extensions import TypedDict

StepEnd = Literal["delimiter", "eos", "length"]
"""Why the writer stopped: at the end of a step, at its end of sequence, or at ``max_tokens``."""

StopWhen = Callable[[str], bool]
"""Gets the text of an answer so far; whether the answer is to end there. The adapters of this package take
one as the call setting ``stop_when`` and answer with ``stop_reason`` `STOPPED`."""

STOPPED = "stop_when"

RetryTokens = Callable[["FailedAttempts"], int]
"""Gets what the failed attempts of a call have used; returns how many tokens the next attempt may generate, 0
where there is to be none. `ChatVLLM` takes one as the call setting ``retry_tokens``."""


class ScorableStep(TypedDict):
    """The part of a step that a scorer may look at."""

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


class FailedAttempts(TypedDict):
    """What failed attempts of a call have used; ``response_metadata["failed_attempts"]`` of an answer."""

    count: int
    input_tokens: int
    """As far as the server told; part of the answer's usage."""
    output_tokens: int
    unknown: int
    """Attempts that broke off without a report of their tokens."""
    unknown_tokens: NotRequired[int]
    """Most tokens that those may have generated; without it each may have generated ``max_tokens``."""
    overshoot_tokens: NotRequired[int]
    """Tokens reported beyond what each attempt was granted; without it no attempt was granted less than
    ``max_tokens``."""


class TrimError(Exception):
    """Base of all errors that trim-graph raises on purpose."""


class CallTimeoutError(TimeoutError):
    """Nothing of an answer arrived within a call's ``timeout``.

    Attributes:
        attempts: What the attempts of the call have used, the one that was cut off included.
    """

    def __init__(self, message: str, attempts: FailedAttempts) -> None:
        super().__init__(message)
        self.attempts = attempts


class ScorerError(TrimError):
    """A scorer could not give one valid score per step; the message says why.

    Attributes:
        attempts: What the call has used nevertheless; None where nobody counted.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.attempts: FailedAttempts | None = None


class ChatModelContractError(TrimError):
    """A chat model's answer lacks what step-level routing needs; the message says what.

    Attributes:
        attempts: What the attempts of the call have used; None where nobody counted.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.attempts: FailedAttempts | None = None


class ModelServerError(TrimError):
    """A model server cannot be reached, refuses a request, or answers with something unreadable.

    Or an engine in this process did not start, has died, or was closed.

    Attributes:
        status: HTTP status of the answer; None where there was none.
        begun: Whether the server may have worked on the request: then what it used is not known.
        attempts: What the failed attempts of the call have used; None where nobody counted.
    """

    def __init__(self, message: str, status: int | None = None, *, begun: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.begun = begun
        self.attempts: FailedAttempts | None = None


class ContextLengthError(ModelServerError, ContextOverflowError, ValueError):
    """A prompt fills the context of its model: nothing can be written behind it, or it cannot be read whole.

    It is no failure that may pass: nothing was generated, and no attempt more is made.
    """


def is_context_full(error: BaseException) -> bool:
    """Tell whether a call failed because its prompt fills the model's context.

    LangChain's integrations say so by `ContextOverflowError`. A scorer's error may come out of either.
    """
    return any(isinstance(one, ContextOverflowError) for one in (error, error.__cause__))
