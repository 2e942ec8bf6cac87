"""The time of an invocation that no call accounts for: waiting for the event loop, checkpoints, the policy.

A run's seconds are those it is at work. What passes within an invocation between two calls belongs to them:
on a busy event loop it is much. What passes between two invocations, a person's thinking, does not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.runnables import RunnableConfig

from trim_graph.budget import Spend
from trim_graph.state import TrimState

KEY = "__pregel_trim_clock"
"""Where a config tells the nodes of their invocation's `Clock`; see `work_ahead.KEY`."""


class Clock:
    """Tells how long ago an invocation's last call ended; at first, when the invocation began."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def take(self) -> float:
        """Return the seconds since the last call has ended, once."""
        now = time.monotonic()
        passed, self._since = max(0.0, now - self._since), now
        return passed

    def restart(self) -> None:
        """A call has ended."""
        self._since = time.monotonic()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Leave out the time that whoever reads the stream takes between two parts."""
        begun = time.monotonic()
        try:
            yield
        finally:
            now = time.monotonic()
            self._since += now - min(now, max(begun, self._since))


@contextmanager
def timed(state: TrimState, config: RunnableConfig) -> Iterator[TrimState]:
    """Give a node that makes a call its state, with the time before the call on the bill.

    Args:
        state: Of the node.
        config: The node's; where no clock is in it, nothing is added.
    """
    clock = (config.get("configurable") or {}).get(KEY)
    if not isinstance(clock, Clock):
        yield state
        return
    spend = state["spend"]
    try:
        yield {**state, "spend": Spend(**{**spend, "seconds": spend["seconds"] + clock.take()})}
    finally:
        clock.restart()
