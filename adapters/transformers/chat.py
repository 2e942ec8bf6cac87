"""A chat model that runs in this process with transformers and continues a trailing AIMessage exactly."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import queue
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import PrivateAttr

from trim_graph.adapters.base import CallSettings, ExactChatModel, stop_strings
from trim_graph.adapters.model_source import shared_engine
from trim_graph.adapters.settings import TransformersSettings
from trim_graph.adapters.tokenization import takes_system_role
from trim_graph.errors import ContextLengthError

from .batching import Generated, GenerationJob

if TYPE_CHECKING:
    import torch

    from .generation import GenerationEngine

_OWN_SETTINGS = ("max_tokens", "temperature", "top_p", "seed", "logprobs")
_CALL_SETTINGS = (
    *_OWN_SETTINGS,
    "probability_window",
    "label_tokens",
    "first_token_entropy",
    "timeout",
    "stop_when",
)


class ChatTransformers(TransformersSettings, ExactChatModel):
    r"""A local chat model: weights in this process, calls batched, no server.

    A conversation that ends in an AIMessage is continued right after the bytes of that message. Text that
    looks like a special token stays text everywhere in the conversation. An earlier turn's reasoning is left
    out; a chat template without a role for system messages gets them in front of the human message that
    follows. Calls made at the same time, from threads or asyncio tasks, run as one batch. Instances with the
    same model, device and dtype share weights and batches.

    The answer's ``response_metadata`` holds ``model_name``, ``finish_reason`` (``"stop"`` or ``"length"``),
    ``stop_reason`` (the stop string met, or None at the end of sequence, as vLLM reports it),
    ``timed_out=True`` where a ``timeout`` cut it, with ``logprobs=True`` ``mean_token_probability``: the
    mean probability of the generated tokens under the model's own distribution, before temperature and
    top_p, without the end of sequence unless that is the only token; with ``probability_window`` also
    ``lowest_window_probability``, the lowest mean of so many of them in a row
    (`trim_graph.adapters.token_confidence.lowest_window_mean`); with ``first_token_entropy=True`` that of
    the first token under the same distribution, in nats; and with ``label_tokens`` (texts such as
    ``("yes", "no")``) their ``label_probabilities`` as the first token. ``usage_metadata`` counts every
    generated token, as vLLM does: those of the stop string and the end of sequence too.

    Every call takes ``stop`` and, by keyword, ``max_tokens``, ``temperature``, ``top_p``, ``seed``,
    ``logprobs``, ``probability_window``, ``label_tokens``, ``first_token_entropy``, ``timeout`` (seconds in
    the queue and in generation, without loading; the answer ends at the next token) and ``stop_when`` (a
    function of the text so far that ends the answer; its ``stop_reason`` is ``"stop_when"``). The model's own
    generation_config is asked for its end-of-sequence ids only.

    Example:
        ```python
        model = ChatTransformers(model="Qwen/Qwen2.5-Math-1.5B-Instruct", device="auto", dtype="auto")
        step = model.invoke([("human", "What is 12 * 12?"), ("ai", "First step.\n\n")], stop=["\n\n"])
        ```
    """

    reads_labels: ClassVar[bool] = True
    """Declares that a call may ask for the probabilities of ``label_tokens`` as its first token."""
    caches_prefixes: ClassVar[bool] = False
    """Declares that each call reads its whole prompt, so that ``warm_large`` would save nothing."""

    _engine: Any = PrivateAttr(default=None)

    def count_prompt_tokens(self, messages: Sequence[BaseMessage]) -> int:
        """Returns the exact number of prompt tokens of a call with these messages. Loads the model.

        Raises:
            ValueError: The conversation is empty or holds something that is not text.
        """
        return len(self._load().encode(messages))

    def takes_system_role(self) -> bool:
        """Returns whether the chat template has a system role; else system texts precede a human message.

        Loads the model.
        """
        return takes_system_role(self._load().tokenizer, {})

    def get_token_ids(self, text: str) -> list[int]:
        """Returns token ids of a text, in which nothing counts as a special token."""
        return self._load().guard.encode("", text)

    @property
    def _llm_type(self) -> str:
        return "trim-graph-transformers"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("model", "device", "dtype", "max_tokens", "temperature", "top_p", "seed", "logprobs")
        return {name: getattr(self, name) for name in names}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "transformers"
        return params

    def __getstate__(self) -> dict[Any, Any]:
        """Pickles the settings; the weights are loaded anew on the other side."""
        state = super().__getstate__()
        private = {**(state["__pydantic_private__"] or {}), "_engine": None}
        return {**state, "__pydantic_private__": private}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        job = self._submit(messages, self._settings(stop, kwargs))
        try:
            return self._result(job, job.future.result())
        finally:
            job.future.cancel()

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        job = await self._asubmit(messages, self._settings(stop, kwargs))
        # Cancelling this task cancels the future, which ends the row at the next token.
        return self._result(job, await asyncio.wrap_future(job.future))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chunks: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        job = self._submit(messages, self._settings(stop, kwargs), chunks.put)
        job.future.add_done_callback(lambda _: chunks.put(None))
        try:
            while (chunk := chunks.get()) is not None:
                yield ChatGenerationChunk(message=AIMessageChunk(content=chunk))
            yield self._last_chunk(job, job.future.result())
        finally:
            job.future.cancel()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        chunks: asyncio.Queue[str | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(chunk: str | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its reader with it
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)

        job = await self._asubmit(messages, self._settings(stop, kwargs), put)
        job.future.add_done_callback(lambda _: put(None))
        try:
            while (chunk := await chunks.get()) is not None:
                yield ChatGenerationChunk(message=AIMessageChunk(content=chunk))
            yield self._last_chunk(job, job.future.result())
        finally:
            job.future.cancel()

    def _load(self) -> GenerationEngine:
        if self._engine is None:
            self._engine = shared_engine(_build_engine, self.model, self.device, self.dtype)
        engine: GenerationEngine = self._engine
        return engine

    def _submit(
        self,
        messages: list[BaseMessage],
        settings: CallSettings,
        on_text: Callable[[str], None] | None = None,
    ) -> GenerationJob:
        engine = self._load()
        with engine.worker.preparing():
            job = self._job(engine, messages, settings, on_text)
            engine.worker.submit(job)
        return job

    async def _asubmit(
        self,
        messages: list[BaseMessage],
        settings: CallSettings,
        on_text: Callable[[str], None] | None = None,
    ) -> GenerationJob:
        engine = self._engine or await asyncio.to_thread(self._load)
        # Tokenising a long prompt takes milliseconds: not on the loop. Submitted only here, so that a task
        # cancelled meanwhile leaves no job behind.
        with engine.worker.preparing():
            job = await asyncio.to_thread(self._job, engine, messages, settings, on_text)
            engine.worker.submit(job)
        return job

    def _job(
        self,
        engine: GenerationEngine,
        messages: list[BaseMessage],
        settings: CallSettings,
        on_text: Callable[[str], None] | None,
    ) -> GenerationJob:
        prompt = engine.encode(messages)
        if engine.max_positions is not None:
            room = engine.max_positions - len(prompt)
            if room < 1:
                raise ContextLengthError(
                    f"the prompt has {len(prompt)} tokens; {self.model} takes {engine.max_positions - 1} at "
                    f"most (max_position_embeddings={engine.max_positions}, and one token must fit behind it)"
                )
            settings = dataclasses.replace(settings, max_tokens=min(settings.max_tokens, room))
        labels = engine.label_ids(settings.label_tokens) if settings.label_tokens else None
        return GenerationJob(
            prompt, settings, batch_limit=self.max_batch_size, on_text=on_text, labels=labels
        )

    def _settings(self, stop: list[str] | None, kwargs: dict[str, Any]) -> CallSettings:
        merged = self._merged_settings(kwargs, _OWN_SETTINGS, _CALL_SETTINGS)
        if merged.get("probability_window") is not None:
            merged["logprobs"] = True
        merged["label_tokens"] = tuple(merged.get("label_tokens", ()))
        return CallSettings(stop=stop_strings(stop), **merged)

    def _metadata(self, done: Generated) -> dict[str, Any]:
        metadata: dict[str, Any] = {
            "model_name": self.model,
            "finish_reason": done.finish_reason,
            "stop_reason": done.stop_reason,
        }
        if done.mean_token_probability is not None:
            metadata["mean_token_probability"] = done.mean_token_probability
        if done.lowest_window_probability is not None:
            metadata["lowest_window_probability"] = done.lowest_window_probability
        if done.first_token_entropy is not None:
            metadata["first_token_entropy"] = done.first_token_entropy
        if done.label_probabilities is not None:
            metadata |= {"label_probabilities": done.label_probabilities, "label_tokens_exact": True}
        if self._load().starts_in_reasoning:
            metadata["starts_in_reasoning"] = True
        if done.timed_out:
            metadata["timed_out"] = True
        return metadata

    def _result(self, job: GenerationJob, done: Generated) -> ChatResult:
        message = AIMessage(
            content=done.text, response_metadata=self._metadata(done), usage_metadata=_usage(job, done)
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _last_chunk(self, job: GenerationJob, done: Generated) -> ChatGenerationChunk:
        message = AIMessageChunk(
            content="",
            response_metadata=self._metadata(done),
            usage_metadata=_usage(job, done),
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message)


def _build_engine(model: str, device: torch.device, dtype: str) -> GenerationEngine:
    from .generation import GenerationEngine

    return GenerationEngine(model, device, dtype)


def _usage(job: GenerationJob, done: Generated) -> UsageMetadata:
    read, written = len(job.prompt), done.output_tokens
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
