"""What a run writes to its checkpointer, by the number of its steps: linear in the recommended setting.

``python -m tests.benchmarks.state_size [--json FILE]`` prints a table. Everything that LangGraph hands to the
checkpointer is counted as SQLite's serialises it, kept or overwritten: checkpoints and pending writes.
The models are scripted; a step has about 400 characters, and every fifth is regenerated.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver

from trim_graph import create_trim_graph
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

STEPS = (10, 20, 50, 100, 200, 400)
DURABILITIES = ("sync", "exit")
CHARACTERS = 400


@dataclass
class Counted:
    """Bytes of everything that was serialised to be stored."""

    written: int = 0
    largest: int = 0


class CountingSerializer(JsonPlusSerializer):
    """Counts. The count is shared with the copies that LangGraph makes where msgpack is strict."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = Counted()

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Serialise and count."""
        kind, data = super().dumps_typed(obj)
        self.counted.written += len(data)
        self.counted.largest = max(self.counted.largest, len(data))
        return kind, data


def written(steps: int, durability: Any) -> Counted:
    """Solve a problem in ``steps`` steps with SQLite checkpoints, and return what counted."""
    script = [f"step {n} ".ljust(CHARACTERS, "x") for n in range(steps - 1)] + ["\\boxed{1}"]
    serde, config = CountingSerializer(), {"configurable": {"thread_id": "1"}}
    with closing(sqlite3.connect(":memory:", check_same_thread=False)) as connection:
        graph = create_trim_graph(
            ScriptedChatModel(script=script),
            ScriptedChatModel(script=script),
            ScriptedScorer(dict.fromkeys(script[::5], 0.1)),
            policy=threshold(0.5),
            max_steps=steps + 1,
            checkpointer=SqliteSaver(connection, serde=serde),
        )
        result = graph.invoke({"messages": [("user", "a question")]}, config, durability=durability)
    assert sum(result["trim"]["steps"].values()) == steps
    return serde.counted


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Bytes written by the number of steps.")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    given = parser.parse_args(arguments)
    rows = []
    for durability in DURABILITIES:
        for steps in given.steps:
            counted = written(steps, durability)
            row = {"durability": durability, "steps": steps, "bytes": counted.written}
            rows.append(row | {"bytes_a_step": counted.written / steps, "largest": counted.largest})
    print(f"{datetime.now(UTC).date()}  {CHARACTERS} characters a step")
    print("| durability | steps | written, kB | a step, kB | largest single write, kB |")
    print("|---|---|---|---|---|")
    for row in rows:
        sizes = [f"{row[name] / 1000:.1f}" for name in ("bytes", "bytes_a_step", "largest")]
        print("|", " | ".join([row["durability"], str(row["steps"]), *sizes]), "|")
    if given.json:
        figures = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "rows": rows}
        given.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
