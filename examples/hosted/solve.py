"""Solves a question with two hosted models and a judge: ``python -m trim_graph.examples.hosted.solve "..."``.

Model names are those of `langchain.chat_models.init_chat_model`; keys come from the environment.
"""

from __future__ import annotations

import argparse
from typing import Any

from langchain.chat_models import init_chat_model

from trim_graph.adapters import LLMJudge
from trim_graph.budget import Budget
from trim_graph.graph import create_trim_graph
from trim_graph.policies import threshold


def build(small: str, large: str, judge: str, *, t: float, large_tokens: int) -> Any:
    """Builds the graph.

    Args:
        small: Name of the model that drafts, such as ``openai:gpt-4.1-nano``.
        large: Name of the one that writes critical steps again.
        judge: Name of the one that rates the drafts.
        t: Score below which the large model is asked; SpecReason's 7 of 9 by default.
        large_tokens: It may generate.
    """
    drafts, corrects, rates = (init_chat_model(name, temperature=0) for name in (small, large, judge))
    budget = Budget(large_tokens=large_tokens)
    return create_trim_graph(drafts, corrects, LLMJudge(rates), policy=threshold(t), budget=budget)


def main(arguments: list[str] | None = None) -> None:
    """Solves a question and says what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("question")
    parser.add_argument("--small", default="openai:gpt-4.1-nano")
    parser.add_argument("--large", default="openai:gpt-4.1")
    parser.add_argument("--judge", default="openai:gpt-4.1-mini")
    parser.add_argument("--threshold", type=float, default=7 / 9)
    parser.add_argument("--large-tokens", type=int, default=2000)
    given = parser.parse_args(arguments)
    graph = build(given.small, given.large, given.judge, t=given.threshold, large_tokens=given.large_tokens)
    result = graph.invoke({"messages": [("user", given.question)]})
    print(result["messages"][-1].text)
    summary = result["trim"]
    print(f"\nsteps {summary['steps']}  decisions {summary['decisions']}  tokens {summary['tokens']}")
    for note in summary["notes"]:
        print(f"note: {note}")


if __name__ == "__main__":
    main()
