"""Measurements on the recorded problems, as one JSON-native document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trim_graph.evaluation.metrics import RESAMPLES

from .families import (
    RANDOM,
    SHARES,
    THRESHOLD,
    Family,
    Point,
    at_spend,
    families,
    operating_points,
    router_family,
)
from .figures import Draws, difference, over_random_questions
from .paper_test import BY_QUESTION, over_query_level
from .scorers import TOKEN_PROBABILITY, compare_auc
from .worlds import Arm, World

if TYPE_CHECKING:
    from trim_graph.evaluation.query_router import TrainedRouter

WITHIN = 0.01
"""Of the large model's accuracy."""
BUDGET = 0.2
"""Share of large tokens that the claims are about."""
ADDED_AT = (0.05, 0.1, 0.15, 0.2, 0.3)
STEPWISE = (
    "threshold, stay 1",
    "threshold, stay 2",
    "planned (POMDP)",
    "learned (aggregate)",
    "learned (sequence)",
)


@dataclass(frozen=True, slots=True)
class Studied:
    """A world with all that is known of it.

    Attributes:
        validation: Where operating points are chosen.
        test: Where they are measured.
        router: Trained on a third part.
    """

    validation: World
    test: World
    router: TrainedRouter

    @property
    def families(self) -> list[Family]:
        """All families, tuned on this world."""
        return families(self.router.policy)


def study_world(world: Studied, *, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Chooses operating points on the validation problems and measures them on the test problems, once."""
    test = world.test
    chosen = {family.name: operating_points(family, world.validation) for family in world.families}
    arms = {
        _arm(family.name, point): family.on(test, point.setting)
        for family in world.families
        for point in chosen[family.name]
    }
    best = _best(world)
    arms |= {name: family.on(test, point.setting) for name, (family, point) in best.items()}
    arms["oracle"] = test.oracle()
    draws = Draws(test, arms, resamples=resamples)
    curves = {
        name: draws.curve([_arm(name, point) for point in points])
        for name, points in chosen.items()
        if points
    }
    return {
        "n": len(test),
        "n_validation": len(world.validation),
        "small": draws.accuracy("small").document(),
        "large": draws.accuracy("large").document(),
        "large_tokens": test.large.spent / len(test),
        "small_steps_right": test.steps_right(),
        "oracle": {
            "accuracy": draws.accuracy("oracle").document(),
            "share": draws.share("oracle").document(),
        },
        "floor": test.floor(test.large.accuracy - WITHIN),
        "router": _router(world),
        "families": {
            name: {
                "points": [_measured(draws, _arm(name, point), point) for point in points],
                "curve": {key: figure.document() for key, figure in curves.get(name, {}).items()},
            }
            for name, points in chosen.items()
        },
        "best": {
            name: {
                "family": family.name,
                **_measured(draws, name, point),
                "below_large": difference(arms[name], test.large),
            }
            for name, (family, point) in best.items()
        },
        "against": _against(curves),
        "over_query_level": over_query_level(curves),
        "adds": _adds(world, chosen),
    }


def _arm(name: str, point: Point) -> str:
    return f"{name} @ {point.target:g}"


def _measured(draws: Draws, name: str, point: Point) -> dict[str, Any]:
    return {
        "setting": point.setting,
        "target": point.target,
        "validation": {"share": point.share, "accuracy": point.accuracy},
        "share": draws.share(name).document(),
        "accuracy": draws.accuracy(name).document(),
        "pgr": draws.pgr(name).document(),
    }


def _best(world: Studied) -> dict[str, tuple[Family, Point]]:
    """Chooses, on the validation problems, the family and setting of the two claims.

    ``within``: the cheapest that is within `WITHIN` of the large model. ``budget``: the one that is right
    most often for `BUDGET` of its tokens.
    """
    validation = world.validation
    enough = validation.large.accuracy - WITHIN
    tried = []
    for family in world.families:
        for setting in family.settings(validation):
            arm = family.on(validation, setting)
            tried.append((family, Point(setting, BUDGET, validation.share(arm), arm.accuracy)))
    within = [one for one in tried if one[1].accuracy >= enough]
    cheap = [one for one in tried if one[1].share <= BUDGET]
    return {
        "within": min(within, key=lambda one: one[1].share),
        "budget": max(cheap, key=lambda one: (one[1].accuracy, -one[1].share)),
    }


def _router(world: Studied) -> dict[str, Any]:
    """Returns how good the router is, on validation questions of its training and on the test problems."""
    from trim_graph.evaluation.query_router import Example, auc_of

    test = world.test
    pairs = zip(test.questions, test.small.correct.tolist(), test.large.correct.tolist(), strict=True)
    examples = [Example(text, float(small), float(large)) for text, small, large in pairs]
    benefits = sum(example.benefits for example in examples)
    return {
        "trained_on": world.router.trained_on,
        "auc_in_training": world.router.auc,
        "auc": auc_of(world.router.policy, examples) if 0 < benefits < len(examples) else None,
    }


def _against(curves: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Compares the threshold's curve with those of policies that route whole questions."""
    found: dict[str, Any] = {}
    for other in BY_QUESTION:
        if other not in curves or THRESHOLD.name not in curves:
            continue
        found[other] = {}
        for key in ("mean_ibc", "mean_delta_ibc"):
            ours, theirs = curves[THRESHOLD.name][key], curves[other][key]
            ratio = ours.over(theirs)
            found[other][key] = {
                "difference": ours.minus(theirs).document(),
                "ratio": None if ratio is None else ratio.document(),
            }
    return found


def _adds(world: Studied, chosen: Mapping[str, Sequence[Point]]) -> list[dict[str, Any]]:
    """Compares other step-wise families with the threshold that spends as much or more on the problems."""
    settings, rows = THRESHOLD.settings(world.validation), []
    for family in world.families:
        if family.name not in STEPWISE:
            continue
        those = {point.setting: point for point in chosen[family.name] if point.target in ADDED_AT}
        for point in those.values():
            arm = family.on(world.test, point.setting)
            _, beside = at_spend(THRESHOLD, world.test, settings, arm.spent)
            rows.append(
                {
                    "family": family.name,
                    "target": point.target,
                    "share": world.test.share(arm),
                    "accuracy": arm.accuracy,
                    "threshold_share": world.test.share(beside),
                    "difference": difference(arm, beside),
                }
            )
    return rows


def study_transfer(worlds: Mapping[str, Studied], studied: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tunes on one world and tests on another, beside random routing that spends as much there or more.

    Args:
        worlds: All of them.
        studied: What `study_world` found of each; its operating points are taken.
    """
    rows = []
    for source, tuned in worlds.items():
        for family in tuned.families:
            if family.name not in (THRESHOLD.name, *STEPWISE[2:], BY_QUESTION[0]):
                continue
            points = studied[source]["families"][family.name]["points"]
            chosen = [point["setting"] for point in points if point["target"] == BUDGET]
            for target, tested in worlds.items() if chosen else ():
                setting = tuple(chosen[0]) if isinstance(chosen[0], list) else chosen[0]
                arm = family.on(tested.test, setting)
                rows.append(
                    {
                        "family": family.name,
                        "tuned_on": source,
                        "tested_on": target,
                        "setting": setting,
                        "share": tested.test.share(arm),
                        "accuracy": arm.accuracy,
                        **_beside_random(tested.test, arm),
                    }
                )
    return rows


def _beside_random(test: World, arm: Arm) -> dict[str, Any]:
    """Compares an arm with random steps that spend as much or more, and with random questions."""
    rate, beside = at_spend(RANDOM, test, RANDOM.settings(test), arm.spent)
    return {
        "over_questions": over_random_questions(test, arm),
        "random_rate": rate,
        "random_share": test.share(beside),
        "random_accuracy": beside.accuracy,
        "over_random": difference(arm, beside),
    }


def study_scorers(
    scorers: Mapping[str, tuple[World, World]], *, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Measures the threshold under several scorers.

    Args:
        scorers: Validation and test problems with the scores of each; `TOKEN_PROBABILITY` is one of them.
        resamples: Resamples of the bootstrap.
    """
    found, curves = dict[str, dict[str, Any]](), {}
    _, beside = scorers[TOKEN_PROBABILITY]
    for name, (validation, test) in scorers.items():
        points = operating_points(THRESHOLD, validation)
        arms = {_arm(name, point): THRESHOLD.on(test, point.setting) for point in points}
        draws, areas = Draws(test, arms, resamples=resamples), compare_auc(test, beside)
        curves[name] = draws.curve(list(arms))
        measured = [_measured(draws, _arm(name, point), point) for point in points]
        found[name] = {
            "n": len(test),
            "n_validation": len(validation),
            "auc": areas["auc"],
            "over_token_probability": {"auc": areas},
            "points": measured,
            "budget": next((point for point in measured if point["target"] == BUDGET), None),
            "curve": {key: figure.document() for key, figure in curves[name].items()},
        }
    for name, one in found.items():
        # Paired too: the same seed draws the same problems for every scorer.
        gain = curves[name]["mean_ibc"].minus(curves[TOKEN_PROBABILITY]["mean_ibc"])
        one["over_token_probability"]["mean_ibc"] = gain.document()
    return found


__all__ = [
    "BUDGET",
    "SHARES",
    "WITHIN",
    "Studied",
    "router_family",
    "study_scorers",
    "study_transfer",
    "study_world",
]
