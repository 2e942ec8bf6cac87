"""What a run writes to its checkpointer, by the number of its steps: linear in the recommended setting.

``python -m tests.benchmarks.state_size [--json FILE]`` prints two tables. Everything that LangGraph hands to
the checkpointer is counted as it is serialised, kept or overwritten: checkpoints and pending writes. The
second table has each store that is here with each durability, and the time that a step takes more than
without a checkpointer, on the clock and of this process's CPUs: the least of a few runs, taken in turns. The
models are scripted; a step has about 400 characters, and every fifth is regenerated.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver

from tests.postgres.conftest import installed, running_postgres
from trim_graph import create_trim_graph, open_checkpointer
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

STEPS = (10, 20, 50, 100, 200, 400)
DURABILITIES = ("sync", "exit")
CHARACTERS = 400
COST_STEPS = (20, 200)
COST_DURABILITIES = ("sync", "async", "exit")
REPEATS = 5


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
    """Solves a problem in ``steps`` steps with SQLite checkpoints, and returns what counted."""
    serde = CountingSerializer()
    with closing(sqlite3.connect(":memory:", check_same_thread=False)) as connection:
        solve(steps, SqliteSaver(connection, serde=serde), durability=durability)
    return serde.counted


@dataclass(frozen=True)
class Took:
    """Seconds."""

    clock: float
    cpu: float

    def least(self, other: Took) -> Took:
        """The lesser of each."""
        return Took(min(self.clock, other.clock), min(self.cpu, other.cpu))


def solve(steps: int, checkpointer: Any, **options: Any) -> Took:
    """Solves a problem in ``steps`` steps; gives what that took."""
    script = [f"step {n} ".ljust(CHARACTERS, "x") for n in range(steps - 1)] + ["\\boxed{1}"]
    graph = create_trim_graph(
        ScriptedChatModel(script=script),
        ScriptedChatModel(script=script),
        ScriptedScorer(dict.fromkeys(script[::5], 0.1)),
        policy=threshold(0.5),
        max_steps=steps + 1,
        checkpointer=checkpointer,
    )
    config = {"configurable": {"thread_id": os.urandom(8).hex()}} if checkpointer else None
    clock, cpu = time.perf_counter(), time.process_time()
    result = graph.invoke({"messages": [("user", "a question")]}, config, **options)
    took = Took(time.perf_counter() - clock, time.process_time() - cpu)
    assert sum(result["trim"]["steps"].values()) == steps
    return took


@contextmanager
def stores() -> Iterator[dict[str, str]]:
    """Specifications of the stores that are here."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        found = {"memory": "memory", "SQLite": f"sqlite:{folder}/runs.db"}
        if installed():
            os.environ["TRIM_BENCH_DATABASE"] = stack.enter_context(running_postgres(fsync=True))
            found["PostgreSQL"] = "env:TRIM_BENCH_DATABASE"
        yield found


def costs(repeats: int) -> list[dict[str, Any]]:
    """Bytes and milliseconds a step, of each store with each durability."""
    rows: list[dict[str, Any]] = []
    with stores() as found, ExitStack() as stack:
        savers: dict[str, Any] = {"none": None}
        for store, spec in found.items():
            saver = savers[store] = stack.enter_context(open_checkpointer(spec))
            assert saver is not None
            saver.serde = CountingSerializer()
        if "PostgreSQL" in savers:
            _count_json(savers["PostgreSQL"].serde.counted)
        ways = [("none", ""), *((store, durability) for store in found for durability in COST_DURABILITIES)]
        for steps in COST_STEPS:
            took: dict[tuple[str, str], Took] = {}
            written = {}
            for _ in range(repeats):
                for store, durability in ways:
                    saver, options = savers[store], {"durability": durability} if durability else {}
                    before = saver.serde.counted.written if saver else 0
                    now = solve(steps, saver, **options)
                    took[store, durability] = now.least(took.get((store, durability), now))
                    written[store, durability] = saver.serde.counted.written - before if saver else 0
            bare = took["none", ""]
            for store, durability in ways:
                one = took[store, durability]
                row: dict[str, Any] = {"store": store, "durability": durability, "steps": steps}
                row["bytes_a_step"] = written[store, durability] / steps
                for name, ours, without in (("clock", one.clock, bare.clock), ("cpu", one.cpu, bare.cpu)):
                    row[f"{name}_ms_a_step"] = ours * 1000 / steps
                    row[f"{name}_ms_more"] = (ours - without) * 1000 / steps
                rows.append(row)
    return rows


def _count_json(counted: Counted) -> None:
    """Counts what goes into PostgreSQL's columns of JSON too, which do not pass the serialiser."""
    from psycopg.types.json import set_json_dumps

    def dumps(value: Any) -> str:
        text = json.dumps(value)
        counted.written += len(text)
        return text

    set_json_dumps(dumps)


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Bytes written by the number of steps.")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
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
    cost_rows = costs(given.repeats)
    print("\n| store | durability | steps | a step, kB | a step, ms | more than without | of them CPU here |")
    print("|---|---|---|---|---|---|---|")
    for row in cost_rows:
        names = [str(row[name]) for name in ("store", "durability", "steps")]
        times = [f"{row[name]:.1f}" for name in ("clock_ms_a_step", "clock_ms_more", "cpu_ms_more")]
        print("|", " | ".join([*names, f"{row['bytes_a_step'] / 1000:.1f}", *times]), "|")
    if given.json:
        results = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "rows": rows, "cost": cost_rows}
        given.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
