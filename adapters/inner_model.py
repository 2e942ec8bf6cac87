"""What can be told of a chat model from outside, also where it is bound, configured or retried."""

from __future__ import annotations

from typing import Any, NamedTuple

from langchain_core.globals import get_llm_cache
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import DynamicRunnable


class CallNames(NamedTuple):
    """What a chat model calls settings of a call; None where it takes none by call."""

    max_tokens: str | None = "max_tokens"
    timeout: str | None = None
    streams: str | None = None
    """Set to False, it answers at once even where somebody watches tokens."""


_OPENAI = CallNames("max_tokens", "timeout", "stream")
"""langchain-openai: ``ChatOpenAI`` turns ``max_tokens`` into what its endpoint wants, and its client takes
``timeout`` with a request. Streamed from a server other than OpenAI's, an answer comes without usage."""

_KNOWN = {"BaseChatOpenAI": _OPENAI}
"""By a class among a model's bases. Elsewhere: ``max_tokens`` is LangChain's standard name; of a time limit
no name is standard."""


def chat_model_inside(model: Any) -> BaseChatModel | None:
    """Look through ``bind``, ``with_config``, ``with_retry`` and their like to the chat model, if any."""
    while not isinstance(model, BaseChatModel):
        if isinstance(model, RunnableBindingBase):
            model = model.bound
        elif isinstance(model, RunnableWithFallbacks):
            model = model.runnable
        elif isinstance(model, DynamicRunnable):
            model = model.default
        else:
            return None
    return model


def continues_exactly(model: Runnable[Any, Any]) -> bool:
    """Tell whether a model carries on a trailing AIMessage exactly.

    A chat model says so itself, by the class attribute ``continues_exactly = True``. A Runnable that is none
    is trusted. Of a model with fallbacks all must.
    """
    return _says(model, "continues_exactly", where_unknown=True)


def capable(model: Any, capability: str) -> bool:
    """Tell whether a chat model says that it can do more: ``takes_stop_when``, ``tells_entropy``."""
    return _says(model, capability, where_unknown=False)


def _says(model: Any, name: str, *, where_unknown: bool) -> bool:
    if isinstance(model, RunnableWithFallbacks):
        return all(_says(one, name, where_unknown=where_unknown) for one in model.runnables)
    inside = chat_model_inside(model)
    return where_unknown if inside is None else bool(getattr(type(inside), name, False))


def native_async(model: Any) -> bool:
    """Tell whether a chat model's asynchronous calls are its own, so that cancelling one ends it.

    LangChain makes others of synchronous ones in threads, which go on. Of a model with fallbacks all must be.
    """
    if isinstance(model, RunnableWithFallbacks):
        return all(native_async(one) for one in model.runnables)
    inside = chat_model_inside(model)
    if inside is None or type(inside)._agenerate is BaseChatModel._agenerate:
        return False
    # A model that is asked by prompt is as its own inner model.
    return not hasattr(inside, "may_send") or native_async(getattr(inside, "model", None))


def caches(model: Any) -> bool:
    """Tell whether LangChain keeps a chat model's answers in a cache."""
    cache = getattr(chat_model_inside(model), "cache", None)
    return bool(cache) or (cache is None and get_llm_cache() is not None)


def bound_setting(model: Any, name: str) -> Any:
    """Value of a setting that every call of a model goes by: bound to it, or its own; else None."""
    while isinstance(model, RunnableBindingBase):
        if name in model.kwargs:
            return model.kwargs[name]
        model = model.bound
    return getattr(chat_model_inside(model), name, None)


def call_names(model: Any) -> CallNames:
    """Return the names by which a model takes the settings of a call."""
    for base in type(chat_model_inside(model)).__mro__:
        if base.__name__ in _KNOWN:
            return _KNOWN[base.__name__]
    return CallNames()
