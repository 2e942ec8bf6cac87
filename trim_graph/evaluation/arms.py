"""Arms by name: what `trim-graph eval --policy` and ``--sweep`` take."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trim_graph.errors import SettingsError

from .calibration import HOLE, PolicyMapping, Searched
from .families import FAMILIES, make_family, policy_config
from .identity import by_content
from .run_files import ArmKind, ArmSettings, file_name

SWEPT = {**FAMILIES, "entropy_probe": Searched({"type": "entropy_probe", "limit": HOLE}, scored=False)}
"""What may be swept by name."""
RESERVED = ("small", "large")
LONGEST = 200
"""Bytes of an arm's name in the name of a file, which has 255 at most, endings included."""
_NAMED = re.compile(r"([\w.@+-]+)=(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Arm:
    """An arm that is run through a graph.

    Attributes:
        name: In rows and tables.
        kind: See `trim_graph.evaluation.run_files.ArmKind`.
        family: Whose curve it is a point of.
        policy: As a configuration names it.
    """

    name: str
    kind: ArmKind
    family: str
    policy: PolicyMapping

    @property
    def settings(self) -> ArmSettings:
        """What is written down of it: policy files by their content."""
        return ArmSettings(kind=self.kind, family=self.family, policy=by_content(self.policy))


REFERENCES = (
    Arm("small", "reference", "small", {"type": "small_only"}),
    Arm("large", "reference", "large", {"type": "large_only"}),
)

RANDOM_RATES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Rates of random routing, the points of its curve between the models alone."""


def random_arms(rates: Sequence[float]) -> list[Arm]:
    """Return the arms of random routing.

    Args:
        rates: The share of steps that each one regenerates, between 0 and 1.
    """
    return [Arm(f"random-{r:g}", "random", "random", {"type": "random_rate", "rate": r}) for r in rates]


def policy_arms(given: Sequence[str], own: PolicyMapping) -> list[Arm]:
    """Return the arms of ``--policy``.

    Args:
        given: Each a policy as a configuration names it, ``small_only``, ``plan.json``, or
            ``{type: threshold, t: 0.3}``, perhaps with a name before it: ``mine={type: ...}``.
        own: What is taken where nothing is given.

    Raises:
        SettingsError: One is no policy.
    """
    if not given:
        return [Arm(arm_name(own), "policy", arm_name(own), own)]
    arms = []
    for text in given:
        named = _NAMED.fullmatch(text)
        name, policy = (named[1], named[2]) if named else (None, text)
        mapping = _parsed(policy)
        arm = name or arm_name(mapping)
        arms.append(Arm(arm, "policy", arm, mapping))
    return arms


def sweep_arms(given: Sequence[str]) -> list[Arm]:
    """Return the arms of ``--sweep``.

    Args:
        given: Each a family and its numbers, ``threshold:0.1,0.3``; a policy with ``"?"`` in place of the
            number; or a folder of policy files.

    Raises:
        SettingsError: One is none of these.
    """
    return [arm for text in given for arm in _swept(text)]


def _swept(text: str) -> Iterator[Arm]:
    if Path(text).is_dir():
        family = make_family([text], {})
        for name, policy in family.policies.items():  # type: ignore[union-attr]
            yield Arm(Path(name).stem, "sweep", Path(text).name, policy)
        return
    template, colon, numbers = text.rpartition(":")
    if not colon or not numbers.strip():
        raise SettingsError(
            f"--sweep {text}: give a family and its numbers, such as threshold:0.1,0.3,0.5; there are "
            f'{", ".join(SWEPT)}, a policy with "{HOLE}" for the number, and folders of policy files'
        )
    if template in SWEPT:
        family, name = SWEPT[template], template
    elif template.lstrip().startswith("{"):
        family = Searched(_yaml(template))
        if HOLE not in json.dumps(family.template):
            raise SettingsError(f'--sweep {text}: put "{HOLE}" in place of the number in the policy')
        name = str(family.template.get("type"))
    else:
        raise SettingsError(f"--sweep {text}: there is no family {template!r}: choose {', '.join(SWEPT)}")
    for number in numbers.split(","):
        try:
            value = float(number)
        except ValueError as error:
            raise SettingsError(f"--sweep {text}: {number!r} is no number") from error
        policy = _checked(family.policy(value))
        yield Arm(f"{name}-{value:g}", "sweep", name, policy)


def check_names(arms: Sequence[Arm]) -> None:
    """Refuse arms that could not be told apart.

    Raises:
        SettingsError: Two have one name, or one has that of a model alone, or one that no file can have.
    """
    names = [arm.name for arm in arms]
    for name in names:
        if len(file_name(name)) > LONGEST:
            raise SettingsError(
                f"the arm {name[:40]}... has a name too long for a file: choose a shorter NAME={{type: ...}}"
            )
        if name in RESERVED:
            raise SettingsError(f"an arm named {name!r}: that is the model alone; name this one otherwise")
        if names.count(name) > 1:
            raise SettingsError(f"two arms are named {name!r}: name one of them NAME={{type: ...}}")


def arm_name(policy: PolicyMapping) -> str:
    """Name an arm by its policy: ``threshold-0.3``, the stem of a file; a digest where that is too long."""
    if policy.get("type") == "file":
        return Path(policy["path"]).stem
    name = "-".join(_words(policy))
    if len(file_name(name)) <= LONGEST:
        return name
    return f"{policy['type']}-{hashlib.sha256(json.dumps(policy, sort_keys=True).encode()).hexdigest()[:8]}"


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if value.get("type") == "file":
            yield Path(value["path"]).stem
            return
        yield str(value.get("type"))
        for key, inner in value.items():
            if key != "type":
                yield from _words(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _words(inner)
    else:
        yield re.sub(r"[^\w.+]+", "_", f"{value:g}" if isinstance(value, float) else str(value))


def _parsed(text: str) -> PolicyMapping:
    return _checked(_yaml(text))


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(
            f"{text!r} is neither the name of a policy nor a mapping such as {{type: threshold, t: 0.3}}"
        ) from error


def _checked(policy: Any) -> PolicyMapping:
    """Fill in what a configuration would.

    Raises:
        SettingsError: It is no policy, or its file is none.
    """
    config = policy_config(policy)
    config.build()
    mapping: PolicyMapping = config.model_dump()
    return mapping
