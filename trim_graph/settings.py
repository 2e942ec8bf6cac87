"""Settings of a run: given when the graph is built, overridden for one call through the context.

`Settings` declares each setting once: type, default, bounds and description. The fields of `TrimContext` and
the mapping ``settings`` of a configuration file derive from it. Type checkers cannot derive keywords from a
pydantic model, so `TurnSettings`, `CallSettings` and `RunSettings` repeat names and types, and
`ShadowKeywords` those of `ShadowSettings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, Never, Self, TypeVar

from pydantic import (
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from typing_extensions import TypedDict, Unpack

from .budget.limits import Budget, Quotas
from .budget.usage import Prices
from .conversation import DEFAULT_INSTRUCTION
from .errors import KnownFields, SettingsError, nearest
from .savings import LargeAlone
from .segmentation import (
    DEFAULT_DELIMITER,
    AnySegmentation,
    FindStep,
    Segmentation,
    Thinking,
    as_segmentation,
)
from .state import Step

OnScorerError = Literal["accept", "regenerate", "raise"]
OnLargeError = Literal["accept", "raise"]
OnSmallError = Literal["large", "raise"]


class ConfigSection(KnownFields):
    """Base of the mappings of a configuration file; an unknown key is an error."""

    # Input is hidden, since a wrong value may hold a password and a traceback would show it.
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


def base_folder(info: ValidationInfo) -> Path:
    """Returns the folder that relative paths of a configuration start from: that of its file."""
    return Path((info.context or {}).get("base", "."))


class StepSettings(KnownFields):
    """Settings of a run that a configuration file holds under ``settings``."""

    model_config = ConfigDict(frozen=True)

    max_steps: int = Field(default=32, ge=1, description="Most steps of a solution")
    max_step_tokens: int = Field(default=512, ge=1, description="Most tokens of one step")
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Most tokens of a solution: of its accepted steps, discarded and failed attempts aside",
    )
    delimiter: str = Field(default=DEFAULT_DELIMITER, min_length=1, description="What separates steps")
    segmentation: AnySegmentation | None = Field(
        default=None, description="How the end of a step is found, if not by the delimiter"
    )
    thinking: Thinking | None = Field(
        default=Thinking(), description="Marks of a model's reasoning; null detects none"
    )
    instruction: str | None = Field(
        default=DEFAULT_INSTRUCTION, description="Appended to the system message; null adds nothing"
    )
    max_repeats: int | None = Field(
        default=3,
        ge=1,
        description="Word-for-word repetitions of the last steps that end a run as a loop; of a boxed answer "
        "three times as many; or of one text in a step that its token limit cut. Null detects no loop",
    )
    seed: int | None = Field(default=None, description="Makes random policies repeatable")
    on_scorer_error: OnScorerError = Field(
        default="raise", description="When a draft cannot be scored: accept it, regenerate it, or raise"
    )
    on_large_error: OnLargeError = Field(
        default="raise", description="When the large model fails: accept the small one's step, or raise"
    )
    on_small_error: OnSmallError = Field(
        default="raise", description="When the small model fails: the large one writes the step, or raise"
    )
    ask_below: float | None = Field(
        default=None, ge=0, le=1, description="A draft that scores below it is shown to a human first"
    )
    lookahead: bool = Field(
        default=False,
        description="The small model writes the next step while the scorer rates this one; async calls only",
    )
    warm_large: bool = Field(
        default=False,
        description="The large model reads the steps so far while the small one drafts, so that its prefix "
        "cache is warm for a rewrite: one token of the budget each; async calls only",
    )

    @model_validator(mode="after")
    def _one_segmentation(self) -> Self:
        if self.segmentation is not None and self.delimiter != DEFAULT_DELIMITER:
            raise ValueError("delimiter and segmentation are both given; a delimiter is a segmentation")
        return self


class Settings(StepSettings):
    """Settings of a run; stored in the state when it begins."""

    budget: Budget = Field(default=Budget(), description="Hard limits on the large model")
    quotas: Quotas = Field(default=Quotas(), description="Limits of a thread and of a user over all runs")
    prices: Prices = Field(
        default=Prices(), description="Price table, for the limit on cost and the cost of the summary"
    )
    large_alone: LargeAlone = Field(
        default=LargeAlone(),
        description="What is known of the large model alone, for the net savings of the summary",
    )
    policy: dict[str, Any] | None = Field(
        default=None, description="Instead of the graph's own; as in a configuration file"
    )

    @property
    def asks_human(self) -> bool:
        """Whether a run may stop to ask a human."""
        return self.budget.on_exhausted == "ask" or self.ask_below is not None


Unset = TypeVar("Unset")
"""Type of a setting that is not set: None in a context, `Never` when a graph is built."""


class TurnSettings(TypedDict, Generic[Unset], total=False):
    """Keywords of `TrimMiddleware` that are fields of `Settings`."""

    max_steps: int | Unset
    max_step_tokens: int | Unset
    seed: int | None
    on_scorer_error: OnScorerError | Unset
    on_large_error: OnLargeError | Unset
    on_small_error: OnSmallError | Unset
    quotas: Quotas | Unset
    large_alone: LargeAlone | Unset


class CallSettings(TurnSettings[Unset], Generic[Unset], total=False):
    """Keywords that the context of a call may override."""

    ask_below: float | None
    lookahead: bool | Unset
    warm_large: bool | Unset
    max_tokens: int | None


class RunSettings(CallSettings[Never], total=False):
    """Keywords of `trim_graph.create_trim_graph` that are fields of `Settings`."""

    delimiter: str
    segmentation: Segmentation | FindStep | None
    thinking: Thinking | None
    instruction: str | None
    max_repeats: int | None


class ContextSettings(CallSettings[None], total=False):
    """Keywords of `TrimContext`."""

    threshold: float | None
    policy: float | str | dict[str, Any] | None
    budget: Budget | None
    user: str | None
    steps: list[Step] | None


class ShadowSettings(ConfigSection):
    """Settings of a shadow, in code and in a configuration file.

    Attributes:
        rate: Share of the answers that are examined.
        run_rate: Share of these that are routed from the beginning, with large calls.
        text: Whether records hold texts; else digests.
        capacity: Most answers that wait; further ones are dropped and counted.
        concurrency: Most answers examined at once.
        timeout: Seconds after which the examination of an answer fails.
        sampling_seed: Makes the sampling repeatable.
    """

    rate: float = Field(default=1.0, ge=0, le=1)
    run_rate: float = Field(default=0.0, ge=0, le=1)
    text: bool = False
    capacity: int = Field(default=64, ge=1)
    concurrency: int = Field(default=2, ge=1)
    timeout: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    sampling_seed: int | None = None


class ShadowKeywords(TypedDict, total=False):
    """Keywords that are fields of `ShadowSettings`."""

    rate: float
    run_rate: float
    text: bool
    capacity: int
    concurrency: int
    timeout: float
    sampling_seed: int | None


def _optional(name: str) -> Any:
    """Returns the field of `Settings` with its bounds and description, but None by default."""
    field = Settings.model_fields[name]
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return kind | None, Field(default=None, description=field.description)


if TYPE_CHECKING:

    class _Overrides(KnownFields):
        def __getattr__(self, name: str) -> Any: ...

else:
    _Overrides = create_model(
        "_Overrides",
        __base__=KnownFields,
        **{
            name: _optional(name)
            for name in Settings.model_fields
            if name == "budget" or name in CallSettings.__annotations__
        },
    )


class TrimContext(_Overrides):
    """Overrides for one call: `graph.invoke(..., context=TrimContext(max_steps=8))`.

    An application with a context of its own puts a `TrimContext`, or a dict of the same keys, under its key
    ``trim``. A field that is None leaves the graph's setting.
    """

    model_config = ConfigDict(frozen=True)

    threshold: float | None = Field(
        default=None, ge=0, le=1, description="Short for the policy threshold at this score"
    )
    policy: float | str | dict[str, Any] | None = Field(
        default=None,
        description="Policy instead of the graph's own, as in a configuration file: small or large (that "
        'model alone), a threshold in [0, 1], or {"type": "random_rate", "rate": 0.3}',
    )
    user: str | None = Field(
        default=None, min_length=1, description="Whose account the run draws from, if users have quotas"
    )
    steps: list[Step] | None = Field(
        default=None,
        description="Steps that the solution begins with, as a run's state holds them; the run writes what "
        "follows, and counts no tokens for them",
    )

    if TYPE_CHECKING:

        def __init__(self, **given: Unpack[ContextSettings]) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def _of_an_application(cls, given: Any) -> Any:
        """Accepts an application's context too: LangGraph makes a dict into this class before a node runs."""
        if not isinstance(given, Mapping) or set(given) != {"trim"}:
            return given
        own = given["trim"]
        return own.model_dump(exclude_unset=True) if isinstance(own, cls) else own or {}

    @field_validator("policy", mode="before")
    @classmethod
    def _policy_named(cls, given: Any) -> Any:
        if not isinstance(given, str | int | float | Mapping | None):
            # A run stores its settings as JSON, so that it can be resumed.
            raise ValueError(
                f"policy is {given!r}, an object, and a call takes a policy by its name: small, large, a "
                'threshold in [0, 1], or a mapping such as {"type": "threshold", "t": 0.5}; an object is for '
                "policy= of create_trim_graph"
            )
        return policy_mapping(given)

    @model_validator(mode="after")
    def _one_policy(self) -> TrimContext:
        if self.threshold is not None and self.policy is not None:
            raise ValueError("threshold and policy are both given; threshold is short for a policy")
        return self

    def overrides(self) -> dict[str, Any]:
        """Returns the fields of `Settings` that this context overrides."""
        given = {name: value for name in self.model_fields_set if (value := getattr(self, name)) is not None}
        for name in ("user", "steps"):
            given.pop(name, None)
        if (t := given.pop("threshold", None)) is not None:
            given["policy"] = {"type": "threshold", "t": t}
        return given


_ALONE = {"small": "small_only", "large": "large_only"}


def policy_mapping(given: Any) -> Any:
    """Returns the mapping that the short form of a policy stands for; anything else as it is.

    Args:
        given: ``small`` or ``large``: that model alone. A number in [0, 1]: `trim_graph.policies.threshold`
            at it. A name ending in ``.json``: the policy in that file. Another name: the policy of this type.

    Raises:
        ValueError: It is a number out of range or in quotes, or True or False.
    """
    if isinstance(given, str):
        if is_number(given):
            raise ValueError(
                f"policy is {given!r}, a text: write the number without quotes for a threshold at it"
            )
        if given.endswith(".json"):
            return {"type": "file", "path": given}
        return {"type": _ALONE.get(given, given)}
    if not isinstance(given, int | float):
        return given
    if isinstance(given, bool) or not 0 <= given <= 1:
        raise ValueError(
            f"policy is {given!r}: choose small, large, a threshold in [0, 1], or a policy such as "
            '{"type": "random_rate", "rate": 0.3}'
        )
    return {"type": "threshold", "t": float(given)}


def is_number(text: str) -> bool:
    """Returns whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def overridden(settings: Settings, context: Any) -> Settings:
    """Returns the settings with the overrides of a call.

    Args:
        settings: The graph's settings.
        context: A `TrimContext`, a mapping with a key ``trim``, or an object with an attribute ``trim``
            (a parent's context). Anything else is ignored.

    Raises:
        SettingsError: The value under ``trim`` is not a valid `TrimContext`.
    """
    given = trim_context(context)
    return settings if given is None else settings.model_copy(update=given.overrides())


def context_of_call(context: Any, configurable: Mapping[str, Any]) -> Any:
    """Returns the context of a call; without overrides in it, that of the config.

    Args:
        context: Context of the call.
        configurable: Of the call's config. Its key ``trim`` holds overrides, so that a graph without a
            context of ours and a chain can pass them.
    """
    return context if trim_context(context) is not None else {"trim": configurable.get("trim")}


def trim_context(context: Any) -> TrimContext | None:
    """Returns the overrides of a call in its context, found as by `overridden`; None if there are none.

    Raises:
        SettingsError: The value under ``trim`` is not a valid `TrimContext`.
    """
    given = context
    if not isinstance(context, TrimContext):
        given = context.get("trim") if isinstance(context, Mapping) else getattr(context, "trim", None)
    if given is None or isinstance(given, TrimContext):
        return given
    try:
        return TrimContext.model_validate(given)
    except ValidationError as error:
        raise SettingsError(f"the call's trim settings are not valid: {describe(error)}") from error


def make_settings(budget: Budget | None, prices: Prices | None, settings: Mapping[str, Any]) -> Settings:
    """Returns the settings of a graph, or of an agent's middleware.

    Args:
        budget: Limits of a run; None sets no limit.
        prices: Price table; with None the cost is unknown.
        settings: The other fields of `Settings`; ``segmentation`` may be a function.

    Raises:
        SettingsError: A setting is unknown or not valid; the message names it.
    """
    unknown = settings.keys() - Settings.model_fields.keys()
    if unknown:
        name = min(unknown)
        raise SettingsError(f"unknown setting {name}{nearest(name, sorted(Settings.model_fields))}")
    if "segmentation" in settings:
        settings = {**settings, "segmentation": as_segmentation(settings["segmentation"])}
    try:
        return check_prices(Settings(budget=budget or Budget(), prices=prices or Prices(), **settings))
    except ValidationError as error:
        raise SettingsError(describe(error)) from error


def check_prices(settings: Settings) -> Settings:
    """Checks that the price table can bound each limit on cost.

    Returns:
        The settings.

    Raises:
        SettingsError: The budget or a quota limits the cost of a large model without a price, which would
            limit nothing; or of one whose cached prompt tokens cost more than others.
    """
    price, quotas = settings.prices.large, settings.quotas
    for name, limits in (
        ("budget", settings.budget),
        ("quotas.thread", quotas.thread),
        ("quotas.user", quotas.user),
    ):
        if limits is not None and limits.large_cost is not None and not (price.input or price.output):
            raise SettingsError(
                f"{name}.large_cost is {limits.large_cost:g}, but the large model has no price, so it would "
                "cost nothing: give prices.large its input and output, per million tokens"
            )
        dear = price.cached_input is not None and price.cached_input > price.input
        if limits is not None and limits.large_cost is not None and dear:
            raise SettingsError(
                f"prices.large.cached_input is {price.cached_input:g}, more than prices.large.input "
                f"({price.input:g}), by which {name}.large_cost bounds a prompt: give tokens from a cache at "
                "most the price of others"
            )
    return settings


def describe(error: ValidationError) -> str:
    """Returns pydantic's findings in one line, without its links and type names."""
    parts = []
    for item in error.errors(include_url=False):
        place = ".".join(map(str, item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "union_tag_invalid":
            known = [tag.strip(" '") for tag in item["ctx"]["expected_tags"].split(",")]
            message = f"unknown type {item['ctx']['tag']!r}{nearest(item['ctx']['tag'], known)}"
        seen = (
            ""
            if item["type"] == "missing" or isinstance(item["input"], dict) or repr(item["input"]) in message
            else f" (got {item['input']!r})"
        )
        parts.append(f"{place}: {message}{seen}" if place else f"{message}{seen}")
    return "; ".join(parts)
