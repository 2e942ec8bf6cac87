"""Questions: each request is a run of the configuration's graph, as `TrimChatModel` makes it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata

from trim_graph.budget.ledger import Ledger
from trim_graph.budget.usage import LargeUsage
from trim_graph.chat_model import TrimChatModel
from trim_graph.config import Parts, TrimConfig, build_graph
from trim_graph.shadow.runner import ShadowBase
from trim_graph.state import Summary
from trim_graph.summary import usage_of

from .errors import ApiError, of_run
from .operating_points import OperatingPoint, tightened
from .protocol import ChatCompletionRequest
from .turns import TurnSolver

logger = logging.getLogger("trim_graph.server")
_SAMPLINGS_KEPT = 16
_BUFFERED = 8
"""Most parts of an answer that wait for a slow client."""


class Question(NamedTuple):
    """A request that was accepted.

    Attributes:
        id: Id of the request and of its answer.
        request: The body.
        point: Its operating point.
        owner: Name of the API key's owner; None without keys.
        callbacks: Tracers of its run.
    """

    id: str
    request: ChatCompletionRequest
    point: OperatingPoint
    owner: str | None
    callbacks: Sequence[Any]


class Ended(NamedTuple):
    """The end of an answer.

    Attributes:
        finish_reason: ``stop``, ``tool_calls`` or ``length``.
        usage: Usage of both models together, in OpenAI's shape.
        summary: Summary of the run.
        steps: Writer, tokens, score and decision of each step.
        tool_calls: Calls of a turn, in OpenAI's shape.
    """

    finish_reason: str
    usage: dict[str, Any]
    summary: Summary
    steps: list[dict[str, Any]]
    tool_calls: Sequence[dict[str, Any]] = ()


class Solver:
    """Runs questions.

    Args:
        config: The configuration.
        parts: Its models and scorer.
        ledger: Holds the accounts of API keys, if users have quotas.
        shadow: Routes beside the answers of one model, if the configuration has it so.
    """

    def __init__(
        self, config: TrimConfig, parts: Parts, ledger: Ledger | None, shadow: ShadowBase | None = None
    ) -> None:
        # Of each request its operating point says whether it is the shadow's.
        self._config = config.model_copy(update={"shadow": None})
        self._parts, self._ledger, self._shadow = parts, ledger, shadow
        self._model = lru_cache(_SAMPLINGS_KEPT)(self._build)
        self._turns = TurnSolver(config, parts, ledger)

    def check(self) -> None:
        """Builds the graph, so that parts that do not go together are found before the first request.

        Raises:
            SettingsError: They do not.
        """
        self._model()

    def _build(self, **sampling: float) -> TrimChatModel:
        """Returns the chat model whose two models sample by a request's settings."""
        small, large, scorer = self._parts
        parts = Parts(small.bind(**sampling), large.bind(**sampling), scorer) if sampling else self._parts
        return TrimChatModel(graph=build_graph(self._config, parts=parts, ledger=self._ledger))

    async def answer(self, question: Question) -> AsyncGenerator[str | Ended]:
        """Yields each accepted piece of text, and last the end of the answer.

        Closing the generator cancels the calls of models; what they used is charged.

        Raises:
            ApiError: The run failed, or the account of the key has nothing left and the configuration stops
                then.
        """
        begun = time.monotonic()
        try:
            async for part in self._turn(question) if question.request.is_turn else self._run(question):
                yield part
        except ApiError:
            raise
        except Exception as error:
            wrong = of_run(error, question.id)
            if wrong.status >= 500:
                logger.error(
                    "%s failed after %.2f s: %s: %s",
                    question.id,
                    time.monotonic() - begun,
                    type(error).__name__,
                    error,
                    exc_info=error if wrong.status == 500 else None,
                )
            raise wrong from error

    def _settings(self, question: Question) -> dict[str, Any]:
        """Returns the fields of `trim_graph.TrimContext` that a question sets."""
        settings: dict[str, Any] = dict(question.point.settings)
        if question.owner is not None and self._config.quotas.user is not None:
            settings["user"] = question.owner
        if question.request.seed is not None:
            settings["seed"] = question.request.seed
        if (budget := tightened(self._config.budget, question.request.trim.budget)) is not None:
            settings["budget"] = budget
        if (asked := question.request.limit) is not None:
            own = self._config.settings.max_tokens
            settings["max_tokens"] = asked if own is None else min(own, asked)
        return settings

    async def _turn(self, question: Question) -> AsyncGenerator[str | Ended]:
        """Yields the text of a turn, if it has some, and its end."""
        request, settings = question.request, self._settings(question)
        turn = await self._turns.route(request, settings, question.callbacks)
        if self._shadow is not None and question.point.kind == "shadow":
            self._shadow.skip()
        _check_quota(turn.summary, is_empty=turn.message is None)
        if turn.message is not None and (text := str(turn.message.text)):
            yield text
        usage = _usage(usage_of(turn.summary["usage"]))
        yield Ended(turn.finish_reason, usage, turn.summary, turn.outcome, turn.tool_calls)

    async def _run(self, question: Question) -> AsyncGenerator[str | Ended]:
        request, settings = question.request, self._settings(question)
        chunks = self._model(**request.sampling).astream(
            request.conversation(), {"callbacks": list(question.callbacks)}, stop=request.stop, trim=settings
        )
        written = ""
        async with contextlib.aclosing(cast(AsyncGenerator[AIMessageChunk], chunks)) as stream:
            async for chunk in stream:
                if text := str(chunk.text):
                    written += text
                    yield text
                if chunk.chunk_position == "last":
                    ended = _ended(chunk)
                    self._observe(question, written, chunk)
                    if "user" in settings and "accounts" not in ended.summary:
                        ended = await self._with_account(ended, f"user:{question.owner}")
                    yield ended

    def _observe(self, question: Question, text: str, last: AIMessageChunk) -> None:
        """Gives the answer of one model to the shadow, which never raises; one that was cut is unsuitable."""
        if self._shadow is None or question.point.kind != "shadow":
            return
        # A stop string of the client's is the finish reason "stop" too.
        if last.response_metadata["trim"]["stopped"] != "finished":
            self._shadow.skip()
            return
        answer = AIMessage(text, usage_metadata=last.usage_metadata, response_metadata=last.response_metadata)
        self._shadow.observe(question.request.conversation(), answer)

    async def _with_account(self, ended: Ended, account: str) -> Ended:
        """Returns the end of an answer that was cut before the run summed its accounts up."""
        assert self._ledger is not None
        used = await asyncio.to_thread(self._ledger.used, account)
        summary = Summary(**{**ended.summary, "accounts": {account: used._asdict()}})
        return ended._replace(summary=summary)


def _ended(chunk: AIMessageChunk) -> Ended:
    metadata = chunk.response_metadata
    summary: Summary = metadata["trim"]
    _check_quota(summary, is_empty=not any(summary["steps"].values()))
    assert chunk.usage_metadata is not None
    return Ended(metadata["finish_reason"], _usage(chunk.usage_metadata), summary, metadata["trim_steps"])


def _check_quota(summary: Summary, *, is_empty: bool) -> None:
    """Refuses an answer that an exhausted quota has left empty.

    Raises:
        ApiError: 429, it has.
    """
    if summary["stopped"] == "budget" and is_empty and _is_quota_exhausted(summary):
        raise ApiError(
            429,
            "the quota of this API key leaves no further call of the large model",
            kind="insufficient_quota",
            code="insufficient_quota",
        )


def _is_quota_exhausted(summary: Summary) -> bool:
    """Returns whether an account prevented a large call, rather than a limit of the run alone."""
    accounts, notes = summary.get("accounts", {}), summary["notes"]
    limits = [f"the limit on {name} of {account} " for account in accounts for name in LargeUsage._fields]
    return any(note.startswith(limit) for limit in limits for note in notes)


def _usage(usage: UsageMetadata) -> dict[str, Any]:
    return {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage["total_tokens"],
        "prompt_tokens_details": {"cached_tokens": usage["input_token_details"]["cache_read"]},
    }


class Running(AsyncIterator[str | Ended]):
    """An answer that is written in a task of its own, so that a client that leaves can end it at once.

    Args:
        answer: What `Solver.answer` returns.
    """

    def __init__(self, answer: AsyncGenerator[str | Ended]) -> None:
        self._parts: asyncio.Queue[str | Ended | None] = asyncio.Queue(_BUFFERED)
        self._task = asyncio.create_task(self._write(answer))

    async def _write(self, answer: AsyncGenerator[str | Ended]) -> None:
        try:
            async with contextlib.aclosing(answer):
                async for part in answer:
                    await self._parts.put(part)
        finally:
            if not cast(asyncio.Task[None], asyncio.current_task()).cancelling():
                await self._parts.put(None)

    async def __anext__(self) -> str | Ended:
        if (part := await self._parts.get()) is None:
            # Not awaited itself, since a caller that gives up would cancel it.
            await asyncio.wait({self._task})
            self._task.result()  # raises what ended it
            raise StopAsyncIteration
        return part

    async def aclose(self) -> None:
        """Cancels what is left of the run, and waits until its calls have ended."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
