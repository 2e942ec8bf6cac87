"""Models from a script for the shop's question: what the small one gets wrong, a judge notices.

The tools are real, and so is the judge's prompt; the models only say the texts below, whatever the question.
"""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.messages.tool import tool_call

from trim_graph.adapters import LLMJudge
from trim_graph.testing import ScriptedToolModel

MISTAKE = "sum(unit_price)"
"""The small model's wrong query: it counts each product once, whatever its quantity."""


def small_turn(messages: Sequence[BaseMessage]) -> AIMessage:
    """Returns the small model's next turn."""
    return _turn(messages, MISTAKE, by="small")


def large_turn(messages: Sequence[BaseMessage]) -> AIMessage:
    """Returns the large model's next turn."""
    return _turn(messages, "sum(quantity * unit_price)", by="large")


def rating(messages: Sequence[BaseMessage]) -> str:
    """Returns the judge's digit."""
    step = str(messages[-1].text).partition("Next step:")[2]
    return "1" if MISTAKE in step else "9"


def _turn(messages: Sequence[BaseMessage], total: str, *, by: str) -> AIMessage:
    asked = max(index for index, message in enumerate(messages) if isinstance(message, HumanMessage))
    results = [str(message.text) for message in messages[asked:] if isinstance(message, ToolMessage)]
    if not results:
        sql = f"SELECT {total} AS total FROM orders WHERE customer = 'Ada Lovelace'"
        return AIMessage("", tool_calls=[tool_call(name="query", args={"sql": sql}, id=f"{by}-query")])
    if len(results) == 1:
        args = {"expression": f"{results[0].splitlines()[-1]} * 1.19"}
        return AIMessage("", tool_calls=[tool_call(name="calculator", args=args, id=f"{by}-calculator")])
    return AIMessage(f"With tax they came to {float(results[1]):.2f}.")


def models() -> tuple[ScriptedToolModel, ScriptedToolModel, LLMJudge]:
    """Returns the small model, the large one, and the judge."""
    judge = ScriptedToolModel(script=rating, name="scripted judge")
    return (
        ScriptedToolModel(script=small_turn, name="scripted small"),
        ScriptedToolModel(script=large_turn, name="scripted large"),
        LLMJudge(judge),
    )
