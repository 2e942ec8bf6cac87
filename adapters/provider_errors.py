"""Errors of the clients of models' servers: which model raised one, what the server said, what to do.

The type of an error stays that of the client, so that callers can catch it; what is known besides is in its
notes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trim_graph.errors import TrimError, http_status, may_be_shown

from .capabilities import chat_model_inside, models_inside, remedy

_OURS = "trim-graph: "
"""Begin of the notes that are added here."""


def add_origin(error: BaseException, part: str, model: Any, place: str) -> None:
    """Adds notes to an error: which part of a run raised it, and what can be done about it.

    An error that has them already is left as it is, since it may be raised again.

    Args:
        error: The error of a call.
        part: Such as ``the large model``.
        model: The chat model or the scorer that was called.
        place: Such as ``step 3``.
    """
    if not _notes(error):
        error.add_note(f"{_OURS}{part}, {named_model(model)}, failed in {place}")
        if (way := advice(error, model)) is not None:
            error.add_note(_OURS + way)


def advice(error: BaseException, model: Any) -> str | None:
    """Returns what to do about a failed call of a model; None where the error itself has to say.

    Args:
        error: The error.
        model: The model that was called.
    """
    if (way := remedy(error)) is not None or not is_of_client(error):
        return way
    inside: Any = _asked(model)
    status = http_status(error)
    if status in (401, 403):
        # LangChain's classes name the variables that hold their keys.
        known = chat_model_inside(inside)
        variable = None if known is None else next(iter(known.lc_secrets.values()), None)
        return f"check the key{f' in {variable}' if variable else ''}, and that it may use this model"
    if status == 404:
        name = _model_name(inside)
        return f"check the model's name{f', {name!r},' if name else ''} and the address of its server"
    if status == 429:
        return "a limit of the provider is reached: ask again later, or have the limit raised"
    if status is not None and status >= 500:
        return "the server failed: ask again later"
    if "timeout" in type(error).__name__.lower():
        return "the model did not answer in its time limit: set a longer timeout, or ask again later"
    return None if status else "check the address of the model's server, and that it can be reached"


def is_of_client(error: BaseException) -> bool:
    """Returns whether the client of a model's server raised an error, rather than a fault of a program.

    Errors of the adapters here are none: their text says all.
    """
    if isinstance(error, TrimError):
        return False
    # The clients of providers, httpx and requests keep the request where there is no answer.
    sent = bool(vars(error).keys() & {"request", "_request"})
    status = http_status(error)
    return sent or (status is not None and status >= 400)


def server_message(error: BaseException) -> str:
    """Returns what an error of a client says in one line: the status, and the server's own message."""
    status = http_status(error)
    body = getattr(error, "body", None)
    if isinstance(body, Mapping):  # OpenAI's client keeps what is under ``error``, others all of it
        inner = body.get("error", body)
        said = inner.get("message") if isinstance(inner, Mapping) else inner
    else:
        said = None
    text = " ".join(str(said or error).split()).removesuffix(".")
    if not text or status is None:
        kind = type(error).__name__  # some say nothing, as httpx's timeouts
        text = f"{kind}: {text}" if text else kind
    return text if status is None or re.search(rf"\b{status}\b", text) else f"{status}, {text}"


def error_line(error: BaseException) -> str:
    """Returns an error as records keep it: its type and text; of a client, the model that was called."""
    if is_of_client(error):
        return in_one_line(error)
    return f"{type(error).__name__}: {error}"


def in_one_line(error: BaseException) -> str:
    """Returns an error of a client in one line: which model was called, what its server said, what to do."""
    origin, *ways = _notes(error) or ["a model failed", *filter(None, [advice(error, None)])]
    return "; ".join([f"{origin}: {server_message(error)}", *ways])


def named_model(model: Any) -> str:
    """Returns the class of a chat model or a scorer, of a chat model with its name."""
    inside = _asked(model)
    name = _model_name(inside)
    return f"{type(inside).__name__} ({name})" if name else type(inside).__name__


def _notes(error: BaseException) -> list[str]:
    notes = getattr(error, "__notes__", [])
    return [note.removeprefix(_OURS) for note in notes if note.startswith(_OURS)]


def _asked(model: Any) -> Any:
    """Returns the chat model that a call asks first, also behind one that is asked by prompt.

    What is no chat model is returned as it is.
    """
    inside: Any = chat_model_inside(model)
    if inside is None:
        return models_inside(model)[0]
    return _asked(inside.model) if hasattr(inside, "may_send") else inside


def _model_name(inside: Any) -> str | None:
    if chat_model_inside(inside) is None:  # one that is configured at the call would build itself to answer
        return None
    name = getattr(inside, "model_name", None) or getattr(inside, "model", None)
    return name if isinstance(name, str) and may_be_shown(name) else None
