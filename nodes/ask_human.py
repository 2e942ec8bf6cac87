"""The node `ask_human`: only interrupts the run, since it runs again when the run is resumed."""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.types import interrupt

from trim_graph.routing.human import answer_to, apply_response, question_to_human
from trim_graph.runtime import Node
from trim_graph.state import TrimState, diff_update


def ask_human_node() -> Node:
    """Builds the node.

    An invalid answer raises `pydantic.ValidationError` from the call that resumes the run; the interrupt
    stays pending.
    """

    def run(state: TrimState, config: RunnableConfig) -> dict[str, Any]:
        answer = interrupt(question_to_human(state), response_schema=answer_to(state))
        settled, human_response = apply_response(state["run"], answer)
        return diff_update(
            state, {"run": settled, "human_response": human_response, "pending_interrupt": None}
        )

    async def arun(state: TrimState, config: RunnableConfig) -> dict[str, Any]:
        return run(state, config)

    return Node(run, arun, name="ask_human")
