"""One call to a model behind a vLLM server: attempts, the time limit, and what failed attempts cost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.messages.ai import UsageMetadata

from .prompts_together import STREAM, PromptsTogether
from .protocols import ModelServerError
from .replicas import Route
from .vllm_prompt import VLLMPrompts
from .vllm_server import TransientError
from .vllm_wire import Answer, CallSettings, Lost, metadata_of, usage_of

Events = AsyncGenerator[dict[str, Any], None]


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
        return usage_of(self.answer, self._lost)

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
            piece = self.answer.text
            if piece:
                yield piece
            while not self._stops(piece):
                try:
                    async with asyncio.timeout_at(deadline):
                        event = await anext(events, None)
                except TimeoutError as error:
                    self._cut(error)
                    return
                except TransientError as error:
                    with self._telling():
                        self._lose(error)
                        raise ModelServerError(f"{error}, after a part of it had been streamed") from error
                if event is None:
                    break
                if piece := self._take(event):
                    yield piece
        self._check_whole()

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
            self._lose(error, told=seen)
            raise
        if self.answer.reasoned and self._prompts.switch_to_raw():
            self._lose()
            await self._attempt()

    async def _open(self) -> Events:
        """Begin a stream: wait for its first text, until when a failure can be made good."""
        path, body = await self._request()
        events = self._events(path, body, seen=True)
        try:
            async for event in events:
                if self._take(event) or self.answer.reasoned:
                    break
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
        path, body = await self._prompts.request(self._messages, self._settings)
        return path, body | self._extra_body

    def _take(self, event: dict[str, Any]) -> str:
        try:
            return self.answer.add(event)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ModelServerError(
                f"{self._server.root} answered with JSON that is no completion: {str(event)[:200]}. "
                "Is it a vLLM server?",
                begun=True,
            ) from error

    def _lose(self, error: ModelServerError | None = None, *, told: bool = True) -> None:
        """Count what has arrived as lost; a time limit that ends later must not count it again."""
        self._lost.add(self.answer, worked_on=error is not None and error.begun, told=told)
        self.answer = Answer()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Let an error that ends the call tell what its attempts have used."""
        try:
            yield
        except ModelServerError as error:
            error.attempts = self._lost.told
            raise

    def _cut(self, error: TimeoutError) -> None:
        """Make an answer of what has arrived within the time limit."""
        if not self.answer.begun:
            raise TimeoutError(
                f"nothing arrived from {self._server.root} within timeout={self._settings.timeout} seconds"
            ) from error
        self.answer.timed_out = True
        self.answer.finish_reason, self.answer.stop_reason = "length", None

    def _check_whole(self) -> None:
        if self.answer.finish_reason in (None, "abort", "error"):
            raise TransientError(f"the server at {self._server.root} broke off its answer", begun=True)
