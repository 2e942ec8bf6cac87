"""Shards: which questions are whose, and the folders in which shards of one piece of work lie.

A shard has every ``of``-th question, so that a question stays with its shard however many there are, and all
samples of a question are with one. Its folder, ``OUT/shards/2-of-4``, holds journals as an unsharded run
writes them, and ``shard.json``, which says what it is a shard of. `trim_graph.distributed.merging` joins
them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trim_graph.errors import InputError, SettingsError
from trim_graph.journal import differences

VERSION = 1
FOLDER, MANIFEST = "shards", "shard.json"
_GIVEN = re.compile(r"(\d+)/(\d+)")
_NAME = re.compile(r"(\d+)-of-(\d+)")


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """One part of the questions.

    Attributes:
        number: Which, from 1.
        of: How many there are.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, given: str) -> Shard:
        """Read ``2/4``.

        Raises:
            SettingsError: It is none.
        """
        found = _GIVEN.fullmatch(given.strip())
        shard = cls(int(found[1]), int(found[2])) if found else None
        if shard is None or not 1 <= shard.number <= shard.of:
            raise SettingsError(
                f"--shard is {given!r}: give which and of how many, from 1/4 to 4/4; an array that counts "
                "from 0 gives $((INDEX + 1))/4"
            )
        return shard

    def takes(self, index: int) -> bool:
        """Tell whether a question is this shard's.

        Args:
            index: Its place in the dataset, from 0.
        """
        return index % self.of == self.number - 1

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.number}-of-{self.of}"

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


WHOLE = Shard(1, 1)
"""All questions."""


@dataclass(frozen=True, slots=True)
class ShardFolder:
    """The folder of a shard.

    Attributes:
        path: Where it is.
        shard: Which it is.
        told: What its shard.json says: ``command``, ``code`` and ``request`` of the work it is a shard of,
            and the ``folder`` it was called in.
    """

    path: Path
    shard: Shard
    told: dict[str, Any]

    @property
    def work(self) -> dict[str, Any]:
        """What all shards of one piece of work say alike."""
        return {key: value for key, value in self.told.items() if key != "folder"}

    def journal(self, name: str) -> Path:
        """Return where one of its journals lies.

        Args:
            name: As in the folder of an unsharded run.
        """
        return self.path / name

    def journals(self, pattern: str) -> set[str]:
        """Return the names of its journals that match a pattern."""
        return {str(file.relative_to(self.path)) for file in self.path.glob(pattern)}


def shards_of(out: Path) -> Path:
    """Return where the shards of an output lie: in a folder, beside a file."""
    return out.with_name(f"{out.name}.{FOLDER}") if out.suffix in (".jsonl", ".parquet") else out / FOLDER


def open_shard(out: Path, shard: Shard, told: dict[str, Any]) -> ShardFolder:
    """Make the folder of a shard, or go on with it.

    Args:
        out: What all shards are given as their output.
        shard: Which.
        told: See `ShardFolder`; JSON-native.

    Raises:
        SettingsError: It was begun with other code, or cannot be written.
        InputError: What is there is damaged.
    """
    path = shards_of(out) / shard.name
    file = path / MANIFEST
    told = json.loads(json.dumps({"version": VERSION, **told}))
    if file.exists():
        known = _read(file)
        if different := differences(known.get("code"), told["code"], "code"):
            raise SettingsError(
                f"{path} was begun with another trim-graph: {'; '.join(different)}. Choose another --out, or "
                "go on with the same code"
            )
    try:
        path.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{MANIFEST}.partial")
        beside.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        beside.replace(file)
    except OSError as error:
        raise SettingsError(f"the shard {path} cannot be written: {error.strerror}") from error
    return ShardFolder(path, shard, told)


def read_shards(out: Path) -> list[ShardFolder]:
    """Read what shards there are, in order.

    Args:
        out: What they were given as their output.

    Raises:
        InputError: There are none, one is damaged, they are of different numbers of shards, or they are not
            shards of one piece of work; the message names them.
    """
    root = shards_of(out)
    found = sorted(_folders(root), key=lambda folder: folder.shard)
    if not found:
        raise InputError(f"{out} has no shards: {root} holds no folder such as 1-of-4 with a {MANIFEST}")
    first = found[0]
    for other in found[1:]:
        if other.shard.of != first.shard.of:
            raise InputError(
                f"{root} holds shards of different divisions, {first.shard} and {other.shard}: take away "
                "those that are not wanted"
            )
        if different := differences(first.work, other.work):
            raise InputError(
                f"shard {other.shard} is of other work than shard {first.shard}: {'; '.join(different)}"
            )
    return found


def _folders(root: Path) -> Iterator[ShardFolder]:
    for path in root.glob("*"):
        named = _NAME.fullmatch(path.name)
        if named and (path / MANIFEST).exists():
            shard = Shard(int(named[1]), int(named[2]))
            if not 1 <= shard.number <= shard.of:
                raise InputError(f"{path}: there is no shard {shard}")
            yield ShardFolder(path, shard, _read(path / MANIFEST))


def _read(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_bytes())
    except (ValueError, OSError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if not isinstance(told, dict) or told.get("version") != VERSION:
        raise InputError(f"{file} is not what this release writes (version {VERSION})")
    return told
