"""A chat model on a vLLM engine in this process that continues a trailing AIMessage exactly; its calls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, TypeVar

from langchain_core.messages import BaseMessage
from langchain_core.messages.ai import UsageMetadata
from pydantic import PrivateAttr, field_validator, model_validator

from trim_graph.adapters.event_loop import iterate_aside, run_aside
from trim_graph.adapters.responses import classify
from trim_graph.adapters.settings import VLLMEngineSettings
from trim_graph.adapters.tokenization import encode_chat, takes_system_role
from trim_graph.errors import ContextLengthError, FailedAttempts, ModelServerError

from .chat_base import CALL_SETTINGS, VLLMChatModel
from .engine import EngineHandle, EngineSpec, EngineUser, VLLMEngine, engine_options, vllm_module
from .label_tokens import find_label_ids, label_metadata, name_of
from .wire import Answer, Lost, VLLMCallSettings, metadata_of, usage_of

T = TypeVar("T")

_OF_CALLS = {
    *(*CALL_SETTINGS, "stop", "thinking_token_budget"),
    *("n", "output_kind", "detokenize", "prompt_logprobs"),
}
_REASONING = {"reasoning_parser", "reasoning_config"}
"""Arguments of an engine that let it find reasoning."""


class ChatVLLMEngine(EngineUser, VLLMEngineSettings, VLLMChatModel):
    r"""A model on vLLM's asynchronous engine in this process, without a server.

    Otherwise it is as `ChatVLLM`: a conversation that ends in an AIMessage is continued right after the bytes
    of that message, the same call settings, ``response_metadata`` and ``usage_metadata``. Token ids are made
    here, so text that looks like a special token stays text. The ``timeout`` of a call does not count the
    engine's start.

    The engine starts at the first call, or with `start`. Adapters with the same model, memory and options
    share one, and it ends with the last of them, with `close`, or with this process, however that ends. It
    runs on its own event loop: calls may come from any thread and from any number of event loops. Cancelling
    a call, or leaving a stream, aborts the request.

    vLLM's log goes to stderr from level ERROR on, unless ``VLLM_LOGGING_LEVEL`` and ``VLLM_LOGGING_STREAM``
    say otherwise; its processes are started by ``spawn``, and a script needs no ``if __name__ == "__main__"``
    for that.

    Raises:
        ImportError: vllm is not installed; by a call.
        ContextLengthError: The prompt fills the model's context; by a call.
        ValueError: vLLM refuses an option; by a call.
        ModelServerError: The engine did not start, has died, or was closed; by a call. The next call starts
            it anew.

    Example:
        ```python
        small = ChatVLLMEngine(model="Qwen/Qwen2.5-1.5B-Instruct", gpu_memory_utilization=0.2)
        step = small.invoke([("human", "What is 12 * 12?"), ("ai", "First step.\n\n")], stop=["\n\n"])
        ```
    """

    _shown: ClassVar[tuple[str, ...]] = (
        "dtype",
        "gpu_memory_utilization",
        "kv_cache_gib",
        "max_model_len",
        "engine_args",
        "sampling_params",
    )
    _handle: EngineHandle = PrivateAttr()

    @field_validator("sampling_params")
    @classmethod
    def _further(cls, params: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(_OF_CALLS & set(params)):
            raise ValueError(f"sampling_params may not hold {', '.join(taken)}: the adapter sets them itself")
        return params

    @model_validator(mode="after")
    def _reasoning_is_configured(self) -> Self:
        if self.min_answer_tokens is not None and not _REASONING & set(self.engine_args):
            raise ValueError(
                f"min_answer_tokens={self.min_answer_tokens} needs an engine that knows reasoning: give "
                'engine_args {"reasoning_parser": ...} or {"reasoning_config": ...}'
            )
        return self

    def model_post_init(self, context: Any) -> None:
        """Describes the engine; nothing is started."""
        self._handle = EngineHandle(EngineSpec(self.model, "generate", engine_options(self)))

    def close(self) -> None:  # noqa: D102 - see `EngineUser`
        self._handle.release()

    def count_prompt_tokens(self, messages: Sequence[BaseMessage]) -> int:
        """Returns the exact number of prompt tokens of a call with these messages. Does not start the engine.

        Raises:
            ValueError: The conversation is empty or holds something that is not text.
        """
        return len(prompt_tokens(self._handle.engine(), messages, self.chat_template_kwargs))

    def takes_system_role(self) -> bool:
        """Returns whether the chat template has a system role; else system texts precede a human message.

        Does not start the engine.
        """
        return takes_system_role(self._handle.engine().tokenizer, self.chat_template_kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """Returns token ids of a text without special tokens. Does not start the engine."""
        return self._handle.engine().guard.encode("", text)

    @property
    def _llm_type(self) -> str:
        return "trim-graph-vllm-engine"

    def __getstate__(self) -> dict[Any, Any]:
        """Pickles the settings; the engine is started anew on the other side."""
        return {**super().__getstate__(), "__pydantic_private__": None}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Restores the settings."""
        super().__setstate__({**state, "__pydantic_private__": {}})
        self.model_post_init(None)

    async def _start(self) -> None:
        await self._handle.engine().max_model_len()

    def _call(self, messages: list[BaseMessage], settings: VLLMCallSettings) -> EngineCall:
        return EngineCall(self._handle, messages, settings, self.chat_template_kwargs, self.sampling_params)

    async def _await(self, call: Coroutine[Any, Any, T]) -> T:
        return await run_aside(call)

    def _iterate(self, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        return iterate_aside(items)


_LEAST_LOGPROB = -9999.0
"""Value for minus infinity, which JSON cannot write; vLLM's server writes the same."""


class EngineCall:
    """One call; `finish` it, or iterate over its `chunks`, on the background loop.

    Args:
        handle: Brings the engine.
        messages: The conversation.
        settings: Settings of the call.
        template_kwargs: Further arguments of the chat template.
        sampling_params: Further fields of vLLM's ``SamplingParams``.

    Attributes:
        answer: The answer so far.
    """

    def __init__(
        self,
        handle: EngineHandle,
        messages: Sequence[BaseMessage],
        settings: VLLMCallSettings,
        template_kwargs: Mapping[str, Any],
        sampling_params: Mapping[str, Any],
    ) -> None:
        self._handle = handle
        self._messages = messages
        self._settings = settings
        self._template_kwargs = template_kwargs
        self._sampling_params = sampling_params
        self._model = ""
        self._starts_in_reasoning = False
        self._labels: dict[int, str] = {}
        self.answer = Answer(usage_known=True, stop_field="stop_reason")

    @property
    def metadata(self) -> dict[str, Any]:
        """The answer's ``response_metadata``."""
        metadata = metadata_of(
            self.answer, self._settings, Lost(), self._model, starts_in_reasoning=self._starts_in_reasoning
        )
        return metadata | (label_metadata(self.answer.logprobs, self._labels) if self._labels else {})

    @property
    def usage(self) -> UsageMetadata:
        """The answer's ``usage_metadata``."""
        return usage_of(self.answer, Lost())

    async def finish(self) -> None:
        """Gets the whole answer.

        Raises:
            ValueError: The conversation cannot be continued.
            ContextLengthError: It fills the model's context.
            ModelServerError: The engine did not start, has died, or was closed.
        """
        async for _ in self._pieces(streaming=False):
            pass

    def chunks(self) -> AsyncGenerator[str, None]:
        """Yields the answer's text as it arrives; raises what `finish` does."""
        return self._pieces(streaming=True)

    async def _pieces(self, *, streaming: bool) -> AsyncGenerator[str, None]:
        outputs = await self._begin(streaming)
        # The engine's start, which may take minutes, does not count.
        timeout = self._settings.timeout
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        async with contextlib.aclosing(outputs):
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        output = await anext(outputs, None)
                except TimeoutError:
                    self.answer.cut()
                    return
                except ModelServerError as error:
                    error.attempts = self._lost(streaming)
                    raise
                if output is None:
                    break
                if chunk := self._take(output):
                    yield chunk
                    if self.answer.stopped_by(self._settings.stop_when):
                        return  # leaving the engine's outputs aborts the request
        if self.answer.finish_reason is None or classify(self.answer.finish_reason) == "failed":
            broken = ModelServerError(f"the vLLM engine of {self._model} broke off its answer", begun=True)
            broken.attempts = self._lost(streaming)
            raise broken

    async def _begin(self, streaming: bool) -> AsyncGenerator[Any, None]:
        engine = self._handle.engine()
        self._model = engine.spec.model
        prompt = await asyncio.to_thread(prompt_tokens, engine, self._messages, self._template_kwargs)
        self._starts_in_reasoning = engine.starts_in_reasoning(self._template_kwargs)
        longest = await engine.max_model_len()
        if len(prompt) >= longest:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens; {self._model} takes {longest - 1} at most "
                f"(max_model_len={longest}, and one token must fit behind it)"
            )
        room = min(self._settings.max_tokens, longest - len(prompt))
        self.answer.input_tokens = len(prompt)
        # Output by output costs more, but leaves an answer at the time limit.
        whole = not streaming and self._settings.timeout is None and self._settings.stop_when is None
        self._labels = await _label_ids(engine, self._settings.label_tokens)
        settings = replace(self._settings, max_tokens=room)
        params = sampling_params(settings, self._sampling_params, whole=whole, labels=list(self._labels))
        return engine.generate(prompt, params)

    def _take(self, output: Any) -> str:
        answer, choice = self.answer, output.outputs[0]
        answer.begun = True
        if output.num_cached_tokens is not None and answer.cached_tokens is None:
            answer.cached_tokens = output.num_cached_tokens
        answer.output_tokens += len(choice.token_ids)
        answer.text += choice.text
        if self._labels:
            answer.logprobs += entries_by_id(choice)
        else:
            answer.logprobs += logprob_entries(
                choice, max(self._settings.top_logprobs, self._settings.entropy_logprobs)
            )
        if choice.finish_reason is not None:
            answer.finish_reason = choice.finish_reason
            # A token id is one of several ends of sequence that the model's generation_config names.
            answer.stop_reason = choice.stop_reason if isinstance(choice.stop_reason, str) else None
        return str(choice.text)

    def _lost(self, streaming: bool) -> FailedAttempts:
        return FailedAttempts(
            count=1,
            input_tokens=self.answer.input_tokens,
            output_tokens=self.answer.output_tokens,
            unknown=int(not streaming and self._settings.timeout is None),
        )


def prompt_tokens(
    engine: VLLMEngine, messages: Sequence[BaseMessage], template_kwargs: Mapping[str, Any]
) -> list[int]:
    """Returns token ids of a conversation; blocks for the tokenizer, but does not start the engine."""
    return encode_chat(messages, engine.tokenizer, engine.guard, template_kwargs)


async def _label_ids(engine: VLLMEngine, labels: Sequence[str]) -> dict[int, str]:
    async def tokenize(text: str) -> list[int]:
        return engine.guard.encode("", text)

    async def text_of(tokens: list[int]) -> str:
        return str(engine.tokenizer.decode(tokens))

    return await find_label_ids(labels, tokenize, text_of)


def sampling_params(
    settings: VLLMCallSettings, further: Mapping[str, Any], *, whole: bool, labels: Sequence[int] = ()
) -> Any:
    """Returns the settings as vLLM's ``SamplingParams``.

    Args:
        settings: Settings of the call.
        further: Fields beyond them.
        whole: Whether only the finished answer is wanted.
        labels: Tokens to read, in place of the likeliest ones.

    Raises:
        ValueError: vLLM does not know a field, or refuses a value.
    """
    vllm = vllm_module("vllm.sampling_params")
    kinds = vllm.RequestOutputKind
    tops = max(settings.top_logprobs, settings.entropy_logprobs)
    wants_logprobs = settings.logprobs or tops > 0
    try:
        return vllm.SamplingParams(
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            stop=list(settings.stop),
            thinking_token_budget=settings.thinking_token_budget,
            logprobs=tops if wants_logprobs and not labels else None,
            logprob_token_ids=list(labels) or None,
            output_kind=kinds.FINAL_ONLY if whole else kinds.DELTA,
            **further,
        )
    except (TypeError, vllm_module("vllm.exceptions").VLLMClientError) as error:
        given = f"sampling_params={dict(further)!r}: " if further else ""
        raise ValueError(f"vLLM refuses the call: {given}{error}") from error


def logprob_entries(choice: Any, top: int) -> list[dict[str, Any]]:
    """Returns log-probabilities of an output's tokens, in the form of vLLM's chat endpoint.

    Args:
        choice: vLLM's ``CompletionOutput``.
        top: Number of alternatives for each token.
    """
    entries = []
    for token, by_token in zip(choice.token_ids, choice.logprobs or (), strict=False):
        ranked = sorted(by_token.values(), key=lambda one: -one.logprob)
        entries.append({**_entry(by_token[token]), "top_logprobs": [_entry(one) for one in ranked[:top]]})
    return entries


def entries_by_id(choice: Any) -> list[dict[str, Any]]:
    """Returns log-probabilities of an output's tokens and of all read beside them, named by their ids."""
    return [
        {
            "token": name_of(token),
            "logprob": max(by_token[token].logprob, _LEAST_LOGPROB),
            "top_logprobs": [
                {"token": name_of(other), "logprob": max(one.logprob, _LEAST_LOGPROB)}
                for other, one in by_token.items()
            ],
        }
        for token, by_token in zip(choice.token_ids, choice.logprobs or (), strict=False)
    ]


def _entry(one: Any) -> dict[str, Any]:
    return {"token": one.decoded_token, "logprob": max(one.logprob, _LEAST_LOGPROB)}
