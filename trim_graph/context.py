"""Settings of a run: given when the graph is built, overridden per call through the context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .budget import Budget, Prices
from .errors import SettingsError
from .prompts import DEFAULT_INSTRUCTION
from .segment import DEFAULT_DELIMITER, AnySegmentation, as_segmentation
from .thinking import Thinking

OnScorerError = Literal["accept", "regenerate", "raise"]
OnLargeError = Literal["accept", "raise"]
OnSmallError = Literal["large", "raise"]


class Settings(BaseModel):
    """What a run goes by; stored in the state when it begins."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_steps: int = Field(default=32, ge=1, description="most steps of a solution")
    max_step_tokens: int = Field(default=512, ge=1, description="most tokens of one step")
    delimiter: str = Field(default=DEFAULT_DELIMITER, min_length=1, description="what separates steps")
    segmentation: AnySegmentation | None = Field(
        default=None, description="another way to find where a step ends, in place of the delimiter"
    )
    thinking: Thinking | None = Field(
        default=Thinking(), description="how a model's thought is marked; null looks for none"
    )
    instruction: str | None = Field(
        default=DEFAULT_INSTRUCTION, description="joins the system message; null adds nothing"
    )
    seed: int | None = Field(default=None, description="makes random policies repeatable")
    on_scorer_error: OnScorerError = Field(
        default="raise", description="when a draft cannot be scored: accept it, regenerate it, or raise"
    )
    on_large_error: OnLargeError = Field(
        default="raise", description="when the large model fails: accept the small one's step, or raise"
    )
    on_small_error: OnSmallError = Field(
        default="raise", description="when the small model fails: the large one writes the step, or raise"
    )
    budget: Budget = Budget()
    prices: Prices = Prices()
    policy: dict[str, Any] | None = Field(
        default=None, description="instead of the graph's own; as in a configuration file"
    )

    @model_validator(mode="after")
    def _one_segmentation(self) -> Settings:
        if self.segmentation is not None and self.delimiter != DEFAULT_DELIMITER:
            raise ValueError("delimiter and segmentation are both given; a delimiter is a segmentation")
        return self


class TrimContext(BaseModel):
    """Overrides for one call: `graph.invoke(..., context=TrimContext(max_steps=8))`.

    An application with a context of its own puts one (or a dict of the same keys) under its key ``trim``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float | None = Field(
        default=None, ge=0, le=1, description="Short for the policy threshold at this score"
    )
    policy: str | dict[str, Any] | None = Field(
        default=None,
        description="Policy instead of the graph's own, as in a configuration file: large_only, or "
        '{"type": "random_rate", "rate": 0.3}',
    )
    max_steps: int | None = Field(default=None, ge=1, description="Most steps of a solution")
    max_step_tokens: int | None = Field(default=None, ge=1, description="Most tokens of one step")
    seed: int | None = Field(default=None, description="Makes random policies repeatable")
    on_scorer_error: OnScorerError | None = Field(
        default=None, description="When a draft cannot be scored: accept it, regenerate it, or raise"
    )
    on_large_error: OnLargeError | None = Field(
        default=None, description="When the large model fails: accept the small one's step, or raise"
    )
    on_small_error: OnSmallError | None = Field(
        default=None, description="When the small model fails: the large one writes the step, or raise"
    )
    budget: Budget | None = Field(default=None, description="Hard limits instead of the graph's own")

    @model_validator(mode="before")
    @classmethod
    def _of_an_application(cls, given: Any) -> Any:
        """Take an application's context too: LangGraph makes a dict into this class before we see it."""
        if not isinstance(given, Mapping) or set(given) != {"trim"}:
            return given
        own = given["trim"]
        return own.model_dump(exclude_unset=True) if isinstance(own, cls) else own or {}

    @model_validator(mode="after")
    def _one_policy(self) -> TrimContext:
        if self.threshold is not None and self.policy is not None:
            raise ValueError("threshold and policy are both given; threshold is short for a policy")
        return self

    def overrides(self) -> dict[str, Any]:
        """The fields of `Settings` that are to be changed."""
        given = {name: value for name in self.model_fields_set if (value := getattr(self, name)) is not None}
        if (t := given.pop("threshold", None)) is not None:
            given["policy"] = {"type": "threshold", "t": t}
        if isinstance(given.get("policy"), str):
            given["policy"] = {"type": given["policy"]}
        return given


def overridden(settings: Settings, context: Any) -> Settings:
    """Apply the overrides of a call.

    Args:
        settings: The graph's own.
        context: A `TrimContext`, a mapping with a key ``trim``, an object with an attribute ``trim``
            (a parent's context), or anything else, which is not looked at.

    Raises:
        SettingsError: What stands under ``trim`` is not a valid `TrimContext`.
    """
    given = context
    if not isinstance(context, TrimContext):
        given = context.get("trim") if isinstance(context, Mapping) else getattr(context, "trim", None)
    if given is None:
        return settings
    try:
        overrides = given if isinstance(given, TrimContext) else TrimContext.model_validate(given)
    except ValidationError as error:
        raise SettingsError(f"the context's trim settings are not valid: {describe(error)}") from error
    return settings.model_copy(update=overrides.overrides())


def make_settings(budget: Budget | None, prices: Prices | None, settings: dict[str, Any]) -> Settings:
    """Make the settings of a graph, or of an agent's middleware.

    Args:
        budget: None limits nothing.
        prices: None costs nothing.
        settings: The other fields of `Settings`; a function will do for ``segmentation``.

    Raises:
        SettingsError: One is unknown or not valid; the message names it.
    """
    unknown = settings.keys() - Settings.model_fields.keys()
    if unknown:
        known = ", ".join(sorted(Settings.model_fields))
        raise SettingsError(f"unknown setting {', '.join(sorted(unknown))}; there are: {known}")
    if "segmentation" in settings:
        settings = {**settings, "segmentation": as_segmentation(settings["segmentation"])}
    try:
        return check_prices(Settings(budget=budget or Budget(), prices=prices or Prices(), **settings))
    except ValidationError as error:
        raise SettingsError(describe(error)) from error


def check_prices(settings: Settings) -> Settings:
    """Refuse a limit on money where nothing costs any: it would limit nothing, without a word.

    Raises:
        SettingsError: The budget limits the cost of a large model that has no price.
    """
    price, limit = settings.prices.large, settings.budget.large_cost
    if limit is not None and not (price.input or price.output):
        raise SettingsError(
            f"budget.large_cost is {limit:g}, but the large model has no price, so it would cost nothing: "
            "give prices.large its input and output, per million tokens"
        )
    return settings


def describe(error: ValidationError) -> str:
    """Say in one line what pydantic found wrong, without its links and type names."""
    parts = []
    for item in error.errors(include_url=False):
        place = ".".join(map(str, item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        seen = (
            ""
            if item["type"] == "missing" or isinstance(item["input"], dict)
            else f" (got {item['input']!r})"
        )
        parts.append(f"{place}: {message}{seen}" if place else f"{message}{seen}")
    return "; ".join(parts)
