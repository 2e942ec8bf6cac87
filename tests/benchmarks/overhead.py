"""What the graph itself costs: CPU time, calls and checkpoint bytes per reasoning step, models scripted.

``python -m tests.benchmarks.overhead [--json FILE]`` prints a table; the models answer at once, so all time
is LangGraph's and ours. The skeleton is a LangGraph of four empty nodes that takes the same supersteps;
the driver (`trim_graph.driver`) runs the nodes of the graph without LangGraph's loop.
Calls are those of functions, in Python and C; a busy machine does not change their number.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from langgraph.graph import START, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict

from trim_graph import create_trim_graph, open_checkpointer
from trim_graph.driver import drive
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

DURABILITIES = ("sync", "async", "exit")


class _Count(TypedDict):
    left: int


def skeleton() -> Any:
    """Builds a graph of four empty nodes: generate, score, route, finalize."""
    builder = StateGraph(_Count)
    builder.add_node("generate", lambda state: {})
    builder.add_node("score", lambda state: {})
    builder.add_node(
        "route",
        lambda state: Command(
            update={"left": state["left"] - 1}, goto="generate" if state["left"] > 0 else "finalize"
        ),
        destinations=("generate", "finalize"),
    )
    builder.add_node("finalize", lambda state: {})
    builder.add_edge(START, "route")
    builder.add_edge("generate", "score")
    builder.add_edge("score", "route")
    return builder.compile()


def solver(steps: int, checkpointer: Any = None) -> Any:
    """Builds a trim graph whose scripted small model writes ``steps`` steps of about 50 characters."""
    script = [f"step {number} " + "says about ten words " * 2 for number in range(steps - 1)] + ["\\boxed{1}"]
    model = ScriptedChatModel(script=script)
    return create_trim_graph(
        model, model, ScriptedScorer(), policy=threshold(0.5), max_steps=steps + 1, checkpointer=checkpointer
    )


def cpu_a_step(graph: Any, given: dict[str, Any], steps: int, repeats: int) -> float:
    """Returns the CPU milliseconds of one step, the least of ``repeats`` runs."""
    spent = []
    for _ in range(repeats):
        begun = time.process_time()
        graph.invoke(given, {"recursion_limit": 10 * steps + 20})
        spent.append(1000 * (time.process_time() - begun) / steps)
    return min(spent)


def calls_a_step(graph: Callable[[int], Any], given: Callable[[int], dict[str, Any]]) -> float:
    """Returns the function calls of one step, between a run of 10 steps and one of 50."""
    counted = []
    for steps in (10, 50):
        built, config = graph(steps), {"recursion_limit": 10 * steps + 20}
        built.invoke(given(steps), config)
        calls = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            built.invoke(given(steps), config)
        finally:
            sys.setprofile(None)
        counted.append(calls)
    return (counted[1] - counted[0]) / 40


class _Driven:
    """A graph whose ``invoke`` runs it without LangGraph's loop."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    def invoke(self, given: dict[str, Any], config: Any = None) -> None:
        """Runs a question."""
        deque(drive(self._graph, given["messages"], config), maxlen=0)


def bytes_a_step(steps: int, durability: str) -> float:
    """Returns the bytes of a SQLite file per step."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.db"
        with open_checkpointer(f"sqlite:{path}") as checkpointer:
            solver(steps, checkpointer).invoke(
                {"messages": [("user", "a question")]},
                {"configurable": {"thread_id": "1"}, "recursion_limit": 10 * steps + 20},
                durability=durability,
            )
        connection = sqlite3.connect(path)
        connection.execute("vacuum")
        connection.close()
        return path.stat().st_size / steps


def main() -> None:
    """Measures, prints, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    question = {"messages": [("user", "a question")]}
    results: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "cpu_ms_a_step": {
            "skeleton": cpu_a_step(skeleton(), {"left": args.steps}, args.steps, args.repeats),
            "trim": cpu_a_step(solver(args.steps), question, args.steps, args.repeats),
            "driver": cpu_a_step(_Driven(solver(args.steps)), question, args.steps, args.repeats),
        },
        "calls_a_step": {
            "skeleton": calls_a_step(lambda steps: skeleton(), lambda steps: {"left": steps}),
            "trim": calls_a_step(solver, lambda steps: question),
            "driver": calls_a_step(lambda steps: _Driven(solver(steps)), lambda steps: question),
        },
        "checkpoint_bytes_a_step": {
            durability: {steps: bytes_a_step(steps, durability) for steps in (20, 200)}
            for durability in DURABILITIES
        },
    }
    print(f"{results['date']}  {results['machine']}")
    for name, value in results["cpu_ms_a_step"].items():
        print(f"CPU a step, {name:9} {value:8.2f} ms, {results['calls_a_step'][name]:6.0f} calls")
    for durability, sizes in results["checkpoint_bytes_a_step"].items():
        cells = "  ".join(f"{steps} steps: {size / 1000:6.1f} kB a step" for steps, size in sizes.items())
        print(f"SQLite, durability={durability:6} {cells}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
