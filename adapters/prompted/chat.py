"""A chat model that cannot continue a text, asked by prompt for the next step instead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextvars import Context
from typing import Any, ClassVar

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config
from pydantic import Field, field_validator

from trim_graph.adapters.base import stop_strings
from trim_graph.adapters.capabilities import call_names, chat_model_inside, continues_exactly, unaskable
from trim_graph.adapters.responses import (
    TokenCounter,
    classify,
    configured_name,
    cut_short,
    failed_attempts,
    model_name,
    provider_reason,
    refusal,
    reports_usage,
    span_probabilities,
)
from trim_graph.adapters.token_confidence import lowest_window_mean
from trim_graph.adapters.tokenization import without_reasoning
from trim_graph.errors import ChatModelContractError
from trim_graph.segmentation import DEFAULT_DELIMITER

from .protocol import DONE, PromptedStep, read_step, request

_AS_KNOWN = "as known"


class ContinueByPrompt(BaseChatModel):
    r"""Any chat model, asked by prompt to continue a solution: for hosted models and plain ``ChatOpenAI``.

    A conversation that ends in an AIMessage gets a human message behind it that asks for the next step only
    or, in a call without ``stop``, for all that remains. The answer is read by the protocol of
    `trim_graph.adapters.prompted.protocol`: marks show where the step begins and whether the solution ends,
    repeated steps are dropped, and the step ends at the stop string even where the model writes on. All other
    text stays as it is written, with its indentation and line breaks. So the answer keeps the contract of
    step-level routing, ``response_metadata["stop_reason"]`` included; ``response_metadata["continuation"]``
    is ``"prompt"``.

    ``usage_metadata`` is that of the whole call: the question asked by prompt, and what was written but
    dropped. Settings of the call go to the model: ``max_tokens`` and ``timeout`` by its names for them,
    others as they are; ``stop`` only with ``send_stop=True``. The model's own call shows up in no callback
    of the outer one, so nothing is counted or streamed twice. Of a model that reports its ``logprobs`` as
    ``ChatOpenAI`` does, the answer has a ``mean_token_probability``: of the text kept; and with the call
    setting ``probability_window`` a ``lowest_window_probability``.

    `create_trim_graph` wraps a model that does not say ``continues_exactly = True`` by itself, or one whose
    fallbacks or configurable alternatives does not. Of a call's config the model gets ``configurable``, so
    a model of ``init_chat_model(configurable_fields=...)`` will do.

    Raises:
        ModelServerError: The model wrote nothing for another reason than that it had ended (a filter, a
            refusal); by a call.

    Example:
        ```python
        model = ContinueByPrompt(ChatOpenAI(model="gpt-4.1-mini", temperature=0))
        step = model.invoke([("human", "What is 12 * 12?"), ("ai", "First step.\n\n")], stop=["\n\n"])
        ```
    """

    continues_exactly: ClassVar[bool] = True
    """It keeps the contract as far as a prompt can."""
    reports_window: ClassVar[bool] = True

    model: Runnable[Any, Any]
    """The chat model; may be bound, configured or retried."""
    delimiter: str = Field(default=DEFAULT_DELIMITER, min_length=1)
    """Separator of steps."""
    max_tokens_name: str | None = _AS_KNOWN
    """The model's name for ``max_tokens``; None does not pass it. Default: ``max_tokens``."""
    timeout_name: str | None = _AS_KNOWN
    """The model's name for ``timeout``; None does not pass it. Default: ``timeout`` for OpenAI's, else no."""
    send_stop: bool = False
    """Whether the model gets ``stop`` too. It saves text beyond the step. But reasoning models refuse it, and
    a model that first repeats earlier steps stops at the first of them."""
    counter: TokenCounter | None = Field(default=None, exclude=True, repr=False)
    """Counts the tokens of an answer whose model does not report them; `create_trim_graph` gives one."""
    cache: BaseCache | bool | None = False
    """LangChain's cache serves the inner model only."""

    def __init__(self, model: Runnable[Any, Any], **settings: Any) -> None:
        super().__init__(model=model, **settings)  # type: ignore[call-arg]

    @field_validator("model")
    @classmethod
    def _askable(cls, model: Runnable[Any, Any]) -> Runnable[Any, Any]:
        if isinstance(chat_model_inside(model), cls):
            raise ValueError("model is a ContinueByPrompt already")
        if (why := unaskable(model)) is not None:
            raise ValueError(why)
        return model

    def prompt(self, messages: Sequence[BaseMessage], *, until_eos: bool = False) -> list[BaseMessage]:
        """Returns the messages that the model is really sent.

        Args:
            messages: The conversation; a trailing AIMessage holds the steps so far.
            until_eos: Whether all that remains is asked for, as in a call without ``stop``.
        """
        asked, written = _split([without_reasoning(message) for message in messages])
        question = request(written, self.delimiter, until_eos=until_eos)
        if written.strip():
            # Where a step was cut off, its last blanks show where it continues.
            return [*asked, AIMessage(written.removesuffix(self.delimiter)), HumanMessage(question)]
        if asked and isinstance(asked[-1], HumanMessage):
            said, added = asked[-1].content, f"\n\n{question}"
            content = said + added if isinstance(said, str) else [*said, {"type": "text", "text": added}]
            return [*asked[:-1], asked[-1].model_copy(update={"content": content})]
        return [*asked, HumanMessage(question)]

    def may_send(self, messages: Sequence[BaseMessage]) -> list[list[BaseMessage]]:
        """Returns the prompts that a call may really send; their size bounds its cost."""
        return [self.prompt(messages), self.prompt(messages, until_eos=True)]

    @property
    def _llm_type(self) -> str:
        return "trim-graph-continue-by-prompt"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        inside = chat_model_inside(self.model)
        own = {"delimiter": self.delimiter, "send_stop": self.send_stop}
        return {**own, "model": inside._identifying_params if inside else type(self.model).__name__}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        inside = chat_model_inside(self.model)
        params = super()._get_ls_params(stop=stop, **kwargs)
        if inside is not None:
            params = inside._get_ls_params(stop=stop, **kwargs)
        return {"ls_model_name": configured_name(self.model), **params}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        stops = stop_strings(stop)
        asked = self.prompt(messages, until_eos=self.delimiter not in stops)
        window = kwargs.pop("probability_window", None)
        settings = self._settings(stops, kwargs)
        # A separate context: callbacks that count or stream tokens see the outer call already.
        answer = Context().run(self.model.invoke, asked, _own_config(), **settings)
        return self._result(answer, messages, asked, stops, window)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        stops = stop_strings(stop)
        asked = self.prompt(messages, until_eos=self.delimiter not in stops)
        window = kwargs.pop("probability_window", None)
        settings = self._settings(stops, kwargs)
        call = self.model.ainvoke(asked, _own_config(), **settings)
        answer = await asyncio.create_task(_awaited(call), context=Context())
        if self.counter is None or not isinstance(answer, AIMessage) or reports_usage(answer):
            return self._result(answer, messages, asked, stops, window)
        # The counter's tokenizer may have to be loaded first.
        return await asyncio.to_thread(self._result, answer, messages, asked, stops, window)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        yield _one_chunk(self._generate(messages, stop, **kwargs))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        yield _one_chunk(await self._agenerate(messages, stop, **kwargs))

    def _settings(self, stops: tuple[str, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Returns the call's settings by the model's names; those that are None are the model's own."""
        given = {name: value for name, value in kwargs.items() if value is not None and name != "stream"}
        known = call_names(self.model)
        for own, named in (("max_tokens", self.max_tokens_name), ("timeout", self.timeout_name)):
            value, name = given.pop(own, None), getattr(known, own) if named == _AS_KNOWN else named
            if value is not None and name is not None:
                given[name] = value
        return {**given, "stop": list(stops)} if stops and self.send_stop else given

    def _result(
        self,
        answer: Any,
        messages: Sequence[BaseMessage],
        asked: Sequence[BaseMessage],
        stops: tuple[str, ...],
        window: int | None,
    ) -> ChatResult:
        if not isinstance(answer, AIMessage):
            raise ChatModelContractError(
                f"the model in ContinueByPrompt returned {type(answer).__name__}; a chat model returns an "
                "AIMessage"
            )
        said, truncated = str(answer.text), cut_short(answer)
        if (error := refusal(answer)) is not None:
            raise error
        found = read_step(said, _split(messages)[1], self.delimiter, stops=stops, truncated=truncated)
        if self.send_stop and self.delimiter in stops and not said.strip() and not truncated:
            # It may have begun with the stop string itself: not a sign that the solution is over.
            found = PromptedStep("", "delimiter", stops[0], ())
        reason = provider_reason(answer.response_metadata)
        finish = "length" if found.end == "length" else "stop"
        if reason is not None and classify(reason) == "unknown" and found.end == "eos" and DONE not in said:
            finish = reason  # only the mark says that the solution is over
        if answer.tool_calls or answer.invalid_tool_calls:
            finish = "tool_calls"  # no text is not the end of the solution then
        metadata: dict[str, Any] = {
            "model_name": model_name(answer, self.model),
            "finish_reason": finish,
            "stop_reason": found.stop,
            "continuation": "prompt",
        }
        if probabilities := span_probabilities(answer, said, found.spans):
            metadata["mean_token_probability"] = sum(probabilities) / len(probabilities)
            if window is not None:
                metadata["lowest_window_probability"] = lowest_window_mean(probabilities, window)
        metadata |= failed_attempts(answer)
        usage = answer.usage_metadata
        if self.counter is not None and not reports_usage(answer):
            usage, metadata["usage_estimated"] = self.counter.usage(asked, answer), self.counter.name
        message = AIMessage(found.text, response_metadata=metadata, usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])


def as_writer(
    model: Runnable[Any, Any], delimiter: str, counter: TokenCounter | None = None
) -> Runnable[Any, Any]:
    """Returns a model that continues exactly as it is, and any other as a `ContinueByPrompt`.

    Args:
        model: The model.
        delimiter: Separator of steps.
        counter: For a model that does not report its tokens, and is asked by prompt.

    Raises:
        ValueError: It cannot be asked by prompt either.
    """
    if isinstance(model, ContinueByPrompt) and model.counter is None and counter is not None:
        return model.model_copy(update={"counter": counter})
    if continues_exactly(model):
        return model
    return ContinueByPrompt(model, delimiter=delimiter, counter=counter)


def _own_config() -> RunnableConfig:
    """Returns the inner call's config: no callbacks of the outer one, but its user's choice of a model."""
    given = ensure_config().get("configurable", {})
    chosen = {name: value for name, value in given.items() if not name.startswith("__")}
    return RunnableConfig(callbacks=[], configurable=chosen)


async def _awaited(call: Any) -> Any:
    return await call


def _split(messages: Sequence[BaseMessage]) -> tuple[list[BaseMessage], str]:
    """Returns the conversation, and the steps so far at its end."""
    if messages and isinstance(messages[-1], AIMessage):
        return list(messages[:-1]), str(messages[-1].text)
    return list(messages), ""


def _one_chunk(result: ChatResult) -> ChatGenerationChunk:
    message = result.generations[0].message
    assert isinstance(message, AIMessage)
    return ChatGenerationChunk(
        message=AIMessageChunk(
            content=message.content,
            response_metadata=message.response_metadata,
            usage_metadata=message.usage_metadata,
            chunk_position="last",
        )
    )
