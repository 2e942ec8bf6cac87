"""Two sets of models that should do the same: events of runs over many problems, and where they differ."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from trim_graph.examples.arithmetic import Problem, problems
from trim_graph.graph import create_trim_graph
from trim_graph.policies import random_rate, threshold
from trim_graph.segmentation import pattern

ASKED = problems("standard", 40, seed=11) + problems("hard", 30, seed=11) + problems("words", 30, seed=11)
"""A hundred held-out problems."""
TOLERATED = len(ASKED) * 2 // 100
"""Problems that may differ: in another order of summation two near tokens, or scores, may change places."""


@dataclass(frozen=True)
class Outcome:
    """What a run over one problem did.

    Attributes:
        events: Drafts, decisions and accepted steps in order, without names of models and scores.
        scores: Those of the decisions, to be shown.
        answer: The final one.
        text: The whole solution.
    """

    events: list[dict[str, Any]]
    scores: list[float | None]
    answer: str | None
    text: str


async def outcome(graph: Any, problem: Problem) -> Outcome:
    asked = {"messages": [("user", problem.question)]}
    events, scores, state = [], [], {}
    async for mode, data in graph.astream(asked, stream_mode=["custom", "values"]):
        if mode == "values":
            state = data
        elif data["event"] in ("draft", "decision", "accepted"):
            names = ("event", "writer", "text", "decision", "tokens")
            events.append({name: data.get(name) for name in names})
            scores += [data.get("score")] if data["event"] == "decision" else []
    return Outcome(events, scores, state["trim"]["answer"], state["messages"][-1].text)


async def run_all(small: Any, large: Any, scorer: Any) -> list[Outcome]:
    """Runs every problem at temperature 0, all at once."""
    graph = create_trim_graph(small, large, scorer, policy=threshold(0.5))
    return await asyncio.gather(*(outcome(graph, problem) for problem in ASKED))


def check_agreement(ours: list[Outcome], reference: list[Outcome]) -> None:
    """Fails where more than `TOLERATED` problems differ, and lists each with its first differing event."""
    pairs = zip(ASKED, ours, reference, strict=True)
    differing = [
        _difference(number, problem, one, other)
        for number, (problem, one, other) in enumerate(pairs)
        if (one.events, one.answer, one.text) != (other.events, other.answer, other.text)
    ]
    report = f"{len(differing)} of {len(ASKED)} problems differ:\n\n" + "\n\n".join(differing)
    assert len(differing) <= TOLERATED, report
    if differing:
        print(report)
    decisions = {event["decision"] for one in ours for event in one.events if event["event"] == "decision"}
    assert decisions == {"accept", "regenerate"}  # else the problems try nothing


def _difference(number: int, problem: Problem, one: Outcome, other: Outcome) -> str:
    longest = max(len(one.events), len(other.events))
    events = [outcome.events + [{}] * (longest - len(outcome.events)) for outcome in (one, other)]
    at = next((i for i in range(longest) if events[0][i] != events[1][i]), None)
    first = ("none", "none") if at is None else (events[0][at], events[1][at])
    return (
        f"problem {number}: {problem.question}\n"
        f"  first differing event, number {at}:\n    {first[0]}\n    {first[1]}\n"
        f"  scores: {one.scores}\n          {other.scores}\n"
        f"  answers: {one.answer} and {other.answer}"
    )


async def check_watched_steps(small: Any, large: Any) -> None:
    """Steps that are found in the text as it is written are those at whose delimiter the models stop.

    And the writer is stopped there: what it writes beyond is little. One question at a time, since word to
    stop waits its turn at a busy server.
    """
    given = [{"messages": [("user", problem.question)]} for problem in ASKED[:16]]
    runs = []
    for settings in ({}, {"segmentation": pattern(r"\n\n(?=[A-Z])")}):
        graph = create_trim_graph(small, large, policy=random_rate(0.3), seed=1, **settings)
        runs.append([await graph.ainvoke(one) for one in given])
    written = [0, 0]
    for stopped, watched in zip(*runs, strict=True):
        assert watched["messages"][-1].text == stopped["messages"][-1].text
        assert watched["trim"]["decisions"] == stopped["trim"]["decisions"]
        for index, outcome in enumerate((stopped, watched)):
            written[index] += outcome["trim"]["usage"]["small"]["output_tokens"]
    assert written[1] < 1.5 * written[0]
