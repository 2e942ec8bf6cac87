"""The node `score_step`: one metered call of the scorer, for the accepted steps and the draft."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import Context
from functools import partial
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import set_config_context

from trim_graph.adapters.base import ScorableStep, Scorer, read_scores, scorable_step
from trim_graph.budget.usage import add_usage, attempts_of, charge_scorer
from trim_graph.calls.model_call import NEVER_CAUGHT, cut_off, failure, note_origin
from trim_graph.calls.speculation import Speculation
from trim_graph.errors import FailedAttempts, is_context_full
from trim_graph.routing import RunView
from trim_graph.routing.router import way_out
from trim_graph.runtime import GRACE, CallNode, Invocation, call_with_timeout, emit, tagged
from trim_graph.state import Draft, Step, TrimState


def score_step_node(
    scorer: Scorer,
    speculation: Speculation | None = None,
    *,
    solution: bool = True,
    extend: Callable[[RunView, list[ScorableStep]], list[ScorableStep]] = lambda view, steps: steps,
) -> CallNode:
    """Builds the node.

    Args:
        scorer: Rates the steps.
        speculation: Has the small model write the next step meanwhile.
        solution: Whether the steps form a solution, which ends if it fills the scorer's context; else they
            are an agent's turns.
        extend: Adds to the accepted steps and the draft what the scorer gets besides.
    """
    policy = None if speculation is None else speculation.policy
    segmentation = None if speculation is None else speculation.segmentation

    def run(state: TrimState, config: RunnableConfig, invocation: Invocation | None) -> dict[str, Any]:
        begun, view = time.monotonic(), RunView(state, policy, segmentation)
        left = view.seconds_left
        if speculation is not None and view.settings.lookahead:
            speculation.before_score(view, config, invocation)
        try:
            steps = extend(view, _scorable(view))
            with _quiet(config) as context:
                # A scorer that hangs stays in its context: one of its own, then.
                ask = partial(context.copy().run, scorer.score, view.run["question"], steps)
                answer = call_with_timeout(left, ask)
            return _apply_reply(state, answer, time.monotonic() - begun)
        except Exception as error:
            return _handle_error(view, scorer, error, time.monotonic() - begun, solution=solution)

    async def arun(state: TrimState, config: RunnableConfig, invocation: Invocation | None) -> dict[str, Any]:
        begun, view = time.monotonic(), RunView(state, policy, segmentation)
        left = view.seconds_left
        if speculation is not None and view.settings.lookahead:
            speculation.before_score(view, config, invocation)
        try:
            async with asyncio.timeout(None if left is None else left + GRACE):
                with _quiet(config) as context:
                    asked = scorer.ascore(view.run["question"], extend(view, _scorable(view)))
                    answer = await asyncio.create_task(asked, context=context)
            return _apply_reply(state, answer, time.monotonic() - begun)
        except Exception as error:
            return _handle_error(view, scorer, error, time.monotonic() - begun, solution=solution)

    return CallNode(run, arun, name="score_step")


def _handle_error(
    view: RunView, scorer: Scorer, error: Exception, seconds: float, *, solution: bool
) -> dict[str, Any]:
    """Returns the update after a scorer's error, if the run can continue or end there.

    Raises:
        Exception: The error itself, if the settings declare no way out.
    """
    state, left = view.state, view.seconds_left
    used = add_usage(view.usage, {"seconds": seconds})
    if isinstance(error, TimeoutError) and left is not None and seconds >= left:
        return {"failed": cut_off("scorer"), "usage": used}
    failed = failure(error, "scorer", context_full=is_context_full(error))
    way = way_out(failed, view.settings, view.steps, solution=solution)
    if way is None or isinstance(error, NEVER_CAUGHT):
        note_origin(error, "scorer", scorer, view, solution=solution)
        raise error
    if way == "end":
        return {"failed": failed, "usage": used}
    emit("failed", part="scorer", error=failed["error"])
    lost = attempts_of(error)
    # A scorer that reports no usage at all, such as a function, has nothing left to report.
    unreported = lost["unknown"] and getattr(error, "attempts", None)
    return {
        "failed": failed,
        "usage": charge_scorer(view.usage, seconds, lost, failed=True),
        **(_note_unreported(state) if unreported else {}),
    }


def _note_unreported(state: TrimState) -> dict[str, Any]:
    """Returns the update with a note that the scorer's usage is not exact; a run has it once."""
    note = "attempts of the scorer broke off unreported, so its tokens and cost are not exact"
    if note in state["notes"]:
        return {}
    emit("note", text=note)
    return {"notes": [*state["notes"], note]}


def _quiet(config: RunnableConfig) -> AbstractContextManager[Context]:
    """Sets tags that keep the tokens of a scorer's own model, such as an LLM judge, out of the stream."""
    return set_config_context(tagged(config, "nostream", "trim:score"))


def _scorable(view: RunView) -> list[ScorableStep]:
    assert view.draft is not None
    steps: list[Step | Draft] = [*view.steps, view.draft]
    return [scorable_step(step) for step in steps]


def _apply_reply(state: TrimState, answer: Any, seconds: float) -> dict[str, Any]:
    draft, known = state["draft"], state["scores"]
    assert draft is not None
    count = len(state["steps"])
    reply = read_scores(answer, count + 1)
    used = FailedAttempts(
        count=reply.failed_attempts,
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
        unknown=reply.unknown_attempts,
    )
    if used["count"]:
        emit("retried", part="scorer", attempts=used["count"])
    usage = charge_scorer(state["usage"], seconds, used, failed=False)
    update: dict[str, Any] = {
        "draft": Draft(**{**draft, "score": reply.scores[-1]}),
        "usage": usage,
    }
    if used["unknown"]:
        update |= _note_unreported(state)
    # A step of the large model gets its score here, together with the next draft.
    late = {str(i): reply.scores[i] for i in range(count) if str(i) not in known}
    if late:
        update["scores"] = late
    return update
