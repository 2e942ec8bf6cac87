"""Progress on stderr: a bar with rate and time left on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Self

EVERY = 30.0
"""Seconds between two lines in a log."""


class Progress:
    """How far a piece of work has come.

    Args:
        what: In a word.
        total: How many items there are; None if nobody knows.
        done: How many were done before.
        every: Seconds between two lines, where stderr is no terminal.
    """

    def __init__(self, what: str, total: int | None, *, done: int = 0, every: float = EVERY) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        from .console import Console, live, text_column

        self.what, self.total, self.done, self.every = what, total, done, every
        self.now = self.failed = 0
        self._begun = self._told = time.monotonic()
        console = Console(stderr=True)
        self._bar: Bar | None = None
        self._shown = ExitStack()
        if console.is_terminal:
            columns = (text_column("{task.description}"), BarColumn(), MofNCompleteColumn())
            rest = (TimeElapsedColumn(), text_column("{task.fields[rate]}"))
            self._bar = Bar(*columns, *rest, console=console)
            self._show = partial(live, self._bar)
            self._task = self._bar.add_task(what, total=total, completed=done, rate="")

    def advance(self, *, failed: bool = False) -> None:
        """Note that one more is done."""
        self.now, self.failed = self.now + 1, self.failed + failed
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done + self.now, rate=self.rate())
        elif time.monotonic() - self._told >= self.every:
            self._told = time.monotonic()
            print(f"{self.what}: {self.line()}", file=sys.stderr, flush=True)

    def line(self) -> str:
        """Say how far it is."""
        total = "" if self.total is None else f"/{self.total}"
        return f"{self.done + self.now}{total}, {self.rate()}"

    def rate(self) -> str:
        """Say how fast it goes, how long it takes, and how much has failed."""
        a_second = self.now / max(time.monotonic() - self._begun, 1e-9)
        told = f"{a_second:.1f}/s"
        if self.total is not None and a_second > 0:
            left = round((self.total - self.done - self.now) / a_second)
            told += f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        return f"{told}, {self.failed} failed" if self.failed else told

    def __enter__(self) -> Self:
        self._begun = self._told = time.monotonic()
        if self._bar is not None:
            self._shown.enter_context(self._show())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shown.close()
        if self._bar is None:
            print(f"{self.what}: {self.line()}", file=sys.stderr, flush=True)
