"""A local server that speaks the OpenAI chat protocol and answers from a script: no key is needed."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]

_PIECES = re.compile(r" ?[^\W\d_]+|\d{1,3}| ?[^\s\w]+|_+|\s+")


def pieces(text: str) -> list[str]:
    """Cuts a text much as GPT-4's tokenizer does first: words, digits by three, signs, space."""
    return _PIECES.findall(text)


@dataclass
class Answer:
    """An answer of the server.

    Attributes:
        text: Of the message.
        finish_reason: As OpenAI has it.
        stop_reason: As vLLM adds it.
        logprobs: Of the choice; None leaves them out.
        usage: Whether it reports tokens.
        status: HTTP status; not 200 makes ``text`` an error message.
        tool_calls: As OpenAI has them.
    """

    text: str
    finish_reason: str = "stop"
    stop_reason: str | None = None
    logprobs: Body | None = None
    usage: bool = True
    status: int = 200
    tool_calls: list[Body] = field(default_factory=list)


class ScriptedServer:
    """Answers ``POST /v1/chat/completions`` on a free local port while used as a context manager.

    Args:
        script: Makes the answer from a request's body; a text is an answer that ended by itself.
        latency: Seconds that every answer takes.
        token_latency: Seconds more for each token of it.

    Attributes:
        requests: The bodies received, in order.
    """

    def __init__(
        self, script: Callable[[Body], Answer | str], *, latency: float = 0.0, token_latency: float = 0.0
    ) -> None:
        self.requests: list[Body] = []
        self._script, self._latency, self._token_latency = script, latency, token_latency
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """For ``base_url``."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def answer(self, body: Body) -> tuple[int, Body]:
        """Answers one request: status and body."""
        with self._lock:
            self.requests.append(body)
        given = self._script(body)
        answer = Answer(given) if isinstance(given, str) else given
        if answer.status != 200:
            return answer.status, {"error": {"message": answer.text, "type": "scripted", "code": None}}
        cut = _cut(answer, body)
        written = len(pieces(cut.text)) + 1
        time.sleep(self._latency + self._token_latency * written)
        return 200, _completion(cut, body, written)


def _cut(answer: Answer, body: Body) -> Answer:
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    words = pieces(answer.text)
    if limit is None or len(words) <= limit:
        return answer
    return Answer("".join(words[:limit]), "length", None, answer.logprobs, answer.usage)


def _completion(answer: Answer, body: Body, written: int) -> Body:
    read = sum(len(pieces(_text(message["content"]))) + 4 for message in body["messages"])
    message: Body = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.tool_calls:
        message["tool_calls"] = answer.tool_calls
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
        "logprobs": answer.logprobs,
    }
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    made = {"id": "chatcmpl-scripted", "object": "chat.completion", "created": 0, "model": body["model"]}
    return {**made, "choices": [choice], "usage": usage if answer.usage else None}


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or [])


def _handler(server: ScriptedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body leave together: apart, the second waits for an acknowledgement

        def do_GET(self) -> None:
            models = ("small", "large", "judge")
            self._send(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(*server.answer(body))

        def _send(self, status: int, body: Body) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
