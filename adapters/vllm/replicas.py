"""Routing of calls to several servers of one model, also when one fails."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from langchain_core.messages import BaseMessage
from tenacity import RetryCallState

from trim_graph.adapters.tokenization import split_continuation
from trim_graph.errors import ModelServerError

from .client import TransientError, VLLMServer, backoff, check_base_url, retry
from .wire import openai_messages

T = TypeVar("T")

COOLDOWN_S = 5.0
"""Seconds that a failed replica is left alone while another one is available."""
BALANCE = 1.25
"""Most calls under way at a replica, as a multiple of its even share of this process's calls."""
LEAST_BOUND = 16
"""Calls under way that a replica takes whatever its share: so few hardly slow each other down."""
_BUSY = 429
_under_way = Counter[str]()
"""Calls of this process under way at each server, by its root."""
_counting = threading.Lock()


def check_base_urls(base_url: str | Sequence[str]) -> tuple[str, ...]:
    """Checks the `base_url` setting: one address, or those of several replicas.

    Returns:
        The root of each, as `check_base_url` gives it.

    Raises:
        ValueError: The list is empty, an address is not right, or two are the same server.
    """
    if isinstance(base_url, str):
        return (check_base_url(base_url),)
    if not base_url:
        raise ValueError("base_url is an empty list; name at least one address")
    roots = tuple(check_base_url(url, f"base_url[{place}]") for place, url in enumerate(base_url))
    if twice := sorted({root for root in roots if roots.count(root) > 1}):
        raise ValueError(f"base_url names {', '.join(twice)} more than once; name each replica once")
    return roots


def rank(roots: Sequence[str], key: str) -> list[str]:
    """Returns the order in which a question asks replicas: rendezvous hashing.

    Each replica draws a number from its own address and the key, and the highest goes first. The order is the
    same in every process and however the list is sorted, and an added or removed replica moves only the
    questions that it is first for.

    Args:
        roots: Addresses, each once.
        key: Key that all calls of one question share.
    """
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass")).digest()

    def drawn(root: str) -> bytes:
        return hashlib.blake2b(digest + root.encode(), digest_size=16).digest()

    return sorted(roots, key=drawn, reverse=True)


def conversation_key(messages: Sequence[BaseMessage]) -> str:
    """Returns the key of a solution's calls: the conversation without the text to be continued.

    Raises:
        ValueError: The conversation cannot be continued.
    """
    return json.dumps(openai_messages(split_continuation(messages)[0]))


class Replicas:
    """Servers of one model, or one server alone; remembers recent failures of each.

    Args:
        servers: At least one; alike but for their addresses.
        clock: Seconds, for the cooldown.
    """

    def __init__(self, servers: Sequence[VLLMServer], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.servers = {server.root: server for server in servers}
        self._clock = clock
        self._cooling_until: dict[str, float] = {}
        """End of the cooldown of a replica that failed."""

    @classmethod
    def at(cls, base_url: str | Sequence[str], **options: Any) -> Replicas:
        """Returns the servers at the addresses of the `base_url` setting.

        Args:
            base_url: See `check_base_urls`.
            options: Further fields of each `VLLMServer`.
        """
        return cls([VLLMServer(root=root, **options) for root in check_base_urls(base_url)])

    @property
    def root(self) -> str:
        """The addresses, for messages."""
        return ", ".join(self.servers)

    def route(self, key: str | Callable[[], str]) -> Route:
        """Returns the route of one call.

        Args:
            key: Key of the calls that belong on one replica; a function is called only where there are
                several replicas.
        """
        roots = list(self.servers)
        if len(roots) > 1:
            roots = rank(roots, key if isinstance(key, str) else key())
        return Route(self, [self.servers[root] for root in roots])

    async def post(self, path: str, payload: dict[str, Any]) -> Any:
        """Posts a JSON document to any of them, with retries, and returns the answer."""
        route = self.route(lambda: json.dumps(payload))
        return await route.retrying(lambda: route.post_once(path, payload))

    async def served(self, model: str) -> dict[str, Any]:
        """Returns the entry of a model at one of them; see `VLLMServer.served`."""
        route = self.route(model)
        return await route.retrying(lambda: route.server.served_once(model))

    def is_available(self, server: VLLMServer) -> bool:
        """Returns whether a replica may be asked: it has not failed recently."""
        return self._clock() >= self._cooling_until.get(server.root, 0.0)

    def failed(self, server: VLLMServer) -> None:
        """Leaves a replica alone for a while."""
        self._cooling_until[server.root] = self._clock() + COOLDOWN_S

    def answered(self, server: VLLMServer) -> None:
        """Ends a replica's cooldown: one request that fails everywhere must not move all others."""
        self._cooling_until.pop(server.root, None)

    def has_room(self, server: VLLMServer) -> bool:
        """Returns whether a replica may take one more call: consistent hashing with bounded loads.

        Questions that are asked many times at once would crowd on the replica that they are all first for
        (Mirrokni, Thorup and Zadimoghaddam, arXiv 1608.01350).
        """
        count = sum(_under_way[root] for root in self.servers)
        bound = math.ceil(BALANCE * (count + 1) / len(self.servers))
        return _under_way[server.root] < max(LEAST_BOUND, bound)

    def choose(self, order: Sequence[VLLMServer], tried: Sequence[VLLMServer]) -> VLLMServer:
        """Returns the server of the next attempt.

        The first that is available, has room and was not tried yet; else the first available one, else the
        first not tried, else the one tried longest ago. After a cooldown one call tries the replica; the
        others leave it out until that call has ended.
        """
        fresh = [server for server in order if server not in tried]
        available = list(filter(self.is_available, fresh))
        if not available:
            return fresh[0] if fresh else tried[0]
        chosen = next(filter(self.has_room, available), available[0])
        if chosen.root in self._cooling_until:
            self.failed(chosen)
        return chosen


class Route:
    """Route of one call through the replicas: each attempt asks one, and after a failure the next one.

    Args:
        replicas: Remember which of them failed recently.
        order: Order in which this call asks them.

    Attributes:
        server: Server of the current attempt.
        failures: Attempts that failed.
        begun: Those of them that a server may have worked on.
    """

    def __init__(self, replicas: Replicas, order: Sequence[VLLMServer]) -> None:
        self._replicas = replicas
        self._order = order
        self._tried: list[VLLMServer] = []
        self.server = order[0]
        self.failures = 0
        self.begun = 0

    @property
    def root(self) -> str:
        """Address of the current attempt."""
        return self.server.root

    async def retrying(self, call: Callable[[], Awaitable[T]]) -> T:
        """Awaits ``call()``, again while it raises `TransientError`; it asks `server`, which may be another.

        A replica that is busy (429) keeps its question; after any other failure the next one is asked, at
        once where that is available. All attempts together are ``max_retries`` + 1.

        Raises:
            ModelServerError: All attempts failed; names the replicas.
        """

        async def attempt() -> T:
            self.server = self._replicas.choose(self._order, self._tried)
            try:
                with self.counted():
                    result = await call()
            except ModelServerError as error:
                self.failures += 1
                self.begun += error.begun
                if not isinstance(error, TransientError):
                    if error.status is not None:  # a refusal shows that it is there
                        self._replicas.answered(self.server)
                elif error.status != _BUSY:
                    self._leave(self.server)
                raise
            self._replicas.answered(self.server)
            return result

        return await retry(attempt, self.server.max_retries, wait=self._wait, asked=self._asked)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts the call as under way at the current attempt's server."""
        root = self.server.root
        with _counting:
            _under_way[root] += 1
        try:
            yield
        finally:
            with _counting:
                _under_way[root] -= 1

    def _leave(self, server: VLLMServer) -> None:
        self._replicas.failed(server)
        self._tried = [other for other in self._tried if other is not server] + [server]

    def _asked(self) -> list[str]:
        return [server.root for server in dict.fromkeys([*self._tried, self.server])]

    def _wait(self, state: RetryCallState) -> float:
        others = [server for server in self._order if server not in self._tried]
        moves = self.server in self._tried and any(map(self._replicas.is_available, others))
        return 0.0 if moves else backoff(state)

    async def post_once(self, path: str, payload: dict[str, Any]) -> Any:
        """Calls `VLLMServer.post_once` of the current attempt's server."""
        return await self.server.post_once(path, payload)

    def events(self, path: str, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Calls `VLLMServer.events` of the current attempt's server."""
        return self.server.events(path, payload)
