"""A gateway that stands before a real HTTP server and rewrites the JSON that passes through it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Rewrite = Callable[[str, Any], Any]
"""From a path and a document to another document; None refuses the path with 404."""


class Gateway:
    """Forwards requests; `asked` rewrites their bodies, `answered` the answers, events of streams too."""

    def __init__(self, url: str, *, asked: Rewrite | None = None, answered: Rewrite | None = None) -> None:
        parts = urlsplit(url)
        gateway = self
        self.paths: list[str] = []
        self._asked = asked or (lambda path, body: body)
        self._answered = answered or (lambda path, body: body)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._pass_on(b"")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                body = gateway._asked(self.path, body)
                self._pass_on(json.dumps(body).encode() if body is not None else None)

            def _pass_on(self, body: bytes | None) -> None:
                gateway.paths.append(self.path)
                if body is None:
                    self._answer(404, "application/json", b'{"detail": "no such route"}')
                    return
                upstream = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
                kept = {
                    k: v for k, v in self.headers.items() if k.lower() in ("authorization", "content-type")
                }
                upstream.request(self.command, self.path, body or None, kept)
                answer = upstream.getresponse()
                data, kind = answer.read(), answer.headers.get("content-type", "")
                upstream.close()
                if answer.status == 200 and "event-stream" in kind:
                    data = b"".join(self._event(line) for line in data.split(b"\n\n") if line)
                elif answer.status == 200 and "json" in kind:
                    data = json.dumps(gateway._answered(self.path, json.loads(data))).encode()
                self._answer(answer.status, kind, data)

            def _event(self, line: bytes) -> bytes:
                text = line.removeprefix(b"data: ")
                if text != b"[DONE]":
                    line = b"data: " + json.dumps(gateway._answered(self.path, json.loads(text))).encode()
                return line + b"\n\n"

            def _answer(self, status: int, kind: str, data: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}{parts.path}"

    def __enter__(self) -> Gateway:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
