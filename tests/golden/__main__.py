"""The golden record: what scripted runs and seeded commands do, as JSON to compare with.

::

    python -m tests.golden diff                         # plays anew, prints the differences, exits 1 on any
    python -m tests.golden diff --renamed names.json    # {"old name": "new name"}: pure renames show none
    python -m tests.golden diff graph --only lookahead  # graph, async, driver or commands; by a word
    python -m tests.golden record                       # writes both files, after a change that is meant

``graph.json`` has a record for each of `scenarios.SCENARIOS`: by invocation the custom events, the text
streamed, the nodes that ran, what a human was asked and the error raised; what models and scorer were
asked; the channels of the final state, messages included; of the last checkpoint the channels that it does
not hold whole and those that differ from the state; the sizes of all checkpoints. What repeats another part
is ``= state.trim`` or the like, and of settings only those are recorded that are not the first scenario's.
``commands.json`` has what the commands of `commands.COMMANDS` write, with the models that are shipped.
Scripted runs are played synchronously, asynchronously and, where they need no loop of LangGraph, by
`trim_graph.driver`, against one record. `normal` lists all that is replaced by a placeholder, and how far
sizes may be off.

A refactoring leaves no difference. One that moves modules changes imports of this package and nothing else,
since scenarios use the public surface only. New names apply to the recorded side: to keys, and to texts
that are a name as a whole. A name within a longer text, such as an error's, shows as a difference.
``test_golden.py`` is the diff as a test.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.golden import commands, scenarios
from tests.golden.normal import ABSENT, Difference, differences, pretty, renamed

HERE = Path(__file__).parent
PARTS = {
    "graph": scenarios.record,
    "async": scenarios.record_async,
    "driver": scenarios.record_driven,
    "commands": commands.record,
}
FILES = ("graph", "commands")
SHOWN = 300
"""Characters of a value in a printed difference."""


def recorded(part: str) -> dict[str, Any]:
    """Returns what is on record; for ``async`` and ``driver`` that of ``graph``, which has to be the same."""
    file = HERE / f"{part if part in FILES else 'graph'}.json"
    record: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return record


def compared(part: str, names: dict[str, str], wanted: Callable[[str], bool]) -> list[Difference]:
    """Plays a part anew and compares it with the record.

    Args:
        part: ``graph``, ``async`` or ``commands``.
        names: New names by old ones.
        wanted: Says of a scenario's name whether it is played.
    """

    def plays(name: str) -> bool:
        one_way = part in ("async", "driver") and name in scenarios.ONE_WAY
        return wanted(name) and not one_way and not (part == "driver" and name in scenarios.FASTER)

    before = {name: renamed(one, names) for name, one in recorded(part).items() if plays(name)}
    after = PARTS[part](plays)
    if part == "driver":
        before, after = ({name: _without_loop(one[name]) for name in after} for one in (before, after))
    return list(differences(before, after))


def _without_loop(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a scenario's record that needs no loop, nor checkpoints: of an error no state."""
    if "invocations" not in record:  # it calls no graph itself, such as a chat model
        return record
    (invocation,) = record["invocations"]
    kept = {name: one for name, one in invocation.items() if name in ("events", "raised", "warnings")}
    left_out = ("checkpoint", "state") if "raised" in kept else ("checkpoint",)
    return {**{name: one for name, one in record.items() if name not in left_out}, "invocations": [kept]}


def printed(found: Iterable[Difference]) -> str:
    """Returns differences as text, by scenario."""
    lines, scenario = [], None
    for one in found:
        name, *place = one.place
        if name != scenario:
            lines.append(f"\n{name}")
            scenario = name
        note = "" if one.counts else "   (within the tolerance of sizes)"
        lines.append(f"  {' / '.join(place) or '(all of it)'}{note}")
        lines += [f"    {sign} {_short(value)}" for sign, value in (("-", one.before), ("+", one.after))]
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = repr(value) if value is ABSENT else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description="The golden record.")
    parser.add_argument("action", choices=["record", "diff"])
    parser.add_argument("part", nargs="?", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--renamed", type=Path, metavar="FILE", help="JSON object: new names by old ones")
    parser.add_argument("--only", default="", metavar="WORD", help="scenarios whose names hold it")
    given = parser.parse_args()
    parts = list(PARTS) if given.part == "all" else [given.part]
    if given.action == "record":
        if given.renamed or given.only:
            parser.error("record takes neither --renamed nor --only: it writes all of a part")
        for part in (part for part in parts if part in FILES):
            (HERE / f"{part}.json").write_text(f"{pretty(PARTS[part](lambda name: True))}\n", "utf-8")
        return 0
    names = json.loads(given.renamed.read_text("utf-8")) if given.renamed else {}
    found: list[Difference] = []
    for part in parts:
        of_part = compared(part, names, lambda name: given.only in name)
        if of_part:
            print(f"\n== {part}{printed(of_part)}")
        found += of_part
    count = sum(one.counts for one in found)
    print(f"\n{count} differences in {len({one.place[0] for one in found if one.counts})} scenarios")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
