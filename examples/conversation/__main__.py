"""``python -m trim_graph.examples.conversation [FOLDER]``: two users ask until their quotas are spent.

Threads and accounts are kept in FOLDER (default: a temporary one), so that a second call continues them.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig

from trim_graph.adapters import ChatTransformers, TransformersProcessReward
from trim_graph.budget import Budget, Quota, Quotas
from trim_graph.budget.ledger import Ledger, open_ledger
from trim_graph.examples.arithmetic import LARGE, PRM, SMALL, problems
from trim_graph.graph import create_trim_graph
from trim_graph.policies import threshold
from trim_graph.settings import TrimContext
from trim_graph.storage.checkpoint import open_checkpointer

PER_RUN = Budget(large_tokens=40)
TOGETHER = Quotas(thread=Quota(large_tokens=60), user=Quota(large_tokens=90))


def build(checkpointer: Any, ledger: Ledger) -> Any:
    """Builds a graph whose runs draw from the accounts of their thread and of their user."""
    small, large = ChatTransformers(model=str(SMALL)), ChatTransformers(model=str(LARGE))
    scorer = TransformersProcessReward(model=str(PRM))
    return create_trim_graph(
        small,
        large,
        scorer,
        policy=threshold(0.9),
        budget=PER_RUN,
        quotas=TOGETHER,
        checkpointer=checkpointer,
        ledger=ledger,
    )


async def ask(graph: Any, user: str, thread: str, question: str) -> None:
    """Asks one question, and says what it cost whom."""
    place: RunnableConfig = {"configurable": {"thread_id": thread}}
    context = TrimContext(user=user)
    result = await graph.ainvoke(
        {"messages": [("user", question)]}, place, context=context, durability="sync"
    )
    summary = result["trim"]
    used = {name: account["large_tokens"] for name, account in summary["accounts"].items()}
    answer, own = summary["answer"], summary["usage"]["large"]["output_tokens"]
    turns = sum(message.type == "human" for message in result["messages"])
    print(f"{user} on {thread}, turn {turns}: answer {answer}, {own} large tokens, together {used}")
    for note in summary["notes"]:
        print(f"  {note}")


async def talk(folder: Path) -> None:
    """Asks for two users on three threads at the same time."""
    questions = [problem.question for problem in problems("hard", 3, seed=1)]
    with open_ledger(f"sqlite:{folder / 'spend.db'}") as ledger:
        async with open_checkpointer(f"sqlite:{folder / 'runs.db'}") as checkpointer:
            graph = build(checkpointer, ledger)
            for question in questions:
                await asyncio.gather(
                    ask(graph, "ada", "ada-1", question),
                    ask(graph, "ada", "ada-2", question),
                    ask(graph, "eve", "eve-1", question),
                )


def main(arguments: list[str] | None = None) -> None:
    """Talks in the folder that is given, or in a temporary one."""
    given = sys.argv[1:] if arguments is None else arguments
    if given:
        asyncio.run(talk(Path(given[0])))
        return
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(talk(Path(folder)))


if __name__ == "__main__":
    main()
