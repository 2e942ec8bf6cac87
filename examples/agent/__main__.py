"""Asks the agent: ``python -m trim_graph.examples.agent``, or with models of your own, ``--config FILE``."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from trim_graph.config import load_config

from .building import build_agent
from .shop import QUESTION, create_shop
from .tools import calculator, query_tool


def main(arguments: list[str] | None = None) -> None:
    """Answers a question, and prints turn by turn who wrote what."""
    parser = argparse.ArgumentParser(prog="python -m trim_graph.examples.agent", description=__doc__)
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--config", help="YAML that names the models; default: models from a script")
    parser.add_argument("--database", help="an SQLite file to ask about; default: a small shop's orders")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        try:
            config = load_config(given.config) if given.config else None
            database = given.database or create_shop(Path(folder) / "shop.db")
            agent = build_agent([calculator, query_tool(database)], config)
        except (ValueError, OSError, ImportError) as error:
            parser.error(str(error))
        print(given.question, end="\n\n")
        show(agent, given.question)


def show(agent: Any, question: str) -> None:
    """Prints each turn as it is accepted, and what they took together."""
    decided: dict[str, Any] = {}
    for event in agent.stream({"messages": [("user", question)]}, stream_mode="custom"):
        if event["event"] == "decision":
            decided = event
        elif event["event"] == "accepted":
            record = decided if decided.get("step") == event["step"] else {}
            score = record.get("score")
            shown = "    " if score is None else f"{score:.2f}"
            head = f"{event['step'] + 1:>2} {event['writer']} {shown} {record.get('decision', ''):<10} "
            print(_indented(head, event["text"]))
            if "discarded" in record:
                print(_indented(f"{'instead of':>{len(head) - 1}} ", record["discarded"]["text"]))
        elif event["event"] == "finished":
            summary = event["summary"]
    if summary["stopped"] != "finished":
        print(f"stopped: {summary['stopped']}")
    print(f"\nturns {summary['steps']}  tokens {summary['tokens']}")
    for note in summary["notes"]:
        print(f"note: {note}")


def _indented(head: str, text: str) -> str:
    return head + text.replace("\n", "\n" + " " * len(head))


if __name__ == "__main__":
    main()
