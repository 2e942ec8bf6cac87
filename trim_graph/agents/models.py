"""The chat models inside an agent's model: fallbacks in order, with bound settings and the call's choice.

LangChain binds an agent's tools to ``request.model``. That loses settings bound to it before, a retry, and
the call's choice of a configurable model. So a turn calls the chat models inside, one at a time, with their
bound settings.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.runnables import RunnableBinding, RunnableConfig, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import merge_configs
from langchain_core.runnables.configurable import DynamicRunnable, RunnableConfigurableAlternatives

from trim_graph.errors import SettingsError

_OF_THE_AGENT = ("tools", "tool_choice")


@dataclass(frozen=True)
class TurnModel:
    """One chat model that may write a turn."""

    model: BaseChatModel
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings bound to the model, for every call."""
    config: RunnableConfig = field(default_factory=RunnableConfig)
    """Config from ``with_config``."""
    handled: tuple[type[BaseException], ...] = ()
    """Errors after which the next model is called."""


def turn_models(name: str, model: Any, config: RunnableConfig) -> list[TurnModel]:
    """Returns the chat models that may write a turn, the first choice first.

    Args:
        name: ``small`` or ``large``, for the error message.
        model: Model of an agent or of the middleware.
        config: Config of the call, which may choose among models.

    Raises:
        SettingsError: The model is neither a chat model nor composed of chat models in a way that an agent
            preserves.
    """
    return _found(name, model, config)


def check_turn_model(name: str, model: Any) -> None:
    """Checks that a model can write turns, as far as that is known without a call's choice.

    Raises:
        SettingsError: As `turn_models`.
    """
    _found(name, model, None)


def _found(name: str, model: Any, config: RunnableConfig | None) -> list[TurnModel]:
    if isinstance(model, BaseChatModel):
        return [TurnModel(model)]
    if isinstance(model, RunnableWithFallbacks):
        return _with_fallbacks(name, model, config)
    if isinstance(model, RunnableBinding):
        return _bound(name, model, config)
    if isinstance(model, DynamicRunnable):
        if config is not None:
            return _found(name, model.prepare(config)[0], config)
        choices = model.alternatives.values() if isinstance(model, RunnableConfigurableAlternatives) else ()
        known = [model.default, *(one for one in choices if not _is_made_later(one))]
        return [found for one in known for found in _found(name, one, None)]
    if (
        type(model).__name__ == "_ConfigurableModel"
    ):  # from `init_chat_model`; LangChain does not export the class
        return [] if config is None else _found(name, model._model(config), config)
    retried = isinstance(model, RunnableBindingBase)
    remedy = (
        "a retry is lost where an agent binds its tools; use the model's own max_retries, or "
        "ModelRetryMiddleware behind TrimMiddleware"
        if retried
        else "pass a LangChain chat model, or its name; with_fallbacks and configurable ones will do"
    )
    raise SettingsError(f"{name} is a {type(model).__name__}: {remedy}")


def _is_made_later(choice: Any) -> bool:
    """Returns whether an alternative is a function that makes the model once it is chosen."""
    return callable(choice) and not hasattr(choice, "invoke")


def _with_fallbacks(
    name: str, model: RunnableWithFallbacks[Any, Any], config: RunnableConfig | None
) -> list[TurnModel]:
    if model.exception_key is not None:
        raise SettingsError(
            f"{name} has fallbacks with exception_key={model.exception_key!r}, which need a dictionary as "
            "input, and a chat model gets messages: leave it out"
        )
    groups = [_found(name, one, config) for one in model.runnables]
    for group in groups[:-1]:
        group[-1:] = [replace(last, handled=model.exceptions_to_handle) for last in group[-1:]]
    return [one for group in groups for one in group]


def _bound(name: str, model: RunnableBinding[Any, Any], config: RunnableConfig | None) -> list[TurnModel]:
    if prebound := [setting for setting in _OF_THE_AGENT if setting in model.kwargs]:
        raise SettingsError(
            f"{name} has {' and '.join(prebound)} bound to it, but the agent binds its own to both models: "
            "give them to create_agent"
        )
    given = merge_configs(model.config, config)
    own = merge_configs(model.config, *(make(given) for make in model.config_factories))
    return [
        replace(one, settings={**one.settings, **model.kwargs}, config=merge_configs(one.config, own))
        for one in _found(name, model.bound, config if config is None else given)
    ]
