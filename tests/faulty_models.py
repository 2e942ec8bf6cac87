"""Large models that fail in every way that servers do, and keep a record of what they really generated.

Each request is charged to the `Line` on whose behalf it was made: a context variable names it, which tasks,
threads and the adapters' own event loop inherit. Each line has a script of its own, so what it meets does not
hang on which of several lines comes first.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar

import httpx
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from tests.adapters.recorded_server import Broken, RecordedServer, failed, streamed, usage
from trim_graph import ModelPrice
from trim_graph.testing import ScriptedChatModel

IMAGE_TOKENS = 700
"""What an image costs; no text says so."""
TOO_MANY = 9
"""Tokens beyond ``max_tokens`` of a model that ignores it."""

NOTHING_GENERATED = ("429", "503", "refused", "dropped at once", "error document 400")
FAILS_BEHIND = ("500", "502", "504", "dropped", "error document", "error document as text", "not json")
BREAKS_OFF = ("error event", "truncated", "dropped in the middle", "failed", "cancelled")
ODD_USAGE = ("no usage", "usage last", "usage first", "usage null", "usage 0", "usage -1", "no prompt tokens")
ODD_ENDS = ("cut", "unknown reason", "filtered", "blank", "tool call", "ignores max_tokens")
KINDS = ("good", *NOTHING_GENERATED, *FAILS_BEHIND, *BREAKS_OFF, *ODD_USAGE, *ODD_ENDS)
FOREIGN_KINDS = ("good", "no usage", "usage 0", "dropped", "filtered", "cancelled", "ignores max_tokens")


@dataclass(frozen=True)
class Plan:
    """What becomes of a request.

    Attributes:
        kind: One of `KINDS`.
        part: How much of its ``max_tokens`` is used, in tenths.
        ends: Whether the model ends the solution there.
    """

    kind: str = "good"
    part: int = 5
    ends: bool = False

    def tokens(self, most: int) -> int:
        if self.kind == "ignores max_tokens":
            return most + TOO_MANY
        return max(1, most * self.part // 10)


@dataclass(frozen=True)
class Made:
    """What one request made a model do."""

    kind: str
    most: int
    """Its ``max_tokens``."""
    read: int
    written: int
    cached: int = 0

    @property
    def too_many(self) -> int:
        return max(0, self.written - self.most)

    def cost(self, price: ModelPrice) -> float:
        return price.cost(self.read, self.written, self.cached)


@dataclass(eq=False)
class Line:
    """One run as its user resumes it."""

    thread: str
    plans: deque[Plan] = field(default_factory=deque)
    made: list[Made] = field(default_factory=list)
    inherited: int = 0
    """How many of these the run that it branched from has made."""
    image: bool = False
    """Whether its prompt holds one."""
    task: asyncio.Task[Any] | None = None
    """Runs it, where it can be cancelled."""
    interrupted: bool = False
    """Whether its last invocation ended before a node, so that all that it has made is in a checkpoint."""
    result: Any = None
    """Of its last invocation, where that has ended the run."""

    def next_plan(self) -> Plan:
        return self.plans.popleft() if self.plans else Plan()

    def cancel(self) -> bool:
        if self.task is None:
            return False
        self.task.get_loop().call_soon_threadsafe(self.task.cancel)
        return True


LINE: ContextVar[Line] = ContextVar("LINE")


class BilledServer(RecordedServer):
    """A vLLM server.

    Args:
        reports_stop: Whether a gateway before it lets ``stop_reason`` through.
        keeps_stop: Whether it lets ``include_stop_str_in_output`` through.
    """

    def __init__(self, *, reports_stop: bool = True, keeps_stop: bool = True) -> None:
        super().__init__()
        self.models = {"data": [{"id": "m", "root": "org/m", "max_model_len": 100_000}]}
        self.reports_stop, self.keeps_stop = reports_stop, keeps_stop

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        answer = await super()._answer(request)
        if "cancelled" in answer.extensions and LINE.get().cancel():
            await asyncio.sleep(60)
        return answer

    def _reply(self, request: httpx.Request) -> Any:
        if request.url.path not in ("/v1/chat/completions", "/v1/completions"):
            return super()._reply(request)
        body, line = json.loads(request.content), LINE.get()
        return _Generation(self, body, line.next_plan()).on_behalf_of(line)

    def prompt_tokens(self, body: dict[str, Any]) -> int:
        prompt = body.get("prompt")
        return len(self.render(body).encode() if prompt is None else prompt)


class _Generation:
    def __init__(self, server: BilledServer, body: dict[str, Any], plan: Plan) -> None:
        self.server, self.body, self.plan, self.kind = server, body, plan, plan.kind
        self.most = body["max_tokens"]
        self.read = server.prompt_tokens(body)
        self.cached = self.read // 2
        self.written = 0 if self.kind in NOTHING_GENERATED else plan.tokens(self.most)

    def on_behalf_of(self, line: Line) -> Any:
        worked = self.kind not in NOTHING_GENERATED
        read, cached = (self.read, self.cached) if worked else (0, 0)
        line.made.append(Made(self.kind, self.most, read, self.written, cached))
        return self._answer()

    def _answer(self) -> Any:
        kind = self.kind
        if kind in ("429", "503", "500", "502", "504"):
            return failed(int(kind))
        if kind == "refused":
            return httpx.ConnectError("refused")
        if kind in ("dropped at once", "dropped"):
            return httpx.RemoteProtocolError("gone")
        if kind.startswith("error document"):
            code = {"error document": 500, "error document 400": 400}.get(kind, "unwell")
            return httpx.Response(200, json={"error": {"message": "no", "code": code}})
        if kind == "not json":
            return httpx.Response(200, text="<html>bad gateway</html>")
        if kind == "cancelled":
            return httpx.Response(500, text="too late", extensions={"cancelled": b""})
        return self._stream() if self.body.get("stream") else self._document()

    # What is in an answer

    @property
    def _finish(self) -> str:
        cut = self.written >= self.most and self.kind != "ignores max_tokens"
        odd = {"cut": "length", "unknown reason": "banana", "filtered": "content_filter", "failed": "abort"}
        return odd.get(self.kind, "length" if cut else "stop")

    @property
    def _stop(self) -> str | None:
        stops = self.body.get("stop") or []
        return stops[0] if stops and self._finish == "stop" and not self.plan.ends else None

    @property
    def _text(self) -> str:
        text = "\n" if self.kind == "blank" else "L " * (self.written - 1) + "L"
        keeps = self.server.keeps_stop and self.body.get("include_stop_str_in_output")
        return text + (self._stop or "") if keeps else text

    def _usage(self, written: int) -> dict[str, Any] | None:
        reported = usage(self.read, written, self.cached)
        if self.kind in ("no usage", "usage null"):
            return None
        if self.kind == "no prompt tokens":
            del reported["prompt_tokens"]
        odd = {"usage 0": 0, "usage -1": -1}
        return reported | {"completion_tokens": odd.get(self.kind, written)}

    def _choice(self, text: str, *, last: bool, chunk: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": self._finish if last else None}
        if last and self.server.reports_stop:
            choice["stop_reason"] = self._stop
        if "prompt" in self.body:
            return choice | {"text": text}
        message: dict[str, Any] = {"content": text}
        if self.kind == "tool call" and last:
            message["tool_calls"] = [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]
        return choice | {"delta" if chunk else "message": message}

    def _document(self) -> Any:
        document = {"model": "m", "choices": [self._choice(self._text, last=True, chunk=False)]}
        if self.kind in ("truncated", "error event", "dropped in the middle"):
            return httpx.Response(200, text=json.dumps(document)[:-20])
        if self.kind == "no usage":
            return document
        return document | {"usage": self._usage(self.written)}

    def _stream(self) -> Any:
        events = list(self._events())
        if self.kind == "dropped in the middle":
            return httpx.Response(200, stream=Broken(events))
        if self.kind == "error event":
            return streamed([*events, {"error": {"message": "died", "code": 500}}])
        return streamed(events)

    def _events(self) -> Iterator[dict[str, Any]]:
        """A part of the text in each of three events, and usage in those that the kind says."""
        size = max(1, len(self._text) // 3)
        pieces = [self._text[at : at + size] for at in range(0, len(self._text), size)]
        broken = self.kind in ("truncated", "error event", "dropped in the middle")
        for number, text in enumerate(pieces, start=1):
            last = number == len(pieces) and not broken
            event: dict[str, Any] = {"model": "m", "choices": [self._choice(text, last=last, chunk=True)]}
            known = self.kind not in ("no usage", "usage last", "usage first")
            if known or (self.kind == "usage first" and number == 1):
                sofar = self.written * number // len(pieces)
                reported = self._usage(sofar)
                if reported and number == 1:  # an odd number comes behind one that is right
                    reported["completion_tokens"] = sofar
                event["usage"] = reported
            yield event
        if not broken and self.kind not in ("no usage", "usage first"):
            yield {"model": "m", "choices": [], "usage": self._usage(self.written)}


class ForeignModel(ScriptedChatModel):
    """A provider's chat model without attempts of its own."""

    continues_exactly: ClassVar[bool] = True

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, *arguments: Any, **kwargs: Any
    ) -> ChatResult:
        line = LINE.get()
        plan, most = line.next_plan(), kwargs["max_tokens"]
        written = plan.tokens(most)
        read = sum(map(_prompt_tokens, messages))
        line.made.append(Made(plan.kind, most, read, written))
        if plan.kind == "dropped" or (plan.kind == "cancelled" and line.task is None):
            raise ConnectionError("gone")
        ended = None if plan.ends or written >= most else (stop or [None])[0]
        message = AIMessage(
            " ".join(["L"] * written),
            response_metadata={
                "finish_reason": "content_filter" if plan.kind == "filtered" else "stop",
                "stop_reason": ended,
            },
        )
        if plan.kind != "no usage":
            reported = 0 if plan.kind == "usage 0" else written
            message.usage_metadata = {
                "input_tokens": read,
                "output_tokens": reported,
                "total_tokens": read + reported,
            }
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(self, messages: list[BaseMessage], *arguments: Any, **kwargs: Any) -> ChatResult:
        plans = LINE.get().plans
        cancelled = bool(plans) and plans[0].kind == "cancelled"
        result = self._generate(messages, *arguments, **kwargs)
        if cancelled and LINE.get().cancel():
            await asyncio.sleep(60)
        return result


def count_words(text: str) -> int:
    """As `ForeignModel` counts."""
    return len(text.split())


def _prompt_tokens(message: BaseMessage) -> int:
    blocks: Sequence[Any] = message.content if isinstance(message.content, list) else ()
    images = sum(block.get("type") == "image_url" for block in blocks)
    return len(str(message.text).split()) + images * IMAGE_TOKENS
