"""Whether a vLLM server is there, takes the key, and serves the model in the way its part needs."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from trim_graph.adapters.server_dialects import dialect_of
from trim_graph.errors import ModelServerError

from .findings import Finding, fault, hint, ok
from .subjects import Subject

_ROUTE_IS_MISSING = (400, 404, 405, 501)
"""What vLLM's versions answer where a model's runner has no such endpoint."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


async def server(subject: Subject) -> Finding:
    """A server answers at the address."""
    root = subject.on_server.root
    try:
        listed = (await subject.on_server.get("/v1/models")).get("data") or []
        subject.known["models"] = [entry for entry in listed if isinstance(entry, dict)]
    except ModelServerError as error:
        if error.status not in (401, 403):
            if error.status is None and not error.begun:
                return fault(
                    f"no server answers at {root}",
                    f"start it (trim-graph up does, on this machine), or correct base_url of {subject.part}",
                    ends=True,
                )
            return fault(
                f"what answers at {root} is no vLLM server: {error}",
                f"correct base_url of {subject.part}, or let a gateway pass /v1/models on",
                ends=True,
            )
        subject.unauthorised = str(error)
    name, version = dialect_of(next(iter(subject.known.get("models", [])), {})).name, ""
    with suppress(ModelServerError):
        version = f" {(await subject.on_server.get('/version'))['version']}"
    return ok(f"{name}{version} answers at {root}")


async def key(subject: Subject) -> Finding:
    """The server takes the key, or wants none."""
    name = subject.entry.api_key_env
    given = bool(name and os.environ.get(name, "").strip())
    if subject.unauthorised:
        place = f"the environment variable {name}"
        if not name:
            place = f"an environment variable, and name that in api_key_env of {subject.part}"
        return fault(subject.unauthorised, f"put the server's key into {place}", ends=True)
    if given and urlsplit(subject.on_server.root).scheme == "http" and not _is_here(subject):
        return hint(
            f"the key in {name} is taken, but goes to {subject.on_server.root} unencrypted",
            "reach that server over https or a private network",
        )
    return ok(f"the key in {name} is taken" if given else "the server wants none")


async def model(subject: Subject) -> Finding:
    """The server knows the model by its name."""
    entries = {str(entry.get("id")): entry for entry in subject.known["models"]}
    wanted, names = subject.entry.model, ", ".join(map(repr, entries)) or "nothing"
    if wanted not in entries:
        one = f"model: {next(iter(entries))}" if len(entries) == 1 else "one of them as model"
        return fault(
            f"the server serves {names}; {wanted!r} is none of them",
            f"write {one} in {subject.part}, or start the server with --served-model-name {wanted}",
            ends=True,
        )
    subject.served = entries[wanted]
    place = subject.served.get("root")
    return ok(f"{wanted!r} is served{f', from {place}' if place else ''}")


async def writes(subject: Subject) -> Finding:
    """The server's model generates text."""
    error = await _refusal(subject, "/v1/chat/completions", _chat(subject))
    if error is None:
        return ok("the server generates text")
    if error.status in _ROUTE_IS_MISSING and await _refusal(subject, "/pooling", _pool(subject)) is None:
        return fault(
            f"{subject.entry.model!r} is served as a pooling model, such as a process reward model, "
            "and writes no text",
            f"name a chat model in {subject.part}, and this one as the scorer (type: vllm_prm)",
            ends=True,
        )
    return fault(
        f"the server refuses to generate: {error}", "see its log; vLLM has /v1/chat/completions", ends=True
    )


async def pools(subject: Subject) -> Finding:
    """The server's model gives scores."""
    error = await _refusal(subject, "/pooling", _pool(subject))
    if error is None:
        return ok("the server is a pooling server")
    if (
        error.status in _ROUTE_IS_MISSING
        and await _refusal(subject, "/v1/chat/completions", _chat(subject)) is None
    ):
        return fault(
            f"{subject.entry.model!r} is served as a model that writes text, not as a process reward model",
            "name a process reward model in scorer; start it with --runner pooling (trim-graph up --print "
            "shows the whole command)",
            ends=True,
        )
    return fault(
        f"the server refuses to give scores: {error}",
        "start it with --runner pooling; a gateway must let /pooling through",
        ends=True,
    )


async def tokens_of(subject: Subject, text: str) -> list[int] | None:
    """The server's tokens of a text; None where it does not tell."""
    body = {"prompt": text, "add_special_tokens": False}

    async def post(path: str, asked: dict[str, Any]) -> Any:
        return await subject.on_server.post(path, {"model": subject.entry.model, **asked})

    with suppress(ModelServerError, KeyError, TypeError):
        return await dialect_of(subject.served).tokens(post, body)
    return None


async def _refusal(subject: Subject, path: str, body: dict[str, Any]) -> ModelServerError | None:
    try:
        await subject.on_server.post(path, {"model": subject.entry.model, **body})
    except ModelServerError as error:
        return error
    return None


def _chat(subject: Subject) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "1"}], "max_tokens": 1, **_further(subject)}


def _further(subject: Subject) -> dict[str, Any]:
    return dict(getattr(subject.entry, "extra_body", {}))


def _pool(subject: Subject) -> dict[str, Any]:
    return {"task": "token_classify", "input": "1"}


def _is_here(subject: Subject) -> bool:
    return urlsplit(subject.on_server.root).hostname in _LOOPBACK
