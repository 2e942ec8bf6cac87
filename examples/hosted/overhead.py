"""Measures what asking by prompt costs: ``python -m trim_graph.examples.hosted.overhead [--json FILE]``.

A scripted local server answers, with a latency of so many milliseconds a call and a token. Four arms solve
the same problems and take the same decisions: models that continue exactly (`ChatVLLM`), and plain
``ChatOpenAI`` in three manners of answering a prompt (`manners`). The judge is the same in all. The arms
take turns at every problem; of an arm's times for a problem the least counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from langchain_openai import ChatOpenAI

from trim_graph.adapters import ChatVLLM, LLMJudge
from trim_graph.examples.arithmetic import Problem, is_right, problems
from trim_graph.graph import create_trim_graph
from trim_graph.policies import threshold

from .manners import Arithmetic, Manner
from .scripted_server import ScriptedServer

ARMS: dict[str, Manner] = {
    "exact continuation": "obedient",
    "by prompt, as asked": "obedient",
    "by prompt, forgets the marks": "forgetful",
    "by prompt, repeats and writes on": "talkative",
}
EXACT = "exact continuation"
COUNTS = ("calls", "judge_calls", "input", "output", "steps")


class Arm:
    """One way to solve problems, and what it has taken so far."""

    def __init__(self, name: str, server: ScriptedServer) -> None:
        self.name, self._server = name, server
        self._judge = self._hosted("judge")
        self._small, self._large = self._writer("small"), self._writer("large")
        self.total = dict.fromkeys(COUNTS, 0)
        self.seconds: list[float] = []

    def solve(self, problem: Problem, repeats: int) -> None:
        """Solves a problem, and counts it once.

        Raises:
            RuntimeError: The solution is wrong: then the arms are not doing the same work.
        """
        times = []
        for _ in range(repeats):
            # A judge remembers; its calls are part of what is measured.
            judge = LLMJudge(self._judge)
            graph: Any = create_trim_graph(self._small, self._large, judge, policy=threshold(7 / 9))
            self._server.requests.clear()
            begun = time.perf_counter()
            result = graph.invoke({"messages": [("user", problem.question)]})
            times.append(time.perf_counter() - begun)
            if not is_right(problem, result["messages"][-1].text):
                raise RuntimeError(f"{self.name}: wrong solution of {problem.question!r}")
        self.seconds.append(min(times))
        self._count(result["trim"])

    def _count(self, summary: dict[str, Any]) -> None:
        for writer in ("small", "large"):
            spend = summary["usage"][writer]
            self.total["calls"] += spend["calls"]
            self.total["input"] += spend["input_tokens"]
            self.total["output"] += spend["output_tokens"]
            self.total["steps"] += summary["steps"].get(writer, 0)
        self.total["judge_calls"] += sum(body["model"] == "judge" for body in self._server.requests)

    def _hosted(self, name: str) -> ChatOpenAI:
        here: dict[str, Any] = {"base_url": self._server.url, "api_key": "none"}
        return ChatOpenAI(model=name, temperature=0, **here)

    def _writer(self, name: str) -> Any:
        if self.name != EXACT:
            return self._hosted(name)
        return ChatVLLM(model=name, base_url=self._server.url, continuation="chat")


def measure(asked: list[Problem], latency: float, token_latency: float, repeats: int) -> dict[str, Any]:
    """Has every arm solve all problems.

    Args:
        asked: The problems.
        latency: Seconds that each answer of the server takes.
        token_latency: Seconds more for each token it writes.
        repeats: How often to take the time of a problem.
    """
    with contextlib.ExitStack() as running:
        arms = []
        for name, manner in ARMS.items():
            server = ScriptedServer(Arithmetic(asked, manner), latency=latency, token_latency=token_latency)
            arms.append(Arm(name, running.enter_context(server)))
        for problem in asked:
            for arm in arms:
                arm.solve(problem, repeats)
    return {arm.name: {**arm.total, "seconds": sum(arm.seconds)} for arm in arms}


def report(results: dict[str, Any]) -> Iterator[str]:
    """Returns the lines of a Markdown table."""
    n, base = results["n"], results["arms"][EXACT]
    yield "| arm | calls | judge calls | prompt tokens | written tokens | seconds | ms more a step |"
    yield "|---|---|---|---|---|---|---|"
    for name, arm in results["arms"].items():
        more = 1000 * (arm["seconds"] - base["seconds"]) / arm["steps"]
        yield (
            f"| {name} | {arm['calls'] / n:.2f} | {arm['judge_calls'] / n:.2f} "
            f"| {arm['input'] / arm['steps']:.0f} ({(arm['input'] - base['input']) / arm['steps']:+.0f}) "
            f"| {arm['output'] / arm['steps']:.0f} ({(arm['output'] - base['output']) / arm['steps']:+.0f}) "
            f"| {arm['seconds'] / n:.2f} | {more:+.0f} |"
        )


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and writes JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("-n", type=int, default=20, help="problems")
    parser.add_argument("--latency", type=float, default=50.0, help="milliseconds a call")
    parser.add_argument("--token-latency", type=float, default=5.0, help="milliseconds a token written")
    parser.add_argument("--repeats", type=int, default=3, help="times taken of each problem")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    asked = problems("standard", given.n, seed=7)
    arms = measure(asked, given.latency / 1000, given.token_latency / 1000, given.repeats)
    results: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "n": given.n,
        "repeats": given.repeats,
        "latency_ms": given.latency,
        "token_latency_ms": given.token_latency,
        "arms": arms,
    }
    print(f"{results['date']}  {results['machine']}")
    print(f"{given.n} questions, {arms[EXACT]['steps']} steps; the least of {given.repeats} times counts")
    print(f"latency: {given.latency:g} ms a call, {given.token_latency:g} ms a token written")
    print("calls and seconds are a question's; tokens a step's, in brackets those more than exact ones\n")
    print("\n".join(report(results)))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
