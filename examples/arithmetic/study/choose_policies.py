"""Choose which of the shipped policies the demo shows: `python -m ...study.choose_policies FOLDER`.

Of each kind it is the one that recovers at least `ENOUGH` of the performance gap with the smallest share of
large tokens, on validation problems: what the threshold of the demo is chosen by too. Solutions are
recorded in FOLDER, the same that `results` uses. Writes ``policies/chosen.json``, which ships with the
package.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trim_graph.errors import SettingsError
from trim_graph.examples.arithmetic.shipped import CHOSEN, KINDS, POLICIES

from .calibrate import ENOUGH


@dataclass(frozen=True, slots=True)
class Chosen:
    """A policy file and its results on the validation problems."""

    file: str
    accuracy: float
    share: float
    pgr: float


def choose(world: Any) -> dict[str, Chosen]:
    """Chooses on a `trim_graph.examples.arithmetic.study.worlds.World` of validation problems.

    Raises:
        SettingsError: No policy of a kind recovers enough.
    """
    from trim_graph.policies import load_policy

    small, large = world.small.accuracy, world.large.accuracy
    chosen = {}
    for name, begin in KINDS.items():
        tried = []
        for file in sorted(POLICIES.glob(f"{begin}-[0-9]*.json")):
            arm = world.solved(load_policy(file))
            recovered = (arm.accuracy - small) / (large - small)
            tried.append(Chosen(file.name, arm.accuracy, round(world.share(arm), 4), round(recovered, 4)))
        enough = [one for one in tried if one.pgr >= ENOUGH]
        if not enough:
            raise SettingsError(f"no {name} policy recovers {ENOUGH:.0%} of the gap: {tried}")
        chosen[name] = min(enough, key=lambda one: one.share)
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Chooses the policies and writes the file."""
    from .results import VALIDATION, VALIDATION_SEED
    from .trees import Problems, recorded_trees
    from .worlds import World

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="keeps what was recorded")
    parser.add_argument("-n", type=int, default=VALIDATION["standard"], help="validation problems")
    parser.add_argument("--out", type=Path, default=CHOSEN)
    given = parser.parse_args(arguments)
    drawn = Problems("standard", "validation", given.n, VALIDATION_SEED)
    chosen = choose(World("standard", recorded_trees(drawn, given.folder)))
    document = {
        "split": drawn.split,
        "part": drawn.part,
        "n": drawn.n,
        "seed": drawn.seed,
        "policies": {name: asdict(one) for name, one in chosen.items()},
    }
    given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"{', '.join(one.file for one in chosen.values())}: written to {given.out}")


if __name__ == "__main__":
    main()
