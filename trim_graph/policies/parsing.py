"""Policies as mappings, which a configuration or a call's context names, and how each is built."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_serializer,
)

from trim_graph.errors import SettingsError
from trim_graph.settings import ConfigSection, base_folder, describe, policy_mapping

from .base import Policy
from .baselines import (
    advantage,
    by_pattern,
    entropy_probe,
    large_only,
    random_rate,
    small_only,
    stay_on_large,
    threshold,
)
from .files import load_policy
from .learned import LearnedPolicy


def _beside_file(value: Any, info: ValidationInfo) -> Any:
    """Finds a policy file beside the configuration; a call, which may come from anyone, names none."""
    if info.context is None:
        raise ValueError("a policy file is named in a configuration, not in a call")
    return str(base_folder(info) / os.path.expanduser(value)) if isinstance(value, str) else value


class SmallOnly(ConfigSection):
    """`trim_graph.policies.small_only`."""

    type: Literal["small_only"]

    def build(self) -> Policy:
        """Makes the policy."""
        return small_only()


class LargeOnly(ConfigSection):
    """`trim_graph.policies.large_only`."""

    type: Literal["large_only"]

    def build(self) -> Policy:
        """Makes the policy."""
        return large_only()


class Threshold(ConfigSection):
    """`trim_graph.policies.threshold`."""

    type: Literal["threshold"]
    t: float = Field(ge=0, le=1)

    def build(self) -> Policy:
        """Makes the policy."""
        return threshold(self.t)


class Advantage(ConfigSection):
    """`trim_graph.policies.advantage`."""

    type: Literal["advantage"]
    minimum: float = Field(default=0.0, ge=-1, le=1)
    price_per_token: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def build(self) -> Policy:
        """Makes the policy."""
        return advantage(self.minimum, self.price_per_token)


class RandomRate(ConfigSection):
    """`trim_graph.policies.random_rate`."""

    type: Literal["random_rate"]
    rate: float = Field(ge=0, le=1)

    def build(self) -> Policy:
        """Makes the policy."""
        return random_rate(self.rate)


class EntropyProbe(ConfigSection):
    """`trim_graph.policies.entropy_probe`."""

    type: Literal["entropy_probe"]
    limit: float = Field(ge=0, allow_inf_nan=False)

    def build(self) -> Policy:
        """Makes the policy."""
        return entropy_probe(self.limit)


class ByPattern(ConfigSection):
    """`trim_graph.policies.by_pattern`."""

    type: Literal["by_pattern"]
    pattern: str
    rates: dict[str, Annotated[float, Field(ge=0, le=1)]]
    default: float = Field(default=0.0, ge=0, le=1)

    def build(self) -> Policy:
        """Makes the policy."""
        return by_pattern(self.pattern, self.rates, self.default)


class StayOnLarge(ConfigSection):
    """`trim_graph.policies.stay_on_large`."""

    type: Literal["stay_on_large"]
    policy: PolicyConfig
    k: int = Field(ge=0)

    def build(self) -> Policy:
        """Makes the policy."""
        return stay_on_large(self.policy.build(), self.k)


class Combined(ConfigSection):
    """Several policies joined by ``|`` (``any_of``) or ``&`` (``all_of``)."""

    type: Literal["any_of", "all_of"]
    policies: list[PolicyConfig] = Field(min_length=1)
    """``any_of`` regenerates where one of them says so, ``all_of`` where all do."""

    def build(self) -> Policy:
        """Makes the policy."""
        first, *others = [policy.build() for policy in self.policies]
        for other in others:
            first = first | other if self.type == "any_of" else first & other
        return first


class PolicyFile(ConfigSection):
    """A policy that was written to a file (`trim_graph.policies.load_policy`).

    Attributes:
        path: The file.
        threshold: Of a learned policy, in place of the one in the file (`LearnedPolicy.at`).
    """

    type: Literal["file"]
    path: Annotated[str, BeforeValidator(_beside_file)]
    threshold: float | None = Field(default=None, ge=0, le=1)

    def build(self) -> Policy:
        """Reads the file.

        Raises:
            SettingsError: The file holds no valid policy, or a threshold is given and the policy has none.
        """
        policy = load_policy(self.path)
        if self.threshold is None:
            return policy
        if not isinstance(policy, LearnedPolicy):
            raise SettingsError(
                f"policy file {self.path}: threshold is {self.threshold}, and {policy!r} has none; learned "
                "policies have one (aggregate, sequence)"
            )
        return policy.at(self.threshold)

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves the threshold out where the one in the file holds."""
        return {key: value for key, value in handler(self).items() if value is not None}


class Quality(ConfigSection):
    """An operating point of a configuration by name, which has no policy yet.

    A configuration replaces it by the policy of that name (`trim_graph.config.quality`).
    """

    type: Literal["quality"]
    name: str
    """A key of the mapping ``quality``."""

    def build(self) -> Policy:
        """Raises a `SettingsError`: what has a policy has been replaced by it."""
        raise SettingsError(
            f"quality {self.name!r} has no policy here: name an operating point under quality in the "
            "configuration, and run trim-graph calibrate --write"
        )


_PolicyMapping = Annotated[
    SmallOnly
    | LargeOnly
    | Threshold
    | Advantage
    | RandomRate
    | EntropyProbe
    | ByPattern
    | StayOnLarge
    | Combined
    | PolicyFile
    | Quality,
    Field(discriminator="type"),
]
_ShortForm = Literal["small", "large"] | Annotated[float, Field(ge=0, le=1)] | str
PolicyConfig = Annotated[
    _PolicyMapping, BeforeValidator(policy_mapping, json_schema_input_type=_PolicyMapping | _ShortForm)
]

for _recursive in (StayOnLarge, Combined):
    _recursive.model_rebuild()


def invalid_policy(setting: str, error: ValidationError) -> SettingsError:
    """Returns the error of a setting that names no policy.

    Args:
        setting: Name of the setting.
        error: What pydantic found.
    """
    missing = any(item["type"] == "missing" for item in error.errors(include_url=False))
    hint = '; give its fields in a mapping such as {"type": "threshold", "t": 0.5}' if missing else ""
    return SettingsError(f"{setting} is not valid: {describe(error)}{hint}")


def build_policy(given: float | str | Mapping[str, Any]) -> Policy:
    """Makes the policy that a caller names as a configuration file does.

    Args:
        given: A number, a name, a file, or a mapping; see `trim_graph.settings.policy_mapping`. A relative
            path is relative to the working directory.

    Raises:
        SettingsError: It names no policy.
    """
    named = dict(given) if isinstance(given, Mapping) else given
    try:
        policy: Policy = TypeAdapter[Any](PolicyConfig).validate_python(named, context={"base": "."}).build()
    except ValidationError as error:
        raise invalid_policy("policy", error) from None
    return policy
