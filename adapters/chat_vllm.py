"""A chat model behind a vLLM server that continues a trailing AIMessage exactly."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import AfterValidator, ConfigDict, Field, PrivateAttr, SecretStr

from .background import iterate_sync, run_sync
from .call_settings import check_call_settings, stop_strings
from .entropy import TOP_LOGPROBS
from .vllm_call import VLLMCall
from .vllm_prompt import VLLMPrompts
from .vllm_server import VLLMServer, check_base_url
from .vllm_wire import CallSettings

_OWN_SETTINGS = ("max_tokens", "temperature", "top_p", "seed", "logprobs", "top_logprobs", "timeout")
_CALL_SETTINGS = (*_OWN_SETTINGS, "first_token_entropy", "stop_when")
_LANGCHAIN_KWARGS = {"stream"}  # given by LangChain's own plumbing


def _checked_url(url: str) -> str:
    check_base_url(url)
    return url


class ChatVLLM(BaseChatModel):
    r"""A model that a vLLM server serves (``vllm serve MODEL --enable-prompt-tokens-details``).

    A conversation that ends in an AIMessage is continued right after the bytes of that message. Where the
    model's chat template would change them (it trims, or adds a thinking block), the template is rendered
    once and the text appended to it; that is found out at the first call. Text that looks like a special
    token is one to the server.

    The answer's ``response_metadata`` holds ``model_name``, ``finish_reason`` (``"stop"`` or ``"length"``),
    ``stop_reason`` (the stop string met, or None at the end of sequence), ``timed_out=True`` where a
    ``timeout`` cut it, ``prompt_opens_thought=True`` where the chat template opens one, with
    ``logprobs=True`` ``mean_token_probability`` as in `ChatTransformers`, with ``top_logprobs`` the raw
    ``logprobs``, with ``first_token_entropy=True`` a lower bound of the first token's entropy in nats and the
    ``untold_probability`` of the tokens it does not rest on (see `entropy_logprobs`), and
    ``failed_attempts`` where some were, with the tokens known of them.
    ``usage_metadata`` counts those too, and tells prompt tokens served from the cache where the server does.

    Every call takes ``stop`` and, by keyword, ``max_tokens``, ``temperature``, ``top_p``, ``seed``,
    ``logprobs``, ``top_logprobs``, ``first_token_entropy``, ``timeout`` and ``stop_when`` (a function of the
    text so far that ends the answer; its ``stop_reason`` is ``"stop_when"``). Of the model's
    generation_config only the ends of sequence count. Cancelling a call, or leaving a stream, ends the
    request on the server.

    Raises:
        ModelServerError: The server is not there, refuses, or failed ``max_retries`` times more; by a call.
        TimeoutError: Nothing arrived within ``timeout``; by a call.

    Example:
        ```python
        model = ChatVLLM(model="Qwen/Qwen2.5-7B-Instruct", base_url="http://localhost:8000/v1")
        step = model.invoke([("human", "What is 12 * 12?"), ("ai", "First step.\n\n")], stop=["\n\n"])
        ```
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    takes_stop_when: ClassVar[bool] = True
    tells_entropy: ClassVar[bool] = True

    model: str = Field(min_length=1)
    """Name that the server serves the model by."""
    base_url: Annotated[str, AfterValidator(_checked_url)] = "http://localhost:8000/v1"
    """The server's address, with or without ``/v1``."""
    api_key_env: str | None = "VLLM_API_KEY"
    """Environment variable that holds the key, if the server wants one. It is read at every request."""
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """A key given in code instead. It is neither shown nor saved: a pickled model goes without."""
    max_tokens: int = Field(default=512, ge=1)
    """Most tokens to generate in a call; the server cuts it to the room behind the prompt."""
    temperature: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """0 takes the likeliest token."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Sample from the likeliest tokens that make up this probability."""
    seed: int | None = None
    """Makes sampling repeatable."""
    stop: list[str] | None = None
    """Stop strings of calls that name none."""
    logprobs: bool = False
    """Whether answers tell their mean token probability."""
    top_logprobs: int = Field(default=0, ge=0)
    """How many alternatives to tell of each token; 0 leaves raw log-probabilities out of the answer."""
    entropy_logprobs: int = Field(default=TOP_LOGPROBS, ge=1)
    """How many of the likeliest tokens an entropy is computed from: at most the server's ``--max-logprobs``,
    which is 20 unless set. The entropy is exact with as many as the vocabulary has."""
    timeout: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """Seconds for a whole call, retries included; what has been written by then is the answer."""
    read_timeout: float = Field(default=600.0, gt=0.0)
    """Seconds without a byte from the server after which the connection counts as dropped."""
    max_retries: int = Field(default=3, ge=0)
    """How often to try again after no connection, a dropped one, 429 or 5xx. A 400 is never retried."""
    max_connections: int = Field(default=256, ge=1)
    """Most requests at once; others wait. Adapters of the same server and event loop share connections."""
    continuation: Literal["auto", "chat", "raw"] = "auto"
    """``chat`` trusts the chat template with the text to be continued, ``raw`` never does."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the chat template, such as ``{"enable_thinking": False}``."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every generation request, such as ``{"top_k": 20}``."""
    streaming: bool = False
    """Whether ``invoke`` streams too; LangChain's usual switch."""

    _server: VLLMServer = PrivateAttr()
    _prompts: VLLMPrompts = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Connect the parts; nothing is sent."""
        self._server = VLLMServer(
            root=check_base_url(self.base_url),
            api_key_env=self.api_key_env,
            api_key=self.api_key,
            read_timeout=self.read_timeout,
            max_retries=self.max_retries,
            max_connections=self.max_connections,
        )
        self._prompts = VLLMPrompts(
            self._server, self.model, self.continuation, dict(self.chat_template_kwargs)
        )

    def count_prompt_tokens(self, messages: Sequence[BaseMessage]) -> int:
        """Exact number of prompt tokens that a call with these messages reads. Asks the server.

        Raises:
            ValueError: The conversation is empty or holds something that is not text.
            ModelServerError: The server does not answer.
        """
        return run_sync(self._prompts.count(messages))

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of a text, none added. Asks the server."""
        return run_sync(self._prompts.tokenize(text))

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Exact number of prompt tokens, chat template included; ``tools`` are not supported."""
        if tools:
            raise ValueError("ChatVLLM does not take tools")
        return self.count_prompt_tokens(messages)

    @property
    def _llm_type(self) -> str:
        return "trim-graph-vllm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("model", "base_url", *_OWN_SETTINGS, "entropy_logprobs", "stop", "continuation")
        further = ("chat_template_kwargs", "extra_body")
        return {name: getattr(self, name) for name in (*names, *further)}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "vllm"
        return params

    def __getstate__(self) -> dict[Any, Any]:
        """Pickle the settings, without a key."""
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "api_key": None}, "__pydantic_private__": None}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Restore the settings, and ask the server anew."""
        super().__setstate__({**state, "__pydantic_private__": {}})
        self.model_post_init(None)

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
        return await self._ask(messages, self._settings(stop, kwargs))

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
        async with contextlib.aclosing(self._chunks(messages, self._settings(stop, kwargs))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _ask(self, messages: list[BaseMessage], settings: CallSettings) -> ChatResult:
        call = self._call(messages, settings)
        await call.finish()
        message = AIMessage(
            content=call.answer.text, response_metadata=call.metadata, usage_metadata=call.usage
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _chunks(
        self, messages: list[BaseMessage], settings: CallSettings
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        call = self._call(messages, settings)
        async with contextlib.aclosing(call.pieces()) as pieces:
            async for piece in pieces:
                yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
        last = AIMessageChunk(
            content="", response_metadata=call.metadata, usage_metadata=call.usage, chunk_position="last"
        )
        yield ChatGenerationChunk(message=last)

    def _call(self, messages: list[BaseMessage], settings: CallSettings) -> VLLMCall:
        return VLLMCall(self._server, self._prompts, messages, settings, self.extra_body)

    def _settings(self, stop: list[str] | None, kwargs: dict[str, Any]) -> CallSettings:
        """The call's settings over the model's own; None means the model's own."""
        if unknown := sorted(set(kwargs) - set(_CALL_SETTINGS) - _LANGCHAIN_KWARGS):
            raise ValueError(
                f"ChatVLLM does not know the call setting(s) {', '.join(unknown)}; "
                f"it takes stop, {', '.join(sorted(_CALL_SETTINGS))}"
            )
        given = {name: kwargs[name] for name in _CALL_SETTINGS if kwargs.get(name) is not None}
        merged = {name: getattr(self, name) for name in _OWN_SETTINGS} | given
        check_call_settings(merged)
        wants_entropy = merged.pop("first_token_entropy", False)
        return CallSettings(
            stop=stop_strings(self.stop if stop is None else stop),
            entropy_logprobs=self.entropy_logprobs if wants_entropy else 0,
            **merged,
        )
