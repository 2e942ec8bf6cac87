"""The application: routes of OpenAI's protocol, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from trim_graph.budget.ledger import Ledger, open_ledger
from trim_graph.config import Parts, TrimConfig, build_parts
from trim_graph.errors import SettingsError
from trim_graph.shadow import Shadow, ShadowProcess
from trim_graph.shadow.runner import ShadowBase
from trim_graph.state import Summary

from .admission import Admission
from .errors import ApiError
from .keys import ApiKeys
from .metrics import Metrics, forget_dead_processes
from .operating_points import OperatingPoints
from .protocol import Head, read_request
from .questions import Ended, Question, Running, Solver

if TYPE_CHECKING:
    from trim_graph.telemetry import TrimTelemetry

logger = logging.getLogger("trim_graph.server")
MAX_BODY = 10 * 2**20
"""Largest body of a request in bytes."""
PING_S = 15.0
"""Seconds without text after which a streamed answer sends a comment, so that proxies keep the connection."""
CLIENT_LEFT = 499
"""Status in metrics and log of a request whose client left, as nginx has it."""
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
T = TypeVar("T")

router = APIRouter()


class Service:
    """What the routes of one application share.

    Args:
        config: The configuration.
        keys: API keys of clients; empty: every request is answered.
        model_name: Name of the routed pair of models.
        max_questions: Most questions under way at once.
        telemetry: Writes OpenTelemetry's spans and counters; None writes none.
    """

    def __init__(
        self,
        config: TrimConfig,
        keys: ApiKeys,
        model_name: str,
        max_questions: int,
        telemetry: TrimTelemetry | None = None,
    ) -> None:
        self.keys, self.telemetry = keys, telemetry
        self.points = OperatingPoints(config, model_name)
        self.admission = Admission(max_questions)
        self.metrics = Metrics()
        self.started = int(time.time())
        self.solver: Solver | None = None
        """Set while the application runs."""
        self.shadow: ShadowBase | None = None
        """Set while it runs, if the configuration has a section ``shadow``."""

    def owner(self, request: Request) -> str | None:
        """Returns the name of the owner of a request's API key; None if there are no keys.

        Raises:
            ApiError: 401, the request has no key or an unknown one.
        """
        if not self.keys:
            return None
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise ApiError(
                401, "no API key: send the header Authorization: Bearer KEY", code="invalid_api_key"
            )
        if (name := self.keys.owner(key.strip())) is None:
            raise ApiError(401, "the API key is not known", code="invalid_api_key")
        return name


def create_app(
    config: TrimConfig,
    *,
    parts: Parts | None = None,
    keys: ApiKeys | None = None,
    model_name: str = "trim",
    max_questions: int = 256,
    telemetry: TrimTelemetry | None = None,
) -> FastAPI:
    """Builds the application that answers with a configuration.

    Args:
        config: From `trim_graph.config.load_config` or `make_config`.
        parts: From `build_parts`; default: new ones.
        keys: API keys of clients; default: none, and every request is answered.
        model_name: Name of the routed pair of models in requests.
        max_questions: Most questions under way at once; others get 429.
        telemetry: Writes a span for each request, with those of its run below it, and counters to
            OpenTelemetry; default: none.

    Raises:
        SettingsError: The configuration needs what a server has not: a human, threads, or users without keys.
            Or its parts do not go together, or its ledger cannot be opened.
    """
    keys = keys or ApiKeys({})
    check_servable(config, keys)
    service = Service(config, keys, model_name, max_questions, telemetry)
    made = parts or build_parts(config)
    with _ledger(config) as ledger, _shadow(config, made, ledger):
        # Here, since an error within a lifespan has no message of its own.
        Solver(config, made, ledger).check()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        forget_dead_processes()
        with _ledger(config) as ledger, _shadow(config, made, ledger) as shadow:
            service.solver, service.shadow = Solver(config, made, ledger, shadow), shadow
            yield

    # Without pages of documentation: they load scripts from elsewhere.
    app = FastAPI(title="trim-graph", lifespan=lifespan, openapi_url=None)
    app.state.service = service
    app.include_router(router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _bug)
    return app


def _ledger(config: TrimConfig) -> contextlib.AbstractContextManager[Ledger | None]:
    """Opens the ledger of a configuration that has quotas, or a shadow with a budget."""
    shadowed = config.shadow is not None and config.shadow.budget is not None and config.ledger is not None
    counts = config.quotas.given or shadowed
    return open_ledger(str(config.ledger)) if counts else contextlib.nullcontext()


@contextlib.contextmanager
def _shadow(config: TrimConfig, parts: Parts, ledger: Ledger | None) -> Iterator[ShadowBase | None]:
    """Opens the shadow of a configuration that has one."""
    if config.shadow is None:
        yield None
        return
    shadow: ShadowBase
    if config.shadow.process:
        shadow = ShadowProcess.from_config(config)
    else:
        shadow = Shadow.from_config(config, parts=parts, ledger=ledger)
    try:
        yield shadow
    finally:
        shadow.close()


def check_servable(config: TrimConfig, keys: ApiKeys) -> None:
    """Checks that requests can be answered by a configuration.

    Raises:
        SettingsError: It needs what a server has not: a human, threads, or users without keys.
    """
    if config.budget.on_exhausted == "ask":
        raise SettingsError(
            "budget.on_exhausted is ask, but a server has no human to ask: choose small or stop"
        )
    if config.settings.ask_below is not None:
        raise SettingsError(
            f"settings.ask_below is {config.settings.ask_below:g}, but a server has no human to ask: leave "
            "it out"
        )
    if config.quotas.thread is not None:
        raise SettingsError(
            "quotas.thread is set, but requests to a server have no thread: set quotas.user, which holds for "
            "each API key"
        )
    if config.quotas.user is not None and not keys:
        raise SettingsError(
            "quotas.user is set, but there are no API keys, and so no users: give --api-keys FILE with lines "
            "NAME=KEY"
        )


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _authorized(request: Request) -> str | None:
    return _service(request).owner(request)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    _service(request).metrics.requests.labels(str(error.status), "none").inc()
    return error.response()


async def _bug(request: Request, error: Exception) -> Response:
    """Answers in OpenAI's shape; Starlette raises the error once more, so that the log has it."""
    return ApiError(500, "internal error", kind="server_error", code="internal_error").response()


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = "there is no such path" if error.status_code == 404 else str(error.detail)
    routes = "GET /v1/models, POST /v1/chat/completions, GET /health, GET /metrics"
    code = "unknown_url" if error.status_code == 404 else None
    wrong = ApiError(
        error.status_code, f"{request.method} {request.url.path}: {what}. There are: {routes}", code=code
    )
    return wrong.response()


@router.get("/health")
async def health(request: Request) -> dict[str, Any]:
    """Says that the server takes requests, how many are under way here, and what its shadow has counted."""
    service = _service(request)
    shadow = {} if service.shadow is None else {"shadow": asdict(service.shadow.counts)}
    return {"status": "ok", "questions_under_way": service.admission.under_way, **shadow}


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Returns Prometheus' metrics; see `trim_graph.server.metrics.Metrics`."""
    return Response(_service(request).metrics.text(), media_type=_TEXT)


@router.get("/v1/models", dependencies=[Depends(_authorized)])
async def models(request: Request) -> dict[str, Any]:
    """Lists the names of models that a request may give."""
    service = _service(request)
    return {"object": "list", "data": [_model(service, name) for name in service.points.names]}


@router.get("/v1/models/{name:path}", dependencies=[Depends(_authorized)])
async def model(request: Request, name: str) -> dict[str, Any]:
    """Describes one model, also one with a threshold in its name."""
    service = _service(request)
    service.points.of_model(name)
    return _model(service, name)


def _model(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": service.started, "owned_by": "trim-graph"}


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, owner: str | None = Depends(_authorized)) -> Response:
    """Answers a conversation, whole or streamed."""
    service = _service(request)
    record = _Record(service, owner, request)
    response: Response
    try:
        body = read_request(await _body(request))
        point = service.points.of_request(body)
        record.point = point.kind
        async with contextlib.AsyncExitStack() as resources:
            question = Question(record.id, body, point, owner, record.callbacks)
            running = await resources.enter_async_context(_under_way(service, question))
            answer = Answer(question, running, record)
            # Before the first text of a stream too, an error has an HTTP status of its own.
            first = await _while_connected(request.receive, anext(running))
            if body.stream:
                return EventStream(answer, first, resources.pop_all())
            response = await _while_connected(request.receive, answer.whole(first))
        record.end(200)
    except ApiError as error:
        record.end(error.status)
        response = error.response()
        response.headers["x-request-id"] = record.id
    except ClientDisconnect:
        record.end(CLIENT_LEFT)
        response = Response(status_code=CLIENT_LEFT)
    return response


async def _body(request: Request) -> bytes:
    """Reads the body of a request.

    Raises:
        ApiError: 413, it is too large.
        ClientDisconnect: The client left before its end.
    """
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_BODY:
            raise ApiError(413, f"the body of the request has more than {MAX_BODY} bytes", code="too_large")
    return bytes(data)


@contextlib.asynccontextmanager
async def _under_way(service: Service, question: Question) -> AsyncIterator[Running]:
    """Runs a question; ends its calls in every case.

    Raises:
        ApiError: 429, too many questions are under way.
    """
    assert service.solver is not None
    with service.admission.admit(), service.metrics.under_way.track_inprogress():
        running = Running(service.solver.answer(question))
        try:
            yield running
        finally:
            await running.aclose()


async def _while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """Returns what a piece of work returns, and cancels it once the client has left.

    Args:
        receive: Of the request, whose body was read.
        work: The work.

    Raises:
        ClientDisconnect: The client has left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for one in (working, leaving):
            one.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Record:
    """What metrics and log note of one request.

    Args:
        service: Has the metrics.
        owner: Name of the API key's owner.
        request: The request.
    """

    def __init__(self, service: Service, owner: str | None, request: Request) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.point = "none"
        """Kind of the operating point; ``none`` before it is known."""
        self._metrics, self._owner = service.metrics, owner
        self._begun = time.monotonic()
        self._has_text = self._has_ended = False
        self._span = None
        if service.telemetry is not None:
            name = f"{request.method} {request.url.path}"
            self._span = service.telemetry.request(name, self.id, request.headers)

    @property
    def callbacks(self) -> Sequence[TrimTelemetry]:
        """Tracers of the request's run."""
        return () if self._span is None else (self._span.tracer,)

    def text(self) -> None:
        """Notes that a step was accepted."""
        if not self._has_text:
            self._has_text = True
            self._metrics.first_text.labels(self.point).observe(time.monotonic() - self._begun)

    def ended(self, end: Ended) -> None:
        """Notes what the run used."""
        self._metrics.count(end.summary)

    def end(self, status: int) -> None:
        """Notes the end of the request, once: a client may leave while the last chunk is sent."""
        if self._has_ended:
            return
        self._has_ended = True
        took = time.monotonic() - self._begun
        self._metrics.requests.labels(str(status), self.point).inc()
        self._metrics.seconds.labels(self.point).observe(took)
        if self._span is not None:
            self._span.end(status, {"trim.operating_point": self.point})
        logger.info("%s %s %s %d %.3f s", self.id, self._owner or "-", self.point, status, took)


class Answer:
    """The answer to one question, in OpenAI's shape.

    Args:
        question: The question.
        running: Its run.
        record: Of the request.
    """

    def __init__(self, question: Question, running: Running, record: _Record) -> None:
        self.record, self._question, self._running = record, question, running
        self._head = Head(question.id, int(time.time()), question.request.model)

    @property
    def headers(self) -> dict[str, str]:
        """Headers that are known before the run has ended."""
        return {
            "x-request-id": self._question.id,
            "x-trim-operating-point": quote(self._question.point.name, safe="=.:"),
        }

    async def whole(self, first: str | Ended) -> JSONResponse:
        """Returns the answer at once.

        Args:
            first: The first part of the run.
        """
        text = ""
        async for part in self._parts(first):
            if isinstance(part, str):
                text += part
            elif part is not None:
                end = part
        content = self._head.completion(text, end.finish_reason, end.usage, self._trim(end), end.tool_calls)
        return JSONResponse(content, headers=self.headers | _decided(end.summary))

    async def events(self, first: str | Ended) -> AsyncGenerator[str]:
        """Yields the answer as server-sent events: each accepted step, then what was decided.

        Args:
            first: The first part of the run.
        """
        options = self._question.request.stream_options
        with_usage = options is not None and options.include_usage
        # OpenAI sends a null in every other part if the usage was asked for.
        usage: dict[str, Any] = {"usage": None} if with_usage else {}
        yield _event(self._head.chunk({"role": "assistant", "content": ""}, **usage))
        try:
            async for part in self._parts(first):
                if part is None:
                    yield ": the next step is being written\n\n"
                elif isinstance(part, str):
                    yield _event(self._head.chunk({"content": part}, **usage))
                else:
                    for index, call in enumerate(part.tool_calls):
                        delta = {"tool_calls": [{"index": index, **call}]}
                        yield _event(self._head.chunk(delta, **usage))
                    yield _event(self._head.chunk({}, part.finish_reason, trim=self._trim(part), **usage))
                    if with_usage:
                        yield _event(self._head.usage_chunk(part.usage))
        except ApiError as error:
            self.record.end(error.status)
            yield _event(error.body)
            return
        self.record.end(200)
        yield "data: [DONE]\n\n"

    def _trim(self, end: Ended) -> dict[str, Any]:
        """Returns the field ``trim`` of the answer: operating point, the run's summary, and each step."""
        return {"operating_point": self._question.point.name, **end.summary, "each_step": end.steps}

    async def _parts(self, first: str | Ended) -> AsyncGenerator[str | Ended | None]:
        """Yields the parts of the run; None for each `PING_S` seconds without one."""
        part: str | Ended | None = first
        while True:
            if isinstance(part, str):
                self.record.text()
            elif part is not None:
                self.record.ended(part)
            yield part
            try:
                async with asyncio.timeout(PING_S):
                    part = await anext(self._running)
            except TimeoutError:
                part = None
            except StopAsyncIteration:
                return


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"


def _decided(summary: Summary) -> dict[str, str]:
    """Returns the headers that say what was decided."""
    return {
        "x-trim-stopped": summary["stopped"],
        "x-trim-small-steps": str(summary["steps"]["small"]),
        "x-trim-large-steps": str(summary["steps"]["large"]),
        "x-trim-small-tokens": str(summary["usage"]["small"]["output_tokens"]),
        "x-trim-large-tokens": str(summary["usage"]["large"]["output_tokens"]),
        **({} if summary["cost"] is None else {"x-trim-cost": f"{summary['cost']:.6g}"}),
        "x-trim-seconds": f"{summary['seconds']:.3f}",
    }


class EventStream(StreamingResponse):
    """A streamed answer, whose run ends with it, at the latest when the client leaves.

    Args:
        answer: The answer.
        first: The first part of its run.
        resources: What is closed behind it.
    """

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, first: str | Ended, resources: contextlib.AsyncExitStack) -> None:
        # A proxy such as nginx would else collect the steps.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(answer.events(first), headers=answer.headers | headers)
        self._answer, self._resources = answer, resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer; Starlette's own method notices a client that leaves only when it sends."""
        async with self._resources:
            try:
                await _while_connected(receive, self.stream_response(send))
            except ClientDisconnect:
                self._answer.record.end(CLIENT_LEFT)
