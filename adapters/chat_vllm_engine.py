"""A chat model on a vLLM engine in this process that continues a trailing AIMessage exactly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, ClassVar, TypeVar

from langchain_core.messages import BaseMessage
from pydantic import PrivateAttr, field_validator

from .background import iterate_aside, run_aside, run_sync
from .chat_prompt import takes_system_role
from .chat_vllm_base import CALL_SETTINGS, VLLMChatModel
from .settings import VLLMEngineSettings
from .vllm_engine import EngineHold
from .vllm_engine_call import EngineCall, prompt_tokens
from .vllm_engine_start import EngineSpec, engine_options
from .vllm_wire import CallSettings

T = TypeVar("T")

_OF_CALLS = {*CALL_SETTINGS, "stop", "n", "output_kind", "detokenize", "prompt_logprobs"}


class ChatVLLMEngine(VLLMEngineSettings, VLLMChatModel):
    r"""A model on vLLM's asynchronous engine in this process, without a server.

    Otherwise it is as `ChatVLLM`: a conversation that ends in an AIMessage is continued right after the bytes
    of that message, the same call settings, ``response_metadata`` and ``usage_metadata``. Token ids are made
    here, so text that looks like a special token stays text. The ``timeout`` of a call does not count the
    engine's start.

    The engine starts at the first call, or with `start`. Adapters with the same model, memory and options
    share one, and it ends with the last of them, with `close`, or with this process, however that ends. It
    lives on an event loop of its own: calls may come from any thread and from any number of event loops.
    Cancelling a call, or leaving a stream, aborts the request.

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
    _hold: EngineHold = PrivateAttr()

    @field_validator("sampling_params")
    @classmethod
    def _further(cls, params: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(_OF_CALLS & set(params)):
            raise ValueError(f"sampling_params may not hold {', '.join(taken)}: the adapter sets them itself")
        return params

    def model_post_init(self, context: Any) -> None:
        """Note what the engine is to be; nothing is started."""
        self._hold = EngineHold(EngineSpec(self.model, "generate", engine_options(self)))

    def start(self) -> None:
        """Start the engine now; a call does it otherwise.

        Raises:
            ImportError: vllm is not installed.
            ValueError: vLLM refuses an option.
            ModelServerError: The engine did not start.
        """
        run_sync(self._start())

    async def astart(self) -> None:
        """`start` without blocking the event loop."""
        await run_aside(self._start())

    def close(self) -> None:
        """Let go of the engine; it ends, unless other adapters use it. A later call starts it anew.

        Copies of this adapter let go with it. Calls under way fail when the engine ends.
        """
        self._hold.release()

    async def aclose(self) -> None:
        """`close` without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def count_prompt_tokens(self, messages: Sequence[BaseMessage]) -> int:
        """Exact number of prompt tokens that a call with these messages reads. Does not start the engine.

        Raises:
            ValueError: The conversation is empty or holds something that is not text.
        """
        return len(prompt_tokens(self._hold.engine(), messages, self.chat_template_kwargs))

    def takes_system_role(self) -> bool:
        """Whether the chat template has a role for system messages; else they precede a human message.

        Does not start the engine.
        """
        return takes_system_role(self._hold.engine().tokenizer, self.chat_template_kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of a text, in which nothing counts as a special token. Does not start the engine."""
        return self._hold.engine().guard.encode("", text)

    @property
    def _llm_type(self) -> str:
        return "trim-graph-vllm-engine"

    def __getstate__(self) -> dict[Any, Any]:
        """Pickle the settings; the engine is started anew on the other side."""
        return {**super().__getstate__(), "__pydantic_private__": None}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Restore the settings."""
        super().__setstate__({**state, "__pydantic_private__": {}})
        self.model_post_init(None)

    async def _start(self) -> None:
        await self._hold.engine().max_model_len()

    def _call(self, messages: list[BaseMessage], settings: CallSettings) -> EngineCall:
        return EngineCall(self._hold, messages, settings, self.chat_template_kwargs, self.sampling_params)

    async def _await(self, call: Coroutine[Any, Any, T]) -> T:
        return await run_aside(call)

    def _iterate(self, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        return iterate_aside(items)
