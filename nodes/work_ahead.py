"""Work in flight: the small model's next step, written while the scorer is at work. Never in the state."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig

from .failures import attempts_of, read_attempts

KEY = "__pregel_trim_lookahead"
"""Where a config tells the nodes of their invocation's `WorkAhead`. LangGraph takes names that begin so for
its own: they enter no checkpoint, no stream and no trace."""
UNTAKEN_S = 120.0
"""Seconds after which a call that nobody has taken is given up."""
GIVEN_UP_S = 0.5
"""Seconds that a call may take to end by itself once it is given up; then it is cancelled."""
TASK = "trim-graph lookahead"
"""Name of the tasks."""
_KEPT = 10_000


def work_ahead_of(config: RunnableConfig) -> WorkAhead | None:
    """Find what the invocation that a node runs in has under way; None in a synchronous one."""
    found = (config.get("configurable") or {}).get(KEY)
    return found if isinstance(found, WorkAhead) else None


def key_of(prefix: str, arguments: dict[str, Any]) -> str:
    """Name a call within its run by what it carries on and where it is to end."""
    named = json.dumps([prefix, arguments.get("max_tokens"), arguments.get("stop")])
    return hashlib.sha256(named.encode()).hexdigest()


class GiveUp:
    """The ``stop_when`` of a call that may be given up: it ends at its next token, and tells its tokens.

    Args:
        inner: The step's own ``stop_when``, if it has one.

    Attributes:
        begun: Whether text has arrived.
        now: Set to True, the call is to end.
    """

    def __init__(self, inner: Callable[[str], bool] | None = None) -> None:
        self.inner, self.begun, self.now = inner, False, False

    def __call__(self, text: str) -> bool:
        """Tell whether the answer is to end."""
        self.begun = True
        return self.now or (self.inner is not None and self.inner(text))


@dataclass(kw_only=True)
class Wasted:
    """What calls for steps that nobody took have used."""

    calls: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    failed_attempts: int = 0
    failed_calls: int = 0
    unaccounted_tokens: int = 0
    """``max_tokens`` a call, where nobody told what it had written."""

    def __add__(self, other: Wasted) -> Wasted:
        """Add up."""
        one, two = asdict(self), asdict(other)
        return Wasted(**{name: one[name] + two[name] for name in one})


@dataclass(eq=False, kw_only=True)
class Ahead:
    """One call for a step that may never be."""

    run: str
    """Id of the run."""
    key: str
    """Of `key_of`."""
    max_tokens: int
    prompt_tokens: int
    """Most that its prompt has."""
    give_up: GiveUp | None
    """None where the model takes no ``stop_when``: its call can only be cancelled, and nobody tells what it
    has used."""
    begun: bool = False

    async def call(self, ask: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Make the call, behind the scorer's: that is the one somebody waits for."""
        await asyncio.sleep(0)
        self.begun = True
        return await ask()

    def used(self, task: asyncio.Task[Any]) -> Wasted:
        """Count what the call has used, once it has ended."""
        if not self.begun:
            return Wasted()
        if task.cancelled():
            # Before its first text a model that tells its tokens has none to tell.
            known = self.give_up is not None and not self.give_up.begun
            return self._untold(0 if known else self.max_tokens)
        error = task.exception()
        return self._answered(task.result()) if error is None else self._failed(error)

    def _untold(self, tokens: int) -> Wasted:
        return Wasted(calls=1, input_tokens=self.prompt_tokens, unaccounted_tokens=tokens)

    def _failed(self, error: BaseException) -> Wasted:
        lost = attempts_of(error)
        return Wasted(
            calls=1,
            input_tokens=lost["input_tokens"],
            output_tokens=lost["output_tokens"],
            failed_attempts=lost["count"],
            failed_calls=1,
            unaccounted_tokens=lost["unknown"] * self.max_tokens,
        )

    def _answered(self, message: Any) -> Wasted:
        usage = message.usage_metadata if isinstance(message, AIMessage) else None
        if usage is None:
            return self._untold(self.max_tokens)
        lost = read_attempts(message.response_metadata)
        return Wasted(
            calls=1,
            input_tokens=usage["input_tokens"],
            cached_tokens=usage.get("input_token_details", {}).get("cache_read", 0) or 0,
            output_tokens=usage["output_tokens"],
            failed_attempts=lost["count"] if lost else 0,
            unaccounted_tokens=lost["unknown"] * self.max_tokens if lost else 0,
        )


class Unbooked:
    """What runs have used for steps that nobody took, until a node writes it into their state.

    The graph's own, because a run that was cancelled may be gone on with.
    """

    def __init__(self) -> None:
        self._runs: OrderedDict[str, Wasted] = OrderedDict()

    def add(self, run: str, wasted: Wasted) -> None:
        """Add what a run has used."""
        known = self._runs.pop(run, None)
        self._runs[run] = wasted if known is None else known + wasted
        while len(self._runs) > _KEPT:
            self._runs.popitem(last=False)

    def take(self, run: str) -> Wasted | None:
        """Return what a run has used since it was last asked for, once."""
        return self._runs.pop(run, None)


class WorkAhead:
    """What one invocation of a graph has under way: at most one call, taken once or given up.

    The graph makes one for each, and closes it however that ends. It belongs to the invocation's event loop.
    """

    def __init__(self) -> None:
        self._current: tuple[Ahead, asyncio.Task[Any], Unbooked] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.prompt_tokens = 0
        """Most that the prompt behind the last draft has, as its own call has told."""

    @property
    def empty(self) -> bool:
        """Whether nothing is under way, nor ending."""
        return self._current is None and not self._tasks

    def start(self, ahead: Ahead, ask: Callable[[], Coroutine[Any, Any, Any]], unbooked: Unbooked) -> None:
        """Begin a call, in place of the one before.

        Args:
            ahead: What is known of it.
            ask: Makes it.
            unbooked: Learns what it has used, if nobody takes it.
        """
        self.drop()
        task = asyncio.create_task(ahead.call(ask), name=TASK)
        self._current = ahead, task, unbooked
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._timer = asyncio.get_running_loop().call_later(UNTAKEN_S, self.drop)

    def take(self, run: str, key: str) -> asyncio.Task[Any] | None:
        """Return the call that was made ahead, if it is this one; give up any other.

        One that has failed is made anew: it may have failed because it came on top of others.
        """
        if self._current is None:
            return None
        ahead, task, _ = self._current
        broken = task.done() and (task.cancelled() or task.exception() is not None)
        if broken or (ahead.run, ahead.key) != (run, key):
            self.drop()
            return None
        self._forget()
        return task

    def drop(self) -> None:
        """Give up what is under way: nobody will take it."""
        if self._current is None:
            return
        ahead, task, unbooked = self._current
        self._forget()

        def book(ended: asyncio.Task[Any]) -> None:
            unbooked.add(ahead.run, ahead.used(ended))

        if task.done():
            book(task)
            return
        task.add_done_callback(book)
        if ahead.give_up is not None and ahead.give_up.begun:
            ahead.give_up.now = True
            later = asyncio.get_running_loop().call_later(GIVEN_UP_S, task.cancel)
            task.add_done_callback(lambda _: later.cancel())
        else:
            task.cancel()

    def _forget(self) -> None:
        self._current = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def close(self) -> None:
        """Give up what is under way, and wait until it has ended; not for ever."""
        self.drop()
        if self._tasks:
            # Twice: one that does not end by itself is cancelled first.
            await asyncio.wait(self._tasks, timeout=2 * GIVEN_UP_S)
