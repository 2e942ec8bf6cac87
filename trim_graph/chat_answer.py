"""The answer of `TrimChatModel`, made of what a run has changed as it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from .budget.usage import Spend
from .segment import DEFAULT_DELIMITER, separator_of
from .state import Step
from .summary import usage_of


class Answer:
    """Makes chunks of the events of a run; ends at a stop string, or behind so many tokens."""

    def __init__(self, stops: tuple[str, ...], max_tokens: int | None) -> None:
        self.stopped: str | None = None
        self.tokens = 0
        self._stops = stops
        self._max_tokens = max_tokens
        self._finishing = False
        self._held = ""
        self._final: AIMessage | None = None
        self._spend: Spend | None = None
        self._previous: Step | None = None
        self._delimiter = DEFAULT_DELIMITER

    @property
    def ended(self) -> bool:
        """Whether no more is wanted."""
        full = self._max_tokens is not None and self.tokens >= self._max_tokens and not self._finishing
        return self.stopped is not None or full

    def take(self, updates: dict[str, dict[str, Any] | None]) -> Iterator[ChatGenerationChunk]:
        """Take in what nodes have changed, and give the text that is new.

        Not from the stream of messages: where that is listened to, LangChain streams every inner call.
        """
        for update in updates.values():
            if update is None:  # a node that changed nothing
                continue
            self._finishing = self._finishing or bool(update.get("stopped"))
            self._spend = update.get("spend", self._spend)
            self._final = update.get("messages", [self._final])[-1]
            if "run" in update:  # the run begins, and forgets the steps of any other
                self._delimiter = update["run"]["settings"]["delimiter"]
                continue
            for step in update.get("steps", ()):
                before = separator_of(self._previous, self._delimiter) if self._previous else ""
                self._previous = step
                self.tokens += step["tokens"]
                if text := self._shown(before + step["text"]):
                    yield ChatGenerationChunk(message=AIMessageChunk(content=text))
                if self.ended:
                    return

    def _shown(self, text: str) -> str:
        """Return what may be shown: up to a stop string, and without what may be the beginning of one."""
        if not self._stops:
            return text
        seen = self._held + text
        found = [(seen.index(stop), stop) for stop in self._stops if stop in seen]
        if found:
            place, self.stopped = min(found)
            self._held = ""
            return seen[:place]
        keep = max(map(len, self._stops)) - 1
        cut = len(seen) - keep if keep else len(seen)
        self._held = seen[max(cut, 0) :]
        return seen[: max(cut, 0)]

    def last(self) -> ChatGenerationChunk:
        """Give what was held back, and what the run has used."""
        final = self._final
        if final is None:
            assert self._spend is not None
            reason = "length" if self.stopped is None else "stop"
            metadata = {"model_name": "trim-graph", "finish_reason": reason, "stop_reason": self.stopped}
            usage: UsageMetadata | None = usage_of(self._spend)
        else:
            metadata, usage = final.response_metadata, final.usage_metadata
        return ChatGenerationChunk(
            message=AIMessageChunk(
                content=self._held,
                response_metadata=metadata,
                usage_metadata=usage,
                chunk_position="last",
            )
        )


def whole(chunks: list[ChatGenerationChunk]) -> ChatResult:
    """Put the chunks of an answer together."""
    text = "".join(chunk.text for chunk in chunks)
    told = chunks[-1].message
    assert isinstance(told, AIMessageChunk)
    message = AIMessage(text, response_metadata=told.response_metadata, usage_metadata=told.usage_metadata)
    return ChatResult(generations=[ChatGeneration(message=message)])
