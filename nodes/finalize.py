"""The node `finalize`: joins the steps into one AIMessage, with the usage of both models and the summary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig

from trim_graph.budget.ledger import Ledger
from trim_graph.budget.reservations import Reservations
from trim_graph.budget.usage import Usage
from trim_graph.calls.interrupted import astored_calls, charge_interrupted_calls, stored_calls
from trim_graph.calls.speculation import Speculation
from trim_graph.calls.warming import Warming
from trim_graph.routing import RunView
from trim_graph.runtime import Node, emit, invocation_of
from trim_graph.segmentation import join_steps, separator_of
from trim_graph.state import TrimState, reduce_state
from trim_graph.summary import summarise, usage_of

OnAnswer = Callable[[Sequence[BaseMessage], AIMessage], None]
"""Gets the conversation and its answer."""


def finalize_node(
    ledger: Ledger | None = None,
    speculation: Speculation | None = None,
    warming: Warming | None = None,
    on_answer: OnAnswer | None = None,
) -> Node:
    """Builds the node.

    Args:
        ledger: Holds the accounts of the run, whose usage the summary reports.
        speculation: Holds the usage of discarded speculative calls.
        warming: Holds the usage of the call that warmed the large model's cache last.
        on_answer: Called with each answer.
    """

    def run(state: TrimState, config: RunnableConfig) -> dict[str, Any]:
        return settled(state, stored_calls(state, config), config)

    def settled(state: TrimState, stored: Collection[str], config: RunnableConfig) -> dict[str, Any]:
        update = charge_interrupted_calls(state, stored, invocation := invocation_of(config))
        charged: Usage = update.get("usage", state["usage"])
        settings = state["run"]["settings"]
        if warming is not None and settings.get("warm_large"):
            update["usage"] = warming.settle(charged, invocation) or charged
        if speculation is not None and settings.get("lookahead"):
            usage = speculation.settle(reduce_state(state, update))
            if usage is not None:
                update["usage"] = usage
        ended = _ended(reduce_state(state, update), ledger)
        if on_answer is not None:
            on_answer(state["messages"], ended["messages"][0])
        return {**update, **ended}

    async def arun(state: TrimState, config: RunnableConfig) -> dict[str, Any]:
        if (invocation := invocation_of(config)) is not None:
            await invocation.close()
        stored = await astored_calls(state, config)
        if ledger is None:
            return settled(state, stored, config)
        return await asyncio.to_thread(settled, state, stored, config)

    return Node(run, arun, name="finalize")


def _ended(state: TrimState, ledger: Ledger | None) -> dict[str, Any]:
    view = RunView(state)
    delimiter, steps = view.settings.delimiter, view.steps
    summary = summarise(view)
    if view.accounts:
        summary["accounts"] = Reservations(view.accounts, ledger).used()
    text = join_steps(steps, delimiter)
    if steps:
        text = text.removesuffix(separator_of(steps[-1], delimiter))
    models = {step["writer"]: step["model"] for step in steps}
    message = AIMessage(
        content=text,
        id=view.run["message_id"],
        usage_metadata=usage_of(view.usage),
        response_metadata={
            "model_name": " + ".join(models[w] for w in ("small", "large") if w in models) or "trim-graph",
            "finish_reason": "stop" if summary["stopped"] == "finished" else "length",
            "stop_reason": None,
            "trim": summary,
        },
    )
    emit("finished", summary=summary)
    return {"messages": [message], "trim": summary}
