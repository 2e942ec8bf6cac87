"""Scores that are known, so that a scorer rates each step once."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from .base import ScorableStep, step_facts, step_texts


class KnownScores:
    """The scores used last. Threads share it.

    Args:
        size: Most scores to keep; 0 keeps none.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[bytes, float] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Returns how many scores are kept."""
        return len(self._kept)

    def __deepcopy__(self, memo: dict[int, Any]) -> KnownScores:
        """Copies of a scorer share it."""
        return self

    def get(self, key: bytes) -> float | None:
        """Returns the score of a step; None if it is not known."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: bytes, score: float) -> None:
        """Keeps a score, and drops the one that was not used for longest where there are too many."""
        with self._lock:
            self._kept[key] = score
            self._kept.move_to_end(key)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)


class KnownSteps:
    """The steps of one request for scores.

    Args:
        question: Question that they answer.
        steps: All of them.
        known: Scores of earlier requests.
        only: Indices of the steps that are wanted, in order; None: all.
        reported: Whether a score depends on what the writer of a step reports too (`reads_reports`).

    Attributes:
        scores: Those known, None for the others.
        missing: Indices of the wanted steps without a score.
    """

    def __init__(
        self,
        question: str,
        steps: Sequence[ScorableStep],
        known: KnownScores,
        only: Sequence[int] | None = None,
        *,
        reported: bool = False,
    ) -> None:
        self._known = known
        self._keys = []
        digest = hashlib.sha256(_bytes(question))
        facts = step_facts(steps) if reported else [None] * len(steps)
        for text, fact in zip(step_texts(steps), facts, strict=True):
            digest.update(hashlib.sha256(_bytes(text)).digest())
            if fact is not None:
                digest.update(repr(fact).encode())
            self._keys.append(digest.digest())
        self.scores: list[float | None] = [known.get(key) for key in self._keys]
        self._wanted = range(len(steps)) if only is None else only
        self.missing = [index for index in self._wanted if self.scores[index] is None]

    def keep(self, index: int, score: float) -> None:
        """Keeps the score of a step, for later requests too."""
        self.scores[index] = score
        self._known.put(self._keys[index], score)

    def whole(self) -> list[float]:
        """Returns the scores of the wanted steps; all of them are known."""
        return [score for index in self._wanted if (score := self.scores[index]) is not None]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
