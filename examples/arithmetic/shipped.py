"""Policies that ship with the example models: threshold, random rate, policy files."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trim_graph.errors import SettingsError

CALIBRATED = Path(__file__).parent / "calibrated.json"
POLICIES = Path(__file__).parent / "policies"
CHOSEN = POLICIES / "chosen.json"
KINDS = {"planned": "pomdp", "aggregate": "aggregate", "sequence": "sequence"}
"""Name of each kind of policy in the demo, and the prefix of its files."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The settings of the example policies, and what they were chosen from."""

    threshold: float
    random_rate: float
    split: str
    n: int
    seed: int
    accuracy_small: float
    accuracy_large: float
    random: dict[str, Any]
    """The random policy at that rate, as a `trim_graph.evaluation.calibration.MeasuredPoint`."""
    curve: list[dict[str, Any]]
    """One such point for each threshold."""


def load_calibration(path: Path | None = None) -> Calibration:
    """Reads the threshold and the rate that were chosen.

    Args:
        path: Default: the file that ships with the package.

    Raises:
        SettingsError: There is no such file, or it is not one.
    """
    path = path or CALIBRATED
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Calibration(**{field.name: data[field.name] for field in fields(Calibration)})
    except FileNotFoundError as error:
        raise SettingsError(
            f"{path} is missing: python -m trim_graph.examples.arithmetic.study.calibrate makes it"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"{path} is damaged: python -m trim_graph.examples.arithmetic.study.calibrate makes it anew"
        ) from error


def load_chosen() -> dict[str, Path]:
    """Returns the file of each kind.

    Raises:
        SettingsError: The choice is missing or damaged.
    """
    try:
        policies = json.loads(CHOSEN.read_text(encoding="utf-8"))["policies"]
        return {name: POLICIES / policies[name]["file"] for name in KINDS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"{CHOSEN} is missing or damaged: "
            "python -m trim_graph.examples.arithmetic.study.choose_policies makes it"
        ) from error
