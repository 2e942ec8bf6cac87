"""An agent with two tools, on scripted models, whose turns are routed; it records which tools ran."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.messages.tool import tool_call
from langchain_core.tools import tool

from trim_graph.agents import TrimMiddleware
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedScorer, ScriptedToolModel

QUESTION = "What is 12 * 12, and which city is largest?"


def calling(*calls: tuple[str, dict[str, Any]], text: str = "", by: str = "") -> AIMessage:
    """A turn that calls tools, each given by name and arguments; their ids name the writer."""
    made = [tool_call(name=name, args=args, id=f"{by}{index}") for index, (name, args) in enumerate(calls)]
    return AIMessage(text, tool_calls=made)


def multiply(a: int, b: int, *, by: str = "") -> AIMessage:
    return calling(("multiply", {"a": a, "b": b}), by=by)


def talk(turns: int, words: int, by: str) -> list[Any]:
    """A script of some turns that call a tool, and one that ends."""
    said = " ".join(["word"] * words)
    called = ("multiply", {"a": 1, "b": 1})
    return [*(calling(called, text=said, by=f"{by}{index}-") for index in range(turns)), said]


SMALL = [multiply(12, 21, by="small-"), "small answer"]
LARGE = [multiply(12, 12, by="large-"), "LARGE answer"]
WRONG = '[tool_call] multiply {"a": 12, "b": 21}'
RIGHT = '[tool_call] multiply {"a": 12, "b": 12}'


@dataclass
class Rig:
    """One agent and what it was built from."""

    small: Any
    large: Any
    scorer: Any
    middleware: TrimMiddleware
    agent: Any
    ran: list[tuple[Any, ...]] = field(default_factory=list)

    def ask(
        self, question: str = QUESTION, config: Any = None, *, asynchronously: bool = False, **options: Any
    ) -> dict[str, Any]:
        given = {"messages": [("user", question)]}
        if asynchronously:
            return asyncio.run(self.agent.ainvoke(given, config, **options))
        return self.agent.invoke(given, config, **options)

    @property
    def unasked(self) -> bool:
        return not (self.small.calls or self.large.calls)


def build(
    small: Any = SMALL,
    large: Any = LARGE,
    scores: dict[str, float] | None = None,
    *,
    scorer: Any = "scripted",
    policy: Any = None,
    agent: dict[str, Any] | None = None,
    before: Any = (),
    tools: bool = True,
    **settings: Any,
) -> Rig:
    """Builds an agent; by default the small model's wrong product is rated 0.1, under ``threshold(0.5)``."""
    ran: list[tuple[Any, ...]] = []

    @tool
    def multiply(a: int, b: int) -> int:
        """Multiply two numbers."""
        ran.append(("multiply", a, b))
        return a * b

    @tool
    def query(sql: str) -> str:
        """Query the database."""
        ran.append(("query", sql))
        return "city | inhabitants\nParis | 2102650"

    if scorer == "scripted":
        scorer = ScriptedScorer({WRONG: 0.1} if scores is None else scores)
    small, large = (
        ScriptedToolModel(script=given, name=name)
        if isinstance(given, list) or (callable(given) and not hasattr(given, "invoke"))
        else given
        for given, name in ((small, "tiny"), (large, "huge"))
    )
    routing = TrimMiddleware(large, scorer, policy=policy or threshold(0.5), **settings)
    made = create_agent(
        small, [multiply, query] if tools else [], middleware=[*before, routing], **(agent or {})
    )
    return Rig(small, large, scorer, routing, made, ran)


def turns(result: dict[str, Any]) -> list[AIMessage]:
    return [message for message in result["messages"] if isinstance(message, AIMessage)]
