"""Families of policies by name: what `trim-graph calibrate --family` takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trim_graph.errors import SettingsError
from trim_graph.policies.files import is_policy_file
from trim_graph.policies.parsing import PolicyConfig

from .calibration import HOLE, Listed, PolicyMapping, Searched

FAMILIES: dict[str, Searched] = {
    "threshold": Searched({"type": "threshold", "t": HOLE}),
    "random_rate": Searched({"type": "random_rate", "rate": HOLE}, scored=False),
}
_POLICY: TypeAdapter[Any] = TypeAdapter(PolicyConfig)
_RISING = {"threshold.t", "random_rate.rate"}
"""Numbers that a search can choose: in [0, 1], and the higher the more is spent."""


def make_family(given: Sequence[str], own: PolicyMapping) -> Searched | Listed:
    """Make a family of what a command line names.

    Args:
        given: A name in `FAMILIES`; a YAML mapping of a policy with ``"?"`` in place of the number to be
            chosen; or any number of policy files and folders of them. Nothing: the family of ``own``.
        own: The policy of the configuration.

    Raises:
        SettingsError: It is none of these, or a file holds no policy.
    """
    if not given:
        name = own["type"]
        if name not in FAMILIES:
            raise SettingsError(f"--family is missing: the policy {name} has no number to choose")
        given = [name]
    if len(given) == 1 and given[0] in FAMILIES:
        return FAMILIES[given[0]]
    if len(given) == 1 and given[0].lstrip().startswith("{"):
        return _template(given[0])
    files = [file for name in given for file in _files(name)]
    policies = {str(file): {"type": "file", "path": str(file.absolute())} for file in files}
    for policy in policies.values():
        policy_config(policy).build()  # refused here if it is none
    return Listed(policies)


def policy_config(policy: PolicyMapping) -> Any:
    """Check a policy that a configuration could name.

    Raises:
        SettingsError: It is not valid.
    """
    try:
        return _POLICY.validate_python(policy, context={"base": Path.cwd()})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # The first of the places is the type, which the policy says itself.
        key = ".".join(str(place) for place in first["loc"][1:])
        raise SettingsError(
            f"policy {json.dumps(policy)}: {f'{key}: ' if key else ''}{first['msg']}"
        ) from error


def _template(text: str) -> Searched:
    import yaml

    try:
        template = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"--family {text!r} is not YAML") from error
    if HOLE not in json.dumps(template):
        raise SettingsError(f'--family {text}: put "{HOLE}" in place of the number to be chosen')
    example = policy_config(Searched(template).policy(0.5)).build()
    if kinds := sorted(_searched(template) - _RISING):
        raise SettingsError(
            f"--family {text}: a number is chosen of {' and '.join(sorted(_RISING))}, which lie in [0, 1] "
            f"and spend more the higher they are; {', '.join(kinds)} does not. Give policy files instead"
        )
    return Searched(template, scored=example.needs_score)


def _searched(policy: Any) -> set[str]:
    """Name the numbers that a template leaves open, as ``type.number``."""
    if isinstance(policy, list):
        return {found for part in policy for found in _searched(part)}
    if not isinstance(policy, dict):
        return set()
    own = {f"{policy.get('type')}.{key}" for key, value in policy.items() if value == HOLE}
    return own | {found for value in policy.values() for found in _searched(value)}


def _files(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        # Learning curves and figures may stand beside the policies.
        found = [file for file in sorted(path.glob("*.json")) if is_policy_file(file)]
        if not found:
            raise SettingsError(f"--family {name}: there is no policy file (*.json) in this folder")
        return found
    if path.suffix == ".json":
        return [path]
    raise SettingsError(
        f"--family {name}: choose {', '.join(FAMILIES)}, policy files or a folder of them, or a policy with "
        f'"{HOLE}" for the number: {{type: stay_on_large, k: 2, policy: {{type: threshold, t: "{HOLE}"}}}}'
    )
