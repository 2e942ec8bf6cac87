"""`TrimChatModel`: a trim graph as one LangChain chat model."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, NoReturn
from uuid import UUID

from langchain_core.caches import BaseCache
from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    BaseCallbackHandler,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, get_callback_manager_for_config
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.log_stream import LogStreamCallbackHandler
from langgraph.graph.state import CompiledStateGraph
from pydantic import ConfigDict, Field, PrivateAttr, field_validator
from typing_extensions import Unpack

from .adapters.base import AnyScorer, check_call_settings, stop_strings
from .adapters.by_name import as_chat_model
from .adapters.provider_errors import named_model
from .adapters.responses import CountTokens
from .budget import Budget, Prices
from .budget.ledger import Ledger
from .driver import Progress, adrive, drive
from .graph import create_trim_graph
from .policies.base import AnyPolicy
from .routing import RunView
from .segmentation import separator_of
from .settings import RunSettings, TrimContext
from .state import DecisionRecord, Step, TrimState
from .summary import summarise, usage_of

_LANGCHAIN_KWARGS = {"stream"}  # passed by LangChain itself
_BUFFERED = 64
"""Most nodes of a run whose updates are buffered for a slow reader."""
_AGENT = "create_agent(small, tools, middleware=[TrimMiddleware(large, scorer, policy=...)]"
"""Begins the call that makes an agent of what this chat model was made of."""


class TrimChatModel(BaseChatModel):
    """A trim graph as a chat model: for chains, agents without tools, evaluations.

    Each call is a run of its own: it has its own recursion limit and writes no checkpoint. Only tracers see
    its inner calls, so a usage callback counts the call once, and no draft enters a stream. `stream` yields
    each accepted step. The answer's ``usage_metadata`` sums both models, discarded drafts included;
    ``response_metadata["trim"]`` is the run's summary (`trim_graph.Summary`), and ``"trim_steps"`` has the
    writer, tokens, score, decision and explanation (``why``) of each step.

    Every call takes ``stop``, ``max_tokens``, and ``trim``: settings of this call as in
    `trim_graph.TrimContext`. A stop string ends the run as soon as an accepted step contains it; the summary
    then covers the run so far, and its ``stopped`` is ``stop_string``. ``max_tokens`` is the setting of that
    name: it cuts the step that reaches it.

    Example:
        ```python
        model = create_trim_chat_model(small, large, scorer, policy=threshold(0.9))
        model.invoke("What is 12 * 12?").text
        model.invoke("What is 12 * 13?", trim={"threshold": 0.5})
        model.bind(trim={"policy": "large"}).invoke("What is 12 * 14?")  # small, or a threshold
        ```
    """

    model_config = ConfigDict(extra="forbid")

    graph: Any = Field(repr=False, exclude=True)
    """Built by `create_trim_graph`, without a checkpointer."""
    stop: list[str] | None = None
    """Stop strings of calls without ``stop``."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of an answer's accepted steps, in calls without one; None leaves the graph's setting."""
    cache: BaseCache | bool | None = False
    """Off: LangChain's cache cannot distinguish two graphs. The two models inside may have caches."""
    streaming: bool = False
    """Whether ``invoke`` streams too, as in other LangChain chat models."""

    _call: tuple[list[Any], UUID | None] = PrivateAttr(default=([], None))
    _writers: dict[str, str] = PrivateAttr(default_factory=dict)
    """The two models by name, for `repr`."""

    @field_validator("graph")
    @classmethod
    def _own_run(cls, graph: Any) -> Any:
        if not isinstance(graph, CompiledStateGraph):
            raise ValueError(f"graph is {graph!r}: give one that create_trim_graph built")
        if graph.checkpointer:
            raise ValueError(
                "graph has a checkpointer, but a chat model's calls have no thread: build it without, or "
                "embed the graph itself"
            )
        return graph

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        yield from self._writers.items()
        yield from ((name, value) for name, value in super().__repr_args__() if value is not None)

    @property
    def _llm_type(self) -> str:
        return "trim-graph"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        return LangSmithParams(
            **{**params, "ls_provider": "trim-graph", "ls_model_name": kwargs.get("model") or self.graph.name}
        )

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> NoReturn:
        """Raises an error: the steps of a solution are text.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "TrimChatModel binds no tools: it routes the steps of a solution, which are text. An agent's "
            f"turns are routed by a middleware: {_AGENT}), with TrimMiddleware of trim_graph.agents"
        )

    def with_structured_output(self, schema: Any, **kwargs: Any) -> NoReturn:
        """Raises an error: a solution written step by step has no schema.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "TrimChatModel gives no structured output, since a solution in steps has no schema: have another "
            "model put its answer into the schema, other.with_structured_output(Schema).invoke(answer.text), "
            f"or route the turns of an agent: {_AGENT}, response_format=Schema), with TrimMiddleware of "
            "trim_graph.agents"
        )

    def stream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """Streams each step as it is accepted; see `langchain_core`'s own documentation."""
        model, config = self._traced_copy(config)
        yield from BaseChatModel.stream(model, input, config, **kwargs)

    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """Streams each step as it is accepted; see `langchain_core`'s own documentation."""
        model, config = self._traced_copy(config)
        async with contextlib.aclosing(BaseChatModel.astream(model, input, config, **kwargs)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                yield chunk

    def _traced_copy(self, config: RunnableConfig | None) -> tuple[TrimChatModel, RunnableConfig]:
        """Returns a copy that holds the call's tracers and id, which LangChain does not pass to `_stream`."""
        config = ensure_config(config)
        run_id = config.get("run_id") or uuid.uuid4()
        model = self.model_copy()
        model._call = get_callback_manager_for_config(config).inheritable_handlers, run_id
        return model, {**config, "run_id": run_id}

    def _config(self, run_manager: Any, kind: type[CallbackManager | AsyncCallbackManager]) -> RunnableConfig:
        """Returns the config of the inner run: a child of this call in traces, hidden from other handlers."""
        handlers, run_id = self._call
        if run_manager is not None:
            handlers, run_id = run_manager.inheritable_handlers, run_manager.run_id
        tracers: list[BaseCallbackHandler] = [
            handler
            for handler in handlers
            if isinstance(handler, BaseTracer) and not isinstance(handler, LogStreamCallbackHandler)
        ]
        return {"callbacks": kind(tracers, tracers, run_id)}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return as_result(list(self._stream(messages, stop, run_manager, **kwargs)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return as_result([chunk async for chunk in self._astream(messages, stop, run_manager, **kwargs)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        answer, given = self._answer(stop, kwargs)
        config = self._config(run_manager, CallbackManager)
        # An empty context, so that the run inherits nothing of a surrounding graph: limits, store, callbacks.
        own = contextvars.Context()
        nodes = own.run(drive, self.graph, messages, config, context=given)
        try:
            while not answer.ended and (progress := own.run(next, nodes, None)) is not None:
                yield from answer.take(progress)
        finally:
            own.run(nodes.close)
        yield answer.last()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        answer, given = self._answer(stop, kwargs)
        config = self._config(run_manager, AsyncCallbackManager)
        async with contextlib.aclosing(_run_isolated(self.graph, messages, config, given)) as nodes:
            async for progress in nodes:
                for chunk in answer.take(progress):
                    yield chunk
                if answer.ended:
                    break
        yield answer.last()

    def _answer(self, stop: list[str] | None, kwargs: Mapping[str, Any]) -> tuple[Answer, Any]:
        unknown = sorted(set(kwargs) - {"trim", "max_tokens"} - _LANGCHAIN_KWARGS)
        if unknown:
            raise ValueError(
                f"TrimChatModel does not know the call setting(s) {', '.join(unknown)}; it takes stop, "
                "max_tokens and trim (settings as in TrimContext); other settings are set on the two models"
            )
        check_call_settings(dict(kwargs))
        given, limit = kwargs.get("trim"), kwargs.get("max_tokens")
        settings: Any = given
        if given is None or isinstance(given, Mapping | TrimContext):
            settings = {key: value for key, value in dict(given or {}).items() if value is not None}
            if limit is not None and "max_tokens" in settings:
                raise ValueError("max_tokens and that of trim are both given: they are one limit")
            if (most := limit or settings.get("max_tokens") or self.max_tokens) is not None:
                settings["max_tokens"] = most
            settings = {"trim": settings}
        return Answer(stop_strings(self.stop if stop is None else stop)), settings


def create_trim_chat_model(
    small: Runnable[Any, Any] | str,
    large: Runnable[Any, Any] | str,
    scorer: AnyScorer | None = None,
    *,
    policy: AnyPolicy,
    budget: Budget | None = None,
    prices: Prices | None = None,
    ledger: Ledger | None = None,
    count_tokens: CountTokens | None = None,
    name: str = "trim",
    stop: list[str] | None = None,
    **settings: Unpack[RunSettings],
) -> TrimChatModel:
    r"""Builds a trim graph as a chat model.

    Args:
        small: Chat model that drafts every step; this and the others are as in `create_trim_graph`.
        large: Chat model that rewrites a step if the policy says so.
        scorer: Rates each step.
        policy: Decides when the large model writes.
        budget: Hard limits on the large model; default: none.
        prices: Price table, for the limit on cost and the cost of the summary.
        ledger: Holds the accounts of threads and users that have ``quotas``.
        count_tokens: Returns the number of tokens of a text, for models whose answers have no
            ``usage_metadata``.
        name: Name of the graph, in traces.
        stop: Stop strings of calls without ``stop``.
        **settings: Fields of `Settings`, as in `create_trim_graph`.

    Raises:
        SettingsError: A setting is wrong or missing; the message names it.
        ImportError: The package of a model's provider is not installed; the message names it.

    Example:
        ```python
        from trim_graph import create_trim_chat_model
        from trim_graph.testing import ScriptedChatModel, ScriptedScorer

        small = ScriptedChatModel(script=["12 * 12 is 12 * 10 + 12 * 2.", r"I guess \boxed{142}."])
        large = ScriptedChatModel(script=["12 * 12 = 120 + 24.", r"The answer is \boxed{144}."])
        scorer = ScriptedScorer({r"I guess \boxed{142}.": 0.1})
        model = create_trim_chat_model(small, large, scorer, policy=0.5)
        for chunk in model.stream("What is 12 * 12?", trim={"max_steps": 8}):
            print(chunk.text, end="")  # the second step is the large model's
        ```
    """
    small, large = as_chat_model("small", small), as_chat_model("large", large)
    graph = create_trim_graph(
        small,
        large,
        scorer,
        policy=policy,
        budget=budget,
        prices=prices,
        ledger=ledger,
        count_tokens=count_tokens,
        name=name,
        **settings,
    )
    model = TrimChatModel(graph=graph, stop=stop)
    model._writers = {"small": named_model(small), "large": named_model(large)}
    return model


async def _run_isolated(
    graph: Any, messages: list[BaseMessage], config: RunnableConfig, given: Any
) -> AsyncGenerator[Progress, None]:
    """Yields the progress of a run in a task of its own, and so in an empty context."""
    nodes: asyncio.Queue[Progress | None] = asyncio.Queue(_BUFFERED)

    async def run() -> None:
        try:
            async with contextlib.aclosing(adrive(graph, messages, config, context=given)) as ran:
                async for progress in ran:
                    await nodes.put(progress)
        finally:
            if not asyncio.current_task().cancelling():  # type: ignore[union-attr]
                await nodes.put(None)

    task = asyncio.create_task(run(), context=contextvars.Context())
    try:
        while (progress := await nodes.get()) is not None:
            yield progress
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Answer:
    """Converts the progress of a run to chunks; ends at a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stopped: str | None = None
        self._stops = stops
        self._held = ""
        self._final: AIMessage | None = None
        self._state: TrimState = {}  # type: ignore[typeddict-item]
        self._previous: Step | None = None

    @property
    def ended(self) -> bool:
        """Whether the answer has a stop string."""
        return self.stopped is not None

    def take(self, progress: Progress) -> Iterator[ChatGenerationChunk]:
        """Takes what a node wrote, and yields the new text.

        The stream of messages would serve too, but LangChain then streams every inner call.
        """
        update, self._state = progress
        self._final = update.get("messages", [self._final])[-1]
        if "run" in update:  # the beginning of the run: earlier steps are another run's
            return
        delimiter = self._state["run"]["settings"]["delimiter"]
        for step in update.get("steps", ()):
            before = separator_of(self._previous, delimiter) if self._previous else ""
            self._previous = step
            if text := self._shown(before + step["text"]):
                yield ChatGenerationChunk(message=AIMessageChunk(content=text))
            if self.ended:
                return

    def _shown(self, text: str) -> str:
        """Returns the text up to a stop string, and hold back what may be the beginning of one."""
        if not self._stops:
            return text
        seen = self._held + text
        found = [(seen.index(stop), stop) for stop in self._stops if stop in seen]
        if found:
            place, self.stopped = min(found)
            self._held = ""
            return seen[:place]
        keep = max(map(len, self._stops)) - 1
        cut = len(seen) - keep if keep else len(seen)
        self._held = seen[max(cut, 0) :]
        return seen[: max(cut, 0)]

    def _outcomes(self) -> list[dict[str, Any]]:
        view = RunView(self._state)
        return step_outcomes(view.steps, view.scores, self._state["decisions"])

    def last(self) -> ChatGenerationChunk:
        """Returns the last chunk: the text held back, metadata and usage."""
        final = self._final
        if final is None:
            metadata = {
                "model_name": "trim-graph",
                "finish_reason": "stop",
                "stop_reason": self.stopped,
                "trim": {**summarise(RunView(self._state)), "stopped": "stop_string"},
            }
            usage: UsageMetadata | None = usage_of(self._state["usage"])
        else:
            metadata, usage = final.response_metadata, final.usage_metadata
        return ChatGenerationChunk(
            message=AIMessageChunk(
                content=self._held,
                response_metadata={**metadata, "trim_steps": self._outcomes()},
                usage_metadata=usage,
                chunk_position="last",
            )
        )


def step_outcomes(
    steps: Sequence[Step], scores: Sequence[float | None], decisions: Sequence[DecisionRecord]
) -> list[dict[str, Any]]:
    """Returns who wrote each step, its tokens and score, and what was decided on it; no text."""
    decided = {record["step"]: record for record in decisions}
    outcomes: list[dict[str, Any]] = []
    for index, (step, score) in enumerate(zip(steps, scores, strict=True)):
        outcome: dict[str, Any] = {
            key: value for key, value in step.items() if key in ("writer", "tokens", "why")
        }
        outcome["score"] = score
        for key, value in decided.get(index, {}).items():
            if key == "score":  # of the draft, which was perhaps rejected
                outcome["draft_score"] = value
            elif key not in ("step", "discarded", "part"):
                outcome[key] = value
        outcomes.append(outcome)
    return outcomes


def as_result(chunks: list[ChatGenerationChunk]) -> ChatResult:
    """Returns the chunks of an answer as one result."""
    text = "".join(chunk.text for chunk in chunks)
    last = chunks[-1].message
    assert isinstance(last, AIMessageChunk)
    message = AIMessage(text, response_metadata=last.response_metadata, usage_metadata=last.usage_metadata)
    return ChatResult(generations=[ChatGeneration(message=message)])
