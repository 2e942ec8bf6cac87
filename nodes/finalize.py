"""Join the steps into one AIMessage, with the usage of both models and the summary of the run."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig

from trim_graph.accounts import Accounts
from trim_graph.events import emit
from trim_graph.ledger import Ledger
from trim_graph.segment import join_steps, separator_of
from trim_graph.settings import settings_of
from trim_graph.state import TrimState, applied
from trim_graph.summary import summarise, usage_of

from .calling import charge_lost_calls
from .looking_ahead import LookingAhead
from .node import Node
from .unsaved import astored_calls, invocation_of, stored_calls
from .work_ahead import work_ahead_of


def finalize_node(ledger: Ledger | None = None, looking: LookingAhead | None = None) -> Node:
    """Build the node.

    Args:
        ledger: Tells what the accounts of a run have used.
        looking: Tells what the small model wrote for nothing.
    """

    def run(state: TrimState, config: RunnableConfig) -> dict[str, Any]:
        return billed(state, stored_calls(state, config), config)

    def billed(state: TrimState, stored: Collection[str], config: RunnableConfig) -> dict[str, Any]:
        update = charge_lost_calls(state, stored, invocation_of(config))
        spend = None if looking is None else looking.settle(applied(state, update))
        if spend is not None:
            update["spend"] = spend
        return {**update, **ended(applied(state, update))}

    def ended(state: TrimState) -> dict[str, Any]:
        delimiter = settings_of(state["run"]).delimiter
        summary = summarise(state)
        if accounts := Accounts(state["run"].get("accounts"), ledger):
            summary["accounts"] = accounts.used()
        steps = state["steps"]
        text = join_steps(steps, delimiter)
        if steps:
            text = text.removesuffix(separator_of(steps[-1], delimiter))
        models = {step["writer"]: step["model"] for step in steps}
        message = AIMessage(
            content=text,
            id=state["run"]["message_id"],
            usage_metadata=usage_of(state["spend"]),
            response_metadata={
                "model_name": " + ".join(models[w] for w in ("small", "large") if w in models)
                or "trim-graph",
                "finish_reason": "stop" if summary["stopped"] == "finished" else "length",
                "stop_reason": None,
                "trim": summary,
            },
        )
        emit("finished", summary=summary)
        return {"messages": [message], "trim": summary}

    async def arun(state: TrimState, config: RunnableConfig) -> dict[str, Any]:
        if (under_way := work_ahead_of(config)) is not None:
            await under_way.close()
        stored = await astored_calls(state, config)
        if ledger is None:
            return billed(state, stored, config)
        return await asyncio.to_thread(billed, state, stored, config)

    return Node(run, arun, name="finalize")
