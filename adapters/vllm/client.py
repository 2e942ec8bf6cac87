"""HTTP to a vLLM server: clients shared by an event loop, retries, and errors that name the server.

Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import httpx
from pydantic import SecretStr
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_exponential, wait_random

from trim_graph.adapters.tokenization import json_body
from trim_graph.errors import ContextLengthError, FailedAttempts, ModelServerError, shown_url

T = TypeVar("T")

_CONNECT_S = 10.0
_CONTEXT_FULL = re.compile(
    r"maximum (context|model) length (?!.*\byou requested\b)|max_tokens must be at least 1", re.DOTALL
)
"""vLLM's refusals of a prompt that leaves no room behind it; the last of one that fills the context exactly.
Versions that do not cut ``max_tokens`` to the room name the tokens requested: fewer would fit."""
_JSON = {"Content-Type": "application/json"}
_BOM = b"\xef\xbb\xbf"
_backoff = wait_exponential(multiplier=0.2, max=5.0) + wait_random(0.0, 0.2)


class TransientError(ModelServerError):
    """A failure that may pass: no connection, a dropped one, 429 or 5xx. Retried here and nowhere else.

    Attributes:
        retry_after: Seconds that the server asks to wait.
    """

    def __init__(
        self, message: str, status: int | None = None, retry_after: float = 0.0, *, begun: bool = False
    ) -> None:
        super().__init__(message, status, begun=begun)
        self.retry_after = retry_after


def check_base_url(base_url: str, setting: str = "base_url") -> str:
    """Checks the `base_url` setting.

    Args:
        base_url: Its value.
        setting: Name of the setting in messages.

    Returns:
        The server's root: without a trailing ``/v1``, since some of vLLM's endpoints are beside it.

    Raises:
        ValueError: It is no http(s) URL of host, port and path. The message does not repeat it, since the
            wrong part of a URL may be a password's.
    """
    if wrong := _base_url_fault(base_url):
        raise ValueError(f"{setting} {wrong}; it looks like http://localhost:8000/v1")
    return str(httpx.URL(base_url)).rstrip("/").removesuffix("/v1").rstrip("/")


def _base_url_fault(base_url: str) -> str:
    if not isinstance(base_url, str):
        return "is not a text"
    scheme, _, rest = base_url.partition("://")
    if scheme.lower() not in ("http", "https"):
        return "does not begin with http:// or https://"
    if "@" in rest:
        return "holds a user name or password; name an environment variable in api_key_env instead"
    if "?" in rest or "#" in rest:
        return "holds a query or a fragment"
    if shown_url(scheme.lower() + "://" + rest) is None:
        return "is not a URL of a host, perhaps a port in digits, and perhaps a path"
    with suppress(httpx.InvalidURL):
        return "" if httpx.URL(base_url).host else "names no host"
    return "is not a URL: its host or its port cannot be"


@dataclass(frozen=True, slots=True)
class VLLMServer:
    """One server, as an adapter's settings describe it.

    Attributes:
        root: From `check_base_url`.
        api_key_env: Environment variable with the key, read at every request and kept nowhere.
        api_key: A key given in code, which takes precedence over the environment's.
        read_timeout: Seconds without a byte after which a connection counts as dropped.
        max_retries: Attempts after the first.
        max_connections: Most requests at once from one event loop; further ones wait their turn.
    """

    root: str
    api_key_env: str | None = None
    api_key: SecretStr | None = None
    read_timeout: float = 600.0
    max_retries: int = 3
    max_connections: int = 256

    async def get(self, path: str) -> Any:
        """Gets a JSON document, with retries."""
        return await retry(lambda: self._json("GET", path, None), self.max_retries)

    async def get_text(self, path: str) -> str:
        """Gets a text, with retries."""

        async def attempt() -> str:
            async with self._response("GET", path, None) as response:
                return (await response.aread()).decode("utf-8", "replace")

        return await retry(attempt, self.max_retries)

    async def post(self, path: str, payload: dict[str, Any]) -> Any:
        """Posts a JSON document and returns the answer, with retries.

        Raises:
            ModelServerError: The server cannot be reached or refuses.
        """
        return await retry(lambda: self.post_once(path, payload), self.max_retries)

    async def served(self, model: str) -> dict[str, Any]:
        """Returns the server's entry of a model, with ``max_model_len``, and its source as ``root``.

        Raises:
            ModelServerError: The server does not answer, or does not serve the model.
        """
        return await retry(lambda: self.served_once(model), self.max_retries)

    async def served_once(self, model: str) -> dict[str, Any]:
        """Makes one attempt of `served`."""
        entries = (await self._json("GET", "/v1/models", None)).get("data") or []
        names = [str(entry.get("id")) for entry in entries]
        if model not in names:
            raise ModelServerError(
                f"the server at {self.root} serves {', '.join(names)}; model={model!r} is none of them"
            )
        return dict(entries[names.index(model)])

    async def post_once(self, path: str, payload: dict[str, Any]) -> Any:
        """Makes one attempt of `post`.

        Raises:
            TransientError: It may work another time.
            ModelServerError: The server refuses.
        """
        return await self._json("POST", path, payload)

    async def events(self, path: str, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Posts a document and yields the server-sent events of the answer; one attempt.

        Raises:
            TransientError: The connection could not be made, or broke before the end.
            ModelServerError: The server refuses.
        """
        async with self._response("POST", path, payload) as response:
            if "json" in response.headers.get("content-type", ""):  # it does not stream
                yield self._document(await response.aread())
                return
            async for data in _event_data(response):
                if data == b"[DONE]":
                    return
                yield self._document(data)

    async def _json(self, method: str, path: str, payload: dict[str, Any] | None) -> Any:
        async with self._response(method, path, payload) as response:
            return self._document(await response.aread())

    @asynccontextmanager
    async def _response(
        self, method: str, path: str, payload: dict[str, Any] | None
    ) -> AsyncIterator[httpx.Response]:
        pool = await pool_for(self.root, self.max_connections)
        timeout = httpx.Timeout(self.read_timeout, connect=_CONNECT_S, pool=None)
        try:
            async with (
                pool.client() as client,
                client.stream(
                    method,
                    self.root + path,
                    headers=self._headers() | _JSON,
                    timeout=timeout,
                    content=None if payload is None else json_body(payload),
                ) as response,
            ):
                if response.status_code != 200:
                    raise self._refusal(response.status_code, await response.aread(), response.headers)
                yield response
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError):
            raise
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise TransientError(
                f"no server answers at {self.root} ({error}); start it, or correct base_url"
            ) from error
        except httpx.TransportError as error:
            what = str(error) or type(error).__name__
            raise TransientError(f"the connection to {self.root} failed: {what}", begun=True) from error
        except httpx.RequestError as error:
            raise ModelServerError(
                f"{self.root} answered with bytes that cannot be decoded: {error}", begun=True
            ) from error

    def _headers(self) -> dict[str, str]:
        key = self._key()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _key(self) -> str:
        if self.api_key is not None:
            key = self.api_key.get_secret_value().strip()
        else:
            key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        if not (key.isascii() and key.isprintable()):
            # httpx would quote the key in its own error.
            raise ModelServerError(f"{self._key_place} holds characters that no HTTP header takes")
        return key

    @property
    def _key_place(self) -> str:
        return "api_key" if self.api_key is not None else f"the environment variable {self.api_key_env}"

    def _document(self, data: bytes) -> Any:
        """Returns a JSON object, and raises one that is an error. Bytes that are no UTF-8 become U+FFFD."""
        try:
            parsed = json.loads(data.decode("utf-8-sig", "replace"))
        except (ValueError, RecursionError):
            parsed = None
        if not isinstance(parsed, dict):
            raise ModelServerError(
                f"{self.root} answered with something that is not a JSON object: {self._shown(data)}. "
                "Is it a vLLM server?",
                begun=True,
            )
        if parsed.get("error") or parsed.get("object") == "error":
            raise self._refusal(_code(parsed), parsed)
        return parsed

    def _refusal(
        self, status: int, body: bytes | dict[str, Any], headers: httpx.Headers | None = None
    ) -> ModelServerError:
        said = f"the server at {self.root} answered {status}: {self._shown(body)}"
        if status in (401, 403):
            state = "is set, but not right" if self._key() else "is not set"
            named = self.api_key is not None or self.api_key_env
            said += f"; {self._key_place} {state}" if named else "; name the key's variable in api_key_env"
        if status == 404 and (path := httpx.URL(self.root).path) != "/":
            said += f"; is {path} of base_url right? A server's own address ends in /v1, or in its port"
        if status == 429 or (status >= 500 and status != 501):
            wait = _seconds(headers.get("retry-after") if headers else None)
            # 503 is a refusal to begin; a gateway answers the others while the model is at work, or after it.
            return TransientError(said, status, wait, begun=status >= 500 and status != 503)
        if status == 400 and _CONTEXT_FULL.search(said):
            return ContextLengthError(said, status)
        return ModelServerError(said, status)

    def _shown(self, body: bytes | dict[str, Any]) -> str:
        """Returns a server's message, short, and without the key, which a proxy may echo."""
        said: Any = body
        if isinstance(body, bytes):
            said = str(body, "utf-8", "replace")
            with suppress(ValueError, RecursionError):
                said = json.loads(said)
        for name in ("error", "message"):
            if isinstance(said, dict):
                said = said.get(name, said)
        text, key = " ".join(str(said).split()), self._key()
        return (text.replace(key, "***") if key else text)[:500]


async def retry(
    call: Callable[[], Awaitable[T]],
    max_retries: int,
    *,
    wait: Callable[[RetryCallState], float] | None = None,
    asked: Callable[[], Sequence[str]] = tuple,
) -> T:
    """Awaits ``call()``, again while it raises `TransientError`. Nothing else in this package retries.

    Args:
        call: One attempt.
        max_retries: Attempts after the first.
        wait: Seconds before the next attempt; None: `backoff`.
        asked: The servers asked so far, where they are several.

    Raises:
        ModelServerError: All attempts failed.
    """
    attempts, unknown = max_retries + 1, 0
    failed: list[TransientError] = []

    async def attempt() -> T:  # tenacity awaits coroutine functions only
        nonlocal unknown
        if failed:
            raise failed.pop()
        try:
            return await call()
        except TransientError as error:
            unknown += error.begun
            raise

    try:
        return await attempt()
    except TransientError as error:
        failed.append(error)  # tenacity takes longer than a call that succeeds: it gets those that did not
    try:
        return await AsyncRetrying(
            retry=retry_if_exception_type(TransientError),
            stop=stop_after_attempt(attempts),
            wait=wait or backoff,
            reraise=True,
        )(attempt)
    except TransientError as error:
        roots = asked()
        at = f", at {', '.join(roots)}" if len(roots) > 1 else ""
        final = ModelServerError(f"{error} ({attempts} attempts{at})", error.status, begun=error.begun)
        final.attempts = FailedAttempts(count=attempts, input_tokens=0, output_tokens=0, unknown=unknown)
        raise final from error


def backoff(state: RetryCallState) -> float:
    """Returns the seconds before the next attempt: more each time, and as many as the server asks."""
    error = state.outcome.exception() if state.outcome else None
    return max(_backoff(state), getattr(error, "retry_after", 0.0))


def _seconds(text: str | None) -> float:
    """Returns a Retry-After header in seconds, 30 at most; its other form, a date, counts as absent."""
    return min(float(text), 30.0) if text and re.fullmatch(r"\d+(\.\d+)?", text) else 0.0


def _code(document: dict[str, Any]) -> int:
    """Returns the status of an error that came as a document, where it names one; else 500."""
    error = document.get("error")
    code = error.get("code") if isinstance(error, dict) else document.get("code")
    code = int(code) if isinstance(code, str) and code.isascii() and code.isdecimal() else code
    return code if isinstance(code, int) and 400 <= code < 600 else 500


async def _event_data(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yields the data of server-sent events, without those that have none.

    Source: HTML standard, "Event stream interpretation". A line ends with a line feed, a carriage return, or
    both: httpx's own iterator also splits at U+2028, which a token may hold. An event may have several lines
    of data.
    """
    data: list[bytes] = []
    first = True
    async for line in _lines(response):
        line, first = line.removeprefix(_BOM) if first else line, False
        if line.startswith(b"data:"):
            data.append(line.removeprefix(b"data:").removeprefix(b" "))
        elif not line:
            if event := b"\n".join(data).strip():
                yield event
            data = []
    if event := b"\n".join(data).strip():
        yield event


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in response.aiter_bytes():
        text = rest + piece
        # A line feed may still follow a carriage return at the end.
        kept, text = (b"\r", text[:-1]) if text.endswith(b"\r") else (b"", text)
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *whole, rest = text.split(b"\n")
        rest += kept
        for line in whole:
            yield line
    yield rest.removesuffix(b"\r")


KEEP_ALIVE_S = 4.0
"""Below the 5 s after which uvicorn, which vLLM runs on, drops an idle connection."""
SLOT_CONNECTIONS = 8
"""Most connections of one client. For every request httpx compares all connections of its client with all
others, which with a hundred of them takes ten times as long as all else (`tests.benchmarks.http`)."""


@dataclass(slots=True, eq=False)
class ClientSlot:
    """A client with a few connections."""

    client: httpx.AsyncClient
    room: int
    """Connections that it may have."""
    busy: int = 0
    left_at: float = 0.0
    """Time of the end of its last request, in seconds of the monotonic clock."""


@dataclass(slots=True, eq=False)
class Pool:
    """The connections from one event loop to one server.

    Args:
        max_connections: All clients' together.
    """

    max_connections: int
    gate: asyncio.Semaphore = field(init=False)
    """Queues callers; httpx's own queue takes quadratic time with thousands of them."""
    slots: list[ClientSlot] = field(init=False, default_factory=list)
    life: AsyncGenerator[None, None] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.gate = asyncio.Semaphore(self.max_connections)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Waits for a free connection, and yields its client for one request."""
        async with self.gate:
            await self._close_idle()
            # The first that has room, so that the last ones fall idle under less load.
            slot = next((slot for slot in self.slots if slot.busy < slot.room), None) or self._new_slot()
            slot.busy += 1
            try:
                yield slot.client
            finally:
                slot.busy -= 1
                slot.left_at = time.monotonic()

    async def close(self) -> None:
        """Closes all connections."""
        for slot in self.slots:
            await slot.client.aclose()

    def _new_slot(self) -> ClientSlot:
        room = min(SLOT_CONNECTIONS, self.max_connections - sum(slot.room for slot in self.slots))
        slot = ClientSlot(new_client(room), room)
        self.slots.append(slot)
        return slot

    async def _close_idle(self) -> None:
        """Closes clients that were needed at a busier time: httpx drops old connections only at a request."""
        since = time.monotonic() - KEEP_ALIVE_S
        idle = [slot for slot in self.slots[1:] if not slot.busy and slot.left_at < since]
        for slot in idle:  # all before the first wait, during which other calls run
            self.slots.remove(slot)
        for slot in idle:
            await slot.client.aclose()


_Key = tuple[str, int, asyncio.AbstractEventLoop]
_pools: dict[_Key, Pool] = {}


@cache
def _certificates() -> ssl.SSLContext:
    """Reads the certificates once, since that takes longer than many requests."""
    return httpx.create_ssl_context()


def new_client(max_connections: int) -> httpx.AsyncClient:
    """Returns a client without its own time limit."""
    limits = httpx.Limits(
        max_connections=max_connections,
        max_keepalive_connections=max_connections,
        keepalive_expiry=KEEP_ALIVE_S,
    )
    try:
        return httpx.AsyncClient(limits=limits, verify=_certificates())
    except (ValueError, ImportError, httpx.InvalidURL):
        fault = "is not the URL of a proxy that httpx can use"
    # Out of the except clause: httpx's own words may repeat a proxy's password.
    raise ModelServerError(f"a proxy of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) {fault}")


async def pool_for(root: str, max_connections: int) -> Pool:
    """Returns the running event loop's pool for a server; made at the first call, closed with the loop."""
    key = (root, max_connections, asyncio.get_running_loop())
    pool = _pools.get(key)
    if pool is None:
        for old in [other for other in list(_pools) if other[2].is_closed()]:
            _pools.pop(old, None)
        pool = _pools[key] = Pool(max_connections)
        # A loop that shuts down closes its async generators: that is when the connections close.
        pool.life = _lifetime(key, pool)
        await anext(pool.life)
    return pool


async def _lifetime(key: _Key, pool: Pool) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        _pools.pop(key, None)
        await pool.close()
