"""Admission: how many questions are under way at once, and when one that is refused may come again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from trim_graph.errors import counted

from .errors import ApiError

_WEIGHT = 0.1
"""Weight of the last question in the mean duration."""
_LONGEST_S = 60.0
"""Clients of OpenAI's library do not wait longer than this."""


class Admission:
    """Limits the questions under way in this process.

    Args:
        most: Largest number of them.
    """

    def __init__(self, most: int) -> None:
        self.under_way = 0
        self._most = most
        self._mean_s = 0.0

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Counts a question while it is under way.

        Raises:
            ApiError: 429, since as many as are allowed are under way.
        """
        if self.under_way >= self._most:
            raise ApiError(
                429,
                f"{counted(self.under_way, 'question is', 'questions are')} under way, as many as this "
                "server takes at once; try again",
                kind="requests",
                code="rate_limit_exceeded",
                retry_after=self.retry_after(),
            )
        self.under_way += 1
        begun = time.monotonic()
        try:
            yield
        finally:
            self.under_way -= 1
            took = time.monotonic() - begun
            self._mean_s = took if not self._mean_s else (1 - _WEIGHT) * self._mean_s + _WEIGHT * took

    def retry_after(self) -> float:
        """Returns the seconds until a question has probably ended, at most a minute.

        With ``most`` questions of a mean duration under way, the next one ends after the mean divided by
        ``most``. A client that is refused shares that place with others, so it waits half the mean.
        """
        return min(self._mean_s / 2, _LONGEST_S)
