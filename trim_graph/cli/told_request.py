"""What shards say of the command line they were called with, and a command line of that again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

from trim_graph.errors import InputError


def names_but(request: type[Any], left_out: Collection[str]) -> tuple[str, ...]:
    """Return the names of a request's fields, without some."""
    return tuple(field.name for field in fields(request) if field.name not in left_out)


def tell(request: Any, names: Collection[str]) -> dict[str, Any]:
    """Return some fields of a request, JSON-native."""
    values = {name: getattr(request, name) for name in names}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def read_told(told: Any, names: Collection[str], out: Path) -> dict[str, Any]:
    """Return the fields of a request again; the one called ``config`` is a path.

    Args:
        told: What `tell` has returned.
        names: Of the fields.
        out: Of the shards, for the error.

    Raises:
        InputError: It is none.
    """
    try:
        config = None if told["config"] is None else Path(told["config"])
        for strange in set(told) - set(names):
            raise TypeError(f"unexpected keyword argument {strange!r}")
        values = {name: told[name] for name in names}
    except (TypeError, KeyError) as error:
        raise InputError(f"the shards of {out} do not say what was asked for: {error}") from error
    return {**values, "config": config}
