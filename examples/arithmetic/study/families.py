"""The families of policies that are compared, and how their operating points are chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trim_graph.examples.arithmetic.shipped import POLICIES
from trim_graph.policies import (
    Policy,
    entropy_probe,
    load_policy,
    query_router,
    random_rate,
    stay_on_large,
    threshold,
)

from .worlds import Arm, Floats, World

if TYPE_CHECKING:
    from trim_graph.training.step_model import StepModel

STEP_MODEL = POLICIES / "pomdp-step-model.json"
SHARES = tuple(round(0.05 * number, 2) for number in range(1, 20))
"""Shares of large tokens for which operating points are chosen."""
COSTS = (0.1, 0.5, 1.0, 2.0, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 7.0, 8.0, 10.0)
"""Prices of a large token for which plans are made; a right solution is worth 100."""
LAMBDAS = ("0.01", "0.02", "0.04", "0.05", "0.06")
LEARNED_THRESHOLDS = (0.2, 0.35, 0.5, 0.65, 0.8)
"""Of each trained policy."""


@dataclass(frozen=True, slots=True)
class Family:
    """Policies that differ in a setting.

    Attributes:
        name: Name in tables.
        settings: All that are tried on a validation world.
        arm: Results of a setting on a world.
        kept: Tells it from other families of the same name.
    """

    name: str
    settings: Callable[[World], Sequence[Any]]
    arm: Callable[[World, Any], Arm]
    kept: Any = None

    def on(self, world: World, setting: Any) -> Arm:
        """Returns the results of a setting, computed once."""
        return world.once((self.name, self.kept, setting), lambda: self.arm(world, setting))


@dataclass(frozen=True, slots=True)
class Point:
    """An operating point, chosen on validation problems.

    Attributes:
        setting: The setting in the family.
        target: Share of large tokens that it was chosen for.
        share: On the validation problems.
        accuracy: The same.
    """

    setting: Any
    target: float
    share: float
    accuracy: float


def operating_points(family: Family, validation: World, shares: Sequence[float] = SHARES) -> list[Point]:
    """Chooses, for each share, the setting that is right most often among those that spend no more.

    Settings that are right equally often are distinguished by their spend. Shares below the cheapest setting
    have no point.
    """
    tried = []
    for setting in family.settings(validation):
        arm = family.on(validation, setting)
        tried.append((validation.share(arm), arm.accuracy, setting))
    points = []
    for target in shares:
        within = [one for one in tried if one[0] <= target]
        if within:
            share, accuracy, setting = max(within, key=lambda one: (one[1], -one[0]))
            points.append(Point(setting, target, share, accuracy))
    return points


def at_spend(family: Family, world: World, settings: Sequence[Any], tokens: int) -> tuple[Any, Arm]:
    """Returns the setting that spends as many large tokens or the least above, by bisection.

    Args:
        family: Spends more from setting to setting, but for noise.
        world: Where the spend is compared.
        settings: Settings in order of spend.
        tokens: Tokens of all problems together.
    """
    low, high = 0, len(settings) - 1
    while low < high:
        middle = (low + high) // 2
        if family.on(world, settings[middle]).spent >= tokens:
            high = middle
        else:
            low = middle + 1
    return settings[low], family.on(world, settings[low])


def quantiles(values: Floats, count: int) -> list[float]:
    """Returns numbers between which the values are evenly spread."""
    return sorted({float(round(value, 6)) for value in np.quantile(values, np.linspace(0, 1, count))})


def policy_family(
    name: str, settings: Callable[[World], Sequence[Any]], make: Callable[[Any], Policy]
) -> Family:
    """Makes a family of policies that route step by step."""
    return Family(name, settings, lambda world, setting: world.solved(make(setting)))


def thresholds(world: World, count: int = 100) -> list[float]:
    """Returns thresholds between which the scores of drafts are evenly spread."""
    return [*quantiles(world.draft_scores, count), 1.0]


THRESHOLD = policy_family("threshold", thresholds, threshold)
RANDOM = policy_family("random steps", lambda world: [number / 100 for number in range(101)], random_rate)


def families(router: query_router) -> list[Family]:
    """Returns all families.

    Args:
        router: The query-level router of the world they are tuned on.
    """
    return [
        THRESHOLD,
        *(_staying(k) for k in (1, 2)),
        policy_family("planned (POMDP)", lambda world: COSTS, _planned),
        *(policy_family(f"learned ({kind})", lambda world: _LEARNED, _learned(kind)) for kind in LEARNED),
        policy_family(
            "entropy probe", lambda world: [*reversed(quantiles(world.entropies, 40)), 0.0], entropy_probe
        ),
        router_family(router),
        _by_question("cascade, token probability", lambda world: world.confidence(), higher=False),
        _by_question("cascade, least PRM score", lambda world: world.least_score(), higher=False),
        RANDOM,
    ]


LEARNED = ("aggregate", "sequence")
_LEARNED = [(price, moved) for price in LAMBDAS for moved in LEARNED_THRESHOLDS]


def _staying(k: int) -> Family:
    def settings(world: World) -> list[float]:
        return thresholds(world, 40)

    return policy_family(f"threshold, stay {k}", settings, lambda t: stay_on_large(threshold(t), k=k))


def _learned(kind: str) -> Callable[[Any], Policy]:
    def make(setting: tuple[str, float]) -> Policy:
        price, moved = setting
        network: Any = _loaded(POLICIES / f"{kind}-{price}.json")
        return network.at(moved)  # type: ignore[no-any-return]

    return make


@cache
def _loaded(file: Path) -> Policy:
    return load_policy(file)


@cache
def _step_model() -> StepModel:
    from trim_graph.training.step_model import StepModel

    return StepModel.load(STEP_MODEL)


@cache
def _planned(cost: float) -> Policy:
    from trim_graph.policies.pomdp import pomdp
    from trim_graph.training.planner import Terms, solve

    return pomdp(solve(_step_model(), Terms(cost_per_token=cost)))


def _probabilities(router: query_router, world: World) -> Floats:
    return np.array([router.probability(text) for text in world.questions])


def router_family(router: query_router) -> Family:
    """Makes the family of a router's limits."""
    return _by_question("query router", lambda world: _probabilities(router, world), higher=True, kept=router)


def _by_question(name: str, rated: Callable[[World], Floats], *, higher: bool, kept: Any = None) -> Family:
    """Makes a family that gives a whole question to the large model, by a figure of the question."""

    def figures(world: World) -> Floats:
        return world.once((name, kept), lambda: rated(world))

    def arm(world: World, limit: float) -> Arm:
        found = figures(world)
        return world.split_by(found > limit if higher else found < limit)

    def settings(world: World) -> list[float]:
        # Unrounded: figures crowd at the ends.
        limits: Iterable[float] = np.unique(np.quantile(figures(world), np.linspace(0, 1, 201))).tolist()
        return [float(limit) for limit in limits]

    return Family(name, settings, arm, kept)
