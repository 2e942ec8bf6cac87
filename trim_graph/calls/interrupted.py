"""Interrupted calls of the large model: their charge may be in no checkpoint.

The update of its node charges a large call. That update may be lost: the database was unavailable, an error
or a cancellation left the node, or an agent's turn failed after the call. The run then resumes from a
checkpoint without the charge and would repeat the call for free, each time this happens. So this process
records the usage of its large calls until a checkpoint is known to hold the charge.

The channel ``charged_call`` names the last large call that ``usage`` includes. Each call records the name it
found there as its ``parent``, so the calls of a run form a tree. The calls below the state of a run that no
checkpoint holds are the lost ones. Branches of one checkpoint are siblings in that tree. A sibling is not
lost

- while its invocation is running;
- after its invocation has ended without an error: then all of it was stored;
- where a checkpoint has its name.

An agent's invocation is not a `TrimGraph`'s, so only the last of these is known of an agent's calls. Of
parallel branches of one agent, one may be charged for the other's call too, never for less than its own.
"""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple

from trim_graph import process
from trim_graph.budget.usage import Usage, Writer, add_usage, charge_in_full, large_tokens
from trim_graph.errors import counted
from trim_graph.routing.router import settings_of
from trim_graph.runtime import CHECKPOINTER, Invocation, emit
from trim_graph.state import TrimState

CHANNELS = ("charged_call", "trim_charged_call")
"""Channels that name the last charged call: in the graph's state, and in an agent's."""
CheckpointKey = tuple[str | None, str]
"""Thread id and checkpoint namespace."""
KEPT = 10_000
"""Most calls recorded; beyond that the calls of the least recently active run are dropped."""


@dataclass(frozen=True, slots=True, eq=False)
class LargeCall:
    """A large call that has ended.

    Attributes:
        id: Name of the call.
        parent: Name of the last call that the state included when this one was made.
        used: Usage of the call: the difference of the run's usage after and before it.
        checkpoint_key: Where its run's checkpoints are.
        raised: Whether an error left the node, so that no state can hold the charge.
        invocation: The invocation that made the call; None in an agent.
    """

    id: str
    parent: str | None
    used: Usage
    checkpoint_key: CheckpointKey
    raised: bool = False
    invocation: Invocation | None = None


class _Calls:
    """The calls of this process, by run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Keyed by process too: a fork inherits its parent's records, but did not make those calls.
        self._runs: OrderedDict[tuple[str, str], dict[str, LargeCall]] = OrderedDict()
        self._count = 0

    def add(self, run: str, call: LargeCall) -> None:
        with self._lock:
            key = process.NAME, run
            self._runs.setdefault(key, {})[call.id] = call
            self._runs.move_to_end(key)
            self._count += 1
            if call.invocation is not None:
                call.invocation.runs.add(run)
            while self._count > KEPT and len(self._runs) > 1:
                self._count -= len(self._runs.popitem(last=False)[1])

    def of(self, run: str) -> list[LargeCall]:
        with self._lock:
            return list(self._runs.get((process.NAME, run), {}).values())

    def merge(self, run: str, lost: Collection[LargeCall], into: LargeCall) -> None:
        """Replaces several calls by one: a state is about to be charged for them together."""
        with self._lock:
            known = self._runs.setdefault((process.NAME, run), {})
            for one in lost:
                known.pop(one.id, None)
            known[into.id] = into
            self._count += 1 - len(lost)
            if into.invocation is not None:
                into.invocation.runs.add(run)

    def forget(self, invocation: Invocation) -> None:
        with self._lock:
            for run in invocation.runs:
                known = self._runs.pop((process.NAME, run), {})
                kept = {name: call for name, call in known.items() if call.invocation is not invocation}
                self._count -= len(known) - len(kept)
                if kept:
                    self._runs[process.NAME, run] = kept


_aborted_calls = _Calls()


def clear_aborted(invocation: Invocation) -> None:
    """Drops the calls of an invocation that ended without an error: LangGraph has stored all of it."""
    _aborted_calls.forget(invocation)


def remember(run: str, call: LargeCall) -> None:
    """Records a call that has ended, until a checkpoint is known to hold its charge."""
    _aborted_calls.add(run, call)


def _lost_calls(state: TrimState, stored: Collection[str]) -> list[LargeCall]:
    """Returns the calls made since this state whose charge is in no checkpoint.

    Args:
        state: State of the run.
        stored: Names of calls that its checkpoints hold; see `stored_calls`.
    """
    suspected, known = _calls_since(state)

    def saved(call: LargeCall) -> bool:
        return call.id in stored or any(saved(one) for one in known if one.parent == call.id)

    def lost(calls: list[LargeCall]) -> Iterator[LargeCall]:
        for call in calls:
            if not saved(call):
                yield call
                yield from lost([one for one in known if one.parent == call.id])

    return list(lost(suspected))


def _charged_with(state: TrimState, lost: list[LargeCall], invocation: Invocation | None) -> dict[str, Any]:
    """Returns the update that charges a state for lost calls.

    The charge is recorded as one call that replaces them: if this update is lost too, the next is the same.
    """
    used = lost[0].used
    for call in lost[1:]:
        used = add_usage(used, call.used)
    parent, key = state.get("charged_call"), lost[-1].checkpoint_key
    one = LargeCall(uuid.uuid4().hex, parent, used, key, invocation=invocation)
    _aborted_calls.merge(state["run"]["id"], lost, one)
    return {"usage": add_usage(state["usage"], used), "charged_call": one.id}


def _calls_since(state: TrimState) -> tuple[list[LargeCall], list[LargeCall]]:
    """Returns the direct children of a state's last call that may be lost, and all calls of its run."""
    known = _aborted_calls.of(state["run"]["id"])
    last = state.get("charged_call")
    children = (one for one in known if one.parent == last)
    suspected = [
        one for one in children if one.raised or one.invocation is None or not one.invocation.running
    ]
    return suspected, known


def charge_interrupted_calls(
    state: TrimState, stored: Collection[str], invocation: Invocation | None = None
) -> dict[str, Any]:
    """Returns the update that charges a state for interrupted large calls.

    A call was interrupted if its process crashed, an error left its node, or no checkpoint holds its charge.

    Args:
        state: State of the run.
        stored: Names of large calls that its checkpoints hold; see `stored_calls`.
        invocation: The invocation that charges.

    Returns:
        An update with ``usage`` and ``notes``, and ``charged_call`` for recorded calls; empty if no call was
        interrupted.
    """
    update: dict[str, Any] = {}
    notes = list[str]()
    if lost := _lost_calls(state, stored):
        update = _charged_with(state, lost, invocation)
        for call in lost:
            how = "was cut off by an error" if call.raised else "was made, but its result could not be stored"
            notes.append(charge_note("large", how, large_tokens(call.used)))
    in_flight = state.get("in_flight")
    if in_flight is not None and in_flight["process"] != process.NAME:
        tokens, prices = in_flight["max_tokens"], settings_of(state["run"]).prices
        update["usage"] = charge_in_full(
            update.get("usage", state["usage"]),
            max_tokens=tokens,
            prompt_tokens=in_flight["prompt_tokens"],
            prices=prices,
        )
        notes.append(charge_note("large", "was cut off by a crash", tokens))
    for note in notes:
        emit("note", text=note)
    return update | {"notes": [*state["notes"], *notes]} if notes else update


def charge_note(writer: Writer, how: str, tokens: int) -> str:
    """Returns the note on a charge for a call that reported no usage."""
    return f"a call of the {writer} model {how}; {counted(tokens, 'token was', 'tokens were')} charged for it"


def stored_calls(state: TrimState, config: RunnableConfig) -> set[str]:
    """Returns the names of large calls that the checkpoints of a run hold.

    The checkpointer is queried only if this process has made calls since this state, which is rare.

    Args:
        state: State of the run.
        config: The node's config, which holds the checkpointer.
    """
    names = set[str]()
    for saver, where in _checkpointers(state, config):
        with suppress(Exception):  # a call that the checkpointer does not show counts as lost
            names.update(name for one in saver.list(where) for name in _names(one))
    return names


async def astored_calls(state: TrimState, config: RunnableConfig) -> set[str]:
    """Returns the same as `stored_calls`, without blocking the event loop."""
    names = set[str]()
    for saver, where in _checkpointers(state, config):
        with suppress(Exception):
            names.update([name async for one in saver.alist(where) for name in _names(one)])
    return names


def checkpoint_key_of(config: RunnableConfig) -> CheckpointKey:
    """Returns the thread id and the namespace under which a node's graph keeps its checkpoints."""
    configurable = config.get("configurable") or {}
    # A node's namespace is its graph's, followed by the node's task.
    graph = str(configurable.get("checkpoint_ns") or "").rpartition("|")[0]
    return configurable.get("thread_id"), graph


def _checkpointers(state: TrimState, config: RunnableConfig) -> Iterator[tuple[Any, RunnableConfig]]:
    saver, (suspected, known) = (config.get("configurable") or {}).get(CHECKPOINTER), _calls_since(state)
    if saver and suspected:
        for thread, namespace in {call.checkpoint_key for call in known}:
            yield saver, {"configurable": {"thread_id": thread, "checkpoint_ns": namespace}}


def _names(one: CheckpointTuple) -> Iterator[str]:
    values = one.checkpoint["channel_values"]
    # Pending writes do not count: a node that runs again at this checkpoint never applies them.
    yield from (values[channel] for channel in CHANNELS if values.get(channel))
