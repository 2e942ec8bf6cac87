"""Protocols of scorers and chat models, settings of one model call, and checks of what a scorer returns."""

from __future__ import annotations

import asyncio
import inspect
import math
import uuid
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, ClassVar, Literal, Protocol, Self, SupportsIndex, runtime_checkable

from langchain_core.language_models.base import BaseLanguageModel
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable
from langchain_core.runnables.base import RunnableBindingBase
from pydantic import Field
from typing_extensions import TypedDict

from trim_graph.errors import FailedAttempts, ScorerError
from trim_graph.segmentation import StepEnded

StepEnd = Literal["delimiter", "eos", "length"]
"""Why the writer stopped: at the end of a step, at its end of sequence, or at ``max_tokens``."""

StopWhen = Callable[[str], bool]
"""Gets the text of an answer so far; returns whether the answer ends there. The adapters of this package take
one as the call setting ``stop_when`` and answer with ``stop_reason`` `STOPPED`. LangChain's caches answer no
call with one but those of the graph: of any other function nobody knows what it does."""

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


class ScorableStep(str):
    """One step as a scorer gets it: the text without its delimiter, and what is known of it.

    Of an agent it is one turn, written by `trim_graph.agents.render_turn`. Everything that takes a text takes
    a step. As JSON or msgpack, and after a method such as ``strip``, it is the plain text.

    Args:
        text: The text.
        writer: The model that wrote it, or a human.
        mean_token_probability: Mean probability of the step's tokens under its writer; None where the writer
            does not report it.
        lowest_window_probability: Lowest mean probability of a window of its tokens; None unless the scorer
            asked the writers for it, see `trim_graph.adapters.TokenProbability`.

    Attributes:
        is_turn: Whether it is an agent's turn.
        turn: The turn as data; None of a step that is none, or whose message another middleware has removed.
    """

    __slots__ = ("is_turn", "lowest_window_probability", "mean_token_probability", "turn", "writer")

    writer: Literal["small", "large", "human"]
    mean_token_probability: float | None
    lowest_window_probability: float | None
    is_turn: bool
    turn: Turn | None

    def __new__(
        cls,
        text: str,
        writer: Literal["small", "large", "human"] = "small",
        *,
        mean_token_probability: float | None = None,
        lowest_window_probability: float | None = None,
    ) -> Self:
        """Makes a step of a solution; `as_turn` makes an agent's of it."""
        step = super().__new__(cls, text)
        step.writer = writer
        step.mean_token_probability = mean_token_probability
        step.lowest_window_probability = lowest_window_probability
        step.is_turn, step.turn = False, None
        return step

    def as_turn(self, turn: Turn | None) -> Self:
        """Returns the step as an agent's turn, with its data."""
        one = type(self)(
            self,
            self.writer,
            mean_token_probability=self.mean_token_probability,
            lowest_window_probability=self.lowest_window_probability,
        )
        one.is_turn, one.turn = True, turn
        return one

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        """Returns a part of the text.

        Raises:
            TypeError: The key is a name, as in the steps of a run's state.
        """
        if isinstance(key, str):
            raise TypeError(
                f"step[{key!r}]: a step that a scorer gets is its text; writer and mean_token_probability "
                "are attributes, as in step.writer"
            )
        return super().__getitem__(key)


def scorable_step(step: Mapping[str, Any]) -> ScorableStep:
    """Returns a step of a run or a record as a scorer gets it.

    Args:
        step: With ``text``; ``writer`` is the small model where it is absent, as in a discarded draft.
    """
    return ScorableStep(
        step["text"],
        step.get("writer", "small"),
        mean_token_probability=step.get("mean_token_probability"),
        lowest_window_probability=step.get("lowest_window_probability"),
    )


def step_texts(steps: Sequence[str]) -> list[str]:
    """Returns the plain texts of steps.

    Raises:
        TypeError: One is no text, such as a step of a run's state.
    """
    for step in steps:
        if not isinstance(step, str):
            raise TypeError(
                f"a step is a {type(step).__name__}, and a scorer reads texts: ScorableStep(text)"
            )
    return [str(step) for step in steps]


def step_facts(steps: Sequence[str]) -> list[tuple[str, float | None, float | None, Turn | None]]:
    """Returns what a scorer may read of steps beside their texts: writer, token probabilities, turn."""
    return [
        (
            getattr(step, "writer", "small"),
            getattr(step, "mean_token_probability", None),
            getattr(step, "lowest_window_probability", None),
            getattr(step, "turn", None),
        )
        for step in steps
    ]


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
    number("thinking_token_budget", int, lambda v: v >= 0, "a whole number of tokens, 0 or more")
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
        if not isinstance(named.get("stop_when"), StepEnded | None):
            # Any other function is shown by its address, which another one may have later.
            named["stop_when"] = uuid.uuid4().hex
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
        TypeError: It is none of these, takes other arguments than a question and steps, or returns no
            sequence by its annotation.
    """
    if isinstance(scorer, type):
        raise TypeError(f"scorer is the class {scorer.__name__}: pass an instance, {scorer.__name__}(...)")
    if isinstance(scorer, Scorer):
        for name in ("score", "ascore"):
            _check_function(f"{type(scorer).__name__}.{name}", getattr(scorer, name))
        return scorer
    if isinstance(scorer, Runnable):
        if isinstance(_bound(scorer), BaseLanguageModel):
            kind = type(_bound(scorer)).__name__
            raise TypeError(f"scorer is {kind}, a chat model, not a scorer: use LLMJudge(model)")
        return RunnableScorer(scorer)
    if callable(scorer):
        _check_function(getattr(scorer, "__name__", type(scorer).__name__), scorer)
        return FunctionScorer(scorer)
    if hasattr(scorer, "score") or hasattr(scorer, "ascore"):
        missing = "ascore" if hasattr(scorer, "score") else "score"
        raise TypeError(
            f"scorer is a {type(scorer).__name__} without {missing}: it needs both, score(question, steps) "
            "and async ascore(question, steps); or pass a function of (question, steps)"
        )
    named = "; for a chat model by its name LLMJudge(name)" if isinstance(scorer, str) else ""
    raise TypeError(
        f"scorer is {scorer!r}: pass an object with score and ascore, a Runnable, or a function "
        f"of (question, steps){named}"
    )


def _bound(runnable: Any) -> Any:
    """Returns what a Runnable with bound settings runs, the Runnable itself where nothing is bound."""
    while isinstance(runnable, RunnableBindingBase):
        runnable = runnable.bound
    return runnable


def _check_function(name: str, function: Callable[..., Any]) -> None:
    """Checks the parameters and the annotated result of a function that rates steps.

    Raises:
        TypeError: It cannot be called with a question and steps, or is annotated to return one value.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # it has none, as some in C
        return
    try:
        signature.bind("question", [])
    except TypeError as error:
        raise TypeError(
            f"scorer {name}{signature} cannot be called with a question and the steps so far ({error}): give "
            "it two parameters, (question, steps)"
        ) from None
    if list(signature.parameters)[:2] == ["steps", "question"]:
        raise TypeError(f"scorer {name}{signature} has its parameters the other way round: (question, steps)")
    returned = getattr(signature.return_annotation, "__name__", str(signature.return_annotation))
    if returned in _ONE_VALUE:
        raise TypeError(
            f"scorer {name} returns {returned} by its annotation: return a list with one score per step, in "
            "[0, 1], in the order of the steps"
        )


_ONE_VALUE = ("float", "int", "bool", "str", "None")
"""Annotations of a result that cannot hold one score per step."""


def reads_reports(scorer: Scorer) -> bool:
    """Returns whether a scorer may read more of a step than its text, such as its token probabilities.

    A scorer that reads texts alone says so by an attribute, ``reads_reports = False``. Of others, such as a
    user's function, it is not known.
    """
    return bool(getattr(scorer, "reads_reports", True))


def reads_token_probability(*scorers: Scorer) -> bool:
    """Returns whether one of these scorers has the graph ask the small model for token probabilities."""
    return any(getattr(scorer, "reads_token_probability", False) for scorer in scorers)


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
    if reply.scores is None or isinstance(reply.scores, Real):
        raise ScorerError(
            f"the scorer did not return numbers, one for each of {expected} steps, but {reply.scores!r}: "
            "return a list with one score per step, in [0, 1], in the order of the steps"
        )
    try:
        if isinstance(reply.scores, str | bytes | Mapping):
            raise TypeError("not a sequence of numbers")
        scores = [float(score) for score in reply.scores]
    except (TypeError, ValueError) as error:
        raise ScorerError(f"the scorer did not return numbers: {reply.scores!r}") from error
    if len(scores) != expected:
        raise ScorerError(f"the scorer returned {len(scores)} scores for {expected} steps")
    for index, score in enumerate(scores):
        if not 0 <= score <= 1:  # nor is NaN
            raise ScorerError(f"the scorer rated step {index} with {score}; expected a value in [0, 1]")
    return replace(reply, scores=scores)
