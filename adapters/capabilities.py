"""Capabilities of a chat model, and settings of a call that its server refuses.

Works also where the model is bound, configured or retried.
"""

from __future__ import annotations

import re
from inspect import getattr_static
from typing import Any, NamedTuple, get_args

from langchain_core.globals import get_llm_cache
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable, RunnableSequence, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import DynamicRunnable, RunnableConfigurableAlternatives

from trim_graph.errors import http_status


class CallNames(NamedTuple):
    """A chat model's names for settings of a call; None where a call does not take the setting."""

    max_tokens: str | None = "max_tokens"
    timeout: str | None = None
    streams: str | None = None
    """Set to False, it answers at once even where a caller watches tokens."""


_OPENAI = CallNames("max_tokens", "timeout", "stream")
"""langchain-openai: ``ChatOpenAI`` turns ``max_tokens`` into what its endpoint wants, and its client takes
``timeout`` with a request. Streamed from a server other than OpenAI's, an answer comes without usage."""

_KNOWN = {"BaseChatOpenAI": _OPENAI}
"""By a class among a model's bases. Elsewhere: ``max_tokens`` is LangChain's standard name; of a time limit
no name is standard."""


def models_inside(model: Any) -> list[Any]:
    """Returns everything that may answer a call of a model, the first choice first.

    Looks through ``bind``, ``with_config``, ``with_retry`` and their like, at all fallbacks and at all
    configurable alternatives. What is no chat model is returned as it is.
    """
    if isinstance(model, RunnableBindingBase):
        return models_inside(model.bound)
    if isinstance(model, RunnableWithFallbacks):
        return [inside for one in model.runnables for inside in models_inside(one)]
    if isinstance(model, RunnableConfigurableAlternatives):
        choices = (model.default, *model.alternatives.values())
        return [inside for one in choices for inside in models_inside(one)]
    return models_inside(model.default) if isinstance(model, DynamicRunnable) else [model]


def chat_model_inside(model: Any) -> BaseChatModel | None:
    """Returns the chat model that a call of a model asks first; None where it is unknown."""
    first = models_inside(model)[0]
    return first if isinstance(first, BaseChatModel) else None


def continues_exactly(model: Runnable[Any, Any]) -> bool:
    """Returns whether a model continues a trailing AIMessage exactly.

    A chat model says so itself, by the class attribute ``continues_exactly = True``; any other Runnable by an
    attribute of that name. All of a model's fallbacks and configurable alternatives must.
    """
    return capable(model, "continues_exactly")


def unaskable(model: Runnable[Any, Any]) -> str | None:
    """Returns why a model cannot be asked by prompt either; None where it can."""
    for inside in models_inside(model):
        if isinstance(inside, RunnableSequence):
            return (
                "a chain hands a call's settings, max_tokens among them, to its first part only, so no "
                "budget could hold: pass the chat model itself, and what the chain adds as messages"
            )
        if isinstance(inside, Runnable) and not _may_be_message(_output_type(inside)):
            return (
                f"{type(inside).__name__} returns {_output_type(inside)!r}, and a writer returns an "
                "AIMessage: pass a chat model, or a Runnable that takes messages and returns one"
            )
    return None


def _output_type(runnable: Runnable[Any, Any]) -> Any:
    try:
        return runnable.OutputType
    except TypeError:  # it declares none
        return Any


def _may_be_message(kind: Any) -> bool:
    if parts := get_args(kind):
        return any(_may_be_message(part) for part in parts)
    if isinstance(kind, type) and kind not in (Any, object):
        return issubclass(kind, BaseMessage)
    return kind is not None  # as of a graph, which returns a state


def capable(model: Any, capability: str) -> bool:
    """Returns whether all that may answer declare a capability, such as ``takes_stop_when``."""
    # Statically: a model that is configured at the call would build itself to answer.
    return all(
        getattr_static(type(inside) if isinstance(inside, BaseChatModel) else inside, capability, False)
        is True
        for inside in models_inside(model)
    )


def native_async(model: Any) -> bool:
    """Returns whether a chat model's asynchronous calls are its own, so that cancelling one ends it.

    LangChain makes others of synchronous ones in threads, which run on. Every model inside must have its own.
    """
    return all(_cancellable(inside) for inside in models_inside(model))


def _cancellable(inside: Any) -> bool:
    if not isinstance(inside, BaseChatModel) or type(inside)._agenerate is BaseChatModel._agenerate:
        return False
    # A model that is asked by prompt is like its inner model.
    return not hasattr(inside, "may_send") or native_async(getattr(inside, "model", None))


def caches(model: Any) -> bool:
    """Returns whether LangChain keeps a chat model's answers in a cache."""
    chosen = [one.cache if isinstance(one, BaseChatModel) else None for one in models_inside(model)]
    return any(bool(cache) or (cache is None and get_llm_cache() is not None) for cache in chosen)


def bound_setting(model: Any, name: str) -> Any:
    """Returns a setting's value for every call of a model: bound to it, or the model's own; else None."""
    while isinstance(model, RunnableBindingBase):
        if name in model.kwargs:
            return model.kwargs[name]
        model = model.bound
    return getattr(chat_model_inside(model), name, None)


def call_names(model: Any) -> CallNames:
    """Returns the names by which a model takes the settings of a call; of several models what they share."""
    names = [_names(inside) for inside in models_inside(model)]
    shared = (values[0] if len(set(values)) == 1 else None for values in zip(*names, strict=True))
    return CallNames(*shared)


def _names(inside: Any) -> CallNames:
    return next(
        (_KNOWN[base.__name__] for base in type(inside).__mro__ if base.__name__ in _KNOWN), CallNames()
    )


LOGPROBS = ("logprobs", "top_logprobs")
LABEL_TOKENS = ("logprob_token_ids", "return_tokens_as_token_ids")
"""Fields of a request by which `ChatVLLM` asks for the setting ``label_tokens``."""

_REMEDIES = {
    **dict.fromkeys(LABEL_TOKENS, "vLLM 0.32 and later have it; a gateway must let it through"),
    "top_logprobs": "choose a model that reports log-probabilities, or do without them",
    "logprobs": "choose a model that reports log-probabilities, or do without them",
    "stop": "leave out stop strings: ContinueByPrompt sends them with send_stop=True only",
    "temperature": "build the model without temperature",
    "max_completion_tokens": "for a writer ContinueByPrompt(model, max_tokens_name=...) names it otherwise",
    "max_tokens": "for a writer ContinueByPrompt(model, max_tokens_name=...) names it otherwise",
    "timeout": "ContinueByPrompt(model, timeout_name=None) does not send it",
}
"""Settings that hosted models are known to refuse. Of two in one text the first here is the one refused."""

_REFUSES = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|extra (?:inputs|fields)"
    r"|not (?:allowed|permitted)",
    re.IGNORECASE,
)
_OTHER_REASONS = {401, 402, 404, 408, 409, 413, 429}
"""HTTP statuses that say nothing of a setting: the key, the address, the size, the rate."""


def refused_setting(error: BaseException) -> str | None:
    """Returns the name of the setting that a call failed for; None where it failed for another reason.

    Source: OpenAI's errors have ``param`` and a code such as ``unsupported_parameter``; other servers and
    gateways name the setting in their text.

    Args:
        error: The exception of the model's client, or a TypeError of a model that does not know the setting.
    """
    status = http_status(error)
    refusable = status is not None and 400 <= status < 500 and status not in _OTHER_REASONS
    text = str(error)
    if not refusable and not (isinstance(error, TypeError) and "unexpected keyword" in text):
        return None
    refuses = bool(_REFUSES.search(f"{getattr(error, 'code', '')} {text}"))
    if refuses and (named := getattr(error, "param", None)) in _REMEDIES:
        return str(named)
    found = re.findall(r"['\"`](\w+)['\"`]|\b(\w*logprobs)\b", text)
    names = {one for pair in found for one in pair if one}
    # A number of log-probabilities that a server does not give is refused by its value.
    return next((name for name in _REMEDIES if name in names and (refuses or name in LOGPROBS)), None)


def remedy(error: BaseException) -> str | None:
    """Returns a text on the setting that a model refuses; None where the error has another reason."""
    name = refused_setting(error)
    return None if name is None else f"the model refuses the setting {name}: {_REMEDIES[name]}"
