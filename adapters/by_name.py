"""Chat models by LangChain's names for them, such as ``openai:gpt-4.1-mini``."""

from __future__ import annotations

import re
from typing import Any

from langchain_core.runnables import Runnable

from trim_graph.errors import SettingsError, closest, may_be_shown

EXAMPLE_NAME = "openai:gpt-4.1-mini"


def as_chat_model(part: str, model: Any) -> Runnable[Any, Any]:
    """Returns the chat model that a caller gives for a part: itself, or one by its name.

    Args:
        part: Name of the part, ``small`` or ``large``, for errors.
        model: A chat model or another Runnable, or a name as for `chat_model_by_name`.

    Raises:
        SettingsError: It is neither, or no chat model has that name.
        ImportError: As `chat_model_by_name`.
    """
    if isinstance(model, str):
        name, model = model, _made(model, {})
        shown = repr(name) if may_be_shown(name) else "what may hold a key"
        if isinstance(model, ImportError):
            raise ImportError(f"{part} is {shown}: {model}")
        if isinstance(model, ValueError):
            raise SettingsError(f"{part} is {shown}: {model}")
    if isinstance(model, type):
        raise SettingsError(f"{part} is the class {model.__name__}: pass an instance, {model.__name__}(...)")
    if not isinstance(model, Runnable):
        raise SettingsError(
            f"{part} is {model!r}: pass a LangChain chat model, or the name of one such as {EXAMPLE_NAME!r}"
        )
    return model


def chat_model_by_name(name: str, **settings: Any) -> Any:
    """Makes a chat model by its name, as ``langchain.chat_models.init_chat_model`` does.

    Args:
        name: Provider and model, as in ``openai:gpt-4.1-mini``; the provider may be left out where LangChain
            infers it from the model. Keys come from the environment, by the provider's variable
            (``OPENAI_API_KEY``).
        settings: Settings of the provider's class, such as ``temperature=0``.

    Raises:
        ImportError: The package ``langchain`` or that of the provider is not installed; the message has the
            command that installs it.
        ValueError: There is no such provider, a key is missing, or a setting is wrong.
    """
    made = _made(name, settings)
    if isinstance(made, ImportError | ValueError):
        shown = name if may_be_shown(name) else "the model's name"
        raise type(made)(f"{shown}: {made}")
    return made


def _made(name: str, settings: dict[str, Any]) -> Any:
    """Returns a model, or an error without the provider's own as its cause, which may repeat a key."""
    if not name.strip():
        return ValueError(f"the name of a chat model is empty: give one such as {EXAMPLE_NAME!r}")
    if name.rstrip().endswith(":"):
        return ValueError(f"it names a provider and no model: give one such as {EXAMPLE_NAME!r}")
    try:
        from langchain.chat_models import init_chat_model
    except ImportError:
        return ImportError('a chat model by its name needs pip install "trim-graph[hosted]"')
    try:
        return init_chat_model(name, **settings)
    except ImportError as error:
        return ImportError(str(error))
    except Exception as error:  # each provider's class has its own for a missing key or a wrong setting
        message = str(error)
        reason = (message.strip().splitlines() or [type(error).__name__])[0]
    if "infer model provider" in reason or "Unsupported provider" in reason or "model_provider=" in reason:
        # LangChain lists its providers in the error, and nowhere in its interface.
        listed = re.search(r"Supported (?:model )?providers(?: are)?: ([\w, ]+)", message)
        known, parts = listed[1].split(", ") if listed else [], re.fullmatch(r"([^:/]+)([:/])(.+)", name)
        meant = None
        if parts and may_be_shown(name):
            close = closest(parts[1], known if parts[2] == ":" else [one for one in known if one == parts[1]])
            meant = f'"{close}:{parts[3]}"' if close else None
        hint = f", did you mean {meant}? Else" if meant else ":"
        reason = (
            f"LangChain knows no provider for it{hint} name one in front, as in {EXAMPLE_NAME}, or pass a "
            "chat model, such as ChatVLLM(model=...) or ChatTransformers(model=...)"
        )
    return ValueError(reason)
