"""Models and a scorer that give way to the event loop where a test says so, without a clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatResult
from pydantic import Field

from trim_graph.testing import ScriptedChatModel


async def pause(turns: int) -> None:
    """Lets other tasks run so many times."""
    for _ in range(turns):
        await asyncio.sleep(0)


def written_before(messages: Sequence[Any]) -> str:
    return str(messages[-1].text) if isinstance(messages[-1], AIMessage) else ""


class PacedModel(ScriptedChatModel):
    """Lets other tasks run before it answers; hangs at prefixes in ``hangs``; fails where ``fails`` says so.

    Its calls cannot be reported to end: who gives one up is not reported what it has used.
    """

    turns: int = 0
    hangs: Any = frozenset()
    fails: Callable[[str, int], bool] = lambda prefix, call: False
    begun: list[str] = Field(default_factory=list)
    """The prefix of every asynchronous call."""
    cancelled: list[str] = Field(default_factory=list)

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        prefix = written_before(messages)
        self.begun.append(prefix)
        number = len(self.begun)
        try:
            await self._pace(prefix, kwargs.get("stop_when"))
        except asyncio.CancelledError:
            self.cancelled.append(prefix)
            raise
        if self.fails(prefix, number):
            raise ConnectionError("the test asked for it")
        return self._generate(messages, stop, **kwargs)

    async def _pace(self, prefix: str, stop_when: Any) -> None:
        await pause(self.turns)
        if prefix in self.hangs:
            await asyncio.Event().wait()


class StoppableModel(PacedModel):
    """Ends where ``stop_when`` says so, and reports what it has written.

    At prefixes in ``hangs`` it writes a word a turn, for ever, after ``silent`` turns without one.
    """

    takes_stop_when: ClassVar[bool] = True
    silent: int = 0
    ended_at: dict[str, int] = Field(default_factory=dict)
    """Words that a call had written when it was reported to end, by its prefix."""
    writing: asyncio.Event = Field(default_factory=asyncio.Event)
    """Set once a call that hangs has written a word."""

    async def _pace(self, prefix: str, stop_when: Any) -> None:
        await pause(self.turns)
        if prefix not in self.hangs and stop_when is not None:
            stop_when("word")
        if prefix in self.hangs:
            await pause(self.silent)
            for words in range(1, 10_000):
                await asyncio.sleep(0)
                if stop_when is not None and stop_when("word " * words):
                    self.ended_at[prefix] = words
                    return
                self.writing.set()

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        words = self.ended_at.get(written_before(messages))
        if words is None:
            return super()._generate(messages, stop, **kwargs)
        result = super()._generate(messages, stop, **kwargs)
        self.calls[-1]["tokens"] = words
        message = result.generations[0].message
        assert isinstance(message, AIMessage)
        assert message.usage_metadata is not None
        message.usage_metadata["output_tokens"] = words
        message.response_metadata |= {"finish_reason": "stop", "stop_reason": "stop_when"}
        return result


class PacedScorer:
    """Looks steps up by their texts, and lets other tasks run meanwhile; fails for texts in ``fails``."""

    def __init__(self, scores: dict[str, float] | None = None, *, turns: int = 0, fails: Any = ()) -> None:
        self.scores, self.turns, self.fails = scores or {}, turns, fails
        self.at_work: Callable[[str], None] = lambda text: None
        """Gets the draft once it has waited."""
        self.waits: dict[str, asyncio.Event] = {}
        """What it waits for besides, by the text of the draft."""

    def score(self, question: str, steps: Sequence[Any]) -> list[float]:
        if steps[-1] in self.fails:
            raise ConnectionError("the test asked for it")
        return [self.scores.get(step, 0.9) for step in steps]

    async def ascore(self, question: str, steps: Sequence[Any]) -> list[float]:
        await pause(self.turns)
        if steps[-1] in self.waits:
            await self.waits[steps[-1]].wait()
        self.at_work(steps[-1])
        return self.score(question, steps)
