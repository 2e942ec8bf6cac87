"""Compare one trained policy with others trained apart: `python -m ...study.one_checkpoint FOLDER`.

Each shipped learned policy gives a whole curve: its threshold runs through the probabilities that it gives to
drafts. At the spend of each policy that was trained with another price of a large token, its accuracy is
compared with that policy's. The spend is equal: between two thresholds the problems are split at random by
the share that gives the same large tokens, and the mean over such splits is taken. Solutions are recorded in
FOLDER, the same that `results` uses.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trim_graph.evaluation import interval, resampled_means
from trim_graph.examples.arithmetic.shipped import POLICIES
from trim_graph.policies import Observation, Policy, load_policy

from .families import LAMBDAS, LEARNED

if TYPE_CHECKING:
    from trim_graph.policies.learned import LearnedPolicy

    from .worlds import Arm, Floats, World

MEASURED = Path(__file__).parent / "one_checkpoint.json"
COUNT = 40
"""Thresholds of a curve."""


class CachedPolicy(Policy):
    """A learned policy whose probabilities are computed once for all of its thresholds.

    Args:
        policy: The network.
    """

    def __init__(self, policy: LearnedPolicy) -> None:
        self.policy, self.threshold = policy, policy.threshold
        self.probabilities: dict[tuple[Any, ...], float] = {}

    def decide(self, observation: Observation) -> str:
        """Decides as the policy would at `threshold`."""
        seen = observation
        key = (seen.question, seen.scores, seen.tokens, seen.writers, seen.score, seen.draft_tokens)
        if key not in self.probabilities:
            self.probabilities[key] = self.policy.probability(observation)
        return "regenerate" if self.probabilities[key] >= self.threshold else "accept"


@dataclass(frozen=True, slots=True)
class Curve:
    """What one checkpoint does at each threshold, from the cheapest to the dearest."""

    thresholds: tuple[float, ...]
    arms: tuple[Arm, ...]

    def at_spend(self, tokens: int) -> Floats | None:
        """Returns each problem's chance of a right answer at a spend, shape (n,); None out of the range.

        Args:
            tokens: Large tokens of all problems together.
        """
        spent = [arm.spent for arm in self.arms]
        above = next((at for at, one in enumerate(spent) if one >= tokens), None)
        if above is None or (above == 0 and spent[0] > tokens):
            return None
        dear = self.arms[above].correct.astype(np.float64)
        if spent[above] == tokens:
            return dear
        share = (tokens - spent[above - 1]) / (spent[above] - spent[above - 1])
        return np.asarray(share * dear + (1 - share) * self.arms[above - 1].correct)


def curve_of(world: World, policy: LearnedPolicy, count: int = COUNT) -> Curve:
    """Moves a policy's threshold through the probabilities that it gives to drafts.

    Args:
        world: Recorded problems.
        policy: The network.
        count: Quantiles of these probabilities that are tried.
    """
    cached, arms = CachedPolicy(policy), dict[float, Any]()

    def solve(threshold: float) -> None:
        cached.threshold = threshold
        arms[threshold] = world.solved(cached)

    # These three reach the drafts of the small model alone, of the large one, and of the policy itself.
    for threshold in (0.0, 0.5, 1.0):
        solve(threshold)
    seen = np.array(list(cached.probabilities.values()))
    for threshold in np.unique(np.quantile(seen, np.linspace(0, 1, count))).tolist():
        if threshold not in arms:
            solve(threshold)
    ordered = sorted(arms.items(), key=lambda item: (item[1].spent, -item[0]))
    return Curve(tuple(threshold for threshold, _ in ordered), tuple(arm for _, arm in ordered))


def compare(world: World, kind: str, *, count: int = COUNT) -> list[dict[str, Any]]:
    """Returns a row for each checkpoint of a kind, with its curve and its differences from the others.

    Args:
        world: Recorded problems.
        kind: ``aggregate`` or ``sequence``.
        count: Thresholds of a curve.
    """
    policies: dict[str, Any] = {price: load_policy(POLICIES / f"{kind}-{price}.json") for price in LAMBDAS}
    apart = {price: world.solved(policy) for price, policy in policies.items()}
    return [
        {"kind": kind, "lambda": price, **_row(world, price, curve_of(world, policy, count), apart)}
        for price, policy in policies.items()
    ]


def _row(world: World, price: str, curve: Curve, apart: Mapping[str, Arm]) -> dict[str, Any]:
    differences: dict[str, Floats] = {}
    for other, arm in apart.items():
        own = None if other == price else curve.at_spend(arm.spent)
        if own is not None:
            differences[other] = own - arm.correct
    mean = {"mean": np.mean(list(differences.values()), axis=0)} if differences else {}
    drawn = resampled_means({name: found.tolist() for name, found in {**differences, **mean}.items()})
    found: dict[str, dict[str, Any]] = {
        name: {"difference": float(values.mean()), "interval": interval(drawn[name])}
        for name, values in {**differences, **mean}.items()
    }
    return {
        "others": {
            name: {
                "share": world.share(apart[name]),
                "accuracy_of_other": apart[name].accuracy,
                "accuracy": apart[name].accuracy + found[name]["difference"],
                **found[name],
            }
            for name in differences
        },
        "mean": found.get("mean"),
        "curve": [
            {"threshold": threshold, "share": world.share(arm), "accuracy": arm.accuracy}
            for threshold, arm in zip(curve.thresholds, curve.arms, strict=True)
        ],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Writes the differences as Markdown: a row a checkpoint, a column for each policy trained apart."""
    names = [f"at the spend of {price}" for price in LAMBDAS]
    lines = [f"| one checkpoint | {' | '.join(names)} | mean |", "|---|" + "---|" * (len(names) + 1)]
    for one in rows:
        cells = [_cell(one["others"].get(price)) for price in LAMBDAS]
        lines.append(f"| {one['kind']}-{one['lambda']} | {' | '.join([*cells, _cell(one['mean'])])} |")
    return "\n".join(lines)


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    low, high = found["interval"]
    return f"{found['difference']:+.3f} ({low:+.3f} to {high:+.3f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Compares the shipped policies and writes ``one_checkpoint.json``."""
    from .results import TEST, TEST_SEED
    from .trees import Problems, recorded_trees
    from .worlds import World

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="keeps what was recorded")
    parser.add_argument("-n", type=int, default=TEST["standard"], help="test problems")
    parser.add_argument("--thresholds", type=int, default=COUNT, help="thresholds of a curve")
    parser.add_argument("--out", type=Path, default=MEASURED)
    given = parser.parse_args(arguments)
    if given.thresholds < 2:
        parser.error(f"--thresholds is {given.thresholds}: choose 2 or more")
    drawn = Problems("standard", "test", given.n, TEST_SEED)
    world = World("standard", recorded_trees(drawn, given.folder))
    rows = [row for kind in LEARNED for row in compare(world, kind, count=given.thresholds)]
    document = {"split": drawn.split, "n": drawn.n, "seed": drawn.seed, "rows": rows}
    given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
