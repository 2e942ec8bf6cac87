"""A chat model behind a vLLM server that continues a trailing AIMessage exactly, and one call to it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from langchain_core.messages import BaseMessage
from langchain_core.messages.ai import UsageMetadata
from pydantic import Field, PrivateAttr, SecretStr

from trim_graph.adapters.event_loop import run_sync
from trim_graph.adapters.responses import classify
from trim_graph.adapters.settings import VLLMServerSettings
from trim_graph.errors import CallTimeoutError, ChatModelContractError, ModelServerError

from .batching import STREAM, RequestBatcher
from .chat_base import VLLMChatModel
from .client import TransientError
from .label_tokens import label_metadata
from .prompts import KEPT, VLLMPrompts
from .replicas import Replicas, Route, conversation_key
from .wire import Answer, AnswerError, Lost, VLLMCallSettings, metadata_of, usage_of


class ChatVLLM(VLLMServerSettings, VLLMChatModel):
    r"""A model that a vLLM server serves (``vllm serve MODEL --enable-prompt-tokens-details``).

    An SGLang server or llama.cpp's ``llama-server`` will do too: the first call reads from the server's list
    of models which one it is (see `trim_graph.adapters.vllm.wire.Dialect`).

    A conversation that ends in an AIMessage is continued right after the bytes of that message. Where the
    model's chat template would change them (it trims, or adds a thinking block), the template is rendered
    once and the text appended to it; the first call finds out which. A template without a role for
    system messages gets them in front of the human message that follows; one that wants roles to alternate
    gets messages of one role in a row as one. An earlier turn's reasoning is left out.

    Special tokens in the conversation stay text: where one of their usual shapes (``<...>``, ``[...]``,
    ``|...|``) turns up, the server is asked whether it is one, once for each, and the conversation is sent
    as token ids over ``/v1/completions``. A text that cannot be looked at (no ``/tokenize``) or written as
    plain text is refused.

    The answer's ``response_metadata`` holds ``model_name``, ``finish_reason`` as the server names it
    (``"stop"``, ``"length"``; see `trim_graph.adapters.responses.classify`), ``stop_reason`` (the stop string
    met, or None at the end of sequence), ``timed_out=True`` where a ``timeout`` cut it,
    ``starts_in_reasoning=True`` where the chat template opens reasoning, with ``logprobs=True``
    ``mean_token_probability`` and with ``probability_window`` ``lowest_window_probability`` as in
    `ChatTransformers`, with ``top_logprobs`` the raw ``logprobs``, with
    ``label_tokens`` the ``label_probabilities`` of `trim_graph.adapters.vllm.label_tokens`, with
    ``first_token_entropy=True`` a lower bound of the first token's entropy in nats and the
    ``unobserved_probability`` of the tokens it leaves out (see `entropy_logprobs`), and ``failed_attempts``
    where some were, with the tokens known of them. ``usage_metadata`` counts those too, and prompt tokens
    served from the cache where the server reports them. Of an answer whose tokens the server does not report
    it holds ``max_tokens`` and an upper bound of the prompt, and ``response_metadata["usage_upper_bound"]``
    is True.

    Every call takes ``stop`` and, by keyword, ``max_tokens``, ``temperature``, ``top_p``, ``seed``,
    ``logprobs``, ``top_logprobs``, ``probability_window``, ``label_tokens`` (texts such as
    ``("yes", "no")``), ``first_token_entropy``, ``timeout``, ``stop_when`` (a function of the text so far
    that ends the answer; its ``stop_reason`` is ``"stop_when"``), ``retry_tokens`` (a function of what
    failed attempts have used that limits the next one; see `RetryTokens`) and ``thinking_token_budget``
    (most tokens of reasoning, with those at the end of the conversation). Of the model's generation_config
    only the ends of sequence count. Cancelling a call, or leaving a stream, ends the request on the server.

    Raises:
        ContextLengthError: The conversation fills the model's context; by a call.
        ModelServerError: The server is not there, refuses, failed ``max_retries`` times more, or gave an
            answer that cannot be used: ended by a filter, or with numbers that cannot be true; by a call.
        ChatModelContractError: The server does not report which stop string it met; by a call.
        TimeoutError: Nothing arrived within ``timeout``; by a call.

    Example:
        ```python
        model = ChatVLLM(model="Qwen/Qwen2.5-7B-Instruct", base_url="http://localhost:8000/v1")
        step = model.invoke([("human", "What is 12 * 12?"), ("ai", "First step.\n\n")], stop=["\n\n"])
        ```
    """

    takes_retry_tokens: ClassVar[bool] = True

    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """A key given in code instead. It is neither shown nor saved: a pickled model goes without."""

    _shown: ClassVar[tuple[str, ...]] = ("base_url", "continuation", "extra_body")
    _server: Replicas = PrivateAttr()
    _prompts: VLLMPrompts = PrivateAttr()
    _batchers: dict[str, RequestBatcher] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any) -> None:
        """Connects the parts; nothing is sent."""
        self._server = Replicas.at(
            self.base_url,
            api_key_env=self.api_key_env,
            api_key=self.api_key,
            read_timeout=self.read_timeout,
            max_retries=self.max_retries,
            max_connections=self.max_connections,
        )
        batches = self.max_batch_size > 1
        if batches and self.continuation == "chat":
            raise ValueError(
                f"max_batch_size={self.max_batch_size} sends many prompts to /v1/completions, which "
                "continuation='chat' rules out: leave continuation at 'auto', or max_batch_size at 1"
            )
        if batches and self.extra_body.get("n", 1) != 1:
            raise ValueError(
                f"extra_body asks for n={self.extra_body['n']} answers a prompt: leave it out where "
                "max_batch_size is above 1"
            )
        continuation = "raw" if batches else self.continuation
        self._prompts = VLLMPrompts(self._server, self.model, continuation, dict(self.chat_template_kwargs))
        self._batchers = {
            root: RequestBatcher(server, max_batch=self.max_batch_size, wait_factor=self.batch_wait_factor)
            for root, server in self._server.servers.items()
            if batches
        }

    def count_prompt_tokens(self, messages: Sequence[BaseMessage]) -> int:
        """Returns the exact number of prompt tokens of a call with these messages. Asks the server.

        Raises:
            ValueError: The conversation is empty or holds something that is not text.
            ModelServerError: The server does not answer.
        """
        return run_sync(self._prompts.count(messages))

    @property
    def stop_reported_in(self) -> str:
        """The field in which the server has reported which stop string it met; empty until it has.

        ``stop_reason``: vLLM. ``matched_stop``: SGLang. ``stop_type``: llama.cpp.
        ``include_stop_str_in_output``: a vLLM behind a gateway that drops ``stop_reason``.
        """
        return self._prompts.stop_field

    def takes_system_role(self) -> bool:
        """Returns whether the chat template has a system role; else system texts precede a human message.

        Asks the server.

        Raises:
            ModelServerError: The server does not answer.
        """
        return run_sync(self._prompts.takes_system_role())

    def get_token_ids(self, text: str) -> list[int]:
        """Returns token ids of a text, none added. Asks the server."""
        return run_sync(self._prompts.tokenize(text))

    @property
    def _llm_type(self) -> str:
        return "trim-graph-vllm"

    def __getstate__(self) -> dict[Any, Any]:
        """Pickles the settings, without a key."""
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "api_key": None}, "__pydantic_private__": None}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Restores the settings; the server is asked anew."""
        super().__setstate__({**state, "__pydantic_private__": {}})
        self.model_post_init(None)

    def _call(self, messages: list[BaseMessage], settings: VLLMCallSettings) -> VLLMCall:
        route = self._server.route(lambda: conversation_key(messages))
        return VLLMCall(route, self._prompts, messages, settings, self.extra_body, self._batchers)


Events = AsyncGenerator[dict[str, Any], None]

_KEEP_STOP = {KEPT: True}


class VLLMCall:
    """One call; `finish` it, or iterate over its `chunks`.

    Args:
        server: The route of this call through the model's replicas.
        prompts: Makes the request.
        messages: The conversation.
        settings: Settings of the call.
        extra_body: Further fields of the request.
        batchers: Batchers by address of a server, where calls are sent together; None sends the call alone.

    Attributes:
        answer: The answer so far.
    """

    def __init__(
        self,
        server: Route,
        prompts: VLLMPrompts,
        messages: Sequence[BaseMessage],
        settings: VLLMCallSettings,
        extra_body: dict[str, Any],
        batchers: Mapping[str, RequestBatcher] | None = None,
    ) -> None:
        self._server = server
        self._prompts = prompts
        self._messages = messages
        self._settings = settings
        self._extra_body = extra_body
        # A server cannot end one prompt of several: a call that may end early is a request of its own.
        self._batchers = batchers if batchers and settings.stop_when is None else {}
        self._lost = Lost()
        self._max_tokens = settings.max_tokens
        """Limit of the current attempt."""
        self._labels: dict[int, str] = {}
        self._prompt: Any = None
        """The prompt as it was sent."""
        self._under_way = False
        """Whether a request was sent whose answer is neither whole nor counted as lost."""
        self._failed: ModelServerError | None = None
        """Error of the attempt before the current one."""
        self.answer = Answer()

    @property
    def metadata(self) -> dict[str, Any]:
        """The answer's ``response_metadata``."""
        metadata = metadata_of(
            self.answer,
            self._settings,
            self._lost,
            self._prompts.model,
            starts_in_reasoning=self._prompts.starts_in_reasoning,
        )
        return metadata | (label_metadata(self.answer.logprobs, self._labels) if self._labels else {})

    @property
    def usage(self) -> UsageMetadata:
        """The answer's ``usage_metadata``."""
        most_read = 0 if self.answer.counted else self._prompt_bound()
        return usage_of(self.answer, self._lost, most_read=most_read, most_written=self._max_tokens)

    def _prompt_bound(self) -> int:
        """Returns an upper bound of the prompt's tokens."""
        # A token is at least a byte of the text, or one of a template's marks, which are shorter than JSON's.
        return len(json.dumps(self._prompt, ensure_ascii=False).encode("utf-8", "surrogatepass"))

    async def finish(self) -> None:
        """Gets the whole answer.

        Raises:
            ModelServerError: All attempts failed, or the server refuses.
            TimeoutError: Nothing arrived in time.
        """
        limit = asyncio.timeout(self._settings.timeout)
        try:
            with self._attempts_reported():
                async with limit:
                    await self._server.retrying(self._attempt)
        except TimeoutError as error:
            if not limit.expired():
                raise
            self._cut(error)

    async def chunks(self) -> AsyncGenerator[str, None]:
        """Yields the answer's text as it arrives.

        Raises:
            ModelServerError: The server refuses, all attempts failed, or one did after text had arrived.
            TimeoutError: Nothing arrived in time.
        """
        timeout = self._settings.timeout
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        # Only the waiting is under the limit: between two chunks the consumer is at work.
        try:
            with self._attempts_reported():
                async with asyncio.timeout_at(deadline):
                    events = await self._server.retrying(self._open)
        except TimeoutError as error:
            self._cut(error)
            return
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._server.counted())
            await stack.enter_async_context(contextlib.aclosing(events))
            chunk: str | None = self.answer.text
            if chunk:
                yield chunk
            while chunk is not None and not self._stops(chunk):
                try:
                    chunk = await self._next_chunk(events, deadline)
                except TimeoutError as error:
                    self._cut(error)
                    return
                if chunk:
                    yield chunk

    async def _next_chunk(self, events: Events, deadline: float | None) -> str | None:
        """Returns the text of the next event; None at the end of the answer."""
        with self._attempts_reported():
            try:
                async with asyncio.timeout_at(deadline):
                    event = await anext(events, None)
                if event is not None:
                    return self._take(event)
                self._check_whole()
            except TransientError as error:
                self._lose(error)
                raise ModelServerError(f"{error}, after a part of it had been streamed") from error
        return None

    def _stops(self, chunk: str) -> bool:
        """Returns whether the caller wants no more after a chunk; leaving the stream ends the request."""
        return bool(chunk) and self.answer.stopped_by(self._settings.stop_when)

    async def _attempt(self) -> None:
        path, body = await self._request()
        seen = self._settings.timeout is not None or self._settings.stop_when is not None
        try:
            if not seen and not self._batchers:
                self._take(await self._server.post_once(path, body))
            else:
                # A stream reports the tokens so far, and leaves an answer at the time limit.
                async with contextlib.aclosing(self._events(path, body, seen=seen)) as events:
                    async for event in events:
                        if self._stops(self._take(event)):
                            break
            self._check_whole()
        except ModelServerError as error:
            self._lose(error, usage_streamed=seen or not self._batchers)
            raise
        if self.answer.reasoned and self._prompts.switch_to_raw():
            self._lose()
            await self._attempt()
        elif not self._stop_is_known() and not self._read_kept_stop():
            self._lose()
            await self._find_kept_stop()
            await self._attempt()

    def _stop_is_known(self) -> bool:
        """Returns whether the server has reported which stop string it met, where one was asked for."""
        answer = self.answer
        assert answer.finish_reason is not None
        self._prompts.stop_field = answer.stop_field or self._prompts.stop_field
        return bool(answer.stop_field) or not self._settings.stop or classify(answer.finish_reason) != "ended"

    def _read_kept_stop(self) -> bool:
        """Reads the stop string that was met from the end of the text, where the server keeps it there."""
        if not self._prompts.keeps_stop:
            return False
        answer, stops = self.answer, self._settings.stop
        answer.stop_reason = next((stop for stop in stops if answer.text.endswith(stop)), None)
        answer.text = answer.text.removesuffix(answer.stop_reason or "")
        answer.stop_field = self._prompts.stop_field = KEPT
        return True

    async def _find_kept_stop(self) -> None:
        """Asks for a stop string that the server keeps in the text, which serves as well.

        A gateway may drop ``stop_reason`` from vLLM's answers and let ``include_stop_str_in_output`` through.

        Raises:
            ChatModelContractError: The server does not keep it.
        """
        self._max_tokens = min(self._cap_tokens(), 16)
        body = {
            "model": self._prompts.model,
            "messages": [{"role": "user", "content": "Describe the weather in one sentence."}],
            "max_tokens": self._max_tokens,
            "temperature": 0.0,
            "stop": [" "],
        }
        self._under_way = True
        try:
            self._take(await self._server.post_once("/v1/chat/completions", body | _KEEP_STOP))
        except ModelServerError as error:
            self._lose(error)
            raise
        self._prompts.keeps_stop = self.answer.text.endswith(" ")
        self._lose()
        if not self._prompts.keeps_stop:
            raise ChatModelContractError(
                f"the server at {self._server.root} does not report which stop string ended an answer, so "
                "the end of a step cannot be distinguished from that of the solution. vLLM reports it in "
                "stop_reason, SGLang in matched_stop: have the gateway let that field through, or wrap the "
                "gateway's chat model in ContinueByPrompt"
            )

    async def _open(self) -> Events:
        """Begins a stream and waits for its first text; until then an attempt can be repeated."""
        path, body = await self._request()
        events = self._events(path, body, seen=True)
        try:
            async for event in events:
                if self._take(event) or self.answer.reasoned:
                    break
            else:
                self._check_whole()
        except BaseException as error:
            await events.aclose()
            if isinstance(error, ModelServerError):
                self._lose(error)
            raise
        if self.answer.reasoned and self._prompts.switch_to_raw():
            await events.aclose()
            self._lose()
            return await self._open()
        return events

    def _events(self, path: str, body: dict[str, Any], *, seen: bool) -> Events:
        if self._batchers:
            batcher = self._batchers[self._server.root]
            return batcher.events(body, seen=seen, within=self._settings.timeout)
        return self._server.events(path, body | STREAM)

    async def _request(self) -> tuple[str, dict[str, Any]]:
        self._max_tokens = self._cap_tokens()
        settings = replace(self._settings, max_tokens=self._max_tokens)
        path, body = await self._prompts.request(self._messages, settings)
        self._labels = await self._prompts.label_ids(settings.label_tokens)
        self._prompt = body.get("prompt", body.get("messages"))
        self._under_way = True
        if self._prompts.keeps_stop and self._settings.stop:
            body |= _KEEP_STOP
        return path, body | self._extra_body

    def _cap_tokens(self) -> int:
        """Returns the most tokens that the next attempt may generate: all attempts share the call's grant.

        Raises:
            ModelServerError: Nothing is left for another attempt; the failure before it says why.
        """
        left = self._settings.max_tokens
        if self._lost.attempts and self._settings.retry_tokens is not None:
            left = min(left, self._settings.retry_tokens(self._lost.reported))
            if left < 1:
                failed = self._failed or f"{self._server.root} took the answer apart (a reasoning parser)"
                said = f"{failed}; what it may have generated leaves no tokens for another attempt"
                status = None if self._failed is None else self._failed.status
                raise ModelServerError(said, status) from self._failed
        return left

    def _take(self, event: dict[str, Any]) -> str:
        try:
            return self.answer.add(event)
        except AnswerError as error:
            raise self._unusable(error) from error
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ModelServerError(
                f"{self._server.root} answered with JSON that is no completion: {str(event)[:200]}. "
                "Is it a vLLM server?",
                begun=True,
            ) from error

    def _unusable(self, error: AnswerError) -> ModelServerError:
        return ModelServerError(
            f"the answer of {self._prompts.model} at {self._server.root} cannot be used: {error}", begun=True
        )

    def _lose(self, error: ModelServerError | None = None, *, usage_streamed: bool = True) -> None:
        """Counts the attempt as lost; a time limit that ends later must not count it again."""
        self._failed, self._under_way = error, False
        worked_on = error is not None and error.begun
        self._lost.add(
            self.answer,
            max_tokens=self._max_tokens,
            worked_on=worked_on,
            usage_streamed=usage_streamed,
        )
        self.answer = Answer()

    @contextlib.contextmanager
    def _attempts_reported(self) -> Iterator[None]:
        """Attaches the usage of all attempts to an error that ends the call."""
        try:
            yield
        except (ModelServerError, ChatModelContractError) as error:
            if self._under_way:
                self._lose(error if isinstance(error, ModelServerError) else None)
            error.attempts = self._lost.reported
            if (refused := self._refused_limit(error)) is not None:
                raise refused from error
            raise
        except (TimeoutError, asyncio.CancelledError) as error:
            lost = copy.copy(self._lost)
            if self._under_way:
                lost.add(self.answer, max_tokens=self._max_tokens, worked_on=True)
            error.attempts = lost.reported  # type: ignore[union-attr]
            raise

    def _refused_limit(
        self, error: ModelServerError | ChatModelContractError
    ) -> ChatModelContractError | None:
        """Returns the error of a server that cannot limit reasoning, which no fallback covers."""
        if (
            self._settings.thinking_token_budget is None
            or getattr(error, "status", None) != 400
            or "thinking_token_budget" not in str(error)
        ):
            return None
        refused = ChatModelContractError(
            f"the server at {self._server.root} does not limit reasoning: start vLLM 0.32 or later with "
            "--reasoning-parser or --reasoning-config, or leave out min_answer_tokens and "
            f"thinking_token_budget ({error})"
        )
        refused.attempts = error.attempts
        return refused

    def _cut(self, error: TimeoutError) -> None:
        """Makes an answer of the text that arrived within the time limit."""
        if not self.answer.begun:
            raise CallTimeoutError(
                f"nothing arrived from {self._server.root} within timeout={self._settings.timeout} seconds",
                error.attempts,  # type: ignore[attr-defined]
            ) from error
        self.answer.cut()

    def _check_whole(self) -> None:
        reason = self.answer.finish_reason
        if reason is None or classify(reason) == "failed":
            raise TransientError(f"the server at {self._server.root} broke off its answer", begun=True)
        try:
            self.answer.check()
        except AnswerError as error:
            raise self._unusable(error) from error
