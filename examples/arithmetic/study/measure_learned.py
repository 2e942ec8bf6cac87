"""Measure the shipped policies beside the threshold: `python -m ...study.measure_learned FOLDER`.

Each is compared with the threshold that spends as many large tokens on the same test problems or more: the
nearest above, so that the threshold is never the poorer one. Solutions are recorded in FOLDER, the same that
`results` uses, and the results of a policy are read off them; `results` checks that against the graph.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trim_graph.evaluation import interval, resampled_means
from trim_graph.examples.arithmetic.shipped import POLICIES
from trim_graph.policies import Policy, load_policy, threshold
from trim_graph.policies.files import is_policy_file

if TYPE_CHECKING:
    from .worlds import Arm, World

MEASURED = Path(__file__).parent / "measured.json"
SHOWN = (0.05, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Thresholds in the table."""


def shipped() -> dict[str, Policy]:
    """Returns the shipped policies, by name."""
    files = (file for file in sorted(POLICIES.glob("*.json")) if is_policy_file(file))
    return {file.stem: load_policy(file) for file in files}


def thresholds_of(world: World, count: int = 400) -> list[float]:
    """Returns thresholds between which the scores of drafts are evenly spread."""
    scores = world.draft_scores
    spread = {round(float(scores[at * len(scores) // count]), 6) for at in range(count)}
    return sorted(spread | {1.0, *SHOWN})


def row(name: str, arm: Arm, world: World) -> dict[str, Any]:
    """Returns the figures of one policy, with a 95 % interval of its accuracy."""
    correct = arm.correct.astype(float).tolist()
    return {
        "policy": name,
        "accuracy": arm.accuracy,
        "interval": interval(resampled_means({"correct": correct})["correct"]),
        "large_tokens": arm.spent / len(world),
        "share": world.share(arm),
    }


def measure(world: World, policies: Mapping[str, Policy]) -> list[dict[str, Any]]:
    """Returns a row for each policy, with the threshold that spends the same."""
    from .figures import difference

    curve = {t: world.solved(threshold(t)) for t in thresholds_of(world)}
    rows = [row("small alone", world.small, world)]
    rows += [row(f"threshold({t})", arm, world) for t, arm in curve.items() if t in SHOWN]
    for name, policy in policies.items():
        arm = world.solved(policy)
        found = row(name, arm, world)
        above = [t for t in curve if curve[t].spent >= arm.spent] or [max(curve)]
        beside = min(above, key=lambda t: (curve[t].spent, t))
        found["beside"] = row(f"threshold({beside})", curve[beside], world)
        found["difference"] = difference(arm, curve[beside])
        rows.append(found)
    return [*rows, row("large, every step", world.large, world)]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Writes the rows as Markdown."""
    lines = [
        "| policy | accuracy | large tokens | share | threshold at that spend | difference |",
        "|---|---|---|---|---|---|",
    ]
    for one in rows:
        low, high = one["interval"]
        cells = [
            one["policy"],
            f"{one['accuracy']:.3f} ({low:.3f} to {high:.3f})",
            f"{one['large_tokens']:.2f}",
            f"{one['share']:.3f}",
            "",
            "",
        ]
        if "beside" in one:
            beside, (low, high) = one["beside"], one["difference"]["interval"]
            cells[4] = f"{beside['accuracy']:.3f} for {beside['large_tokens']:.2f}"
            cells[5] = f"{one['difference']['accuracy']:+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the shipped policies and writes ``measured.json``."""
    from .results import TEST, TEST_SEED
    from .trees import Problems, recorded_trees
    from .worlds import World

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="keeps what was recorded")
    parser.add_argument("-n", type=int, default=TEST["standard"], help="test problems")
    parser.add_argument("--out", type=Path, default=MEASURED)
    given = parser.parse_args(arguments)
    drawn = Problems("standard", "test", given.n, TEST_SEED)
    rows = measure(World("standard", recorded_trees(drawn, given.folder)), shipped())
    document = {"split": drawn.split, "n": drawn.n, "seed": drawn.seed, "rows": rows}
    given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
