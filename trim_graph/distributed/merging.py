"""Join the journals of shards: every unit of work exactly once, each from the shard that has it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trim_graph.errors import InputError
from trim_graph.journal import Finished, Journal, differences, settings_beside
from trim_graph.rows import read_rows

from .shards import Shard, ShardFolder

_NAMED = 5
"""Questions that a message names; of the others it tells the number."""


@dataclass
class Tally:
    """Which units of work are there.

    Args:
        total: Questions wanted: the first so many.
        of: Shards there are.
        samples: Units of each question; 0 where there may be any number.
    """

    total: int
    of: int
    samples: int = 1
    seen: Finished = field(default_factory=Finished)

    def add(self, index: int, sample: int, shard: Shard, place: str) -> None:
        """Note a unit.

        Raises:
            InputError: It is not this shard's, or was there before.
        """
        if not shard.takes(index):
            raise InputError(
                f"{place}: question {index} is not shard {shard}'s, but shard {self.owner(index)}'s"
            )
        if self.samples == 0:
            self.seen.add(index)
            return
        if not 0 <= sample < self.samples:
            raise InputError(
                f"{place}: question {index} has a sample {sample}, and {self.samples} were wanted"
            )
        unit = index * self.samples + sample
        if unit in self.seen:
            told = f", sample {sample}" if self.samples > 1 else ""
            raise InputError(f"{place}: question {index}{told} is there twice")
        self.seen.add(unit)

    def owner(self, index: int) -> Shard:
        """Return whose question it is."""
        return Shard(index % self.of + 1, self.of)

    def missing(self, more: Sequence[int] = ()) -> dict[Shard, list[int]]:
        """Return the questions of which something is missing, by shard.

        Args:
            more: Questions that lack something that is not counted here.
        """
        found, each, lacking = dict[Shard, list[int]](), max(1, self.samples), set(more)
        for index in range(self.total):
            units = range(index * each, (index + 1) * each)
            if index in lacking or not all(unit in self.seen for unit in units):
                found.setdefault(self.owner(index), []).append(index)
        return found


class Lacking:
    """What is missing of several journals, to be told in one message."""

    def __init__(self, shards: Sequence[ShardFolder]) -> None:
        self.there = {folder.shard for folder in shards}
        self.of = shards[0].shard.of
        self._told: dict[Shard, list[str]] = {}

    def note(self, name: str, missing: dict[Shard, list[int]]) -> None:
        """Note what of one journal is missing."""
        for shard, questions in missing.items():
            named = ", ".join(map(str, questions[:_NAMED]))
            more = f" and {len(questions) - _NAMED} more" if len(questions) > _NAMED else ""
            self._told.setdefault(shard, []).append(f"{name}: questions {named}{more}")

    @property
    def absent(self) -> list[Shard]:
        """The shards that are not there at all."""
        every = (Shard(number, self.of) for number in range(1, self.of + 1))
        return [shard for shard in every if shard not in self.there]

    def __str__(self) -> str:
        """Name the shards and the questions, each shard on a line of its own."""
        told = [f"shard {shard} is not there" for shard in self.absent]
        told += [
            f"shard {shard} lacks {'; '.join(parts)}"
            for shard, parts in sorted(self._told.items())
            if shard in self.there
        ]
        return "".join(f"\n  {line}" for line in told)


@dataclass(frozen=True)
class Join:
    """The journals of one name of all shards, which become one.

    Attributes:
        shards: Of one piece of work.
        name: Of the journal in their folders.
        out: The journal to be written.
        settings: What all must have been begun with.
        total: Questions wanted.
        samples: Units of each question; 0 where there may be any number.
        check: Of each record and its place; raises `InputError` where it is none.
        more: Asked when all have been checked: questions of which there is something, and not all.
        older: Gives the records that are in the place of the joined journal; default: those of ``out``.
        what: Its records are of, for messages.
        needed: Whether nothing is joined where something of this is missing, or only this is not.
    """

    shards: Sequence[ShardFolder]
    name: str
    out: Path
    settings: dict[str, Any]
    total: int
    samples: int = 1
    check: Callable[[dict[str, Any], str], Any] = lambda record, place: None
    more: Callable[[], Sequence[int]] = tuple
    older: Callable[[], Iterable[Mapping[str, Any]]] | None = None
    what: str = ""
    needed: bool = True

    def missing(self) -> dict[Shard, list[int]]:
        """Return what is missing, by shard.

        Raises:
            InputError: A shard was begun with other settings, holds a question that is not its own or one
                twice, or cannot be read.
        """
        tally = self._tally()
        for folder in self._there():
            _check_settings(folder, self.name, self.settings)
            for _ in _lines(folder, self.name, tally, self.check):
                pass
        return tally.missing(self.more())

    def check_older(self) -> None:
        """Refuse to write over what was gone on with since an earlier merge.

        Raises:
            InputError: There is a unit that no shard has, or one without an error that failed in its shard.
        """
        failed, tally = dict[Any, bool](), self._tally()

        def note(record: Mapping[str, Any], place: str) -> None:
            failed[self._unit(record)] = bool(record.get("error"))

        for record in self._older():
            if not failed:  # only now: mostly there is nothing to compare with
                for folder in self._there():
                    for _ in _lines(folder, self.name, tally, note):
                        pass
            unit, one = self._unit(record), "a run of question" if self.samples == 0 else "question"
            if unit not in failed:
                why = "and its shards, as they were called last, have not"
            elif failed[unit] and not record.get("error"):
                why = "which failed in its shard"
            else:
                continue
            raise InputError(
                f"{self.out.parent} has {one} {record['index']} of {self.what or self.name}, {why}: it was "
                "gone on with since. Merge into a fresh place: move the shards there"
            )

    def write(self) -> None:
        """Write the joined journal, in order of question and sample; an older one stays whole until then."""
        tally = self._tally()
        lines = sorted(
            line
            for folder in self._there()
            for line in _lines(folder, self.name, tally, lambda record, place: None)
        )
        self.out.parent.mkdir(exist_ok=True)
        _write(self.out, self.settings, lines)

    def _older(self) -> Iterable[Mapping[str, Any]]:
        if self.older is not None:
            return self.older()
        return (record for _, record in read_rows(self.out, torn=True)) if self.out.exists() else ()

    def _unit(self, record: Mapping[str, Any]) -> tuple[int, Any]:
        """Return what a record is told from others by: where there may be any number, all that it says."""
        if self.samples == 0:
            return record["index"], json.dumps(record, sort_keys=True)
        return record["index"], record.get("sample", 0)

    def _tally(self) -> Tally:
        return Tally(self.total, self.shards[0].shard.of, self.samples)

    def _there(self) -> list[ShardFolder]:
        return [folder for folder in self.shards if folder.journal(self.name).exists()]


def join_all(out: Path, joins: Sequence[Join]) -> None:
    """Join journals, once nothing is missing of any of them.

    Raises:
        InputError: See `check_joins`.
    """
    for one in check_joins(out, joins)[0]:
        one.write()


def check_joins(out: Path, joins: Sequence[Join]) -> tuple[list[Join], Lacking]:
    """Check journals before any is written.

    Args:
        out: What the shards were given as their output, for the message.
        joins: Of the same shards.

    Returns:
        Those of which nothing is missing, which are all that are needed, and what is missing of the others.

    Raises:
        InputError: Something that is needed is missing, or see `Join.missing` and `Join.check_older`.
    """
    if not joins:
        raise InputError(
            f"the shards of {out} have begun, and recorded nothing yet: the same commands go on with them; "
            "then merge again"
        )
    lacking, whole, stops = Lacking(joins[0].shards), list[Join](), False
    for one in joins:
        missing = one.missing()
        lacking.note(one.name, missing)
        stops = stops or (one.needed and bool(missing))
        if not missing:
            whole.append(one)
    if stops or lacking.absent:
        raise InputError(
            f"{out} is not complete:{lacking}\nThe same command goes on with a shard; then merge again"
        )
    for one in whole:
        one.check_older()
    return whole, lacking


class _Line(NamedTuple):
    """Where a record stands, in the order in which records are joined."""

    question: int
    sample: int
    file: str
    start: int


def _lines(
    folder: ShardFolder, name: str, tally: Tally, check: Callable[[dict[str, Any], str], Any]
) -> Iterator[_Line]:
    """Give the records of a shard; a last line without an end is work that has not ended."""
    file, start = folder.journal(name), 0
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            place = f"{file}, line {number}"
            try:
                record = json.loads(line)
                index, sample = int(record["index"]), int(record.get("sample", 0))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise InputError(f"{place}: no record: {error!r}") from error
            if index < tally.total:  # else it is of an earlier command line, which wanted more
                tally.add(index, sample, folder.shard, place)
                check(record, place)
                yield _Line(index, sample, str(file), start)
            start += len(line)


def _check_settings(folder: ShardFolder, name: str, settings: dict[str, Any]) -> None:
    beside = settings_beside(folder.journal(name))
    try:
        known = json.loads(beside.read_bytes())["settings"]
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"{beside}, which says what it was made with, cannot be read: {error}") from error
    if different := differences(known, json.loads(json.dumps(settings))):
        raise InputError(
            f"shard {folder.shard} was begun with other settings than are to be merged, {name}: "
            f"{'; '.join(different)}"
        )


def _write(out: Path, settings: dict[str, Any], lines: Sequence[_Line]) -> None:
    """Write the journal that an unsharded run would have left."""
    Journal(out, settings).close()  # its settings beside it; refuses a file that was begun otherwise
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    with ExitStack() as opened:
        opened.callback(beside.unlink, missing_ok=True)
        streams = {file: opened.enter_context(open(file, "rb")) for file in {line.file for line in lines}}
        with beside.open("wb") as whole:
            for line in lines:
                streams[line.file].seek(line.start)
                whole.write(streams[line.file].readline())
        beside.replace(out)
