"""Two applications around one trim graph; copy the one that is like yours."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, Send
from typing_extensions import TypedDict

from trim_graph.adapters import ChatTransformers, TransformersProcessReward
from trim_graph.budget import Budget
from trim_graph.embedding import trim_node
from trim_graph.examples.arithmetic import LARGE, PRM, SMALL
from trim_graph.graph import create_trim_graph
from trim_graph.policies import threshold
from trim_graph.settings import TrimContext

ROUNDS = 2
"""Times that a tutor asks for a solution without an answer."""


def solver() -> Any:
    """Builds the trim graph, without a checkpointer: it takes the application's."""
    small, large = ChatTransformers(model=str(SMALL)), ChatTransformers(model=str(LARGE))
    scorer = TransformersProcessReward(model=str(PRM))
    budget = Budget(large_tokens=100)
    return create_trim_graph(small, large, scorer, policy=threshold(0.9), budget=budget)


# The application shares its `messages` with the trim graph, and has a state and a context of its own.


class TutorState(MessagesState):
    """State of the tutor besides the messages."""

    solved: bool
    rounds: int


@dataclass
class TutorContext:
    """Context of a call: the application's own settings, and under ``trim`` those of the trim graph."""

    pupil: str = "nobody"
    trim: TrimContext | None = None


def check(state: TutorState) -> Command[Literal["solve", "__end__"]]:
    """Looks for an answer; without one, asks again: a loop round the subgraph."""
    last = state["messages"][-1]
    rounds = state.get("rounds", 0) + 1
    solved = isinstance(last, AIMessage) and last.response_metadata["trim"]["answer"] is not None
    if solved or rounds >= ROUNDS:
        return Command(update={"solved": solved, "rounds": 0}, goto="__end__")
    return Command(update={"messages": [HumanMessage("What is the answer?")], "rounds": rounds}, goto="solve")


def tutor(graph: Any, checkpointer: Any = None) -> Any:
    """Builds the application: solves, checks, perhaps solves again."""
    builder = StateGraph(TutorState, TutorContext)
    builder.add_node("solve", graph)
    builder.add_node("check", check)
    builder.add_edge(START, "solve")
    builder.add_edge("solve", "check")
    return builder.compile(checkpointer=checkpointer, name="tutor")


# The application has other keys, and solves all problems of a sheet at the same time.


class Sheet(TypedDict, total=False):
    """A sheet of problems and what became of them."""

    problems: list[str]
    answers: Annotated[list[str | None], operator.add]


def each(state: Sheet) -> list[Send]:
    """Sends every problem to a branch of its own."""
    return [Send("solve", {"problem": problem}) for problem in state["problems"]]


def worksheet(graph: Any, checkpointer: Any = None) -> Any:
    """Builds the application: one wrapper node, as many branches as there are problems."""

    def solved(result: dict[str, Any]) -> dict[str, Any]:
        return {"answers": [result["trim"]["answer"]]}

    builder = StateGraph(Sheet)
    builder.add_node("solve", trim_node(graph, problem="problem", solution=solved))
    builder.add_conditional_edges(START, each, ["solve"])
    return builder.compile(checkpointer=checkpointer, name="worksheet")
