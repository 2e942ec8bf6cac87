"""Operating points: how much of the large model a request asks for, by model name or the field ``trim``."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

from trim_graph.budget import Budget
from trim_graph.config import TrimConfig, quality_policy
from trim_graph.config.quality import quality_name
from trim_graph.errors import SettingsError
from trim_graph.policies.learned import LearnedPolicy
from trim_graph.policies.parsing import PolicyFile

from .errors import ApiError
from .protocol import BudgetOptions, ChatCompletionRequest

Kind = Literal["configured", "shadow", "threshold", "quality", "small", "large"]
_ALONE: Mapping[str, Kind] = {"small": "small", "large": "large"}
"""Names of the two models, each of which may answer by itself."""


class OperatingPoint(NamedTuple):
    """An operating point.

    Attributes:
        kind: How it was chosen.
        name: As in a model's name; ``configured`` for the configuration's own policy, ``shadow`` for the one
            model that answers while a shadow routes.
        settings: Fields of `trim_graph.TrimContext` that set it.
    """

    kind: Kind
    name: str
    settings: Mapping[str, Any]


class OperatingPoints:
    """The operating points of a configuration.

    Args:
        config: The configuration.
        model_name: Name of the routed pair; ``NAME:POINT`` names an operating point of it.
    """

    def __init__(self, config: TrimConfig, model_name: str) -> None:
        self._config, self._name = config, model_name
        self._is_learned = isinstance(config.policy, PolicyFile) and isinstance(
            config.policy.build(), LearnedPolicy
        )

    @property
    def names(self) -> list[str]:
        """Names of models that a client may choose from; thresholds are too many to list."""
        qualities = [
            f"{self._name}:quality={name}"
            for name, point in self._config.quality.items()
            if point.policy is not None
        ]
        return [self._name, *qualities, *_ALONE]

    def of_request(self, request: ChatCompletionRequest) -> OperatingPoint:
        """Returns the operating point that a request names.

        Raises:
            ApiError: 404, there is no such model or point; 400, model and ``trim`` name two.
        """
        named = self.of_model(request.model)
        if (text := request.trim.as_point()) is None:
            return named
        if named.kind not in ("configured", "shadow"):
            raise ApiError(
                400,
                f"model names the operating point {named.name}, and trim another: give one of them",
                param="trim",
                code="invalid_value",
            )
        return self._point(text, f"{self._name}:{text}", "trim")

    def of_model(self, name: str) -> OperatingPoint:
        """Returns the operating point that a model's name stands for.

        Raises:
            ApiError: 404, there is no such model.
        """
        if name in _ALONE:
            return self._point(name, name, "model")
        base, colon, text = name.partition(":")
        if base != self._name:
            raise self._unknown(name, "model")
        if colon:
            return self._point(text, name, "model")
        if (shadow := self._config.shadow) is not None:
            return OperatingPoint("shadow", "shadow", {"policy": {"type": f"{shadow.answers}_only"}})
        return OperatingPoint("configured", "configured", {})

    def _point(self, text: str, asked: str, param: str) -> OperatingPoint:
        if (alone := _ALONE.get(text)) is not None:
            return OperatingPoint(alone, text, {"policy": {"type": f"{text}_only"}})
        kind, equals, value = text.partition("=")
        if equals and kind == "quality":
            return self._quality(value, asked, param)
        try:
            threshold = float(text)
        except ValueError:
            raise self._unknown(asked, param) from None
        if not 0 <= threshold <= 1:  # not a number is neither
            raise self._unknown(asked, param, "a threshold is from 0 to 1. ")
        return OperatingPoint("threshold", text, self._threshold(threshold, asked, param))

    def _quality(self, value: str, asked: str, param: str) -> OperatingPoint:
        """Returns the point of a name, or of a number: the most accuracy that may be lost."""
        try:
            name = quality_name(self._config.quality, value)
        except SettingsError as error:
            raise self._unknown(asked, param, f"{str(error).rstrip('.')}. ") from None
        policy = quality_policy(self._config.quality, name).model_dump(mode="json")
        return OperatingPoint("quality", f"quality={name}", {"policy": policy})

    def _threshold(self, threshold: float, asked: str, param: str) -> dict[str, Any]:
        """Returns the settings of a threshold: of the learned policy if there is one, else of the score."""
        if self._is_learned:
            assert isinstance(self._config.policy, PolicyFile)
            return {"policy": {"type": "file", "path": self._config.policy.path, "threshold": threshold}}
        if self._config.scorer is None:
            raise self._unknown(
                asked, param, "a threshold needs a scorer, and the configuration names none. "
            )
        return {"threshold": threshold}

    def _unknown(self, asked: str, param: str, why: str = "") -> ApiError:
        close = [] if why else get_close_matches(asked, self.names, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        known = ", ".join([*self.names, f"{self._name}:THRESHOLD"])
        message = f"The model {asked[:200]!r} does not exist: {why}{meant}Models: {known}"
        return ApiError(404, message, code="model_not_found", param=param)


def tightened(own: Budget, asked: BudgetOptions) -> Budget | None:
    """Returns the budget of a request; None if it is the configuration's.

    Args:
        own: The budget of the configuration.
        asked: Limits of the request; the lower one of each pair holds.
    """
    limits = asked.model_dump(exclude_none=True)
    lowered = {
        name: limit if (old := getattr(own, name)) is None else min(limit, old)
        for name, limit in limits.items()
    }
    return own.model_copy(update=lowered) if lowered else None
