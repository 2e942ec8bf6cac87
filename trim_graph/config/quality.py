"""Operating points by name: what accuracy may be lost, or what is to be saved, and the policy for it.

    quality:
      high: {max_loss: 0.01}
      fast: {save: 0.7}
    policy: {type: quality, name: high}

`trim-graph calibrate` adds to each name its policy and what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from trim_graph.errors import SettingsError, nearest
from trim_graph.policies.parsing import PolicyConfig
from trim_graph.settings import ConfigSection

_NAME = re.compile(r"[A-Za-z_][\w.-]*")
Share = Annotated[float, Field(gt=0, lt=1)]


class Measured(ConfigSection):
    """Measurement of a calibrated policy on validation questions, relative to the large model alone.

    Attributes:
        n: Questions.
        saved: Share of the large model's tokens.
        loss: Loss of accuracy that was seen; None where no answers are known.
        loss_bound: Upper bound of the loss, one-sided with a confidence of 95 %.
    """

    n: int = Field(ge=1)
    saved: float
    loss: float | None = None
    loss_bound: float | None = None


class QualityPoint(ConfigSection):
    """An operating point.

    Attributes:
        max_loss: Most accuracy that may be lost against the large model alone.
        save: Least share of the large model's tokens that is saved.
        policy: Written by `trim-graph calibrate`; None until then.
        measured: Written with it.
    """

    max_loss: Share | None = None
    save: Share | None = None
    policy: PolicyConfig | None = None
    measured: Measured | None = None

    @model_validator(mode="after")
    def _one_target(self) -> QualityPoint:
        if (self.max_loss is None) == (self.save is None):
            raise ValueError("give one of max_loss and save, such as {max_loss: 0.02}")
        return self


def _checked_names(points: dict[str, QualityPoint]) -> dict[str, QualityPoint]:
    for name in points:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of an operating point: begin with a letter, as in high")
    return points


QualityPoints = Annotated[dict[str, QualityPoint], AfterValidator(_checked_names)]


def policy_by_name(data: Any) -> Any:
    """Replaces ``policy: {type: quality, name: NAME}`` in a configuration by that name's policy, if any."""
    policy = data.get("policy") if isinstance(data, Mapping) else None
    if not isinstance(policy, Mapping) or policy.get("type") != "quality" or set(policy) != {"type", "name"}:
        return data
    points, name = data.get("quality"), policy["name"]
    point = points.get(name) if isinstance(points, Mapping) and isinstance(name, str) else None
    own = point.get("policy") if isinstance(point, Mapping) else getattr(point, "policy", None)
    return data if own is None else {**data, "policy": own}


def quality_name(points: Mapping[str, QualityPoint], wanted: str | float) -> str:
    """Returns the name of a calibrated operating point.

    Args:
        points: ``quality`` of a configuration.
        wanted: A name, or the most accuracy that may be lost: 0.02, also as text. Of the points calibrated
            for so much or less the one that saves most is taken.

    Raises:
        SettingsError: There is no such point, or it is not calibrated.
    """
    try:
        most = float(wanted)
    except ValueError:
        return _calibrated(points, str(wanted))
    if not 0 < most < 1:
        raise SettingsError(f"quality is {wanted}: choose a name, or a loss of accuracy between 0 and 1")
    within = [
        (point.measured.saved if point.measured else 0.0, point.max_loss, name)
        for name, point in points.items()
        if point.max_loss is not None and point.max_loss <= most and point.policy is not None
    ]
    if not within:
        raise SettingsError(
            f"no operating point is calibrated for a loss of {most:g} or less; there {_listed(points)}: add "
            f"one with max_loss: {most:g} under quality and run trim-graph calibrate --write"
        )
    return max(within)[2]


def quality_policy(points: Mapping[str, QualityPoint], wanted: str | float) -> PolicyConfig:
    """Returns the policy of an operating point as a configuration holds it: ``.build()`` makes it.

    Args:
        points: See `quality_name`.
        wanted: See `quality_name`.

    Raises:
        SettingsError: See `quality_name`.
    """
    policy = points[quality_name(points, wanted)].policy
    assert policy is not None
    return policy


def check_named(points: Mapping[str, QualityPoint], name: str) -> QualityPoint:
    """Returns the operating point of a name.

    Raises:
        ValueError: There is none; the message names those that there are.
    """
    if name not in points:
        raise ValueError(f"unknown quality {name!r}{nearest(name, sorted(points))}")
    return points[name]


def _calibrated(points: Mapping[str, QualityPoint], name: str) -> str:
    try:
        point = check_named(points, name)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    if point.policy is None:
        raise SettingsError(f"quality {name!r} is not calibrated: run trim-graph calibrate --write")
    return name


def _listed(points: Mapping[str, QualityPoint]) -> str:
    shown = [
        f"{name} ({'save' if point.max_loss is None else 'max_loss'} {point.max_loss or point.save:g}"
        f"{'' if point.policy else ', not calibrated'})"
        for name, point in points.items()
    ]
    return f"are {', '.join(shown)}" if shown else "are none"
