"""The wire format of a vLLM 0.32 server, without a socket: recorded bodies, behaviour scripted by a test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx

ROOT = "http://vllm.test:8000"


def usage(read: int, written: int, cached: int | None = None) -> dict[str, Any]:
    reported: dict[str, Any] = {
        "prompt_tokens": read,
        "total_tokens": read + written,
        "completion_tokens": written,
    }
    if cached is not None:
        reported["prompt_tokens_details"] = {"cached_tokens": cached, "created_cache_tokens": 0}
    return reported


def chat_answer(text: str, *, finish="stop", stop=None, spent=(30, 5, 16), logprobs=None, **message):
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "reasoning": None, **message},
        "logprobs": logprobs,
        "finish_reason": finish,
        "stop_reason": stop,
    }
    return {"object": "chat.completion", "model": "m", "choices": [choice], "usage": usage(*spent)}


def raw_answer(text: str, *, finish="stop", stop=None, spent=(30, 5), logprobs=None):
    choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish, "stop_reason": stop}
    return {"object": "text_completion", "model": "m", "choices": [choice], "usage": usage(*spent)}


def chat_events(*texts: str, stop=None, **delta) -> list[dict[str, Any]]:
    """Events of a whole streamed answer, one token each, and usage as ``continuous_usage_stats`` gives it."""
    made: list[dict[str, Any]] = [_event({"role": "assistant", "content": "", **delta}, written=0)]
    for n, text in enumerate(texts, start=1):
        last = n == len(texts)
        made.append(_event({"content": text}, written=n, finish="stop" if last else None, stop=stop))
    made.append({"model": "m", "choices": [], "usage": usage(30, len(texts), cached=16)})
    return made


def _event(delta, *, written, finish=None, stop=None):
    choice: dict[str, Any] = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    if finish:
        choice["stop_reason"] = stop
    return {"model": "m", "choices": [choice], "usage": usage(30, written)}


class Broken(httpx.AsyncByteStream):
    """A body that stops in the middle: with an error, or it never continues."""

    def __init__(self, events: list[dict[str, Any]], *, hangs: bool = False) -> None:
        self._events = events
        self._hangs = hangs
        self.closed = False

    async def __aiter__(self):
        for event in self._events:
            yield f"data: {json.dumps(event)}\n\n".encode()
        if self._hangs:
            await asyncio.sleep(60)
        raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")

    async def aclose(self) -> None:
        self.closed = True


def streamed(events: list[dict[str, Any]]) -> httpx.Response:
    lines = [json.dumps(event, ensure_ascii=False) for event in events]
    return httpx.Response(200, text="".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]))


def failed(status: int, message: str = "no", **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, "code": status}}, headers=headers)


Reply = httpx.Response | Exception | dict[str, Any]


class RecordedServer:
    """Answers the questions an adapter asks about a model, and generation requests from a script.

    Tokens are the bytes of a text. ``template`` renders turns: by default ChatML that changes nothing.
    """

    def __init__(self, *script: Reply) -> None:
        self.script: list[Any] = list(script)
        self.requests: list[httpx.Request] = []
        self.template: Callable[[str], str] = lambda text: text
        self.models: Reply = {"data": [{"id": "m", "root": "org/m", "max_model_len": 100}]}
        self.tokenizer_is_there = True
        self.clients = 0

    def client(self, max_connections: int) -> httpx.AsyncClient:
        self.clients += 1
        return httpx.AsyncClient(transport=httpx.MockTransport(self._answer))

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [json.loads(r.content) for r in self.requests if r.url.path == path]

    @property
    def generations(self) -> list[tuple[str, dict[str, Any]]]:
        wanted = ("/v1/chat/completions", "/v1/completions", "/pooling")
        return [(r.url.path, json.loads(r.content)) for r in self.requests if r.url.path in wanted]

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        await asyncio.sleep(0)
        reply = self._reply(request)
        if isinstance(reply, Exception):
            raise reply
        return httpx.Response(200, json=reply) if isinstance(reply, dict) else reply

    def _reply(self, request: httpx.Request) -> Any:
        path = request.url.path
        if path == "/v1/models":
            return self.models
        if path in ("/tokenize", "/detokenize"):
            return self._tokenizer(json.loads(request.content)) if self.tokenizer_is_there else failed(404)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return step(request) if callable(step) else step

    def _tokenizer(self, body: dict[str, Any]) -> Any:
        if "tokens" in body:
            return {"prompt": bytes(body["tokens"]).decode()}
        text = body["prompt"] if "prompt" in body else self.render(body)
        return {"tokens": list(text.encode()), "count": len(text.encode()), "max_model_len": 100}

    def render(self, body: dict[str, Any]) -> str:
        turns = body["messages"]
        last = ""
        if body.get("continue_final_message"):
            *turns, final = turns
            last = self.template(final["content"])
        return "".join(f"<{t['role']}>{t['content']}</>" for t in turns) + "<assistant>" + last
