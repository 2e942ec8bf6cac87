"""``python -m trim_graph.examples.human_in_the_loop ask FILE``; then ``... answer FILE ANSWER``.

The second as often as the run asks. Each command is a process of its own: between them the run is in FILE, a
SQLite database.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.types import Command
from pydantic import ValidationError

from trim_graph.adapters import ChatTransformers, TransformersProcessReward
from trim_graph.budget import Budget
from trim_graph.examples.arithmetic import LARGE, PRM, SMALL, problems
from trim_graph.graph import create_trim_graph
from trim_graph.policies import threshold
from trim_graph.storage.checkpoint import open_checkpointer

PLACE: RunnableConfig = {"configurable": {"thread_id": "1"}}


def build(checkpointer: Any) -> Any:
    """Builds a graph that asks when the large model may not be called again, or a step looks very wrong."""
    small, large = ChatTransformers(model=str(SMALL)), ChatTransformers(model=str(LARGE))
    scorer = TransformersProcessReward(model=str(PRM))
    return create_trim_graph(
        small,
        large,
        scorer,
        policy=threshold(0.9),
        budget=Budget(large_calls=1, on_exhausted="ask"),
        ask_below=0.05,
        checkpointer=checkpointer,
    )


def show(result: dict[str, Any]) -> None:
    """Prints what is asked, or the solution."""
    if "__interrupt__" not in result:
        print(result["messages"][-1].text)
        print(f"\nsteps {result['trim']['steps']}  decisions {result['trim']['decisions']}")
        return
    asked = result["__interrupt__"][0].value
    why = (
        f"the limit on {asked['limit']} leaves no further call"
        if asked["limit"]
        else "the score of this step is low"
    )
    print(f"{asked['question']}\n")
    for step in asked["steps"]:
        print(f"  {step['writer']:6} {step['text']}")
    if asked["draft"]:
        print(f"? {asked['draft']['writer']:6} {asked['draft']['text']}   (score {asked['score']:.2f})")
    print(f"\n{why}. Answer with one of:")
    for name, help in asked["answers"].items():
        print(f"  {name:9} {help}")


def main(arguments: list[str] | None = None) -> None:
    """Asks, or answers."""
    parser = argparse.ArgumentParser(description="A run that waits for a human.")
    commands = parser.add_subparsers(dest="command", required=True)
    ask = commands.add_parser("ask", help="begin a run")
    answer = commands.add_parser("answer", help="resume it")
    for command in (ask, answer):
        command.add_argument("file", help="a SQLite database, made where it is missing")
    ask.add_argument("question", nargs="?", default=problems("hard", 1, seed=20)[0].question)
    answer.add_argument("answer", type=json.loads, help='JSON, such as \'{"continue_with": "small"}\'')
    given = parser.parse_args(arguments)
    with open_checkpointer(f"sqlite:{given.file}") as checkpointer:
        graph = build(checkpointer)
        what: Any = {"messages": given.question} if given.command == "ask" else Command(resume=given.answer)
        try:
            show(graph.invoke(what, PLACE, durability="sync"))
        except ValidationError as error:  # the question stays open
            parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
