"""The base of the chat models on vLLM, behind a server or on an engine in this process."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from typing import Any, ClassVar, Protocol, TypeVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field

from trim_graph.adapters.base import ExactChatModel, stop_strings
from trim_graph.adapters.event_loop import iterate_sync, run_sync
from trim_graph.adapters.settings import VLLMSettings
from trim_graph.adapters.token_confidence import TOP_LOGPROBS

from .wire import Answer, VLLMCallSettings

CALL_SETTINGS = ("max_tokens", "temperature", "top_p", "seed", "logprobs", "top_logprobs", "timeout")
_OF_A_CALL = (
    *CALL_SETTINGS,
    "probability_window",
    "label_tokens",
    "first_token_entropy",
    "stop_when",
    "retry_tokens",
    "thinking_token_budget",
)

T = TypeVar("T")


class ChatCall(Protocol):
    """One call: `finish` it, or iterate over its `chunks`; then read the rest."""

    answer: Answer

    @property
    def metadata(self) -> dict[str, Any]:
        """The answer's ``response_metadata``."""
        ...

    @property
    def usage(self) -> UsageMetadata:
        """The answer's ``usage_metadata``."""
        ...

    async def finish(self) -> None:
        """Gets the whole answer."""
        ...

    def chunks(self) -> AsyncGenerator[str, None]:
        """Yields the answer's text as it arrives."""
        ...


class VLLMChatModel(VLLMSettings, ExactChatModel):
    """Settings of a call, and LangChain's methods in terms of a `ChatCall`."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    reads_labels: ClassVar[bool] = True
    """Declares that a call may ask for the probabilities of ``label_tokens`` as its first token."""
    takes_retry_tokens: ClassVar[bool] = False
    """Declares that a call may limit what its further attempts generate with ``retry_tokens``."""

    stop: list[str] | None = None
    """Stop strings of calls that name none."""
    top_logprobs: int = Field(default=0, ge=0)
    """Number of alternatives to report for each token; 0 leaves raw log-probabilities out of the answer."""
    timeout: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """Seconds for a whole call; the text written by then is the answer."""
    streaming: bool = False
    """Whether ``invoke`` streams too; LangChain's usual switch."""

    _shown: ClassVar[tuple[str, ...]] = ()
    """Names of further settings that identify a model."""

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("model", *CALL_SETTINGS, "entropy_logprobs", "stop", "chat_template_kwargs", *self._shown)
        return {name: getattr(self, name) for name in names}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "vllm"
        return params

    @abstractmethod
    def _call(self, messages: list[BaseMessage], settings: VLLMCallSettings) -> ChatCall:
        """Prepares a call."""

    async def _await(self, call: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine for an asynchronous caller."""
        return await call

    def _iterate(self, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """Runs a generator for an asynchronous caller."""
        return items

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return run_sync(self._ask(messages, self._settings(stop, kwargs)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await self._await(self._ask(messages, self._settings(stop, kwargs)))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        return iterate_sync(self._chunks(messages, self._settings(stop, kwargs)))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        chunks = self._iterate(self._chunks(messages, self._settings(stop, kwargs)))
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def _ask(self, messages: list[BaseMessage], settings: VLLMCallSettings) -> ChatResult:
        call = self._call(messages, settings)
        await call.finish()
        message = AIMessage(
            content=call.answer.text, response_metadata=call.metadata, usage_metadata=call.usage
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _chunks(
        self, messages: list[BaseMessage], settings: VLLMCallSettings
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        call = self._call(messages, settings)
        async with contextlib.aclosing(call.chunks()) as chunks:
            async for chunk in chunks:
                yield ChatGenerationChunk(message=AIMessageChunk(content=chunk))
        last = AIMessageChunk(
            content="", response_metadata=call.metadata, usage_metadata=call.usage, chunk_position="last"
        )
        yield ChatGenerationChunk(message=last)

    def _settings(self, stop: list[str] | None, kwargs: dict[str, Any]) -> VLLMCallSettings:
        merged = self._merged_settings(kwargs, CALL_SETTINGS, _OF_A_CALL)
        if merged.get("probability_window") is not None:
            merged["logprobs"] = True
        labels = tuple(merged.pop("label_tokens", ()))
        if labels:
            merged |= {"logprobs": True, "top_logprobs": merged["top_logprobs"] or TOP_LOGPROBS}
        return VLLMCallSettings(
            label_tokens=labels,
            stop=stop_strings(self.stop if stop is None else stop),
            entropy_logprobs=self.entropy_logprobs if merged.get("first_token_entropy") else 0,
            **merged,
        )
