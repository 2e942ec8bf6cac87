"""Models that answer at once: what is left is the graph's own, and LangGraph's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.graph import START, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict

from trim_graph.adapters.base import ScorableStep, ScorerReply
from trim_graph.segmentation import DEFAULT_DELIMITER

from .ways import Models, Written

STEPS = 10
TOKENS = 12


class InstantModel(BaseChatModel):
    """Writes ``steps`` steps of about 60 letters, each after ``delay`` seconds."""

    continues_exactly: ClassVar[bool] = True
    delay: float = 0.0
    steps: int = STEPS

    @property
    def _llm_type(self) -> str:
        return "instant"

    def step_after(self, messages: list[BaseMessage]) -> Written:
        """Returns the step that follows a conversation."""
        last = messages[-1]
        done = str(last.content).count(DEFAULT_DELIMITER) if isinstance(last, AIMessage) else 0
        if done == self.steps - 1:
            return Written("The answer is \\boxed{1}.", True, TOKENS)
        return Written(f"Step {done + 1}: what is said here takes about sixty letters.", False, TOKENS)

    async def take(self, step: Written) -> None:
        """Takes the time that writing a step takes."""
        await asyncio.sleep(self.delay)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _answer(self.step_after(messages))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        step = self.step_after(messages)
        await self.take(step)
        return _answer(step)


def _answer(step: Written) -> ChatResult:
    message = AIMessage(
        step.text,
        usage_metadata={
            "input_tokens": 100,
            "output_tokens": step.tokens,
            "total_tokens": 100 + step.tokens,
        },
        response_metadata={
            "model_name": "instant",
            "finish_reason": "stop",
            "stop_reason": None if step.ended else DEFAULT_DELIMITER,
        },
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def _low(number: int) -> bool:
    """Which steps are written again."""
    return number % 5 == 2


REGENERATED = sum(map(_low, range(STEPS)))
"""Of ``STEPS`` steps."""


class InstantScorer:
    """Rates every step, one in five of them low enough to be written again."""

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Rate them."""
        return ScorerReply([0.5 if _low(number) else 0.99 for number in range(len(steps))], 100)

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Rate them."""
        return self.score(question, steps)


def instant(delay: float = 0.0, steps: int = STEPS) -> Models:
    """Both models and the scorer."""
    return Models(*(InstantModel(delay=delay, steps=steps) for _ in range(2)), InstantScorer())


class _Count(TypedDict):
    left: int


def empty() -> Any:
    """A LangGraph of four empty nodes: generate, score, route, finalize; as many supersteps as the graph's.

    ``left`` counts what is written: ``STEPS`` drafts, scored each, and ``REGENERATED`` steps that are not.
    """
    every = (STEPS + REGENERATED) // REGENERATED

    async def nothing(state: _Count) -> dict[str, Any]:
        return {}

    async def route(state: _Count) -> Command[Any]:
        left = state["left"]
        goto = "score" if left % every == 0 else "generate"  # two supersteps, or three
        return Command(update={"left": left - 1}, goto=goto if left > 0 else "finalize")

    builder = StateGraph(_Count)
    for name in ("generate", "score", "finalize"):
        builder.add_node(name, nothing)
    builder.add_node("route", route, destinations=("generate", "score", "finalize"))
    builder.add_edge(START, "route")
    builder.add_edge("generate", "score")
    builder.add_edge("score", "route")
    return builder.compile()
