"""One call to a chat model on a vLLM engine in this process: prompt, time limit, and the answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.messages.ai import UsageMetadata

from trim_graph.errors import ContextLengthError, FailedAttempts, ModelServerError

from .chat_prompt import encode_chat
from .stop_reasons import classify
from .vllm_engine import EngineHold, VLLMEngine
from .vllm_engine_start import vllm_module
from .vllm_wire import Answer, CallSettings, Lost, metadata_of, usage_of

_LEAST_LOGPROB = -9999.0
"""What stands for minus infinity, which JSON has no word for; vLLM's server writes the same."""


class EngineCall:
    """One call; `finish` it, or iterate over its `pieces`, on the background loop.

    Args:
        hold: Brings the engine.
        messages: The conversation.
        settings: Of the call.
        template_kwargs: Further arguments of the chat template.
        sampling_params: Further fields of vLLM's ``SamplingParams``.

    Attributes:
        answer: What has arrived.
    """

    def __init__(
        self,
        hold: EngineHold,
        messages: Sequence[BaseMessage],
        settings: CallSettings,
        template_kwargs: Mapping[str, Any],
        sampling_params: Mapping[str, Any],
    ) -> None:
        self._hold = hold
        self._messages = messages
        self._settings = settings
        self._template_kwargs = template_kwargs
        self._sampling_params = sampling_params
        self._model = ""
        self._opens_thought = False
        self.answer = Answer(usage_known=True, stop_field="stop_reason")

    @property
    def metadata(self) -> dict[str, Any]:
        """The answer's ``response_metadata``."""
        return metadata_of(
            self.answer, self._settings, Lost(), self._model, opens_thought=self._opens_thought
        )

    @property
    def usage(self) -> UsageMetadata:
        """The answer's ``usage_metadata``."""
        return usage_of(self.answer, Lost())

    async def finish(self) -> None:
        """Get the whole answer.

        Raises:
            ValueError: The conversation cannot be continued.
            ContextLengthError: It fills the model's context.
            ModelServerError: The engine did not start, has died, or was closed.
        """
        async for _ in self._pieces(streaming=False):
            pass

    def pieces(self) -> AsyncGenerator[str, None]:
        """Yield the answer's text as it arrives; raises what `finish` does."""
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
                    self.answer.timed_out = True
                    self.answer.finish_reason, self.answer.stop_reason = "length", None
                    return
                except ModelServerError as error:
                    error.attempts = self._lost(streaming)
                    raise
                if output is None:
                    break
                if piece := self._take(output):
                    yield piece
                    if self._stops():
                        return
        if self.answer.finish_reason is None or classify(self.answer.finish_reason) == "failed":
            broken = ModelServerError(f"the vLLM engine of {self._model} broke off its answer", begun=True)
            broken.attempts = self._lost(streaming)
            raise broken

    async def _begin(self, streaming: bool) -> AsyncGenerator[Any, None]:
        engine = self._hold.engine()
        self._model = engine.spec.model
        prompt = await asyncio.to_thread(prompt_tokens, engine, self._messages, self._template_kwargs)
        self._opens_thought = engine.opens_thought(self._template_kwargs)
        longest = await engine.max_model_len()
        if len(prompt) >= longest:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens; {self._model} takes {longest - 1} at most "
                f"(max_model_len={longest}, and one token must fit behind it)"
            )
        room = min(self._settings.max_tokens, longest - len(prompt))
        self.answer.input_tokens = len(prompt)
        # Output by output costs more, but leaves something to answer with when time is up.
        whole = not streaming and self._settings.timeout is None and self._settings.stop_when is None
        params = sampling_params(replace(self._settings, max_tokens=room), self._sampling_params, whole=whole)
        return engine.generate(prompt, params)

    def _stops(self) -> bool:
        """Tell whether the caller wants no more; leaving the engine's outputs aborts the request."""
        watch = self._settings.stop_when
        if watch is None or self.answer.finish_reason is not None or not watch(self.answer.text):
            return False
        self.answer.stop()
        return True

    def _take(self, output: Any) -> str:
        answer, choice = self.answer, output.outputs[0]
        answer.begun = True
        if output.num_cached_tokens is not None and answer.cached_tokens is None:
            answer.cached_tokens = output.num_cached_tokens
        answer.output_tokens += len(choice.token_ids)
        answer.text += choice.text
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
    """Token ids of a conversation; blocks for the tokenizer, but does not start the engine."""
    return encode_chat(messages, engine.tokenizer, engine.guard, template_kwargs)


def sampling_params(settings: CallSettings, further: Mapping[str, Any], *, whole: bool) -> Any:
    """The settings as vLLM's ``SamplingParams``.

    Args:
        settings: Of the call.
        further: Fields beyond them.
        whole: Whether only the finished answer is wanted.

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
            logprobs=tops if wants_logprobs else None,
            output_kind=kinds.FINAL_ONLY if whole else kinds.DELTA,
            **further,
        )
    except (TypeError, vllm_module("vllm.exceptions").VLLMClientError) as error:
        given = f"sampling_params={dict(further)!r}: " if further else ""
        raise ValueError(f"vLLM refuses the call: {given}{error}") from error


def logprob_entries(choice: Any, top: int) -> list[dict[str, Any]]:
    """Log-probabilities of an output's tokens, as the chat endpoint of vLLM's server tells them.

    Args:
        choice: vLLM's ``CompletionOutput``.
        top: How many alternatives to tell of each token.
    """
    entries = []
    for token, told in zip(choice.token_ids, choice.logprobs or (), strict=False):
        ranked = sorted(told.values(), key=lambda one: -one.logprob)
        entries.append({**_entry(told[token]), "top_logprobs": [_entry(one) for one in ranked[:top]]})
    return entries


def _entry(one: Any) -> dict[str, Any]:
    return {"token": one.decoded_token, "logprob": max(one.logprob, _LEAST_LOGPROB)}
