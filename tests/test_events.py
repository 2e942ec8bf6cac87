"""The events that runs emit are those that `trim_graph.events` declares, with no field besides."""

import asyncio
import json
from pathlib import Path
from typing import get_args

import pytest
from paced_models import PacedModel
from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict, get_type_hints

from trim_graph import ScorerReply, create_trim_graph
from trim_graph import events as module
from trim_graph.events import EVENTS, EventName
from trim_graph.policies import threshold
from trim_graph.testing import ScriptedChatModel

GOLDEN = json.loads((Path(__file__).parent / "golden/graph.json").read_text("utf-8"))


def events(recorded):
    """Yields the step events within a JSON value."""
    if isinstance(recorded, dict) and recorded.get("type") == "trim" and "event" in recorded:
        yield recorded
    inner = recorded.values() if isinstance(recorded, dict) else recorded
    for value in inner if isinstance(recorded, dict | list) else ():
        yield from events(value)


# The record holds a summary where the state does.
RECORDED = [event for event in events(GOLDEN) if event["event"] != "finished"]


def rate(question, steps):
    """A scorer whose first attempt failed."""
    return ScorerReply([0.9] * len(steps), failed_attempts=1)


@pytest.fixture(scope="module")
def scripted():
    """Events of a run with a retried call, while the large model's cache is warmed."""
    small = PacedModel(script=["one", r"\boxed{2}"], turns=20)
    large = ScriptedChatModel(script=["one", r"\boxed{2}"])
    graph = create_trim_graph(small, large, rate, policy=threshold(0.5), warm_large=True, max_steps=8)

    async def listed():
        run = graph.astream({"messages": [("user", "1 + 1?")]}, stream_mode="custom")
        return [event async for event in run]

    return asyncio.run(listed())


def strict(kind):
    """The event's class, with unknown keys refused."""
    closed = TypedDict(kind.__name__, get_type_hints(kind, include_extras=True))
    closed.__pydantic_config__ = ConfigDict(extra="forbid")
    return TypeAdapter(closed)


def test_each_event_is_declared_under_its_name():
    assert set(EVENTS) == set(get_args(EventName))


@pytest.mark.parametrize("name", EVENTS)
def test_events_of_this_name_have_the_declared_fields(name, scripted):
    found = [event for event in RECORDED + scripted if event["event"] == name]
    assert found
    adapter = strict(EVENTS[name])
    for event in found:
        adapter.validate_python(event)


def test_an_undeclared_field_is_found():
    with pytest.raises(ValidationError):
        strict(EVENTS["note"]).validate_python({"type": "trim", "event": "note", "text": "", "more": 1})


def test_each_class_of_an_event_is_exported():
    assert {kind.__name__ for kind in EVENTS.values()} <= set(module.__all__)
