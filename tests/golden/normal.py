"""From what was played to JSON that is the same in every run: `encode`, and what differs between two records.

What varies is replaced by name: see `VARYING_KEYS` and `VARYING_TEXT`, which is all there is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from langchain_core.messages import BaseMessage
from langgraph.types import Interrupt, Overwrite, Send
from pydantic import BaseModel

import trim_graph

VARYING_KEYS = frozenset({"seconds"})
"""Keys whose values are measured; they become ``<seconds>``."""
VARYING_TEXT = (
    (re.compile(re.escape(str(Path(trim_graph.__file__).parents[1]))), "<repository>"),
    (re.compile(r"\b\d+-[0-9a-f]{32}\b"), "<process>"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "<id>"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "<id>"),
    (re.compile(r"(?<=^seconds )[\d.]+"), "<seconds>"),
    (re.compile(r"[\d.]+ s (?:faster|slower)$"), "<seconds>"),
    (re.compile(r"(?<=Wall clock ).*"), "<seconds, and what they say>"),
)
"""The place of the code, names of processes, ids of runs and messages, and what commands print of times,
anywhere in a text."""
WIDTH = 180
DIGITS = 6
"""Significant digits of a float."""
FLOAT_TOLERANCE = 1e-4
"""Share by which a float may be off: processors differ in what a network computes."""
SIZES = "sizes"
"""Key of the sizes of checkpoints. They hold keys and texts that may
be renamed; so a size differs only where it is off by more than the tolerance."""
SIZE_TOLERANCE = (64, 0.05)
"""Bytes, and share of the recorded size; the larger one of the two counts. A channel that is stored whole in
place of what was added to it is beyond both."""

_MESSAGE = ("content", "id", "name", "tool_calls", "invalid_tool_calls", "tool_call_id", "usage_metadata")


def encode(value: Any, varying: frozenset[str] = VARYING_KEYS) -> Any:
    """Returns plain JSON of a value, with placeholders for what varies.

    Args:
        value: Of JSON, messages, pydantic models, tuples and sets.
        varying: Keys whose values are replaced, unless they are None.

    Raises:
        TypeError: It holds something else.
    """
    if isinstance(value, str):
        for pattern, placeholder in VARYING_TEXT:
            value = pattern.sub(placeholder, value)
        return value
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else repr(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, BaseMessage):
        fields = {name: getattr(value, name, None) for name in (*_MESSAGE, "response_metadata")}
        return encode({"type": value.type, **{n: v for n, v in fields.items() if v}}, varying)
    if isinstance(value, BaseModel):
        return encode(value.model_dump(), varying)
    if isinstance(value, Send):
        return {"to": value.node, "with": encode(value.arg, varying)}
    if isinstance(value, Overwrite | Interrupt):
        return {type(value).__name__: encode(value.value, varying)}
    if isinstance(value, Mapping):
        return {
            encode(str(key)): f"<{key}>" if key in varying and one is not None else encode(one, varying)
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [encode(one, varying) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(encode(one, varying) for one in value)
    raise TypeError(f"cannot record {type(value).__name__}: {value!r}")


def pretty(value: Any, indent: str = "") -> str:
    """Returns JSON text with sorted keys, in which what fits into a line is on one."""
    line = json.dumps(value, ensure_ascii=False, sort_keys=True)
    if len(indent) + len(line) <= WIDTH or not value or not isinstance(value, dict | list):
        return line
    within = indent + " "
    if isinstance(value, dict):
        parts = [
            f"{json.dumps(key, ensure_ascii=False)}: {pretty(value[key], within)}" for key in sorted(value)
        ]
    else:
        parts = [pretty(one, within) for one in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return opening + ",".join(f"\n{within}{part}" for part in parts) + f"\n{indent}{closing}"


class Difference(NamedTuple):
    """One place where two records differ.

    Attributes:
        place: Keys and indices to it.
        before: Recorded; `ABSENT` where there is nothing.
        after: Played.
        counts: Whether it is a difference; else it is within the tolerance of a size.
    """

    place: tuple[str, ...]
    before: Any
    after: Any
    counts: bool = True


class _Absent:
    def __repr__(self) -> str:
        return "(nothing)"


ABSENT = _Absent()


def differences(before: Any, after: Any, place: tuple[str, ...] = ()) -> Iterator[Difference]:
    """Finds where two records differ; a list is compared item by item."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from differences(before.get(key, ABSENT), after.get(key, ABSENT), (*place, key))
    elif isinstance(before, list) and isinstance(after, list):
        for index in range(max(len(before), len(after))):
            old, new = (side[index] if index < len(side) else ABSENT for side in (before, after))
            yield from differences(old, new, (*place, str(index)))
    elif not _same(before, after):
        yield Difference(place, before, after, counts=not _same_size(place, before, after))


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, float) and isinstance(after, float):
        return math.isclose(before, after, rel_tol=FLOAT_TOLERANCE, abs_tol=1e-9)
    return type(before) is type(after) and bool(before == after)


def _same_size(place: tuple[str, ...], before: Any, after: Any) -> bool:
    if SIZES not in place or not (isinstance(before, int) and isinstance(after, int)):
        return False
    fixed, share = SIZE_TOLERANCE
    return abs(after - before) <= max(fixed, share * before)


def renamed(record: Any, names: Mapping[str, str]) -> Any:
    """Applies new names to the keys of a record and to texts that are a name as a whole."""
    if isinstance(record, dict):
        return {names.get(key, key): renamed(value, names) for key, value in record.items()}
    if isinstance(record, list):
        return [renamed(value, names) for value in record]
    return names.get(record, record) if isinstance(record, str) else record
