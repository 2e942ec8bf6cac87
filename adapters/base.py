"""Protocols of scorers and chat models, settings of one model call, and checks of what a scorer returns."""

from __future__ import annotations

import asyncio
import inspect
import math
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NotRequired, Protocol, runtime_checkable

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable
from pydantic import Field
from typing_extensions import TypedDict

from trim_graph.errors import FailedAttempts, ScorerError

StepEnd = Literal["delimiter", "eos", "length"]
"""Why the writer stopped: at the end of a step, at its end of sequence, or at ``max_tokens``."""

StopWhen = Callable[[str], bool]
"""Gets the text of an answer so far; returns whether the answer ends there. The adapters of this package take
one as the call setting ``stop_when`` and answer with ``stop_reason`` `STOPPED`."""

STOPPED = "stop_when"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """Settings of one call of our chat models.

    Attributes:
        max_tokens: Most tokens to generate.
        temperature: 0 takes the likeliest token.
        top_p: Sample from the likeliest tokens that make up this probability.
        seed: Makes sampling repeatable; None draws anew each time.
        stop: Strings that end the answer.
        logprobs: Whether the mean token probability is wanted.
        probability_window: Tokens of the window whose lowest mean probability is wanted; None: it is not.
        first_token_entropy: Whether the entropy of the first token's distribution is wanted.
        label_tokens: Labels whose probabilities as the first token are wanted.
        timeout: Seconds until the answer is cut.
        stop_when: Ends the answer where it says so of the text so far.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    probability_window: int | None = None
    first_token_entropy: bool = False
    label_tokens: tuple[str, ...] = ()
    timeout: float | None = None
    stop_when: StopWhen | None = None


_LANGCHAIN_KWARGS = {"stream"}  # given by LangChain's own plumbing

RetryTokens = Callable[[FailedAttempts], int]
"""Gets the usage of a call's failed attempts; returns how many tokens the next attempt may generate, 0 for no
further attempt. `ChatVLLM` takes one as the call setting ``retry_tokens``."""


class ToolResult(TypedDict):
    """Result of a tool that an agent's previous turn called."""

    name: str
    status: Literal["success", "error"]


class TurnCall(TypedDict):
    """A tool call of an agent's turn."""

    name: str
    args: dict[str, Any] | str
    """The arguments; their text where that is no JSON object."""
    invalid: Literal["no_json", "unknown_tool", "arguments"] | None
    """Why no tool can be called so: the arguments are no JSON, the model was offered no tool of the name, or
    the tool's schema refuses the arguments. None where nothing is wrong, or no schema says."""


class Turn(TypedDict):
    """An agent's turn as data, from the messages that the models get; nothing in it is read from a text."""

    results: list[ToolResult]
    """Results of the tools that the previous turn called, in order."""
    text: str
    """The turn's own text."""
    calls: list[TurnCall]


class ScorableStep(TypedDict):
    """One step as a scorer gets it; of an agent, one turn, written by `trim_graph.agents.render_turn`."""

    text: str
    """The step without its delimiter."""
    writer: Literal["small", "large", "human"]
    """The model that wrote it, or a human."""
    mean_token_probability: NotRequired[float | None]
    """Mean probability of the step's tokens under its writer; None where the writer does not report it."""
    lowest_window_probability: NotRequired[float | None]
    """Lowest mean probability of a window of its tokens; only where the scorer asked the writers for it, see
    `trim_graph.adapters.TokenProbability`."""
    turn: NotRequired[Turn | None]
    """The turn as data, only of an agent's; None where another middleware has removed its message."""


def scorable_step(step: Mapping[str, Any]) -> ScorableStep:
    """Returns a step of a run or a record as a scorer gets it.

    Args:
        step: With ``text``; ``writer`` is the small model where it is absent, as in a discarded draft.
    """
    known = ScorableStep(
        text=step["text"],
        writer=step.get("writer", "small"),
        mean_token_probability=step.get("mean_token_probability"),
    )
    if (lowest := step.get("lowest_window_probability")) is not None:
        known["lowest_window_probability"] = lowest
    return known


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

    Both methods get the question and all steps so far (the accepted ones and, last, the draft), and answer
    with one probability in [0, 1] per step that the step is correct given the steps before it: a plain
    sequence of floats, or a `ScorerReply` with the cost. They raise `ScorerError` rather than pad or
    truncate.
    """

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply | Sequence[float]:
        """Scores every step of ``steps``."""
        ...

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply | Sequence[float]:
        """Scores every step of ``steps`` without blocking the event loop."""
        ...


ScorerFunction = Callable[
    [str, list[ScorableStep]], ScorerReply | Sequence[float] | Awaitable[ScorerReply | Sequence[float]]
]
"""A function of the question and all steps so far, plain or ``async``, in place of a `Scorer`."""


def check_call_settings(settings: dict[str, Any]) -> None:
    """Checks the settings of one call.

    Raises:
        ValueError: One is wrong; the message names it.
    """

    def number(name: str, kind: type | tuple[type, ...], valid: Callable[[Any], bool], what: str) -> None:
        value = settings.get(name)
        if value is None:
            return
        if not isinstance(value, kind) or isinstance(value, bool) or not valid(value):
            raise ValueError(f"{name}={value!r} is not {what}")

    real = (int, float)
    number("max_tokens", int, lambda v: v >= 1, "a whole number of tokens, 1 or more")
    number("temperature", real, lambda v: 0 <= v < math.inf, "a number, 0 or more")
    number("top_p", real, lambda v: 0 < v <= 1, "a number above 0, 1 at most")
    number("top_logprobs", int, lambda v: v >= 0, "a whole number, 0 or more")
    number("probability_window", int, lambda v: v >= 1, "a whole number of tokens, 1 or more")
    number("seed", int, lambda v: -(2**63) <= v < 2**64, "a 64-bit whole number")
    if settings.get("stop_when") is not None and not callable(settings["stop_when"]):
        raise ValueError(f"stop_when={settings['stop_when']!r} is not a function of the text so far")
    entropy = settings.get("first_token_entropy")
    if entropy is not None and not isinstance(entropy, bool):
        raise ValueError(f"first_token_entropy={entropy!r} is neither True nor False")
    number("timeout", real, lambda v: v > 0, "a number of seconds above 0")


class ExactChatModel(BaseChatModel):
    """Base of the chat models here: they continue a trailing AIMessage exactly."""

    continues_exactly: ClassVar[bool] = True
    """Declares to `create_trim_graph` that no prompt is needed to continue a text."""
    takes_stop_when: ClassVar[bool] = True
    """Declares that a call may end its own answer with ``stop_when``."""
    reports_entropy: ClassVar[bool] = True
    """Declares that a call may ask for the entropy of its first token."""
    reports_window: ClassVar[bool] = True
    """Declares that a call may ask for the lowest mean probability of ``probability_window`` tokens."""

    max_tokens: int = Field(default=512, ge=1)
    """Most tokens to generate in a call; cut to the room behind the prompt."""

    @abstractmethod
    def count_prompt_tokens(self, messages: Sequence[BaseMessage]) -> int:
        """Returns the exact number of prompt tokens of a call with these messages."""

    @abstractmethod
    def takes_system_role(self) -> bool:
        """Returns whether the chat template has a system role; else system texts precede a human message."""

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Returns the exact number of prompt tokens, chat template included; ``tools`` are not supported."""
        if tools:
            raise ValueError(f"{type(self).__name__} does not take tools")
        return self.count_prompt_tokens(messages)

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # The key of LangChain's cache: how long and how often may be tried does not change a response.
        named = {name: value for name, value in kwargs.items() if name not in ("timeout", "retry_tokens")}
        return super()._get_llm_string(stop=stop, **named)

    def _merged_settings(
        self, kwargs: dict[str, Any], own: Sequence[str], of_a_call: Sequence[str]
    ) -> dict[str, Any]:
        """Returns a call's settings over the model's own; None means the model's own.

        Args:
            kwargs: Keyword arguments of the call.
            own: Settings of a call that the model has defaults for.
            of_a_call: All settings of a call.

        Raises:
            ValueError: A setting is unknown or wrong.
        """
        if unknown := sorted(set(kwargs) - set(of_a_call) - _LANGCHAIN_KWARGS):
            raise ValueError(
                f"{type(self).__name__} does not know the call setting(s) {', '.join(unknown)}; "
                f"it takes stop, {', '.join(sorted(of_a_call))}"
            )
        given = {name: kwargs[name] for name in of_a_call if kwargs.get(name) is not None}
        merged = {name: getattr(self, name) for name in own} | given
        check_call_settings(merged)
        return merged


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Checks stop strings; a single one may be given as a string.

    Raises:
        ValueError: One is empty, or not a string.
    """
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if any(not isinstance(string, str) or not string for string in strings):
        raise ValueError(f"stop={stop!r}: every stop string must be a non-empty string")
    return strings


AnyScorer = Scorer | ScorerFunction | Runnable[Any, Any]
"""Types that `as_scorer` takes; a Runnable gets ``{"question": ..., "steps": [...]}``."""


class RunnableScorer:
    """A Runnable from ``{"question": ..., "steps": [...]}`` to one probability per step, as a `Scorer`."""

    def __init__(self, runnable: Runnable[Any, Any]) -> None:
        self.runnable = runnable

    def score(self, question: str, steps: Sequence[ScorableStep]) -> Any:
        """Invokes the Runnable."""
        return self.runnable.invoke({"question": question, "steps": list(steps)})

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> Any:
        """Invokes the Runnable without blocking."""
        return await self.runnable.ainvoke({"question": question, "steps": list(steps)})


class FunctionScorer:
    """A function ``f(question, steps)``, plain or ``async``, as a `Scorer`."""

    def __init__(self, function: Callable[[str, list[ScorableStep]], Any]) -> None:
        self.function = function
        self._is_async = inspect.iscoroutinefunction(function)

    def score(self, question: str, steps: Sequence[ScorableStep]) -> Any:
        """Calls the function; a coroutine function is refused.

        Raises:
            ScorerError: The function is asynchronous.
        """
        if self._is_async:
            raise ScorerError("the scorer is an async function: call the graph with ainvoke or astream")
        return self.function(question, list(steps))

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> Any:
        """Awaits the function, or calls it in a thread."""
        if self._is_async:
            return await self.function(question, list(steps))
        return await asyncio.to_thread(self.function, question, list(steps))


def as_scorer(scorer: Any) -> Scorer:
    """Returns a `Scorer` as it is, and wraps a Runnable or a function.

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


def common_window(scorers: Sequence[Scorer]) -> int | None:
    """Returns the ``probability_window`` of scorers, in tokens; None if none of them has one.

    Raises:
        ValueError: Two read windows of different lengths, and a writer reports one.
    """
    read = {window for one in scorers if (window := getattr(one, "probability_window", None)) is not None}
    if len(read) > 1:
        raise ValueError(
            f"scorers read windows of {' and '.join(map(str, sorted(read)))} tokens, but a writer reports "
            "one: give them the same window"
        )
    return next(iter(read), None)


def read_scores(answer: Any, expected: int) -> ScorerReply:
    """Checks a scorer's answer: one probability per step.

    Args:
        answer: Return value of the scorer.
        expected: Number of steps it was given.

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
