"""Large calls of this process whose charge may be in no checkpoint.

A large call is charged in the update of its node. That update may be lost: the database was away, an error
or a cancellation left the node, or the turn of an agent failed behind the call. The run then goes on from a
checkpoint that knows nothing of the call, and would make it again for free, as often as that happens. So this
process remembers what its large calls have used, until it is known that a checkpoint holds the charge.

The channel ``charged_call`` names the last large call that ``spend`` holds. A call remembers the name it
found there, so calls form a tree: those found behind the state of a run, and stored nowhere, are the lost
ones. Branches of one checkpoint are siblings in that tree. A sibling is no lost call

- while its invocation is at work;
- after its invocation has ended without an error, which means that all of it was stored;
- where a checkpoint has its name.

What runs an agent is not ours, so only the last of these is known of an agent's calls: of branches of one
agent that go on at the same time, one may be charged for the other's call too, never for less than its own.
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

from trim_graph.budget.usage import Usage, add_usage
from trim_graph.events import emit
from trim_graph.process import this_process
from trim_graph.runtime import CHECKPOINTER, Invocation
from trim_graph.settings import settings_of
from trim_graph.state import TrimState

CHANNELS = ("charged_call", "trim_charged_call")
"""Of the graph, and of an agent."""
Place = tuple[str | None, str]
"""Thread and namespace of checkpoints."""
KEPT = 10_000
"""Calls remembered; beyond that those of the run that made none for the longest time are forgotten."""


@dataclass(frozen=True, slots=True, eq=False)
class LargeCall:
    """A large call that has ended.

    Attributes:
        id: Its name.
        behind: Name of the last call that the state held when it was made.
        used: What it has used, as a difference of two spends.
        place: Where its checkpoints are.
        raised: Whether it left its node by an error, so that no state can hold its charge.
        invocation: That made it.
    """

    id: str
    behind: str | None
    used: Usage
    place: Place
    raised: bool = False
    invocation: Invocation | None = None


class _Calls:
    """The calls of this process, by run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By the process too: one that was forked has its parent's calls, which are none of its own.
        self._runs: OrderedDict[tuple[str, str], dict[str, LargeCall]] = OrderedDict()
        self._count = 0

    def add(self, run: str, call: LargeCall) -> None:
        with self._lock:
            key = this_process(), run
            self._runs.setdefault(key, {})[call.id] = call
            self._runs.move_to_end(key)
            self._count += 1
            if call.invocation is not None:
                call.invocation.runs.add(run)
            while self._count > KEPT and len(self._runs) > 1:
                self._count -= len(self._runs.popitem(last=False)[1])

    def of(self, run: str) -> list[LargeCall]:
        with self._lock:
            return list(self._runs.get((this_process(), run), {}).values())

    def merge(self, run: str, lost: Collection[LargeCall], into: LargeCall) -> None:
        """Put one call in the place of several, which a state is about to be charged for at once."""
        with self._lock:
            known = self._runs.setdefault((this_process(), run), {})
            for one in lost:
                known.pop(one.id, None)
            known[into.id] = into
            self._count += 1 - len(lost)
            if into.invocation is not None:
                into.invocation.runs.add(run)

    def forget(self, invocation: Invocation) -> None:
        with self._lock:
            for run in invocation.runs:
                known = self._runs.pop((this_process(), run), {})
                kept = {name: call for name, call in known.items() if call.invocation is not invocation}
                self._count -= len(known) - len(kept)
                if kept:
                    self._runs[this_process(), run] = kept


_aborted_calls = _Calls()


def clear_aborted(invocation: Invocation) -> None:
    """Forget the calls of an invocation that ended without an error, so that all of it is stored."""
    _aborted_calls.forget(invocation)


def remember(run: str, call: LargeCall) -> None:
    """Remember a call that has ended, until a checkpoint is known to hold its charge."""
    _aborted_calls.add(run, call)


def _lost_calls(state: TrimState, stored: Collection[str]) -> list[LargeCall]:
    """Return the calls made behind this state whose charge is in no checkpoint.

    Args:
        state: Of the run.
        stored: Names that its checkpoints hold; see `stored_calls`.
    """
    found, known = _behind(state)

    def saved(call: LargeCall) -> bool:
        return call.id in stored or any(saved(one) for one in known if one.behind == call.id)

    def lost(calls: list[LargeCall]) -> Iterator[LargeCall]:
        for call in calls:
            if not saved(call):
                yield call
                yield from lost([one for one in known if one.behind == call.id])

    return list(lost(found))


def _charged_with(state: TrimState, lost: list[LargeCall], invocation: Invocation | None) -> dict[str, Any]:
    """Return the update that charges a state for lost calls.

    The charge is remembered as one call in their place: where this update is lost too, the next is the same.
    """
    used = lost[0].used
    for call in lost[1:]:
        used = add_usage(used, call.used)
    behind, place = state.get("charged_call"), lost[-1].place
    one = LargeCall(uuid.uuid4().hex, behind, used, place, invocation=invocation)
    _aborted_calls.merge(state["run"]["id"], lost, one)
    return {"usage": add_usage(state["usage"], used), "charged_call": one.id}


def _behind(state: TrimState) -> tuple[list[LargeCall], list[LargeCall]]:
    """The calls right behind a state that may be lost, and all calls of its run."""
    known = _aborted_calls.of(state["run"]["id"])
    last = state.get("charged_call")
    made = (one for one in known if one.behind == last)
    found = [one for one in made if one.raised or one.invocation is None or not one.invocation.at_work]
    return found, known


def charge_interrupted_calls(
    state: TrimState, stored: Collection[str], invocation: Invocation | None = None
) -> dict[str, Any]:
    """Return the update that charges a state for large calls whose end or whose charge was lost.

    A crash ended the process of a call, an error its node, or its charge is in no checkpoint.

    Args:
        state: Of the run.
        stored: Names of large calls that its checkpoints hold; see `stored_calls`.
        invocation: That charges.

    Returns:
        An update with ``spend`` and ``notes``; empty where nothing was lost.
    """
    update: dict[str, Any] = {}
    notes = list[str]()
    if lost := _lost_calls(state, stored):
        update = _charged_with(state, lost, invocation)
        for call in lost:
            how = "was cut off by an error" if call.raised else "was made, but its result could not be stored"
            notes.append(
                charge_note(how, call.used["large"]["output_tokens"] + call.used["unaccounted_tokens"])
            )
    in_flight = state.get("in_flight")
    if in_flight is not None and in_flight["process"] != this_process():
        tokens, prices = in_flight["max_tokens"], settings_of(state["run"]).prices
        usage: Usage = update.get("usage", state["usage"])
        charged = Usage(**{**usage, "large": {**usage["large"], "calls": usage["large"]["calls"] + 1}})
        charged["unaccounted_tokens"] += tokens
        charged["unaccounted_cost"] += prices.large.cost(in_flight["prompt_tokens"], tokens)
        update["usage"] = charged
        notes.append(charge_note("was cut off by a crash", tokens))
    for note in notes:
        emit("note", text=note)
    return update | {"notes": [*state["notes"], *notes]} if notes else update


def charge_note(how: str, tokens: int) -> str:
    """Return the note on a charge for a call whose usage nobody reported."""
    return f"a call of the large model {how}; {tokens} tokens were charged for it"


def stored_calls(state: TrimState, config: RunnableConfig) -> set[str]:
    """Return the names of large calls that the checkpoints of a run hold.

    The store is asked only where calls were made behind this state before, which is rare.

    Args:
        state: Of the run.
        config: Of the node, which names the checkpointer.
    """
    names = set[str]()
    for saver, place in _asked(state, config):
        with suppress(Exception):  # what the store does not show counts as lost
            names.update(name for one in saver.list(place) for name in _names(one))
    return names


async def astored_calls(state: TrimState, config: RunnableConfig) -> set[str]:
    """As `stored_calls`, without blocking."""
    names = set[str]()
    for saver, place in _asked(state, config):
        with suppress(Exception):
            names.update([name async for one in saver.alist(place) for name in _names(one)])
    return names


def place_of(config: RunnableConfig) -> Place:
    """Find the thread and the namespace in which a node's graph keeps its checkpoints."""
    configurable = config.get("configurable") or {}
    # A node's own namespace is its graph's, and its task behind that.
    graph = str(configurable.get("checkpoint_ns") or "").rpartition("|")[0]
    return configurable.get("thread_id"), graph


def _asked(state: TrimState, config: RunnableConfig) -> Iterator[tuple[Any, RunnableConfig]]:
    saver, (suspected, known) = (config.get("configurable") or {}).get(CHECKPOINTER), _behind(state)
    if saver and suspected:
        for thread, namespace in {call.place for call in known}:
            yield saver, {"configurable": {"thread_id": thread, "checkpoint_ns": namespace}}


def _names(one: CheckpointTuple) -> Iterator[str]:
    values = one.checkpoint["channel_values"]
    # Not its pending writes: whoever runs a node again at this checkpoint leaves those behind for good.
    yield from (values[channel] for channel in CHANNELS if values.get(channel))
