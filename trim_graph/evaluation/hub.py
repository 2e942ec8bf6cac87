"""Datasets of the Hugging Face Hub, by the package ``datasets`` (extra ``eval``).

They are downloaded once and read from the disk row by row, so that any number of arms costs one download and
any length little memory. A folder in the layout of the hub is read alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from trim_graph.errors import InputError
from trim_graph.rows import Row


def read_hub(path: str, config: str | None, split: str, revision: str | None) -> Iterator[Row]:
    """Read a split row by row.

    Args:
        path: Id of the dataset, ``owner/name``, or a folder.
        config: Which of its configurations.
        split: ``test`` and the like, as the dataset calls it.
        revision: Branch, tag or commit; default: its main branch.

    Raises:
        InputError: There is no such dataset or split, or the hub cannot be reached.
        ImportError: The package is not installed.
    """
    for number, values in enumerate(_loaded(path, config, split, revision), 1):
        yield Row(f"{path}:{split}, row {number}", dict(values))


def count_rows(path: str, config: str | None, split: str, revision: str | None) -> int:
    """Return how many rows a split has; raises as `read_hub`."""
    return len(_loaded(path, config, split, revision))


def fingerprint(path: str, config: str | None, split: str, revision: str | None) -> str:
    """Return what differs where a split's content does; raises as `read_hub`."""
    return str(_loaded(path, config, split, revision)._fingerprint)


@lru_cache(maxsize=8)
def _loaded(path: str, config: str | None, split: str, revision: str | None) -> Any:
    try:
        from datasets import load_dataset  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            f'datasets of the hub need the package datasets: pip install "trim-graph[eval]" ({error})'
        ) from error
    try:
        return load_dataset(path, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise InputError(
            f"dataset {path}, split {split}{f', {config}' if config else ''}: {told}. For a file give its "
            "path with .jsonl, .parquet or .json"
        ) from error
