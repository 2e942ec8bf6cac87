"""One call to a model behind a vLLM server: attempts, the time limit, and what failed attempts cost."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.messages.ai import UsageMetadata

from trim_graph.errors import CallTimeoutError, ChatModelContractError, ModelServerError

from .prompts_together import STREAM, PromptsTogether
from .replicas import Route
from .stop_reasons import classify
from .vllm_prompt import KEPT, VLLMPrompts
from .vllm_server import TransientError
from .vllm_wire import Answer, AnswerError, CallSettings, Lost, metadata_of, usage_of

Events = AsyncGenerator[dict[str, Any], None]

_KEEP_STOP = {KEPT: True}


class VLLMCall:
    """One call; `finish` it, or iterate over its `pieces`.

    Args:
        server: Where the model is: the way of this call through its replicas.
        prompts: Makes the request.
        messages: The conversation.
        settings: Of the call.
        extra_body: Further fields of the request.
        together: By the address of a server: sends it with others that wait there. None: as a request of its
            own.

    Attributes:
        answer: What has arrived.
    """

    def __init__(
        self,
        server: Route,
        prompts: VLLMPrompts,
        messages: Sequence[BaseMessage],
        settings: CallSettings,
        extra_body: dict[str, Any],
        together: Mapping[str, PromptsTogether] | None = None,
    ) -> None:
        self._server = server
        self._prompts = prompts
        self._messages = messages
        self._settings = settings
        self._extra_body = extra_body
        # A server cannot end one prompt of several: what is to end early goes by itself.
        self._together = together if together and settings.stop_when is None else {}
        self._lost = Lost()
        self._max_tokens = settings.max_tokens
        """Of the attempt at hand."""
        self._prompt: Any = None
        """As it was sent."""
        self._under_way = False
        """Whether a request was sent whose answer is neither whole nor counted as lost."""
        self._failed: ModelServerError | None = None
        """Why the attempt before the one at hand failed."""
        self.answer = Answer()

    @property
    def metadata(self) -> dict[str, Any]:
        """The answer's ``response_metadata``."""
        return metadata_of(
            self.answer,
            self._settings,
            self._lost,
            self._prompts.model,
            opens_thought=self._prompts.opens_thought,
        )

    @property
    def usage(self) -> UsageMetadata:
        """The answer's ``usage_metadata``."""
        most_read = 0 if self.answer.counted else self._prompt_bound()
        return usage_of(self.answer, self._lost, most_read=most_read, most_written=self._max_tokens)

    def _prompt_bound(self) -> int:
        """Upper bound of the prompt's tokens."""
        # A token is at least a byte of the text, or one of a template's marks, which are shorter than JSON's.
        return len(json.dumps(self._prompt, ensure_ascii=False).encode("utf-8", "surrogatepass"))

    async def finish(self) -> None:
        """Get the whole answer.

        Raises:
            ModelServerError: All attempts failed, or the server refuses.
            TimeoutError: Nothing arrived in time.
        """
        limit = asyncio.timeout(self._settings.timeout)
        try:
            with self._telling():
                async with limit:
                    await self._server.retrying(self._attempt)
        except TimeoutError as error:
            if not limit.expired():
                raise
            self._cut(error)

    async def pieces(self) -> AsyncGenerator[str, None]:
        """Yield the answer's text as it arrives.

        Raises:
            ModelServerError: The server refuses, all attempts failed, or one did after text had arrived.
            TimeoutError: Nothing arrived in time.
        """
        timeout = self._settings.timeout
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        # Only the waiting is under the limit: between two pieces the consumer is at work.
        try:
            with self._telling():
                async with asyncio.timeout_at(deadline):
                    events = await self._server.retrying(self._open)
        except TimeoutError as error:
            self._cut(error)
            return
        async with contextlib.aclosing(events):
            piece: str | None = self.answer.text
            if piece:
                yield piece
            while piece is not None and not self._stops(piece):
                try:
                    piece = await self._next_piece(events, deadline)
                except TimeoutError as error:
                    self._cut(error)
                    return
                if piece:
                    yield piece

    async def _next_piece(self, events: Events, deadline: float | None) -> str | None:
        """The text of the next event; None at the end of the answer."""
        with self._telling():
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

    def _stops(self, piece: str) -> bool:
        """Tell whether the caller wants no more, after this piece; leaving the stream ends the request."""
        watch = self._settings.stop_when
        if not piece or watch is None or self.answer.finish_reason is not None or not watch(self.answer.text):
            return False
        self.answer.stop()
        return True

    async def _attempt(self) -> None:
        path, body = await self._request()
        seen = self._settings.timeout is not None or self._settings.stop_when is not None
        try:
            if not seen and not self._together:
                self._take(await self._server.post_once(path, body))
            else:
                # A stream tells the tokens so far, and leaves something to answer with.
                async with contextlib.aclosing(self._events(path, body, seen=seen)) as events:
                    async for event in events:
                        if self._stops(self._take(event)):
                            break
            self._check_whole()
        except ModelServerError as error:
            self._lose(error, told=seen or not self._together)
            raise
        if self.answer.reasoned and self._prompts.switch_to_raw():
            self._lose()
            await self._attempt()
        elif not self._stop_is_known() and not self._read_kept_stop():
            self._lose()
            await self._find_kept_stop()
            await self._attempt()

    def _stop_is_known(self) -> bool:
        """Whether the server has reported which stop string it met, where one was asked for."""
        answer = self.answer
        assert answer.finish_reason is not None
        self._prompts.stop_field = answer.stop_field or self._prompts.stop_field
        return bool(answer.stop_field) or not self._settings.stop or classify(answer.finish_reason) != "ended"

    def _read_kept_stop(self) -> bool:
        """Tell by the end of the text which stop string was met, where the server keeps it there."""
        if not self._prompts.keeps_stop:
            return False
        answer, stops = self.answer, self._settings.stop
        answer.stop_reason = next((stop for stop in stops if answer.text.endswith(stop)), None)
        answer.text = answer.text.removesuffix(answer.stop_reason or "")
        answer.stop_field = self._prompts.stop_field = KEPT
        return True

    async def _find_kept_stop(self) -> None:
        """Find out whether the server can keep a stop string in the text, which serves as well.

        A gateway may drop ``stop_reason`` from vLLM's answers and let ``include_stop_str_in_output`` through.

        Raises:
            ChatModelContractError: It does not.
        """
        self._max_tokens = min(self._granted(), 16)
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
                "the end of a step cannot be told from that of the solution. vLLM reports it in stop_reason, "
                "SGLang in matched_stop: have the gateway let that field through, or wrap the gateway's chat "
                "model in ContinueByPrompt"
            )

    async def _open(self) -> Events:
        """Begin a stream: wait for its first text, until when a failure can be made good."""
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
        if self._together:
            line = self._together[self._server.root]
            return line.events(body, seen=seen, within=self._settings.timeout)
        return self._server.events(path, body | STREAM)

    async def _request(self) -> tuple[str, dict[str, Any]]:
        self._max_tokens = self._granted()
        settings = replace(self._settings, max_tokens=self._max_tokens)
        path, body = await self._prompts.request(self._messages, settings)
        self._prompt = body.get("prompt", body.get("messages"))
        self._under_way = True
        if self._prompts.keeps_stop and self._settings.stop:
            body |= _KEEP_STOP
        return path, body | self._extra_body

    def _granted(self) -> int:
        """Most tokens that the next attempt may generate: all attempts share what the call was granted.

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

    def _lose(self, error: ModelServerError | None = None, *, told: bool = True) -> None:
        """Count what has arrived as lost; a time limit that ends later must not count it again."""
        self._failed, self._under_way = error, False
        worked_on = error is not None and error.begun
        self._lost.add(self.answer, max_tokens=self._max_tokens, worked_on=worked_on, told=told)
        self.answer = Answer()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Let an error that ends the call report what its attempts have used, the one at hand included."""
        try:
            yield
        except (ModelServerError, ChatModelContractError) as error:
            if self._under_way:
                self._lose(error if isinstance(error, ModelServerError) else None)
            error.attempts = self._lost.reported
            raise
        except (TimeoutError, asyncio.CancelledError) as error:
            lost = copy.copy(self._lost)
            if self._under_way:
                lost.add(self.answer, max_tokens=self._max_tokens, worked_on=True)
            error.attempts = lost.reported  # type: ignore[union-attr]
            raise

    def _cut(self, error: TimeoutError) -> None:
        """Make an answer of what has arrived within the time limit."""
        if not self.answer.begun:
            raise CallTimeoutError(
                f"nothing arrived from {self._server.root} within timeout={self._settings.timeout} seconds",
                error.attempts,  # type: ignore[attr-defined]
            ) from error
        self.answer.timed_out = True
        self.answer.finish_reason, self.answer.stop_reason = "length", None

    def _check_whole(self) -> None:
        reason = self.answer.finish_reason
        if reason is None or classify(reason) == "failed":
            raise TransientError(f"the server at {self._server.root} broke off its answer", begun=True)
        try:
            self.answer.check()
        except AnswerError as error:
            raise self._unusable(error) from error
