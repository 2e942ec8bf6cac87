"""Ask the scorer to rate the accepted steps and the draft."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractContextManager
from contextvars import Context
from typing import Any

from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.runnables.config import merge_configs, set_config_context

from trim_graph.adapters.protocols import ScorableStep, Scorer
from trim_graph.adapters.scorers import read_scores
from trim_graph.budget import ScorerSpend, Spend, budget_left
from trim_graph.context import Settings
from trim_graph.state import Draft, Order, Step, TrimState

from .generate_step import GRACE


def score_step_node(scorer: Scorer) -> RunnableLambda[Any, Any]:
    """Build the node from the scorer."""

    def run(state: TrimState, config: RunnableConfig) -> dict[str, Any]:
        begun = time.monotonic()
        with _quiet(config) as context:
            answer = context.run(scorer.score, state["run"]["question"], _scorable(state))
        return _noted(state, answer, time.monotonic() - begun)

    async def arun(state: TrimState, config: RunnableConfig) -> dict[str, Any]:
        begun = time.monotonic()
        settings = Settings.model_validate(state["run"]["settings"])
        left = budget_left(settings.budget, state["spend"], settings.prices).seconds
        try:
            async with asyncio.timeout(None if left is None else left + GRACE) as limit:
                with _quiet(config) as context:
                    asked = scorer.ascore(state["run"]["question"], _scorable(state))
                    answer = await asyncio.create_task(asked, context=context)
        except TimeoutError:
            if not limit.expired():
                raise
            return _timed_out(state, time.monotonic() - begun)
        return _noted(state, answer, time.monotonic() - begun)

    return RunnableLambda(run, arun, name="score_step")


def _quiet(config: RunnableConfig) -> AbstractContextManager[Context]:
    """Tag whatever model the scorer calls: an LLM judge's tokens are no part of the answer."""
    return set_config_context(merge_configs(config, {"tags": ["nostream", "trim:score"]}))


def _timed_out(state: TrimState, seconds: float) -> dict[str, Any]:
    """The run's seconds ended while the scorer was at work: the draft stays, without a decision."""
    order, before = state["order"], state["spend"]
    assert order is not None
    return {
        "order": Order(**{**order, "decided": False, "scored": False}),
        "spend": Spend(**{**before, "seconds": before["seconds"] + seconds}),
    }


def _scorable(state: TrimState) -> list[ScorableStep]:
    draft = state["draft"]
    assert draft is not None
    steps: list[Step | Draft] = [*state["steps"], draft]
    return [
        ScorableStep(
            text=step["text"], writer=step["writer"], mean_token_probability=step["mean_token_probability"]
        )
        for step in steps
    ]


def _noted(state: TrimState, answer: Any, seconds: float) -> dict[str, Any]:
    draft, known, before = state["draft"], state["scores"], state["spend"]
    assert draft is not None
    count = len(state["steps"])
    reply = read_scores(answer, count + 1)
    spend = Spend(**{**before, "seconds": before["seconds"] + seconds})
    spend["scorer"] = ScorerSpend(
        calls=before["scorer"]["calls"] + 1,
        input_tokens=before["scorer"]["input_tokens"] + reply.input_tokens,
    )
    update: dict[str, Any] = {"draft": Draft(**{**draft, "score": reply.scores[-1]}), "spend": spend}
    # A step of the large model is scored here, together with the draft that follows it.
    late = {str(i): reply.scores[i] for i in range(count) if str(i) not in known}
    if late:
        update["scores"] = late
    return update
